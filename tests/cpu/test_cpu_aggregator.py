"""How sums of samples at located points, and their gradients, are cut into tasks."""

import numpy as np
import pytest

from cudeform import threads
from cudeform.cpu import aggregator
from cudeform.cpu.queries import Extent

# Height, width and first pixel: of two, with pixels between them that no point reads
LEVELS = np.array([[64, 64, 0], [8, 8, 5000]]).T
PIXELS = 5064


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
    extent = Extent(PIXELS, heads, 32, 300, 2, 0, 0, 4 * heads, 4, 2 * heads, 2)
    arrays = [np.zeros(300 * heads * n, np.float32) for n in (4, 2)]
    call = aggregator.Aggregator(1, extent, LEVELS.ravel(), np.zeros(1, np.float32), *arrays)
    tasks = []
    monkeypatch.setattr(aggregator, "value_gradients", lambda *given: None)
    monkeypatch.setattr(threads, "share", lambda task, number, work: tasks.append(number))
    monkeypatch.setattr(threads, "get_num_threads", lambda: count)
    call.spread(np.zeros(300 * heads * 32, np.float32), np.zeros(PIXELS * heads * 32, np.float32))
    assert least <= tasks[0] <= max(2 * count, heads)


@pytest.mark.parametrize(
    ("side", "count", "parts"), [(14, 1, 1), (14, 2, 1), (130, 1, 16), (130, 2, 8), (90, 64, 1)]
)
def test_copies_that_a_cache_holds_are_worked_on_together(side, count, parts, monkeypatch):
    """There is a wait at the end of a part, which takes longer than a small one."""
    extent = Extent(side**2, 16, 16, side**2, 9, 0, 0, 18 * 16, 18, 9 * 16, 9)
    levels = np.repeat([side, side, 0], 9)
    given = np.zeros(1, np.float32), np.zeros(1, np.float32), np.zeros(1, np.float32)
    monkeypatch.setattr(threads, "get_num_threads", lambda: count)
    found = list(aggregator.Aggregator(1, extent, levels, *given)._parts())
    assert len(found) == parts
    assert [part.first for part in found] == [0, *(part.last for part in found[:-1])]
    assert found[-1].last == 16
