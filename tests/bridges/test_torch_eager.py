"""Tensors as arguments: memory, dtypes, strides, modes, and what is refused."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import cudeform

torch = pytest.importorskip("torch")

from cudeform.cuda import device  # noqa: E402
from cudeform.torch import exchange, state  # noqa: E402


@pytest.fixture
def layer(rng):
    """input, offset, weight as float32 tensors."""
    shapes = [(2, 4, 5, 6), (2, 18, 5, 6), (3, 4, 3, 3)]
    return [torch.tensor(rng.standard_normal(s), dtype=torch.float32) for s in shapes]


def conv(*tensors, **options):
    return cudeform.deform_conv2d(*tensors, padding=1, **options)


def test_nobody_has_to_import_the_bridge():
    code = (
        "import torch, cudeform; x = torch.ones(1, 1, 3, 3, requires_grad=True);"
        "cudeform.conv2d(x, torch.ones(1, 1, 3, 3)).backward(); print(x.grad.sum().item())"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "9.0"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_arguments_are_not_copied(dtype):
    tensor = torch.arange(6).to(dtype)
    array = exchange.to_array(tensor)
    assert array.ctypes.data == tensor.data_ptr()
    assert not array.flags.writeable
    assert array.dtype.name == str(dtype).removeprefix("torch.")
    back = exchange.to_tensor(np.array(array))
    assert back.dtype == dtype and torch.equal(back, tensor)


def test_storage_stays_resizable(layer):
    """`tensor.numpy()` pins it, and FSDP frees the storage of its parameters."""
    conv(*layer)
    storage = layer[2].untyped_storage()
    size = storage.nbytes()
    storage.resize_(0)
    storage.resize_(size)
    assert storage.nbytes() == size


def test_negative_strides_come_back_as_a_copy():
    """torch.from_dlpack of such an array ends the process."""
    tensor = exchange.to_tensor(np.arange(6.0)[::-1])
    assert tensor.tolist() == [5, 4, 3, 2, 1, 0]


def test_strides_do_not_matter(layer):
    expected = conv(*layer)
    strided = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in layer]
    last = layer[0].to(memory_format=torch.channels_last)
    assert torch.equal(conv(*strided), expected)
    assert torch.equal(conv(last, *layer[1:]), expected)
    wide = layer[1][:1].expand(2, -1, -1, -1)
    assert torch.equal(conv(layer[0], wide, layer[2]), conv(layer[0], wide.contiguous(), layer[2]))


def imaginary(tensor):
    """The same numbers, whose memory holds the negative ones."""
    conjugate = torch.complex(torch.zeros_like(tensor), -tensor).conj()
    assert conjugate.imag.is_neg() and torch.equal(conjugate.imag, tensor)
    return conjugate.imag


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_that_memory_does_not_hold(layer, dtype):
    layer = [tensor.to(dtype).requires_grad_() for tensor in layer]
    images, offset, weight = layer
    output = conv(*layer)
    assert torch.equal(conv(imaginary(images), *layer[1:]), output)
    assert torch.equal(conv(*map(imaginary, layer)), output)
    zero = torch._efficientzerotensor(images.shape, dtype=dtype)
    assert not conv(zero, offset, weight).any()
    direction = torch.randn_like(output)
    expected = torch.autograd.grad(output, layer, direction, retain_graph=True)
    found = torch.autograd.grad(output, layer, imaginary(direction))
    assert all(map(torch.equal, found, expected))


def test_which_tensors_take_the_short_way(layer):
    """One question to torch's dispatcher tells numbers in memory from all else."""
    images = layer[0]
    with torch.inference_mode():
        made = images * 2
    for tensor in (images, made, torch.nn.Parameter(images), images.bfloat16(), images.mT):
        assert state.place_of(tensor) == -1
    others = [
        imaginary(images),
        torch._efficientzerotensor((2,)),
        images.to("meta"),
        images.to_sparse(),
        torch.nested.nested_tensor([images[0], images[1]]),
    ]
    torch.vmap(lambda image: others.append(image) or image)(images)
    assert all(state.place_of(other) is None for other in others)


def test_grad_output_may_be_expanded(layer):
    images = layer[0].requires_grad_()
    conv(*layer).sum().backward()
    expected = cudeform.deform_conv2d_backward(
        torch.ones(2, 3, 5, 6), *layer, padding=1, needs=["input"]
    )
    assert torch.equal(images.grad, expected.input)


def test_many_directions_at_once(layer):
    """By the older vmap, whose tensors have no memory and look as if they had."""
    offset = layer[1].requires_grad_()
    output = conv(*layer)
    many = torch.randn(3, *output.shape)
    found = torch.autograd.grad(output, offset, many, is_grads_batched=True, retain_graph=True)[0]
    for direction, gradient in zip(many, found, strict=True):
        assert torch.equal(
            torch.autograd.grad(output, offset, direction, retain_graph=True)[0], gradient
        )

    def few(weight):
        return conv(layer[0][:1], offset[:1].detach(), weight)[0, :, 2, 2]

    expected = torch.autograd.functional.jacobian(few, layer[2])
    for strategy in ("reverse-mode", "forward-mode"):
        found = torch.autograd.functional.jacobian(few, layer[2], vectorize=True, strategy=strategy)
        torch.testing.assert_close(found, expected)


def test_arguments_that_need_a_gradient(layer):
    """DLPack itself refuses them."""
    for tensor in layer:
        tensor.requires_grad_()
    output = conv(*layer)
    assert output.requires_grad
    with torch.no_grad():
        assert not conv(*layer).requires_grad
    assert torch.equal(output, conv(*(t.detach() for t in layer)))


def test_only_needed_gradients_are_computed(layer, monkeypatch):
    from cudeform.cpu import conv as backend

    asked = []
    backward = backend.backward

    def spy(*given, needs, **named):
        asked.append(needs)
        return backward(*given, needs=needs, **named)

    monkeypatch.setattr(backend, "backward", spy)
    layer[2].requires_grad_()
    conv(*layer).sum().backward()
    assert asked == [frozenset(["weight"])]
    assert layer[0].grad is None


def test_changed_arguments_are_noticed(layer):
    layer[2].requires_grad_()
    output = conv(*layer)
    layer[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_checkpoint_recomputes_the_same(layer):
    from torch.utils.checkpoint import checkpoint

    images = layer[0].requires_grad_()
    (expected,) = torch.autograd.grad(conv(*layer).sum(), images)
    output = checkpoint(conv, *layer, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(output.sum(), images)[0], expected)


def test_autocast_computes_in_float32(layer):
    """A 16-bit offset would be off by up to a pixel; the result is of the dtype of the images."""
    images = layer[0].bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = conv(images, *layer[1:])
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, conv(images.float(), *layer[1:]).bfloat16())


def test_autocast_has_gradients(layer):
    layer[2].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        conv(layer[0].bfloat16(), *layer[1:]).sum().backward()
    assert layer[2].grad.dtype == torch.float32


def test_meta_tensors_have_shapes(layer):
    assert conv(*(t.to("meta") for t in layer)).shape == (2, 3, 5, 6)


def test_threads_may_call_at_once(layer):
    from concurrent.futures import ThreadPoolExecutor

    expected = conv(*layer)
    with ThreadPoolExecutor(4) as pool:
        for output in pool.map(lambda _: conv(*layer), range(16)):
            assert torch.equal(output, expected)


def test_wrong_arguments_are_named(layer):
    images, offset, weight = layer
    why = "all arrays of one call belong to one framework"
    with pytest.raises(TypeError, match=rf"`offset` to be a torch.Tensor like `input`.*{why}"):
        conv(images, offset.numpy(), weight)
    with pytest.raises(TypeError, match="`input` to be a torch.Tensor like `offset`"):
        conv(images.numpy(), offset, weight)
    with pytest.raises(TypeError, match="`offset` on cpu like `input`, got meta"):
        conv(images, offset.to("meta"), weight)
    with pytest.raises(TypeError, match="`weight` of dtype float32 like `input`, got float64"):
        conv(images, offset, weight.double())
    with pytest.raises(TypeError, match=r"boxes\[1\]` to be a torch.Tensor"):
        cudeform.roi_align(images, [torch.ones(1, 4), np.ones((1, 4))], 2)
    with pytest.raises(ValueError, match=r"`boxes\[0\]` of shape \(L, 4\), got \(1, 5\)"):
        cudeform.roi_align(images, [torch.ones(1, 5), torch.ones(1, 4)], 2)
    with pytest.raises(ValueError, match="`boxes` of length 2, one array per image, got 1"):
        cudeform.roi_align(images, [torch.ones(1, 4)], 2)


def test_tensors_that_are_no_arrays_are_named(layer):
    images, offset, weight = layer
    quantised = torch.quantize_per_tensor(images, 0.1, 0, torch.quint8)
    with pytest.raises(TypeError, match="`input` to be a dense tensor of numbers, got quint8"):
        conv(quantised, offset, weight)
    with pytest.raises(TypeError, match="`weight` to be a dense tensor of numbers, got sparse_coo"):
        conv(images, offset, weight.to_sparse())


class FakeCupy(SimpleNamespace):
    """What the bridge asks of CuPy, writing down the order; its arrays are of the host's memory."""

    def __init__(self, log):
        def entered(name):
            class Entered:
                def __init__(self, *given):
                    self.given = given

                def __enter__(self):
                    log.append((name, *self.given))

                def __exit__(self, *error):
                    log.append(f"end {name}")

            return Entered

        cuda = SimpleNamespace(
            Device=entered("device"),
            Stream=SimpleNamespace(
                from_external=lambda of: entered("stream")(*of.__cuda_stream__())
            ),
            using_allocator=entered("allocator"),
            UnownedMemory=lambda ptr, size, owner, device: SimpleNamespace(ptr=ptr, _owner=owner),
            MemoryPointer=lambda mem, offset: SimpleNamespace(ptr=mem.ptr + offset, mem=mem),
        )
        super().__init__(cuda=cuda, ndarray=Fake)


class Fake:
    """An array of CuPy's."""

    def __init__(self, shape, dtype, data, strides):
        self.shape, self.dtype, self.data, self.strides = shape, dtype, data, strides
        self.itemsize = dtype.itemsize

    def on_host(self):
        bytes_of = (ctypes.c_char * (1 << 10)).from_address(self.data.ptr)
        return np.ndarray(self.shape, self.dtype, bytes_of, 0, self.strides)


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cpu, is_cuda, device = False, True, SimpleNamespace(index=3)


@pytest.fixture
def log(monkeypatch):
    """Of what is asked of CuPy, for tensors that say that they are on a GPU."""
    log = []
    monkeypatch.setitem(sys.modules, "cupy", FakeCupy(log))
    monkeypatch.setattr(exchange, "raw_stream", lambda index: 70 + index)
    monkeypatch.setattr(exchange, "_allocator", lambda index: f"torch's on {index}")
    return log


def test_cuda_runs_on_torchs_device_stream_and_memory(log):
    tensor = torch.arange(6.0).reshape(2, 3).T.as_subclass(OnGpu)

    def function(input, factor):
        log.append("computed")
        assert input.data.ptr == tensor.data_ptr() and input.data.mem._owner is tensor
        return torch.from_numpy(input.on_host() * factor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "to_tensor", lambda result: result)
        found = exchange.compute(function, {"input": tensor}, {"factor": 2})
    assert found.tolist() == [[0, 6], [2, 8], [4, 10]]
    ends = ["end allocator", "end stream", "end device"]
    began = [("device", 3), ("stream", 0, 73), ("allocator", "torch's on 3")]
    assert log == [*began, "computed", *ends]


def test_an_older_cupy_has_another_way_to_a_stream(log):
    cupy = FakeCupy(log)
    cupy.cuda.Stream = SimpleNamespace()
    cupy.cuda.ExternalStream = lambda pointer, index: (pointer, index)
    assert device.stream_at(cupy, 73, 3) == (73, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_array_in_memory_of_torchs_is_a_tensor_of_it(log, dtype):
    """And of no other tensor: autograd refuses to write to a view that a function made."""
    kept = torch.arange(8, dtype=dtype)
    storage, step = kept.untyped_storage(), kept.element_size()
    memory = SimpleNamespace(ptr=storage.data_ptr(), _owner=storage)
    start = SimpleNamespace(ptr=memory.ptr + 2 * step, mem=memory)
    array = Fake((3, 2), exchange.numpy_dtype(dtype), start, (2 * step, step))
    tensor = exchange.to_tensor(array)
    assert tensor.tolist() == [[2, 3], [4, 5], [6, 7]] and tensor.dtype == dtype
    assert not tensor._is_view()
    tensor += 1
    assert kept.tolist() == [0, 1, 3, 4, 5, 6, 7, 8]


def test_who_watches_sees_the_operator():
    """Also of a call that only computes, which else does not pass the dispatcher."""
    seen = []

    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    given = torch.ones(1, 1, 4, 5), torch.ones(1, 1, 2, 2)
    with Watching():
        cudeform.conv2d(*given)
    assert "cudeform.conv2d.default" in seen
