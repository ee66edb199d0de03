"""Calls on a GPU that are recorded and started again: what is kept, and that it is right."""

import gc
import threading
import weakref
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from cases import problem

import cudeform
from cudeform.cuda import attention, conv, program, sampling
from cudeform.cuda.cupy_device import CupyDevice
from cudeform.cuda.device import device_of
from cudeform.cuda.gemm import gemm_arguments
from cudeform.cuda.products import Cublas
from cudeform.cuda.program import Known, Programs, places
from cudeform.cuda.tracing import Traced, Tracer, trace


@pytest.fixture
def counted(monkeypatch):
    """A function of a module and a name that returns a list with the calls of that function."""

    def count(module, name):
        calls, function = [], getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: calls.append(a) or function(*a, **k))
        return calls

    return count


def given(cupy, name, case, rng, dtype="float32"):
    """Arguments of a case with other numbers."""
    todo = problem(name, case, dtype).case
    arrays = dict(todo.arrays)
    for name in arrays.keys() - {"boxes"}:
        arrays[name] = rng.uniform(size=arrays[name].shape).astype(arrays[name].dtype)
    arrays = {name: cupy.asarray(array) for name, array in arrays.items()}
    return arrays | todo.options


def test_host_code_runs_once_for_calls_that_are_alike(cupy, counted, rng):
    calls = counted(conv, "forward")
    arguments = [given(cupy, "deform_conv2d", "v2", rng) for _ in range(3)]
    outputs = [cudeform.deform_conv2d(**a).get() for a in arguments]
    assert len(calls) == 1
    for a, output in zip(arguments, outputs, strict=True):
        on_host = {k: v.get() if isinstance(v, cupy.ndarray) else v for k, v in a.items()}
        np.testing.assert_allclose(output, cudeform.deform_conv2d(**on_host), rtol=1e-4, atol=1e-5)
    cudeform.deform_conv2d(**{**arguments[0], "bias": None})
    assert len(calls) == 2
    cudeform.deform_conv2d(**given(cupy, "deform_conv2d", "v2", rng, "float16"))
    assert len(calls) == 3
    with cupy.cuda.Device(1):
        cudeform.deform_conv2d(**given(cupy, "deform_conv2d", "v2", rng))
    assert len(calls) == 4


def test_gradients_that_are_asked_for_tell_calls_apart(cupy, counted, rng):
    calls = counted(conv, "backward")
    arguments = given(cupy, "deform_conv2d", "v2", rng)
    arguments.pop("bias", None)
    grad_output = cudeform.deform_conv2d(**arguments)
    call = partial(cudeform.deform_conv2d_backward, grad_output, **arguments)
    whole, again, only = call(), call(), call(needs=["offset"])
    assert len(calls) == 2
    for name in ("input", "offset", "weight"):
        np.testing.assert_array_equal(getattr(whole, name).get(), getattr(again, name).get())
    np.testing.assert_array_equal(only.offset.get(), whole.offset.get())
    assert only.input is None


def test_where_an_argument_lies_tells_calls_apart(cupy, counted, rng):
    """On the grid of vectors or beside it, where it is copied first."""
    calls = counted(sampling, "forward")
    batch = rng.standard_normal((2, 3, 3, 8)).astype(np.float32)
    points = cupy.asarray(rng.uniform(0, 2, size=(2, 9, 2)).astype(np.float32))
    flat = cupy.asarray(np.concatenate([[0.0], batch.ravel()]).astype(np.float32))
    shifted = flat[1:].reshape(batch.shape)
    outputs = [
        cudeform.bilinear_sample(array, points, layout="NHWC").get()
        for array in (cupy.asarray(batch), shifted, cupy.asarray(batch), shifted)
    ]
    assert len(calls) == 2
    for output in outputs[1:]:
        np.testing.assert_array_equal(output, outputs[0])


def test_host_code_that_looks_at_values_runs_every_time(cupy, counted, rng):
    calls, levels = counted(attention, "forward"), 17  # whose sizes a launch has no room for
    shapes = rng.standard_normal((1, levels, 1, 4)), rng.uniform(size=(1, 2, 1, levels, 1, 2))
    value, points = (cupy.asarray(array.astype(np.float32)) for array in shapes)
    weights = cupy.asarray(np.ones((1, 2, 1, levels, 1), np.float32))
    call = partial(cudeform.ms_deform_attn, value, ((1, 1),) * levels, points, weights)
    found = [call() for _ in range(3)]
    assert len(calls) == 4  # and once to see that
    np.testing.assert_array_equal(found[0].get(), found[2].get())


def test_very_long_programs_are_not_recorded(cupy, counted, rng, monkeypatch):
    """And that is seen before their end."""
    calls, started = counted(conv, "forward"), counted(Tracer, "start")
    monkeypatch.setattr("cudeform.cuda.tracing._LONGEST", 2)
    arguments = given(cupy, "deform_conv2d", "v2", rng)
    found = [cudeform.deform_conv2d(**arguments).get() for _ in range(2)]
    assert (len(calls), len(started)) == (3, 3)
    np.testing.assert_array_equal(*found)


def test_a_call_asks_for_its_results_and_one_workspace(cupy, rng):
    arguments = given(cupy, "deform_conv2d", "v2", rng)
    sizes = cupy.get_default_memory_pool().sizes
    for _ in range(2):
        before = len(sizes)
        output = cudeform.deform_conv2d(**arguments)
        result, workspace = sizes[before:]
        assert result == output.nbytes
        assert workspace % 256 == 0


def test_threads_that_call_at_once_have_arguments_of_their_own(cupy, rng):
    many = [given(cupy, "deform_conv2d", "v2", rng) for _ in range(4)]
    want = [cudeform.deform_conv2d(**arguments).get() for arguments in many]
    start, found = threading.Barrier(len(many)), {}

    def work(number):
        with cupy.cuda.Stream(non_blocking=True):
            arguments = {k: v.copy() if hasattr(v, "copy") else v for k, v in many[number].items()}
            start.wait()
            found[number] = [cudeform.deform_conv2d(**arguments).get() for _ in range(5)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(many))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, output in enumerate(want):
        for again in found[number]:
            np.testing.assert_array_equal(again, output)


def test_the_handle_is_left_as_it_was(cupy, rng):
    from cupy_backends.cuda.libs import cublas

    handle = cupy.cuda.device.get_cublas_handle()
    cublas.setMathMode(handle, 3)
    cublas.setPointerMode(handle, 1)  # factors of CuPy's own products are on the device
    cudeform.deform_conv2d(**given(cupy, "deform_conv2d", "v2", rng))
    assert cublas.of(handle).workspace is None
    assert (cublas.getMathMode(handle), cublas.getPointerMode(handle)) == (3, 1)


@pytest.mark.parametrize("path", [np._core._multiarray_umath.__file__, "/no/cublas.so"])
def test_a_cublas_that_is_not_there_is_named(path):
    with pytest.raises(RuntimeError, match=f"behind CuPy's {path}, and is not found: .*cublas"):
        Cublas(SimpleNamespace(__file__=path), 80)


@pytest.mark.parametrize("seed", range(20))
def test_slots_that_live_at_the_same_time_lie_apart(seed):
    rng = np.random.default_rng(seed)
    sizes = {slot: int(rng.integers(1, 5000)) for slot in range(30)}
    firsts = rng.integers(0, 40, 30)
    lives = {slot: (int(f), int(f + rng.integers(0, 8))) for slot, f in enumerate(firsts)}
    starts, size = places(lives, sizes)
    for a in sizes:
        assert starts[a] % 256 == 0 and starts[a] + sizes[a] <= size
        for b in range(a):
            together = lives[a][0] <= lives[b][1] and lives[b][0] <= lives[a][1]
            apart = starts[a] + sizes[a] <= starts[b] or starts[b] + sizes[b] <= starts[a]
            assert apart or not together, (a, b)
    alive = [
        sum(-(-sizes[s] // 256) * 256 for s in sizes if lives[s][0] <= step <= lives[s][1])
        for step in range(50)
    ]
    assert max(alive) <= size <= 1.3 * max(alive)


def test_places_of_nothing():
    assert places({}, {}) == ({}, 0)


def test_the_oldest_programs_are_forgotten(monkeypatch):
    monkeypatch.setattr(program, "_MOST_STEPS", 10)
    programs = Programs()
    for number in range(5):
        programs.keep(number, Known(None, 4))
        programs.keep(number, Known(None, 4))  # by another thread
    assert [number for number in range(5) if programs.get(number)] == [3, 4]


def test_what_host_code_must_not_do_is_refused(device):
    tracer = Tracer()
    array = tracer.empty((2, 3), np.float32)
    with pytest.raises(ValueError, match="copied an array of shape"):
        tracer.view(array.T.reshape(6))
    with pytest.raises(ValueError, match="fill with 0, got 1"):
        tracer.fill(array, 1)
    with pytest.raises(ValueError, match="without gaps"):
        tracer.fill(array.T, 0)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


@pytest.mark.parametrize(
    "result",
    [lambda a, b: a, lambda a, b: b[1:], lambda a, b: b.T, lambda a, b: b.T.reshape(6)],
)
def test_results_are_arrays_of_their_own(device, result):
    array = device.empty((2, 3), np.float32)

    def function(a):
        with device_of(a) as traced:
            return (result(a, traced.empty((2, 3), np.float32)),)

    with pytest.raises(ValueError, match="of shape"):
        trace(function, {"a": array})


@pytest.mark.parametrize("sizes", [(1, 1, 2**32 + 8), (2**31, 1, 1), (1, 2**31, 1)])
def test_products_that_cublas_cannot_count_are_refused(sizes):
    """A C int would have taken their last 32 bits in silence."""
    m, n, k = sizes
    a, b, out = (
        np.lib.stride_tricks.as_strided(np.empty(1, np.float16), shape, (2 * shape[1], 2))
        for shape in ((m, k), (k, n), (m, n))
    )
    with pytest.raises(ValueError, match="counts in 32 bits.*4294967304|2147483648"):
        gemm_arguments(a, b, out)


@pytest.mark.parametrize("name, case", [("deform_conv2d", "v2"), ("roi_align", "adaptive")])
def test_nothing_waits_for_the_garbage_collector(cupy, rng, monkeypatch, name, case):
    """What is forgotten is freed at once, also in a program that has switched that off."""
    monkeypatch.setattr(program, "_MOST_STEPS", 0)
    made, prepare = [], CupyDevice.prepare

    def prepared(device, of):
        found = prepare(device, of)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(CupyDevice, "prepare", prepared)
    arguments = given(cupy, name, case, rng)
    gc.collect()
    gc.disable()
    try:
        output = getattr(cudeform, name)(**arguments)
        arguments.pop("bias", None)
        getattr(cudeform, name + "_backward")(output, **arguments)
        assert made and not any(replay() for replay in made)
        assert not any(type(thing) is Traced for thing in gc.get_objects())
    finally:
        gc.enable()
