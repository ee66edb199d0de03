"""bilinear_sample: a column of one tap is the output itself."""

from __future__ import annotations

from typing import Any

from cudeform.cuda import layout
from cudeform.cuda.chunks import Chunk, chunks, image_groups
from cudeform.cuda.device import device_of, gradients
from cudeform.cuda.sampler import Block, Gradients, Sampler, units
from cudeform.plans.points import Points
from cudeform.plans.sampling import SamplePlan

__all__ = ["backward", "forward", "units"]


def _only_block(points: Points) -> Block:
    return Block(0, points.channels, points.channels)


def forward(plan: SamplePlan, input: Any, points: Any) -> tuple[Any]:
    """bilinear_sample on a grid of 1 x P pixels."""
    locations, points = points, plan.points
    shape = plan.results[0].shape
    with device_of(input) as device:
        output = device.empty(points.out_shape(points.channels), input.dtype)
        if points.batch * points.pixels == 0:
            return (output.reshape(shape),)
        sampler = Sampler(device, points, input.dtype, locations)
        most = sampler.most_backward_pixels(points.channels)
        batch = layout.Batch(device)
        for images in image_groups(points, most, sampler.dtype.itemsize):
            last = sampler.channels_last(batch, input, images)
            batch.run()
            for chunk in chunks(points, images, most):
                part = last[chunk.within(images)]
                _sample(sampler, chunk, part, locations[chunk.batch], output)
    return (output.reshape(shape),)


def _sample(sampler: Sampler, chunk: Chunk, input: Any, locations: Any, output: Any) -> None:
    """The samples of a chunk, into their place in the output."""
    points = sampler.points
    block = _only_block(points)
    if points.channels_last:
        rows = output.reshape(points.batch * points.pixels, points.channels)
        first = chunk.image * points.pixels + chunk.pixel
        sampler.sample(chunk, block, input, locations, None, rows[first : first + chunk.size])
        return
    columns = sampler.columns(chunk, block, input, locations, None)
    sampler.channels_first(chunk, columns, output)


def backward(
    plan: SamplePlan, grad_output: Any, input: Any, points: Any, *, needs: frozenset[str]
) -> dict[str, Any]:
    """Gradients of bilinear_sample with respect to "input" and "points"."""
    locations, points = points, plan.points
    grad_output = grad_output.reshape(points.out_shape(points.channels))
    with device_of(input) as device:
        given, nothing = {"input": input, "points": locations}, points.batch * points.pixels == 0
        grads = gradients(device, plan, given, needs, zero=nothing)
        if nothing:
            return grads
        sampler = Sampler(device, points, input.dtype, locations)
        targets = Gradients(grads.get("input"), grads.get("points"))
        batch = layout.Batch(device)
        most = sampler.most_backward_pixels(points.channels)
        for images in image_groups(points, most, sampler.dtype.itemsize):
            last = sampler.channels_last(batch, grad_output, images)
            pixels_last = sampler.channels_last(batch, input, images)
            batch.run()

            def columns(
                chunk: Chunk, block: Block, last: Any = last, images: range = images
            ) -> Any:
                return last[chunk.within(images), chunk.pixel : chunk.pixel + chunk.pixels]

            blocks, given = [_only_block(points)], (pixels_last, locations, None)
            sampler.backpropagate(images, most, blocks, columns, *given, targets, batch)
            batch.run()
    return grads
