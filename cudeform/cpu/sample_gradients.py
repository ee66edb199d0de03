"""The transpose of `sampler.blend`, and its derivatives along y and x.

The gradient of a tile's samples lies where `blend` writes these.
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
    ON_PIXEL,
    PLANE,
    RIGHT,
    TOP,
    corners,
    weights_of,
)

__all__ = ["differentiate", "measure", "spread"]


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
    zero = source.dtype.type(0)
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
            _write_slopes(bits, totals(d00, d01, d10, d11), numbers, n, out, to)


@inlined
def _write_slopes(bits, sums, numbers, n, out, to):
    """Write the gradients of y, x and mask of a point from its sums at the corners."""
    t00, t01, t10, t11 = sums
    ly, lx, m = numbers[n], numbers[n + PLANE], numbers[n + 2 * PLANE]
    zero, one = out.dtype.type(0), out.dtype.type(1)
    if not bits & LEFT:
        t00 = t10 = zero
    if not bits & RIGHT:
        t01 = t11 = zero
    if not bits & TOP:
        t00 = t01 = zero
    if not bits & BOTTOM:
        t10 = t11 = zero
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
def differentiate(grid, points, count, source, image, columns, pitch, out, out_at, target):
    """`measure`, `spread` and `blend` at once: they read the same corners.

    Where there are offsets, and channels for whole vectors. In `columns` the sampled values take
    the place of their gradient.
    """
    pixel, state, numbers = points
    step = lanes(source)
    zero = source.dtype.type(0)
    for p in range(count):
        for k in range(grid.taps):
            r, n = 2 * k * PLANE + p, k * 7 * PLANE + p
            at = p * pitch + k * image.channels
            to = out_at + 3 * (p * grid.taps + k)
            bits = state[r]
            v00, v01, v10, v11 = corners(bits, pixel[r], image)
            w00, w01, w10, w11 = weights_of(source, numbers, n)
            if bits == 0:
                out[to] = out[to + 1] = out[to + 2] = zero
                for c in range(0, image.channels, step):
                    store(columns, at + c, w00)
                continue
            d00, d01, d10, d11 = zeros(source), zeros(source), zeros(source), zeros(source)
            for c in range(0, image.channels, step):
                g, s00, s01 = load(columns, at + c), load(source, v00 + c), load(source, v01 + c)
                s10, s11 = load(source, v10 + c), load(source, v11 + c)
                d00, d01 = fma(g, s00, d00), fma(g, s01, d01)
                d10, d11 = fma(g, s10, d10), fma(g, s11, d11)
                store(target, v00 + c, fma(w00, g, load(target, v00 + c)))
                store(target, v01 + c, fma(w01, g, load(target, v01 + c)))
                store(target, v10 + c, fma(w10, g, load(target, v10 + c)))
                store(target, v11 + c, fma(w11, g, load(target, v11 + c)))
                value = fma(w01, s01, fma(w00, s00, zeros(source)))
                store(columns, at + c, fma(w11, s11, fma(w10, s10, value)))
            _write_slopes(bits, totals(d00, d01, d10, d11), numbers, n, out, to)
