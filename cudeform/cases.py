"""Arrays to try each operator with: tests, the selftest and benchmarks loop over them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cudeform.checks import pad_pairs, pair


@dataclass(frozen=True)
class Case:
    """Arguments to try an operator with: the arrays by name, then the options."""

    name: str
    arrays: dict[str, np.ndarray]
    options: dict[str, Any]

    def astype(self, dtype: Any, **others: Any) -> Case:
        """The case with its real numbers in a dtype, or in that which `others` has for a name."""
        arrays = {
            name: array if array.dtype.kind == "i" else array.astype(others.get(name, dtype))
            for name, array in self.arrays.items()
        }
        return replace(self, arrays=arrays)


def _convolution(
    rng: np.random.Generator, name: str,
    *, n: int = 2, c: int = 6, size: tuple[int, int] = (7, 9), o: int = 4,
    kernel: tuple[int, int] = (3, 3), groups: int = 1, offset_groups: int = 1, spread: float = 1.5,
    bias: bool = True, mask: bool = False, deformable: bool = True, **options: Any,
) -> Case:  # fmt: skip
    """Random arguments of a convolution; the shapes follow from the options."""
    last = options.get("layout", "NCHW") == "NHWC"
    (top, bottom), (left, right) = pad_pairs("case", "padding", options.get("padding", 0))
    stride = pair("case", "stride", options.get("stride", 1), 1)
    dilation = pair("case", "dilation", options.get("dilation", 1), 1)
    padded = size[0] + top + bottom, size[1] + left + right
    out = tuple((padded[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1))

    def images(channels: int, height: int, width: int) -> tuple[int, ...]:
        return (n, height, width, channels) if last else (n, channels, height, width)

    taps = offset_groups * kernel[0] * kernel[1]
    arrays = {"input": rng.standard_normal(images(c, *size))}
    if deformable:
        arrays["offset"] = spread * rng.standard_normal(images(2 * taps, *out))
    arrays["weight"] = rng.standard_normal((o, c // groups, *kernel))
    if bias:
        arrays["bias"] = rng.standard_normal(o)
    if mask:
        arrays["mask"] = rng.uniform(size=images(taps, *out))
    return Case(name, arrays, options)


def deform_conv2d(rng: np.random.Generator) -> Iterator[Case]:
    yield _convolution(rng, "v1", padding=1)
    yield _convolution(rng, "v2", padding=1, mask=True, c=16, o=8)
    yield _convolution(rng, "v2-channels-last", padding=1, mask=True, c=16, o=8, layout="NHWC")
    uneven = dict(stride=(2, 1), padding=((2, 1), (0, 3)), dilation=(1, 2), size=(11, 13))
    yield _convolution(rng, "groups", c=12, o=6, groups=3, offset_groups=2, mask=True, **uneven)
    yield _convolution(rng, "clamp", padding=1, border="clamp", mask=True, spread=3.0)
    yield _convolution(rng, "depthwise", c=5, o=5, groups=5, offset_groups=5, kernel=(2, 3))
    double = dict(c=34, o=68, groups=34, offset_groups=2, mask=True, padding=1)
    yield _convolution(rng, "depthwise-double", **double)
    last = dict(c=33, o=33, groups=33, stride=2, layout="NHWC")
    yield _convolution(rng, "depthwise-channels-last", **last)
    yield _convolution(rng, "one-tap", n=1, c=3, kernel=(1, 1), bias=False)
    yield _convolution(rng, "far", n=3, c=7, padding=2, spread=30.0, mask=True)
    yield _convolution(rng, "empty-batch", n=0, padding=1, mask=True)
    # More channels and pixels than a backend takes at once, in groups that cut across each other.
    wide = dict(n=1, c=156, o=20, size=(12, 17), groups=2, offset_groups=3, mask=True, padding=1)
    yield _convolution(rng, "wide", **wide)
    yield _convolution(rng, "wide-channels-last", **wide, layout="NHWC")


def conv2d(rng: np.random.Generator) -> Iterator[Case]:
    yield _convolution(rng, "plain", padding=1, deformable=False)
    yield _convolution(
        rng, "channels-last", c=8, o=8, groups=2, stride=2, layout="NHWC", deformable=False
    )
    yield _convolution(rng, "depthwise", c=20, o=20, groups=20, padding=1, deformable=False)
    yield _convolution(rng, "dilated", dilation=2, padding=3, bias=False, deformable=False)
    yield _convolution(rng, "wide", n=1, c=150, o=70, size=(12, 17), padding=1, deformable=False)


def bilinear_sample(rng: np.random.Generator) -> Iterator[Case]:
    for layout, border in (("NCHW", "zeros"), ("NHWC", "zeros"), ("NCHW", "clamp")):
        shape = (2, 6, 8, 5) if layout == "NHWC" else (2, 5, 6, 8)
        arrays = {
            "input": rng.standard_normal(shape),
            "points": rng.uniform(-2, 9, size=(2, 4, 7, 2)),
        }
        options = {"border": border, "layout": layout}
        yield Case(f"{layout}-{border}", arrays, options)


def _aggregation(
    rng: np.random.Generator, name: str,
    *, n: int = 2, size: tuple[int, int] = (6, 7), groups: int = 2, channels: int = 5,
    spread: float = 1.5, packed: bool = False, **options: Any,
) -> Case:  # fmt: skip
    """Random arguments of DCNv3, or of DCNv4; the shapes follow from the options."""
    options = {"kernel_size": 3, "groups": groups, **options}
    given = {"stride": 1, "padding": 0, "dilation": 1, **options}
    kernel, stride, padding, dilation = (
        pair("case", option, given[option], 0)
        for option in ("kernel_size", "stride", "padding", "dilation")
    )
    out = tuple(
        (size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    )
    points = groups * (kernel[0] * kernel[1] - options.get("remove_center", False))
    arrays = {"input": rng.standard_normal((n, *size, groups * channels))}
    offset = spread * rng.standard_normal((n, *out, 2 * points))
    mask = rng.uniform(-1, 1, (n, *out, points))
    if not packed:
        return Case(name, {**arrays, "offset": offset, "mask": mask}, options)
    of_group = (n, *out, groups, points // groups)
    parts = offset.reshape(*of_group[:-1], 2 * of_group[-1]), mask.reshape(of_group)
    used = np.concatenate(parts, -1).reshape(n, *out, 3 * points)
    unused = np.zeros((n, *out, -3 * points % 8))
    return Case(name, {**arrays, "offset_mask": np.concatenate([used, unused], -1)}, options)


def dcnv3(rng: np.random.Generator) -> Iterator[Case]:
    yield _aggregation(rng, "plain", padding=1)
    yield _aggregation(rng, "softmax", padding=1, channels=16, softmax=True, remove_center=True)
    uneven = dict(kernel_size=(2, 3), stride=(2, 1), padding=(1, 3), dilation=(3, 2))
    yield _aggregation(rng, "uneven", **uneven, size=(7, 5), groups=3, channels=3, softmax=True)
    yield _aggregation(rng, "scaled", kernel_size=(3, 5), padding=2, offset_scale=0.75, groups=1)
    yield _aggregation(rng, "one-tap", n=1, kernel_size=1, groups=1, channels=1)
    yield _aggregation(rng, "far", padding=1, spread=30.0, groups=4, channels=2)
    yield _aggregation(rng, "empty-batch", n=0, padding=1)
    # More points and channels than a backend takes at once.
    wide = dict(n=1, size=(13, 14), kernel_size=(12, 11), padding=1, groups=2, channels=75)
    yield _aggregation(rng, "wide", **wide)


def dcnv4(rng: np.random.Generator) -> Iterator[Case]:
    yield _aggregation(rng, "plain", packed=True, padding=1)
    removed = dict(packed=True, padding=1, channels=16, groups=3, remove_center=True)
    yield _aggregation(rng, "without-center", **removed)
    uneven = dict(kernel_size=(2, 3), stride=(2, 1), padding=(1, 3), dilation=(3, 2))
    yield _aggregation(rng, "uneven", **uneven, packed=True, size=(7, 5), groups=3, channels=3)
    scaled = dict(kernel_size=(3, 1), offset_scale=1.5)
    yield _aggregation(rng, "scaled", **scaled, packed=True, groups=1, channels=8)
    yield _aggregation(rng, "empty-batch", packed=True, n=0, padding=1)


def _attention(
    rng: np.random.Generator, name: str,
    *, shapes: tuple[tuple[int, int], ...] = ((6, 5), (3, 4)), n: int = 2, queries: int = 7,
    heads: int = 2, channels: int = 5, points: int = 3, array: bool = False, **options: Any,
) -> Case:  # fmt: skip
    """Random arguments of attention, to points some of which are outside of their level.

    With `array` the shapes are one.
    """
    ragged = options.get("points_per_level")
    each = (len(shapes), points) if ragged is None else (sum(ragged),)
    total = sum(height * width for height, width in shapes)
    arrays = {
        "value": rng.standard_normal((n, total, heads, channels)),
        "sampling_locations": rng.uniform(-0.2, 1.2, (n, queries, heads, *each, 2)),
        "attention_weights": rng.uniform(-1, 1, (n, queries, heads, *each)),
    }
    if array:
        arrays["spatial_shapes"] = np.array(shapes)
    else:
        options["spatial_shapes"] = shapes
    return Case(name, arrays, options)


def ms_deform_attn(rng: np.random.Generator) -> Iterator[Case]:
    yield _attention(rng, "plain")
    yield _attention(rng, "softmax", channels=16, softmax=True)
    ragged = dict(shapes=((4, 7), (3, 3), (1, 2)), points_per_level=(3, 6, 1))
    yield _attention(rng, "ragged", **ragged, softmax=True, queries=5, channels=8)
    yield _attention(rng, "nearest", method="nearest", points=4)
    yield _attention(rng, "array-of-shapes", array=True, channels=3, points=2)
    yield _attention(rng, "one-level", shapes=((5, 8),), points=1, heads=1, channels=1)
    yield _attention(rng, "empty-batch", n=0)
    yield _attention(rng, "no-queries", queries=0)
    # More channels and queries than a backend takes at once.
    yield _attention(rng, "wide", n=1, queries=70, heads=3, channels=150, points=5)


def _boxes(rng: np.random.Generator, count: int, n: int, height: float, width: float) -> np.ndarray:
    """Boxes inside, across the border, outside, inverted and without area."""
    center = rng.uniform((0, 0), (height, width), (count, 2))
    half = rng.uniform(0.05, 0.6, (count, 2)) * (height, width)
    boxes = np.empty((count, 5))
    boxes[:, 0] = rng.integers(0, n, count)
    boxes[:, 1:3] = (center - half)[:, ::-1]
    boxes[:, 3:] = (center + half)[:, ::-1]
    boxes[1::7, 1:] += 3 * width
    boxes[2::7, 3:] = boxes[2::7, 1:3]
    boxes[3::7, 1:] = boxes[3::7, [3, 4, 1, 2]]
    return boxes


def _pooling(
    rng: np.random.Generator, name: str,
    *, n: int = 2, c: int = 6, size: tuple[int, int] = (9, 11), regions: int = 9,
    elements: tuple[int, int, int] | None = None, mask: bool = False, spread: float = 1.0,
    **options: Any,
) -> Case:  # fmt: skip
    """Random arguments of a pooling; `elements` of the offset and the mask: (classes, y, x)."""
    scale = options.get("spatial_scale", 1.0)
    arrays = {
        "input": rng.standard_normal((n, c, *size)),
        "boxes": _boxes(rng, regions, n, size[0] / scale, size[1] / scale),
    }
    if elements is not None:
        classes, *part = elements
        arrays["offset"] = spread * rng.standard_normal((regions, 2 * classes, *part))
        if mask:
            arrays["mask"] = rng.uniform(size=(regions, classes, *part))
    return Case(name, arrays, options)


def roi_align(rng: np.random.Generator) -> Iterator[Case]:
    yield _pooling(rng, "adaptive", output_size=3, spatial_scale=0.5)
    yield _pooling(rng, "aligned", c=16, output_size=(2, 3), sampling_ratio=2, aligned=True)
    yield _pooling(rng, "wide", n=3, c=70, regions=20, output_size=(3, 2), sampling_ratio=1)
    yield _pooling(rng, "no-regions", regions=0, output_size=2)
    yield _pooling(rng, "max", output_size=(3, 2), spatial_scale=0.5, aligned=True, mode="max")
    yield _pooling(rng, "max-fixed", c=40, output_size=2, sampling_ratio=3, mode="max")


def ps_roi_align(rng: np.random.Generator) -> Iterator[Case]:
    yield _pooling(rng, "adaptive", c=12, output_size=(2, 3))
    yield _pooling(rng, "fixed", c=36, output_size=3, spatial_scale=0.25, sampling_ratio=2)


def roi_pool(rng: np.random.Generator) -> Iterator[Case]:
    yield _pooling(rng, "max", output_size=(3, 2), spatial_scale=0.5, mode="max")
    yield _pooling(rng, "max-wide", c=40, regions=15, output_size=4, mode="max")
    yield _pooling(rng, "avg", output_size=3, mode="avg")


def ps_roi_pool(rng: np.random.Generator) -> Iterator[Case]:
    yield _pooling(rng, "torchvision", c=12, output_size=(2, 3), spatial_scale=0.5)
    yield _pooling(rng, "rfcn", c=12, output_size=(3, 2), convention="rfcn")
    yield _pooling(rng, "msra", c=36, output_size=3, spatial_scale=0.25, convention="msra")


def deform_roi_pool(rng: np.random.Generator) -> Iterator[Case]:
    yield _pooling(rng, "still", output_size=(3, 2), sampling_ratio=2)
    yield _pooling(rng, "v1", output_size=3, elements=(1, 3, 3))
    yield _pooling(rng, "v2", c=16, output_size=(2, 3), elements=(1, 2, 3), mask=True, gamma=0.3)
    yield _pooling(
        rng, "fixed", spatial_scale=0.5, sampling_ratio=2, output_size=2, elements=(1, 2, 2)
    )
    far = dict(output_size=2, sampling_ratio=3, elements=(1, 2, 2), mask=True, spread=20.0)
    yield _pooling(rng, "far", c=70, **far)


def deform_ps_roi_pool(rng: np.random.Generator) -> Iterator[Case]:
    # A scale and corners that put no sample on the edge where it ceases to count: there float32 and
    # float64 may differ.
    plain = dict(spatial_scale=0.47, output_dim=2, group_size=3, output_size=3)
    case = _pooling(rng, "plain", c=18, **plain)
    np.abs(case.arrays["boxes"], out=case.arrays["boxes"])
    yield case
    yield _pooling(rng, "v1", c=18, elements=(1, 3, 3), **plain)
    classes = dict(spatial_scale=0.5, output_dim=6, group_size=(2, 3), output_size=(4, 5))
    classes.update(part_size=(2, 3), sample_per_part=3, trans_std=0.2)
    yield _pooling(rng, "classes", c=36, elements=(3, 2, 3), mask=True, **classes)
