"""Passes with enough work are cut into enough tasks for 64 threads."""

import numpy as np
import pytest
from runs import runs_with

import cudeform
from cudeform import threads
from cudeform.bench.workload import Pooling
from cudeform.cpu.language.compiler import inlined, kernel
from cudeform.cpu.regions import gradients
from cudeform.cpu.regions.blocking import group_rows, place_of, unpacked
from cudeform.cpu.regions.patches import bins_of, locate_region, reached, return_tile, tile_of

THREADS = 64
TASKS = 4 * THREADS
# Of a pass: so many tasks, each of which is as much as a call that is shared at all
ENOUGH = TASKS * threads._SMALL


def convolution(count, channels, size, outputs):
    rng = np.random.default_rng(0)
    shapes = dict(input=channels, offset=18, mask=9)
    given = {k: rng.standard_normal((count, c, size, size), "f") for k, c in shapes.items()}
    given["weight"] = rng.standard_normal((outputs, channels, 3, 3), "f")
    grad = np.ones((count, outputs, size, size), "f")
    yield lambda: cudeform.deform_conv2d(**given, padding=1)
    yield lambda: cudeform.deform_conv2d_backward(grad, **given, padding=1)


def samples(count, channels, size, points):
    rng = np.random.default_rng(0)
    image = rng.standard_normal((count, channels, size, size), "f")
    where = rng.random((count, points, 2), "f") * size
    grad = np.ones((count, channels, points), "f")
    yield lambda: cudeform.bilinear_sample(image, where)
    yield lambda: cudeform.bilinear_sample_backward(grad, image, where)


def pooling(name, count, channels, size, boxes):
    rng = np.random.default_rng(0)
    image = rng.standard_normal((count, channels, size, size), "f")
    corners = rng.uniform(0, size / 2, (boxes, 4)) + (0, 0, size / 4, size / 4)
    if boxes == 1:
        corners = np.array([[0, 0, size, size]])
    rows = np.concatenate([rng.integers(0, count, (boxes, 1)), corners], 1).astype("f")
    call, back = getattr(cudeform, name), getattr(cudeform, f"{name}_backward")
    grad = np.ones((boxes, channels, 7, 7), "f")
    yield lambda: call(image, rows, 7)
    yield lambda: back(grad, image, rows, 7)


def attention(queries, sizes, count=1):
    rng = np.random.default_rng(0)
    value = rng.standard_normal((count, sum(h * w for h, w in sizes), 8, 32), "f")
    locations = rng.random((count, queries, 8, len(sizes), 4, 2), "f")
    weights = rng.random((count, queries, 8, len(sizes), 4), "f")
    grad = np.ones((count, queries, 256), "f")
    yield lambda: cudeform.ms_deform_attn(value, sizes, locations, weights)
    yield lambda: cudeform.ms_deform_attn_backward(grad, value, sizes, locations, weights)


LEVELS = ((64, 64), (32, 32), (16, 16), (8, 8))
# By what is large: how a call is made, and the tasks of its passes with enough work, forward and
# backward; None where there is none.
SHAPES = {
    "one image": (convolution, (1, 64, 160, 64), (TASKS, None)),
    "few channels": (convolution, (1, 3, 800, 8), (TASKS, None)),
    "many channels": (convolution, (1, 256, 64, 256), (TASKS, TASKS)),
    # A task has all of an image's channels here, and memory bounds how many images are laid out.
    "tiny images": (convolution, (64, 32, 28, 32), (TASKS, 64)),
    "samples of a large image": (samples, (1, 3, 1000, 400_000), (None, TASKS)),
    # A task has 32 channels of 16 by 16 pixels here: of less, most would be those around it.
    "samples of many channels": (samples, (1, 256, 64, 70_000), (TASKS, TASKS // 2)),
    "samples of tiny images": (samples, (64, 16, 28, 10_000), (None, 64)),  # each is a task
    # A task sums up a part of an image here, eight bins wide, or a channel of one. Twice as many
    # parts were half as much work again, and the largest of them took longer.
    "10,000 boxes": (pooling, ("roi_align", 2, 16, 64, 10_000), (TASKS, 18)),
    "10,000 boxes, their maxima": (pooling, ("roi_pool", 2, 16, 64, 10_000), (TASKS, 32)),
    "one box": (pooling, ("roi_align", 1, 64, 256, 1), (None, None)),
    # A task is a row of bins of some channels, read where they lie, or a part of the image.
    "one huge box": (pooling, ("roi_align", 1, 64, 600, 1), (28, 3 * THREADS)),
    "queries": (attention, (9000, LEVELS), (TASKS, TASKS)),
    # A task has a range of the pixels of a head here, and locates all points that may lie in it:
    # more than two ranges take more time than even tasks save.
    "queries of 16 images": (attention, (600, LEVELS, 16), (TASKS, TASKS)),
    "queries of 8 images": (attention, (1200, LEVELS, 8), (TASKS, TASKS // 2)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_passes_with_enough_work_have_tasks_for_64_threads(shape):
    make, sizes, least = SHAPES[shape]
    for call, tasks in zip(make(*sizes), least, strict=True):
        with runs_with(THREADS) as found:
            call()
        large = [run for run in found if run.work >= ENOUGH]
        assert bool(large) == (tasks is not None), found
        assert all(run.tasks >= tasks for run in large), large


def test_groups_of_slices_have_tasks_for_64_threads_each():
    """The corners of two slices are listed at a time here, with a part of the work."""
    _, backward = attention(9000, LEVELS)
    with runs_with(THREADS) as found:
        backward()
    listed = [run.tasks for run in found if run.name in ("list_corners", "add_corners")]
    assert len(listed) == 8
    assert min(listed) >= TASKS


def test_passes_over_the_weights_have_more_tasks_than_slices():
    _, backward = convolution(4, 256, 14, 256)
    with runs_with(THREADS) as found:
        backward()
    tasks = {run.name: run.tasks for run in found}
    assert tasks["step 0"] >= 16  # packs the weight
    assert tasks["step 3"] >= 16  # adds up its gradient


_group_rows = inlined(group_rows)


@kernel
def _count_bins(given, like, first, last):
    """The bins that some tasks of a gradient go through, each with the channels of a slice."""
    work = unpacked(given)
    tile, _, memory = tile_of(work.job, like)
    count = 0
    for task in range(first, last):
        u, _, gy, _ = place_of(work.part, _group_rows(work.job, work.part), task)
        begin, end = bins_of(work.job.bins_y, work.job.groups_y, gy)
        for t in range(work.regions.first[u], work.regions.first[u + 1]):
            locate_region(work.job, work.regions, t, begin, end, tile)
            top, bottom, left, right = reached(work.job, tile, (begin, end), (0, work.job.bins_x))
            count += (bottom - top) * (right - left)
    return_tile(memory)
    return count * work.job.slice_channels


@pytest.mark.parametrize(
    "most, count, channels, size, boxes", [(1.25, 2, 16, 64, 10_000), (1.31, 1, 64, 256, 1000)]
)
def test_frames_for_64_threads_make_little_more_work(
    monkeypatch, most, count, channels, size, boxes
):
    """A bin is in several frames where it lies across their borders, and only there."""
    found = []

    def spread_slices(given, starts, view, target, grad, split, first, last):
        assert split == 1
        found.append(_count_bins(given, target, first, last))

    monkeypatch.setattr(gradients, "_spread", spread_slices)
    _, backward = pooling("roi_align", count, channels, size, boxes)
    work = []
    for number in (1, THREADS):
        found.clear()
        with runs_with(number):
            backward()
        work.append(sum(found))
    assert work[0] == boxes * 49 * channels
    assert work[1] <= most * work[0]


def test_the_gradient_of_one_huge_box_is_cut_up():
    _, backward = pooling("roi_align", 1, 64, 600, 1)
    with runs_with(THREADS) as found:
        backward()
    assert [run.name for run in found] == ["spread_slices"]  # threads are woken once
    assert found[0].tasks >= 3 * THREADS


@pytest.mark.parametrize("name", ["ps_roi_align", "deform_ps_roi_pool"])
def test_groups_of_few_channels_are_never_cut_into_frames(name):
    """Two threads share the seven rows of groups; many have single groups. Bytes are the same."""
    work = Pooling(name, 1, 490, 50, 76, 1000)
    backward, seen = work.call(work.arrays(), backward=True), []
    for count, tasks in ((1, 1), (2, 7), (3, 14), (THREADS, 49)):
        with runs_with(count) as found:
            seen.append([array.tobytes() for array in backward()])
        assert [run.tasks for run in found if run.name == "spread_slices"] == [tasks]
    assert seen[0] == seen[1] == seen[2] == seen[3]


@pytest.mark.parametrize("name", ["roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"])
@pytest.mark.parametrize("boxless", [False, True])
def test_gradients_need_no_zeros_before(monkeypatch, name, boxless):
    """Images without boxes have them all the same."""
    work = Pooling(name, 2, 49, 40, 40, 20)
    arrays = work.arrays()
    if boxless:
        arrays["boxes"][:, 0] = 1
    backward = work.call(arrays, backward=True)
    before, empty = backward(), np.empty

    def full(*given, **named):
        array = empty(*given, **named)
        array.fill(np.nan if array.dtype.kind == "f" else 1)
        return array

    monkeypatch.setattr(np, "empty", full)
    after = backward()
    assert [array.tobytes() for array in before] == [array.tobytes() for array in after]
    assert not boxless or not before[0][0].any()
