"""Boxes image by image as one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cudeform.cuda import box_rows
from cudeform.torch.exchange import compute
from cudeform.torch.state import is_plain, transformed


def rows_of(boxes: Sequence[torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Boxes (L, 4) of each image as rows (image, x1, y1, x2, y2): on a GPU by one kernel."""
    if not boxes:
        return images.new_zeros((0, 5))
    if _is_simple(images, boxes):
        given = {"images": images.detach(), **{f"boxes{n}": b for n, b in enumerate(boxes)}}
        return compute(_join, given, {})
    numbered = [
        torch.cat([box.new_full((box.shape[0], 1), n), box], dim=1) for n, box in enumerate(boxes)
    ]
    return torch.cat(numbered)


def _is_simple(images: Any, boxes: Sequence[Any]) -> bool:
    """Tensors of one GPU and of dtypes that go together. What else there is, others refuse."""
    if torch.compiler.is_compiling() or transformed() or not is_plain((images, *boxes)):
        return False
    dtypes = {images.dtype} if images.element_size() > 2 else {images.dtype, torch.float32}
    return images.is_cuda and all(
        box.device == images.device
        and box.dtype in dtypes
        and box.layout is torch.strided
        and not (box.is_nested or box.requires_grad)
        for box in boxes
    )


def _join(images: Any, **boxes: Any) -> Any:
    return box_rows.join(list(boxes.values()), images)
