"""Layers that move nothing, of which the branches are made, and what all layers share.

Functions of NumPy are given CuPy arrays, too: NumPy's protocols hand such calls to CuPy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from math import prod
from typing import Any, TypeVar

import numpy as np

from cudeform import checks, conv2d, conv2d_backward
from cudeform.descriptions import described
from cudeform.plans.regions import SAMPLE_PER_PART, SAMPLING_RATIO

Array = TypeVar("Array")  # NumPy's or CuPy's: what comes in comes out


def positive_integer(op: str, name: str, value: Any) -> int:
    return checks.integer(op, name, value, 1)


def _sizes(op: str, name: str, value: Any) -> Any:
    checks.pair(op, name, value, 1)
    return value


def _padding(op: str, name: str, value: Any) -> Any:
    checks.pad_pairs(op, name, value)
    return value


_INTEGERS = ("in_channels", "out_channels", "channels", "groups", "offset_groups", "classes")
_INTEGERS += ("levels", "heads", "points", "hidden", "in_features", "out_features")
_CHECKS: dict[str, Callable[[str, str, Any], Any]] = {
    **dict.fromkeys(_INTEGERS, positive_integer),
    **dict.fromkeys(("kernel_size", "stride", "dilation", "output_size"), _sizes),
    **dict.fromkeys(("bias", "modulated"), checks.flag),
    **dict.fromkeys(("gamma", "branch_rate"), checks.number),
    "padding": _padding,
    "spatial_scale": checks.positive,
    "sampling_ratio": SAMPLING_RATIO.check,
    "sample_per_part": SAMPLE_PER_PART.check,
}


class Layer:
    """Has fields, which mean the same in all layers and are checked by their names."""

    def __post_init__(self) -> None:
        self._settle(_CHECKS)

    def _settle(self, known: Mapping[str, Callable[[str, str, Any], Any]]) -> None:
        """Check the fields of these names, and keep what their checks make of them."""
        for name in (field.name for field in fields(self) if field.name in known):
            value = known[name](type(self).__name__, name, getattr(self, name))
            object.__setattr__(self, name, value)  # frozen for others

    def _divides(self, divisor: str, *names: str) -> None:
        """Check that one field divides others."""
        by = getattr(self, divisor)
        for name in names:
            value = getattr(self, name)
            if value % by:
                checks.fail(type(self).__name__, name, f"divisible by {divisor} = {by}", value)


@dataclass(frozen=True)
class Convolution(Layer):
    """The fields that convolutions have in common, beside `bias`."""

    in_channels: int
    out_channels: int
    kernel_size: int | tuple[int, int]
    stride: int | tuple[int, int] = 1
    padding: Any = 0
    dilation: int | tuple[int, int] = 1
    groups: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._divides("groups", "in_channels", "out_channels")

    @property
    def _window(self) -> tuple[Any, ...]:
        return self.kernel_size, self.stride, self.padding, self.dilation


def check_input(op: str, x: Any, channels: int) -> None:
    """The images that a layer is called with."""
    checks.rank(op, "x", x, "(N, C, H, W)")
    if x.shape[1] != channels:
        checks.fail(op, "x", f"of shape (N, {channels}, H, W)", tuple(x.shape))


def _he_normal(rng: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Weights that keep the variance of what passes through them and a ReLU.

    They are arrays of the generator's library.
    """
    scale = (2 / prod(shape[1:])) ** 0.5
    return (scale * rng.standard_normal(shape)).astype(dtype)


def _zeros(rng: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Zeros where the arrays of a generator are; nothing is drawn from it that matters."""
    return np.zeros_like(rng.standard_normal(()), shape=shape, dtype=dtype)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)) without overflow, 1/2 exactly at 0."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def branch_gradient(grads: Any, mask: Any) -> Any:
    """Gradient of a branch's channels: offsets, then what the sigmoid makes masks of.

    `grads` has the gradients of both, (N, 2*K, ...) and (N, K, ...).
    """
    if mask is None:
        return grads.offset
    offsets, masks = grads.offset.shape[1], mask.shape[1]
    shape = (len(mask), offsets + masks, *mask.shape[2:])
    gradient = np.empty_like(grads.offset, shape=shape)
    gradient[:, :offsets] = grads.offset
    gradient[:, offsets:] = grads.mask * mask * (1 - mask)
    return gradient


def nested(**layers: Mapping[str, Any]) -> dict[str, Any]:
    """One flat dictionary from those of several layers: "layer.name"."""
    return {
        f"{layer}.{name}": value for layer, own in layers.items() for name, value in own.items()
    }


def inner(params: Mapping[str, Any], layer: str) -> dict[str, Any]:
    """The dictionary of one layer from a flat one."""
    start = layer + "."
    return {n.removeprefix(start): value for n, value in params.items() if n.startswith(start)}


@dataclass(frozen=True)
@described
class Conv2d(Convolution):
    """Convolution: the plain counterpart of `DeformConv2d`, and its branch.

    Parameters
    ----------
    %(channels_and_kernel)s
    %(with_bias)s

    %(examples)s
    >>> conv = Conv2d(3, 8, kernel_size=3, padding=1)
    >>> params = conv.init(np.random.default_rng(0))
    >>> {name: array.shape for name, array in params.items()}
    {'weight': (8, 3, 3, 3), 'bias': (8,)}
    >>> y, saved = conv.forward(params, np.ones((2, 3, 5, 4), np.float32))
    >>> grad_x, grad_params = conv.backward(params, saved, np.ones_like(y))
    >>> y.shape, grad_x.shape, sorted(grad_params)
    ((2, 8, 5, 4), (2, 3, 5, 4), ['bias', 'weight'])
    """

    bias: bool = True

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        kernel = checks.pair("Conv2d", "kernel_size", self.kernel_size, 1)
        return (self.out_channels, self.in_channels // self.groups, *kernel)

    @property
    def rate_factors(self) -> dict[str, float]:
        """What to multiply a learning rate with, by parameter: 1 for all."""
        return dict.fromkeys(("weight", "bias") if self.bias else ("weight",), 1.0)

    def init(self, rng: Any, dtype: Any = np.float32, *, zero: bool = False) -> dict[str, Any]:
        """Parameters from a generator of NumPy or CuPy; of zeros where asked."""
        draw = _zeros if zero else _he_normal
        params = {"weight": draw(rng, self.weight_shape, dtype)}
        if self.bias:
            params["bias"] = _zeros(rng, (self.out_channels,), dtype)
        return params

    def forward(self, params: Mapping[str, Array], x: Array) -> tuple[Array, Any]:
        """The result (N, O, Ho, Wo) for x (N, C, H, W), and what `backward` needs."""
        check_input("Conv2d", x, self.in_channels)
        return conv2d(x, params["weight"], params.get("bias"), *self._window[1:]), x

    def backward(
        self, params: Mapping[str, Array], saved: Any, grad_y: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Gradients of x and of the parameters."""
        needs = ("input", "weight", "bias") if self.bias else ("input", "weight")
        grads = conv2d_backward(grad_y, saved, params["weight"], *self._window[1:], needs=needs)
        return grads.input, {name: getattr(grads, name) for name in needs[1:]}


@dataclass(frozen=True)
@described
class Linear(Layer):
    """Fully connected layer.

    Parameters
    ----------
    in_features, out_features : int

    %(examples)s
    >>> linear = Linear(6, 2)
    >>> params = linear.init(np.random.default_rng(0))
    >>> y, saved = linear.forward(params, np.ones((5, 6), np.float32))
    >>> y.shape
    (5, 2)
    """

    in_features: int
    out_features: int

    @property
    def rate_factors(self) -> dict[str, float]:
        """What to multiply a learning rate with, by parameter: 1 for all."""
        return {"weight": 1.0, "bias": 1.0}

    def init(self, rng: Any, dtype: Any = np.float32, *, zero: bool = False) -> dict[str, Any]:
        """Parameters from a generator of NumPy or CuPy; of zeros where asked."""
        draw = _zeros if zero else _he_normal
        weight = draw(rng, (self.out_features, self.in_features), dtype)
        return {"weight": weight, "bias": _zeros(rng, (self.out_features,), dtype)}

    def forward(self, params: Mapping[str, Array], x: Array) -> tuple[Array, Any]:
        """The result (N, out_features) for x (N, in_features), and what `backward` needs."""
        checks.rank("Linear", "x", x, "(N, in_features)")
        checks.shape("Linear", "x", x, (len(x), self.in_features), "(N, in_features)")
        return x @ params["weight"].T + params["bias"], x

    def backward(
        self, params: Mapping[str, Array], saved: Any, grad_y: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Gradients of x and of the parameters."""
        grads = {"weight": grad_y.T @ saved, "bias": grad_y.sum(axis=0)}
        return grad_y @ params["weight"], grads
