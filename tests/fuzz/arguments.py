"""Random arguments of every operator.

Coordinates are multiples of a power of two, and so are the sizes of bins: float32 then adds and
divides them without rounding, and a sample that the float64 reference puts on a pixel, or on the
edge where the image ends, is there in every dtype. Boxes at any place are left to float64.
"""

import math

import numpy as np

from cudeform.cases import Case

__all__ = ["NEVER_CAST", "OPERATORS", "random_case"]

NEVER_CAST = {"boxes": "float32"}  # in 16 bits: with fewer they are other boxes
STEPS = (1.0, 0.5, 0.25, 2.0**-10)
EXTREMES = (np.nan, np.inf, -np.inf, 1e30, -1e30, 1e4, -1e4)
SCALES = (1.0, 1.0, 0.5, 0.25, 2.0)


def random_case(rng, name, dtype):
    """Arguments of an operator that has a generator here, in float64."""
    return Case("random", *OPERATORS[name](rng, dtype))


def pick(rng, *choices):
    return choices[rng.integers(len(choices))]


def pair(rng, low, high):
    return tuple(int(n) for n in rng.integers(low, high + 1, 2))


def steps(rng, shape, spread):
    """Random multiples of a power of two, some of them beyond all images."""
    step = pick(rng, *STEPS)
    numbers = np.round(spread * rng.standard_normal(shape) / step) * step
    if rng.random() < 0.2 and numbers.size:
        where = rng.random(shape) < 0.1
        numbers[where] = rng.choice(EXTREMES, np.count_nonzero(where))
    return numbers


def values(rng, shape):
    """Values of images and weights; now and then the same for every image."""
    numbers = rng.standard_normal(shape)
    if rng.random() < 0.1 and len(numbers):
        numbers[:] = numbers[:1]
    return numbers


def spread(rng):
    return pick(rng, 0.0, 0.7, 2.0, 30.0)


# -- convolutions -------------------------------------------------------------------------------


def _convolution(rng, deformable):
    groups, offset_groups = pick(rng, 1, 1, 2, 3), pick(rng, 1, 1, 2, 3) if deformable else 1
    channels = math.lcm(groups, offset_groups) * pick(rng, 1, 1, 2, 3, 5, 8)
    n, o = pick(rng, 0, 1, 1, 2, 3), groups * pick(rng, 1, 2, 3, 8)
    kernel, stride, dilation = pair(rng, 1, 4), pair(rng, 1, 3), pair(rng, 1, 3)
    padding = pair(rng, 0, 3), pair(rng, 0, 3)
    out = pair(rng, 1, 9)
    size = [
        max(1, (out[i] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 - sum(padding[i]))
        for i in (0, 1)
    ]
    out = [
        (size[i] + sum(padding[i]) - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    ]
    layout = pick(rng, "NCHW", "NHWC")

    def images(count, height, width):
        return (n, count, height, width) if layout == "NCHW" else (n, height, width, count)

    taps = offset_groups * kernel[0] * kernel[1]
    arrays = {"input": values(rng, images(channels, *size))}
    options = {"stride": stride, "padding": padding, "dilation": dilation, "layout": layout}
    if deformable:
        arrays["offset"] = steps(rng, images(2 * taps, *out), spread(rng))
        options["border"] = pick(rng, "zeros", "zeros", "clamp")
    arrays["weight"] = rng.standard_normal((o, channels // groups, *kernel))
    if rng.random() < 0.5:
        arrays["bias"] = rng.standard_normal(o)
    if deformable and rng.random() < 0.6:
        arrays["mask"] = rng.uniform(size=images(taps, *out))
        if layout == "NCHW" and rng.random() < 0.1 and np.isfinite(arrays["offset"]).all():
            arrays["mask"] = arrays["offset"][:, :taps].clip(-3, 3)
            arrays["offset"][:, :taps] = arrays["mask"]  # one is a view of the other's memory
    return arrays, options


def _deform_conv2d(rng, dtype):
    return _convolution(rng, True)


def _conv2d(rng, dtype):
    return _convolution(rng, False)


def _bilinear_sample(rng, dtype):
    n, channels, (height, width) = pick(rng, 0, 1, 2), pick(rng, 1, 2, 3, 7, 16), pair(rng, 1, 11)
    layout, border = pick(rng, "NCHW", "NHWC"), pick(rng, "zeros", "clamp")
    grid = tuple(int(k) for k in rng.integers(0, 7, rng.integers(0, 3)))
    shape = (n, channels, height, width) if layout == "NCHW" else (n, height, width, channels)
    points = steps(rng, (n, *grid, 2), spread(rng))
    points += np.round(rng.uniform(size=points.shape) * (height, width))
    arrays = {"input": values(rng, shape), "points": points}
    return arrays, {"border": border, "layout": layout}


# -- regions ------------------------------------------------------------------------------------


def _images(rng, multiple):
    channels = multiple * pick(rng, 1, 1, 2, 3, 8)
    return values(rng, (pick(rng, 1, 2, 3), channels, *pair(rng, 1, 12)))


def _boxes(rng, input, count, starts, sizes, scale):
    """Rows of boxes from the starts and sizes (count, 2) of regions in pixels, y before x."""
    boxes = np.empty((count, 5))
    boxes[:, 0] = rng.integers(0, len(input), count)
    boxes[:, 1:3] = starts[:, ::-1] / scale
    boxes[:, 3:] = (starts + sizes)[:, ::-1] / scale
    return boxes


def _free(rng, dtype):
    """Whether boxes may be anywhere: rounded coordinates would read other pixels."""
    return dtype == "float64" and rng.random() < 0.4


def _starts(rng, input, count, step):
    height, width = input.shape[2:]
    return np.round(rng.uniform((-3, -3), (height + 1, width + 1), (count, 2)) / step) * step


def _is_power(number):
    return number & (number - 1) == 0


def _aligned_boxes(rng, dtype, input, bins, ratio, scale, shift, least):
    """Boxes whose bins are a multiple of an eighth of the distance of their samples."""
    count = int(rng.integers(0, 6))
    if _free(rng, dtype):
        starts, sizes = _starts(rng, input, count, 1e-9), rng.uniform(-2, 9, (count, 2))
        return _boxes(rng, input, count, starts, sizes, scale)
    samples = rng.integers(1, 4, (count, 2)) if ratio < 1 else np.full((count, 2), ratio)
    # more than the last whole sample's share, so that as many follow from the size
    cells = rng.integers(7 if ratio < 1 else 1, 9, (count, 2)) / 8
    sizes = np.maximum(samples * cells * bins, least)
    exact = all(map(_is_power, (*bins, max(ratio, 1))))
    if exact and rng.random() < 0.3:
        sizes[rng.random(count) < 0.5] = pick(rng, 0.0, -2.0, 0.5)
    starts = _starts(rng, input, count, pick(rng, 0.125, 0.5, 1.0)) + shift
    return _boxes(rng, input, count, starts, sizes, scale)


def _least(bins, aligned):
    """The size that the region is made to have is one whose bins are exact."""
    return 0.0 if aligned else [1.0 if _is_power(b) else b / 2 for b in bins]


def _roi_align(rng, dtype):
    input, bins, scale = _images(rng, 1), pair(rng, 1, 4), pick(rng, *SCALES)
    ratio, aligned = pick(rng, -1, 0, 1, 2, 3), bool(rng.integers(2))
    boxes = _aligned_boxes(
        rng, dtype, input, bins, ratio, scale, 0.5 if aligned else 0.0, _least(bins, aligned)
    )
    options = {"output_size": bins, "spatial_scale": scale}
    options |= {"sampling_ratio": ratio, "aligned": aligned, "mode": pick(rng, "avg", "max")}
    return {"input": input, "boxes": boxes}, options


def _ps_roi_align(rng, dtype):
    bins, scale, ratio = pair(rng, 1, 4), pick(rng, *SCALES), pick(rng, -1, 0, 1, 2, 3)
    input = _images(rng, bins[0] * bins[1])
    boxes = _aligned_boxes(rng, dtype, input, bins, ratio, scale, 0.5, 0.0)
    options = {"output_size": bins, "spatial_scale": scale, "sampling_ratio": ratio}
    return {"input": input, "boxes": boxes}, options


def _deform_roi_pool(rng, dtype):
    input, bins, scale = _images(rng, 1), pair(rng, 1, 4), pick(rng, *SCALES)
    ratio, gamma = pick(rng, 0, 1, 2, 3), pick(rng, 0.125, 0.5)
    boxes = _aligned_boxes(rng, dtype, input, bins, ratio, scale, 0.5, 0.0)
    arrays = {"input": input, "boxes": boxes}
    arrays |= _shifts(rng, len(boxes), 1, bins)
    options = {"output_size": bins, "spatial_scale": scale}
    return arrays, options | {"sampling_ratio": ratio, "gamma": gamma}


def _shifts(rng, count, classes, part):
    arrays = {}
    if rng.random() < 0.8:
        arrays["offset"] = steps(rng, (count, 2 * classes, *part), pick(rng, 0.0, 1.0, 8.0))
        finite = np.isfinite(arrays["offset"])
        arrays["offset"][finite] = np.round(arrays["offset"][finite] * 8) / 8
        if rng.random() < 0.5:
            arrays["mask"] = rng.uniform(size=(count, classes, *part))
    return arrays


def _whole_boxes(rng, dtype, input, bins, scale, more):
    """Boxes whose regions, after rounding, have bins that are exact; `more` is added to a size."""
    count = int(rng.integers(0, 6))
    if _free(rng, dtype):
        starts, sizes = _starts(rng, input, count, 1e-9), rng.uniform(-2, 9, (count, 2))
        return _boxes(rng, input, count, starts, sizes, scale)
    exact = [[h for h in range(1, 13) if 4 * h % b == 0] for b in bins]
    sizes = np.array([[pick(rng, *choices) for choices in exact] for _ in range(count)])
    sizes = sizes.reshape(count, 2) - float(more)
    return _boxes(rng, input, count, _starts(rng, input, count, 1.0), sizes, scale)


def _nudged(rng, boxes, scale, limit):
    """Boxes a bit off, by no more than rounding takes back."""
    steps = rng.integers(-limit, limit + 1, boxes[:, 1:].shape) / 8
    boxes[:, 1:] += steps / scale
    return boxes


def _roi_pool(rng, dtype):
    input, bins, scale = _images(rng, 1), pair(rng, 1, 5), pick(rng, *SCALES)
    boxes = _nudged(rng, _whole_boxes(rng, dtype, input, bins, scale, 1), scale, 3)
    options = {"output_size": bins, "spatial_scale": scale, "mode": pick(rng, "max", "avg")}
    return {"input": input, "boxes": boxes}, options


def _ps_roi_pool(rng, dtype):
    bins, convention = pair(rng, 1, 4), pick(rng, "torchvision", "rfcn", "msra")
    input = _images(rng, bins[0] * bins[1])
    scale = pick(rng, *SCALES)
    if convention != "msra":
        boxes = _nudged(rng, _whole_boxes(rng, dtype, input, bins, scale, 0), scale, 3)
    else:  # whole boxes, of (x2 + 1 - x1) * scale pixels
        boxes = _whole_boxes(rng, dtype, input, bins, 1.0, 1)
    options = {"output_size": bins, "spatial_scale": scale, "convention": convention}
    return {"input": input, "boxes": boxes}, options


def _deform_ps_roi_pool(rng, dtype):
    bins, group, part = pair(rng, 1, 4), pair(rng, 1, 3), pair(rng, 1, 4)
    classes, samples, scale = pick(rng, 1, 1, 2, 3), pick(rng, 1, 2, 4), pick(rng, *SCALES)
    dim = classes * pick(rng, 1, 2)
    input = values(rng, (pick(rng, 1, 2, 3), dim * group[0] * group[1], *pair(rng, 1, 12)))
    boxes, trans_std = _whole_boxes(rng, dtype, input, bins, 1.0, 1), pick(rng, 0.125, 0.5)
    if dtype == "float64":  # thirds of the least size, moved by halves of it, meet the border
        scale, trans_std = rng.uniform(0.3, 1.0), rng.uniform(0.1, 0.5)
    arrays = {"input": input, "boxes": boxes} | _shifts(rng, len(boxes), classes, part)
    options = {"output_size": bins, "spatial_scale": scale, "output_dim": dim}
    options |= {"group_size": group, "part_size": part, "sample_per_part": samples}
    return arrays, options | {"trans_std": trans_std}


# -- sums of samples ----------------------------------------------------------------------------


def _aggregation(rng, packed):
    """Offsets, taps and scales that float32 adds and multiplies without rounding."""
    n, groups, channels = pick(rng, 0, 1, 1, 2), pick(rng, 1, 1, 2, 3), pick(rng, 1, 3, 8, 16, 33)
    kernel, stride, dilation = pair(rng, 1, 4), pair(rng, 1, 3), pair(rng, 1, 3)
    padding, out = pair(rng, 0, 3), pair(rng, 1, 7)
    extent = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    size = [max(1, (out[i] - 1) * stride[i] + extent[i] - 2 * padding[i]) for i in (0, 1)]
    out = [(size[i] + 2 * padding[i] - extent[i]) // stride[i] + 1 for i in (0, 1)]
    options = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    options |= {"groups": groups, "offset_scale": pick(rng, 1.0, 1.0, 0.5, 2.0)}
    odd = kernel[0] % 2 and kernel[1] % 2 and kernel != (1, 1)
    options["remove_center"] = bool(odd and rng.random() < 0.5)
    points = kernel[0] * kernel[1] - options["remove_center"]
    arrays = {"input": values(rng, (n, *size, groups * channels))}
    offset = steps(rng, (n, *out, groups, 2 * points), spread(rng))
    mask = rng.uniform(-1, 1, (n, *out, groups, points))
    if packed:
        used = np.concatenate([offset, mask], -1).reshape(n, *out, 3 * groups * points)
        behind = rng.choice([0.0, np.nan], (n, *out, -used.shape[-1] % 8))
        return {**arrays, "offset_mask": np.concatenate([used, behind], -1)}, options
    arrays["offset"] = offset.reshape(n, *out, 2 * groups * points)
    arrays["mask"] = mask.reshape(n, *out, groups * points)
    return arrays, {**options, "softmax": bool(rng.random() < 0.4)}


def _dcnv3(rng, dtype):
    return _aggregation(rng, False)


def _dcnv4(rng, dtype):
    return _aggregation(rng, True)


def _ms_deform_attn(rng, dtype):
    """Levels whose sizes are powers of two, so that locations in pixels are what they were."""
    n, queries, heads = pick(rng, 0, 1, 1, 2), pick(rng, 0, 1, 3, 9, 40), pick(rng, 1, 1, 2, 3)
    channels, levels = pick(rng, 1, 3, 8, 16, 33, 64), pick(rng, 1, 1, 2, 3, 4)
    shapes = tuple(tuple(2 ** int(k) for k in rng.integers(0, 5, 2)) for _ in range(levels))
    options = {"method": pick(rng, "bilinear", "bilinear", "nearest")}
    options["softmax"] = bool(rng.random() < 0.4)
    points, each = (pick(rng, 1, 2, 4, 5, 150),) * levels, ()
    if rng.random() < 0.4:
        points = options["points_per_level"] = tuple(pick(rng, 1, 2, 3, 6) for _ in range(levels))
        each = (sum(points),)
    pixels = steps(rng, (n, queries, heads, sum(points), 2), spread(rng)) + 1.0
    sizes = np.repeat(np.array(shapes)[:, ::-1], points, 0)
    axes = n, queries, heads, *(each or (levels, points[0]))
    arrays = {"value": values(rng, (n, sum(h * w for h, w in shapes), heads, channels))}
    arrays["sampling_locations"] = ((pixels + 0.5) / sizes).reshape(*axes, 2)
    arrays["attention_weights"] = rng.standard_normal(axes)
    if rng.random() < 0.5:
        arrays["spatial_shapes"] = np.array(shapes, pick(rng, np.int32, np.int64))
    else:
        options["spatial_shapes"] = shapes
    return arrays, options


OPERATORS = {
    "deform_conv2d": _deform_conv2d,
    "conv2d": _conv2d,
    "bilinear_sample": _bilinear_sample,
    "dcnv3": _dcnv3,
    "dcnv4": _dcnv4,
    "ms_deform_attn": _ms_deform_attn,
    "roi_align": _roi_align,
    "ps_roi_align": _ps_roi_align,
    "roi_pool": _roi_pool,
    "ps_roi_pool": _ps_roi_pool,
    "deform_roi_pool": _deform_roi_pool,
    "deform_ps_roi_pool": _deform_ps_roi_pool,
}
