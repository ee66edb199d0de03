"""The samplers: with `axes`, where regions are sampled, the only bilinear code on the CPU.

A tile is some pixels of the output in a row. `locate` computes the geometry of its sampling points
once, whatever the number of channels; `blend`, `measure` and `spread` then go through the points
with vectors along the channels of one slice, which lie side by side in memory.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cudeform.cpu.language.compiler import inlined, inner
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
    total,
    zeros,
)
from cudeform.plans.points import Points

__all__ = [
    "ON_PIXEL",
    "PLANE",
    "Grid",
    "Image",
    "blend",
    "blended",
    "blended_some",
    "corners",
    "grid_of",
    "locate",
    "measure",
    "point_arrays",
    "spread",
    "spread_between",
    "weights_of",
]

# The state of a point: which rows and columns of its four corners are in the image, along which
# axes the derivative is not zero by rule. 0 is a point that reads nothing.
TOP, BOTTOM, LEFT, RIGHT, ALONG_Y, ALONG_X = 1, 2, 4, 8, 16, 32
PLANE = 128  # points of a tap in a tile, at most
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

    Tap k of pixel p of the tile is point 2*k*PLANE + p. Its seven numbers stand PLANE apart, from
    k*7*PLANE + p on: at distances that are known when the kernel is compiled, LLVM sees that
    writing one leaves the others alone, and makes vectors of points.
    """
    # of the first corner that is in the image; before, row and column of the point without offset
    pixel = empty(taps * 2 * PLANE, np.int64)
    state = empty(taps * 2 * PLANE, np.uint8)
    # ly, lx, mask; weights of the corners, times the mask
    numbers = empty(taps * 7 * PLANE, like.dtype)
    return pixel, state, numbers


@inner
def locate(grid, offset, mask, place, group, points):
    """The geometry of a tile's points; the tile is `place` = (image, first pixel, pixels)."""
    image, first, count = place
    pixel, state, numbers = points
    for k in range(grid.taps):
        rows, states = pixel[2 * k * PLANE :], state[2 * k * PLANE :]
        ys = numbers[k * 7 * PLANE :]
        xs, ms = ys[PLANE:], ys[2 * PLANE :]
        _start_coordinates(grid, first, count, k, rows, rows[PLANE:])
        ys[:count] = 0
        xs[:count] = 0
        channel = group * grid.taps + k
        if grid.deformable:
            at = image * grid.offset_image + first * grid.offset_pixel
            at += 2 * channel * grid.offset_channel
            _add(offset[at:], grid.offset_pixel, ys, count)
            _add(offset[at + grid.offset_channel :], grid.offset_pixel, xs, count)
        ms[:count] = 0 if grid.modulated else 1
        if grid.modulated:
            at = image * grid.mask_image + first * grid.mask_pixel + channel * grid.mask_channel
            _add(mask[at:], grid.mask_pixel, ms, count)
        own = rows, states, ys
        if grid.clamp:
            _resolve_clamp(grid, own, count)
        else:
            _resolve_zeros(grid, own, count)
        if not grid.deformable:
            for p in range(count):
                if states[p]:
                    states[p] = ON_PIXEL
                    ys[3 * PLANE + p] = ms[p]


@inlined
def _start_coordinates(grid, first, count, k, ys, xs):
    """Where tap k would read without an offset: whole numbers, which do not lose its fraction."""
    origin_y = grid.origin_y + k // grid.kernel_width * grid.dilation_y
    origin_x = grid.origin_x + k % grid.kernel_width * grid.dilation_x
    p = 0
    while p < count:  # a row, or what of it is in the tile
        row = (first + p) // grid.out_width
        column = first + p - row * grid.out_width
        pixels = min(grid.out_width - column, count - p)
        ys[p : p + pixels] = row * grid.stride_y + origin_y
        x = xs[p:]
        for i in range(pixels):
            x[i] = (column + i) * grid.stride_x + origin_x
        p += pixels


@inlined
def _add(source, step, target, count):
    if step == 1:
        for p in range(count):
            target[p] += source[p]
    else:
        for p in range(count):
            target[p] += source[p * step]


def _resolver(border):
    """From coordinates to corners, by the rule of `border`: the points of one tap.

    A coordinate is a whole number and an offset. Only the offset is split into a whole number and
    a fraction, so that no bit of it is lost where the image is large.
    Without a branch, and with indices that cannot be negative: so LLVM makes vectors of points.
    """
    clamp = border == "clamp"
    free = not clamp

    @inner
    def resolve(grid, points, count):
        pixel, state, numbers = points
        real = numbers.dtype.type
        zero, half, one = real(0), real(0.5), real(1)
        beyond = real(_BEYOND)
        for p in range(count):
            y, x = pixel[p], pixel[PLANE + p]
            ly, lx, m = numbers[p], numbers[PLANE + p], numbers[2 * PLANE + p]
            near = (abs(ly) < beyond) & (abs(lx) < beyond)  # NaN fails every comparison
            ly, lx = select(near, ly, zero), select(near, lx, zero)
            below, before = np.floor(ly), np.floor(lx)
            ly, lx = ly - below, lx - before
            y, x = y + np.int64(below), x + np.int64(before)
            inside = near & (y < grid.height) & (x < grid.width)
            if clamp:
                inside &= (y >= 0) & (x >= 0)
            else:
                inside &= (y >= 0) | ((y == -1) & (ly > zero))
                inside &= (x >= 0) | ((x == -1) & (lx > zero))
            y, x = select(inside, y, 0), select(inside, x, 0)
            down, across = y < grid.height - 1, x < grid.width - 1  # there is another row, column
            top, left = y >= 0, x >= 0
            if clamp:
                ly, lx = select(down, ly, zero), select(across, lx, zero)
            bits = select(top, TOP, 0) | select(down, BOTTOM, 0)
            bits |= select(left, LEFT, 0) | select(across, RIGHT, 0)
            bits |= select(down | free, ALONG_Y, 0) | select(across | free, ALONG_X, 0)
            wt, wb, wl, wr = one - ly, ly, one - lx, lx
            if not clamp:
                # Two halves of the neighbour that a corner outside stands for, see `corners`: with
                # a weight of 0 for that, an infinite pixel would be NaN.
                share_y, share_x = select(top & down, one, half), select(left & across, one, half)
                wt, wb = share_y * select(top, wt, wb), share_y * select(down, wb, wt)
                wl, wr = share_x * select(left, wl, wr), share_x * select(across, wr, wl)
            wt, wb = select(inside, wt, zero), select(inside, wb, zero)
            pixel[p] = select(top, y, 0) * grid.width + select(left, x, 0)
            state[p] = select(inside, bits, 0)
            numbers[p], numbers[PLANE + p] = ly, lx
            numbers[3 * PLANE + p] = m * wt * wl
            numbers[4 * PLANE + p] = m * wt * wr
            numbers[5 * PLANE + p] = m * wb * wl
            numbers[6 * PLANE + p] = m * wb * wr

    return resolve


_resolve_zeros, _resolve_clamp = _resolver("zeros"), _resolver("clamp")


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
    top = splat(like, numbers[n + 3 * PLANE]), splat(like, numbers[n + 4 * PLANE])
    return *top, splat(like, numbers[n + 5 * PLANE]), splat(like, numbers[n + 6 * PLANE])


# What is inlined into a loop with an array may not branch: Numba would count references on the way,
# in calls for which every vector leaves its register.
@inlined
def blended(source, at, weights, c):
    """The vector of a point's channels from c on; `at` and `weights` are those of its corners."""
    value = fma(weights[0], load(source, at[0] + c), zeros(source))
    value = fma(weights[1], load(source, at[1] + c), value)
    value = fma(weights[2], load(source, at[2] + c), value)
    return fma(weights[3], load(source, at[3] + c), value)


@inlined
def blended_some(source, at, weights, c, count):
    """The last `count` of a point's channels, fewer than a vector has lanes."""
    value = fma(weights[0], load_some(source, at[0] + c, count), zeros(source))
    value = fma(weights[1], load_some(source, at[1] + c, count), value)
    value = fma(weights[2], load_some(source, at[2] + c, count), value)
    return fma(weights[3], load_some(source, at[3] + c, count), value)


@inner
def blend(grid, points, count, source, image, target, pitch):
    """Write the sampled values of the tile's points: tap k of pixel p at p*pitch + k*channels."""
    pixel, state, numbers = points
    step = lanes(source)
    tail = image.channels & (step - 1)
    whole = image.channels - tail
    for p in range(count):
        for k in range(grid.taps):
            r, n = 2 * k * PLANE + p, k * 7 * PLANE + p
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
                    store(target, to + c, blended(source, at, weights, c))
                if tail:
                    value = blended_some(source, at, weights, whole, tail)
                    store_some(target, to + whole, value, tail)


@inner
def measure(grid, points, count, source, image, grad, pitch, out, out_at):
    """Write what the slice adds to the gradients of y, x and mask of the tile's points.

    The gradient of the sampled values lies in `grad` as `blend` writes those; `out` takes three
    numbers a point from `out_at` on.
    """
    pixel, state, numbers = points
    step = lanes(source)
    tail = image.channels & (step - 1)
    whole = image.channels - tail
    one, zero = source.dtype.type(1), source.dtype.type(0)
    for p in range(count):
        for k in range(grid.taps):
            r, n = 2 * k * PLANE + p, k * 7 * PLANE + p
            at = p * pitch + k * image.channels
            to = out_at + 3 * (p * grid.taps + k)
            bits = state[r]
            if bits == 0:
                out[to] = out[to + 1] = out[to + 2] = zero
                continue
            v00, v01, v10, v11 = corners(bits, pixel[r], image)
            d00, d01, d10, d11 = zeros(source), zeros(source), zeros(source), zeros(source)
            for c in range(0, whole, step):
                g = load(grad, at + c)
                d00 = fma(g, load(source, v00 + c), d00)
                d01 = fma(g, load(source, v01 + c), d01)
                d10 = fma(g, load(source, v10 + c), d10)
                d11 = fma(g, load(source, v11 + c), d11)
            if tail:
                g = load_some(grad, at + whole, tail)
                d00 = fma(g, load_some(source, v00 + whole, tail), d00)
                d01 = fma(g, load_some(source, v01 + whole, tail), d01)
                d10 = fma(g, load_some(source, v10 + whole, tail), d10)
                d11 = fma(g, load_some(source, v11 + whole, tail), d11)
            t00, t01, t10, t11 = total(d00), total(d01), total(d10), total(d11)
            if not bits & LEFT:
                t00 = t10 = zero
            if not bits & RIGHT:
                t01 = t11 = zero
            if not bits & TOP:
                t00 = t01 = zero
            if not bits & BOTTOM:
                t10 = t11 = zero
            ly, lx, m = numbers[n], numbers[n + PLANE], numbers[n + 2 * PLANE]
            top = (one - lx) * t00 + lx * t01
            bottom = (one - lx) * t10 + lx * t11
            slope = (one - ly) * (t01 - t00) + ly * (t11 - t10)
            out[to] = m * (bottom - top) if bits & ALONG_Y else zero
            out[to + 1] = m * slope if bits & ALONG_X else zero
            out[to + 2] = (one - ly) * top + ly * bottom


@inner
def spread(grid, points, count, grad, pitch, target, image):
    """Add the gradient of the sampled values to that of the pixels they were blended from."""
    pixel, state, numbers = points
    step = lanes(grad)
    tail = image.channels & (step - 1)
    whole = image.channels - tail
    for p in range(count):
        for k in range(grid.taps):
            r, n = 2 * k * PLANE + p, k * 7 * PLANE + p
            at = p * pitch + k * image.channels
            bits = state[r]
            if bits == 0:
                continue
            v00, v01, v10, v11 = corners(bits, pixel[r], image)
            w00, w01, w10, w11 = weights_of(grad, numbers, n)
            for c in range(0, whole, step):
                g = load(grad, at + c)
                store(target, v00 + c, fma(w00, g, load(target, v00 + c)))
                if bits != ON_PIXEL:
                    store(target, v01 + c, fma(w01, g, load(target, v01 + c)))
                    store(target, v10 + c, fma(w10, g, load(target, v10 + c)))
                    store(target, v11 + c, fma(w11, g, load(target, v11 + c)))
            if tail:
                g, c = load_some(grad, at + whole, tail), whole
                store_some(target, v00 + c, fma(w00, g, load_some(target, v00 + c, tail)), tail)
                if bits != ON_PIXEL:
                    store_some(target, v01 + c, fma(w01, g, load_some(target, v01 + c, tail)), tail)
                    store_some(target, v10 + c, fma(w10, g, load_some(target, v10 + c, tail)), tail)
                    store_some(target, v11 + c, fma(w11, g, load_some(target, v11 + c, tail)), tail)


@inner
def spread_between(grid, points, count, grad, pitch, target, image, between):
    """The same, but add to pixels of a range alone: `between` is (the first, the last + 1)."""
    pixel, state, numbers = points
    tail = image.channels & (lanes(grad) - 1)
    whole = image.channels - tail
    first, last = between
    line = grid.width
    for p in range(count):
        for k in range(grid.taps):
            r, n = 2 * k * PLANE + p, k * 7 * PLANE + p
            bits, upper = state[r], pixel[r]
            if bits == 0 or upper >= last or upper + line + 1 < first:
                continue
            v00, v01, v10, v11 = corners(bits, upper, image)
            w00, w01, w10, w11 = weights_of(grad, numbers, n)
            given = p * pitch + k * image.channels, whole, tail
            right = 1 if v01 != v00 else 0
            lower = upper + line if v10 != v00 else upper
            if upper >= first and upper < last:
                _add_to(target, v00, w00, grad, given)
            if bits == ON_PIXEL:
                continue
            if upper + right >= first and upper + right < last:
                _add_to(target, v01, w01, grad, given)
            if lower >= first and lower < last:
                _add_to(target, v10, w10, grad, given)
            if lower + right >= first and lower + right < last:
                _add_to(target, v11, w11, grad, given)


@inlined
def _add_to(target, to, weight, grad, given):
    """Add a gradient times a weight to the channels of a pixel."""
    at, whole, tail = given
    for c in range(0, whole, lanes(grad)):
        store(target, to + c, fma(weight, load(grad, at + c), load(target, to + c)))
    if tail:
        g, c = load_some(grad, at + whole, tail), whole
        store_some(target, to + c, fma(weight, g, load_some(target, to + c, tail)), tail)
