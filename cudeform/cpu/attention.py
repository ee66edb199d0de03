"""Attention to points of several levels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cudeform import threads
from cudeform.arrays import sum_dtype
from cudeform.cpu.language.compiler import inlined, kernel
from cudeform.cpu.language.dtypes import rounded
from cudeform.plans.attention import AttentionPlan

__all__ = ["backward", "forward"]


class _Job(NamedTuple):
    """A plan as integers for kernels."""

    values: int
    heads: int
    channels: int
    queries: int
    samples: int
    nearest: int
    softmax: int


def _job(plan: AttentionPlan) -> _Job:
    return _Job(
        plan.values,
        plan.heads,
        plan.channels,
        plan.queries,
        plan.samples,
        int(plan.method == "nearest"),
        int(plan.softmax),
    )


def _sizes(plan: AttentionPlan) -> np.ndarray:
    """Height, width and first value of the level of each point."""
    levels = zip(plan.shapes, plan.starts, plan.points, strict=True)
    rows = [(height, width, start) for (height, width), start, n in levels for _ in range(n)]
    return np.array(rows, np.int64)


def forward(
    plan: AttentionPlan,
    value: np.ndarray,
    spatial_shapes: None,
    sampling_locations: np.ndarray,
    attention_weights: np.ndarray,
) -> tuple[np.ndarray]:
    """The sums of samples, in the dtype of `value`."""
    wide = sum_dtype(value.dtype)
    output = np.zeros(plan.results[0].shape, wide)
    if output.size:
        given = _wide(wide, value, sampling_locations, attention_weights)
        job, sizes = _job(plan), _sizes(plan)
        rows = plan.batch * plan.queries
        threads.share(
            lambda first, last: _forward(job, sizes, *given, output.reshape(-1), first, last),
            rows,
            rows * plan.heads * plan.samples * plan.channels * 8,
        )
    return (rounded(output, value.dtype),)


def backward(
    plan: AttentionPlan,
    grad_output: np.ndarray,
    value: np.ndarray,
    spatial_shapes: None,
    sampling_locations: np.ndarray,
    attention_weights: np.ndarray,
    *,
    needs: frozenset[str],
) -> dict[str, np.ndarray]:
    """The gradients named in `needs`, each in the dtype of its argument."""
    wide = sum_dtype(value.dtype)
    arrays = {
        "value": value,
        "sampling_locations": sampling_locations,
        "attention_weights": attention_weights,
    }
    found = {name: np.zeros(arrays[name].shape, wide) for name in arrays}
    if grad_output.size:
        given = _wide(wide, value, sampling_locations, attention_weights)
        (grad,) = _wide(wide, grad_output)
        into = tuple(array.reshape(-1) for array in found.values())
        job, sizes = _job(plan), _sizes(plan)
        work = grad_output.size * plan.samples * 16
        threads.share(
            lambda first, last: _backward(job, sizes, *given, grad, into, first, last),
            plan.batch * plan.heads,
            work,
        )
    return {name: rounded(found[name], arrays[name].dtype) for name in needs}


def _wide(dtype: np.dtype, *arrays: np.ndarray) -> list[np.ndarray]:
    found = []
    for array in arrays:
        flat = array.astype(dtype, copy=False).reshape(-1).view()
        flat.setflags(write=False)
        found.append(flat)
    return found


@inlined
def _located(job, sizes, locations, at, k):
    """Row and column of the first corner, the fractions, whether anything is read."""
    real = locations.dtype.type
    height, width = sizes[k, 0], sizes[k, 1]
    x = locations[at + 2 * k] * real(width)
    y = locations[at + 2 * k + 1] * real(height)
    if job.nearest:
        x, y = x + real(0.5), y + real(0.5)
        reads = (x == x) & (y == y)
        x = min(max(np.floor(x), real(0)), real(width - 1)) if reads else real(0)
        y = min(max(np.floor(y), real(0)), real(height - 1)) if reads else real(0)
    else:
        x, y = x - real(0.5), y - real(0.5)
        reads = (y > real(-1)) & (y < real(height)) & (x > real(-1)) & (x < real(width))
        x, y = x if reads else real(0), y if reads else real(0)
    top, left = np.floor(y), np.floor(x)
    return np.int64(top), np.int64(left), y - top, x - left, reads


@inlined
def _share(job, weights, at, k):
    """The factor of a point."""
    if not job.softmax:
        return weights[at + k]
    most = weights[at]
    for i in range(1, job.samples):
        most = max(most, weights[at + i])
    total = weights.dtype.type(0)
    for i in range(job.samples):
        total += np.exp(weights[at + i] - most)
    return np.exp(weights[at + k] - most) / total


@kernel
def _forward(job, sizes, value, locations, weights, output, first, last):
    pitch = job.heads * job.channels
    real = value.dtype.type
    for row in range(first, last):
        image = row // job.queries
        for m in range(job.heads):
            at = (row * job.heads + m) * job.samples
            to = row * pitch + m * job.channels
            for k in range(job.samples):
                top, left, ly, lx, reads = _located(job, sizes, locations, 2 * at, k)
                if not reads:
                    continue
                share = _share(job, weights, at, k)
                for corner in range(4):
                    y, x = top + corner // 2, left + corner % 2
                    w = (ly if corner // 2 else real(1) - ly) * (lx if corner % 2 else real(1) - lx)
                    if y < 0 or y >= sizes[k, 0] or x < 0 or x >= sizes[k, 1]:
                        continue
                    if job.nearest and corner:
                        continue
                    v = (image * job.values + sizes[k, 2] + y * sizes[k, 1] + x) * pitch
                    v += m * job.channels
                    for c in range(job.channels):
                        output[to + c] += share * w * value[v + c]


@kernel
def _backward(job, sizes, value, locations, weights, grad, into, first, last):
    grad_value, grad_locations, grad_weights = into
    pitch = job.heads * job.channels
    real = value.dtype.type
    dots = np.empty(4, value.dtype)
    for task in range(first, last):
        image, m = task // job.heads, task % job.heads
        for q in range(job.queries):
            row = image * job.queries + q
            at = (row * job.heads + m) * job.samples
            to = row * pitch + m * job.channels
            for k in range(job.samples):
                top, left, ly, lx, reads = _located(job, sizes, locations, 2 * at, k)
                if not reads:
                    continue
                share = _share(job, weights, at, k)
                dots[:] = 0
                for corner in range(4):
                    y, x = top + corner // 2, left + corner % 2
                    w = (ly if corner // 2 else real(1) - ly) * (lx if corner % 2 else real(1) - lx)
                    if y < 0 or y >= sizes[k, 0] or x < 0 or x >= sizes[k, 1]:
                        continue
                    if job.nearest and corner:
                        continue
                    v = (image * job.values + sizes[k, 2] + y * sizes[k, 1] + x) * pitch
                    v += m * job.channels
                    for c in range(job.channels):
                        dots[corner] += grad[to + c] * value[v + c]
                        grad_value[v + c] += share * w * grad[to + c]
                t00, t01, t10, t11 = dots[0], dots[1], dots[2], dots[3]
                upper = (real(1) - lx) * t00 + lx * t01
                lower = (real(1) - lx) * t10 + lx * t11
                grad_weights[at + k] = (real(1) - ly) * upper + ly * lower
                if not job.nearest:
                    along_x = (real(1) - ly) * (t01 - t00) + ly * (t11 - t10)
                    grad_locations[2 * (at + k)] = share * along_x * real(sizes[k, 1])
                    grad_locations[2 * (at + k) + 1] = share * (lower - upper) * real(sizes[k, 0])
            if job.softmax:
                total = real(0)
                for k in range(job.samples):
                    total += _share(job, weights, at, k) * grad_weights[at + k]
                for k in range(job.samples):
                    share = _share(job, weights, at, k)
                    grad_weights[at + k] = share * (grad_weights[at + k] - total)
