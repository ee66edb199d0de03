"""A network that tells what is in each of the given boxes, and where its middle is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cudeform.commands.network import Backbone, cross_entropy
from cudeform.layers import DeformPSRoiPool, DeformRoiPool, Linear
from cudeform.layers.plain import inner, nested

__all__ = ["Detector"]

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
    def rate_factors(self) -> dict[str, float]:
        head = {} if self.head is None else nested(head=self.head.rate_factors)
        return self.backbone.rate_factors | nested(pool=self.pool.rate_factors) | head

    def init(self, rng: np.random.Generator, images: np.ndarray) -> dict[str, np.ndarray]:
        params = self.backbone.init(rng, images) | nested(pool=self.pool.init(rng, images.dtype))
        if self.head is not None:
            params |= nested(head=self.head.init(rng, images.dtype, zero=True))
        return params

    def forward(self, params: Mapping[str, Any], images: Any, boxes: Any) -> tuple[Any, Any]:
        """The answers (R, classes + 2), and what `backward` needs."""
        maps, saved = self.backbone.forward(params, images)
        bins, kept = self.pool.forward(inner(params, "pool"), maps, boxes)
        if self.head is None:
            return bins.mean(axis=(2, 3)), (saved, kept, bins)
        flat = bins.reshape(len(bins), -1)
        return self.head.forward(inner(params, "head"), flat)[0], (saved, kept, bins)

    def backward(self, params: Mapping[str, Any], saved: Any, grad: Any) -> dict[str, Any]:
        """Gradients of the parameters."""
        saved, kept, bins = saved
        grads = {}
        if self.head is None:
            grad = np.broadcast_to(grad[:, :, None, None] / bins[0, 0].size, bins.shape)
        else:
            flat = bins.reshape(len(bins), -1)
            grad, own = self.head.backward(inner(params, "head"), flat, grad)
            grad, grads = grad.reshape(bins.shape), nested(head=own)
        grad, own = self.pool.backward(inner(params, "pool"), kept, grad)
        return grads | nested(pool=own) | self.backbone.backward(params, saved, grad)

    def loss_and_gradients(
        self, params: Mapping[str, Any], images: Any, boxes: Any, wanted: Any, shifts: Any
    ) -> tuple[float, dict[str, Any]]:
        """The mean loss for one-hot rows and shifts, and its gradients by parameter."""
        answers, saved = self.forward(params, images, boxes)
        loss, grad_logits = cross_entropy(answers[:, :-2], wanted)
        error = answers[:, -2:] - shifts
        grad = np.empty_like(answers)
        grad[:, :-2] = grad_logits
        grad[:, -2:] = 2 * SHIFT_WEIGHT * error / len(error)
        loss += SHIFT_WEIGHT * float((error**2).sum()) / len(error)
        return loss, self.backward(params, saved, grad)
