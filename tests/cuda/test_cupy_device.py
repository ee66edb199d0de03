"""The path to a GPU, whole, on tests/standin: a CuPy and a cuBLAS on the host's memory."""

import threading
from itertools import product

import numpy as np
import pytest
from cases import DTYPES, dtype_of, operator, problem, problems
from tolerances import assert_close

import cudeform
from cudeform.cuda import sort
from cudeform.cuda.cupy_device import CupyDevice


@pytest.fixture
def standin(cupy):
    """`cupy` with the interface of the backends of backends.py."""
    cupy.to_device, cupy.to_host = cupy.asarray, cupy.asnumpy
    return cupy


def check(standin, todo, dtype):
    assert_close(todo.forward(standin), todo.output, dtype, what="output")
    found = todo.backward(standin)
    for argument, want in todo.gradients.items():
        assert_close(found[argument], want, dtype, what=argument)


@pytest.mark.parametrize("name, case", problems())
def test_every_case_gives_what_the_reference_gives(standin, name, case):
    check(standin, problem(name, case, "float32"), "float32")


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "float32"])
@pytest.mark.parametrize("name", ["v2-channels-last", "groups"])
def test_other_dtypes(standin, name, dtype):
    check(standin, problem("deform_conv2d", name, dtype), dtype)


def given(cupy, name="deform_conv2d", case="v2", dtype="float32"):
    """Arguments of a case on the current device, options included."""
    todo = problem(name, case, dtype)
    return todo, {k: cupy.asarray(a) for k, a in todo.case.arrays.items()} | todo.case.options


def test_the_arrays_device_computes_and_the_callers_stays_current(cupy):
    with cupy.cuda.Device(1):
        todo, arguments = given(cupy)
    output = cudeform.deform_conv2d(**arguments)
    assert (output.device.id, cupy.cuda.Device().id) == (1, 0)
    assert type(output) is cupy.ndarray and output.dtype == np.float32
    assert_close(output.get(), todo.output, "float32")


@pytest.mark.parametrize("name", ["v2", "far"])
def test_a_call_stays_on_the_callers_stream(cupy, name):
    """Nothing of it waits in another one, so that nothing of it has to."""
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        todo, arguments = given(cupy, case=name)
        output = cudeform.deform_conv2d(**arguments)
        assert cupy.cuda.get_current_stream() is stream
        assert np.isnan(output.host).all()  # nobody waited: there is nothing to wait for
        assert_close(output.get(), todo.output, "float32")


def test_threads_have_streams_of_their_own(cupy):
    todo, _ = given(cupy)
    found = {}

    def work(name):
        with cupy.cuda.Stream(non_blocking=True):
            _, arguments = given(cupy)
            found[name] = cudeform.deform_conv2d(**arguments).get()

    threads = [threading.Thread(target=work, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for output in found.values():
        assert_close(output, todo.output, "float32")


def test_arguments_on_two_devices_are_refused(cupy):
    _, arguments = given(cupy)
    with cupy.cuda.Device(1):
        arguments["offset"] = cupy.asarray(arguments["offset"].get())
    message = "deform_conv2d: expected `offset` on cuda:0 like `input`, got cuda:1"
    with pytest.raises(TypeError, match=message):
        cudeform.deform_conv2d(**arguments)


# Poolings whose number of samples depends on the boxes wait for the device; the others are graphs.
CAPTURED = [
    ("deform_conv2d", "v2"),
    ("deform_conv2d", "v2-channels-last"),
    ("conv2d", "plain"),
    ("bilinear_sample", "NCHW-zeros"),
    ("ms_deform_attn", "softmax"),
    ("ms_deform_attn", "array-of-shapes"),
    ("roi_align", "aligned"),
    ("ps_roi_align", "fixed"),
    ("deform_roi_pool", "fixed"),
    ("deform_ps_roi_pool", "v1"),
]


def images_of(arguments, cupy):
    """Boxes image by image: the indices in one array would have to be looked at."""
    if "boxes" in arguments:
        boxes, count = arguments["boxes"].get(), len(arguments["input"])
        each = [np.ascontiguousarray(boxes[boxes[:, 0] == image, 1:]) for image in range(count)]
        arguments["boxes"] = [cupy.asarray(part) for part in each]
    return arguments


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name, case", CAPTURED)
def test_a_graph_computes_on_what_its_arguments_hold_then(cupy, name, case, backward):
    function = getattr(cudeform, name + "_backward" if backward else name)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        todo, arguments = given(cupy, name, case)
        arguments = images_of(arguments, cupy)
        if backward:
            arguments.pop("bias", None)
            arguments["grad_output"] = cupy.asarray(todo.grad_output)
        read = operator(name).images
        image = arguments[read].get()
        arguments[read].fill(0)
        stream.begin_capture()
        result = function(**arguments)
        graph = stream.end_capture()
        for _ in range(2):
            arguments[read].set(image)
            graph.launch()
            found = result._asdict() if backward else {"output": result}
            found = {k: v.get() for k, v in found.items() if v is not None}
            want = function(**arguments)
            want = want._asdict() if backward else {"output": want}
            for key, array in found.items():
                np.testing.assert_array_equal(array, want[key].get(), err_msg=key)
            assert any(array.any() for array in found.values())


def test_what_waits_says_so_in_a_capture(cupy):
    stream, array = cupy.cuda.Stream(non_blocking=True), cupy.zeros(3)
    with stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="cudaErrorStreamCaptureUnsupported"):
            cupy.asnumpy(array)
        stream.end_capture()


def matrices(cupy, rng, batch, rows, columns, transposed):
    """A batch inside a larger array, as the host code makes them."""
    shape = (columns, rows) if transposed else (rows, columns)
    whole = cupy.asarray(rng.standard_normal((batch, shape[0], shape[1] + 2)).astype(np.float32))
    part = whole[:, :, : shape[1]]
    return whole, part.swapaxes(1, 2) if transposed else part


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("transposed", list(product((0, 1), repeat=3)))
@pytest.mark.parametrize(
    "sizes", [(4, 5, 6, 3), (1, 5, 6, 2), (4, 1, 6, 2), (4, 5, 1, 1), (1, 1, 1, 1)]
)
def test_products_of_all_layouts(cupy, rng, sizes, transposed, accumulate):
    m, n, k, batch = sizes
    _, a = matrices(cupy, rng, batch, m, k, transposed[0])
    _, b = matrices(cupy, rng, batch, k, n, transposed[1])
    whole, out = matrices(cupy, rng, batch, m, n, transposed[2])
    left, right, before, around = a.get(), b.get(), out.get(), whole.get()
    CupyDevice(cupy, 0).gemm(a, b, out, accumulate=accumulate)
    want = np.matmul(left, right) + (before if accumulate else 0)
    np.testing.assert_allclose(out.get(), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(whole.get()[:, :, -2:], around[:, :, -2:])


@pytest.mark.parametrize(
    "dtype, precision, compute",
    [
        ("float32", "ieee", 68),
        ("float32", "tf32", 77),
        ("float16", "tf32", 68),
        ("bfloat16", "ieee", 68),
        ("float64", "tf32", 70),
    ],
)
def test_products_are_as_precise_as_asked_for(cupy, dtype, precision, compute):
    """CUBLAS_COMPUTE_32F, _32F_FAST_TF32, _64F; and the caller's math mode is put back."""
    from cupy_backends.cuda.libs import cublas

    handle = cupy.cuda.device.get_cublas_handle()
    cublas.setMathMode(handle, 3)
    many = np.full((1, 4096), 1 + 2**-7, dtype_of(dtype))
    a, b = cupy.asarray(many), cupy.asarray(np.ascontiguousarray(many.T))
    sums = np.dtype(np.float64 if dtype == "float64" else np.float32)
    out = cupy.empty((1, 1), sums)
    CupyDevice(cupy, 0).gemm(a, b, out, precision=precision)
    assert cublas.calls[-1] == (compute, 16)
    assert cublas.getMathMode(handle) == 3
    exact = (many.astype(np.float64) ** 2).sum()
    assert out.get()[0, 0] == pytest.approx(exact, rel=1e-6)


def test_results_of_other_commands_stay_on_the_gpu(cupy, rng):
    """Conversions of layouts are CuPy's own functions on CuPy's arrays."""
    offset, mask = rng.standard_normal((2, 3, 4, 32)), rng.uniform(size=(2, 3, 4, 16))
    points = rng.uniform(size=(1, 3, 2, 2, 4, 2))
    trans, boxes = rng.standard_normal((3, 2, 2, 2)), rng.uniform(0, 9, (3, 5))
    options = dict(kernel_size=3, remove_center=True)
    calls = [
        lambda a: cudeform.convert_offset(
            a(offset), "dcnv3", "torchvision", offset_scale=2.0, **options
        ),
        lambda a: cudeform.convert_offset(a(offset), "dcnv3", "dcnv3", **options),
        lambda a: cudeform.convert_mask(a(mask), "dcnv3", "torchvision", **options),
        lambda a: cudeform.pack_dcnv4(a(offset), a(mask), 2),
        lambda a: cudeform.unpack_dcnv4(a(np.ones((2, 48))), 2, 8)[1],
        lambda a: cudeform.convert_roi_offset(a(trans), a(boxes), "mmcv", "mxnet", classes=2),
        lambda a: cudeform.points_from_msda(a(points), [(2, 4), (3, 3)]),
        lambda a: cudeform.points_to_msda(a(points), [(2, 4), (3, 3)]),
    ]
    for call in calls:
        found = call(cupy.asarray)
        assert isinstance(found, cupy.ndarray)
        np.testing.assert_allclose(found.get(), call(np.asarray), rtol=1e-12)


class Elsewhere:
    """An array of another framework in the memory of the second GPU."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **how):
        return self.array

    def __dlpack_device__(self):
        return 2, 1

    @classmethod
    def from_dlpack(cls, array):
        return cls(array)


def test_other_frameworks_gpu_arrays_are_viewed_on_their_device(cupy):
    with cupy.cuda.Device(1):
        todo, arguments = given(cupy, "bilinear_sample", "NCHW-zeros")
    arguments["input"], arguments["points"] = map(
        Elsewhere, (arguments["input"], arguments["points"])
    )
    output = cudeform.bilinear_sample(**arguments)
    assert type(output) is Elsewhere and output.array.device.id == 1
    assert_close(output.array.get(), todo.output, "float32")


LAUNCH = (sort.UNIT, "count_points", 1, 256)


@pytest.mark.parametrize(
    "arrays, params, error, message",
    [
        ((np.zeros(4, np.int32), None), sort.PARAMS, AttributeError, "no attribute 'ptr'"),
        ((None, None), "f4", RuntimeError, "CUDA_ERROR_INVALID_VALUE"),
        ((None,), sort.PARAMS, RuntimeError, "CUDA_ERROR_INVALID_VALUE"),
    ],
)
def test_arguments_that_do_not_fit_the_kernel(cupy, arrays, params, error, message):
    with pytest.raises(error, match=message):
        CupyDevice(cupy, 0).launch(*LAUNCH, arrays, np.zeros((), params))


def test_a_launch_in_the_middle_of_another(cupy):
    """As a finalizer may start one: the arguments of the first stay what they are."""
    device = CupyDevice(cupy, 0)
    first, second = (cupy.empty((4,), np.int32) for _ in range(2))
    params = np.ones((), sort.PARAMS)

    class Interrupted(np.ndarray):
        def tobytes(self):
            device.launch(sort.UNIT, "clear", 1, 256, (second,), params)
            return params.tobytes()

    device.launch(sort.UNIT, "clear", 1, 256, (first,), params.view(Interrupted))
    assert not first.get().any() and not second.get().any()


def test_memory_of_another_device_is_out_of_reach(cupy):
    with cupy.cuda.Device(1):
        keys = cupy.zeros((4,), np.int32)
    params = np.zeros((), sort.PARAMS)
    with pytest.raises(RuntimeError, match="cudaErrorIllegalAddress"):
        CupyDevice(cupy, 0).launch(*LAUNCH, (keys, None, None), params)
    with pytest.raises(RuntimeError, match="cudaErrorIllegalAddress"):
        CupyDevice(cupy, 0).gemm(*(keys.view(np.float32).reshape(2, 2),) * 3)
