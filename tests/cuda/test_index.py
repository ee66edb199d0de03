"""The width of the index that launches ask for, at the border of what 31 bits count."""

from types import SimpleNamespace

import numpy as np
import pytest

from cudeform.cuda import layout
from cudeform.cuda.chunks import Chunk
from cudeform.cuda.regions.rows import Launcher
from cudeform.cuda.sampler import Block, PointSums, Sampler
from cudeform.cuda.sort import Buckets
from cudeform.plans.points import Points
from cudeform.plans.regions import RoiPlan

SHAPES = {  # (height, width, channels), whose product is 2**31 - 1, 2**31, 2**31 + 1
    "int": (1, 2**31 - 1, 1),
    "long long": (2**15, 2**15, 2),
    "long long, odd": (1, 715827883, 3),
}


def moved(dtype, *shape):
    """An array that is nowhere."""
    return SimpleNamespace(shape=shape, dtype=np.dtype(dtype), data=SimpleNamespace(ptr=0))


def recording():
    """A device that computes nothing, and the width of the index in each launch."""
    widths = []
    launch = lambda unit, *rest: widths.append(dict(unit.defines)["INDEX"])  # noqa: E731
    return SimpleNamespace(launch=launch, empty=lambda shape, dtype: None), widths


@pytest.mark.parametrize("index", SHAPES)
def test_index_of_images_is_wide_enough(index):
    height, width, channels = SHAPES[index]
    block, chunk = Block(0, channels, channels), Chunk(0, 1, 0, 1)
    sums, buckets = PointSums(None, None, None), Buckets(None, None)
    device, widths = recording()
    sampler = Sampler(device, Points(1, channels, height, width, 1, 1), "float16", None)
    sampler.sample(chunk, block, None, None, None, None)
    sampler.add_dots(chunk, block, sums, *[None] * 6)
    sampler.gather(chunk, block, buckets, None, np.empty(0))
    sampler.find_keys(chunk, sums, None, None)
    plan = RoiPlan(1, channels, height, width, 1, (1, 1), 1.0, "unaligned", "grid_centers", 1)
    launcher = Launcher(device, plan, "float16", None)
    launcher.pool(None, np.empty((1, 8)), None, None)
    layout.transpose(device, moved("f2"), moved("f2"), (1, height * channels, width))
    assert set(widths) == {index.split(",")[0]}


@pytest.mark.parametrize("index", SHAPES)
def test_index_of_columns_and_rows_is_wide_enough(index):
    pixels, taps, channels = SHAPES[index]
    pixels, taps = min(pixels, taps), max(pixels, taps)
    device, widths = recording()
    points = Points(1, channels, 1, 1, 1, pixels, kernel=(1, taps))
    sampler = Sampler(device, points, "float16", None)
    # so many taps that their corner dots, four each, would decide: only the columns are asked for
    sampler.point_count = lambda chunk: 1
    block, chunk = Block(0, channels, channels), Chunk(0, 1, 0, pixels)
    sampler.sample(chunk, block, None, None, None, None)
    plan = RoiPlan(1, 4, 1, 1, 1, (1, 1), 1.0, "unaligned", "grid_centers", 1)
    rows = SimpleNamespace(shape=(pixels * taps * channels // 4 + (index != "int"), 8))
    Launcher(device, plan, "float16", None).pool(None, rows, None, None)
    assert set(widths) == {index.split(",")[0]}


@pytest.mark.parametrize("regions", [2**28 - 1, 2**28])
def test_index_of_the_largest_is_wide_enough(regions):
    """Each has a y and an x."""
    device, widths = recording()
    plan = RoiPlan(1, 4, 1, 1, 1, (1, 1), 1.0, "unaligned", "grid_centers", 1, largest=True)
    rows = SimpleNamespace(shape=(regions, 8))
    Launcher(device, plan, "float16", None).pool(None, rows, None, None)
    assert widths == ["int" if regions < 2**28 else "long long"]


@pytest.mark.parametrize("pixels", [2**30 - 1, 2**30])
def test_index_of_offsets_is_wide_enough(pixels):
    device, widths = recording()
    offset = SimpleNamespace(dtype=np.dtype("f2"))
    sampler = Sampler(device, Points(1, 1, 1, 1, 1, pixels), "float16", offset)
    sampler.sample(Chunk(0, 1, 0, 1), Block(0, 1, 1), *[None] * 4)
    assert widths == ["int" if 2 * pixels < 2**31 else "long long"]


@pytest.mark.parametrize("count", [2**29 - 1, 2**29, 2**29 + 1])
def test_index_of_corner_dots_is_wide_enough(count):
    device, widths = recording()
    sampler = Sampler(device, Points(1, 1, 1, 1, 1, count), "float16", None)
    sums, chunk = PointSums(None, None, None), Chunk(0, 1, 0, count)
    sampler.add_dots(chunk, Block(0, 1, 1), sums, *[None] * 6)
    assert widths == ["int" if 4 * count < 2**31 else "long long"]


def test_a_thread_that_fills_counts_beyond_the_end():
    """To its next elements, which need not be there: a step of all threads further."""
    device, widths = recording()
    step = layout.FILL_BLOCKS * layout.THREADS * 8
    for count in (2**31 - 1 - step, 2**31 - step, 2**31 - 1, 2**31):
        layout.fill(device, moved("f4", 1), moved("f2", count))
    assert widths == ["int", "long long", "long long", "long long"]
