"""Poolings of mmcv that are sums of samples, each with a share: rotated RoIAlign, PrRoIPool.

`ms_deform_attn` computes them: an image is its value, a bin one of its queries. Regions of one
image that have about as many samples in a bin go together; there is no call for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import cudeform
from cudeform import checks
from cudeform.torch.extensions.calls import add, compiled, named

_MOST_SAMPLES = 2**20  # of regions that go together


@dataclass(frozen=True)
class _Pooling:
    """Regions (R, 5 or 6), an image's index first, and into how many bins they are cut."""

    op: str
    rois: Tensor
    bins: tuple[int, int]
    scale: float
    pixels: torch.Size  # (N, C, H, W)

    def counts(self) -> Tensor:
        """Rows and columns of samples in each bin of a region.  # (R, 2)"""
        raise NotImplementedError

    def samples(self, rois: Tensor, counts: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """Where some regions are sampled, (r, ph, pw, most, (x, y)), and each sample's share."""
        raise NotImplementedError

    def pool(self, images: Tensor, output: Tensor) -> None:
        """Fill the bins."""
        values = _values(images)
        for image, rows, counts, most in self._groups():
            queries = self._queries(self.rois[rows], counts, most)
            sums = cudeform.ms_deform_attn(values[image], [self.pixels[2:]], **queries)
            output[rows] = sums.view(len(rows), *self.bins, -1).permute(0, 3, 1, 2)

    def spread(self, grad_output: Tensor, grad_images: Tensor) -> None:
        """Add the gradient of the images, of which the shape alone counts."""
        values = _values(grad_images)
        for image, rows, counts, most in self._groups():
            queries = self._queries(self.rois[rows], counts, most)
            found = self._backward(grad_output[rows], values[image], queries, ("value",))
            add(grad_images[image], found.value.view(*self.pixels[2:], -1).permute(2, 0, 1))

    def move(self, grad_output: Tensor, images: Tensor, grad_rois: Tensor) -> None:
        """Add the gradient of the regions, by way of where their samples are."""
        values = _values(images)
        for image, rows, counts, most in self._groups():
            with torch.enable_grad():
                rois = self.rois[rows].detach().requires_grad_()
                queries = self._queries(rois, counts, most)
            fixed = {name: tensor.detach() for name, tensor in queries.items()}
            found = self._backward(grad_output[rows], values[image], fixed, tuple(fixed))
            moved = [getattr(found, name) for name in queries]
            grad_rois[rows] += torch.autograd.grad(list(queries.values()), rois, moved)[0]

    def _groups(self) -> Iterator[tuple[int, Tensor, Tensor, int]]:
        """An image, rows of regions in it, their counts, and a number of samples that is enough.

        A power of two, so that there are few groups and at most twice the samples.
        """
        counts = self.counts()
        numbers = self.rois[:, 0].trunc().double(), counts.prod(1).double()  # the first as in C
        images, samples = torch.stack(numbers).cpu().numpy()  # the one time that the host waits
        wrong = ~((images >= 0) & (images < self.pixels[0]))
        if wrong.any():
            expected = f"with image indices from 0 to {self.pixels[0] - 1} in the first column"
            checks.fail(self.op, "rois", expected, images[wrong][0])
        bits = np.ceil(np.log2(np.maximum(samples, 1)))
        keys = np.stack([images, bits], 1).astype(np.int64)
        for image, power in np.unique(keys, axis=0).tolist():
            rows = torch.from_numpy(np.flatnonzero((keys == (image, power)).all(1)))
            most = 1 << power
            for part in rows.to(self.rois.device).split(
                max(1, _MOST_SAMPLES // (most * self.bins[0] * self.bins[1]))
            ):
                yield image, part, counts[part], most

    def _queries(self, rois: Tensor, counts: Tensor, most: int) -> dict[str, Tensor]:
        """Locations and weights of the attention."""
        points, shares = self.samples(rois, counts, most)
        sides = points.new_tensor([self.pixels[3], self.pixels[2]])
        return {
            "sampling_locations": ((points + 0.5) / sides).flatten(0, 2)[None, :, None, None],
            "attention_weights": shares.flatten(0, 2)[None, :, None, None],
        }

    def _backward(
        self, grad_output: Tensor, value: Tensor, queries: dict[str, Tensor], needs: Iterable[str]
    ) -> Any:
        """Gradients of the attention, from those of some regions' bins."""
        grad = grad_output.permute(0, 2, 3, 1).reshape(1, -1, self.pixels[1])
        shapes = [self.pixels[2:]]
        return cudeform.ms_deform_attn_backward(grad, value, shapes, **queries, needs=needs)


def _values(images: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, 1, H*W, 1, C)"""
    return images.permute(0, 2, 3, 1).reshape(images.shape[0], 1, -1, 1, images.shape[1])


def _grid(counts: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row and column of each sample in its bin, and whether there is one.  # each (r, 1, P)"""
    index, columns = torch.arange(most, device=counts.device), counts[:, 1:, None].clamp(min=1)
    row = index.div(columns, rounding_mode="floor")
    return row, index % columns, index < counts.prod(1).view(-1, 1, 1)


@dataclass(frozen=True)
class _RotatedAlign(_Pooling):
    """Regions (image, x, y of the centre, width, height, angle) and their grids of samples."""

    sampling_ratio: int
    aligned: bool
    clockwise: bool

    def _sides(self, rois: Tensor) -> Tensor:
        """Height and width.  # (r, 2)"""
        sides = rois[:, [4, 3]] * self.scale
        return sides if self.aligned else sides.clamp(min=1)

    def counts(self) -> Tensor:
        sides = self._sides(self.rois)
        if self.sampling_ratio > 0:
            return torch.full_like(sides, self.sampling_ratio, dtype=torch.int64)
        return (sides / sides.new_tensor(self.bins)).ceil().long().clamp(min=0)

    def samples(self, rois: Tensor, counts: Tensor, most: int) -> tuple[Tensor, Tensor]:
        *grid, there = _grid(counts, most)
        sides, ways = self._sides(rois), []
        for axis in (0, 1):  # y, x
            side, bins = sides[:, axis, None, None], self.bins[axis]
            step = side / bins
            within = (grid[axis] + 0.5) * step / counts[:, axis, None, None].clamp(min=1)
            bin_at = torch.arange(bins, device=rois.device)[:, None]
            ways.append(bin_at * step - side / 2 + within)  # (r, bins, P)
        up, along = ways[0][:, :, None], ways[1][:, None]
        angle = rois[:, 5].view(-1, 1, 1, 1) * (-1 if self.clockwise else 1)
        x, y = (rois[:, 1:3] * self.scale - 0.5 * self.aligned).view(-1, 2, 1, 1, 1).unbind(1)
        x = up * angle.sin() + along * angle.cos() + x
        y = up * angle.cos() - along * angle.sin() + y
        _, _, height, width = self.pixels
        reads = (x >= -1) & (x <= width) & (y >= -1) & (y <= height) & there[:, None]
        shares = reads / counts.prod(1).clamp(min=1).to(x.dtype).view(-1, 1, 1, 1)
        return torch.stack([x.clamp(0, width - 1), y.clamp(0, height - 1)], -1), shares


@dataclass(frozen=True)
class _PrecisePool(_Pooling):
    """Regions (image, x1, y1, x2, y2), integrals of the samples that are 0 beyond the border.

    Between four pixels the sample in the middle of a rectangle is the mean of all in it: a bin is
    cut where rows and columns of pixels are, and each piece has one sample.
    """

    def _edges(self, rois: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
        """Where bins begin and end along y or x, within what the image reaches; their size."""
        low, high = rois[:, 2 - axis] * self.scale, rois[:, 4 - axis] * self.scale
        step = ((high - low).clamp(min=0) / self.bins[axis])[:, None]
        begin = torch.arange(self.bins[axis], device=rois.device) * step + low[:, None]
        pixels = self.pixels[2 + axis]
        return begin.clamp(-1, pixels), (begin + step).clamp(-1, pixels), step

    def counts(self) -> Tensor:
        ways = [self._edges(self.rois, axis) for axis in (0, 1)]
        most = [(end.ceil() - begin.floor()).amax(1) for begin, end, _ in ways]
        return torch.stack(most, 1).long().clamp(min=0)

    def samples(self, rois: Tensor, counts: Tensor, most: int) -> tuple[Tensor, Tensor]:
        *grid, _ = _grid(counts, most)
        middles, lengths = [], []
        for axis in (0, 1):
            begin, end, step = (edge[:, :, None] for edge in self._edges(rois, axis))
            pixel = begin.detach().floor() + grid[axis]  # (r, bins, P)
            # Not torch.maximum: of equal ones it is the edge that has the gradient.
            first = torch.where(pixel > begin, pixel, begin)
            last = torch.where(pixel + 1 < end, pixel + 1, end)
            part = (pixel < end) & (step > 0)
            middles.append((first + last) / 2)
            lengths.append(torch.where(part, (last - first) / torch.where(step > 0, step, 1), 0))
        shares = lengths[0][:, :, None] * lengths[1][:, None]
        y, x = torch.broadcast_tensors(middles[0][:, :, None], middles[1][:, None])
        return torch.stack([x, y], -1), shares


_OF_PRECISE = "pooled_height pooled_width spatial_scale"
_OF_ROTATED = f"{_OF_PRECISE} sampling_ratio aligned clockwise"


def _pooling(
    kind: type[_Pooling],
    op: str,
    rois: Tensor,
    images: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    **others: Any,
) -> _Pooling:
    """With regions in the dtype of coordinates."""
    wide = rois.to(torch.float64 if images.dtype == torch.float64 else torch.float32)
    return kind(op, wide, (pooled_height, pooled_width), spatial_scale, images.shape, **others)


def _forward(op: str, kind: type[_Pooling], names: str) -> Callable[..., None]:
    def forward(
        input: Tensor,  # (N, C, H, W)
        rois: Tensor,
        output: Tensor,  # (R, C, ph, pw), filled
        **numbers: Any,
    ) -> None:
        _pooling(kind, op, rois, input, **numbers).pool(input, output)

    forward.__name__ = op
    return compiled(named("input rois output", names)(forward))


def _backward(op: str, kind: type[_Pooling], names: str) -> Callable[..., None]:
    def backward(
        grad_output: Tensor,
        rois: Tensor,
        grad_input: Tensor,  # added to
        **numbers: Any,
    ) -> None:
        _pooling(kind, op, rois, grad_input, **numbers).spread(grad_output, grad_input)

    backward.__name__ = op
    return compiled(named("grad_output rois grad_input", names)(backward))


roi_align_rotated_forward = _forward("roi_align_rotated_forward", _RotatedAlign, _OF_ROTATED)
roi_align_rotated_backward = _backward("roi_align_rotated_backward", _RotatedAlign, _OF_ROTATED)
prroi_pool_forward = _forward("prroi_pool_forward", _PrecisePool, _OF_PRECISE)
prroi_pool_backward = _backward("prroi_pool_backward", _PrecisePool, _OF_PRECISE)


@compiled
@named("output grad_output input rois grad_rois", _OF_PRECISE)
def prroi_pool_coor_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    grad_rois: Tensor,  # added to
    output: Tensor,
    **numbers: Any,
) -> None:
    pooling = _pooling(_PrecisePool, "prroi_pool_coor_backward", rois, input, **numbers)
    pooling.move(grad_output, input, grad_rois)
