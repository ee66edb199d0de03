"""How sums of samples at located points, and their gradients, are cut into tasks."""

import sys

import numpy as np
import pytest
from cases import operator
from poolings import PEAK
from processes import python
from runs import runs_with

import cudeform
from cudeform import threads
from cudeform.bench.workload import Aggregation, Attention
from cudeform.cases import Case
from cudeform.cpu import aggregator, portions
from cudeform.cpu.queries import Extent
from cudeform.cpu.sizes import sized

# Height, width and first pixel: of two, with pixels between them that no point reads
LEVELS = np.array([[64, 64, 0], [8, 8, 5000]]).T
PIXELS = 5064


def aggregator_of(extent, levels, *arrays):
    shape = 1, 1, extent.pixels, extent.heads, extent.channels
    sizes = sized(shape, extent, levels, None, 1.0, np.float32)
    return aggregator.Aggregator(sizes, np.zeros(1, np.float32), *arrays)


@pytest.mark.parametrize("pieces", [1, 2, 7, 64])
def test_ranges_have_equal_shares_of_pixels_and_points(pieces):
    cuts = aggregator._cuts(LEVELS, PIXELS, pieces)
    assert len(cuts) == pieces + 1
    assert cuts[0] == 0
    assert cuts[-1] == PIXELS
    lengths = np.diff(cuts)
    points = [np.diff(np.clip((cuts - start) / (h * w), 0, 1)) for h, w, start in LEVELS.T]
    shares = lengths / PIXELS + np.mean(points, 0)
    np.testing.assert_allclose(shares, 2 / pieces, atol=1.1 / 64)  # a pixel of the small level
    assert lengths.max() <= 2 * PIXELS / pieces + 1  # what a thread has room for


@pytest.mark.parametrize(
    ("count", "heads", "least"), [(1, 1, 1), (2, 8, 8), (64, 1, 64), (64, 8, 64)]
)
def test_threads_have_a_range_of_pixels_each(count, heads, least, monkeypatch):
    extent = Extent(PIXELS, heads, 32, 300, 2, 4 * heads, 4, 2 * heads, 2)
    arrays = [np.zeros(300 * heads * n, np.float32) for n in (4, 2)]
    call = aggregator_of(extent, LEVELS.ravel(), *arrays)
    tasks = []
    for name in ("value_gradients", "list_corners", "add_corners"):
        monkeypatch.setattr(aggregator, name, lambda *given: None)
    monkeypatch.setattr(threads, "share", lambda task, number, work: tasks.append(number))
    monkeypatch.setattr(threads, "get_num_threads", lambda: count)
    monkeypatch.setattr(threads, "_SMALL", 1)
    room = aggregator.Room(np.zeros(PIXELS * heads * 32, np.float32), aggregator.NOTHING)
    call.spread(np.zeros(300 * heads * 32, np.float32), room)
    assert least <= tasks[-1] <= max(4 * count, heads)


@pytest.mark.parametrize(
    ("side", "count", "parts"), [(14, 1, 1), (14, 2, 1), (130, 1, 16), (130, 2, 8), (90, 64, 1)]
)
def test_copies_that_a_cache_holds_are_worked_on_together(side, count, parts, monkeypatch):
    """There is a wait at the end of a part, which takes longer than a small one."""
    extent = Extent(side**2, 16, 16, side**2, 9, 18 * 16, 18, 9 * 16, 9)
    levels = np.repeat([side, side, 0], 9)
    given = np.zeros(1, np.float32), np.zeros(1, np.float32)
    monkeypatch.setattr(threads, "get_num_threads", lambda: count)
    found = aggregator_of(extent, levels, *given)._parts()
    assert len(found) == parts
    assert [part.first for part in found] == [0, *(part.last for part in found[:-1])]
    assert found[-1].last == 16


STRIDES = {
    "fortran": np.asfortranarray,
    "every second": lambda array: np.repeat(array, 2, -1)[..., ::2],
    "backwards": lambda array: np.flip(np.flip(array).copy()),
    "parts of rows": lambda array: np.concatenate([array, array], 2)[:, :, : array.shape[2]],
}


@pytest.mark.parametrize("name", ["ms_deform_attn", "dcnv3", "dcnv4"])
def test_arrays_of_any_strides_give_the_bytes_of_contiguous_ones(monkeypatch, name):
    """Copied at once, or a few queries at a time, while the corners of points are gathered."""
    row = operator(name)
    before = threads.get_num_threads()
    small = {"_RANGE_BYTES": 500, "_WIDE": 0, "_PAGE": 4, "_BUNDLES": 8}
    small["_SPARSE"] = 0
    for case in row.cases(np.random.default_rng(0)):
        arrays = {k: a.astype(np.float32) if a.ndim > 2 else a for k, a in case.arrays.items()}
        expected = outcome(row, Case(case.name, arrays, case.options))
        for setting in ({}, {**small, "SCRATCH_BYTES": 16}):
            with monkeypatch.context() as changed:
                aggregator._parts.cache_clear()
                aggregator._ranges.cache_clear()
                for constant, value in setting.items():
                    changed.setattr(aggregator, constant, value)
                if setting:
                    changed.setattr(portions, "_COPIED", 300)
                changed.setattr(threads, "_SMALL", 1)  # also what threads do by themselves
                for count, lying in zip((1, 2, 3, 8), STRIDES.values(), strict=True):
                    given = {k: lying(a) if a.ndim > 2 else a for k, a in arrays.items()}
                    threads.set_num_threads(count)
                    found = outcome(row, Case(case.name, given, case.options), lying)
                    assert found == expected, (case.name, setting)
    threads.set_num_threads(before)
    aggregator._parts.cache_clear()
    aggregator._ranges.cache_clear()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_few_points_are_added_where_sums_stay_with_the_same_bytes(monkeypatch, dtype):
    case = next(operator("ms_deform_attn").cases(np.random.default_rng(0))).astype(dtype)
    found = []
    for most in (0, 10**6):
        monkeypatch.setattr(aggregator, "_SPARSE", most)
        found.append(outcome(operator("ms_deform_attn"), case))
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("name", ["ms_deform_attn", "dcnv3"])
def test_lists_of_corners_make_the_sums_of_one_range(monkeypatch, name, dtype):
    case = next(operator(name).cases(np.random.default_rng(0))).astype(dtype)
    before = threads.get_num_threads()
    threads.set_num_threads(1)
    expected = outcome(operator(name), case)
    threads.set_num_threads(64)
    monkeypatch.setattr(threads, "_SMALL", 1)  # or there would be one range
    monkeypatch.setattr(aggregator, "_BUNDLE", 4)
    listed, list_corners = [], aggregator.list_corners
    watched = lambda *given: (listed.append(1), list_corners(*given))  # noqa: E731
    watched.__name__ = "list_corners"
    monkeypatch.setattr(aggregator, "list_corners", watched)
    try:
        for bytes_of_lists, most in ((32 << 20, 0), (32 << 20, 10**6), (27_000, 0)):
            monkeypatch.setattr(aggregator, "_LISTED", bytes_of_lists)
            monkeypatch.setattr(aggregator, "_SPARSE", most)
            listed.clear()
            assert outcome(operator(name), case) == expected
            assert listed
    finally:
        threads.set_num_threads(before)


def outcome(row, case, lying=lambda array: array):
    output = row.call(case)
    found = [output, *row.call_backward(lying(np.cos(output)), case)]
    return [array.tobytes() for array in found if array is not None]


def test_queries_are_surveyed(monkeypatch):
    """Ranges that no query reaches are left alone, and so are other pages of those."""
    asked = []

    def watched(*given):
        asked.append(given[7:9])
        value_gradients(*given)

    value_gradients = aggregator.value_gradients
    monkeypatch.setattr(aggregator, "value_gradients", watched)
    monkeypatch.setattr(aggregator, "_WIDE", 0)
    monkeypatch.setattr(aggregator, "_SPARSE", 0)
    monkeypatch.setattr(aggregator, "_RANGE_BYTES", 1000)
    monkeypatch.setattr(aggregator, "_PAGE", 8)
    value, weights = np.ones((1, 400, 1, 4), np.float32), np.ones((1, 2, 1, 1, 1), np.float32)
    locations = (np.array([[3, 2], [17, 2]], np.float32) + 0.75) / 20  # (x, y)
    given = value, ((20, 20),), locations.reshape(1, 2, 1, 1, 1, 2), weights
    found = cudeform.ms_deform_attn_backward(np.ones((1, 2, 4), np.float32), *given)
    reach, touched = asked[0]
    assert reach.tolist() == [2 * 20 + 3, 3 * 20 + 18 + 1]
    assert np.flatnonzero(touched).tolist() == [5, 7, 8, 9]
    assert np.flatnonzero(found.value[0, :, 0, 0]).tolist() == [43, 44, 57, 58, 63, 64, 77, 78]


MEMORY = """
import numpy, cudeform
{peak}
ones = lambda *shape: numpy.ones(shape, "float32")

def few(side):  # queries, of values of which only what is touched is there
    plain = numpy.zeros((1, side, side, 4), "float32")
    anyhow = numpy.zeros((1, 4, side, side), "float32").transpose(0, 2, 3, 1)
    points = numpy.linspace(0.1, 0.9, 80, dtype="float32").reshape(1, 10, 1, 1, 4, 2)
    weights, grad, sizes = ones(1, 10, 1, 1, 4), ones(1, 10, 4), ((side, side),)
    offset, mask, of_grid = ones(1, 3, 3, 18), ones(1, 3, 3, 9), ones(1, 3, 3, 4)
    for image in plain, anyhow, numpy.broadcast_to(ones(1, 1, 1, 1), plain.shape):
        grid = dict(kernel_size=3, stride=side // 3)
        yield cudeform.dcnv3, (image, offset, mask), grid
        yield cudeform.dcnv3_backward, (of_grid, image, offset, mask), grid
        if image is not anyhow:  # which has no such view
            value = image.reshape(1, side**2, 1, 4)
            yield cudeform.ms_deform_attn, (value, sizes, points, weights), dict()
            yield cudeform.ms_deform_attn_backward, (grad, value, sizes, points, weights), dict()

def many(side):  # queries, of arrays that are not contiguous
    image, mask = ones(1, 16, side, side).transpose(0, 2, 3, 1), ones(1, side, side, 9)
    offset = numpy.broadcast_to(ones(1, 1, 1, 18), (1, side, side, 18))
    grid = dict(kernel_size=3, padding=1)
    yield cudeform.dcnv3, (image, offset, mask), grid
    yield cudeform.dcnv3_backward, (image, image, offset, mask), grid

def wide(side):  # kernels, of one query
    image, taps, grid = ones(1, side, side, 4), side**2, dict(kernel_size=side)
    yield cudeform.dcnv3, (image, ones(1, 1, 1, 2 * taps), ones(1, 1, 1, taps)), grid
    both = ones(1, 1, 1, -(-3 * taps // 8) * 8)
    yield cudeform.dcnv4_backward, (ones(1, 1, 1, 4), image, both), grid

# Of many the small ones, too, are so large that it is surveyed which values are read
peaks((few, 60, 8000), (many, 540, 900), (wide, 12, 1500))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_bounded_whatever_the_size():
    """In a process of its own: ten points of 64 megapixels, many of any strides, large kernels."""
    said = python(MEMORY.format(peak=PEAK))
    found = [line.split()[1:] for line in said.splitlines()]
    assert len(found) == 14, said
    assert all(int(taken) - int(results) < 64e6 for taken, results in found), said


@pytest.mark.parametrize("name", ["ms_deform_attn", "dcnv3", "dcnv4"])
def test_threads_that_are_even_are_woken_once_for_whole_slices(name):
    """With equal bytes, also where slices do not divide evenly and each pass is shared."""
    work = Attention(1, 400) if name == "ms_deform_attn" else Aggregation(name, 1, 128, 20, 20)
    arrays = work.arrays()
    for backward, passes in ((False, 1), (True, 2)):
        seen = {}
        for count in (1, 2, 3, 4):
            with runs_with(count) as found:
                results = work.call(arrays, backward)()
            seen[count] = [array.tobytes() for array in results]
            names = [run.name for run in found if not run.name.startswith("pack")]
            if count in (2, 4):
                assert names == ["task"]
                assert found[0].tasks == 8
            else:
                assert len(set(names)) == passes
        assert seen[1] == seen[2] == seen[3] == seen[4]


def test_zeros_are_written_behind_the_last_point_of_offsets_and_masks(monkeypatch):
    work = Aggregation("dcnv4", 1, 32, 7, 7)
    arrays = work.arrays()
    before, empty = work.call(arrays, backward=True)(), np.empty

    def full(*given, **named):
        array = empty(*given, **named)
        array.fill(1)
        return array

    monkeypatch.setattr(np, "empty", full)
    after = work.call(arrays, backward=True)()
    assert [array.tobytes() for array in before] == [array.tobytes() for array in after]
