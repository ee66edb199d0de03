"""The samplers: with `axes`, where regions are sampled, the only bilinear code on the CPU.

A tile is some pixels of the output in a row. `locate` computes the geometry of its sampling points
once, whatever the number of channels; `blend` then goes through the points with vectors along the
channels of one slice, which lie side by side in memory.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cudeform.cpu.language.bare import bare, cleared, give_back, lent
from cudeform.cpu.language.compiler import apart, inlined, inner
from cudeform.cpu.language.halves import load_wide_some
from cudeform.cpu.language.simd import (
    fma,
    lanes,
    load,
    load_some,
    select,
    splat,
    store,
    store_some,
    zeros,
)
from cudeform.plans.points import Points

# The state of a point: which rows and columns of its four corners are in the image, along which
# axes the derivative is not zero by rule. 0 is a point that reads nothing.
TOP, BOTTOM, LEFT, RIGHT, ALONG_Y, ALONG_X = 1, 2, 4, 8, 16, 32
PLANE = 128  # points of a tap in a tile, at most
# Planes of a tap: in two of integers, that of the first corner that is in the image, before it row
# and column of the point without offset; in seven of real numbers the distances from the first
# corner, the mask, and the weights of the four corners, times the mask.
ROW, COLUMN = 0, PLANE
LY, LX, _MASK, W00, W01, W10, W11 = (PLANE * i for i in range(7))
PIXELS, NUMBERS = PLANE, 7 * PLANE  # of a tap
_AT_ONCE = 16  # points: a plane is a multiple of these, and they are one of any vector
_BEYOND = 2.0**62  # pixels: farther than any image reaches, and still a whole number of 64 bits
ON_PIXEL = 64  # no offset: the point is the centre of its top left corner


class Grid(NamedTuple):
    """`Points` as integers for kernels."""

    height: int
    width: int
    out_width: int
    pixels: int
    taps: int
    kernel_width: int
    stride_y: int
    stride_x: int
    origin_y: int
    origin_x: int
    dilation_y: int
    dilation_x: int
    clamp: int
    deformable: int  # 0: there is no offset
    offset_image: int  # strides of the offset, in elements
    offset_channel: int
    offset_pixel: int
    modulated: int  # 0: there is no mask
    mask_image: int
    mask_channel: int
    mask_pixel: int


class Image(NamedTuple):
    """Where a slice of the channels of one image lies in a flat array."""

    start: int  # of its first channel at pixel (0, 0)
    pitch: int  # from one pixel to the next
    line: int  # from one row to the next
    channels: int


def grid_of(points: Points, deformable: bool, modulated: bool) -> Grid:
    """What kernels need to know of `points`."""
    taps = points.offset_groups * points.taps
    return Grid(
        points.height,
        points.width,
        points.out_width,
        points.pixels,
        points.taps,
        points.kernel[1],
        *points.stride,
        *points.origin,
        *points.dilation,
        int(points.border == "clamp"),
        int(deformable),
        *points.offset_strides(2 * taps),
        int(modulated),
        *points.offset_strides(taps),
    )


@inlined
def point_memory(like, taps):
    """Room for the geometry of a tile; to be returned.

    Tap k of pixel p of the tile is point k*PIXELS + p, and its numbers are in planes from
    k*NUMBERS + p on: at distances that are known when the kernel is compiled, LLVM sees that
    writing one leaves the others alone, and makes vectors of points.
    """
    pixel, state = lent(taps * PIXELS + 2 * PLANE, np.int64), lent(taps * PIXELS, np.uint8)
    return pixel, state, cleared(taps * NUMBERS, like.dtype)


@inlined
def points_in(memory):
    """The geometry itself, as `locate` takes it."""
    pixel, state, numbers = memory
    return bare(pixel, 0), bare(state, 0), bare(numbers, 0)


@inlined
def return_points(memory):
    """The end of the geometry of a tile."""
    pixel, state, numbers = memory
    give_back(pixel)
    give_back(state)
    give_back(numbers)


@apart
def locate(grid, offset, mask, place, group, points):
    """The geometry of a tile's points; the tile is `place` = (image, first pixel, pixels)."""
    image, first, count = place
    pixel, state, numbers = points
    bases = bare(pixel, grid.taps * PIXELS)
    _find_bases(grid, first, count, bases)
    # What is not given is not read; its number is known, but not when this is compiled.
    planes = 0 if grid.deformable else 2, 2 + grid.modulated
    for k in range(grid.taps):
        own = bare(numbers, k * NUMBERS)
        channel = group * grid.taps + k
        for plane in range(planes[0], planes[1]):
            if plane < 2:
                at = image * grid.offset_image + first * grid.offset_pixel
                at += (2 * channel + plane) * grid.offset_channel
                source, step = bare(offset, at), grid.offset_pixel
            else:
                at = image * grid.mask_image + first * grid.mask_pixel
                source, step = bare(mask, at + channel * grid.mask_channel), grid.mask_pixel
            target = bare(own, LY + plane * PLANE)
            for p in range(count):
                target[p] = source[p * step]
        states = bare(state, k * PIXELS)
        _resolve(grid, k, bases, bare(pixel, k * PIXELS), states, own, count)
        _weigh(grid, states, own, count)


@inlined
def _find_bases(grid, first, count, bases):
    """Where the first tap of pixels would read without an offset, in whole numbers, which do not
    lose its fraction. One after the other: this is done once for all taps.
    """
    row = first // grid.out_width
    column = first - row * grid.out_width
    for p in range(count):
        bases[ROW + p] = row * grid.stride_y + grid.origin_y
        bases[COLUMN + p] = column * grid.stride_x + grid.origin_x
        column += 1
        if column == grid.out_width:
            row, column = row + 1, 0


@inlined
def filled(count):
    """So many points, and of no point what fills the last vector: LLVM writes a loop over all of
    them once, and not a second and a third time for what is left. What is there was 0 at first, as
    numbers that are too small for arithmetic may take long.
    """
    return (count + _AT_ONCE - 1) & -_AT_ONCE


@inlined
def weights_along(before, after, fraction, one):
    """The weights of two pixels along an axis, and whether each is in the image; one outside stands
    for its neighbour.

    Each has a half of that one's weight then: with a weight of 0, an infinite pixel would be NaN.
    """
    share = select(before & after, one, type(one)(0.5))
    low, high = one - fraction, fraction
    return share * select(before, low, high), share * select(after, high, low)


@apart
def _resolve(grid, k, bases, pixel, state, numbers, count):
    """From coordinates to corners, by the rule of the border: the points of one tap.

    A coordinate is a whole number and an offset. Only the offset is split into a whole number and
    a fraction, so that no bit of it is lost where the image is large.
    Without a branch, and with indices that cannot be negative: so LLVM makes vectors of points.
    """
    real = numbers.dtype.type
    zero, beyond = real(0), real(_BEYOND)
    loose, moves = grid.clamp == 0, grid.deformable != 0
    down = k // grid.kernel_width * grid.dilation_y
    across = k % grid.kernel_width * grid.dilation_x
    for p in range(filled(count)):
        ly, lx = numbers[LY + p], numbers[LX + p]
        ly, lx = select(moves, ly, zero), select(moves, lx, zero)
        near = (abs(ly) < beyond) & (abs(lx) < beyond)  # NaN fails every comparison
        ly, lx = select(near, ly, zero), select(near, lx, zero)
        below, before = np.floor(ly), np.floor(lx)
        ly, lx = ly - below, lx - before
        y = bases[ROW + p] + down + np.int64(below)
        x = bases[COLUMN + p] + across + np.int64(before)
        inside = near & (y < grid.height) & (x < grid.width)
        inside &= (y >= 0) | ((y == -1) & (ly > zero) & loose)
        inside &= (x >= 0) | ((x == -1) & (lx > zero) & loose)
        y, x = select(inside, y, 0), select(inside, x, 0)
        lower, beside = y < grid.height - 1, x < grid.width - 1  # there is another row, column
        along_y, along_x = lower | loose, beside | loose
        top, left = y >= 0, x >= 0
        bits = select(top, TOP, 0) | select(lower, BOTTOM, 0)
        bits |= select(left, LEFT, 0) | select(beside, RIGHT, 0)
        bits |= select(along_y, ALONG_Y, 0) | select(along_x, ALONG_X, 0)
        pixel[p] = select(top, y, 0) * grid.width + select(left, x, 0)
        state[p] = select(inside, select(moves, bits, ON_PIXEL), 0)
        numbers[LY + p] = select(along_y, ly, zero)
        numbers[LX + p] = select(along_x, lx, zero)


@apart
def _weigh(grid, state, numbers, count):
    """The weights of the corners of the points of one tap, times the mask."""
    zero, one = numbers.dtype.type(0), numbers.dtype.type(1)
    clamp, masked = grid.clamp != 0, grid.modulated != 0
    for p in range(filled(count)):
        bits = state[p]
        m = select(masked, numbers[_MASK + p], one)
        wt, wb = weights_along(bits & TOP != 0, (bits & BOTTOM != 0) | clamp, numbers[LY + p], one)
        wl, wr = weights_along(bits & LEFT != 0, (bits & RIGHT != 0) | clamp, numbers[LX + p], one)
        wt, wb = select(bits != 0, wt, zero), select(bits != 0, wb, zero)
        numbers[W00 + p] = m * select(bits == ON_PIXEL, one, wt * wl)
        numbers[W01 + p] = m * wt * wr
        numbers[W10 + p], numbers[W11 + p] = m * wb * wl, m * wb * wr


@inlined
def corners(bits, pixel, image):
    """Where the four corners lie; one outside the image is where its neighbour in it is."""
    right = image.pitch if bits & (LEFT | RIGHT) == LEFT | RIGHT else 0
    down = image.line if bits & (TOP | BOTTOM) == TOP | BOTTOM else 0
    v00 = image.start + pixel * image.pitch
    return v00, v00 + right, v00 + down, v00 + down + right


@inlined
def weights_of(like, numbers, n):
    """The weights of the four corners in all lanes."""
    top = splat(like, numbers[n + W00]), splat(like, numbers[n + W01])
    return *top, splat(like, numbers[n + W10]), splat(like, numbers[n + W11])


# What is inlined into a loop with an array may not branch: Numba would count references on the way,
# in calls for which every vector leaves its register.
@inlined
def load_corners(source, at, c, count):
    """Vectors of a point's corners, of `count` channels from c on."""
    return (
        load_wide_some(source, at[0] + c, count),
        load_wide_some(source, at[1] + c, count),
        load_wide_some(source, at[2] + c, count),
        load_wide_some(source, at[3] + c, count),
    )


@inlined
def add_dots(g, values, sums):
    """Add the products of a gradient with each corner."""
    top = fma(g, values[0], sums[0]), fma(g, values[1], sums[1])
    return *top, fma(g, values[2], sums[2]), fma(g, values[3], sums[3])


@inlined
def mixed(source, weights, values):
    """The vectors of a point's corners, blended."""
    value = fma(weights[0], values[0], zeros(source))
    value = fma(weights[1], values[1], value)
    value = fma(weights[2], values[2], value)
    return fma(weights[3], values[3], value)


@inlined
def blended(source, at, weights, c, count):
    """The vector of `count` channels of a point from c on; `at` and `weights` are those of its
    corners.
    """
    return mixed(source, weights, load_corners(source, at, c, count))


@inner
def blend(grid, points, count, source, image, target, pitch):
    """Write the sampled values of the tile's points: tap k of pixel p at p*pitch + k*channels."""
    pixel, state, numbers = points
    step = lanes(source)
    tail = image.channels & (step - 1)
    whole = image.channels - tail
    for p in range(count):
        for k in range(grid.taps):
            r, n = k * PIXELS + p, k * NUMBERS + p
            to = p * pitch + k * image.channels
            bits = state[r]
            at = corners(bits, pixel[r], image)
            weights = weights_of(source, numbers, n)
            if bits == 0:
                for c in range(0, whole, step):
                    store(target, to + c, weights[0])
                if tail:
                    store_some(target, to + whole, weights[0], tail)
            elif bits == ON_PIXEL:
                for c in range(0, whole, step):
                    value = fma(weights[0], load(source, at[0] + c), zeros(source))
                    store(target, to + c, value)
                if tail:
                    value = load_some(source, at[0] + whole, tail)
                    store_some(target, to + whole, fma(weights[0], value, zeros(source)), tail)
            else:
                for c in range(0, whole, step):
                    store(target, to + c, blended(source, at, weights, c, step))
                if tail:
                    value = blended(source, at, weights, whole, tail)
                    store_some(target, to + whole, value, tail)
