"""Offsets, points and boxes of float32 beside 16-bit arrays: read exactly as they are given."""

import numpy as np
import pytest
from cases import Problem, cases, dtype_of, operator
from tolerances import TOLERANCE, assert_close

import cudeform
from cudeform.registry import OPERATORS

HALVES = ("float16", "bfloat16")
# One case for each kernel that reads such an array
CASES = [
    ("deform_conv2d", "groups"),
    ("deform_conv2d", "v2-channels-last"),
    ("deform_conv2d", "empty-batch"),
    ("bilinear_sample", "NCHW-clamp"),
    ("dcnv3", "uneven"),
    ("dcnv4", "plain"),
    ("ms_deform_attn", "softmax"),
    ("ms_deform_attn", "nearest"),
    ("roi_align", "adaptive"),
    ("deform_roi_pool", "v2"),
    ("deform_ps_roi_pool", "classes"),
]
every_case = pytest.mark.parametrize(("name", "case"), CASES)
every_half = pytest.mark.parametrize("dtype", HALVES)


def finer(row):
    return {argument.name for argument in row.arguments if argument.finer}


def beside(name, case, dtype):
    """The problem with its coordinates in float32, whose reference reads them exactly."""
    row, exact = operator(name), cases(name)[case]
    return Problem(row, exact, dtype, **dict.fromkeys(finer(row), "float32"))


def test_every_argument_that_may_be_finer_is_tried():
    wanted = {(row.name, name) for row in OPERATORS for name in finer(row) - {"boxes"}}
    assert {(n, k) for n, c in CASES for k in finer(operator(n)) & cases(n)[c].arrays.keys()} >= (
        wanted
    )


@every_half
@every_case
def test_float32_coordinates_beside_16_bit_images(backend, name, case, dtype):
    asked = beside(name, case, dtype)
    output = asked.forward(backend)
    assert output.dtype == dtype_of(dtype)
    assert_close(output, asked.output, what="output")
    expected = asked.gradients
    for argument, gradient in asked.backward(backend).items():
        if gradient is None:
            continue
        # float32 where the coordinates are: in it, and what else is rounded is the columns
        assert gradient.dtype == asked.case.arrays.get(argument, output).dtype, argument
        assert_close(gradient, expected[argument], dtype, what=argument)


@every_half
def test_they_are_not_rounded_to_16_bits(backend, dtype):
    """A ramp read at coordinates that 16 bits do not have, to what the result can hold."""
    ramp = np.tile(np.arange(2048.0) % 2, (1, 1, 2, 1)).astype(dtype_of(dtype))
    points = np.zeros((1, 1, 2), np.float32)
    points[..., 1] = 2000 + 1 / 1024
    arrays = map(backend.to_device, (ramp, points))
    output = backend.to_host(cudeform.bilinear_sample(*arrays))
    assert abs(float(output.ravel()[0]) * 1024 - 1) <= TOLERANCE[dtype]


def test_other_mixtures_are_refused():
    image, weight = np.ones((1, 2, 4, 4), np.float16), np.ones((3, 2, 1, 1), np.float16)
    offset = np.zeros((1, 2, 4, 4), np.float32)
    cudeform.deform_conv2d(image, offset, weight)
    for wrong in (
        dict(offset=offset.astype(np.float64)),
        dict(input=image.astype(np.float32), weight=weight.astype(np.float32), offset=weight),
        dict(weight=weight.astype(np.float32)),
        dict(mask=np.ones((1, 1, 4, 4), np.float32)),
        dict(offset=offset.astype(dtype_of("bfloat16"))),
    ):
        with pytest.raises(TypeError, match="^deform_conv2d: expected `(offset|weight|mask)` of d"):
            cudeform.deform_conv2d(**{**dict(input=image, offset=offset, weight=weight), **wrong})


def test_converted_roi_offsets_take_float32_boxes(rng):
    offset = rng.standard_normal((3, 2, 2, 2)).astype(np.float16)
    boxes = np.array([[0, 0, 0, 1000.25, 19.5]] * 3, np.float32)
    found = cudeform.convert_roi_offset(offset, boxes, "mmcv", "mxnet")
    exact = cudeform.convert_roi_offset(
        offset.astype(np.float64), boxes.astype(np.float64), "mmcv", "mxnet"
    )
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, exact, rtol=1e-3)


# -- frameworks ---------------------------------------------------------------------------------


def given(rng):
    shapes = dict(input=(2, 4, 5, 6), offset=(2, 18, 5, 6), weight=(3, 4, 3, 3), mask=(2, 9, 5, 6))
    arrays = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return {k: a.astype(np.float32 if k == "offset" else np.float16) for k, a in arrays.items()}


def numpy_gradients(arrays):
    output = cudeform.deform_conv2d(**arrays, padding=1)
    return cudeform.deform_conv2d_backward(np.ones_like(output), **arrays, padding=1)


def test_torch_eager_compiled_and_twice(rng):
    torch = pytest.importorskip("torch")
    arrays = given(rng)
    want = numpy_gradients(arrays)

    def loss(tensors):
        return cudeform.deform_conv2d(**tensors, padding=1).sum()

    for run in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        tensors = {k: torch.tensor(a, requires_grad=True) for k, a in arrays.items()}
        run(tensors).backward()
        for name, tensor in tensors.items():
            assert tensor.grad.dtype == tensor.dtype
            assert tensor.grad.numpy().tobytes() == getattr(want, name).tobytes(), name
    tensors = {k: torch.tensor(a, requires_grad=True) for k, a in arrays.items()}
    output = cudeform.deform_conv2d(**tensors, padding=1)
    (first,) = torch.autograd.grad(output.float().sin().sum(), tensors["offset"], create_graph=True)
    found = torch.autograd.grad(first.sum(), tensors.values())
    assert [g.dtype for g in found] == [t.dtype for t in tensors.values()]
    with torch.device("meta"):
        fake = {k: torch.empty(a.shape, dtype=tensors[k].dtype) for k, a in arrays.items()}
    grad_output = torch.empty(output.shape, dtype=output.dtype, device="meta")
    fakes = cudeform.deform_conv2d_backward(grad_output, **fake, padding=1)
    for name, tensor in tensors.items():
        assert getattr(fakes, name).dtype == tensor.dtype, name


def test_jax_jitted_and_twice(rng):
    jax = pytest.importorskip("jax")
    arrays = given(rng)
    want = numpy_gradients(arrays)
    names = tuple(arrays)

    def loss(*values):
        return cudeform.deform_conv2d(**dict(zip(names, values, strict=True)), padding=1).sum()

    values = [jax.numpy.asarray(a) for a in arrays.values()]
    found = jax.jit(jax.grad(loss, argnums=tuple(range(len(names)))))(*values)
    for name, value, gradient in zip(names, values, found, strict=True):
        assert gradient.dtype == value.dtype
        assert np.asarray(gradient).tobytes() == getattr(want, name).tobytes(), name
    twice = jax.grad(lambda *v: jax.grad(loss, argnums=1)(*v).sum(), argnums=(0, 1))(*values)
    assert [g.dtype for g in twice] == [np.float16, np.float32]
