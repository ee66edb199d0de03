"""The samplers: the only bilinear code on the CPU.

A tile is some pixels of the output in a row. `locate` computes the geometry of its sampling points
once, whatever the number of channels; `blend`, `measure` and `spread` then go through the points
with vectors along the channels of one slice, which lie side by side in memory.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cudeform.cpu.compiler import inlined, inner
from cudeform.cpu.simd import fma, lanes, load, splat, store, total, zeros
from cudeform.geometry import Points

__all__ = ["Grid", "Image", "blend", "grid_of", "locate", "measure", "point_arrays", "spread"]

# The state of a point: which rows and columns of its four corners are in the image, along which
# axes the derivative is not zero by rule. 0 is a point that reads nothing.
TOP, BOTTOM, LEFT, RIGHT, ALONG_Y, ALONG_X = 1, 2, 4, 8, 16, 32
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
def point_arrays(like, count):
    """Arrays for the geometry of `count` points, in the order in which `locate` takes them."""
    pixel = np.empty(count, np.int64)  # of the first corner that is in the image
    state = np.empty(count, np.uint8)
    weight = np.empty(4 * count, like.dtype)  # of the corners, times the mask; 0 outside the image
    fraction = np.empty(3 * count, like.dtype)  # ly, lx, mask
    return pixel, state, weight, fraction


@inlined
def _corner_state(grid, y, x):
    """The state of a point: 0 if it reads nothing. NaN fails every comparison."""
    if grid.clamp:
        if not (y >= 0 and y < grid.height and x >= 0 and x < grid.width):
            return 0
        vertical = TOP if y >= grid.height - 1 else TOP | BOTTOM | ALONG_Y
        return vertical | (LEFT if x >= grid.width - 1 else LEFT | RIGHT | ALONG_X)
    if not (y > -1 and y < grid.height and x > -1 and x < grid.width):
        return 0
    vertical = BOTTOM if y < 0 else TOP if y >= grid.height - 1 else TOP | BOTTOM
    horizontal = RIGHT if x < 0 else LEFT if x >= grid.width - 1 else LEFT | RIGHT
    return vertical | horizontal | ALONG_Y | ALONG_X


@inner
def locate(grid, offset, mask, place, group, points):
    """The geometry of a tile's points; the tile is `place` = (image, first pixel, pixels)."""
    image, first, count = place
    pixel, state, weight, fraction = points
    real = weight.dtype.type
    zero, one = real(0), real(1)
    for p in range(count):
        row = (first + p) // grid.out_width
        column = (first + p) - row * grid.out_width
        offset_at = image * grid.offset_image + (first + p) * grid.offset_pixel
        offset_at += 2 * group * grid.taps * grid.offset_channel
        mask_at = image * grid.mask_image + (first + p) * grid.mask_pixel
        mask_at += group * grid.taps * grid.mask_channel
        a, b = 0, -1
        for k in range(grid.taps):
            b += 1
            if b == grid.kernel_width:
                a, b = a + 1, 0
            y = real(row * grid.stride_y + grid.origin_y + a * grid.dilation_y)
            x = real(column * grid.stride_x + grid.origin_x + b * grid.dilation_x)
            if grid.deformable:
                y += offset[offset_at + 2 * k * grid.offset_channel]
                x += offset[offset_at + (2 * k + 1) * grid.offset_channel]
            m = mask[mask_at + k * grid.mask_channel] if grid.modulated else one
            bits = _corner_state(grid, y, x)
            if bits == 0:
                y, x = zero, zero
                m *= zero  # NaN stays NaN, as in 0 times the mask
            y0, x0 = np.floor(y), np.floor(x)
            ly = y - y0 if not grid.clamp or bits & ALONG_Y else zero
            lx = x - x0 if not grid.clamp or bits & ALONG_X else zero
            if bits and not grid.deformable:
                bits = ON_PIXEL
            top = one - ly if bits & TOP or bits & ON_PIXEL else zero
            left = one - lx if bits & LEFT or bits & ON_PIXEL else zero
            bottom = ly if bits & BOTTOM else zero
            right = lx if bits & RIGHT else zero
            r = p * grid.taps + k
            pixel[r] = max(np.int64(y0), 0) * grid.width + max(np.int64(x0), 0)
            state[r] = bits
            weight[4 * r] = m * top * left
            weight[4 * r + 1] = m * top * right
            weight[4 * r + 2] = m * bottom * left
            weight[4 * r + 3] = m * bottom * right
            fraction[3 * r] = ly
            fraction[3 * r + 1] = lx
            fraction[3 * r + 2] = m


@inlined
def _corners(grid, bits, pixel, image):
    """Where the four corners lie; one outside the image is where its neighbour in it is."""
    right = image.pitch if bits & (LEFT | RIGHT) == LEFT | RIGHT else 0
    down = grid.width * image.pitch if bits & (TOP | BOTTOM) == TOP | BOTTOM else 0
    v00 = image.start + pixel * image.pitch
    return v00, v00 + right, v00 + down, v00 + down + right


@inner
def blend(grid, points, count, source, image, target, pitch):
    """Write the sampled values of the tile's points: tap k of pixel p at p*pitch + k*channels."""
    pixel, state, weight, _ = points
    step = lanes(source)
    tail = image.channels & (step - 1)  # LLVM sees that this is too short to vectorise
    whole = image.channels - tail
    for p in range(count):
        for k in range(grid.taps):
            r = p * grid.taps + k
            at = p * pitch + k * image.channels
            bits = state[r]
            v00, v01, v10, v11 = _corners(grid, bits, pixel[r], image)
            s00, s01 = weight[4 * r], weight[4 * r + 1]
            s10, s11 = weight[4 * r + 2], weight[4 * r + 3]
            w00, w01 = splat(source, s00), splat(source, s01)
            w10, w11 = splat(source, s10), splat(source, s11)
            if bits == 0:
                for c in range(0, whole, step):
                    store(target, at + c, w00)
                for c in range(whole, whole + tail):
                    target[at + c] = s00
            elif bits == ON_PIXEL:
                for c in range(0, whole, step):
                    store(target, at + c, fma(w00, load(source, v00 + c), zeros(source)))
                for c in range(whole, whole + tail):
                    target[at + c] = s00 * source[v00 + c]
            else:
                for c in range(0, whole, step):
                    value = fma(w00, load(source, v00 + c), zeros(source))
                    value = fma(w01, load(source, v01 + c), value)
                    value = fma(w10, load(source, v10 + c), value)
                    store(target, at + c, fma(w11, load(source, v11 + c), value))
                for c in range(whole, whole + tail):
                    value = s00 * source[v00 + c] + s01 * source[v01 + c]
                    target[at + c] = value + s10 * source[v10 + c] + s11 * source[v11 + c]


@inner
def measure(grid, points, count, source, image, grad, pitch, out, out_at):
    """Write what the slice adds to the gradients of y, x and mask of the tile's points.

    The gradient of the sampled values lies in `grad` as `blend` writes those; `out` takes three
    numbers a point from `out_at` on.
    """
    pixel, state, _, fraction = points
    step = lanes(source)
    tail = image.channels & (step - 1)
    whole = image.channels - tail
    one, zero = source.dtype.type(1), source.dtype.type(0)
    for p in range(count):
        for k in range(grid.taps):
            r = p * grid.taps + k
            at = p * pitch + k * image.channels
            to = out_at + 3 * r
            bits = state[r]
            if bits == 0:
                out[to] = out[to + 1] = out[to + 2] = zero
                continue
            v00, v01, v10, v11 = _corners(grid, bits, pixel[r], image)
            d00, d01, d10, d11 = zeros(source), zeros(source), zeros(source), zeros(source)
            for c in range(0, whole, step):
                g = load(grad, at + c)
                d00 = fma(g, load(source, v00 + c), d00)
                d01 = fma(g, load(source, v01 + c), d01)
                d10 = fma(g, load(source, v10 + c), d10)
                d11 = fma(g, load(source, v11 + c), d11)
            t00, t01, t10, t11 = total(d00), total(d01), total(d10), total(d11)
            for c in range(whole, whole + tail):
                t00 += grad[at + c] * source[v00 + c]
                t01 += grad[at + c] * source[v01 + c]
                t10 += grad[at + c] * source[v10 + c]
                t11 += grad[at + c] * source[v11 + c]
            if not bits & LEFT:
                t00 = t10 = zero
            if not bits & RIGHT:
                t01 = t11 = zero
            if not bits & TOP:
                t00 = t01 = zero
            if not bits & BOTTOM:
                t10 = t11 = zero
            ly, lx, m = fraction[3 * r], fraction[3 * r + 1], fraction[3 * r + 2]
            top = (one - lx) * t00 + lx * t01
            bottom = (one - lx) * t10 + lx * t11
            slope = (one - ly) * (t01 - t00) + ly * (t11 - t10)
            out[to] = m * (bottom - top) if bits & ALONG_Y else zero
            out[to + 1] = m * slope if bits & ALONG_X else zero
            out[to + 2] = (one - ly) * top + ly * bottom


@inner
def spread(grid, points, count, grad, pitch, target, image):
    """Add the gradient of the sampled values to that of the pixels they were blended from."""
    pixel, state, weight, _ = points
    step = lanes(grad)
    tail = image.channels & (step - 1)
    whole = image.channels - tail
    for p in range(count):
        for k in range(grid.taps):
            r = p * grid.taps + k
            at = p * pitch + k * image.channels
            bits = state[r]
            if bits == 0:
                continue
            v00, v01, v10, v11 = _corners(grid, bits, pixel[r], image)
            s00, s01 = weight[4 * r], weight[4 * r + 1]
            s10, s11 = weight[4 * r + 2], weight[4 * r + 3]
            w00, w01 = splat(grad, s00), splat(grad, s01)
            w10, w11 = splat(grad, s10), splat(grad, s11)
            for c in range(0, whole, step):
                g = load(grad, at + c)
                store(target, v00 + c, fma(w00, g, load(target, v00 + c)))
                if bits != ON_PIXEL:
                    store(target, v01 + c, fma(w01, g, load(target, v01 + c)))
                    store(target, v10 + c, fma(w10, g, load(target, v10 + c)))
                    store(target, v11 + c, fma(w11, g, load(target, v11 + c)))
            for c in range(whole, whole + tail):
                g = grad[at + c]
                target[v00 + c] += s00 * g
                if bits != ON_PIXEL:
                    target[v01 + c] += s01 * g
                    target[v10 + c] += s10 * g
                    target[v11 + c] += s11 * g
