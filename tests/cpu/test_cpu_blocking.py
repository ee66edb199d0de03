"""However little memory the CPU backend takes at a time, the results are the same.

The shapes of the other tests fit the workspace at once; here it is made so small that images are
taken one by one, channels slice by slice and pixels in parts.
"""

import subprocess
import sys
import warnings

import backends
import numpy as np
import pytest
from cases import DTYPES, batch_of, dtype_of, problem

import cudeform
from cudeform import threads
from cudeform.cpu.conv import blocking, convolve, gradients, pieces, stretches, widening, windows
from cudeform.cpu.language import workspace

CPU = backends.BACKENDS["cpu"]


@pytest.fixture(params=[1, 40_000, 400_000])
def small_workspace(monkeypatch, request):
    """Bytes for copies of images and for sums that are still to be added up."""
    monkeypatch.setattr(workspace, "SCRATCH_BYTES", request.param)
    monkeypatch.setattr(blocking, "_PARTIAL_BYTES", request.param)
    prepared = convolve._prepared, gradients._prepared
    for remembered in prepared:
        remembered.cache_clear()
    yield
    for remembered in prepared:
        assert remembered.cache_info().misses  # it was asked for under these limits
        remembered.cache_clear()


def asked_of(name):
    if name == "batch":
        asked, _ = batch_of("deform_conv2d", 37)
        return asked
    return problem("deform_conv2d", name, "float32")


@pytest.mark.parametrize("name", ["wide", "wide-channels-last", "groups", "batch"])
def test_small_workspace_gives_the_same_results(small_workspace, name):
    asked_of(name).assert_right(CPU)


@pytest.mark.parametrize("name", ["wide", "wide-channels-last", "groups"])
def test_small_tiles_give_the_same_results(small_workspace, monkeypatch, name):
    """Of one block of pixels: the sums of a slice go on in the tile where others left them."""
    monkeypatch.setattr(blocking, "_COLUMN_BYTES", 1)
    asked_of(name).assert_right(CPU)


@pytest.mark.parametrize("name", ["wide", "batch"])
def test_small_workspace_in_half_precision(small_workspace, name):
    """Images are widened a few at a time; sums over the batch are rounded once at the end."""
    asked = asked_of(name) if name == "batch" else problem("deform_conv2d", name, "float16")
    if name == "batch":
        asked = type(asked)(asked.row, asked.case, "float16")
    asked.assert_right(CPU)


def few_points(rng, dtype, layout):
    """Calls whose points read little of three images, in two offset groups and three of weights."""
    shapes = {
        "input": (3, 12, 40, 44),
        "offset": (3, 16, 4, 4),
        "weight": (6, 4, 2, 2),
        "bias": (6,),
        "mask": (3, 8, 4, 4),
    }
    arrays = {k: (2 * rng.standard_normal(s)).astype(dtype) for k, s in shapes.items()}
    if layout == "NHWC":
        for name in ("input", "offset", "mask"):
            arrays[name] = np.ascontiguousarray(np.moveaxis(arrays[name], 1, -1))
    plain = {name: arrays[name] for name in ("input", "weight", "bias")}
    points = rng.uniform(-2, 45, (3, 20, 2)).astype(dtype)
    grid = {"stride": (12, 14), "layout": layout}
    yield lambda: cudeform.deform_conv2d(**arrays, **grid)
    yield lambda: cudeform.deform_conv2d(**arrays, **grid, border="clamp")
    yield lambda: cudeform.conv2d(**plain, **grid)
    depthwise = {**arrays, "weight": arrays["weight"].reshape(24, 1, 2, 2)[:12], "bias": None}
    yield lambda: cudeform.deform_conv2d(**depthwise, **grid)
    yield lambda: cudeform.bilinear_sample(arrays["input"], points, layout=layout)


@pytest.mark.parametrize("bytes_at_once", [1, 3000, 1 << 24])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_points_that_read_little_give_the_bytes_of_whole_images(
    monkeypatch, rng, dtype, layout, bytes_at_once
):
    calls = list(few_points(rng, dtype_of(dtype), layout))
    monkeypatch.setattr(workspace, "SCRATCH_BYTES", bytes_at_once)
    seen = []
    for little in (True, False):
        for module in (convolve, widening):
            monkeypatch.setattr(module, "reads_little", lambda points, little=little: little)
        convolve._prepared.cache_clear()
        seen.append([call().tobytes() for call in calls])
    convolve._prepared.cache_clear()
    assert seen[0] == seen[1]


def large_images(rng, dtype):
    """Calls whose tiles read few rows, and some that read rows anywhere."""
    arrays = {
        "input": rng.standard_normal((2, 20, 40, 44)).astype(dtype),
        "offset": rng.standard_normal((2, 36, 40, 44)).astype(dtype),
        "weight": rng.standard_normal((6, 10, 3, 3)).astype(dtype),
    }
    arrays["offset"][1, :, 20:23] *= 30
    arrays["offset"][0, :2, 30, 7] = np.nan, np.inf
    yield lambda: cudeform.deform_conv2d(**arrays, padding=1)
    yield lambda: cudeform.conv2d(arrays["input"], arrays["weight"], padding=1)
    narrow = rng.standard_normal((20, 1, 3, 3)).astype(dtype)
    yield lambda: cudeform.deform_conv2d(**{**arrays, "weight": narrow}, padding=1)


@pytest.mark.parametrize("bytes_at_once", [1, 10_000, 30_000])
def test_windows_of_rows_give_the_bytes_of_whole_images(monkeypatch, rng, bytes_at_once):
    calls, seen = list(large_images(rng, "float32")), []
    monkeypatch.setattr(workspace, "SCRATCH_BYTES", bytes_at_once)
    for chosen in (windows.too_large, lambda *_: False):
        monkeypatch.setattr(convolve, "too_large", chosen)
        convolve._prepared.cache_clear()
        seen.append([call().tobytes() for call in calls])
    convolve._prepared.cache_clear()
    assert seen[0] == seen[1]


_MEASURE = """
import numpy as np
import cudeform


def peak():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


offset, weight = np.full((1, 18, 3, 3), 0.5, "float32"), np.ones((2, 4, 3, 3), {dtype!r})
points = np.random.default_rng(0).uniform(0, 7999, (1, 1000, 2)).astype("float32")
for size in (100, 8000):  # the first one compiles
    image = np.zeros((1, 4, size, size), {dtype!r})  # of which only what is touched is there
    before = peak()
    cudeform.bilinear_sample(image, points)
    cudeform.deform_conv2d(image, offset, weight, stride=size // 3)
    cudeform.conv2d(image, weight, stride=size // 3)
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_few_points_of_a_huge_image_take_little_memory(dtype):
    """In a process of its own: 64 megapixels of four channels, of which a few are read."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE.format(dtype=dtype)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 64


_MEASURE_DENSE = """
import numpy as np
import cudeform


def peak():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


weight = np.ones((1, 8, 3, 3), "float32")
for size in (40, 2500):  # the first one compiles
    image = np.ones((1, 8, size, size), "float32")
    offset = np.ones((1, 18, size, size), "float32")
    before = peak()
    output = cudeform.deform_conv2d(image, offset, weight, padding=1)
print(peak() - before - output.nbytes / 2**20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_dense_points_of_a_large_image_take_little_memory():
    """In a process of its own: 200 MB of an image, every pixel of which is read."""
    command = [sys.executable, "-c", _MEASURE_DENSE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 40


@pytest.fixture
def shared_slices(monkeypatch):
    """Every backward of a convolution goes by stretches, however small it is; few tiles a time."""
    monkeypatch.setattr(gradients, "_LARGE", 0)
    monkeypatch.setattr(threads, "_GAIN", 1e9)
    monkeypatch.setattr(stretches, "_TILES", 3)
    gradients._prepared.cache_clear()
    before = threads.get_num_threads()
    yield
    assert gradients._prepared.cache_info().misses
    gradients._prepared.cache_clear()
    threads.set_num_threads(before)


@pytest.mark.parametrize("scale", [1, 30], ids=["near", "anywhere"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("each", [1, 20], ids=["depthwise", "dense"])
def test_slices_that_threads_share_give_the_bytes_of_one_thread(
    shared_slices, rng, layout, each, scale
):
    shapes = {"input": (2, 40, 30, 33), "offset": (2, 36, 30, 33), "mask": (2, 18, 30, 33)}
    arrays = {k: rng.standard_normal(s).astype("float32") for k, s in shapes.items()}
    arrays["offset"] *= scale
    if layout == "NHWC":
        arrays = {k: np.ascontiguousarray(np.moveaxis(a, 1, -1)) for k, a in arrays.items()}
    arrays["weight"] = rng.standard_normal((40, each, 3, 3)).astype("float32")
    options = {"padding": 1, "layout": layout}
    grad = arrays["input"]
    needs = ("input", "offset", "weight", "mask", "bias")
    for wanted in (needs, ("input",), ("weight",), ("offset", "bias")):
        seen = []
        for count in (1, 2, 5, 64):
            threads.set_num_threads(count)
            found = cudeform.deform_conv2d_backward(grad, **arrays, **options, needs=wanted)
            seen.append([None if a is None else a.tobytes() for a in found])
        assert all(one == seen[0] for one in seen), wanted


def gradients_of(arrays, grad, **options):
    """With warnings as errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return cudeform.deform_conv2d_backward(grad, **arrays, padding=1, **options)


@pytest.mark.parametrize("groups", [1, 96])
def test_an_infinite_mask_does_not_show_how_channels_are_cut(monkeypatch, groups):
    """A sum over all channels is infinite, or NaN, and not one of infinities of slices."""
    rng = np.random.default_rng(0)
    shapes = dict(input=96, offset=18, mask=9)
    given = {k: rng.standard_normal((1, c, 6, 6)).astype("f") for k, c in shapes.items()}
    given["weight"] = rng.standard_normal((96, 96 // groups, 3, 3)).astype("f")
    given["mask"][0, :, ::2] = np.inf
    grad = rng.standard_normal((1, 96, 6, 6)).astype("f")
    grad[0, 0, 0, :2] = np.inf, -np.inf  # the gradient of the bias is none, without a warning
    found = []
    for most in (16, 32, 96):
        monkeypatch.setattr(gradients, "gradient_slice", lambda _, most=most: most)
        gradients._prepared.cache_clear()
        found.append(gradients_of(given, grad, needs=("offset", "bias")))
    gradients._prepared.cache_clear()
    monkeypatch.setattr(widening, "_is_small", lambda *_: False)
    monkeypatch.setattr(pieces, "MOST_WEIGHTS", 1000)
    found.append(gradients_of(given, grad, needs=("offset", "bias")))
    for gradient in found:
        assert np.isnan(gradient.bias[0])
        np.testing.assert_allclose(gradient.offset, found[0].offset, 1e-4, 1e-3)
    assert np.isinf(found[0].offset).any()
