"""PyTorch's tensors and JAX's arrays on a GPU, against NumPy's on the CPU in float64."""

import os
from dataclasses import replace

import backends
import numpy as np
import pytest
from tolerances import TOLERANCE, assert_close

import cudeform
from cudeform.registry import OPERATORS

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch wants some memory too
torch = pytest.importorskip("torch")
CASES = [
    pytest.param(row, case, id=f"{row.name}-{case.name}")
    for row in OPERATORS
    for case in list(row.cases(np.random.default_rng(0)))[:3]
]
FIRST = [case for number, case in enumerate(CASES) if case.values[0] != CASES[number - 1].values[0]]


@pytest.fixture(autouse=True)
def gpu():
    backends.require(backends.BACKENDS["cuda"])
    if not torch.cuda.is_available():
        pytest.skip("cuda backend: this PyTorch is not one for CUDA")


def differentiable(row, case):
    return [a.name for a in row.arguments if a.differentiable and a.name in case.arrays]


def exact(case, arrays):
    """The case with these arrays, real numbers in float64."""
    wide = {n: a if a.dtype.kind == "i" else a.astype(np.float64) for n, a in arrays.items()}
    return replace(case, arrays=wide)


def on_gpu(row, case, dtype):
    """The arguments as tensors on the GPU, and the case with what they were rounded to."""
    tensors = {name: torch.from_numpy(a).to("cuda") for name, a in case.arrays.items()}
    real = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    tensors |= {name: tensors[name].to(dtype) for name in real}
    rounded = {name: tensor.double().cpu().numpy() for name, tensor in tensors.items()}
    for name in differentiable(row, case):
        tensors[name].requires_grad_()
    return tensors, exact(case, {**case.arrays, **{name: rounded[name] for name in real}})


def check(row, tensors, case, function):
    """Output and gradients of a function of the tensors are those of the case."""
    output = function(*tensors.values())
    dtype = str(output.dtype).removeprefix("torch.")
    assert output.is_cuda
    expected = row.call(case)
    assert_close(output.detach().double().cpu().numpy(), expected, dtype)
    grad = torch.from_numpy(np.random.default_rng(1).standard_normal(expected.shape)).to(output)
    wanted = row.call_backward(grad.double().cpu().numpy(), case)
    names = differentiable(row, case)
    found = torch.autograd.grad(output, [tensors[name] for name in names], grad)
    for name, gradient in zip(names, found, strict=True):
        assert gradient.dtype == tensors[name].dtype and gradient.device == output.device
        bound = 2 * TOLERANCE[dtype]
        got = gradient.double().cpu().numpy()
        assert_close(got, getattr(wanted, name), tolerance=bound, what=name)


def calling(row, case, tensors):
    """The operator as a function of these tensors alone."""
    left_out = dict.fromkeys(a.name for a in row.arguments)

    def function(*given):
        named = dict(zip(tensors, given, strict=True))
        return row.forward(**{**left_out, **named, **case.options})

    return function


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("row", "case"), CASES)
def test_eager(row, case, dtype):
    tensors, rounded = on_gpu(row, case, dtype)
    check(row, tensors, rounded, calling(row, case, tensors))


@pytest.mark.parametrize(("row", "case"), FIRST)
def test_compiled(row, case):
    torch.compiler.reset()
    tensors, rounded = on_gpu(row, case, torch.float32)
    function = calling(row, case, tensors)
    check(row, tensors, rounded, torch.compile(lambda *given: function(*given) * 1.0))


def layer(dtype=torch.float32):
    """input, offset, weight, mask"""
    shapes = [(2, 4, 6, 7), (2, 18, 6, 7), (4, 4, 3, 3), (2, 9, 6, 7)]
    return [torch.randn(s, device="cuda", dtype=dtype, requires_grad=True) for s in shapes]


def convolved(image, offset, weight, mask):
    return cudeform.deform_conv2d(image, offset, weight, padding=1, mask=mask)


def test_second_derivatives():
    given = layer(torch.float64)
    assert torch.autograd.gradcheck(convolved, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(convolved, given, fast_mode=True)


def test_another_stream_waits_for_nothing_but_its_own_work():
    """What the operator reads is computed on the same stream just before."""
    image, offset, weight, mask = (tensor.detach() for tensor in layer())
    expected = convolved(image, offset, weight, mask)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.zeros_like(image)
        torch.cuda._sleep(10_000_000)
        late += image
        found = convolved(late, offset, weight, mask)
        late.zero_()  # after the kernels, not before
    stream.synchronize()
    assert torch.equal(found, expected)


class Layer(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, image, offset, mask):
        return convolved(image, offset, self.weight, mask)


def test_graphed_callables():
    """Forward and backward replayed give the bytes of the calls."""
    image, offset, weight, mask = (tensor.detach() for tensor in layer())
    plain, graphed = Layer(weight.clone()), Layer(weight.clone())
    sample = tuple(tensor.clone() for tensor in (image, offset, mask))
    graphed = torch.cuda.make_graphed_callables(graphed, sample)
    outputs = [module(image, offset, mask) for module in (plain, graphed)]
    for output in outputs:
        output.square().sum().backward()
    assert torch.equal(*outputs)
    assert torch.equal(plain.weight.grad, graphed.weight.grad)


def test_graph_of_a_pooling():
    """With boxes image by image, forward and backward, and nobody who says how many samples."""
    image = torch.randn(2, 8, 20, 24, device="cuda", requires_grad=True)
    boxes = [torch.tensor([[1.0, 2, 20, 15], [3, 0, 9, 19]], device="cuda") for _ in range(2)]

    def both():
        output = cudeform.roi_align(image, boxes, 3)
        return output, *torch.autograd.grad(output, image, torch.ones_like(output))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        want = both()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = both()
    graph.replay()
    assert all(map(torch.equal, found, want))


def test_autocast():
    image, offset, weight, mask = layer()
    with torch.autocast("cuda", torch.bfloat16):
        found = convolved(image, offset, weight, mask)
    expected = convolved(image, offset, weight, mask)
    assert found.dtype == expected.dtype
    assert torch.allclose(found, expected, atol=0.1)


def test_memory_is_torchs():
    image, offset, weight, mask = (tensor.detach() for tensor in layer())
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    output = convolved(image, offset, weight, mask)
    assert torch.cuda.max_memory_allocated() > before + output.nbytes  # and a workspace
    assert torch.cuda.memory_allocated() - before <= 2 * output.nbytes + 1024


@pytest.mark.parametrize("how", ["eager", "jit"])
@pytest.mark.parametrize(("row", "case"), FIRST)
def test_jax(row, case, how):
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip("cuda backend: this JAX is not one for CUDA")
    arrays = {n: a if a.dtype.kind == "i" else a.astype(np.float32) for n, a in case.arrays.items()}
    rounded, names = exact(case, arrays), differentiable(row, case)
    expected = row.call(rounded)
    grad = np.random.default_rng(1).standard_normal(expected.shape).astype(np.float32)
    wanted = row.call_backward(grad.astype(np.float64), rounded)
    given = {name: jax.numpy.asarray(a) for name, a in arrays.items()}
    function = calling(row, case, given)

    def loss(some):
        output = function(*{**given, **some}.values())
        return (output * grad).sum(), output

    both = jax.grad(loss, has_aux=True)
    found, output = (jax.jit(both) if how == "jit" else both)({n: given[n] for n in names})
    assert_close(np.asarray(output), expected)
    for name in names:
        bound = 2 * TOLERANCE["float32"]
        assert_close(np.asarray(found[name]), getattr(wanted, name), tolerance=bound, what=name)
