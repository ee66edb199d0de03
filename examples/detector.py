"""A network that tells what is in each of the given boxes, and where its middle is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from network import Backbone
from training import Params, cross_entropy

from cudeform.layers import DeformPSRoiPool, DeformRoiPool, Linear

SHIFT_WEIGHT = 2.0  # of the squared error of the middle, beside the cross entropy


@dataclass(frozen=True)
class Detector:
    """A backbone, a pooling of the boxes, and a linear layer from all bins or their mean.

    For each box it returns the logits of the classes and then two numbers, how far the middle of
    the digit is from that of the box.
    """

    backbone: Backbone
    pool: DeformRoiPool | DeformPSRoiPool
    head: Linear | None  # None: the mean over the bins of position-sensitive scores

    @property
    def rate_factors(self) -> dict[str, dict[str, float]]:
        head = {} if self.head is None else {"head": self.head.rate_factors}
        return {**self.backbone.rate_factors, "pool": self.pool.rate_factors, **head}

    def init(self, rng: np.random.Generator, images: np.ndarray) -> Params:
        params = {**self.backbone.init(rng, images), "pool": self.pool.init(rng, images.dtype)}
        if self.head is not None:
            params["head"] = self.head.init(rng, images.dtype, zero=True)
        return params

    def forward(self, params: Params, images: Any, boxes: Any) -> tuple[Any, Any]:
        """The answers (R, classes + 2), and what `backward` needs."""
        maps, saved = self.backbone.forward(params, images)
        bins, kept = self.pool.forward(params["pool"], maps, boxes)
        if self.head is None:
            return bins.mean(axis=(2, 3)), (saved, kept, bins)
        flat = bins.reshape(len(bins), -1)
        return self.head.forward(params["head"], flat)[0], (saved, kept, bins)

    def backward(self, params: Params, saved: Any, grad: Any) -> Params:
        """Gradients of the parameters."""
        saved, kept, bins = saved
        grads = {}
        if self.head is None:
            grad = np.broadcast_to(grad[:, :, None, None] / bins[0, 0].size, bins.shape)
        else:
            flat = bins.reshape(len(bins), -1)
            grad, grads["head"] = self.head.backward(params["head"], flat, grad)
            grad = grad.reshape(bins.shape)
        grad, grads["pool"] = self.pool.backward(params["pool"], kept, grad)
        return {**grads, **self.backbone.backward(params, saved, grad)}

    def loss_and_gradients(
        self, params: Params, images: Any, boxes: Any, wanted: Any, shifts: Any
    ) -> tuple[float, Params]:
        """The mean loss for one-hot rows and shifts, and its gradients by parameter."""
        answers, saved = self.forward(params, images, boxes)
        loss, grad_logits = cross_entropy(answers[:, :-2], wanted)
        error = answers[:, -2:] - shifts
        grad = np.empty_like(answers)
        grad[:, :-2] = grad_logits
        grad[:, -2:] = 2 * SHIFT_WEIGHT * error / len(error)
        loss += SHIFT_WEIGHT * float((error**2).sum()) / len(error)
        return loss, self.backward(params, saved, grad)

    def bin_centres(
        self, params: Params, image: np.ndarray, box: np.ndarray, label: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Middles (k, k, 2) of the bins in a box, y and x in the image, and a bin's size (y, x).

        The image is (1, H, W), the box (x1, y1, x2, y2). Position-sensitive bins move for each
        class; these are those of the label.
        """
        maps, _ = self.backbone.forward(params, image[None])
        boxes = np.concatenate([np.zeros(1, box.dtype), box])[None]
        found = self.pool.deformation(params["pool"], maps, boxes)
        if isinstance(self.pool, DeformPSRoiPool):
            x1, y1, x2, y2 = np.floor(box + 0.5) + (0, 0, 1, 1)
            offset = found[0, 2 * label : 2 * label + 2]
        else:
            x1, y1, x2, y2 = box
            offset = found[0][0]
        size = np.array([y2 - y1, x2 - x1])
        k = offset.shape[1]
        regular = (np.stack(np.indices((k, k)), -1) + 0.5) / k
        shift = self.pool.gamma * np.moveaxis(offset[::-1], 0, -1)
        return np.array([y1, x1]) + (regular + shift) * size, size / k
