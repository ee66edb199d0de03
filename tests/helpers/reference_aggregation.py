"""DCNv3 and DCNv4 in float64, as their equation reads."""

import numpy as np

__all__ = ["dcnv3", "dcnv3_backward", "dcnv4", "dcnv4_backward"]


def _pair(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


class _Grid:
    """Where the points of each output pixel are."""

    def __init__(
        self,
        size,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        offset_scale=1.0,
        remove_center=False,
    ):
        self.size, self.groups, self.scale = size, groups, offset_scale
        (kh, kw), self.stride, self.padding = map(_pair, (kernel_size, stride, padding))
        self.dilation = dy, dx = _pair(dilation)
        self.center = (dy * (kh - 1)) >> 1, (dx * (kw - 1)) >> 1
        self.taps = [(b, a) for a in range(kw) for b in range(kh)]
        if remove_center:
            self.taps.remove((kh // 2, kw // 2))
        extent = dy * (kh - 1) + 1, dx * (kw - 1) + 1
        self.out = tuple(
            (size[i] + 2 * self.padding[i] - extent[i]) // self.stride[i] + 1 for i in (0, 1)
        )

    def corners(self, i, j, k, offset):
        """(row, column, weight, slope of the weight along x, along y) of what a point reads."""
        at = [
            (i, j)[axis] * self.stride[axis]
            - self.padding[axis]
            + self.center[axis]
            + (self.taps[k][axis] * self.dilation[axis] - self.center[axis] + offset[1 - axis])
            * self.scale
            for axis in (0, 1)
        ]
        if not all(-1 < at[axis] < self.size[axis] for axis in (0, 1)):  # also where one is NaN
            return []
        top, left = int(np.floor(at[0])), int(np.floor(at[1]))
        ly, lx = at[0] - top, at[1] - left
        found = [
            (top, left, (1 - ly) * (1 - lx), ly - 1, lx - 1),
            (top, left + 1, (1 - ly) * lx, 1 - ly, -lx),
            (top + 1, left, ly * (1 - lx), -ly, 1 - lx),
            (top + 1, left + 1, ly * lx, ly, lx),
        ]
        return [c for c in found if 0 <= c[0] < self.size[0] and 0 <= c[1] < self.size[1]]


def _softmax(mask):
    powers = np.exp(mask - mask.max(-1, keepdims=True, initial=-np.inf))
    return powers / powers.sum(-1, keepdims=True)


def _forward(grid, input, offset, mask):
    """input (N, H, W, G, Cg), offset (N, Ho, Wo, G, P, 2), mask (N, Ho, Wo, G, P)"""
    output = np.zeros((*mask.shape[:4], input.shape[-1]))
    for n, i, j, g, k in np.ndindex(*mask.shape):
        for y, x, weight, _, _ in grid.corners(i, j, k, offset[n, i, j, g, k]):
            output[n, i, j, g] += mask[n, i, j, g, k] * weight * input[n, y, x, g]
    return output


def _backward(grid, grad_output, input, offset, mask):
    """The gradients of the three."""
    grads = np.zeros(input.shape), np.zeros(offset.shape), np.zeros(mask.shape)
    for n, i, j, g, k in np.ndindex(*mask.shape):
        point = n, i, j, g, k
        for y, x, weight, slope_x, slope_y in grid.corners(i, j, k, offset[point]):
            seen = grad_output[n, i, j, g] @ input[n, y, x, g]
            grads[0][n, y, x, g] += mask[point] * weight * grad_output[n, i, j, g]
            grads[1][point] += mask[point] * seen * grid.scale * np.array([slope_x, slope_y])
            grads[2][point] += weight * seen
    return grads


def _grouped(input, groups):
    return input.reshape(*input.shape[:3], groups, input.shape[3] // groups)


def _v3(input, offset, mask, options, softmax):
    """The grid, and the arrays of DCNv3 with their groups apart."""
    grid = _Grid(input.shape[1:3], **options)
    axes = (len(input), *grid.out, grid.groups, len(grid.taps))
    mask = mask.reshape(axes)
    with np.errstate(invalid="ignore"):
        mask = _softmax(mask) if softmax else mask
    return grid, _grouped(input, grid.groups), offset.reshape(*axes, 2), mask


def dcnv3(input, offset, mask, softmax=False, **grid):
    output = _forward(*_v3(input, offset, mask, grid, softmax))
    return output.reshape(*output.shape[:3], input.shape[3])


def dcnv3_backward(grad_output, input, offset, mask, softmax=False, **grid):
    grid, *arrays = _v3(input, offset, mask, grid, softmax)
    grads = _backward(grid, _grouped(grad_output, grid.groups), *arrays)
    if softmax:
        within = np.sum(arrays[2] * grads[2], -1, keepdims=True)
        grads = *grads[:2], arrays[2] * (grads[2] - within)
    shapes = {"input": input.shape, "offset": offset.shape, "mask": mask.shape}
    return {k: grad.reshape(s) for (k, s), grad in zip(shapes.items(), grads, strict=True)}


def _v4(input, offset_mask, options):
    """The same of DCNv4."""
    grid = _Grid(input.shape[1:3], **options)
    points, axes = len(grid.taps), (len(input), *grid.out, grid.groups)
    parts = offset_mask[..., : 3 * grid.groups * points].reshape(*axes, 3 * points)
    offset, mask = parts[..., : 2 * points], parts[..., 2 * points :]
    return grid, _grouped(input, grid.groups), offset.reshape(*axes, points, 2), mask


def dcnv4(input, offset_mask, **grid):
    output = _forward(*_v4(input, offset_mask, grid))
    return output.reshape(*output.shape[:3], input.shape[3])


def dcnv4_backward(grad_output, input, offset_mask, **grid):
    grid, *arrays = _v4(input, offset_mask, grid)
    grad_input, *of_points = _backward(grid, _grouped(grad_output, grid.groups), *arrays)
    packed, points = np.zeros(offset_mask.shape), len(grid.taps)
    axes = of_points[1].shape[:4]
    both = np.concatenate([of_points[0].reshape(*axes, 2 * points), of_points[1]], -1)
    packed[..., : 3 * grid.groups * points] = both.reshape(*axes[:3], 3 * grid.groups * points)
    return {"input": grad_input.reshape(input.shape), "offset_mask": packed}
