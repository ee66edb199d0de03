"""Attention to points of several levels, beyond what the registry's cases ask."""

import ml_dtypes
import numpy as np
import pytest
import reference
from cases import Problem, operator
from tolerances import assert_close

import cudeform
from cudeform import threads
from cudeform.cases import Case

SHAPES = ((6, 5), (3, 4))
HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def arguments(rng, shapes=SHAPES, n=2, queries=7, heads=2, channels=5, points=3, ragged=None):
    each = (len(shapes), points) if ragged is None else (sum(ragged),)
    total = sum(height * width for height, width in shapes)
    return {
        "value": rng.standard_normal((n, total, heads, channels)),
        "sampling_locations": rng.uniform(-0.2, 1.2, (n, queries, heads, *each, 2)),
        "attention_weights": rng.uniform(-1, 1, (n, queries, heads, *each)),
    }


def compare(backend, arrays, dtype="float64", **options):
    """Forward and all gradients with the reference's."""
    asked = Problem(operator("ms_deform_attn"), Case("", arrays, options), dtype)
    assert_close(asked.forward(backend), asked.output)
    for name, gradient in asked.backward(backend).items():
        assert_close(gradient, asked.gradients[name], what=name)
    return asked


# -- transformers ------------------------------------------------------------------------------


@pytest.mark.parametrize("softmax", [False, True])
def test_results_are_those_of_transformers(softmax, rng):
    """Its function in PyTorch, in float64, with all gradients."""
    torch = pytest.importorskip("torch")
    detr = pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr")
    shapes = ((9, 12), (5, 6), (3, 3), (1, 2))
    arrays = arguments(rng, shapes, queries=11, heads=3, channels=8, points=4)
    tensors = {name: torch.tensor(a, requires_grad=True) for name, a in arrays.items()}
    value, locations, weights = tensors.values()
    shares = weights.flatten(3).softmax(-1).view(weights.shape) if softmax else weights
    module = detr.MultiScaleDeformableAttention()
    sizes = torch.tensor(shapes)
    expected = module.forward(value, sizes, list(shapes), None, locations, shares, 64)
    grad_output = torch.tensor(rng.standard_normal(tuple(expected.shape)))
    gradients = torch.autograd.grad(expected, list(tensors.values()), grad_output)
    for given in (shapes, [list(size) for size in shapes], np.array(shapes)):
        found = cudeform.ms_deform_attn(
            arrays["value"], given, *list(arrays.values())[1:], softmax=softmax
        )
        np.testing.assert_allclose(found, expected.detach(), rtol=0, atol=1e-10)
    for given in (shapes, sizes, sizes.int()):
        found = cudeform.ms_deform_attn(value, given, locations, weights, softmax=softmax)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        for one, other in zip(
            torch.autograd.grad(found, list(tensors.values()), grad_output), gradients, strict=True
        ):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


# -- shapes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 7, 16, 17, 32, 50, 64, 100])
def test_any_number_of_channels(backend, channels, rng):
    for dtype in ("float32", "bfloat16"):
        compare(backend, arguments(rng, channels=channels), dtype, spatial_shapes=SHAPES)


@pytest.mark.parametrize("points", [1, 5, 64, 65, 129, 300])
@pytest.mark.parametrize("method", ["bilinear", "nearest"])
def test_any_number_of_points(backend, points, method, rng):
    """Also more than a block has."""
    arrays = arguments(rng, points=points, n=1, queries=3)
    options = dict(spatial_shapes=SHAPES, method=method, softmax=True)
    compare(backend, arrays, "float32", **options)


def test_ragged_levels(backend, rng):
    shapes = ((4, 7), (3, 3), (1, 1))
    ragged = dict(spatial_shapes=shapes, points_per_level=(3, 6, 3))
    arrays = arguments(rng, shapes, ragged=(3, 6, 3))
    compare(backend, arrays, **ragged)
    compare(backend, arrays, softmax=True, **ragged)
    even = arguments(rng, shapes, points=4)
    flat = {"value": even["value"]}
    flat["sampling_locations"] = even["sampling_locations"].reshape(2, 7, 2, 12, 2)
    flat["attention_weights"] = even["attention_weights"].reshape(2, 7, 2, 12)
    to = backend.to_device
    one = cudeform.ms_deform_attn(
        spatial_shapes=shapes, **{k: to(v) for k, v in flat.items()}, points_per_level=[4, 4, 4]
    )
    other = cudeform.ms_deform_attn(spatial_shapes=shapes, **{k: to(v) for k, v in even.items()})
    assert backend.to_host(one).tobytes() == backend.to_host(other).tobytes()


def test_many_queries_and_images(backend, rng):
    """As many that values are copied side by side, and work is cut up."""
    arrays = arguments(rng, ((9, 11), (4, 3)), n=3, queries=60, heads=3, channels=20, points=2)
    compare(backend, arrays, "float32", spatial_shapes=((9, 11), (4, 3)))


@pytest.mark.parametrize("axis", ["n", "queries"])
def test_nothing_to_do(backend, axis, rng):
    arrays = {k: backend.to_device(a) for k, a in arguments(rng, **{axis: 0}).items()}
    output = cudeform.ms_deform_attn(spatial_shapes=SHAPES, **arrays)
    assert output.shape == ((0, 7, 10) if axis == "n" else (2, 0, 10))
    found = cudeform.ms_deform_attn_backward(output, spatial_shapes=SHAPES, **arrays)
    for name, gradient in found._asdict().items():
        assert gradient.shape == arrays[name].shape
        assert not backend.to_host(gradient).any()


# -- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
def test_points_that_are_nowhere(backend, method, rng):
    """NaN reads nothing; what is too far as little, or the nearest pixel; also beside infinity."""
    arrays = arguments(rng, n=1)
    locations = arrays["sampling_locations"].reshape(-1, 2)
    strange = [np.nan, 1e30, -1e30, np.inf, -np.inf, 3e9, -3e9]
    locations[: len(strange), 0] = strange
    locations[len(strange) : 2 * len(strange), 1] = strange
    for dtype in ("float32", "float64"):
        asked = compare(backend, arrays, dtype, spatial_shapes=SHAPES, method=method)
        gradient = asked.backward(backend)["sampling_locations"].reshape(-1, 2)
        assert not gradient[: 2 * len(strange)].any()
    locations[:] = np.nan
    arrays["value"][:] = np.inf
    asked = Problem(
        operator("ms_deform_attn"),
        Case("", arrays, dict(spatial_shapes=SHAPES, method=method)),
        "float32",
    )
    assert not asked.forward(backend).any()
    for gradient in asked.backward(backend).values():
        assert not gradient.any()


def test_an_infinite_pixel_stays_where_it_is(backend):
    """Points outside of a level, or on the pixel beside, have no part of it."""
    value = np.ones((1, 6, 1, 1))
    value[0, 0] = np.inf  # (0, 0) of 2 x 3
    x = np.array([-0.6, 1.5, 2.4, 2.4]) + 0.5
    y = np.array([-0.5, 0.5, -0.5, 1.7]) + 0.5
    locations = np.stack([x / 3, y / 2], -1).reshape(1, 4, 1, 1, 1, 2)
    arrays = map(backend.to_device, (value, locations, np.ones((1, 4, 1, 1, 1))))
    value, locations, weights = arrays
    output = backend.to_host(cudeform.ms_deform_attn(value, [(2, 3)], locations, weights))
    np.testing.assert_allclose(output.ravel(), [np.inf, 1, 0.3, 0.18])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("softmax", [False, True])
def test_finer_locations_and_weights(backend, dtype, softmax, rng):
    """Of float32 beside 16 bits, both or one; gradients have the dtype of their argument."""
    arrays = {k: a.astype(HALVES[dtype]) for k, a in arguments(rng).items()}
    for names in (("sampling_locations",), ("attention_weights",), tuple(arrays)[1:]):
        mixed = {k: a.astype(np.float32) if k in names else a for k, a in arrays.items()}
        options = dict(spatial_shapes=SHAPES, softmax=softmax)
        asked = Problem(operator("ms_deform_attn"), Case("", mixed, options), dtype, keep=True)
        assert_close(asked.forward(backend), asked.output)
        for name, gradient in asked.backward(backend).items():
            assert gradient.dtype == mixed[name].dtype
            assert_close(gradient, asked.gradients[name], dtype, what=name)


def test_nearest_is_the_discrete_rule_of_rtdetr(backend):
    """floor(loc * size + 0.5) of each axis' own size, clamped."""
    value = np.arange(15.0).reshape(1, 15, 1, 1)  # 3 x 5
    xy = np.array([[0.0, 0.0], [0.09, 0.0], [0.11, 0.2], [0.99, 0.99], [-3.0, 7.0]])
    locations = xy.reshape(1, 5, 1, 1, 1, 2)
    given = map(backend.to_device, (value, locations, np.ones((1, 5, 1, 1, 1))))
    value, locations, weights = given
    found = cudeform.ms_deform_attn(value, [(3, 5)], locations, weights, method="nearest")
    np.testing.assert_array_equal(backend.to_host(found).ravel(), [0, 0, 6, 14, 10])


def test_results_do_not_depend_on_threads(rng):
    shapes = ((20, 20), (5, 5))
    arrays = {
        k: a.astype(np.float32)
        for k, a in arguments(rng, shapes, n=1, queries=300, channels=32).items()
    }
    grad_output = rng.standard_normal((1, 300, 64)).astype(np.float32)

    def results():
        given = dict(spatial_shapes=shapes, softmax=True, **arrays)
        yield cudeform.ms_deform_attn(**given)
        yield from cudeform.ms_deform_attn_backward(grad_output, **given)

    before = threads.get_num_threads()
    found = []
    try:
        for count in (1, 2, 5, 64):
            threads.set_num_threads(count)
            found.append([result.tobytes() for result in results()])
    finally:
        threads.set_num_threads(before)
    assert found[1:] == found[:-1]


# -- frameworks --------------------------------------------------------------------------------


def test_torch_takes_sizes_as_pairs_or_a_tensor(rng):
    """Eager, compiled and exported as one node, and along an axis of torch.vmap."""
    torch = pytest.importorskip("torch")
    tensors = [torch.tensor(a) for a in arguments(rng).values()]
    expected = cudeform.ms_deform_attn(tensors[0], SHAPES, *tensors[1:], softmax=True)

    class Program(torch.nn.Module):
        def forward(self, sizes, value, locations, weights):
            return cudeform.ms_deform_attn(value, sizes, locations, weights, softmax=True)

    for sizes in (SHAPES, torch.tensor(SHAPES), torch.tensor(SHAPES, dtype=torch.int32)):
        program = Program()
        compiled = torch.compile(program, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(sizes, *tensors), expected)
        exported = torch.export.export(program, (sizes, *tensors))
        called = [node.target for node in exported.graph.nodes if node.op == "call_function"]
        assert called == [torch.ops.cudeform.ms_deform_attn.default]
        assert torch.equal(exported.module()(sizes, *tensors), expected)
        mapped = torch.vmap(program, in_dims=(None, 0, 0, 0))(sizes, *(t[None] for t in tensors))
        assert torch.equal(mapped[0], expected)
    stacked = torch.tensor([SHAPES])
    mapped = torch.vmap(program)(stacked, *(t[None] for t in tensors))
    assert torch.equal(mapped[0], expected)


def test_sizes_may_be_symbols_of_a_tracer():
    torch = pytest.importorskip("torch")

    class Program(torch.nn.Module):
        def forward(self, images, locations, weights):
            n, channels, height, width = images.shape
            value = images.flatten(2).transpose(1, 2).reshape(n, height * width, 2, channels // 2)
            return cudeform.ms_deform_attn(value, [(height, width)], locations, weights)

    def given(height, width, queries):
        points = (1, queries, 2, 1, 3)
        return torch.rand(1, 8, height, width), torch.rand(*points, 2), torch.rand(points)

    free = torch.export.Dim.DYNAMIC
    axes = ({2: free, 3: free}, {1: free}, {1: free})
    exported = torch.export.export(Program(), given(5, 6, 7), dynamic_shapes=axes).module()
    other = given(9, 4, 11)
    assert torch.equal(exported(*other), Program()(*other))


def test_jax_takes_sizes_as_pairs_or_an_array(rng):
    """Static, or an operand of the program."""
    jax = pytest.importorskip("jax")
    arrays = {k: a.astype(np.float32) for k, a in arguments(rng).items()}
    expected = cudeform.ms_deform_attn(spatial_shapes=SHAPES, **arrays)
    given = {k: jax.numpy.asarray(a) for k, a in arrays.items()}

    def function(sizes, given):
        return cudeform.ms_deform_attn(spatial_shapes=sizes, **given)

    for sizes in (SHAPES, np.array(SHAPES), jax.numpy.asarray(SHAPES)):
        np.testing.assert_array_equal(function(sizes, given), expected)
    np.testing.assert_array_equal(jax.jit(lambda g: function(SHAPES, g))(given), expected)
    np.testing.assert_array_equal(jax.jit(function)(jax.numpy.asarray(SHAPES), given), expected)


# -- arguments ---------------------------------------------------------------------------------

WRONG = [
    (dict(spatial_shapes=[(6, 5)]), "`spatial_shapes` of shape (2, 2) = (L, (H, W)), got length 1"),
    (dict(spatial_shapes=[(6, 5), (3, 3)]), "`spatial_shapes` of 42 pixels in all"),
    (dict(spatial_shapes=np.array([(6, 5), (3, 3)])), "`spatial_shapes` of 42 pixels in all"),
    (dict(spatial_shapes=np.array([(42, 5, 1)])), "`spatial_shapes` of shape (2, 2)"),
    (dict(spatial_shapes=[(6, 5), (-3, -4)]), "`spatial_shapes` to be at least 1"),
    (dict(spatial_shapes=None), "`spatial_shapes` to be pairs or an integer array"),
    (dict(spatial_shapes=np.array(SHAPES, np.float32)), "`spatial_shapes` of dtype int32, int64"),
    (dict(value=np.ones((2, 42, 10))), "`value` to have 4 axes (N, S, M, D)"),
    (dict(value=np.ones((2, 42, 2, 0))), "`value` to be non-empty"),
    (dict(value=np.broadcast_to(1.0, (2, 2**31, 2, 5))), "`value` with S at most 2147483647"),
    (dict(sampling_locations=np.ones((2, 7, 2, 2, 3, 3))), "`sampling_locations` of shape (2, 7"),
    (dict(sampling_locations=np.ones((2, 7, 2, 6, 2))), "`sampling_locations` to have 6 axes"),
    (dict(attention_weights=np.ones((2, 7, 2, 2, 4))), "`attention_weights` of shape (2, 7, 2, 2"),
    (dict(points_per_level=(3, 3)), "`sampling_locations` to have 5 axes"),
    (dict(points_per_level=(3, 0)), "`points_per_level` to be at least 1"),
    (dict(points_per_level=3), "`points_per_level` to be a sequence of integers"),
    (dict(points_per_level=()), "`points_per_level` to be a sequence of integers"),
    (dict(method="cubic"), "`method` to be one of 'bilinear', 'nearest'"),
    (dict(softmax=1), "`softmax` to be True or False"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_wrong_arguments_are_refused(wrong, message, rng):
    given = dict(spatial_shapes=SHAPES, **arguments(rng)) | wrong
    with pytest.raises((TypeError, ValueError)) as refused:
        cudeform.ms_deform_attn(**given)
    assert str(refused.value).startswith(f"ms_deform_attn: expected {message}")
    grad_output = np.ones((2, 7, 10))
    with pytest.raises((TypeError, ValueError), match="^ms_deform_attn_backward: expected `"):
        cudeform.ms_deform_attn_backward(grad_output, **given)


def test_the_reference_has_no_neighbours_outside():
    """Itself: a point half a pixel outside has half of a pixel."""
    value, locations = np.full((1, 1, 1, 1), 4.0), np.array([1.0, 0.5]).reshape(1, 1, 1, 1, 1, 2)
    found = reference.ms_deform_attn(value, [(1, 1)], locations, np.ones((1, 1, 1, 1, 1)))
    assert found == 2
