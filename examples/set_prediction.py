"""Sets of boxes: which prediction is of which object, the loss, and the average precision."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

CLASS, PLACE, OVERLAP = 2.0, 5.0, 2.0  # weights of what is wrong, as in Deformable DETR
ALPHA, GAMMA = 0.25, 2.0  # of the focal loss


class Answers(NamedTuple):
    """What a network says of N images, Q boxes in each."""

    logits: Tensor  # (N, Q, classes)
    boxes: Tensor  # (N, Q, 4): x and y of the middle, width, height, in parts of the image


class Objects(NamedTuple):
    """What there is in the images."""

    image: Tensor  # (K,), in which one
    boxes: Tensor  # (K, 4), as in the answers
    labels: Tensor  # (K,)


def corners(boxes: Tensor) -> Tensor:
    """(x, y, w, h) -> (x1, y1, x2, y2)"""
    middle, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([middle - half, middle + half], -1)


def overlap(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (Rezatofighi et al. 2019) of boxes (..., 4) that broadcast."""
    a, b = corners(boxes), corners(others)
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    both = (high - low).clamp(min=0).prod(-1)
    either = boxes[..., 2:].prod(-1) + others[..., 2:].prod(-1) - both
    low, high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    hull = (high - low).prod(-1)
    return both / either, both / either - (hull - either) / hull


def focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """Lin et al. 2017: a cross entropy in which what is told well already counts little."""
    chance = logits.sigmoid()
    wrong = chance + wanted - 2 * chance * wanted
    factor = (ALPHA * wanted + (1 - ALPHA) * (1 - wanted)) * wrong**GAMMA
    return factor * binary_cross_entropy_with_logits(logits, wanted, reduction="none")


@torch.no_grad()
def match(answers: Answers, objects: Objects) -> Tensor:
    """The number of each object's prediction, no two the same, of the least cost in sum.  # (K,)"""
    logits, boxes = answers.logits[objects.image], answers.boxes[objects.image]
    logits = logits[torch.arange(len(logits)), :, objects.labels]  # (K, Q)
    wanted = objects.boxes[:, None]
    one, none = torch.ones_like(logits), torch.zeros_like(logits)
    cost = CLASS * (focal(logits, one) - focal(logits, none))
    cost += PLACE * (boxes - wanted).abs().sum(-1) - OVERLAP * overlap(boxes, wanted)[1]
    costs, images = cost.cpu().numpy(), objects.image.cpu().numpy()
    chosen = np.empty(len(images), np.int64)
    for image in np.unique(images):
        (own,) = np.nonzero(images == image)
        rows, columns = linear_sum_assignment(costs[own])
        chosen[own[rows]] = columns
    return torch.from_numpy(chosen).to(cost.device)


def set_loss(answers: Answers, objects: Objects) -> Tensor:
    """Of classes, middles, sizes and overlaps, for each object.  # a number"""
    chosen = objects.image, match(answers, objects)
    wanted = torch.zeros_like(answers.logits)
    wanted[(*chosen, objects.labels)] = 1
    boxes = answers.boxes[chosen]
    loss = CLASS * focal(answers.logits, wanted).sum()
    loss = loss + PLACE * (boxes - objects.boxes).abs().sum()
    loss = loss + OVERLAP * (1 - overlap(boxes, objects.boxes)[1]).sum()
    return loss / len(objects.labels)


def average_precision(answers: Answers, objects: Objects, least: float = 0.5) -> float:
    """Area under precision by recall at this IoU at least: the mean of the classes there are."""
    areas = []
    for label in objects.labels.unique().tolist():
        own = objects.labels == label
        of_label = Objects(*(array[own] for array in objects))
        areas.append(_area(answers.logits[..., label], answers.boxes, of_label, least))
    return float(np.mean(areas))


def box_precision(answers: Answers, objects: Objects, least: float = 0.5) -> float:
    """The same for boxes alone, whatever their class."""
    return _area(answers.logits.amax(-1), answers.boxes, objects, least)


def _area(scores: Tensor, boxes: Tensor, objects: Objects, least: float) -> float:
    """For scores (N, Q): the best first, each finds the free object that it overlaps most."""
    found = overlap(boxes[objects.image], objects.boxes[:, None])[0].cpu().numpy()  # (K, Q)
    images = objects.image.cpu().numpy()
    by_image = [np.flatnonzero(images == image) for image in range(len(scores))]
    order = scores.flatten().argsort(descending=True, stable=True).tolist()
    free, hits = np.ones(len(images), bool), np.zeros(len(order))
    for rank, place in enumerate(order):
        image, query = divmod(place, scores.shape[1])
        own = by_image[image]
        fit = found[own, query] * free[own]
        if fit.size and fit.max() >= least:
            hits[rank], free[own[fit.argmax()]] = 1, False
    precision = hits.cumsum() / np.arange(1, len(hits) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float((best_from_here * hits).sum() / len(images))
