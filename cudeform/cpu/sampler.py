"""The samplers: with `axes`, where regions are sampled, the only bilinear code on the CPU.

A tile is some pixels of the output in a row. `locate` computes the geometry of its sampling points
once, whatever the number of channels; `blend` then goes through the points with vectors along the
channels of one slice, which lie side by side in memory.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cudeform.cpu.language.bare import bare, give_back, lent
from cudeform.cpu.language.compiler import inlined, inner
from cudeform.cpu.language.halves import element, load_wide_some
from cudeform.cpu.language.scratch import empty
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

__all__ = [
    "ALONG_X",
    "ALONG_Y",
    "BOTTOM",
    "LEFT",
    "LX",
    "LY",
    "MASK",
    "NUMBERS",
    "ON_PIXEL",
    "PIXELS",
    "PLANE",
    "RIGHT",
    "TOP",
    "Grid",
    "Image",
    "add_dots",
    "blend",
    "blended",
    "corners",
    "grid_of",
    "load_corners",
    "locate",
    "mixed",
    "point_arrays",
    "point_memory",
    "points_in",
    "return_points",
    "weights_along",
    "weights_of",
]

# The state of a point: which rows and columns of its four corners are in the image, along which
# axes the derivative is not zero by rule. 0 is a point that reads nothing.
TOP, BOTTOM, LEFT, RIGHT, ALONG_Y, ALONG_X = 1, 2, 4, 8, 16, 32
PLANE = 128  # points of a tap in a tile, at most
# Planes of a tap: in two of integers, that of the first corner that is in the image, before it row
# and column of the point without offset; in seven of real numbers the distances from the first
# corner, the mask, and the weights of the four corners, times the mask.
ROW, COLUMN = 0, PLANE
LY, LX, MASK, W00, W01, W10, W11 = (PLANE * i for i in range(7))
PIXELS, NUMBERS = 2 * PLANE, 7 * PLANE  # of a tap
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
def point_arrays(like, taps):
    """Arrays for the geometry of a tile, in the order in which `locate` takes them.

    Tap k of pixel p of the tile is point k*PIXELS + p, and its numbers are in planes from
    k*NUMBERS + p on: at distances that are known when the kernel is compiled, LLVM sees that
    writing one leaves the others alone, and makes vectors of points.
    """
    pixel, state = empty(taps * PIXELS, np.int64), empty(taps * PIXELS, np.uint8)
    return pixel, state, empty(taps * NUMBERS, like.dtype)


@inlined
def point_memory(like, taps):
    """Room for the geometry of a tile; to be returned.

    Tap k of pixel p of the tile is point k*PIXELS + p, and its numbers are in planes from
    k*NUMBERS + p on: at distances that are known when the kernel is compiled, LLVM sees that
    writing one leaves the others alone, and makes vectors of points.
    """
    pixel, state = lent(taps * PIXELS, np.int64), lent(taps * PIXELS, np.uint8)
    return pixel, state, lent(taps * NUMBERS, like.dtype)


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


@inner
def locate(grid, offset, mask, place, group, points):
    """The geometry of a tile's points; the tile is `place` = (image, first pixel, pixels)."""
    image, first, count = place
    pixel, state, numbers = points
    for k in range(grid.taps):
        rows, states = bare(pixel, k * PIXELS), bare(state, k * PIXELS)
        own = bare(numbers, k * NUMBERS)
        _start_coordinates(grid, first, count, k, rows)
        share = 0 if grid.modulated else 1
        for p in range(count):
            own[LY + p], own[LX + p], own[MASK + p] = 0, 0, share
        channel = group * grid.taps + k
        if grid.deformable:
            at = image * grid.offset_image + first * grid.offset_pixel
            at += 2 * channel * grid.offset_channel
            for axis in range(2):
                start = at + axis * grid.offset_channel
                _add(offset, start, grid.offset_pixel, own, LY + axis * (LX - LY), count)
        if grid.modulated:
            at = image * grid.mask_image + first * grid.mask_pixel + channel * grid.mask_channel
            _add(mask, at, grid.mask_pixel, own, MASK, count)
        _resolve(grid, rows, states, own, count)
        if not grid.deformable:
            for p in range(count):
                if states[p]:
                    states[p] = ON_PIXEL
                    own[W00 + p] = own[MASK + p]


@inlined
def _start_coordinates(grid, first, count, k, rows):
    """Where tap k would read without an offset: whole numbers, which do not lose its fraction."""
    origin_y = grid.origin_y + k // grid.kernel_width * grid.dilation_y
    origin_x = grid.origin_x + k % grid.kernel_width * grid.dilation_x
    p = 0
    while p < count:  # a row, or what of it is in the tile
        row = (first + p) // grid.out_width
        column = first + p - row * grid.out_width
        pixels = min(grid.out_width - column, count - p)
        y, x = bare(rows, p), bare(rows, COLUMN + p)
        for i in range(pixels):
            y[i] = row * grid.stride_y + origin_y
            x[i] = (column + i) * grid.stride_x + origin_x
        p += pixels


@inlined
def _add(source, at, step, target, to, count):
    if step == 1:
        for p in range(count):
            target[to + p] += element(source, at + p)
    else:
        for p in range(count):
            target[to + p] += element(source, at + p * step)


@inlined
def weights_along(before, after, fraction, one):
    """The weights of two pixels along an axis, and whether each is in the image; one outside stands
    for its neighbour.

    Each has a half of that one's weight then: with a weight of 0, an infinite pixel would be NaN.
    """
    share = select(before & after, one, type(one)(0.5))
    low, high = one - fraction, fraction
    return share * select(before, low, high), share * select(after, high, low)


@inlined
def _resolve(grid, pixel, state, numbers, count):
    """From coordinates to corners, by the rule of the border: the points of one tap.

    A coordinate is a whole number and an offset. Only the offset is split into a whole number and
    a fraction, so that no bit of it is lost where the image is large.
    Without a branch, and with indices that cannot be negative: so LLVM makes vectors of points.
    """
    real = numbers.dtype.type
    zero, one = real(0), real(1)
    beyond = real(_BEYOND)
    clamp, loose = grid.clamp != 0, grid.clamp == 0
    for p in range(count):
        y, x = pixel[ROW + p], pixel[COLUMN + p]
        ly, lx, m = numbers[LY + p], numbers[LX + p], numbers[MASK + p]
        near = (abs(ly) < beyond) & (abs(lx) < beyond)  # NaN fails every comparison
        ly, lx = select(near, ly, zero), select(near, lx, zero)
        below, before = np.floor(ly), np.floor(lx)
        ly, lx = ly - below, lx - before
        y, x = y + np.int64(below), x + np.int64(before)
        inside = near & (y < grid.height) & (x < grid.width)
        inside &= (y >= 0) | ((y == -1) & (ly > zero) & loose)
        inside &= (x >= 0) | ((x == -1) & (lx > zero) & loose)
        y, x = select(inside, y, 0), select(inside, x, 0)
        down, across = y < grid.height - 1, x < grid.width - 1  # there is another row, column
        along_y, along_x = down | loose, across | loose
        ly, lx = select(along_y, ly, zero), select(along_x, lx, zero)
        top, left = y >= 0, x >= 0
        bits = select(top, TOP, 0) | select(down, BOTTOM, 0)
        bits |= select(left, LEFT, 0) | select(across, RIGHT, 0)
        bits |= select(along_y, ALONG_Y, 0) | select(along_x, ALONG_X, 0)
        wt, wb = weights_along(top, down | clamp, ly, one)
        wl, wr = weights_along(left, across | clamp, lx, one)
        wt, wb = select(inside, wt, zero), select(inside, wb, zero)
        pixel[p] = select(top, y, 0) * grid.width + select(left, x, 0)
        state[p] = select(inside, bits, 0)
        numbers[LY + p], numbers[LX + p] = ly, lx
        numbers[W00 + p], numbers[W01 + p] = m * wt * wl, m * wt * wr
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
