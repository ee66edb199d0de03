"""Sets of boxes: which prediction is of which object, the loss, and the average precision."""

from __future__ import annotations

import numpy as np
import torch
from detr_network import Answers
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss

CLASS, CORNERS, OVERLAP = 2.0, 5.0, 2.0  # weights of the three losses, as in Deformable DETR
ALPHA, GAMMA = 0.25, 2.0  # of the focal loss


class Objects:
    pass


def corners(boxes: Tensor) -> Tensor:
    """(x, y, w, h) -> (x1, y1, x2, y2)"""
    middle, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([middle - half, middle + half], -1)


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of boxes (x1, y1, x2, y2), whose shapes broadcast."""
    area = [(c[..., 2:] - c[..., :2]).prod(-1) for c in (a, b)]
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    both = (high - low).clamp(min=0).prod(-1)
    low, high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    hull = (high - low).prod(-1)
    either = area[0] + area[1] - both
    iou = both / either
    return iou, iou - (hull - either) / hull


def focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """Lin et al. 2017: what is told well already counts little."""
    p = logits.sigmoid()
    miss = p * (1 - wanted) + (1 - p) * wanted
    alpha = ALPHA * wanted + (1 - ALPHA) * (1 - wanted)
    return alpha * miss**GAMMA * binary_cross_entropy_with_logits(logits, wanted, reduction="none")


@torch.no_grad()
def match(answers: Answers, image: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One prediction for each object (K,): its image and its number in it, the cheapest in sum."""
    logits, found = answers.logits[image], answers.boxes[image]  # (K, Q, ...)
    logits = logits.gather(2, labels[:, None, None].expand(-1, logits.shape[1], 1))[..., 0]
    cost = CLASS * (focal(logits, torch.ones_like(logits)) - focal(logits, torch.zeros_like(logits)))
    cost += CORNERS * (found - boxes[:, None]).abs().sum(-1)
    cost -= OVERLAP * overlap(corners(found), corners(boxes)[:, None])[1]
    cost, host = cost.cpu().numpy(), image.cpu().numpy()
    chosen = np.empty(len(host), np.int64)
    for i in np.unique(host):
        (own,) = np.nonzero(host == i)
        rows, columns = linear_sum_assignment(cost[own])
        chosen[own[rows]] = columns
    return torch.from_numpy(chosen).to(image.device)


def loss(answers: Answers, image: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
    chosen = match(answers, image, boxes, labels)
    wanted = torch.zeros_like(answers.logits)
    wanted[image, chosen, labels] = 1
    found = answers.boxes[image, chosen]
    count = len(labels)
    return (
        CLASS * focal(answers.logits, wanted).sum()
        + CORNERS * l1_loss(found, boxes, reduction="sum")
        + OVERLAP * (1 - overlap(corners(found), corners(boxes))[1]).sum()
    ) / count
