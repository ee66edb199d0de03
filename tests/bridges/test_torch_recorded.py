"""Tensors on a GPU, on tests/standin: calls that are recorded need no array of CuPy's."""

from types import SimpleNamespace

import numpy as np
import pytest
from tolerances import assert_close

import cudeform

torch = pytest.importorskip("torch")

from cudeform.torch import asked, exchange, recorded, state  # noqa: E402

SHAPES = {"input": (2, 4, 6, 7), "offset": (2, 18, 6, 7), "weight": (4, 4, 3, 3), "bias": (4,)}


class Gpu:
    """Memory of the stand-in's that torch takes for its own, on one of its devices."""

    def __init__(self, cupy):
        self.cupy, self.index, self.arrays, self.computed = cupy, 0, {}, []

    def tensor(self, array):
        """An array of the stand-in's as a tensor."""
        self.arrays[array.data.ptr] = array
        words = array.host.dtype.name == "bfloat16"
        if words:
            return torch.from_numpy(array.host.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(array.host)

    def put(self, array, dtype=np.float32):
        with self.cupy.cuda.Device(self.index):
            return self.tensor(self.cupy.asarray(array.astype(dtype)))

    def get(self, tensor):
        with self.cupy.cuda.Device(self.index):
            return self.arrays[tensor.data_ptr()].get()

    def wide(self, tensor):
        """As `autocast.wide`, on this device."""
        return self.put(self.get(tensor)) if tensor.dtype == torch.float16 else tensor

    def empty(self, shape, dtype):
        array = self.cupy.empty(shape, dtype)
        return SimpleNamespace(tensor=self.tensor(array), data=array.data)


@pytest.fixture
def gpu(cupy, monkeypatch):
    gpu = Gpu(cupy)
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    monkeypatch.setattr(asked, "place_of", lambda tensor: gpu.index)
    monkeypatch.setattr(state, "place_of", asked.place_of)
    monkeypatch.setattr(exchange, "_device_array", lambda t: gpu.arrays[t.data_ptr()])
    monkeypatch.setattr(exchange, "_device_tensor", gpu.tensor)
    monkeypatch.setattr(exchange, "_allocator", lambda index: None)
    monkeypatch.setattr(recorded, "_devices", {})
    for module in (exchange, recorded):
        monkeypatch.setattr(module, "raw_stream", lambda i: cupy.cuda.get_current_stream(i).ptr)
    monkeypatch.setattr(recorded._Device, "empty", lambda self, *what: gpu.empty(*what))
    monkeypatch.setattr(recorded._Device, "_alloc", lambda self, size: cupy.cuda.alloc(size))
    monkeypatch.setattr(asked, "wide", gpu.wide)
    arrays = exchange._as_arrays

    def counted(function, given, array):
        gpu.computed.append(function.__name__)
        return arrays(function, given, array)

    monkeypatch.setattr(exchange, "_as_arrays", counted)
    return gpu


def numbers(rng, dtype=np.float32):
    return {n: rng.uniform(-1, 1, shape).astype(dtype) for n, shape in SHAPES.items()}


def conv(arrays):
    return cudeform.deform_conv2d(**arrays, padding=1, stride=(1, 1))


def check(gpu, rng, dtype=np.float32, needed=tuple(SHAPES), grad_output=None):
    """Output and gradients of an autograd function are NumPy's."""
    arrays = numbers(rng, dtype)
    tensors = {name: gpu.put(array, dtype) for name, array in arrays.items()}
    for name in needed:
        tensors[name].requires_grad_()
    output = conv(tensors)
    expected = conv(arrays)
    grad = rng.uniform(size=expected.shape).astype(dtype)
    found = torch.autograd.grad(output, [tensors[name] for name in needed], gpu.put(grad, dtype))
    del arrays["bias"]
    wanted = cudeform.deform_conv2d_backward(grad, **arrays, padding=1, needs=needed)
    name_of = np.dtype(dtype).name
    assert_close(gpu.get(output.detach()), expected, name_of)
    for name, gradient in zip(needed, found, strict=True):
        assert gradient.shape == tensors[name].shape and gradient.dtype == tensors[name].dtype
        assert_close(gpu.get(gradient), getattr(wanted, name), name_of, what=name)


def test_a_call_like_one_before_makes_no_arrays(gpu, rng):
    check(gpu, rng)
    assert gpu.computed == ["deform_conv2d", "deform_conv2d_backward"]
    check(gpu, rng)
    assert len(gpu.computed) == 2
    check(gpu, rng, needed=("offset", "bias"))
    assert gpu.computed[2:] == ["deform_conv2d_backward"]
    check(gpu, rng, needed=("offset", "bias"))
    assert len(gpu.computed) == 3


def test_tensors_in_channels_last_are_read_as_they_lie(gpu, rng):
    """The arrays behind them are of layout "NHWC", and nothing is copied to another."""
    arrays = {n: a if a.ndim < 4 or n == "weight" else a.transpose(0, 2, 3, 1).copy()
              for n, a in numbers(rng).items()}  # fmt: skip
    options = {"padding": 1, "layout": "NHWC"}
    expected = cudeform.deform_conv2d(**arrays, **options)
    grad = rng.uniform(size=expected.shape).astype(np.float32)
    kept = {name: array for name, array in arrays.items() if name != "bias"}
    wanted = cudeform.deform_conv2d_backward(grad, **kept, **options)
    for _ in range(2):
        tensors = {n: _images(gpu.put(a), n).requires_grad_() for n, a in arrays.items()}
        output = conv(tensors)
        assert output.is_contiguous(memory_format=torch.channels_last)
        found = torch.autograd.grad(output, list(tensors.values()), _images(gpu.put(grad), ""))
        assert_close(gpu.get(output.detach()), expected, "float32")
        for name, gradient in zip(tensors, found, strict=True):
            assert gradient.shape == tensors[name].shape
            assert_close(gpu.get(gradient), getattr(wanted, name), "float32", what=name)
    assert gpu.computed == ["deform_conv2d", "deform_conv2d_backward"]


def _images(tensor, name):
    return tensor if tensor.ndim < 4 or name == "weight" else tensor.permute(0, 3, 1, 2)


def test_other_dtypes_and_devices_are_other_calls(gpu, rng):
    check(gpu, rng)
    for _ in range(2):
        check(gpu, rng, np.float16)
    assert len(gpu.computed) == 4
    gpu.index = 1
    for _ in range(2):
        check(gpu, rng)
    assert len(gpu.computed) == 6
    assert gpu.cupy.cuda.Device().id == 0


def test_without_a_gradient_and_by_the_backward_itself(gpu, rng):
    arrays = numbers(rng)
    tensors = {name: gpu.put(array) for name, array in arrays.items()}
    for _ in range(2):
        assert_close(gpu.get(conv(tensors)), conv(arrays), "float32")
    del arrays["bias"], tensors["bias"]
    grad = rng.uniform(size=(2, 4, 6, 7)).astype(np.float32)
    wanted = cudeform.deform_conv2d_backward(grad, **arrays, padding=1, needs=["input"])
    for _ in range(2):
        given = {"grad_output": gpu.put(grad), **tensors, "padding": 1, "needs": ("input",)}
        found = cudeform.deform_conv2d_backward(**given)
        assert type(found) is type(wanted) and found.offset is None and found.bias is None
        assert_close(gpu.get(found.input), wanted.input, "float32")
    assert gpu.computed == ["deform_conv2d", "deform_conv2d_backward"]


def test_equal_options_of_other_types_are_other_calls(gpu, rng):
    tensors = {name: gpu.put(array) for name, array in numbers(rng).items()}
    cudeform.deform_conv2d(**tensors, padding=1)
    for bad in (True, 1.0):
        with pytest.raises(TypeError, match="deform_conv2d: expected `padding`"):
            cudeform.deform_conv2d(**tensors, padding=bad)
    cudeform.deform_conv2d(**tensors, padding=np.int64(1))
    assert len(gpu.computed) == 4
    with pytest.raises(ValueError, match="deform_conv2d: expected `bias` of shape"):
        conv({**tensors, "bias": gpu.put(np.zeros(3))})


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_poolings_of_boxes_that_nobody_looks_at(gpu, rng, dtype):
    for end in (3, 5):
        image = rng.uniform(size=(1, 4, 6, 7)).astype(dtype)
        boxes = np.array([[0, 0, 0, 3, end], [0, 1, 2, end, 5]], np.float32)
        rows, tensor = gpu.put(boxes), gpu.put(image, dtype).requires_grad_()
        found = cudeform.roi_align(tensor, rows, 2)
        assert_close(gpu.get(found.detach()), cudeform.roi_align(image, boxes, 2), dtype)
        grad = rng.uniform(size=(2, 4, 2, 2)).astype(dtype)
        (gradient,) = torch.autograd.grad(found, tensor, gpu.put(grad, dtype))
        wanted = cudeform.roi_align_backward(grad, image, boxes, 2).input
        assert_close(gpu.get(gradient), wanted, dtype)
    assert gpu.computed == ["roi_align", "roi_align_backward"]
    boxes[1, 0] = 1
    found = gpu.get(cudeform.roi_align(tensor.detach(), gpu.put(boxes), 2))
    assert np.isnan(found[1]).all() and np.isfinite(found[0]).all()
    assert len(gpu.computed) == 2
    if dtype == "float16":  # boxes of it too, which are made float32
        found = cudeform.roi_align(tensor.detach(), gpu.put(boxes, dtype), 2)
        assert_close(gpu.get(found)[:1], cudeform.roi_align(image, boxes[:1], 2), dtype)
        assert len(gpu.computed) == 2
        with pytest.raises(TypeError, match="`boxes` of dtype float32 like `input`"):
            cudeform.roi_align(gpu.put(image, "float32"), gpu.put(boxes, dtype), 2)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["roi_pool", "roi_align"])
def test_poolings_with_two_results(gpu, rng, name, dtype):
    """Gradients find out what is the largest, unless they are told."""
    pool, backward = getattr(cudeform, name), getattr(cudeform, name + "_backward")
    for end in (3, 5):
        image = rng.uniform(size=(1, 4, 6, 7)).astype(dtype)
        boxes = np.array([[0, 0, 0, 3, end], [0, 1, 2, end, 5]], np.float32)
        given, options = (gpu.put(image, dtype), gpu.put(boxes)), {"mode": "max"}
        wanted = pool(image, boxes, 2, return_argmax=True, **options)
        found = pool(*given, 2, return_argmax=True, **options)
        assert type(found) is tuple
        assert_close(gpu.get(found[0]), wanted[0], dtype)
        np.testing.assert_array_equal(gpu.get(found[1]), wanted[1])
        assert_close(gpu.get(pool(*given, 2, **options)), wanted[0], dtype)
        grad = rng.uniform(size=(2, 4, 2, 2)).astype(dtype)
        wanted = backward(grad, image, boxes, 2, **options).input
        for argmax in (None, found[1]):
            moved = backward(gpu.put(grad, dtype), *given, 2, argmax=argmax, **options)
            assert_close(gpu.get(moved.input), wanted, dtype)
        tensor = given[0].requires_grad_()
        output = pool(tensor, given[1], 2, **options)
        (moved,) = torch.autograd.grad(output, tensor, gpu.put(grad, dtype))
        assert_close(gpu.get(moved), wanted, dtype)
    backwards = [name + "_backward"] * 3  # autograd asks by other names
    assert gpu.computed == [name, name, *backwards]


def test_what_is_known_of_a_call_is_its_place_and_no_value(gpu, rng):
    tensors = {name: gpu.put(array) for name, array in numbers(rng).items()}
    function = cudeform.deform_conv2d.__wrapped__
    key = asked.asked(function, {**tensors, "padding": 1}).key
    others = {name: gpu.put(array) for name, array in numbers(rng).items()}
    assert asked.asked(function, {**others, "padding": 1}).key == key
    moved = gpu.put(np.zeros(5, np.float32))[1:]
    assert asked.asked(function, {**others, "bias": moved, "padding": 1}).key != key
    strided = {**others, "weight": gpu.put(np.zeros((4, 3, 3, 4), np.float32)).permute(0, 3, 1, 2)}
    call = asked.asked(function, {**strided, "padding": 1})
    assert call.arguments["weight"].is_contiguous() and call.key == key
    listed, paired = ({**others, "padding": padding} for padding in ([1, 1], (1, 1)))
    assert asked.asked(function, listed).key != asked.asked(function, paired).key
    assert asked.asked(function, {**others, "padding": [[1], 1]}).key is None
    boxes = gpu.put(np.zeros((1, 5), np.float32))
    given = {"input": others["input"], "boxes": boxes, "output_size": 2}
    assert asked.asked(cudeform.roi_align.__wrapped__, given).key is not None
    assert asked.asked(lambda input: input, others).key is None  # no operator
