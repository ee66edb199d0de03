"""Poolings that choose a pixel of each bin."""

from __future__ import annotations

from typing import Any

from cudeform.derivatives.calls import Call

__all__ = ["at_largest"]


def at_largest(call: Call, tangent: Any) -> Any:
    """What moves where `roi_pool` found the largest pixels."""
    xp, boxes = call.xp, call.primals["boxes"]
    given = {"input": xp.still(call.primals["input"]), "boxes": boxes}
    _, argmax = call.function(**given, **call.options, return_argmax=True)
    images, channels, height, width = tangent.shape
    image = xp.reshape(xp.cast(boxes[:, 0], "int32"), (boxes.shape[0], 1, 1, 1))
    channel = xp.reshape(xp.arange(channels, argmax), (channels, 1, 1))
    pixels = xp.reshape(tangent, (images, channels, height * width))
    found = argmax >= 0  # in a bin with pixels
    return xp.where(found, pixels[image, channel, xp.where(found, argmax, 0)], 0)
