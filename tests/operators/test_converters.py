"""Converters take arrays of every framework, give them back, and have derivatives there."""

from functools import partial

import numpy as np
import pytest
from tolerances import assert_close

import cudeform

jax = pytest.importorskip("jax")
jnp = jax.numpy
torch = pytest.importorskip("torch")

from torch.autograd import gradcheck, gradgradcheck  # noqa: E402

TO_DCNV3 = dict(source="torchvision", target="dcnv3", remove_center=True)
FROM_DCNV3 = dict(source="dcnv3", target="torchvision", kernel_size=(3, 1), remove_center=True)
SIZES = [(6, 7), (3, 5)]

# A converter with its options, and the arrays that it takes: their shapes, or themselves.
BOXES = np.array([[0, 1.25, 2.125, 8.75, 9.0], [0, -3.0, 2.25, 4.75, 3.0]])
CONVERTERS = {
    "convert_offset to dcnv3": (
        lambda offset: cudeform.convert_offset(offset, kernel_size=3, **TO_DCNV3),
        [(1, 36, 1, 2)],
    ),
    "convert_offset to scaled dcnv3": (
        lambda offset: cudeform.convert_offset(
            offset, kernel_size=(1, 3), offset_scale=2.5, dilation=2, layout="NHWC", **TO_DCNV3
        ),
        [(2, 1, 2, 6)],
    ),
    "convert_offset from scaled dcnv3": (
        lambda offset: cudeform.convert_offset(offset, offset_scale=0.5, **FROM_DCNV3),
        [(1, 2, 2, 8)],
    ),
    "convert_offset to chainer": (
        lambda offset: cudeform.convert_offset(offset, "torchvision", "chainer", kernel_size=2),
        [(1, 8, 2, 3)],
    ),
    "convert_offset from chainer": (
        lambda offset: cudeform.convert_offset(offset, "chainer", "torchvision", kernel_size=2),
        [(1, 8, 2, 3)],
    ),
    "convert_mask to dcnv3": (
        lambda mask: cudeform.convert_mask(mask, kernel_size=3, **TO_DCNV3),
        [(1, 9, 2, 3)],
    ),
    "convert_mask from dcnv3": (
        lambda mask: cudeform.convert_mask(mask, **FROM_DCNV3),
        [(2, 2, 3, 4)],
    ),
    "unpack_dcnv4": (lambda packed: cudeform.unpack_dcnv4(packed, 2, 4), [(2, 3, 24)]),
    "pack_dcnv4": (
        lambda offset, mask: cudeform.pack_dcnv4(offset, mask, 2),
        [(2, 3, 8), (2, 3, 4)],
    ),
    "pack_dcnv4 into more than it has": (
        lambda offset, mask: cudeform.pack_dcnv4(offset, mask, 1),
        [(2, 2), (2, 1)],
    ),
    "points_from_msda": (
        lambda locations: cudeform.points_from_msda(locations, SIZES),
        [(1, 3, 2, 2, 2)],
    ),
    "points_to_msda": (
        lambda points: cudeform.points_to_msda(points, SIZES),
        [(1, 3, 2, 2, 2)],
    ),
    "convert_roi_offset to mxnet": (
        lambda offset, boxes: cudeform.convert_roi_offset(
            offset, boxes, "mmcv", "mxnet", spatial_scale=0.5, classes=3
        ),
        [(2, 2, 2, 3), BOXES],
    ),
    "convert_roi_offset to mmcv": (
        lambda offset, boxes: cudeform.convert_roi_offset(offset, boxes, "mxnet", "mmcv"),
        [(2, 2, 2, 3), BOXES],
    ),
}
every_converter = pytest.mark.parametrize(
    ("convert", "arrays"), CONVERTERS.values(), ids=CONVERTERS
)


@pytest.fixture(autouse=True)
def float64():
    """JAX makes float32 of float64 arrays unless told."""
    with jax.enable_x64(True):
        yield


def made(arrays, make, dtype="float64"):
    """The arrays of a case in a framework, from the same random numbers each time."""
    rng = np.random.default_rng(4)
    found = [a if isinstance(a, np.ndarray) else rng.standard_normal(a) for a in arrays]
    return [make(array, dtype) for array in found]


def to_numpy(array, dtype):
    return jnp.asarray(array, dtype).__array__()  # jnp knows bfloat16


def to_torch(array, dtype):
    return torch.tensor(array, dtype=getattr(torch, dtype))


def many(result):
    return result if isinstance(result, tuple) else (result,)


def test_every_converter_is_here():
    operators = {n.removesuffix("_backward") for n in cudeform.__all__ if n.endswith("_backward")}
    rest = {n for n in cudeform.__all__ if n.removesuffix("_backward") not in operators}
    assert rest == {name.partition(" ")[0] for name in CONVERTERS}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@every_converter
def test_a_converter_answers_in_kind(convert, arrays, dtype):
    """In the framework and the dtype that it was asked in, with NumPy's numbers."""
    expected = many(convert(*made(arrays, to_numpy, dtype)))
    tensors = many(convert(*made(arrays, to_torch, dtype)))
    eager = many(convert(*made(arrays, jnp.asarray, dtype)))
    for wanted, tensor, array in zip(expected, tensors, eager, strict=True):
        assert wanted.dtype.name == dtype and wanted.flags.c_contiguous
        assert tensor.dtype is getattr(torch, dtype) and tensor.is_contiguous()
        assert_close(tensor.double().numpy(), wanted, dtype)
        assert isinstance(array, jax.Array) and array.dtype.name == dtype
        assert_close(np.asarray(array), wanted)


@every_converter
def test_derivatives_in_torch(convert, arrays):
    tensors = [t.requires_grad_() for t in made(arrays, to_torch)]
    assert gradcheck(convert, tensors, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(convert, tensors, check_fwd_over_rev=True)


FRAMEWORKS = {
    "torch": (torch.func, to_torch, torch.sin, torch.stack, lambda function: function),
    "jax": (jax, jnp.asarray, jnp.sin, jnp.stack, jax.jit),
}


def energy(sin, convert, *given):
    """A number with derivatives of every order."""
    return sum([sin(array).sum() for array in many(convert(*given))])


@pytest.mark.parametrize("framework", FRAMEWORKS)
@every_converter
def test_functions_of_functions(convert, arrays, framework):
    """grad, jvp, vmap and one around the other, which have the same names in both frameworks."""
    func, make, sin, stack, jit = FRAMEWORKS[framework]
    value = partial(energy, sin, convert)
    gradient = func.grad(value, tuple(range(len(arrays))))

    @jit
    def derived(*given):
        directions = tuple(map(sin, given))
        _, slope = func.jvp(value, given, directions)
        of_first, of_second = func.jvp(gradient, given, directions)
        mapped = func.vmap(gradient)(*[stack([array, 2 * array]) for array in given])
        return [slope, *of_first, *of_second, *[both[0] for both in mapped]]

    tensors = [t.requires_grad_() for t in made(arrays, to_torch)]
    first = torch.autograd.grad(energy(torch.sin, convert, *tensors), tensors, create_graph=True)
    slope = sum((g * t.detach().sin()).sum() for g, t in zip(first, tensors, strict=True))
    second = torch.autograd.grad(slope, tensors)
    expected = [slope, *first, *second, *first]
    for result, wanted in zip(derived(*made(arrays, make)), expected, strict=True):
        assert_close(np.asarray(result), wanted.detach().numpy(), tolerance=1e-12)


def test_all_converters_in_one_graph():
    torch._dynamo.reset()

    def total(tensors):
        found = [energy(torch.sin, f, *tensors[name]) for name, (f, _) in CONVERTERS.items()]
        return torch.stack(found).sum()

    def gradients(function):
        tensors = {name: made(arrays, to_torch) for name, (_, arrays) in CONVERTERS.items()}
        given = [t.requires_grad_() for of_one in tensors.values() for t in of_one]
        return torch.autograd.grad(function(tensors), given)

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled), gradients(total))


def test_one_graph_for_all_sizes():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    convert, _ = CONVERTERS["convert_offset to dcnv3"]
    compiled = torch.compile(convert, fullgraph=True, backend=backend, dynamic=True)
    for batch, height in ((2, 5), (3, 8), (5, 9)):
        offset = torch.rand(batch, 36, height, 4)
        assert torch.equal(compiled(offset), convert(offset))
    assert len(graphs) == 1


@every_converter
def test_a_converter_stays_on_the_device(convert, arrays):
    """Of all devices but the CPU, every machine has this one."""
    tensors = [t.to("meta") for t in made(arrays, to_torch)]
    expected = many(convert(*made(arrays, to_torch)))
    for result, wanted in zip(many(convert(*tensors)), expected, strict=True):
        assert result.device.type == "meta" and result.shape == wanted.shape


@pytest.mark.parametrize("make", [to_torch, jnp.asarray], ids=["torch", "jax"])
def test_errors_are_those_of_numpy(make):
    """A wrong shape in the same words, and a wrong dtype or kind in the framework's own."""
    locations = np.zeros((3, 2, 4, 2))
    with pytest.raises(ValueError) as expected:
        cudeform.points_from_msda(locations, SIZES[:1])
    with pytest.raises(ValueError) as caught:
        cudeform.points_from_msda(make(locations, "float64"), SIZES[:1])
    assert str(caught.value) == str(expected.value)
    with pytest.raises(TypeError, match="points_to_msda: expected `points` of dtype .*got .*int64"):
        cudeform.points_to_msda(make(locations, "int64"), SIZES)
    offset, mask = make(np.zeros((2, 8)), "float64"), make(np.zeros((2, 4)), "float32")
    with pytest.raises(TypeError, match="expected `mask` of dtype .*float64 like `offset`, got"):
        cudeform.pack_dcnv4(offset, mask, 1)
    if make is to_torch:  # NumPy's are constants to JAX
        with pytest.raises(TypeError, match="pack_dcnv4: expected `mask` to be a .* like `offset`"):
            cudeform.pack_dcnv4(offset, np.zeros((2, 4)), 1)
