"""Overlaps of boxes with the arguments of mmcv, in torch's own functions and NumPy's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cudeform.torch.extensions.calls import compiled, fill


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


class _Rows:
    """Boxes in the order of their scores, on the host: what is kept depends on those before."""

    def __init__(self, boxes: Tensor, scores: Tensor, offset: int) -> None:
        self.order = scores.sort(descending=True, stable=True).indices.cpu().numpy()
        rows = boxes.float().cpu().numpy()[self.order]
        self.low, self.high, self.offset = rows[:, :2], rows[:, 2:4], np.float32(offset)
        self.areas = (self.high - self.low + self.offset).prod(1)

    def overlaps(self, first: int, others: np.ndarray) -> np.ndarray:
        """Of one row with others, over the unions."""
        low = np.maximum(self.low[first], self.low[others])
        high = np.minimum(self.high[first], self.high[others])
        common = np.maximum(high - low + self.offset, 0).prod(1)
        with np.errstate(divide="ignore", invalid="ignore"):  # NaN where no box has an area
            return common / (self.areas[first] + self.areas[others] - common)

    def groups(self, threshold: float, or_equal: bool = False) -> list[np.ndarray]:
        """Each box that is kept, and behind it those that it suppresses, as given."""
        reaches = np.greater_equal if or_equal else np.greater
        left, groups = np.arange(len(self.order)), []
        while len(left):
            first, left = left[0], left[1:]
            same = reaches(self.overlaps(first, left), threshold)
            groups.append(self.order[[first, *left[same]]])
            left = left[~same]
        return groups


@compiled
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """The rows of `boxes` (R, 4) to keep, the largest score first."""
    kept = [group[0] for group in _Rows(boxes, scores, offset).groups(iou_threshold)]
    return torch.as_tensor(kept, dtype=torch.int64, device=boxes.device)


@compiled
def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Rows of `dets` (R, 5), scores last: each that is kept, and then those that it suppresses."""
    groups = _Rows(dets, dets[:, 4], 0).groups(iou_threshold, or_equal=True)
    return [group.tolist() for group in groups]


@compiled
def softnms(
    boxes: Tensor,  # (R, 4)
    scores: Tensor,  # (R)
    dets: Tensor,  # (R, 5), of which as many rows are filled as are returned
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,  # 0: drop; 1: weight with 1 - overlap; 2: with a Gaussian
    offset: int,
) -> Tensor:
    """The rows that are left, in the order in which they were chosen."""
    rows = _Rows(boxes, scores, offset)
    weighted = scores.float().cpu().numpy()[rows.order]
    left, chosen = np.arange(len(weighted)), []
    while len(left):
        best = left[np.argmax(weighted[left])]
        chosen.append(best)
        left = left[left != best]
        overlap = rows.overlaps(best, left)
        if method == 2:
            weighted[left] *= np.exp(-(overlap**2) / np.float32(sigma))
        else:
            reached = overlap >= iou_threshold
            weighted[left[reached]] *= 0 if method == 0 else 1 - overlap[reached]
        left = left[~(weighted[left] < min_score)]
    kept = torch.as_tensor(rows.order[chosen], device=boxes.device)
    left_scores = torch.as_tensor(weighted[chosen], device=boxes.device, dtype=dets.dtype)
    dets[: len(kept)] = torch.cat([boxes[kept].to(dets.dtype), left_scores[:, None]], 1)
    return kept
