"""Convolutions too large for a workspace are computed in pieces, in little memory, at any size."""

import sys

import backends
import numpy as np
import pytest
from cases import problem
from poolings import PEAK
from processes import python

import cudeform
from cudeform import threads
from cudeform.cpu.conv import large, large_gradients, pieces, widening
from cudeform.cpu.language import workspace

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
    in_pieces(1000, 2)
    for row, case in (("conv2d", "padding"), ("bilinear_sample", "clamp")):
        if row == name:
            problem(row, case, "float16").assert_right(CPU)


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
    spread = lambda array: np.repeat(array, 2, 3)[..., ::2]
    for strided in (np.asfortranarray, lambda a: a[::-1, ::-1].copy()[::-1, ::-1], spread):
        assert results(arrays, strided) == expected


def test_one_image_of_few_slices_is_work_for_many_threads(monkeypatch):
    """Whose slices are laid out one at a time, and would be one task each."""
    counts, run = [], threads.run

    def counting(task, count):
        counts.append(count)
        run(task, count)

    monkeypatch.setattr(workspace, "SCRATCH_BYTES", 2 << 20)
    monkeypatch.setattr(large, "_ROOM", 100_000)
    monkeypatch.setattr(large_gradients.threads, "run", counting)
    before = threads.get_num_threads()
    threads.set_num_threads(3)
    try:
        results(arrays_of("float32", 1, (1, 64, 100, 100)))
    finally:
        threads.set_num_threads(before)
    assert counts.count(12) > 4
