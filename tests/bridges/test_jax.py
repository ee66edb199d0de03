"""JAX arrays: every operator computes what it does on NumPy arrays, in every transformation."""

import numpy as np
import pytest
from cases import DTYPES, operator, problem, problems
from tolerances import assert_close

import cudeform
from cudeform.registry import OPERATORS

jax = pytest.importorskip("jax")
jnp = jax.numpy

each_problem = pytest.mark.parametrize(("name", "case"), problems())


@pytest.fixture(autouse=True)
def float64():
    """JAX makes float32 of float64 arrays unless told."""
    with jax.enable_x64(True):
        yield


def split(of):
    """The arrays of a problem that have gradients, as JAX arrays, and a function of them."""
    names = {a.name for a in of.row.arguments if a.differentiable} & of.case.arrays.keys()
    arrays = {name: jnp.asarray(array) for name, array in of.case.arrays.items()}
    fixed = {a.name: None for a in of.row.arguments if a.optional and a.name not in names}
    fixed |= {name: array for name, array in arrays.items() if name not in names}

    def function(given):
        return of.row.forward(**given, **fixed, **of.case.options)

    return {name: arrays[name] for name in arrays if name in names}, function


def directions(given, seed=3):
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.standard_normal(v.shape), v.dtype) for k, v in given.items()}


def inner(a, b):
    return sum(float(jnp.vdot(a[name], b[name])) for name in a)


def check_against_numpy(name, case, dtype):
    """Bit for bit: the same code runs."""
    of = problem(name, case, dtype)
    given, function = split(of)
    output, pullback = jax.vjp(jax.jit(function), given)
    assert isinstance(output, jax.Array) and output.dtype.name == dtype
    np.testing.assert_array_equal(output, of.row.call(of.case))
    expected = of.row.call_backward(of.grad_output, of.case)
    (gradients,) = pullback(jnp.asarray(of.grad_output))
    for argument in given:
        np.testing.assert_array_equal(gradients[argument], getattr(expected, argument), argument)
        assert gradients[argument].dtype.name == dtype


@each_problem
def test_results_and_gradients_are_those_of_numpy_arrays(name, case):
    check_against_numpy(name, case, "float32")


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "float32"])
@pytest.mark.parametrize("name", [row.name for row in OPERATORS])
def test_dtypes_are_kept(name, dtype):
    """The two 16-bit types cross as they are, too."""
    check_against_numpy(name, [case for row, case in problems() if row == name][0], dtype)


@pytest.mark.parametrize("name", [row.name for row in OPERATORS])
def test_backward_may_be_called(name):
    """Outside of any transformation, for all gradients and for some."""
    of = problem(name, [case for row, case in problems() if row == name][0], "float32")
    grad_output = jnp.asarray(of.grad_output)
    found = of.row.call_backward(grad_output, of.case, jnp.asarray)
    expected = of.row.call_backward(of.grad_output, of.case)
    assert type(found) is type(expected)
    for gradient, want in zip(found, expected, strict=True):
        assert (gradient is None) == (want is None)
        if want is not None:
            np.testing.assert_array_equal(gradient, want)
    images = of.row.images
    some = of.row.call_backward(grad_output, of.case, jnp.asarray, needs=iter([images]))
    assert [name for name, value in some._asdict().items() if value is not None] == [images]
    np.testing.assert_array_equal(getattr(some, images), getattr(expected, images))


@each_problem
def test_tangents_are_the_transpose_of_gradients(name, case):
    """<jvp(t), g> = <t, vjp(g)>: forward mode is right, and never a silent zero."""
    of = problem(name, case, "float64")
    given, function = split(of)
    moved = directions(given)
    _, pullback = jax.vjp(function, given)
    grad_output = jnp.asarray(of.grad_output)
    (gradients,) = pullback(grad_output)
    _, change = jax.jvp(function, (given,), (moved,))
    found, expected = float(jnp.vdot(change, grad_output)), inner(gradients, moved)
    assert abs(found - expected) <= 1e-11 * max(1, float(jnp.abs(change).sum()))
    assert change.size == 0 or float(jnp.abs(change).max()) > 0


def small(name, **options):
    """A case of a few pixels, so that derivatives of derivatives take no time."""
    rng = np.random.default_rng(5)
    fixed = {}
    if name == "bilinear_sample":
        arrays = {"input": (2, 3, 4, 5), "points": (2, 6, 2)}
    elif operator(name).family == "aggregation":
        arrays = {"input": (2, 4, 5, 4), "offset": (2, 5, 6, 16), "mask": (2, 5, 6, 8)}
        if name == "dcnv4":
            arrays = {"input": (2, 4, 5, 4), "offset_mask": (2, 5, 6, 24)}
        options = {"kernel_size": 2, "padding": 1, "groups": 2, **options}
    elif name == "ms_deform_attn":
        arrays = {"value": (2, 14, 2, 3), "sampling_locations": (2, 3, 2, 2, 2, 2)}
        arrays["attention_weights"] = (2, 3, 2, 2, 2)
        options = {"spatial_shapes": ((3, 4), (1, 2)), **options}
    elif operator(name).family == "regions":
        arrays = {"input": (2, 4, 4, 5)}
        if name.startswith("deform"):
            arrays |= {"offset": (3, 2, 2, 2), "mask": (3, 1, 2, 2)}
        boxes = [[0, 0.3, 0.4, 3.6, 3.1], [1, -1.2, 0.6, 4.1, 2.2], [1, 2, 1.1, 3.3, 5.2]]
        fixed = {"boxes": jnp.asarray(boxes)}
        options = {"output_size": 2, **options}
    else:
        arrays = {"input": (2, 4, 4, 5), "offset": (2, 16, 5, 6), "weight": (2, 2, 2, 2)}
        arrays |= {"bias": (2,), "mask": (2, 8, 5, 6)}
        options = {"padding": 1, **options}
    if name == "conv2d":
        arrays = {k: v for k, v in arrays.items() if k not in ("offset", "mask")}
    given = {k: jnp.asarray(1.5 * rng.standard_normal(v)) for k, v in arrays.items()}
    return given, lambda given: operator(name).forward(**given, **fixed, **options)


SMOOTH = [
    ("deform_conv2d", {}),
    ("deform_conv2d", {"border": "clamp"}),
    ("conv2d", {}),
    ("bilinear_sample", {}),
    ("dcnv3", {}),
    ("dcnv3", {"softmax": True, "offset_scale": 0.75}),
    ("dcnv4", {}),
    ("ms_deform_attn", {}),
    ("ms_deform_attn", {"softmax": True}),
    ("roi_align", {}),
    ("roi_align", {"mode": "max"}),
    ("ps_roi_align", {"sampling_ratio": 2}),
    ("roi_pool", {"mode": "max"}),
    ("roi_pool", {"mode": "avg"}),
    ("ps_roi_pool", {}),
    ("deform_roi_pool", {"sampling_ratio": 2, "gamma": 0.3}),
    ("deform_ps_roi_pool", dict(spatial_scale=0.9, output_dim=1, group_size=2, sample_per_part=2)),
]


def test_every_operator_has_second_derivatives():
    assert {name for name, _ in SMOOTH} == {row.name for row in OPERATORS}


@pytest.mark.parametrize(("name", "options"), SMOOTH)
def test_second_derivatives_in_every_mode(name, options):
    """Reverse over reverse and forward over reverse, by finite differences of the gradient."""
    given, function = small(name, **options)
    moved, weights = directions(given, 1), directions(given, 2)
    gradient = jax.grad(lambda given: jnp.sum(jnp.sin(function(given))))
    step = 1e-6
    for argument in given:
        projected = jax.jit(lambda g, a=argument: jnp.vdot(gradient(g)[a], weights[a]))
        ahead, behind = (
            jax.tree.map(lambda x, t, s=sign: x + s * step * t, given, moved) for sign in (1, -1)
        )
        expected = float(projected(ahead) - projected(behind)) / (2 * step)
        assert abs(expected) > 1e-3
        reverse = inner(jax.jit(jax.grad(projected))(given), moved)
        assert reverse == pytest.approx(expected, rel=1e-6)
        forward = jax.jvp(projected, (given,), (moved,))[1]
        assert float(forward) == pytest.approx(expected, rel=1e-6)


def test_tangents_of_tangents_and_many_at_a_time():
    given, function = small("bilinear_sample")
    moved, step = directions(given, 1), 1e-6

    def change(given, moved=moved):
        return jax.jvp(function, (given,), (moved,))[1]

    along = directions(given, 2)
    ahead, behind = (
        jax.tree.map(lambda x, t, s=sign: x + s * step * t, given, along) for sign in (1, -1)
    )
    expected = (change(ahead) - change(behind)) / (2 * step)
    found = jax.jvp(change, (given,), (along,))[1]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    several = jax.tree.map(lambda a, b: jnp.stack([a, b], 1), moved, along)
    mapped = jax.vmap(lambda t: change(given, t), 1)(several)
    np.testing.assert_array_equal(mapped, [change(given, moved), change(given, along)])


def test_adaptive_bins_are_followed_where_boxes_have_values():
    """That is outside of a program: how many samples a bin has is no shape."""
    given, function = small("deform_roi_pool")
    moved = directions(given, 1)

    def loss(offset):
        return jnp.sum(jnp.sin(function({**given, "offset": offset})))

    def slope(offset):
        return jnp.vdot(jax.grad(loss)(offset), moved["offset"])

    offset, step = given["offset"], 1e-6
    expected = (slope(offset + step * moved["offset"]) - slope(offset)) / step
    found = jnp.vdot(jax.grad(slope)(offset), moved["offset"])
    assert float(found) == pytest.approx(float(expected), rel=1e-4) and abs(found) > 1e-3
    with pytest.raises(NotImplementedError, match="`sampling_ratio` to be at least 1 where"):
        jax.jit(lambda given: jax.jvp(function, (given,), (moved,)))(given)


def test_third_derivative():
    given, function = small("deform_conv2d")
    offset, fixed = given.pop("offset"), {k: 0.3 * v for k, v in given.items()}

    def first(offset):
        return jnp.sum(function({**fixed, "offset": offset}) ** 2) / 2

    def second(offset):
        return jnp.sum(jax.grad(first)(offset) ** 2) / 2

    third = jax.jit(lambda offset: jnp.sum(jax.grad(second)(offset) ** 2) / 2)
    moved, step = directions({"offset": offset})["offset"], 1e-6
    expected = float(third(offset + step * moved) - third(offset - step * moved)) / (2 * step)
    found = float(jnp.vdot(jax.jit(jax.grad(third))(offset), moved))
    assert found == pytest.approx(expected, rel=1e-6) and abs(found) > 1e-3


def test_16_bit_tangents_keep_fine_coordinates():
    """A pixel and its neighbour beyond 256 are one number in bfloat16."""
    of = problem("bilinear_sample", "NCHW-zeros", "bfloat16")
    given, function = split(of)
    wide = {k: v.astype(jnp.float32) for k, v in given.items()}
    moved = {k: jnp.ones_like(v) for k, v in given.items()}
    change = jax.jvp(function, (given,), (moved,))[1]
    expected = jax.jvp(function, (wide,), ({k: jnp.ones_like(v) for k, v in wide.items()},))[1]
    assert change.dtype == jnp.bfloat16
    assert_close(np.asarray(change), np.asarray(expected), "bfloat16")


@pytest.mark.parametrize("name", ["deform_conv2d", "conv2d", "bilinear_sample", "roi_align"])
def test_vmap_is_exact(name):
    """Over each array alone and over all, of results and gradients."""
    of = problem(name, next(case for row, case in problems() if row == name), "float64")
    given, function = split(of)
    gradient = jax.grad(lambda given: jnp.sum(jnp.sin(function(given))))
    mapped = {k: jnp.stack([v, v[..., ::-1], 2 * v], -1) for k, v in given.items()}
    for over in [{k} for k in given] + [set(given)]:
        axes = {k: -1 if k in over else None for k in given}
        arrays = {k: mapped[k] if k in over else given[k] for k in given}
        for f in (function, gradient):
            found = jax.vmap(f, in_axes=(axes,))(arrays)
            for i in range(3):
                one = {k: mapped[k][..., i] if k in over else given[k] for k in given}
                entry = jax.tree.map(lambda x, i=i: x[i], found)
                jax.tree.map(np.testing.assert_array_equal, entry, f(one))


def test_vmap_over_nothing_and_nested():
    given, function = small("deform_conv2d")
    none = {k: jnp.zeros((0, *v.shape)) for k, v in given.items()}
    assert jax.vmap(function)(none).shape == (0, 2, 2, 5, 6)
    twice = {k: jnp.stack([v, 2 * v]).reshape(1, 2, *v.shape) for k, v in given.items()}
    found = jax.jit(jax.vmap(jax.vmap(function)))(twice)
    np.testing.assert_array_equal(found[0, 0], function(given))


def test_scan_remat_and_missing_arguments():
    given, function = small("deform_conv2d")
    given = {k: given[k] for k in ("input", "offset", "weight")}  # no bias, no mask

    def loss(weight, f=function):
        return jnp.sum(jnp.sin(f({**given, "weight": weight})))

    def scanned(weight):
        def step(total, _):
            return total + loss(weight), None

        return jax.lax.scan(step, 0.0, None, length=3)[0]

    weight = given["weight"]
    gradient = jax.grad(loss)(weight)
    np.testing.assert_allclose(jax.grad(scanned)(weight), 3 * gradient, rtol=1e-12)
    again = jax.grad(lambda w: loss(w, jax.checkpoint(function)))(weight)
    np.testing.assert_array_equal(again, gradient)


def test_inputs_are_never_written(monkeypatch):
    """The kernels get views of XLA's memory, which other values may share: read-only ones."""
    from cudeform.cpu import conv

    seen, compute = [], conv.forward

    def forward(plan, **arrays):
        seen.extend(array.flags.writeable for array in arrays.values() if array is not None)
        return compute(plan, **arrays)

    monkeypatch.setattr(conv, "forward", forward)
    given, function = small("deform_conv2d")
    before = {k: np.array(v) for k, v in given.items()}
    jax.block_until_ready(function(given))
    assert seen == [False] * 5
    for name, array in given.items():
        np.testing.assert_array_equal(array, before[name])


def test_errors_are_our_own_also_in_a_program():
    """Not one of XLA's, from the middle of a running program."""
    given, function = small("deform_conv2d")
    given["mask"] = given["mask"][:, 1:]
    with pytest.raises(ValueError, match="deform_conv2d: expected `mask` of shape") as plain:
        function({k: np.asarray(v) for k, v in given.items()})
    for call in (function, jax.jit(function), jax.grad(lambda g: jnp.sum(function(g)))):
        with pytest.raises(ValueError) as error:
            call(given)
        assert str(error.value) == str(plain.value)
    with pytest.raises(TypeError, match="`weight` of dtype float64"):
        given, function = small("conv2d")
        function({**given, "weight": given["weight"].astype(jnp.float32)})
    with pytest.raises(ValueError, match="conv2d: expected `stride` to be at least 1"):
        jax.jit(lambda given: cudeform.conv2d(**given, stride=0))(given)


def test_frameworks_do_not_mix():
    given, function = small("deform_conv2d")
    given["weight"] = np.ma.asarray(given["weight"])  # JAX would drop the mask
    message = "expected `weight` to be a jax array like `input`, got a numpy array"
    with pytest.raises(TypeError, match=message):
        jax.jit(lambda input: function({**given, "input": input}))(given["input"])


@pytest.mark.parametrize("name", ["bilinear_sample", "deform_conv2d", "roi_pool"])
def test_numpy_arrays_beside_one_of_jax_are_constants(name):
    """Whichever is JAX's, in a program and outside."""
    of = problem(name, [case for row, case in problems() if row == name][0], "float64")
    expected = of.row.call(of.case)
    for argument, array in of.case.arrays.items():

        def function(traced, array=array):
            return of.row.call(of.case, lambda given: traced if given is array else given)

        for call in (function, jax.jit(function)):
            output = call(jnp.asarray(array))
            assert isinstance(output, jax.Array), argument
            np.testing.assert_array_equal(output, expected)
    found = of.row.call_backward(jnp.asarray(of.grad_output), of.case)
    for gradient, want in zip(found, of.row.call_backward(of.grad_output, of.case), strict=True):
        assert (gradient is None) == (want is None)
        if want is not None:
            assert isinstance(gradient, jax.Array)
            np.testing.assert_array_equal(gradient, want)


def test_numpy_arrays_have_the_dtype_that_jax_gives_them():
    given, function = small("conv2d")
    weight = np.asarray(given["weight"])
    with jax.enable_x64(False):
        single = {k: jnp.asarray(v, jnp.float32) for k, v in given.items()}
        np.testing.assert_array_equal(function({**single, "weight": weight}), function(single))
        with pytest.raises(TypeError, match="`weight` of dtype float32 like `input`, got float16"):
            function({**single, "weight": weight.astype(np.float16)})
    with pytest.raises(TypeError, match="`weight` of dtype float64 like `input`, got float32"):
        function({**given, "weight": weight.astype(np.float32)})
    with pytest.raises(TypeError, match="expected `weight` of dtype float16, "):
        function({**given, "weight": weight.astype(object)})


def test_converters_take_constants_of_numpy_too():
    offset, mask = np.arange(36.0).reshape(2, 1, 1, 18), np.ones((2, 1, 1, 9))
    expected = cudeform.pack_dcnv4(offset, mask, 1)
    packed = jax.jit(lambda offset: cudeform.pack_dcnv4(offset, mask, 1))(jnp.asarray(offset))
    np.testing.assert_array_equal(packed, expected)


def test_without_jit():
    """Every primitive, as a debugger wants to see the rest of a program."""
    given, function = small("deform_conv2d")
    expected = [function(given), jax.grad(lambda g: jnp.sum(function(g)))(given)]
    tangents = directions(given)
    expected += [jax.jvp(function, (given,), (tangents,))[1]]
    with jax.disable_jit():
        found = [function(given), jax.jit(jax.grad(lambda g: jnp.sum(function(g))))(given)]
        found += [jax.jvp(function, (given,), (tangents,))[1]]
        assert jax.vmap(function)({k: v[None] for k, v in given.items()})[0].shape
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_what_cannot_be_saved_says_so():
    given, function = small("deform_conv2d")
    for of in (function, jax.grad(lambda g: jnp.sum(function(g)))):
        with pytest.raises(NotImplementedError, match="deform_conv2d: `jax.export` cannot save it"):
            jax.export.export(jax.jit(of))(given)


def test_float64_arrays_stay_so_without_x64():
    given, function = small("deform_conv2d")
    expected = function(given)
    with jax.enable_x64(False):
        output = function(given)
        assert output.dtype == np.float64
        np.testing.assert_array_equal(output, expected)


def test_boxes_may_be_a_list_and_their_images_are_checked():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((2, 3, 8, 8)))
    corners = jnp.array([[0.0, 1.0, 5.0, 6.0]])
    rows = jnp.concatenate([jnp.ones((1, 1)), corners], axis=1)
    expected = cudeform.roi_align(images, rows, 2)
    found = jax.jit(lambda *boxes: cudeform.roi_align(images, list(boxes), 2))(corners[:0], corners)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="expected `boxes` of length 2"):
        cudeform.roi_align(images, [corners], 2)
    mixed = [np.asarray(corners[:0]), corners]
    np.testing.assert_array_equal(cudeform.roi_align(images, mixed, 2), expected)
    with pytest.raises(TypeError, match=r"expected `boxes\[1\]` to be a jax array like `input`"):
        cudeform.roi_align(images, [corners, np.ma.asarray(corners)], 2)
    wrong = rows.at[0, 0].set(7)  # what is in an array is known when the program runs
    errors = (jax.errors.JaxRuntimeError, ValueError)  # by where JAX notices it
    with pytest.raises(errors, match="whole image indices from 0 to 1"):
        jax.block_until_ready(cudeform.roi_align(images, wrong, 2))


def test_results_beside_the_first_have_no_tangent():
    of = problem(
        "roi_pool", next(case for name, case in problems() if name == "roi_pool"), "float64"
    )
    given, _ = split(of)
    boxes = jnp.asarray(of.case.arrays["boxes"])
    options = {**of.case.options, "mode": "max", "return_argmax": True}

    def loss(given):
        output, argmax = cudeform.roi_pool(**given, boxes=boxes, **options)
        assert argmax.dtype == jnp.int32
        return jnp.sum(output**2) / 2

    output, argmax = cudeform.roi_pool(**given, boxes=boxes, **options)
    plain = {name: value for name, value in options.items() if name != "return_argmax"}
    expected = cudeform.roi_pool_backward(output, **given, boxes=boxes, **plain, argmax=argmax)
    np.testing.assert_array_equal(jax.grad(loss)(given)["input"], expected.input)
