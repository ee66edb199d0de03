"""The transpose of `sampler.blend`, and its derivatives along y and x.

The gradient of a tile's samples lies where `blend` writes these. `differentiate` does all that the
others do, and in less time, as they read the same corners.
"""

from __future__ import annotations

from cudeform.cpu.language.compiler import inlined, inner
from cudeform.cpu.language.simd import (
    fma,
    lanes,
    load,
    load_some,
    store,
    store_some,
    totals,
    zeros,
)
from cudeform.cpu.sampler import (
    ALONG_X,
    ALONG_Y,
    BOTTOM,
    LEFT,
    LX,
    LY,
    NUMBERS,
    ON_PIXEL,
    PIXELS,
    RIGHT,
    TOP,
    add_dots,
    corners,
    load_corners,
    mixed,
    weights_of,
)


@inlined
def _add_product(target, at, weight, g, count):
    store_some(target, at, fma(weight, g, load_some(target, at, count)), count)


@inlined
def _add_corners(target, at, weights, c, g, count):
    """Add a gradient's share to each corner, one after the other: two may be the same pixel."""
    _add_product(target, at[0] + c, weights[0], g, count)
    _add_product(target, at[1] + c, weights[1], g, count)
    _add_product(target, at[2] + c, weights[2], g, count)
    _add_product(target, at[3] + c, weights[3], g, count)


@inner
def measure(grid, points, count, source, image, grad, pitch, out, out_at):
    """Write what the slice adds to the gradients of y, x and mask of the tile's points; those of y
    and x are still to be multiplied by the mask.

    The gradient of the sampled values lies in `grad` as `blend` writes those; `out` takes three
    numbers a point from `out_at` on.
    """
    pixel, state, numbers = points
    step = lanes(source)
    tail = image.channels & (step - 1)
    whole = image.channels - tail
    for p in range(count):
        for k in range(grid.taps):
            r, n = k * PIXELS + p, k * NUMBERS + p
            to = p * pitch + k * image.channels
            end = out_at + 3 * (p * grid.taps + k)
            bits = state[r]
            if bits == 0:
                out[end] = out[end + 1] = out[end + 2] = 0
                continue
            at = corners(bits, pixel[r], image)
            sums = zeros(source), zeros(source), zeros(source), zeros(source)
            for c in range(0, whole, step):
                values = load_corners(source, at, c, step)
                sums = add_dots(load(grad, to + c), values, sums)
            if tail:
                values = load_corners(source, at, whole, tail)
                sums = add_dots(load_some(grad, to + whole, tail), values, sums)
            _write_slopes(bits, sums, numbers, n, out, end)


@inlined
def _write_slopes(bits, sums, numbers, n, out, to):
    """Write the gradients of y and x, but for the mask, and of the mask of a point from its sums at
    the corners.
    """
    zero, one = numbers.dtype.type(0), numbers.dtype.type(1)
    t00, t01, t10, t11 = totals(*sums)
    if not bits & LEFT:
        t00 = t10 = zero
    if not bits & RIGHT:
        t01 = t11 = zero
    if not bits & TOP:
        t00 = t01 = zero
    if not bits & BOTTOM:
        t10 = t11 = zero
    ly, lx = numbers[n + LY], numbers[n + LX]
    top = (one - lx) * t00 + lx * t01
    bottom = (one - lx) * t10 + lx * t11
    slope = (one - ly) * (t01 - t00) + ly * (t11 - t10)
    out[to] = bottom - top if bits & ALONG_Y else zero
    out[to + 1] = slope if bits & ALONG_X else zero
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
            r, n = k * PIXELS + p, k * NUMBERS + p
            to = p * pitch + k * image.channels
            bits = state[r]
            if bits == 0:
                continue
            at = corners(bits, pixel[r], image)
            weights = weights_of(grad, numbers, n)
            if bits == ON_PIXEL:
                for c in range(0, whole, step):
                    _add_product(target, at[0] + c, weights[0], load(grad, to + c), step)
                if tail:
                    g = load_some(grad, to + whole, tail)
                    _add_product(target, at[0] + whole, weights[0], g, tail)
            else:
                for c in range(0, whole, step):
                    _add_corners(target, at, weights, c, load(grad, to + c), step)
                if tail:
                    g = load_some(grad, to + whole, tail)
                    _add_corners(target, at, weights, whole, g, tail)


@inner
def spread_between(grid, points, count, grad, pitch, target, image, between):
    """As `spread`, but add to pixels of a range alone: `between` is (the first, the last + 1)."""
    pixel, state, numbers = points
    tail = image.channels & (lanes(grad) - 1)
    whole = image.channels - tail
    first, last = between
    line = grid.width
    for p in range(count):
        for k in range(grid.taps):
            r, n = k * PIXELS + p, k * NUMBERS + p
            bits, upper = state[r], pixel[r]
            if bits == 0 or upper >= last or upper + line + 1 < first:
                continue
            at = corners(bits, upper, image)
            weights = weights_of(grad, numbers, n)
            given = p * pitch + k * image.channels, whole, tail
            right = 1 if at[1] != at[0] else 0
            lower = upper + line if at[2] != at[0] else upper
            if upper >= first and upper < last:
                _add_to(target, at[0], weights[0], grad, given)
            if bits == ON_PIXEL:
                continue
            if upper + right >= first and upper + right < last:
                _add_to(target, at[1], weights[1], grad, given)
            if lower >= first and lower < last:
                _add_to(target, at[2], weights[2], grad, given)
            if lower + right >= first and lower + right < last:
                _add_to(target, at[3], weights[3], grad, given)


@inlined
def _add_to(target, to, weight, grad, given):
    """Add a gradient times a weight to the channels of a pixel."""
    at, whole, tail = given
    step = lanes(grad)
    for c in range(0, whole, step):
        _add_product(target, to + c, weight, load(grad, at + c), step)
    if tail:
        _add_product(target, to + whole, weight, load_some(grad, at + whole, tail), tail)


@inner
def differentiate(grid, points, count, source, image, columns, pitch, out, out_at, target):
    """`measure`, `spread` and `blend` at once: they read the same corners.

    Where there are offsets, and channels for whole vectors. In `columns` the sampled values take
    the place of their gradient.
    """
    pixel, state, numbers = points
    step = lanes(source)
    for p in range(count):
        for k in range(grid.taps):
            r, n = k * PIXELS + p, k * NUMBERS + p
            to = p * pitch + k * image.channels
            end = out_at + 3 * (p * grid.taps + k)
            bits = state[r]
            at = corners(bits, pixel[r], image)
            weights = weights_of(source, numbers, n)
            if bits == 0:
                out[end] = out[end + 1] = out[end + 2] = 0
                for c in range(0, image.channels, step):
                    store(columns, to + c, weights[0])
                continue
            sums = zeros(source), zeros(source), zeros(source), zeros(source)
            for c in range(0, image.channels, step):
                g, values = load(columns, to + c), load_corners(source, at, c, step)
                sums = add_dots(g, values, sums)
                _add_corners(target, at, weights, c, g, step)
                store(columns, to + c, mixed(source, weights, values))
            _write_slopes(bits, sums, numbers, n, out, end)
