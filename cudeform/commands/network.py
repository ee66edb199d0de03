"""A small network for images on plain arrays, and how it is trained.

Layers of `cudeform.layers`, and the little else that a classifier needs. Functions of NumPy are
given CuPy arrays, too: NumPy's protocols hand such calls to CuPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import cos, pi
from typing import Any, Protocol

import numpy as np

from cudeform.commands.alignment import Adam
from cudeform.layers import Conv2d, DeformConv2d, Linear
from cudeform.layers.plain import inner, nested

__all__ = [
    "Backbone",
    "Model",
    "Network",
    "accuracy",
    "count",
    "cross_entropy",
    "fold",
    "on_host",
    "train",
]


class Model(Protocol):
    """What can be trained."""

    @property
    def rate_factors(self) -> dict[str, float]:
        """What to multiply the learning rate with, by parameter."""

    def loss_and_gradients(
        self, params: Mapping[str, Any], *batch: Any
    ) -> tuple[float, dict[str, Any]]:
        """The mean loss of a batch, and its gradients by parameter."""


@dataclass(frozen=True)
class Backbone:
    """Convolutions with ReLUs on folded images."""

    convs: Mapping[str, Conv2d | DeformConv2d]
    fold: int = 2  # so many rows and columns of pixels become channels

    @property
    def rate_factors(self) -> dict[str, float]:
        return nested(**{name: conv.rate_factors for name, conv in self.convs.items()})

    def init(self, rng: np.random.Generator, images: np.ndarray) -> dict[str, np.ndarray]:
        """Parameters with which each convolution returns channels of mean 0 and variance 1.

        They do so for these images (N, C, H, W); a mask of 1/2 is no handicap then.
        """
        params = {}
        x = fold(images, self.fold)
        for name, conv in self.convs.items():
            own = conv.init(rng, x.dtype)
            y, _ = conv.forward(own, x)
            mean, spread = y.mean(axis=(0, 2, 3)), y.std(axis=(0, 2, 3))
            own["weight"] = own["weight"] / spread[:, None, None, None]
            own["bias"] = -mean / spread
            params |= nested(**{name: own})
            x = np.maximum(conv.forward(own, x)[0], 0)
        return params

    def forward(self, params: Mapping[str, Any], images: Any) -> tuple[Any, list[Any]]:
        """The maps of the last ReLU; for each convolution what it saved and its ReLU's maps."""
        x, saved = fold(images, self.fold), []
        for name, conv in self.convs.items():
            y, kept = conv.forward(inner(params, name), x)
            x = np.maximum(y, 0)
            saved.append((kept, x))
        return x, saved

    def backward(self, params: Mapping[str, Any], saved: list[Any], grad: Any) -> dict[str, Any]:
        """Gradients of the parameters from that of the last maps."""
        grads = {}
        for name, (kept, maps) in zip(reversed(self.convs), reversed(saved), strict=True):
            conv = self.convs[name]
            grad, own = conv.backward(inner(params, name), kept, grad * (maps > 0))
            grads |= nested(**{name: own})
        return grads


@dataclass(frozen=True)
class Network:
    """A classifier of images: a backbone, and a linear layer from all of its maps."""

    backbone: Backbone
    head: Linear

    @property
    def rate_factors(self) -> dict[str, float]:
        return self.backbone.rate_factors | nested(head=self.head.rate_factors)

    def init(self, rng: np.random.Generator, images: np.ndarray) -> dict[str, np.ndarray]:
        head = self.head.init(rng, images.dtype, zero=True)
        return self.backbone.init(rng, images) | nested(head=head)

    def forward(self, params: Mapping[str, Any], images: Any) -> tuple[Any, Any]:
        """Logits (N, classes) of images (N, C, H, W), and what `backward` needs."""
        maps, saved = self.backbone.forward(params, images)
        logits, kept = self.head.forward(inner(params, "head"), maps.reshape(len(maps), -1))
        return logits, (saved, kept, maps.shape)

    def backward(self, params: Mapping[str, Any], saved: Any, grad_logits: Any) -> dict[str, Any]:
        """Gradients of the parameters."""
        saved, kept, shape = saved
        grad, own = self.head.backward(inner(params, "head"), kept, grad_logits)
        return self.backbone.backward(params, saved, grad.reshape(shape)) | nested(head=own)

    def loss_and_gradients(
        self, params: Mapping[str, Any], images: Any, wanted: Any
    ) -> tuple[float, dict[str, Any]]:
        """The mean loss for one-hot rows, and its gradients by parameter."""
        logits, saved = self.forward(params, images)
        loss, grad = cross_entropy(logits, wanted)
        return loss, self.backward(params, saved, grad)


def fold(images: Any, n: int) -> Any:
    """Blocks of n x n pixels as channels.  # (N, C, H, W) -> (N, C*n*n, H/n, W/n)"""
    count, channels, height, width = images.shape
    blocks = images.reshape(count, channels, height // n, n, width // n, n)
    blocks = blocks.transpose(0, 1, 3, 5, 2, 4)
    return blocks.reshape(count, channels * n * n, height // n, width // n)


def count(model: Model, params: Mapping[str, Any]) -> int:
    """Numbers in the parameters that are trained."""
    return sum(params[name].size for name, factor in model.rate_factors.items() if factor)


def on_host(array: Any) -> np.ndarray:
    """A CuPy array as a NumPy array; others as they are."""
    return array.get() if hasattr(array, "get") else array


def cross_entropy(logits: Any, wanted: Any) -> tuple[float, Any]:
    """Mean loss of logits (N, classes) for one-hot rows, and its gradient."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    log_likelihood = shifted - log_sum
    loss = -float((log_likelihood * wanted).sum()) / len(logits)
    return loss, (np.exp(log_likelihood) - wanted) / len(logits)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose largest logit is at the label."""
    return float((logits.argmax(axis=1) == labels).mean())


def train(
    model: Model,
    params: Mapping[str, Any],
    batches: Iterable[tuple[Any, ...]],
    steps: int,
    *,
    rate: float,
    report: Callable[[float], None],
) -> dict[str, Any]:
    """The parameters after a step of Adam on each batch.

    The learning rate rises to `rate` in the first tenth of the steps and falls to 0 along half a
    cosine. `report` is given each loss.
    """
    factors, params = model.rate_factors, dict(params)
    adams = {name: Adam() for name, factor in factors.items() if factor}
    for step, batch in enumerate(batches):
        loss, grads = model.loss_and_gradients(params, *batch)
        now = rate * min(1, 10 * (step + 1) / steps) * (1 + cos(pi * step / steps)) / 2
        for name, adam in adams.items():
            params[name] = params[name] + adam.update(grads[name], now * factors[name])
        report(loss)
    return params
