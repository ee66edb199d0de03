"""The poolings of regions in float64, bin by bin and sample by sample; see `reference`."""

import math
from typing import NamedTuple

import numpy as np

FORWARDS = (
    "deform_ps_roi_pool", "deform_roi_pool", "ps_roi_align",
    "ps_roi_pool", "roi_align", "roi_pool",
)  # fmt: skip
__all__ = [*FORWARDS, *(f"{name}_backward" for name in FORWARDS)]


class Bin(NamedTuple):
    """What a bin of some output channels reads: the mean of samples, times a mask."""

    region: int
    image: int
    cell: tuple  # (i, j)
    out: np.ndarray  # output channels
    channels: np.ndarray  # input channels, one for each
    samples: list  # (along y, along x): lists of (index, weight, derivative of the weight)
    divisor: float
    mask: float = 1.0
    part: tuple = ()  # where the offset and the mask are: (class, y, x)
    reach: tuple = ()  # pixels that the bin moves for an offset of 1: along y, along x


def _pair(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _round(value):
    """To the nearest whole number, halves away from zero."""
    return math.copysign(math.floor(abs(value) + 0.5), value)


def _rows(boxes):
    if isinstance(boxes, np.ndarray):
        return [(int(row[0]), *map(float, row[1:])) for row in boxes]
    return [(n, *map(float, box)) for n, array in enumerate(boxes) for box in array]


def _centers_axis(at, size):
    """A sample of "grid_centers" along one axis, or None outside."""
    if not -1 <= at <= size:
        return None
    inside = max(at, 0.0)
    first = int(inside)
    if first >= size - 1:
        return [(size - 1, 1.0, 0.0)]
    fraction, slope = inside - first, 0.0 if at < 0 else 1.0
    return [(first, 1 - fraction, -slope), (first + 1, fraction, slope)]


def _corners_axis(at, size):
    """A sample of "grid_corners" along one axis, or None outside."""
    if not -0.5 <= at <= size - 0.5:
        return None
    inside = min(max(at, 0.0), size - 1.0)
    first, second = math.floor(inside), math.ceil(inside)
    slope = 1.0 if inside == at and first < second else 0.0
    return [(first, 1 - (inside - first), -slope), (second, inside - first, slope)]


def _grid(axis, height, width, ys, xs, outside=False):
    """The samples of a grid that are inside, and with `outside` those that read nothing."""
    along_y, along_x = [axis(y, height) for y in ys], [axis(x, width) for x in xs]
    samples = [(y, x) for y in along_y for x in along_x]
    if outside:
        return [([], []) if None in sample else sample for sample in samples]
    return [sample for sample in samples if None not in sample]


def _read(image, channels, sample, which=(1, 1)):
    """The sample (1, 1), or its derivative along y (2, 1) or x (1, 2), of some channels."""
    along_y, along_x = sample
    return sum(
        y[which[0]] * x[which[1]] * image[channels, y[0], x[0]] for y in along_y for x in along_x
    )


def _pooled(input, bins, shape):
    output = np.zeros(shape)
    for b in bins:
        total = sum(_read(input[b.image], b.channels, sample) for sample in b.samples)
        output[(b.region, b.out, *b.cell)] = b.mask * total / b.divisor
    return output


def _gradients(grad_output, input, bins, offset=None, mask=None):
    found = {"input": np.zeros(input.shape)}
    for name, array in (("offset", offset), ("mask", mask)):
        if array is not None:
            found[name] = np.zeros(array.shape)
    for b in bins:
        grad = grad_output[(b.region, b.out, *b.cell)] / b.divisor
        image = input[b.image]
        for sample in b.samples:
            for y, wy, _ in sample[0]:
                for x, wx, _ in sample[1]:
                    found["input"][b.image, b.channels, y, x] += b.mask * grad * wy * wx
            if mask is not None:
                found["mask"][(b.region, *b.part)] += grad @ _read(image, b.channels, sample)
            if offset is not None:
                group, *part = b.part
                for place, axis, which in ((0, 1, (1, 2)), (1, 0, (2, 1))):  # x, then y
                    slope = b.mask * grad @ _read(image, b.channels, sample, which)
                    at = (b.region, 2 * group + place, *part)
                    found["offset"][at] += slope * b.reach[axis]
    return found


def _position_sensitive(channels_out, i, j, groups, bins):
    """The input channel of each output channel of a bin."""
    gh = min(max(math.floor(i * groups[0] / bins[0]), 0), groups[0] - 1)
    gw = min(max(math.floor(j * groups[1] / bins[1]), 0), groups[1] - 1)
    return (channels_out * groups[0] + gh) * groups[1] + gw


def _align_bins(
    input, boxes, output_size, scale, ratio, aligned, offset=None, gamma=0.0, mask=None,
    sensitive=False, outside=False,
):  # fmt: skip
    height, width = input.shape[2:]
    ph, pw = _pair(output_size)
    groups = (ph, pw) if sensitive else (1, 1)
    out = np.arange(input.shape[1] // (groups[0] * groups[1]))
    shift = 0.5 if aligned else 0.0
    for r, (n, x1, y1, x2, y2) in enumerate(_rows(boxes)):
        top, left = y1 * scale - shift, x1 * scale - shift
        h, w = y2 * scale - shift - top, x2 * scale - shift - left
        if not aligned:
            h, w = max(h, 1.0), max(w, 1.0)
        ny = ratio if ratio > 0 else max(math.ceil(h / ph), 0)
        nx = ratio if ratio > 0 else max(math.ceil(w / pw), 0)
        reach = gamma * h, gamma * w
        for i in range(ph):
            for j in range(pw):
                dy = 0.0 if offset is None else reach[0] * offset[r, 1, i, j]
                dx = 0.0 if offset is None else reach[1] * offset[r, 0, i, j]
                ys = [top + dy + i * h / ph + (a + 0.5) * h / ph / ny for a in range(ny)]
                xs = [left + dx + j * w / pw + (a + 0.5) * w / pw / nx for a in range(nx)]
                yield Bin(
                    r,
                    n,
                    (i, j),
                    out,
                    _position_sensitive(out, i, j, groups, (ph, pw)),
                    _grid(_centers_axis, height, width, ys, xs, outside),
                    max(ny * nx, 1),
                    1.0 if mask is None else mask[r, 0, i, j],
                    (0, i, j),
                    reach,
                )


def _shape(input, boxes, output_size, channels):
    return (len(_rows(boxes)), channels, *_pair(output_size))


def roi_align(
    input, boxes, output_size, spatial_scale=1.0, sampling_ratio=-1, aligned=False, mode="avg"
):
    options = output_size, spatial_scale, sampling_ratio, aligned
    shape = _shape(input, boxes, output_size, input.shape[1])
    if mode == "max":
        return _pooled(
            input, _of_largest(input, _align_bins(input, boxes, *options, outside=True)), shape
        )
    return _pooled(input, _align_bins(input, boxes, *options), shape)


def roi_align_backward(
    grad_output, input, boxes, output_size, spatial_scale=1.0, sampling_ratio=-1, aligned=False,
    mode="avg",
):  # fmt: skip
    options = output_size, spatial_scale, sampling_ratio, aligned
    if mode == "max":
        bins = _of_largest(input, _align_bins(input, boxes, *options, outside=True))
    else:
        bins = _align_bins(input, boxes, *options)
    return _gradients(grad_output, input, bins)


def _deform_bins(input, boxes, offset, output_size, scale, ratio, gamma, mask):
    return _align_bins(input, boxes, output_size, scale, ratio, True, offset, gamma, mask)


def deform_roi_pool(
    input, boxes, offset, output_size, spatial_scale=1.0, sampling_ratio=0, gamma=0.1, mask=None
):
    bins = _deform_bins(
        input, boxes, offset, output_size, spatial_scale, sampling_ratio, gamma, mask
    )
    return _pooled(input, bins, _shape(input, boxes, output_size, input.shape[1]))


def deform_roi_pool_backward(
    grad_output, input, boxes, offset, output_size, spatial_scale=1.0, sampling_ratio=0, gamma=0.1,
    mask=None,
):  # fmt: skip
    bins = _deform_bins(
        input, boxes, offset, output_size, spatial_scale, sampling_ratio, gamma, mask
    )
    return _gradients(grad_output, input, bins, offset, mask)


def _ps_align_bins(input, boxes, output_size, spatial_scale, sampling_ratio):
    return _align_bins(
        input, boxes, output_size, spatial_scale, sampling_ratio, True, sensitive=True
    )


def ps_roi_align(input, boxes, output_size, spatial_scale=1.0, sampling_ratio=-1):
    ph, pw = _pair(output_size)
    bins = _ps_align_bins(input, boxes, output_size, spatial_scale, sampling_ratio)
    return _pooled(input, bins, _shape(input, boxes, output_size, input.shape[1] // (ph * pw)))


def ps_roi_align_backward(
    grad_output, input, boxes, output_size, spatial_scale=1.0, sampling_ratio=-1
):
    bins = _ps_align_bins(input, boxes, output_size, spatial_scale, sampling_ratio)
    return _gradients(grad_output, input, bins)


def _edges(i, count, start, size, limit):
    """The pixels of a bin along one axis."""
    first = math.floor(i * (size / count) + start)
    last = math.ceil((i + 1) * (size / count) + start)
    return range(int(min(max(first, 0), limit)), int(min(max(last, 0), limit)))


def _whole_bins(input, boxes, output_size, region, groups, unread=0):
    height, width = input.shape[2] - unread, input.shape[3] - unread
    ph, pw = _pair(output_size)
    out = np.arange(input.shape[1] // (groups[0] * groups[1]))
    for r, (n, *box) in enumerate(_rows(boxes)):
        left, top, w, h = region(*box)
        for i in range(ph):
            for j in range(pw):
                ys, xs = _edges(i, ph, top, h, height), _edges(j, pw, left, w, width)
                samples = [([(y, 1.0, 0.0)], [(x, 1.0, 0.0)]) for y in ys for x in xs]
                channels = _position_sensitive(out, i, j, groups, (ph, pw))
                yield Bin(r, n, (i, j), out, channels, samples, max(len(samples), 1))


def _pixel_region(scale, after):
    def region(x1, y1, x2, y2):
        left, top = _round(x1 * scale), _round(y1 * scale)
        w = max(_round(x2 * scale) - left + after, 1)
        h = max(_round(y2 * scale) - top + after, 1)
        return left, top, w, h

    return region


def _msra_region(scale, shift=0.0):
    def region(x1, y1, x2, y2):
        left, top = _round(x1) * scale - shift, _round(y1) * scale - shift
        w = max((_round(x2) + 1) * scale - shift - left, 0.1)
        h = max((_round(y2) + 1) * scale - shift - top, 0.1)
        return left, top, w, h

    return region


def _of_largest(input, bins):
    """For each channel of a bin the first sample that no other exceeds."""
    for b in bins:
        if not b.samples:
            continue
        for out, channel in zip(b.out, b.channels, strict=True):
            values = [_read(input[b.image], [channel], sample) for sample in b.samples]
            values = [float(np.sum(value)) for value in values]
            best = b.samples[int(np.argmax(values))]
            one = b._replace(out=np.array([out]), channels=np.array([channel]))
            yield one._replace(samples=[best], divisor=1)


def _pool_bins(input, boxes, output_size, spatial_scale, mode):
    bins = _whole_bins(input, boxes, output_size, _pixel_region(spatial_scale, 1), (1, 1))
    return _of_largest(input, bins) if mode == "max" else bins


def roi_pool(input, boxes, output_size, spatial_scale=1.0, mode="max"):
    bins = _pool_bins(input, boxes, output_size, spatial_scale, mode)
    return _pooled(input, bins, _shape(input, boxes, output_size, input.shape[1]))


def roi_pool_backward(grad_output, input, boxes, output_size, spatial_scale=1.0, mode="max"):
    bins = _pool_bins(input, boxes, output_size, spatial_scale, mode)
    return _gradients(grad_output, input, bins)


def _ps_whole_bins(input, boxes, output_size, scale, convention):
    region = _msra_region(scale) if convention == "msra" else _pixel_region(scale, 0)
    unread = 1 if convention == "torchvision" else 0
    return _whole_bins(input, boxes, output_size, region, _pair(output_size), unread)


def ps_roi_pool(input, boxes, output_size, spatial_scale=1.0, convention="torchvision"):
    ph, pw = _pair(output_size)
    bins = _ps_whole_bins(input, boxes, output_size, spatial_scale, convention)
    return _pooled(input, bins, _shape(input, boxes, output_size, input.shape[1] // (ph * pw)))


def ps_roi_pool_backward(
    grad_output, input, boxes, output_size, spatial_scale=1.0, convention="torchvision"
):
    bins = _ps_whole_bins(input, boxes, output_size, spatial_scale, convention)
    return _gradients(grad_output, input, bins)


def _deform_ps_bins(
    input, boxes, offset, output_size, scale, dim, group_size, part_size, n, trans_std, mask
):
    height, width = input.shape[2:]
    (ph, pw), groups = _pair(output_size), _pair(group_size)
    parts = _pair(output_size if part_size is None else part_size)
    classes = 1
    if offset is not None:
        classes = offset.shape[1] // 2
    elif mask is not None:
        classes = mask.shape[1]
    for r, (image, *box) in enumerate(_rows(boxes)):
        left, top, w, h = _msra_region(scale, 0.5)(*box)
        for group in range(classes):
            out = np.arange(dim // classes) + group * (dim // classes)
            for i in range(ph):
                for j in range(pw):
                    py, px = math.floor(i * parts[0] / ph), math.floor(j * parts[1] / pw)
                    reach = trans_std * h, trans_std * w
                    dy = 0.0 if offset is None else reach[0] * offset[r, 2 * group + 1, py, px]
                    dx = 0.0 if offset is None else reach[1] * offset[r, 2 * group, py, px]
                    ys = [top + dy + i * h / ph + a * h / ph / n for a in range(n)]
                    xs = [left + dx + j * w / pw + a * w / pw / n for a in range(n)]
                    samples = _grid(_corners_axis, height, width, ys, xs)
                    yield Bin(
                        r,
                        image,
                        (i, j),
                        out,
                        _position_sensitive(out, i, j, groups, (ph, pw)),
                        samples,
                        max(len(samples), 1),
                        1.0 if mask is None else mask[r, group, py, px],
                        (group, py, px),
                        reach,
                    )


def deform_ps_roi_pool(
    input, boxes, offset, output_size, spatial_scale, output_dim, group_size, part_size=None,
    sample_per_part=4, trans_std=0.1, mask=None,
):  # fmt: skip
    bins = _deform_ps_bins(
        input, boxes, offset, output_size, spatial_scale, output_dim, group_size, part_size,
        sample_per_part, trans_std, mask,
    )  # fmt: skip
    return _pooled(input, bins, _shape(input, boxes, output_size, output_dim))


def deform_ps_roi_pool_backward(
    grad_output, input, boxes, offset, output_size, spatial_scale, output_dim, group_size,
    part_size=None, sample_per_part=4, trans_std=0.1, mask=None,
):  # fmt: skip
    bins = _deform_ps_bins(
        input, boxes, offset, output_size, spatial_scale, output_dim, group_size, part_size,
        sample_per_part, trans_std, mask,
    )  # fmt: skip
    return _gradients(grad_output, input, bins, offset, mask)
