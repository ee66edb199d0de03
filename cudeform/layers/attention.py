"""Multi-scale deformable attention with the layers that learn where it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cudeform import checks, ms_deform_attn, ms_deform_attn_backward
from cudeform.descriptions import described
from cudeform.directions import first_offsets
from cudeform.layers.plain import Array, Layer, Linear, inner, nested


@dataclass(frozen=True)
@described
class MSDeformAttn(Layer):
    """Multi-scale deformable attention [1]_: from queries follows where and how much they read.

    At first each head looks in a direction of its own, and at all its points alike.

    Parameters
    ----------
    channels : int
        Channels C of queries, features and results.
    levels, heads, points : int
        Feature maps L; heads M, which divide the channels; points P of a head on each level.
    branch_rate : float
        The learning rate of ``sampling_offsets`` as a part of that of the rest, for
        `rate_factors`; it was published with 0.1.

    %(deformable_detr_paper)s

    %(examples)s
    >>> layer = MSDeformAttn(16, levels=2, heads=4, points=3)
    >>> rng = np.random.default_rng(0)
    >>> params = layer.init(rng)
    >>> params["sampling_offsets.weight"].shape, params["output_proj.bias"].shape
    ((48, 16), (16,))
    >>> shapes = [(6, 8), (3, 4)]
    >>> features = rng.random((1, 6 * 8 + 3 * 4, 16), np.float32)
    >>> query, reference = rng.random((1, 5, 16), np.float32), rng.random((1, 5, 2, 2), np.float32)
    >>> y, saved = layer.forward(params, query, reference, features, shapes)
    >>> grads_of_arrays, grads = layer.backward(params, saved, np.ones_like(y))
    >>> y.shape, [grad.shape for grad in grads_of_arrays], grads.keys() == params.keys()
    ((1, 5, 16), [(1, 5, 16), (1, 5, 2, 2), (1, 60, 16)], True)
    """

    channels: int
    levels: int = 4
    heads: int = 8
    points: int = 4
    branch_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._divides("heads", "channels")

    @property
    def parts(self) -> dict[str, Linear]:
        """The fully connected layers by name."""
        samples = self.heads * self.levels * self.points
        return {
            "sampling_offsets": Linear(self.channels, 2 * samples),
            "attention_weights": Linear(self.channels, samples),
            "value_proj": Linear(self.channels, self.channels),
            "output_proj": Linear(self.channels, self.channels),
        }

    @property
    def rate_factors(self) -> dict[str, float]:
        """What to multiply a learning rate with, by parameter."""
        factors = {name: layer.rate_factors for name, layer in self.parts.items()}
        slow = dict.fromkeys(factors["sampling_offsets"], self.branch_rate)
        return nested(**{**factors, "sampling_offsets": slow})

    def init(self, rng: Any, dtype: Any = np.float32) -> dict[str, Any]:
        """Parameters from a generator of NumPy or CuPy."""
        params = nested(
            **{
                name: layer.init(rng, dtype, zero=not name.endswith("_proj"))
                for name, layer in self.parts.items()
            }
        )
        offsets = first_offsets(self.heads, [self.points] * self.levels).ravel()
        bias = params["sampling_offsets.bias"]
        bias += np.asarray(offsets, like=bias).astype(dtype)
        for name in ("value_proj", "output_proj"):
            params[f"{name}.weight"] *= 0.5**0.5  # no ReLU follows
        return params

    def forward(
        self, params: Mapping[str, Array], query: Any, reference: Any, features: Any, shapes: Any
    ) -> tuple[Any, Any]:
        """What the queries read, (N, Lq, C), and what `backward` needs.

        For query (N, Lq, C), reference (N, Lq, L, 2), points (x, y) in parts of the image,
        features (N, S, C), the pixels of all levels, and shapes, pairs (H, W) of each level.
        """
        op = "MSDeformAttn"
        checks.rank(op, "query", query, "(N, Lq, C)")
        checks.rank(op, "reference", reference, "(N, Lq, L, 2)")
        checks.rank(op, "features", features, "(N, S, C)")
        batch, queries = query.shape[:2]
        checks.shape(op, "query", query, (batch, queries, self.channels), "(N, Lq, C)")
        expected = batch, queries, self.levels, 2
        checks.shape(op, "reference", reference, expected, "(N, Lq, L, 2)")
        value = self._apply("value_proj", params, features)
        value = value.reshape(*value.shape[:2], self.heads, -1)
        samples = batch, queries, self.heads, self.levels, self.points
        offsets = self._apply("sampling_offsets", params, query).reshape(*samples, 2)
        logits = self._apply("attention_weights", params, query).reshape(samples)
        locations = reference[:, :, None, :, None] + offsets / self._sizes(shapes, offsets)
        read = ms_deform_attn(value, shapes, locations, logits, softmax=True)
        y = self._apply("output_proj", params, read)
        return y, (query, features, shapes, value, locations, logits, read)

    def backward(
        self, params: Mapping[str, Array], saved: Any, grad_y: Array
    ) -> tuple[tuple[Any, Any, Any], dict[str, Any]]:
        """Gradients of query, reference and features, and of the parameters."""
        query, features, shapes, value, locations, logits, read = saved
        grad_read, output = self._undo("output_proj", params, read, grad_y)
        grads = ms_deform_attn_backward(grad_read, value, shapes, locations, logits, softmax=True)
        grad_locations = grads.sampling_locations
        grad_offsets = grad_locations / self._sizes(shapes, grad_locations)
        by_offsets, offsets = self._undo("sampling_offsets", params, query, grad_offsets)
        by_weights, weights = self._undo(
            "attention_weights", params, query, grads.attention_weights
        )
        grad_features, values = self._undo("value_proj", params, features, grads.value)
        grad_reference = grad_locations.sum(axis=(2, 4))
        own = nested(
            sampling_offsets=offsets,
            attention_weights=weights,
            value_proj=values,
            output_proj=output,
        )
        return (by_offsets + by_weights, grad_reference, grad_features), own

    def _sizes(self, shapes: Any, like: Any) -> Any:
        """(L, 1, 2), (W, H) of each level."""
        sizes = np.asarray([(width, height) for height, width in shapes], like=like)
        return sizes.astype(like.dtype)[:, None]

    def _apply(self, name: str, params: Mapping[str, Any], x: Any) -> Any:
        flat = x.reshape(-1, self.channels)
        return self.parts[name].forward(inner(params, name), flat)[0].reshape(*x.shape[:2], -1)

    def _undo(
        self, name: str, params: Mapping[str, Any], x: Any, grad: Any
    ) -> tuple[Any, dict[str, Any]]:
        layer, flat = self.parts[name], x.reshape(-1, self.channels)
        grad = grad.reshape(len(flat), layer.out_features)
        grad_x, own = layer.backward(inner(params, name), flat, grad)
        return grad_x.reshape(x.shape), own
