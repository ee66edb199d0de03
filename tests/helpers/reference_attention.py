"""Attention to points of several levels in float64, as its equation reads."""

import numpy as np

__all__ = ["ms_deform_attn", "ms_deform_attn_backward"]


def _pixel(level, y, x):
    """level[y, x] of a level (H, W, D), and 0 for a pixel that is not there."""
    height, width, _ = level.shape
    return level[y, x] if 0 <= y < height and 0 <= x < width else np.zeros(level.shape[2])


def _corners(level, y, x):
    """(row, column, weight, slope of the weight along y, along x) of what a point reads."""
    height, width, _ = level.shape
    if not (-1 < y < height and -1 < x < width):  # also where one is NaN
        return []
    top, left = int(np.floor(y)), int(np.floor(x))
    ly, lx = y - top, x - left
    return [
        (top, left, (1 - ly) * (1 - lx), lx - 1, ly - 1),
        (top, left + 1, (1 - ly) * lx, -lx, 1 - ly),
        (top + 1, left, ly * (1 - lx), 1 - lx, -ly),
        (top + 1, left + 1, ly * lx, lx, ly),
    ]


def _nearest(level, y, x):
    """The same of one pixel, given distances from the outer edges."""
    height, width, _ = level.shape
    if np.isnan(y) or np.isnan(x):
        return []
    row = int(np.clip(np.floor(y + 0.5), 0, height - 1))
    column = int(np.clip(np.floor(x + 0.5), 0, width - 1))
    return [(row, column, 1.0, 0.0, 0.0)]


class _Points:
    """All points of all heads of all queries, and what each reads."""

    def __init__(
        self,
        value,
        shapes,
        locations,
        weights,
        points_per_level=None,
        method="bilinear",
        softmax=False,
    ):
        shapes = [tuple(map(int, size)) for size in shapes]
        points = points_per_level
        if points is None:
            points = [locations.shape[4]] * len(shapes)
        n, queries, heads = locations.shape[:3]
        self.level_of = np.repeat(np.arange(len(shapes)), points)
        self.locations = locations.reshape(n, queries, heads, sum(points), 2)
        self.shares = weights.reshape(n, queries, heads, sum(points))
        self.softmax = softmax
        if softmax:
            with np.errstate(invalid="ignore"):
                powers = np.exp(self.shares - self.shares.max(-1, keepdims=True, initial=-np.inf))
                self.shares = powers / powers.sum(-1, keepdims=True)
        ends = np.cumsum([height * width for height, width in shapes])
        self.starts = [end - h * w for end, (h, w) in zip(ends, shapes, strict=True)]
        self.value, self.shapes, self.nearest = value, shapes, method == "nearest"

    def level(self, array, n, m, k):
        """The level (H, W, D) of an array as `value` that a point reads, as a view."""
        height, width = self.shapes[self.level_of[k]]
        start = self.starts[self.level_of[k]]
        return array[n, start : start + height * width, m].reshape(height, width, -1)

    def __iter__(self):
        """(n, q, m, k, corners)"""
        for n, q, m, k in np.ndindex(*self.shares.shape):
            level = self.level(self.value, n, m, k)
            x, y = self.locations[n, q, m, k] * (level.shape[1], level.shape[0])
            corners = _nearest(level, y, x) if self.nearest else _corners(level, y - 0.5, x - 0.5)
            yield n, q, m, k, corners


def ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights, **options):
    points = _Points(value, spatial_shapes, sampling_locations, attention_weights, **options)
    n, queries, heads = sampling_locations.shape[:3]
    output = np.zeros((n, queries, heads, value.shape[3]))
    for n, q, m, k, corners in points:
        level = points.level(value, n, m, k)
        for y, x, weight, _, _ in corners:
            output[n, q, m] += points.shares[n, q, m, k] * weight * _pixel(level, y, x)
    return output.reshape(*output.shape[:2], heads * value.shape[3])


def ms_deform_attn_backward(
    grad_output, value, spatial_shapes, sampling_locations, attention_weights, **options
):
    points = _Points(value, spatial_shapes, sampling_locations, attention_weights, **options)
    grad_output = grad_output.reshape(*sampling_locations.shape[:3], value.shape[3])
    grad_value = np.zeros(value.shape)
    grad_locations = np.zeros(points.locations.shape)
    grad_shares = np.zeros(points.shares.shape)
    for n, q, m, k, corners in points:
        level, grad = points.level(value, n, m, k), grad_output[n, q, m]
        into, share = points.level(grad_value, n, m, k), points.shares[n, q, m, k]
        for y, x, weight, slope_y, slope_x in corners:
            seen = grad @ _pixel(level, y, x)
            grad_shares[n, q, m, k] += weight * seen
            slope = slope_x * level.shape[1], slope_y * level.shape[0]
            grad_locations[n, q, m, k] += share * seen * np.array(slope)
            if 0 <= y < level.shape[0] and 0 <= x < level.shape[1]:
                into[y, x] += share * weight * grad
    if points.softmax:
        within = np.sum(points.shares * grad_shares, -1, keepdims=True)
        grad_shares = points.shares * (grad_shares - within)
    return {
        "value": grad_value,
        "sampling_locations": grad_locations.reshape(sampling_locations.shape),
        "attention_weights": grad_shares.reshape(attention_weights.shape),
    }
