"""How a convolution is cut up: slices of channels, tiles of pixels, and the memory they may take.

All of it follows from shapes alone. The number of threads only says who computes which piece, so
that it cannot change a bit of the result.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cudeform.cpu.language import workspace
from cudeform.cpu.language.bare import bare, cleared, give_back
from cudeform.cpu.language.compiler import inlined
from cudeform.cpu.language.matmul import columns_of, rows_of
from cudeform.cpu.language.simd import BLOCK_BYTES, BLOCK_ROWS, block_columns
from cudeform.cpu.language.transpose import add_row, copy_row, transpose
from cudeform.cpu.language.workspace import numbers_of
from cudeform.cpu.sampler import PLANE
from cudeform.plans.convolution import ConvPlan

__all__ = [
    "LANES",
    "PRODUCTS",
    "Blocking",
    "Job",
    "Slices",
    "collect_weight",
    "cut",
    "gradient_blocking",
    "gradient_slice",
    "is_narrow",
    "job_of",
    "numbers_with",
    "pack_columns",
    "pack_rows",
    "padded",
    "rounds",
    "slices_from",
    "tile_pixels",
    "weight_blocks",
    "weight_sums",
    "widest_slice",
]

_COLUMN_BYTES = 256 << 10  # of the columns of a tile: they stay in the L2 cache
_LEAST_PIXELS = BLOCK_ROWS  # of a tile, but of the last
_DEPTH = 640  # about as many rows of a matrix at a time
LANES = 16  # slices are multiples of so many channels where they can be
PRODUCTS = 16  # of matrices: so many multiplications take the time of one of samples
_PARTIAL_BYTES = 12 << 20  # of sums that are still to be added up
_MOST_IMAGES = 64  # at a time, all times about as many
_STAGED = 2.5  # times the workspace, of an image and its gradient: each slice is a task
_ENOUGH_TASKS = 8  # images times slices: fewer are cut into narrower slices,
_NARROW = 32  # but a slice narrower than this spends its time on geometry
_FEW_WEIGHTS = 16, 64  # of a group and a tap, forward and backward: products of more are faster


class Slices(NamedTuple):
    """Slices of the input channels: each lies within one offset group and one weight group.

    With narrow groups it takes many weight groups as a whole, of which only the first is named.
    """

    first: np.ndarray  # (S + 1,): the first channel of each, then the number of channels
    weight_group: np.ndarray  # (S,)
    offset_group: np.ndarray  # (S,)


class Blocking(NamedTuple):
    """How much is worked on at a time, so that the scratch is bounded whatever the batch."""

    images: int
    cuts: list[tuple[int, int]]  # ranges of slices
    pixels: int


class Job(NamedTuple):
    """What the kernels of a convolution need to know besides its `Grid`."""

    taps: int
    in_channels: int  # of one weight group
    out_channels: int  # of one weight group
    groups: int
    channels_last: int
    tile: int  # pixels
    widest: int  # columns of samples of the widest slice
    pitch: int  # from one pixel's columns to the next in a tile
    out_pitch: int  # from one pixel's output channels to the next in a tile
    offset_groups: int
    narrow: int  # 1: sums over taps instead of products, see `narrow`
    slices: int


def is_narrow(plan: ConvPlan, backward: bool) -> bool:
    """Whether sums over taps are faster than products, which take a slice for every group.

    They are where a group has few weights, and where slices can be groups as a whole.
    """
    whole = LANES % plan.in_channels == 0 and plan.points.group_channels % plan.in_channels == 0
    weights = plan.in_channels * plan.out_channels // plan.groups
    return whole and plan.groups > 1 and weights <= _FEW_WEIGHTS[backward]


def cut(plan: ConvPlan, most: int, narrow: bool) -> Slices:
    """Slices of at most `most` channels, as equal as can be."""
    channels = plan.points.channels
    by_offset = plan.points.group_channels
    bounds = set(range(0, channels + 1, by_offset))
    if not narrow:
        bounds |= set(range(0, channels + 1, plan.in_channels))
    first = []
    bounds = sorted(bounds)
    for start, end in zip(bounds, bounds[1:], strict=False):
        count = -(-(end - start) // most)
        step = -(-(end - start) // count)
        step = min(-(-step // LANES) * LANES, most)
        first += range(start, end, step)
    table = np.array([*first, channels], np.int64)
    return Slices(table, table[:-1] // plan.in_channels, table[:-1] // by_offset)


def widest_slice(plan: ConvPlan) -> int:
    """Channels whose columns make a matrix of the depth that suits the caches."""
    return max(_DEPTH // plan.points.taps // LANES * LANES, LANES)


def tile_pixels(plan: ConvPlan, columns: int, itemsize: int, tasks: int = 1) -> int:
    """Pixels of a tile whose columns fit in the L2 cache; the tiles of an image are about equal.

    Smaller ones where there are not so many `tasks`, as long as products are worth their weights.
    """
    most = _COLUMN_BYTES // (columns * itemsize) // BLOCK_ROWS * BLOCK_ROWS
    most = min(max(most, BLOCK_ROWS), PLANE // BLOCK_ROWS * BLOCK_ROWS)
    fewer = plan.points.batch * plan.points.pixels // tasks // BLOCK_ROWS * BLOCK_ROWS
    most = min(most, max(fewer, _LEAST_PIXELS))
    tiles = -(-plan.points.pixels // most)
    pixels = -(-plan.points.pixels // tiles)
    return -(-pixels // BLOCK_ROWS) * BLOCK_ROWS


def padded(columns: int, itemsize: int) -> int:
    """A pitch of whole blocks both ways that does not put all rows in one set of the cache."""
    block = BLOCK_BYTES // itemsize
    pitch = max(-(-columns // BLOCK_ROWS) * BLOCK_ROWS, -(-columns // block) * block)
    pitch = -(-pitch // LANES) * LANES
    return pitch + (block if pitch * itemsize % 1024 == 0 else 0)


def job_of(plan: ConvPlan, slices: Slices, itemsize: int, narrow: bool, tasks: int = 1) -> Job:
    channels = int(np.diff(slices.first).max())
    widest = channels * plan.points.taps
    pitch = padded(widest, itemsize)
    each = plan.out_channels // plan.groups
    return Job(
        plan.points.taps,
        plan.in_channels,
        each,
        plan.groups,
        int(plan.points.channels_last),
        tile_pixels(plan, pitch, itemsize, tasks),
        widest,
        pitch,
        padded(each * channels if narrow else each, itemsize),
        plan.points.offset_groups,
        int(narrow),
        len(slices.weight_group),
    )


def numbers_with(slices: Slices, *kinds: tuple[int, ...]) -> np.ndarray:
    """What kernels read: named tuples of integers, and the slices behind them."""
    return numbers_of(*kinds, *(tuple(array.tolist()) for array in slices))


@inlined
def slices_from(job, numbers, at):
    """The slices, which begin `at` so many numbers."""
    group = at + job.slices + 1
    return Slices(bare(numbers, at), bare(numbers, group), bare(numbers, group + job.slices))


def rounds(slices: Slices, channel_bytes: int, times: float = 1) -> list[tuple[int, int]]:
    """Ranges of slices whose channels take at most `times` the `SCRATCH_BYTES`, but one slice at
    least.
    """
    most = int(times * workspace.SCRATCH_BYTES) // channel_bytes
    result, start = [], 0
    for s in range(1, len(slices.weight_group)):
        if slices.first[s + 1] - slices.first[start] > most:
            result.append((start, s))
            start = s
    return [*result, (start, len(slices.weight_group))]


def gradient_slice(plan: ConvPlan) -> int:
    """As in the forward, but narrower where that leaves few tasks."""
    most = widest_slice(plan)
    while most > _NARROW and plan.points.batch * -(-plan.points.channels // most) < _ENOUGH_TASKS:
        most = max(most // 2 // 16 * 16, _NARROW)
    return most


def gradient_blocking(plan: ConvPlan, job: Job, slices: Slices, itemsize: int) -> Blocking:
    points = plan.points
    count = len(slices.weight_group)
    image_bytes = 2 * points.channels * points.height * points.width * itemsize
    cuts = [(0, count)]
    images = points.batch
    if not points.channels_last:
        cuts = rounds(slices, image_bytes // points.channels, _STAGED)
        images = min(images, workspace.SCRATCH_BYTES // image_bytes)
    pixel_bytes = max(e - b for b, e in cuts) * points.taps * 3 * itemsize
    weight_bytes = weight_sums(job, slices) * itemsize
    images = min(images, _MOST_IMAGES, _PARTIAL_BYTES // (pixel_bytes * points.pixels))
    images = max(min(images, _PARTIAL_BYTES // weight_bytes), 1)
    images = -(-points.batch // -(-points.batch // images))
    pixels = _PARTIAL_BYTES // (images * pixel_bytes) // job.tile * job.tile
    return Blocking(images, cuts, max(min(pixels, points.pixels), job.tile))


def weight_sums(job: Job, slices: Slices) -> int:
    """Elements of what an image adds to the gradient of the weights."""
    if job.narrow:
        return job.out_channels * job.taps * int(slices.first[-1])
    return len(slices.weight_group) * -(-job.widest // BLOCK_ROWS) * BLOCK_ROWS * job.out_pitch


def weight_blocks(job: Job, slices: Slices, itemsize: int) -> int:
    """The blocks of output channels of all slices: tasks of what goes through the weights."""
    return len(slices.weight_group) * -(-job.out_channels * itemsize // BLOCK_BYTES)


@inlined
def _block_of(job, slices, like, task):
    """The slice of such a task, its first output channel, how many there are, and its columns."""
    block = block_columns(like)
    blocks = columns_of(like, job.out_channels) // block
    s, o = task // blocks, task % blocks * block
    return s, o, min(block, job.out_channels - o), slices.first[s + 1] - slices.first[s]


@inlined
def pack_columns(job, slices, weight, packed, blocks):
    """The weights as right-hand sides of ``columns @ weights``.

    Each of the blocks is a panel of as many output channels as a block has columns. A panel
    has a row for every column of samples: tap k of channel c is row k*channels + c.
    """
    block = block_columns(packed)
    size = job.widest * columns_of(packed, job.out_channels)
    memory = cleared(job.widest * block if blocks[0] < blocks[1] else 0, packed.dtype)
    panel = bare(memory, 0)
    for task in range(blocks[0], blocks[1]):
        s, o, across, channels = _block_of(job, slices, packed, task)
        _gather_weight(job, slices, weight, s, o, across, channels, panel)
        at = s * size + o * job.taps * channels
        for k in range(job.taps):
            for c in range(channels):
                copy_row(panel, (c * job.taps + k) * block, packed, at, block)
                at += block
    give_back(memory)


@inlined
def _gather_weight(job, slices, weight, s, o, across, channels, panel):
    """The weights of a block of output channels side by side: tap k of channel c in row
    c*taps + k.
    """
    start, row = _weight_at(job, slices, s, o), job.in_channels * job.taps
    transpose(weight, start, row, across, job.taps * channels, panel, 0, block_columns(panel))


@inlined
def _weight_at(job, slices, s, o):
    """Where the weights of slice s for output channel o of its group begin."""
    group = slices.weight_group[s]
    row = (group * job.out_channels + o) * job.in_channels
    return (row + slices.first[s] - group * job.in_channels) * job.taps


@inlined
def pack_rows(job, slices, weight, packed, blocks):
    """The weights as right-hand sides of ``grad_output @ weights``.

    Each of the blocks is so many rows of the panels of a slice. A panel has as many columns
    of samples, in order of tap and channel, as a block has columns, and a row for every output
    channel.
    """
    block = block_columns(packed)
    memory = cleared(job.widest * block if blocks[0] < blocks[1] else 0, packed.dtype)
    panel = bare(memory, 0)
    for task in range(blocks[0], blocks[1]):
        s, o, across, channels = _block_of(job, slices, packed, task)
        _gather_weight(job, slices, weight, s, o, across, channels, panel)
        start = s * job.out_channels * job.pitch + o * block
        for k in range(job.taps):
            c = 0
            while c < channels:
                first = k * channels + c
                lane = first % block
                count = min(block - lane, channels - c)
                at = (c * job.taps + k) * block
                to = start + (first - lane) * job.out_channels + lane
                transpose(panel, at, job.taps * block, count, across, packed, to, block)
                c += count
        depth = job.taps * channels
        for column in range(depth, columns_of(packed, depth)):
            lane = column % block
            to = start + (column - lane) * job.out_channels + lane
            for row in range(across):
                packed[to + row * block] = 0
    give_back(memory)


@inlined
def collect_weight(job, slices, sums, images, grad_weight, blocks):
    """Add up the images' shares in the gradient of the weights of some blocks, in their order.

    `sums` is (images, slices, columns of samples, output channels), with the last two padded.
    """
    block = block_columns(sums)
    rows = rows_of(sums, job.widest)
    size = job.slices * rows * job.out_pitch  # of an image
    memory = cleared(job.widest * block if blocks[0] < blocks[1] else 0, sums.dtype)
    panel = bare(memory, 0)
    for task in range(blocks[0], blocks[1]):
        s, o, across, channels = _block_of(job, slices, sums, task)
        for k in range(job.taps):
            for c in range(channels):
                at = (s * rows + k * channels + c) * job.out_pitch + o
                to = (c * job.taps + k) * block
                copy_row(sums, at, panel, to, block)
                for image in range(1, images):
                    add_row(sums, at + image * size, panel, to, block)
        to = _weight_at(job, slices, s, o)
        depth = job.taps * channels
        transpose(panel, 0, block, depth, across, grad_weight, to, job.in_channels * job.taps)
    give_back(memory)
