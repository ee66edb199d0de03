"""Arguments that put samples and bins exactly on knots and edges, and as little as possible beside.

Along an axis of n pixels those are -1, -0.5, 0, the other pixels, n - 0.5 and n. A call computes
its coordinates from its arguments in some steps; a place beside a knot is the nearest one that
every step gives without rounding, so that the float64 reference sees the same place.
"""

import itertools

import numpy as np
from cases import Problem, dtype_of, operator

from cudeform.cases import Case

__all__ = ["PROBLEMS", "edge_problem"]

SIZE = (5, 7)
BINS = (2, 4)  # divisions without rounding


def knots(size):
    return (-1.0, -0.5, 0.0, 1.0, size - 2.0, size - 1.0, size - 0.5, float(size))


def beside(knot, dtype, steps):
    """Values v next to each other such that v plus all of `steps` is the knot, or next to it."""
    start = dtype.type(knot - sum(steps))
    found = [start]
    for direction in (-1, 1):
        distance = np.spacing(max(abs(start), dtype.type(0.125)))
        while True:
            value = dtype.type(start + direction * distance)
            if value != start and _is_exact(value, steps, dtype):
                found.append(value)
                break
            distance = distance * 2
    return found


def _is_exact(value, steps, dtype):
    exact = np.longdouble(value)
    for step in steps:
        value, exact = dtype.type(value + dtype.type(step)), exact + np.longdouble(step)
        if value != exact:
            return False
    return True


def pairs(dtype, steps=()):
    """(y, x) of every place along y with every place along x.  # (P, 2)"""
    along = [[v for k in knots(n) for v in beside(k, dtype, steps)] for n in SIZE]
    return np.array(list(itertools.product(*along)))


def images(channels, count=1):
    """Integers, of which no two neighbours differ by the same."""
    rng = np.random.default_rng(3)
    return rng.integers(-40, 40, (count, channels, *SIZE)).astype(np.float64)


def points(dtype, border):
    return {"input": images(3), "points": pairs(dtype)[None]}, {"border": border}


def located(dtype, method):
    """A query for each point, of a level whose sizes locations are multiplied by exactly."""
    height, width = 4, 8
    step = -0.5 if method == "bilinear" else 0.5
    along = [[v / n for k in knots(n) for v in beside(k, dtype, (step,))] for n in (height, width)]
    at = np.array([(x, y) for y, x in itertools.product(*along)])
    arrays = {
        "value": np.random.default_rng(3).integers(-40, 40, (1, 32, 1, 3)).astype(np.float64),
        "sampling_locations": at.reshape(1, -1, 1, 1, 1, 2),
        "attention_weights": np.full((1, len(at), 1, 1, 1), 0.5),
    }
    return arrays, {"spatial_shapes": ((height, width),), "method": method}


def around(dtype, packed):
    """An output pixel and one tap for each image, so that the offset is where it reads."""
    at = pairs(dtype)
    count = len(at)
    image = np.moveaxis(images(3), 1, 3)
    arrays = {"input": np.broadcast_to(image, (count, *SIZE, 3)).copy()}
    offset, mask = at[:, ::-1].reshape(count, 1, 1, 2), np.full((count, 1, 1, 1), 0.5)
    options = dict(kernel_size=1, stride=(9, 11))
    if not packed:
        return {**arrays, "offset": offset, "mask": mask}, options
    behind = np.zeros((count, 1, 1, 5))
    return {**arrays, "offset_mask": np.concatenate([offset, mask, behind], -1)}, options


def convolution(dtype, border, layout="NCHW"):
    """An output pixel and one tap for each image, so that the offset is where it reads."""
    at = pairs(dtype)
    count = len(at)
    arrays = {
        "input": np.broadcast_to(images(3), (count, 3, *SIZE)).copy(),
        "offset": at.reshape(count, 2, 1, 1),
        "weight": np.array([[2.0, -1, 3], [1, 4, -2]]).reshape(2, 3, 1, 1),
        "mask": np.full((count, 1, 1, 1), 0.5),
    }
    if layout == "NHWC":
        for name in ("input", "offset", "mask"):
            arrays[name] = np.ascontiguousarray(np.moveaxis(arrays[name], 1, -1))
    return arrays, {"border": border, "layout": layout, "stride": (9, 11)}


def padded(dtype, deformable):
    """Taps of a plain grid in the padding, without an offset or with one of 0."""
    arrays = {"input": images(3), "weight": np.arange(1.0, 19).reshape(1, 3, 2, 3)}
    options = dict(stride=(1, 2), padding=((2, 1), (3, 0)), dilation=(3, 2))
    if deformable:
        arrays["offset"] = np.zeros((1, 12, 5, 3))
    return arrays, options


def boxes_at(corners, size=0.0):
    return np.concatenate(
        [np.zeros((len(corners), 1)), corners[:, ::-1], corners[:, ::-1] + size], 1
    )


def aligned(dtype, sensitive=False, **options):
    """Boxes without area, whose only sample is half a pixel up and left of them."""
    at = pairs(dtype, (-0.5,))
    arrays = {"input": images(3), "boxes": boxes_at(at)}
    if not sensitive:
        options["aligned"] = True
    return arrays, dict(output_size=1, sampling_ratio=1, **options)


def unaligned(dtype, **options):
    """Boxes of the least size, whose only sample is half a pixel down and right of the corner."""
    arrays = {"input": images(3), "boxes": boxes_at(pairs(dtype, (0.5,)))}
    return arrays, dict(output_size=1, sampling_ratio=1, **options)


def moved(dtype):
    """Boxes of one pixel at the origin, whose samples lie where the offset is."""
    at = pairs(dtype, (-0.5, 0.5))
    arrays = {"input": images(3), "boxes": boxes_at(np.zeros_like(at), 1.0)}
    arrays["offset"] = at[:, ::-1].reshape(-1, 2, 1, 1)
    arrays["mask"] = np.full((len(at), 1, 1, 1), 0.5)
    return arrays, dict(output_size=1, sampling_ratio=1, gamma=1.0)


def moved_corners(dtype):
    """Likewise, with samples at the corner, half a pixel up and left of the offset."""
    at = pairs(dtype, (-0.5,))
    arrays = {"input": images(3), "boxes": boxes_at(np.zeros_like(at))}
    arrays["offset"] = at[:, ::-1].reshape(-1, 2, 1, 1)
    arrays["mask"] = np.full((len(at), 1, 1, 1), 0.5)
    options = dict(output_size=1, spatial_scale=1.0, output_dim=3, group_size=1)
    return arrays, dict(sample_per_part=1, trans_std=1.0, **options)


def whole(dtype, channels=3, **options):
    """Boxes from and to every knot of rounding, and of the image."""
    scale = options.get("spatial_scale", 1.0)
    along = []
    for size in SIZE:
        places = (-1.0, -0.5, 0.5, 1.0, size - 1.5, size - 1.0, size - 0.5, float(size))
        values = [v for k in places for v in beside(k, dtype, ())]
        along.append(list(itertools.product(values, repeat=2)))
    rng = np.random.default_rng(5)
    chosen = [[axis[i] for i in rng.permutation(len(axis))[:400]] for axis in along]
    (y, x) = (np.array(axis) / scale for axis in chosen)
    boxes = np.stack([np.zeros(len(y)), x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)
    return {"input": images(channels), "boxes": boxes}, dict(output_size=BINS, **options)


_SENSITIVE = BINS[0] * BINS[1]
PROBLEMS = {
    "points, zeros": ("bilinear_sample", points, dict(border="zeros")),
    "points, clamp": ("bilinear_sample", points, dict(border="clamp")),
    "attention": ("ms_deform_attn", located, dict(method="bilinear")),
    "attention, nearest": ("ms_deform_attn", located, dict(method="nearest")),
    "dcnv3": ("dcnv3", around, dict(packed=False)),
    "dcnv4": ("dcnv4", around, dict(packed=True)),
    "convolution, zeros": ("deform_conv2d", convolution, dict(border="zeros")),
    "convolution, clamp": ("deform_conv2d", convolution, dict(border="clamp")),
    "channels last": ("deform_conv2d", convolution, dict(border="zeros", layout="NHWC")),
    "padding": ("deform_conv2d", padded, dict(deformable=True)),
    "plain padding": ("conv2d", padded, dict(deformable=False)),
    "roi_align": ("roi_align", unaligned, {}),
    "roi_align, aligned": ("roi_align", aligned, {}),
    "roi_align, largest": ("roi_align", aligned, dict(mode="max")),
    "ps_roi_align": ("ps_roi_align", aligned, dict(sensitive=True)),
    "deform_roi_pool": ("deform_roi_pool", moved, {}),
    "deform_ps_roi_pool": ("deform_ps_roi_pool", moved_corners, {}),
    "roi_pool": ("roi_pool", whole, dict(mode="max")),
    "roi_pool, average": ("roi_pool", whole, dict(mode="avg")),
    "ps_roi_pool": ("ps_roi_pool", whole, dict(channels=_SENSITIVE)),
    "ps_roi_pool, rfcn": ("ps_roi_pool", whole, dict(channels=_SENSITIVE, convention="rfcn")),
    "ps_roi_pool, msra": ("ps_roi_pool", whole, dict(channels=_SENSITIVE, convention="msra")),
    "ps_roi_pool, msra, halves": (
        "ps_roi_pool",
        whole,
        dict(channels=_SENSITIVE, convention="msra", spatial_scale=0.5),
    ),
}


def edge_problem(name, dtype):
    """The arguments of this name in a dtype, and the reference's answers."""
    op, make, options = PROBLEMS[name]
    arrays, given = make(dtype_of(dtype), **options)
    return Problem(operator(op), Case(name, arrays, given), dtype)
