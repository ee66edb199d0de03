"""Gradients of samples that are made field by field, see `cudeform.cpu.fields`."""

import sys

import numpy as np
import pytest
from cases import dtype_of
from poolings import PEAK
from processes import python

import cudeform
from cudeform import threads
from cudeform.cpu import sampling


def given(rng, channels=70, size=(33, 70), points=(30, 31)):
    """Gradient of the samples, images of three slices of channels, and points on, between and
    beyond the pixels.
    """
    image = rng.standard_normal((2, channels, *size))
    where = rng.random((2, *points, 2)) * (np.array(size) + 4) - 2
    where[:, ::5] = where[:, ::5].round()
    where[:, 3] = np.nan
    return rng.standard_normal((2, channels, *points)), image, where


@pytest.fixture
def cut(monkeypatch):
    """Set bytes of fields and points of rounds; and whether plain arrays take fields."""

    def set_to(field, points, takes=True):
        monkeypatch.setattr(sampling, "_FIELD", field)
        monkeypatch.setattr(sampling, "_POINTS", points)
        monkeypatch.setattr(sampling, "_SAMPLES", 1)
        monkeypatch.setattr(sampling, "_BLOCK", 64)
        monkeypatch.setattr(sampling, "_LEAST", 16)
        monkeypatch.setattr(sampling, "_takes_fields", lambda *_: takes)
        sampling._cut.cache_clear()

    yield set_to
    sampling._cut.cache_clear()


@pytest.mark.parametrize(("border", "layout"), [("zeros", "NCHW"), ("clamp", "NHWC")])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fields_give_the_bytes_of_whole_images(cut, rng, dtype, border, layout):
    arrays = [a.astype(dtype) for a in given(rng)]
    if layout == "NHWC":
        arrays[:2] = [np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in arrays[:2]]
    seen = []
    before = threads.get_num_threads()
    for count, *limits in [(1, 1, 1, False), (1, 1 << 20, 1 << 20), (2, 1 << 13, 1 << 20),
                           (64, 1 << 13, 300)]:  # fmt: skip
        cut(*limits)
        threads.set_num_threads(count)
        found = cudeform.bilinear_sample_backward(*arrays, border=border, layout=layout)
        seen.append([gradient.tobytes() for gradient in found])
    threads.set_num_threads(before)
    assert all(bytes_ == seen[0] for bytes_ in seen)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_fields_read_arrays_of_any_strides(cut, rng, dtype, layout):
    arrays = [a.astype(dtype_of(dtype)) for a in given(rng)]
    if layout == "NHWC":
        arrays[:2] = [np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in arrays[:2]]
    cut(1 << 13, 300 if dtype == "float32" else 1 << 20)
    samples = cudeform.bilinear_sample(*arrays[1:], layout=layout).tobytes()
    expected = cudeform.bilinear_sample_backward(*arrays, layout=layout)
    for lying in (
        np.asfortranarray,
        lambda a: np.repeat(a, 2, 1)[:, ::2],
        lambda a: a[::-1].copy()[::-1],
    ):
        strided = list(map(lying, arrays))
        assert cudeform.bilinear_sample(*strided[1:], layout=layout).tobytes() == samples
        found = cudeform.bilinear_sample_backward(*strided, layout=layout)
        assert [g.tobytes() for g in found] == [g.tobytes() for g in expected]


@pytest.mark.parametrize(("border", "layout"), [("zeros", "NCHW"), ("clamp", "NHWC")])
def test_a_gradient_of_16_bits_by_many_points_is_rounded_once(
    cut, rng, monkeypatch, border, layout
):
    """In bands of rows and channels, each by several rounds of points."""
    arrays = [a.astype(np.float16) for a in given(rng)]
    if layout == "NHWC":
        arrays[:2] = [np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in arrays[:2]]
    options = {"border": border, "layout": layout}
    wide = [a.astype(np.float32) for a in arrays]
    expected = cudeform.bilinear_sample_backward(*wide, **options).input.astype(np.float16)
    cut(1 << 12, 300)
    monkeypatch.setattr(sampling, "_BAND", 1 << 14)
    before = threads.get_num_threads()
    for count in (1, 64):
        threads.set_num_threads(count)
        found = cudeform.bilinear_sample_backward(*arrays, **options).input
        assert found.tobytes() == expected.tobytes()
    threads.set_num_threads(before)


MEMORY = (
    PEAK
    + """
import numpy, cudeform
rng = numpy.random.default_rng(0)
points = rng.uniform(0, {side}, (1, 3 << 19, 2)).astype("{dtype}")
grad = numpy.broadcast_to(numpy.ones((), "{dtype}"), (1, 2, 3 << 19))
image = numpy.zeros((1, 2, {side}, {side}), "{dtype}")
call = cudeform.bilinear_sample_backward
call(grad, image, points)  # compiles
print(*peak(lambda: call(grad, image, points)))
"""
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_memory_is_bounded_whatever_points_and_pixels(dtype):
    """In a process of its own: 16 megapixels, and more points than are sorted at a time."""
    taken, results = map(int, python(MEMORY.format(side=4000, dtype=dtype)).split())
    assert taken - results < 64e6


GRID = (
    PEAK
    + """
import numpy, cudeform
rng = numpy.random.default_rng(0)
points = numpy.asfortranarray(rng.uniform(0, 64, (1, 1500, 2000, 2)).astype("float32"))
grad = numpy.asfortranarray(rng.standard_normal((1, 2, 1500, 2000)).astype("float32"))
image = numpy.ones((1, 2, 64, 64), "float32")
some = grad[..., :9, :9], image, points[:, :9, :9]
forward, backward = cudeform.bilinear_sample, cudeform.bilinear_sample_backward
forward(*some[1:]), backward(*some)  # compiles
print(*peak(lambda: {call}))
"""
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("call", "most"), [("forward(image, points)", 20e6), ("backward(grad, image, points)", 40e6)]
)
def test_points_and_their_gradients_of_any_strides_are_not_copied_whole(call, most):
    """Each has 24 MB."""
    taken, results = map(int, python(GRID.format(call=call)).split())
    assert taken - results < most
