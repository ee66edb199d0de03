"""Boxes image by image on a GPU, as one tensor: one kernel makes it, nobody has to check it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from cudeform.boxes import Joined
from cudeform.cuda import box_rows
from cudeform.torch.exchange import compute
from cudeform.torch.signatures import BRIDGES, Bridge
from cudeform.torch.state import is_plain, transformed

__all__ = ["are_joined", "bridge_of", "join"]


def bridge_of(bridge: Bridge, given: Mapping[str, Any]) -> Bridge:
    """What a call goes through: where `join` can join its boxes, functions that take these."""
    boxes, images = given.get(bridge.boxes or ""), given.get(bridge.images)
    if not isinstance(boxes, (list, tuple)) or not boxes:
        return bridge
    if torch.compiler.is_compiling() or transformed() or not is_plain((images, *boxes)):
        return bridge
    return _JOINED[bridge.name] if _is_simple(images, boxes) else bridge


def are_joined(bridge: Bridge) -> bool:
    """Whether a bridge is one that takes the boxes that `join` makes."""
    return bridge is _JOINED.get(bridge.name)


def _is_simple(images: Any, boxes: Sequence[Any]) -> bool:
    """Tensors of one GPU and of dtypes that go together. What else there is, others refuse."""
    dtypes = {images.dtype} if images.element_size() > 2 else {images.dtype, torch.float32}
    return images.is_cuda and all(
        box.device == images.device
        and box.dtype in dtypes
        and box.layout is torch.strided
        and not (box.is_nested or box.requires_grad)
        for box in boxes
    )


def join(boxes: Sequence[torch.Tensor], images: torch.Tensor) -> Any:
    """Boxes (L, 4) of each image as rows (image, x1, y1, x2, y2)."""
    given = {"images": images.detach(), **{f"boxes{n}": b for n, b in enumerate(boxes)}}
    return compute(_join, given, {})


def _join(images: Any, **boxes: Any) -> Any:
    return box_rows.join(list(boxes.values()), images)


def _taking_joined(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(**given: Any) -> Any:
        return function(**{**given, name: Joined(given[name])})

    call.checked_boxes = Joined  # type: ignore[attr-defined]
    return call


def _of_joined(bridge: Bridge, name: str) -> Bridge:
    forward, backward = (_taking_joined(name, f) for f in (bridge.forward, bridge.backward))
    return replace(bridge, forward=forward, backward=backward)


_JOINED = {name: _of_joined(b, b.boxes) for name, b in BRIDGES.items() if b.boxes is not None}
