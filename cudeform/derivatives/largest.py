"""Poolings that choose a pixel or a sample of each bin."""

from __future__ import annotations

import math
from typing import Any

from cudeform.derivatives.calls import Call, images_of


def at_largest(call: Call, tangent: Any) -> Any:
    """What moves where a pooling found its largest pixels or samples."""
    given = {"input": call.xp.still(call.primals["input"]), "boxes": call.primals["boxes"]}
    _, argmax = call.function(**given, **call.options, return_argmax=True)
    return (_at_pixels if call.plan.reads == "pixels" else _at_samples)(call, tangent, argmax)


def _at_samples(call: Call, tangent: Any, argmax: Any) -> Any:
    """Each sample as a region of its own, in an image of one channel."""
    xp, (images, channels, height, width) = call.xp, tangent.shape
    y, x = argmax[:, 0], argmax[:, 1]  # (R, channels, ph, pw)
    image = images_of(xp, call.primals["boxes"]) * channels
    image = image + xp.reshape(xp.arange(channels, y), (channels, 1, 1)) + xp.zeros_like(y)
    boxes = xp.stack([image, x - 0.5, y - 0.5, x + 0.5, y + 0.5], -1)
    chosen = call.function(
        input=xp.reshape(tangent, (images * channels, 1, height, width)),
        boxes=xp.reshape(boxes, (math.prod(y.shape), 5)),
        output_size=1,
        sampling_ratio=1,
    )
    return xp.reshape(chosen, y.shape)


def _at_pixels(call: Call, tangent: Any, argmax: Any) -> Any:
    xp, (images, channels, height, width) = call.xp, tangent.shape
    channel = xp.reshape(xp.arange(channels, argmax), (channels, 1, 1))
    pixels = xp.reshape(tangent, (images, channels, height * width))
    chosen = argmax >= 0  # in a bin with pixels, of an image that exists
    image = xp.cast(xp.where(chosen, images_of(xp, call.primals["boxes"]), 0), "int32")
    return xp.where(chosen, pixels[image, channel, xp.where(chosen, argmax, 0)], 0)
