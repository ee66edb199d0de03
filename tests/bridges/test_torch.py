"""Every operator called with tensors: values, gradients and derivatives of every order."""

import ml_dtypes
import numpy as np
import pytest
from cases import operator, problem, problems

import cudeform
from cudeform.registry import OPERATORS

torch = pytest.importorskip("torch")

from torch.autograd import forward_ad, gradcheck, gradgradcheck  # noqa: E402
from torch.library import opcheck  # noqa: E402

from cudeform.torch.signatures import BRIDGES, flat, nested  # noqa: E402

every_case = pytest.mark.parametrize(("name", "case"), problems())
every_row = pytest.mark.parametrize("row", OPERATORS, ids=lambda row: row.name)
every_dtype = pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])

# Every operator, in every way that its derivatives are made of calls.
every_derivative = pytest.mark.parametrize(
    ("name", "options"),
    [(row.name, {}) for row in OPERATORS]
    + [
        ("deform_conv2d", {"border": "clamp"}),
        ("bilinear_sample", {"border": "clamp"}),
        ("dcnv3", {"softmax": True}),
        ("ms_deform_attn", {"softmax": True}),
        ("ms_deform_attn", {"method": "nearest"}),
        ("roi_pool", {"mode": "avg"}),
        ("deform_roi_pool", {"sampling_ratio": 2}),
    ],
)


def to_tensor(array):
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def to_array(tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.detach().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.detach().numpy()


def arguments(asked, requires_grad=True):
    """(tensors by name, the names of those with a gradient)"""
    row = asked.row
    differentiable = [a.name for a in row.arguments if a.differentiable]
    tensors = {name: to_tensor(array) for name, array in asked.case.arrays.items()}
    wanted = [name for name in differentiable if name in tensors]
    if requires_grad:
        for name in wanted:
            tensors[name].requires_grad_()
    given = tensors.keys() | asked.case.options.keys()
    missing = {a.name: None for a in row.arguments if a.name not in given}
    return {**missing, **tensors}, wanted


def small(name):
    """(arrays, options) of few numbers, with no coordinate near a whole one."""
    rng = np.random.default_rng(6)

    def real(*shape):
        return torch.from_numpy(rng.uniform(-1, 1, shape))

    def coordinates(*shape):
        whole = torch.from_numpy(rng.integers(-1, 3, shape))
        return whole + torch.from_numpy(rng.uniform(0.1, 0.9, shape))

    if name == "bilinear_sample":
        return {"input": real(2, 2, 3, 4), "points": coordinates(2, 3, 2)}, {}
    if name in ("deform_conv2d", "conv2d"):
        given = {"input": real(1, 2, 3, 4), "weight": real(2, 1, 2, 2), "bias": real(2)}
        if name == "deform_conv2d":
            given |= {"offset": coordinates(1, 8, 2, 3), "mask": real(1, 4, 2, 3)}
        return given, {"stride": (2, 1), "padding": ((1, 0), (0, 0))}
    if name.startswith("dcnv"):
        given, options = {"input": real(1, 3, 4, 4)}, {"kernel_size": (2, 1), "stride": (2, 1)}
        if name == "dcnv3":
            given |= {"offset": coordinates(1, 1, 4, 8), "mask": real(1, 1, 4, 4)}
        else:
            given["offset_mask"] = coordinates(1, 1, 4, 16)
        return given, {**options, "groups": 2, "offset_scale": 2.0}
    fullest = max(
        (problem(n, case, "float64") for n, case in problems() if n == name),
        key=lambda asked: (len(asked.case.arrays), -asked.case.arrays[asked.row.images].size),
    )
    tensors, _ = arguments(fullest, requires_grad=False)
    return tensors, dict(fullest.case.options)


def checked(name, **options):
    """(function of the differentiable tensors, those tensors) for gradcheck."""
    given, own = small(name)
    wanted = [n for n in BRIDGES[name].differentiable if given.get(n) is not None]
    tensors = [given[n].requires_grad_() for n in wanted]

    def function(*moving):
        replaced = {**given, **dict(zip(wanted, moving, strict=True))}
        return getattr(cudeform, name)(**replaced, **{**own, **options})

    return function, tensors


@every_dtype
@every_case
def test_values_and_gradients_are_those_of_arrays(name, case, dtype):
    """To the last byte: the same code computes them."""
    asked = problem(name, case, dtype)
    tensors, wanted = arguments(asked)
    output = asked.row.forward(**tensors, **asked.case.options)
    assert output.dtype == tensors[asked.row.images].dtype
    expected = asked.row.call(asked.case)
    assert to_array(output).tobytes() == expected.tobytes()
    found = torch.autograd.grad(
        output, [tensors[name] for name in wanted], to_tensor(asked.grad_output)
    )
    gradients = asked.row.call_backward(asked.grad_output, asked.case)
    for name, gradient in zip(wanted, found, strict=True):
        assert to_array(gradient).tobytes() == getattr(gradients, name).tobytes(), name
    for name, array in asked.case.arrays.items():  # nothing was written to
        assert to_array(tensors[name]).tobytes() == array.tobytes()


@every_row
def test_backward_takes_tensors(row):
    asked = problem(row.name, next(case for n, case in problems() if n == row.name), "float32")
    tensors, wanted = arguments(asked, requires_grad=False)
    kept = {name: tensors[name] for name in BRIDGES[row.name].kept if name in tensors}
    grad_output = to_tensor(asked.grad_output)
    found = row.backward(grad_output, **kept, **asked.case.options, needs=wanted[:1])
    expected = row.call_backward(asked.grad_output, asked.case, needs=wanted[:1])
    assert type(found) is type(expected)
    for one, other in zip(found, expected, strict=True):
        assert one is None if other is None else to_array(one).tobytes() == other.tobytes()


@every_derivative
def test_gradients_and_tangents_are_the_numerical_ones(name, options):
    function, tensors = checked(name, **options)
    assert gradcheck(
        function, tensors, fast_mode=True, check_forward_ad=True, check_undefined_grad=True
    )


@every_derivative
def test_gradients_have_gradients(name, options):
    function, tensors = checked(name, **options)
    assert gradgradcheck(function, tensors, fast_mode=True, check_undefined_grad=True)
    assert gradgradcheck(
        function,
        tensors,
        fast_mode=True,
        check_fwd_over_rev=True,
        check_rev_over_rev=False,
        check_undefined_grad=False,
    )


@pytest.mark.parametrize("border", ["zeros", "clamp"])
@pytest.mark.parametrize("name", ["deform_conv2d", "bilinear_sample"])
def test_second_derivatives_know_both_borders(name, border):
    """Element by element."""
    function, tensors = checked(name, border=border)
    assert gradcheck(function, tensors, check_forward_ad=True)
    assert gradgradcheck(function, tensors)


def test_moving_bins_have_third_derivatives():
    given, options = small("deform_ps_roi_pool")
    offset = given.pop("offset").requires_grad_()

    def first(offset):
        output = cudeform.deform_ps_roi_pool(offset=offset, **given, **options)
        return torch.autograd.grad(output.sin().sum(), offset, create_graph=True)

    assert gradgradcheck(first, [offset], fast_mode=True)


def test_second_derivatives_are_those_of_regions_that_are_somewhere():
    """Boxes and offsets that are not finite, or huge, neither add to them nor make them NaN."""
    given, options = small("deform_roi_pool")
    regions = given["boxes"].shape[0]
    far = [[0, np.nan, 0, 5, 5], [0, 0, 0, np.inf, 5], [1, 1e30, 0, 2e30, 5], [0, 1, 1, 4, 4]]
    more = {**given, "boxes": torch.cat([given["boxes"], torch.tensor(far, dtype=torch.float64)])}
    for name in ("offset", "mask"):
        more[name] = torch.cat([given[name], given[name][: len(far)]])
    more["offset"][-1] = np.nan

    def seconds(given):
        moving = [given[name].requires_grad_() for name in ("input", "offset", "mask")]
        output = cudeform.deform_roi_pool(**given, **options)
        first = torch.autograd.grad(output.sin().sum(), moving, create_graph=True)
        weights = [
            torch.linspace(-1, 1, f[:regions].numel()).view(f[:regions].shape) for f in first
        ]
        total = sum((f[:regions] * w).sum() for f, w in zip(first, weights, strict=True))
        return torch.autograd.grad(total, moving)

    for one, other in zip(seconds(more), seconds(given), strict=True):
        torch.testing.assert_close(one[:regions], other[:regions])
        assert not one[regions:].any()


def test_adaptive_bins_are_not_followed_where_boxes_have_no_values():
    given, options = small("deform_roi_pool")
    offset, boxes = given.pop("offset"), torch.stack([given.pop("boxes")] * 2)

    def tangent(boxes, **more):
        def function(offset):
            return cudeform.deform_roi_pool(
                offset=offset, boxes=boxes, **given, **{**options, **more}
            )

        return torch.func.jvp(function, (offset,), (offset,))[1]

    with pytest.raises(NotImplementedError, match="`sampling_ratio` to be at least 1 where"):
        torch.vmap(tangent)(boxes)
    found = torch.vmap(lambda boxes: tangent(boxes, sampling_ratio=2))(boxes)
    assert torch.equal(found[1], tangent(boxes[1], sampling_ratio=2))


FIRST = [next(p for p in problems() if p[0] == row.name) for row in OPERATORS]


@pytest.mark.parametrize(
    ("name", "case"), [*FIRST, ("deform_roi_pool", "fixed"), ("deform_ps_roi_pool", "v1")]
)
def test_operator_passes_opcheck(name, case):
    asked = problem(name, case, "float32")
    tensors, wanted = arguments(asked)
    bridge = BRIDGES[name]
    options = flat(bridge, asked.case.options)
    forward = getattr(torch.ops.cudeform, name).default
    opcheck(forward, (*(tensors.get(n) for n in bridge.names), *options))
    needs = [name in wanted for name in bridge.differentiable]
    backward = getattr(torch.ops.cudeform, name + "_backward").default
    opcheck(
        backward,
        (to_tensor(asked.grad_output), *(tensors.get(n) for n in bridge.kept), *options, needs),
    )
    if name == "roi_pool":
        argmax = torch.ops.cudeform.roi_pool_argmax.default
        opcheck(argmax, (*(tensors[n].detach() for n in bridge.names), *options))


def test_options_survive_the_schema():
    bridge = BRIDGES["deform_conv2d"]
    for padding in (1, (1, 2), ((1, 2), (3, 4))):
        assert nested(bridge, flat(bridge, {"padding": padding}))["padding"] == padding
    assert flat(bridge, {"padding": [[1, 2], [3, 4]]})[1] == [1, 2, 3, 4]


def layer():
    tensors, _ = arguments(problem("deform_conv2d", "v2", "float64"), requires_grad=False)
    names = ("input", "offset", "weight", "bias", "mask")

    def function(*given):
        return cudeform.deform_conv2d(**dict(zip(names, given, strict=True)), padding=1)

    return function, [tensors[name] for name in names]


def test_functional_gradients_are_the_eager_ones():
    function, tensors = layer()
    every = tuple(range(5))
    found = torch.func.grad(lambda *t: function(*t).square().sum(), argnums=every)(*tensors)
    for tensor in tensors:
        tensor.requires_grad_()
    expected = torch.autograd.grad(function(*tensors).square().sum(), tensors)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_tangents_are_not_zero():
    """torch.func.jvp of an operator of torch.library is zero, and says nothing."""
    function, tensors = layer()
    rng = np.random.default_rng(3)
    directions = [torch.from_numpy(rng.uniform(-1, 1, t.shape)) for t in tensors]
    _, tangent = torch.func.jvp(function, tuple(tensors), tuple(directions))
    step = 1e-6
    ends = [
        function(*(t + s * d for t, d in zip(tensors, directions, strict=True)))
        for s in (step, -step)
    ]
    difference = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-6)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, d) for t, d in zip(tensors, directions, strict=True)]
        assert torch.equal(forward_ad.unpack_dual(function(*duals)).tangent, tangent)


def test_hessian_is_the_one_of_double_backward():
    function, tensors = layer()
    images, offset = tensors[0][:1, :, :4, :4], tensors[1][:1, :, :4, :4]
    rest = [tensors[2], tensors[3], tensors[4][:1, :, :4, :4]]

    def loss(part):
        moved = torch.cat([part, offset[:, 3:]], dim=1)
        return function(images, moved, *rest).square().sum()

    found = torch.func.hessian(loss)(offset[:, :3])
    expected = torch.autograd.functional.hessian(loss, offset[:, :3].clone())
    torch.testing.assert_close(found, expected)


MAPPED = [
    (0, 0, None, None, 0),
    (None, 1, None, None, None),
    (0, 0, 0, 0, 0),
    (2, 4, None, None, 3),  # folded into the batch
    (1, 3, 2, 1, 4),  # one after the other
]


def stacks(tensors, dims):
    """Three of each along its axis, and the arguments of each of the three calls."""
    stacked = [
        t if d is None else torch.stack([t, 2 * t, -t], dim=d)
        for t, d in zip(tensors, dims, strict=True)
    ]
    calls = [
        [t if d is None else t.select(d, i) for t, d in zip(stacked, dims, strict=True)]
        for i in range(3)
    ]
    return stacked, calls


@pytest.mark.parametrize("dims", MAPPED)
def test_vmap_is_the_loop(dims):
    function, tensors = layer()
    stacked, calls = stacks(tensors, dims)
    found = torch.vmap(function, in_dims=dims)(*stacked)
    for i, one in enumerate(calls):
        assert torch.equal(found[i], function(*one))


@pytest.mark.parametrize("dims", MAPPED)
def test_gradients_along_any_axis_are_the_loops(dims):
    function, tensors = layer()
    stacked, calls = stacks(tensors, dims)
    gradient = torch.func.grad(lambda *t: function(*t).square().sum(), tuple(range(len(dims))))
    found = torch.vmap(gradient, in_dims=dims)(*stacked)
    for i, one in enumerate(calls):
        for got, want in zip(found, gradient(*one), strict=True):
            torch.testing.assert_close(got[i], want)


@pytest.mark.parametrize("needs", [(True, False, False), (True, True, True)])
def test_vmap_of_an_operators_backward_is_the_loop(needs):
    """Of what images share a gradient is a sum over the batch, which can be no larger one."""
    asked, bridge = problem("conv2d", "plain", "float64"), BRIDGES["conv2d"]
    tensors, _ = arguments(asked, requires_grad=False)
    given = [*(tensors[name] for name in bridge.kept), *flat(bridge, asked.case.options), needs]
    grad_output = to_tensor(asked.grad_output)
    several = torch.stack([grad_output, -2 * grad_output, grad_output.cos()])
    found = torch.vmap(lambda grad: torch.ops.cudeform.conv2d_backward(grad, *given))(several)
    for i, one in enumerate(several):
        expected = torch.ops.cudeform.conv2d_backward(one, *given)
        for got, want, needed in zip(found, expected, needs, strict=True):
            if needed:
                torch.testing.assert_close(got[i], want)


def test_gradients_per_sample():
    function, (images, offset, weight, bias, mask) = layer()

    def loss(weight, *sample):
        image, own_offset, own_mask = (t[None] for t in sample)
        return function(image, own_offset, weight, bias, own_mask).square().sum()

    found = torch.vmap(torch.func.grad(loss), (None, 0, 0, 0))(weight, images, offset, mask)
    for i in range(images.shape[0]):
        expected = torch.func.grad(loss)(weight, images[i], offset[i], mask[i])
        torch.testing.assert_close(found[i], expected)


def test_vmap_of_a_pooling_is_the_loop():
    tensors, options = small("roi_align")

    def function(images):
        return cudeform.roi_align(images, tensors["boxes"], **options)

    stacked = torch.stack([tensors["input"], -tensors["input"]])
    found = torch.vmap(function)(stacked)
    assert torch.equal(found[1], function(stacked[1]))


@pytest.mark.parametrize("sequence", [list, tuple])
def test_boxes_by_image(sequence):
    tensors, options = small("roi_align")
    rows = tensors["boxes"]
    rows = rows[rows[:, 0].argsort(stable=True)]
    count = tensors["input"].shape[0]
    by_image = sequence(rows[rows[:, 0] == i, 1:] for i in range(count))
    found = cudeform.roi_align(tensors["input"], by_image, **options)
    assert torch.equal(found, cudeform.roi_align(tensors["input"], rows, **options))


every_maximum = pytest.mark.parametrize("name", ["roi_pool", "roi_align"])


@every_maximum
def test_argmax_comes_with_a_differentiable_maximum(name):
    tensors, options = small(name)
    options = {**options, "mode": "max"}
    row = operator(name)
    images = tensors["input"].requires_grad_()
    output, argmax = row.forward(images, tensors["boxes"], **options, return_argmax=True)
    assert argmax.dtype == (torch.int32 if name == "roi_pool" else output.dtype)
    assert output.requires_grad and not argmax.requires_grad
    (expected,) = torch.autograd.grad(output.sum(), images)
    found = row.backward(
        torch.ones_like(output), images, tensors["boxes"], **options, argmax=argmax
    )
    assert torch.equal(found.input, expected)


@every_maximum
def test_argmax_comes_in_every_transformation(name):
    """Compiled without its own operator it would be unpacked from the first result, in silence."""
    tensors, options = small(name)
    options = {**options, "mode": "max", "return_argmax": True}

    def function(images):
        return operator(name).forward(images, tensors["boxes"], **options)

    output, argmax = function(tensors["input"])
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(tensors["input"]), (output, argmax)))
    mapped = torch.vmap(function)(torch.stack([-tensors["input"], tensors["input"]]))
    assert torch.equal(mapped[0][1], output) and torch.equal(mapped[1][1], argmax)
    _, _, found = torch.func.vjp(function, tensors["input"], has_aux=True)
    assert torch.equal(found, argmax)
    torch._dynamo.reset()


def test_empty_batch_has_gradients():
    asked = problem("deform_conv2d", "empty-batch", "float32")
    tensors, wanted = arguments(asked)
    output = operator("deform_conv2d").forward(**tensors, **asked.case.options)
    output.sum().backward()
    assert output.shape[0] == 0
    assert all(tensors[name].grad.shape == tensors[name].shape for name in wanted)
