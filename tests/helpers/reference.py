"""Every operator in float64, written as its equation reads; shares no code with the package.

Arrays are NumPy, layout (N, C, H, W), coordinates (y, x) in pixels with centres on integers.
Loops run over images, groups, channels and taps; NumPy runs over the pixels. A backward returns
the gradients of all arguments by name.
"""

import numpy as np
import reference_aggregation
import reference_attention
import reference_roi
from reference_aggregation import *  # noqa: F403
from reference_attention import *  # noqa: F403
from reference_roi import *  # noqa: F403

__all__ = [
    *reference_aggregation.__all__,
    *reference_attention.__all__,
    *reference_roi.__all__,
    "bilinear_sample",
    "bilinear_sample_backward",
    "conv2d",
    "conv2d_backward",
    "deform_conv2d",
    "deform_conv2d_backward",
]


def _neighbours(border, size, at):
    """The two pixels around each coordinate of one axis and how far it is from the first."""
    first = np.floor(at)
    fraction = at - first
    second = first + 1
    if border == "clamp":
        far_edge = first >= size - 1
        fraction = np.where(far_edge, 0, fraction)
        second = np.where(far_edge, first, second)
    return first.astype(int), second.astype(int), fraction


def _corners(border, height, width, y, x):
    """Where to look for S(y, x), as (inside, y0, y1, x0, x1, ly, lx), each of the shape of y."""
    if border == "zeros":
        inside = (-1 < y) & (y < height) & (-1 < x) & (x < width)
    else:
        inside = (0 <= y) & (y < height) & (0 <= x) & (x < width)
    y0, y1, ly = _neighbours(border, height, np.where(inside, y, 0))
    x0, x1, lx = _neighbours(border, width, np.where(inside, x, 0))
    return inside, y0, y1, x0, x1, ly, lx


def _pixel(image, y, x):
    """image[:, y, x], and 0 for a pixel that is not there."""
    _, height, width = image.shape
    there = (0 <= y) & (y < height) & (0 <= x) & (x < width)
    return np.where(there, image[:, np.where(there, y, 0), np.where(there, x, 0)], 0)


def sample(image, y, x, border):
    """S, dS/dy and dS/dx, each (C, ...), of an image (C, H, W) at points y and x of shape (...)."""
    inside, y0, y1, x0, x1, ly, lx = _corners(border, *image.shape[1:], y, x)
    v00, v01 = _pixel(image, y0, x0), _pixel(image, y0, x1)
    v10, v11 = _pixel(image, y1, x0), _pixel(image, y1, x1)
    value = (1 - ly) * ((1 - lx) * v00 + lx * v01) + ly * ((1 - lx) * v10 + lx * v11)
    slope_y = (1 - lx) * (v10 - v00) + lx * (v11 - v01)
    slope_x = (1 - ly) * (v01 - v00) + ly * (v11 - v10)
    return tuple(np.where(inside, array, 0) for array in (value, slope_y, slope_x))


def scatter(grad_image, grad, y, x, border):
    """Add to grad_image (C, H, W) what grad (C, ...) at points y and x of shape (...) gives it."""
    _, height, width = grad_image.shape
    inside, y0, y1, x0, x1, ly, lx = _corners(border, height, width, y, x)
    corners = (
        (y0, x0, (1 - ly) * (1 - lx)),
        (y0, x1, (1 - ly) * lx),
        (y1, x0, ly * (1 - lx)),
        (y1, x1, ly * lx),
    )
    for row, column, share in corners:
        take = inside & (0 <= row) & (row < height) & (0 <= column) & (column < width)
        for channel in range(len(grad_image)):
            received = (share * grad[channel])[take]
            np.add.at(grad_image[channel], (row[take], column[take]), received)


def _pair(value):
    return (value, value) if np.isscalar(value) else tuple(value)


def _pads(padding):
    """((top, bottom), (left, right))"""
    pad_y, pad_x = _pair(padding)
    return _pair(pad_y), _pair(pad_x)


def _out_size(size, kernel, stride, pads, dilation):
    padded = size + pads[0] + pads[1]
    return (padded - dilation * (kernel - 1) - 1) // stride + 1


class _Taps:
    """Every sampling point of a deformable convolution, one group and tap at a time."""

    def __init__(self, input, offset, weight, stride, padding, dilation):
        _, _, self.kh, self.kw = weight.shape
        self.stride, self.dilation = _pair(stride), _pair(dilation)
        self.pads = _pads(padding)
        self.groups = offset.shape[1] // (2 * self.kh * self.kw)
        channels = input.shape[1] // self.groups
        self.channels = [range(t * channels, (t + 1) * channels) for t in range(self.groups)]
        out = [
            _out_size(input.shape[2 + k], (self.kh, self.kw)[k], s, self.pads[k], d)
            for k, (s, d) in enumerate(zip(self.stride, self.dilation, strict=True))
        ]
        assert offset.shape[2:] == tuple(out)
        self.i, self.j = np.indices(out)

    def __iter__(self):
        for t in range(self.groups):
            for a in range(self.kh):
                for b in range(self.kw):
                    yield list(self.channels[t]), (t * self.kh + a) * self.kw + b, a, b

    def points(self, offset, tap, a, b):
        """y and x, each (Ho, Wo), of one tap, given the offset (2*groups*kh*kw, Ho, Wo)."""
        y = self.i * self.stride[0] - self.pads[0][0] + a * self.dilation[0] + offset[2 * tap]
        x = self.j * self.stride[1] - self.pads[1][0] + b * self.dilation[1] + offset[2 * tap + 1]
        return y, x


def _channel_pairs(input, weight):
    """(o, ci, c): output channel, the input channel it reads, that channel's place in weight[o]."""
    out_channels, per_group = weight.shape[:2]
    groups = input.shape[1] // per_group
    for o in range(out_channels):
        for c in range(per_group):
            yield o, (o // (out_channels // groups)) * per_group + c, c


def _modulation(mask, offset):
    """The mask, or ones of its shape."""
    if mask is not None:
        return mask
    return np.ones((offset.shape[0], offset.shape[1] // 2, *offset.shape[2:]))


def _columns(taps, input, offset, mask, border):
    """m * S at every tap: (N, C, kh, kw, Ho, Wo)."""
    batch, channels = input.shape[:2]
    columns = np.zeros((batch, channels, taps.kh, taps.kw, *offset.shape[2:]))
    for n in range(batch):
        for group, tap, a, b in taps:
            value, _, _ = sample(input[n, group], *taps.points(offset[n], tap, a, b), border)
            columns[n, group, a, b] = mask[n, tap] * value
    return columns


def deform_conv2d(
    input, offset, weight, bias=None, stride=1, padding=0, dilation=1, mask=None, border="zeros"
):
    taps = _Taps(input, offset, weight, stride, padding, dilation)
    columns = _columns(taps, input, offset, _modulation(mask, offset), border)
    output = np.zeros((len(input), len(weight), *offset.shape[2:]))
    for o, ci, c in _channel_pairs(input, weight):
        output[:, o] += np.einsum("ab,nabij->nij", weight[o, c], columns[:, ci])
    if bias is not None:
        output += bias[:, None, None]
    return output


def deform_conv2d_backward(
    grad_output, input, offset, weight, stride=1, padding=0, dilation=1, mask=None, border="zeros"
):
    taps = _Taps(input, offset, weight, stride, padding, dilation)
    modulation = _modulation(mask, offset)
    columns = _columns(taps, input, offset, modulation, border)
    grad_columns = np.zeros_like(columns)
    grad_weight = np.zeros(weight.shape)
    for o, ci, c in _channel_pairs(input, weight):
        grad_columns[:, ci] += np.einsum("ab,nij->nabij", weight[o, c], grad_output[:, o])
        grad_weight[o, c] = np.einsum("nij,nabij->ab", grad_output[:, o], columns[:, ci])

    grad_input, grad_offset = np.zeros(input.shape), np.zeros(offset.shape)
    grad_mask = np.zeros(modulation.shape)
    for n in range(len(input)):
        for group, tap, a, b in taps:
            y, x = taps.points(offset[n], tap, a, b)
            value, slope_y, slope_x = sample(input[n, group], y, x, border)
            grad_column = grad_columns[n, group, a, b]
            grad_mask[n, tap] = np.sum(grad_column * value, axis=0)
            grad_sample = modulation[n, tap] * grad_column
            grad_offset[n, 2 * tap] = np.sum(grad_sample * slope_y, axis=0)
            grad_offset[n, 2 * tap + 1] = np.sum(grad_sample * slope_x, axis=0)
            view = grad_input[n, group[0] : group[-1] + 1]
            scatter(view, grad_sample, y, x, border)
    gradients = {"input": grad_input, "offset": grad_offset, "weight": grad_weight}
    gradients["bias"] = grad_output.sum(axis=(0, 2, 3))
    gradients["mask"] = None if mask is None else grad_mask
    return gradients


def _windows(padded, a, b, out, stride, dilation):
    """The view of a padded image (..., H, W) that tap (a, b) of a plain convolution reads."""
    top, left = a * dilation[0], b * dilation[1]
    rows = slice(top, top + (out[0] - 1) * stride[0] + 1, stride[0])
    return padded[..., rows, left : left + (out[1] - 1) * stride[1] + 1 : stride[1]]


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1):
    stride, pads, dilation = _pair(stride), _pads(padding), _pair(dilation)
    kernel = weight.shape[2:]
    out = [
        _out_size(input.shape[2 + k], kernel[k], stride[k], pads[k], dilation[k]) for k in (0, 1)
    ]
    padded = np.pad(input, ((0, 0), (0, 0), *pads))
    output = np.zeros((len(input), len(weight), *out))
    for o, ci, c in _channel_pairs(input, weight):
        for a, b in np.ndindex(*kernel):
            seen = _windows(padded[:, ci], a, b, out, stride, dilation)
            output[:, o] += weight[o, c, a, b] * seen
    if bias is not None:
        output += bias[:, None, None]
    return output


def conv2d_backward(grad_output, input, weight, stride=1, padding=0, dilation=1):
    stride, pads, dilation = _pair(stride), _pads(padding), _pair(dilation)
    out = grad_output.shape[2:]
    padded = np.pad(input, ((0, 0), (0, 0), *pads))
    grad_padded, grad_weight = np.zeros(padded.shape), np.zeros(weight.shape)
    for o, ci, c in _channel_pairs(input, weight):
        for a, b in np.ndindex(*weight.shape[2:]):
            seen = _windows(padded[:, ci], a, b, out, stride, dilation)
            grad_weight[o, c, a, b] = np.sum(grad_output[:, o] * seen)
            received = _windows(grad_padded[:, ci], a, b, out, stride, dilation)
            received += weight[o, c, a, b] * grad_output[:, o]
    (top, _), (left, _) = pads
    height, width = input.shape[2:]
    return {
        "input": grad_padded[:, :, top : top + height, left : left + width],
        "weight": grad_weight,
        "bias": grad_output.sum(axis=(0, 2, 3)),
    }


def bilinear_sample(input, points, border="zeros"):
    """input (N, C, H, W), points (N, ..., 2) -> (N, C, ...)"""
    output = np.zeros((*input.shape[:2], *points.shape[1:-1]))
    for n in range(len(input)):
        output[n], _, _ = sample(input[n], points[n, ..., 0], points[n, ..., 1], border)
    return output


def bilinear_sample_backward(grad_output, input, points, border="zeros"):
    grad_input, grad_points = np.zeros(input.shape), np.zeros(points.shape)
    for n in range(len(input)):
        y, x = points[n, ..., 0], points[n, ..., 1]
        _, slope_y, slope_x = sample(input[n], y, x, border)
        grad_points[n, ..., 0] = np.sum(grad_output[n] * slope_y, axis=0)
        grad_points[n, ..., 1] = np.sum(grad_output[n] * slope_x, axis=0)
        scatter(grad_input[n], grad_output[n], y, x, border)
    return {"input": grad_input, "points": grad_points}
