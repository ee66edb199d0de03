"""Deformable convolution: columns of samples by ``sampling.cu``, matrix products by cuBLAS."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cudeform.cuda import layout
from cudeform.cuda.chunks import Chunk, chunks, image_groups
from cudeform.cuda.device import Device, device_of, gradients
from cudeform.cuda.lanes import VECTOR_BYTES, is_aligned
from cudeform.cuda.sampler import Block, Gradients, Sampler, units
from cudeform.plans.convolution import ConvPlan

__all__ = ["backward", "forward", "units"]

# Columns of a chunk. Large products and launches save more than an L2 cache that holds the columns.
COLUMN_BYTES = 192 << 20
BLOCK_BYTES = (512, 256, 128)  # channels of gradients of columns at once: one of these


def _most_pixels(plan: ConvPlan, dtype: np.dtype, more: int = 0) -> int:
    """Output pixels whose columns, with all channels and so many numbers more, make a chunk."""
    numbers = plan.points.taps * plan.points.channels + more
    return max(1, COLUMN_BYTES // (numbers * dtype.itemsize))


def _all_channels(plan: ConvPlan) -> Block:
    return Block(0, plan.points.channels, plan.in_channels)


def _packed_weight(batch: layout.Batch, plan: ConvPlan, weight: Any) -> Any:
    """(O, C/groups, kh, kw) -> (O, taps, C/groups), the order of the columns, when `batch` has run.

    The weight itself where that is the same, unless it starts off the grid of vectors: cuBLAS may
    choose by that, and equal arguments give equal bytes wherever they are.
    """
    shape = (plan.out_channels, plan.points.taps, plan.in_channels)
    if 1 in shape[1:] and is_aligned(weight):
        return weight.reshape(shape)
    packed = batch.device.empty(shape, weight.dtype)
    batch.transpose(weight, packed, (plan.out_channels, plan.in_channels, plan.points.taps))
    return packed


def forward(
    plan: ConvPlan,
    input: Any,
    offset: Any = None,
    weight: Any = None,
    bias: Any = None,
    mask: Any = None,
) -> tuple[Any]:
    """The convolution, a chunk of output pixels at a time."""
    points, per_group = plan.points, plan.out_channels // plan.groups
    with device_of(input) as device:
        output = device.empty(plan.out_shape, input.dtype)
        if points.batch == 0:
            return (output,)
        batch, in_place = layout.Batch(device), _is_fast(plan, input.dtype)
        if bias is not None and in_place:
            batch.fill(bias, output, 1 if points.channels_last else points.pixels)
        sampler = Sampler(device, points, input.dtype, offset)
        packed = _packed_weight(batch, plan, weight).reshape(plan.groups, per_group, -1)
        most = _most_pixels(plan, sampler.dtype, 0 if in_place else plan.out_channels)
        all_pixels = points.batch * points.pixels
        for images in image_groups(points, all_pixels, sampler.dtype.itemsize):
            last = sampler.channels_last(batch, input, images)
            batch.run()
            for chunk in chunks(points, images, most):
                part = last[chunk.within(images)], *chunk.of(offset, mask)
                columns = sampler.columns(chunk, _all_channels(plan), *part)
                rows = output[chunk.batch]
                if not in_place:
                    rows = device.empty((chunk.size, plan.out_channels), input.dtype)
                    if bias is not None:
                        layout.fill(device, bias, rows)
                for product in _products(plan, chunk, columns, packed, rows, in_place):
                    device.gemm(*product, accumulate=bias is not None, precision=plan.precision)
                if not in_place:
                    sampler.channels_first(chunk, rows, output)
    return (output,)


def _is_fast(plan: ConvPlan, dtype: Any) -> bool:
    """Whether products write fast to where the output lies.

    cuBLAS multiplies several times as fast into rows that all start on the grid of vectors. Where
    those of NCHW do not, rows of channels do, which are transposed.
    """
    points = plan.points
    return points.channels_last or points.pixels * dtype.itemsize % VECTOR_BYTES == 0


def _products(
    plan: ConvPlan, chunk: Chunk, columns: Any, packed: Any, output: Any, in_place: bool
) -> Iterator[tuple[Any, Any, Any]]:
    """The matrix products (a, b, out) that turn a chunk's columns into its part of the output.

    `output` has its images; where the products are not `in_place`, rows (images, pixels, O).
    """
    points, groups = plan.points, plan.groups
    per_group = plan.out_channels // groups
    stop = chunk.pixel + chunk.pixels
    if points.channels_last:
        rows = output.reshape(chunk.images, points.pixels, plan.out_channels)
        rows = rows[:, chunk.pixel : stop].reshape(chunk.size, groups, per_group)
        matrices = columns.reshape(chunk.size, groups, -1)
        yield matrices.swapaxes(0, 1), packed.swapaxes(1, 2), rows.swapaxes(0, 1)
        return
    if in_place:
        rows = output.reshape(chunk.images, groups, per_group, points.pixels)
        rows = rows[:, :, :, chunk.pixel : stop]
    else:
        rows = output.reshape(chunk.images, chunk.pixels, groups, per_group).transpose(0, 2, 3, 1)
    matrices = columns.reshape(chunk.images, chunk.pixels, groups, -1)
    if groups == 1:  # one product for all images
        yield packed, matrices[:, :, 0].swapaxes(1, 2), rows[:, 0]
        return
    for image in range(chunk.images):
        yield packed, matrices[image].transpose(1, 2, 0), rows[image]


def backward(
    plan: ConvPlan,
    grad_output: Any,
    input: Any,
    offset: Any = None,
    weight: Any = None,
    mask: Any = None,
    *,
    needs: frozenset[str],
) -> dict[str, Any]:
    """The gradients that are needed, a group of images at a time."""
    with device_of(input) as device:
        given = {"input": input, "offset": offset, "weight": weight, "mask": mask}
        grads = gradients(device, plan, given, needs, zero=plan.points.batch == 0)
        if plan.points.batch:
            _Backward(device, plan, given, grads).run(grad_output)
    return grads


class _Backward:
    """The backward of one call; the sums over the batch live here."""

    def __init__(
        self, device: Device, plan: ConvPlan, given: dict[str, Any], grads: dict[str, Any]
    ) -> None:
        self.device = device
        self.plan = plan
        self.input, self.offset, self.weight, self.mask = given.values()
        self.grads = grads
        self.sampler = Sampler(device, plan.points, self.input.dtype, self.offset)
        self.block_channels = _block_channels(plan, self.sampler)
        self.blocks = list(_blocks(plan, self.block_channels))
        channels = max(block.channels for block in self.blocks)
        self.most = self.sampler.most_backward_pixels(channels)
        self.packed: dict[Block, Any] = {}
        self.begin, self.finish = layout.Batch(device), layout.Batch(device)
        self.in_order = 1 in (plan.points.taps, plan.in_channels)  # weights and columns alike

    def run(self, grad_output: Any) -> None:
        """Set the gradients."""
        plan, points = self.plan, self.plan.points
        bias_sum = self._sum("bias", (1, plan.out_channels))
        by_group = (plan.groups, plan.out_channels // plan.groups, points.taps * plan.in_channels)
        weight_sum = self._sum("weight", by_group, self.in_order)
        targets = Gradients(*map(self.grads.get, Gradients._fields))
        if targets.needs:
            self.packed = dict(_packed_blocks(self.begin, plan, self.weight, self.block_channels))

        for images in image_groups(points, self.most, self.sampler.dtype.itemsize):
            last = ones = None
            grad_output_last = self.sampler.channels_last(self.begin, grad_output, images)
            if self.grads.keys() - {"bias"}:
                last = self.sampler.channels_last(self.begin, self.input, images)
            if bias_sum is not None:
                ones = self.device.empty((1, len(images) * points.pixels), grad_output.dtype)
                self.begin.fill(None, ones)
            self.begin.run()
            if bias_sum is not None:
                # The sum over all pixels is a product, which cuBLAS sums in a fixed order
                rows = grad_output_last.reshape(-1, plan.out_channels)
                self.device.gemm(ones, rows, bias_sum, accumulate=images.start > 0)
            if weight_sum is not None:
                self._add_weight(images, grad_output_last, last, weight_sum)
            if targets.needs:
                self._points(images, grad_output_last, last, targets)
            if images.stop < points.batch:
                self.finish.run()
        self._finish(weight_sum, bias_sum)

    def _sum(self, name: str, shape: tuple[int, ...], in_order: bool = True) -> Any:
        """Where a gradient is summed, in the order of the columns: itself where it has that."""
        grad = self.grads.get(name)
        if grad is None:
            return None
        if in_order and grad.dtype == self.sampler.sums:
            return grad.reshape(shape)
        return self.device.empty(shape, self.sampler.sums)

    def _finish(self, weight_sum: Any, bias_sum: Any) -> None:
        """Bring the sums, where they are not the gradients themselves, into their place."""
        plan, grads, sums = self.plan, self.grads, self.sampler.sums
        if weight_sum is not None and not (self.in_order and grads["weight"].dtype == sums):
            shape = (plan.out_channels, plan.points.taps, plan.in_channels)
            self.finish.transpose(weight_sum, grads["weight"], shape)
        if bias_sum is not None and grads["bias"].dtype != sums:
            self.finish.fill(bias_sum, grads["bias"])
        self.finish.run()

    def _add_weight(self, images: range, grad_output: Any, input: Any, grad_weight: Any) -> None:
        """Add grad_output^T columns of some images, given channels last."""
        plan = self.plan
        most = _most_pixels(plan, self.sampler.dtype)
        for chunk in chunks(plan.points, images, most):
            part = input[chunk.within(images)], *chunk.of(self.offset, self.mask)
            columns = self.sampler.columns(chunk, _all_channels(plan), *part)
            self.device.gemm(
                self._by_group(chunk, images, grad_output).transpose(1, 2, 0),
                columns.reshape(chunk.size, plan.groups, -1).swapaxes(0, 1),
                grad_weight,
                accumulate=chunk.image + chunk.pixel > 0,
                precision=plan.precision,
            )

    def _by_group(self, chunk: Chunk, images: range, grad_output: Any) -> Any:
        """The rows of a chunk as (pixels, groups, O/groups)."""
        rows = grad_output[chunk.within(images), chunk.pixel : chunk.pixel + chunk.pixels]
        return rows.reshape(chunk.size, self.plan.groups, -1)

    def _points(self, images: range, grad_output: Any, input: Any, targets: Gradients) -> None:
        """Gradients of input, offset and mask of some images, from W^T grad_output."""

        def grad_columns(chunk: Chunk, block: Block) -> Any:
            packed = self.packed[block]
            group = block.first // self.plan.in_channels
            rows = self._by_group(chunk, images, grad_output)
            rows = rows[:, group : group + packed.shape[0]].swapaxes(0, 1)
            shape = (chunk.size, packed.shape[0], packed.shape[2])
            columns = self.device.empty(shape, self.sampler.dtype)
            precision = self.plan.precision
            self.device.gemm(rows, packed, columns.swapaxes(0, 1), precision=precision)
            return columns

        given = grad_columns, input, self.offset, self.mask, targets, self.finish
        self.sampler.backpropagate(images, self.most, self.blocks, *given)


def _block_channels(plan: ConvPlan, sampler: Sampler) -> int:
    """Channels of gradients of columns at once: many, but so that those of an image fit."""
    sizes = [size // sampler.dtype.itemsize for size in BLOCK_BYTES]
    fit = (
        channels
        for channels in sizes
        if sampler.most_backward_pixels(min(channels, plan.points.channels)) >= plan.points.pixels
    )
    return next(fit, sizes[-1])


def _packed_blocks(
    batch: layout.Batch, plan: ConvPlan, weight: Any, most: int
) -> Iterator[tuple[Block, Any]]:
    """The weights of each block: (groups of the block, O/groups, taps * width)."""
    per_group, taps, width = plan.out_channels // plan.groups, plan.points.taps, plan.in_channels
    if width <= most:
        packed = _packed_weight(batch, plan, weight).reshape(plan.groups, per_group, -1)
        for block in _blocks(plan, most):
            group = block.first // width
            yield block, packed[group : group + block.channels // width]
        return
    parts = _packed_parts(batch, plan, weight, most)
    for block in _blocks(plan, most):
        group, channel = divmod(block.first, width)
        rows = parts[channel // most][group * per_group : (group + 1) * per_group]
        yield block, rows.reshape(1, per_group, taps * block.width)


def _packed_parts(batch: layout.Batch, plan: ConvPlan, weight: Any, most: int) -> list[Any]:
    """(O, taps, width) of each part of the channels of a group: those of one width in one go."""
    out_channels, taps = plan.out_channels, plan.points.taps
    whole, rest = divmod(plan.in_channels, most)
    packed = batch.device.empty((whole, out_channels, taps, most), weight.dtype)
    batch.transpose(
        weight,
        packed,
        (whole * out_channels, most, taps),
        groups=out_channels,
        of_source=layout.Strides(group=plan.in_channels * taps, step=most * taps),
    )
    parts = list(packed)
    if rest:
        parts.append(batch.device.empty((out_channels, taps, rest), weight.dtype))
        batch.transpose(
            weight.reshape(-1)[whole * most * taps :],
            parts[-1],
            (out_channels, rest, taps),
            of_source=layout.Strides(step=plan.in_channels * taps),
        )
    return parts


def _blocks(plan: ConvPlan, most: int) -> Iterator[Block]:
    """Divide the channels: parts of a weight group if it is wide, else several groups together."""
    width = plan.in_channels
    if width > most:
        for group in range(plan.groups):
            for first in range(0, width, most):
                part = min(most, width - first)
                yield Block(group * width + first, part, part)
        return
    together = most // width
    for group in range(0, plan.groups, together):
        yield Block(group * width, min(together, plan.groups - group) * width, width)
