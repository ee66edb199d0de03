"""Convolutions too large for a workspace are computed in pieces, in little memory, at any size."""

import sys

import backends
import numpy as np
import pytest
from cases import cases, problem
from poolings import PEAK
from processes import python

import cudeform
from cudeform import threads
from cudeform.cpu.conv import large, large_gradients, pieces, widening

CPU = backends.BACKENDS["cpu"]


@pytest.fixture
def in_pieces(monkeypatch):
    """Call it with bytes of the arrays of a piece, its taps and weights: all calls go that way."""

    def choose(room, taps=2048, weights=2 << 20):
        monkeypatch.setattr(widening, "_is_small", lambda *_: False)
        monkeypatch.setattr(large, "_ROOM", room)
        monkeypatch.setattr(pieces, "MOST_TAPS", taps)
        monkeypatch.setattr(pieces, "MOST_WEIGHTS", weights)

    return choose


@pytest.mark.parametrize("cut", [(2000,), (20_000, 4, 300)], ids=["pixels", "taps and channels"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["wide", "wide-channels-last", "groups"])
def test_pieces_give_the_same_results(in_pieces, name, dtype, cut):
    """Where points lie in one box, and where they are gone through box by box."""
    in_pieces(*cut)
    problem("deform_conv2d", name, dtype).assert_right(CPU)


@pytest.mark.parametrize("name", ["conv2d", "bilinear_sample"])
def test_pieces_of_relatives_give_the_same_results(in_pieces, name):
    """Without offsets, and with points of no grid; each with all its cases."""
    in_pieces(4000, 2)
    for case in cases(name):
        problem(name, case, "float16").assert_right(CPU)


def assert_alike(in_pieces, calls):
    """In pieces as at once: what is infinite or NaN, and what is neither."""
    expected = [(call, call()) for call in calls]
    in_pieces(4000)
    for call, want in expected:
        found = call()
        for name, array in want.items():
            limit = 2e-5 if array.dtype == "float32" else 4e-3
            least = limit * np.abs(array[np.isfinite(array)]).max(initial=1)
            np.testing.assert_allclose(found[name], array, limit, least, err_msg=name)


def both_ways(name, given, **options):
    """A forward and a backward, each of which gives its results by name."""
    needs = [name for name in given if name != "grad_output"]
    forward, backward = getattr(cudeform, name), getattr(cudeform, f"{name}_backward")
    images = {k: a for k, a in given.items() if k != "grad_output"}
    others = {k: a for k, a in given.items() if k != "bias"}
    yield lambda: {"output": forward(**images, **options)}

    def gradients():
        found = backward(**others, **options, needs=needs)._asdict()
        return {name: found[name] for name in needs}

    yield gradients


def strange(rng, array, value):
    """With a few elements of a value that is not finite."""
    array = array.copy()
    array.reshape(-1)[rng.integers(0, array.size, 3)] = value
    return array


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", ["weight", "grad_output", "bias", "input", "mask", "offset"])
def test_what_is_not_finite_reaches_the_same_results(in_pieces, name, dtype):
    """Box by box a point reads 0 in all boxes but one, and 0 times infinity is NaN."""
    rng, calls = np.random.default_rng(0), []
    for groups, offset_groups, masked in ((1, 1, True), (2, 3, True), (6, 1, False)):
        shapes = {"input": (2, 6, 40, 44), "grad_output": (2, 12, 8, 7)}
        shapes |= {"weight": (12, 6 // groups, 2, 3), "bias": (12,)}
        shapes |= {"offset": (2, 12 * offset_groups, 8, 7)}
        shapes |= {"mask": (2, 6 * offset_groups, 8, 7)} if masked else {}
        given = {k: rng.standard_normal(shape).astype(dtype) for k, shape in shapes.items()}
        given["offset"] *= 15  # also to where nothing is
        for value in (np.inf, -np.inf, np.nan) if name in given else ():
            odd = {**given, name: strange(rng, given[name], value)}
            calls += both_ways("deform_conv2d", odd, stride=(5, 6))
    assert_alike(in_pieces, calls)


@pytest.mark.parametrize("name", ["conv2d", "bilinear_sample"])
def test_what_is_not_finite_reaches_the_same_results_of_relatives(in_pieces, name):
    rng, calls = np.random.default_rng(0), []
    given = {"input": rng.standard_normal((1, 4, 40, 44)).astype(np.float32)}
    if name == "conv2d":
        given["weight"] = rng.standard_normal((3, 4, 3, 2)).astype(np.float32)
        given["grad_output"] = rng.standard_normal((1, 3, 8, 9)).astype(np.float32)
    else:
        given["points"] = rng.uniform(-4, 44, (1, 99, 2)).astype(np.float32)
        given["grad_output"] = rng.standard_normal((1, 4, 99)).astype(np.float32)
    for odd in given:
        for value in (np.inf, np.nan):
            options = {"stride": 5} if name == "conv2d" else {}
            calls += both_ways(name, {**given, odd: strange(rng, given[odd], value)}, **options)
    assert_alike(in_pieces, calls)


@pytest.mark.parametrize("border", ["zeros", "clamp"])
def test_a_box_has_the_pixels_of_points_a_bit_before_it(in_pieces, border):
    """Of so small a step back that its sum with a whole number is that number."""
    rng = np.random.default_rng(0)
    shapes = {"input": (1, 3, 40, 44), "weight": (2, 3, 1, 1), "grad_output": (1, 2, 8, 9)}
    given = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    given["offset"] = np.full((1, 2, 8, 9), -1e-17, np.float32)
    assert_alike(in_pieces, both_ways("deform_conv2d", given, stride=5, border=border))


def arrays_of(dtype, scale, shape=(2, 20, 30, 36)):
    rng = np.random.default_rng(0)
    batch, channels, height, width = shape
    counts = {"input": channels, "offset": 18, "mask": 9}
    made = {n: rng.standard_normal((batch, c, height, width)) for n, c in counts.items()}
    made["offset"] *= scale
    made["weight"] = rng.standard_normal((channels, channels, 3, 3))
    return {name: array.astype(dtype) for name, array in made.items()}


def results(arrays, strided=lambda array: array):
    given = {name: a if name == "weight" else strided(a) for name, a in arrays.items()}
    needs = ("input", "offset", "weight", "mask", "bias")
    grad = strided(arrays["input"])
    found = cudeform.deform_conv2d_backward(grad, **given, padding=1, needs=needs)
    output = cudeform.deform_conv2d(**given, padding=1)
    return [array.tobytes() for array in (output, *found)]


@pytest.mark.parametrize("scale", [1, 40], ids=["near", "anywhere"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_bytes_are_equal_for_every_number_of_threads_and_any_strides(in_pieces, dtype, scale):
    in_pieces(30_000)
    before, arrays = threads.get_num_threads(), arrays_of(dtype, scale)
    expected = results(arrays)
    try:
        for count in (1, 2, 3, 8, 64):
            threads.set_num_threads(count)
            assert results(arrays) == expected
    finally:
        threads.set_num_threads(before)
    assert results(arrays, np.asfortranarray) == expected
    assert results(arrays, lambda array: np.repeat(array, 2, 3)[..., ::2]) == expected


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_corners_are_gathered_from_any_strides(layout):
    """Of an image of which little is read, to the bytes of a contiguous one."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((2, 6, 40, 50) if layout == "NCHW" else (2, 40, 50, 6))
    for dtype in ("float32", "float16"):
        whole, points = image.astype(dtype), rng.uniform(-2, 50, (2, 30, 2)).astype(dtype)
        expected = cudeform.bilinear_sample(whole, points, layout=layout).tobytes()
        for strided in (
            np.asfortranarray(whole),
            np.flip(np.flip(whole).copy()),
            np.concatenate([whole, whole], 3)[..., : whole.shape[3]],
            np.concatenate([whole, whole], 2)[:, :, : whole.shape[2]],
        ):
            assert not strided.flags.c_contiguous
            found = cudeform.bilinear_sample(strided, points, layout=layout)
            assert found.tobytes() == expected


def test_an_image_of_few_slices_is_work_for_many_threads(in_pieces, monkeypatch):
    """Four pieces for each thread, however few its channels are."""
    in_pieces(100_000)
    counts, run = [], threads.run

    def counting(task, count):
        counts.append(count)
        run(task, count)

    monkeypatch.setattr(large_gradients.threads, "run", counting)
    before = threads.get_num_threads()
    threads.set_num_threads(3)
    try:
        results(arrays_of("float32", 1, (1, 16, 100, 100)))
    finally:
        threads.set_num_threads(before)
    assert counts.count(12) >= 2  # groups of pieces, of which there are 28


MEMORY = """
import numpy, cudeform
from cudeform import threads
{peak}
threads.set_num_threads(2)
dtype = "{dtype}"

def ones(*shape):
    return numpy.ones(shape, dtype)

def few(side):  # points, of an image of which only what is touched is there
    image, grad, weight = numpy.zeros((1, 4, side, side), dtype), ones(1, 2, 3, 3), ones(2, 4, 3, 3)
    offset, grid = ones(1, 18, 3, 3), dict(stride=side // 3)
    for image in image, numpy.broadcast_to(ones(1, 1, 1, 1), image.shape):
        yield cudeform.deform_conv2d, (image, offset, weight), grid
        yield cudeform.deform_conv2d_backward, (grad, image, offset, weight), grid
        yield cudeform.conv2d_backward, (grad, image, weight), grid
        points = numpy.full((1, 9, 2), side / 2, dtype)
        yield cudeform.bilinear_sample_backward, (ones(1, 4, 9), image, points), dict()

def kernel(size):
    image = weight = ones(1, 1, size, size)
    offset = ones(1, 2 * size**2, 1, 1)
    yield cudeform.deform_conv2d, (image, offset, weight), dict()
    yield cudeform.deform_conv2d_backward, (ones(1, 1, 1, 1), image, offset, weight), dict()

def dense(side, layout="NHWC"):
    image, offset, weight = ones(1, side, side, 16), ones(1, side, side, 18), ones(16, 16, 3, 3)
    options = dict(padding=1, layout=layout)
    yield cudeform.deform_conv2d, (image, offset, weight), options
    yield cudeform.deform_conv2d_backward, (image, image, offset, weight), options

def weights(channels):
    image, weight = ones(1, channels, 8, 8), ones(channels, channels, 3, 3)
    given = image, image, ones(1, 18, 8, 8), weight
    yield cudeform.deform_conv2d_backward, given, dict(padding=1)

peaks((few, 60, 8000), (kernel, 3, 1500), (dense, 30, 900), (weights, 8, 1024))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_memory_is_bounded_whatever_the_size(dtype):
    """In a process of its own: 64 megapixels, 1500 x 1500 taps, many points, and many weights."""
    said = python(MEMORY.format(peak=PEAK, dtype=dtype))
    found = [line.split()[1:] for line in said.splitlines()]
    assert len(found) == 13, said
    assert all(int(taken) - int(results) < 64e6 for taken, results in found), said
