"""A small network for images on plain arrays, and how it is trained.

Layers of `cudeform.layers`, and the little else that a classifier needs. Functions of NumPy are
given CuPy arrays, too: NumPy's protocols hand such calls to CuPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import cos, pi
from typing import Any

import numpy as np

from cudeform.commands.alignment import Adam
from cudeform.layers import Conv2d, DeformConv2d, Linear
from cudeform.layers.plain import inner, nested

__all__ = ["Network", "accuracy", "count", "cross_entropy", "fold", "train"]


@dataclass(frozen=True)
class Network:
    """Convolutions with ReLUs on folded images, and a linear layer from all of the last maps."""

    convs: Mapping[str, Conv2d | DeformConv2d]
    head: Linear
    fold: int = 2  # so many rows and columns of pixels become channels

    @property
    def rate_factors(self) -> dict[str, float]:
        convs = {name: conv.rate_factors for name, conv in self.convs.items()}
        return nested(**convs, head=self.head.rate_factors)

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
        return params | nested(head=self.head.init(rng, x.dtype))

    def features(self, params: Mapping[str, Any], images: Any) -> tuple[Any, list[Any]]:
        """The maps of the last ReLU; for each convolution what it saved and its ReLU's maps."""
        x, saved = fold(images, self.fold), []
        for name, conv in self.convs.items():
            y, kept = conv.forward(inner(params, name), x)
            x = np.maximum(y, 0)
            saved.append((kept, x))
        return x, saved

    def forward(self, params: Mapping[str, Any], images: Any) -> tuple[Any, Any]:
        """Logits (N, classes) of images (N, C, H, W), and what `backward` needs."""
        maps, saved = self.features(params, images)
        logits, kept = self.head.forward(inner(params, "head"), maps.reshape(len(maps), -1))
        return logits, (saved, kept)

    def backward(self, params: Mapping[str, Any], saved: Any, grad_logits: Any) -> dict[str, Any]:
        """Gradients of the parameters."""
        saved, kept = saved
        grad, own = self.head.backward(inner(params, "head"), kept, grad_logits)
        grads = nested(head=own)
        for name, (kept, maps) in zip(reversed(self.convs), reversed(saved), strict=True):
            grad = grad.reshape(maps.shape) * (maps > 0)
            grad, own = self.convs[name].backward(inner(params, name), kept, grad)
            grads |= nested(**{name: own})
        return grads


def fold(images: Any, n: int) -> Any:
    """Blocks of n x n pixels as channels.  # (N, C, H, W) -> (N, C*n*n, H/n, W/n)"""
    count, channels, height, width = images.shape
    blocks = images.reshape(count, channels, height // n, n, width // n, n)
    blocks = blocks.transpose(0, 1, 3, 5, 2, 4)
    return blocks.reshape(count, channels * n * n, height // n, width // n)


def count(params: Mapping[str, Any]) -> int:
    """Numbers in all parameters."""
    return sum(array.size for array in params.values())


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
    network: Network,
    params: Mapping[str, Any],
    batches: Iterable[tuple[Any, Any]],
    steps: int,
    *,
    rate: float,
    report: Callable[[float], None],
) -> dict[str, Any]:
    """The parameters after a step on each batch (images, one-hot rows), by Adam.

    The learning rate falls from `rate` to 0 along half a cosine. `report` is given each loss.
    """
    factors, adams = network.rate_factors, {name: Adam() for name in params}
    params = dict(params)
    for step, (images, wanted) in enumerate(batches):
        logits, saved = network.forward(params, images)
        loss, grad = cross_entropy(logits, wanted)
        grads = network.backward(params, saved, grad)
        now = rate * (1 + cos(pi * step / steps)) / 2
        for name, adam in adams.items():
            params[name] = params[name] + adam.update(grads[name], now * factors[name])
        report(loss)
    return params
