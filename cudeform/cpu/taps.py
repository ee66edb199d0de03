"""Sums over taps: each channel of an output pixel is its samples times weights of that channel.

What is located, see `sampler`, is summed up without being written: no matrix, no columns. Weights
are vectors along the channels, one row of them for each tap. A weight that all channels of a point
share needs none of this: like a mask it is part of the weights of the point's corners.
"""

from __future__ import annotations

from cudeform.cpu.language.compiler import inlined, inner
from cudeform.cpu.language.simd import fma, lanes, load, load_some, splat, store, store_some, zeros
from cudeform.cpu.sampler import NUMBERS, ON_PIXEL, PIXELS, blended, corners, weights_of

_AT_ONCE = 4  # vectors of sums in registers


@inner
def sum_taps(grid, points, count, source, image, weights, rows, target, pitch):
    """target[p*pitch + c] += sum over k of weights[at + k*step + c] * sampled value of p, k, c.

    `rows` is (at, step); the taps are added in their order.
    """
    step = lanes(source)
    tail = image.channels & (step - 1)
    whole = image.channels - tail
    blocks = whole - whole % (_AT_ONCE * step)
    for c in range(0, blocks, _AT_ONCE * step):
        _sum_block(grid, points, count, source, image, weights, rows, target, pitch, c)
    for c in range(blocks, whole, step):
        _sum_vector(grid, points, count, source, image, weights, rows, target, pitch, c, step)
    if tail:
        _sum_vector(grid, points, count, source, image, weights, rows, target, pitch, whole, tail)


@inlined
def _sum_block(grid, points, count, source, image, weights, rows, target, pitch, c):
    """Vectors of channels from c on."""
    pixel, state, numbers = points
    step = lanes(source)
    c1, c2, c3 = c + step, c + 2 * step, c + 3 * step
    for p in range(count):
        to = p * pitch
        s0, s1 = load(target, to + c), load(target, to + c1)
        s2, s3 = load(target, to + c2), load(target, to + c3)
        for k in range(grid.taps):
            bits = state[k * PIXELS + p]
            at = corners(bits, pixel[k * PIXELS + p], image)
            w = weights_of(source, numbers, k * NUMBERS + p)
            if bits == 0:
                v0 = v1 = v2 = v3 = w[0]
            elif bits == ON_PIXEL:
                v0 = fma(w[0], load(source, at[0] + c), zeros(source))
                v1 = fma(w[0], load(source, at[0] + c1), zeros(source))
                v2 = fma(w[0], load(source, at[0] + c2), zeros(source))
                v3 = fma(w[0], load(source, at[0] + c3), zeros(source))
            else:
                v0, v1 = blended(source, at, w, c, step), blended(source, at, w, c1, step)
                v2, v3 = blended(source, at, w, c2, step), blended(source, at, w, c3, step)
            row = rows[0] + k * rows[1]
            s0 = fma(load(weights, row + c), v0, s0)
            s1 = fma(load(weights, row + c1), v1, s1)
            s2 = fma(load(weights, row + c2), v2, s2)
            s3 = fma(load(weights, row + c3), v3, s3)
        store(target, to + c, s0)
        store(target, to + c1, s1)
        store(target, to + c2, s2)
        store(target, to + c3, s3)


@inlined
def _sum_vector(grid, points, count, source, image, weights, rows, target, pitch, c, some):
    """One vector of `some` channels from c on."""
    pixel, state, numbers = points
    for p in range(count):
        sums = load_some(target, p * pitch + c, some)
        for k in range(grid.taps):
            bits = state[k * PIXELS + p]
            at = corners(bits, pixel[k * PIXELS + p], image)
            w = weights_of(source, numbers, k * NUMBERS + p)
            value = w[0]
            if bits == ON_PIXEL:
                value = fma(w[0], load_some(source, at[0] + c, some), zeros(source))
            elif bits:
                value = blended(source, at, w, c, some)
            sums = fma(load_some(weights, rows[0] + k * rows[1] + c, some), value, sums)
        store_some(target, p * pitch + c, sums, some)


@inner
def grad_samples(size, grad, layout, weights, rows, target, pitch):
    """The gradient of the sampled values, as `blend` writes those.

    target[p*pitch + k*channels + c] = sum over j of
    weights[at + (j*taps + k)*step + c] * grad[p*grad_pitch + j*channels + c]

    `size` is (pixels, taps, channels, sums), where j counts the sums that the values are part of,
    `rows` is (at, step), and `layout` the pitch of `grad`.
    """
    count, taps, channels, sums = size
    first, pace = rows
    step = lanes(grad)
    tail = channels & (step - 1)
    whole = channels - tail
    for p in range(count):
        for k in range(taps):
            to, row, at = p * pitch + k * channels, first + k * pace, p * layout
            for c in range(0, whole, step):
                value = fma(load(weights, row + c), load(grad, at + c), zeros(grad))
                for j in range(1, sums):
                    weight = load(weights, row + j * taps * pace + c)
                    value = fma(weight, load(grad, at + j * channels + c), value)
                store(target, to + c, value)
            if tail:
                row, at = row + whole, at + whole
                value = load_some(grad, at, tail)
                value = fma(load_some(weights, row, tail), value, zeros(grad))
                for j in range(1, sums):
                    weight = load_some(weights, row + j * taps * pace, tail)
                    value = fma(weight, load_some(grad, at + j * channels, tail), value)
                store_some(target, to + whole, value, tail)


@inner
def grad_weights(size, samples, pitch, grad, layout, target, rows):
    """The gradient of the weights, from the sampled values as `blend` writes them.

    target[at + (j*taps + k)*step + c] += sum over p of
    samples[p*pitch + k*channels + c] * grad[p*grad_pitch + j*channels + c]

    The arguments are those of `grad_samples`, but `size` is (pixels, taps, channels, (from row, to
    row)), where row j*taps + k is that of j and k; the pixels are added in their order.
    """
    count, taps, channels, (begin, end) = size
    first, pace = rows
    step = lanes(grad)
    tail = channels & (step - 1)
    whole = channels - tail
    blocks = whole - whole % (_AT_ONCE * step)
    for row in range(begin, end):
        to = first + row * pace
        at, other = row % taps * channels, row // taps * channels
        for c in range(0, blocks, _AT_ONCE * step):
            s0, s1, s2, s3 = zeros(grad), zeros(grad), zeros(grad), zeros(grad)
            for p in range(count):
                a, b = p * pitch + at + c, p * layout + other + c
                s0 = fma(load(samples, a), load(grad, b), s0)
                s1 = fma(load(samples, a + step), load(grad, b + step), s1)
                s2 = fma(load(samples, a + 2 * step), load(grad, b + 2 * step), s2)
                s3 = fma(load(samples, a + 3 * step), load(grad, b + 3 * step), s3)
            _add(target, to + c, s0, step)
            _add(target, to + c + step, s1, step)
            _add(target, to + c + 2 * step, s2, step)
            _add(target, to + c + 3 * step, s3, step)
        for c in range(blocks, whole, step):
            total = zeros(grad)
            for p in range(count):
                a, b = p * pitch + at + c, p * layout + other + c
                total = fma(load(samples, a), load(grad, b), total)
            _add(target, to + c, total, step)
        if tail:
            total = zeros(grad)
            for p in range(count):
                a, b = p * pitch + at + whole, p * layout + other + whole
                total = fma(load_some(samples, a, tail), load_some(grad, b, tail), total)
            _add(target, to + whole, total, tail)


@inlined
def _add(target, at, value, count):
    one = splat(target, target.dtype.type(1))
    store_some(target, at, fma(one, value, load_some(target, at, count)), count)
