"""Overlaps of boxes with the arguments of mmcv, in torch's own functions and NumPy's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cudeform.torch.extensions.calls import compiled, fill

__all__ = ["bbox_overlaps", "nms"]


@compiled
def bbox_overlaps(
    bboxes1: Tensor,  # (R, 4), x1, y1, x2, y2
    bboxes2: Tensor,  # (S, 4), with aligned (R, 4)
    ious: Tensor,  # (R, S), with aligned (R), filled
    mode: int,  # 0: over the union; 1: over the first box
    aligned: bool,
    offset: int,  # 1: the last pixel counts
) -> None:
    dtype = torch.float32 if bboxes1.dtype.itemsize == 2 else bboxes1.dtype
    first, second = bboxes1.to(dtype), bboxes2.to(dtype)
    if not aligned:
        first, second = first[:, None], second[None]
    area1, area2 = _areas(first, offset), _areas(second, offset)
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    common = (high - low + offset).clamp(min=0).prod(-1)
    whole = area1 + area2 - common if mode == 0 else area1.expand_as(common)
    fill(ious, common / whole.clamp(min=offset))


def _areas(boxes: Tensor, offset: int) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2] + offset).prod(-1)


@compiled
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """The rows of `boxes` (R, 4) to keep, the largest score first.

    A row at a time, and on the host: each depends on those before.
    """
    order = scores.sort(descending=True, stable=True).indices
    rows = boxes[order].float().cpu().numpy()
    low, high = rows[:, :2], rows[:, 2:]
    areas = (high - low + np.float32(offset)).prod(1)
    left, kept = np.arange(len(rows)), []
    while len(left):
        first, left = left[0], left[1:]
        kept.append(first)
        sides = np.minimum(high[first], high[left]) - np.maximum(low[first], low[left])
        common = np.maximum(sides + np.float32(offset), 0).prod(1)
        union = areas[first] + areas[left] - common
        with np.errstate(divide="ignore", invalid="ignore"):  # boxes without area overlap nothing
            left = left[~(common / union > iou_threshold)]
    return order[torch.as_tensor(np.array(kept, np.int64), device=order.device)]
