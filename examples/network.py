"""A small network for images on plain arrays, of the layers of `cudeform.layers`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from training import Params, cross_entropy

from cudeform.layers import Conv2d, DeformConv2d, Linear


@dataclass(frozen=True)
class Backbone:
    """Convolutions with ReLUs on folded images."""

    convs: Mapping[str, Conv2d | DeformConv2d]
    fold: int = 2  # so many rows and columns of pixels become channels

    @property
    def rate_factors(self) -> dict[str, dict[str, float]]:
        return {name: conv.rate_factors for name, conv in self.convs.items()}

    def init(self, rng: np.random.Generator, images: np.ndarray) -> Params:
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
            params[name] = own
            x = np.maximum(conv.forward(own, x)[0], 0)
        return params

    def forward(self, params: Params, images: Any) -> tuple[Any, list[Any]]:
        """The maps of the last ReLU; for each convolution what it saved and its ReLU's maps."""
        x, saved = fold(images, self.fold), []
        for name, conv in self.convs.items():
            y, kept = conv.forward(params[name], x)
            x = np.maximum(y, 0)
            saved.append((kept, x))
        return x, saved

    def backward(self, params: Params, saved: list[Any], grad: Any) -> Params:
        """Gradients of the parameters from that of the last maps."""
        grads = {}
        for name, (kept, maps) in zip(reversed(self.convs), reversed(saved), strict=True):
            grad, grads[name] = self.convs[name].backward(params[name], kept, grad * (maps > 0))
        return grads


@dataclass(frozen=True)
class Network:
    """A classifier of images: a backbone, and a linear layer from all of its maps."""

    backbone: Backbone
    head: Linear

    @property
    def rate_factors(self) -> dict[str, dict[str, float]]:
        return {**self.backbone.rate_factors, "head": self.head.rate_factors}

    def init(self, rng: np.random.Generator, images: np.ndarray) -> Params:
        head = self.head.init(rng, images.dtype, zero=True)
        return {**self.backbone.init(rng, images), "head": head}

    def forward(self, params: Params, images: Any) -> tuple[Any, Any]:
        """Logits (N, classes) of images (N, C, H, W), and what `backward` needs."""
        maps, saved = self.backbone.forward(params, images)
        logits, kept = self.head.forward(params["head"], maps.reshape(len(maps), -1))
        return logits, (saved, kept, maps.shape)

    def backward(self, params: Params, saved: Any, grad_logits: Any) -> Params:
        """Gradients of the parameters."""
        saved, kept, shape = saved
        grad, own = self.head.backward(params["head"], kept, grad_logits)
        return {**self.backbone.backward(params, saved, grad.reshape(shape)), "head": own}

    def loss_and_gradients(self, params: Params, images: Any, wanted: Any) -> tuple[float, Params]:
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
