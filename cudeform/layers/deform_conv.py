"""Deformable convolution v1 and v2 with the branch that learns the offsets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cudeform import deform_conv2d, deform_conv2d_backward
from cudeform.descriptions import described
from cudeform.layers.plain import (
    Array,
    Conv2d,
    Convolution,
    branch_gradient,
    check_input,
    inner,
    nested,
    sigmoid,
)


@dataclass(frozen=True)
@described
class DeformConv2d(Convolution):
    """Deformable convolution whose offsets, and with v2 masks, a convolution of its input gives.

    The branch is zero at first: the layer starts as its plain counterpart in version 1 [1]_, and
    as half of it, with masks of 1/2, in version 2 [2]_.

    Parameters
    ----------
    %(channels_and_kernel)s
    offset_groups : int
        Of the input channels; each has offsets, and masks, of its own.
    %(with_bias)s
    modulated : bool
        Version 2: the branch has three instead of two channels for each tap, and the sigmoid of
        the third is the tap's factor.
    %(branch_rate)s
        Version 1 was published with 1.

    %(deformable_papers)s

    %(examples)s
    >>> layer = DeformConv2d(3, 8, kernel_size=3, padding=1, modulated=True)
    >>> params = layer.init(np.random.default_rng(0))
    >>> {name: array.shape for name, array in params.items()}
    {'weight': (8, 3, 3, 3), 'bias': (8,),
     'conv_offset.weight': (27, 3, 3, 3), 'conv_offset.bias': (27,)}
    >>> x = np.ones((2, 3, 5, 4), np.float32)
    >>> y, saved = layer.forward(params, x)
    >>> grad_x, grad_params = layer.backward(params, saved, np.ones_like(y))
    >>> y.shape, grad_x.shape, grad_params.keys() == params.keys()
    ((2, 8, 5, 4), (2, 3, 5, 4), True)
    >>> offset, mask = layer.deformation(params, x)
    >>> offset.shape, mask.shape, mask[0, 0, 0, 0].item()
    ((2, 18, 5, 4), (2, 9, 5, 4), 0.5)
    """

    offset_groups: int = 1
    bias: bool = True
    modulated: bool = False
    branch_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._divides("offset_groups", "in_channels")

    @property
    def plain(self) -> Conv2d:
        """The same layer without a branch."""
        return Conv2d(self.in_channels, self.out_channels, *self._window, self.groups, self.bias)

    @property
    def taps(self) -> int:
        """Sampling points of an output pixel, of all offset groups."""
        return self.offset_groups * self.plain.weight_shape[2] * self.plain.weight_shape[3]

    @property
    def branch(self) -> Conv2d:
        """The convolution that gives offsets and masks."""
        fields = (3 if self.modulated else 2) * self.taps
        return Conv2d(self.in_channels, fields, *self._window)

    @property
    def rate_factors(self) -> dict[str, float]:
        """What to multiply a learning rate with, by parameter."""
        branch = dict.fromkeys(self.branch.rate_factors, self.branch_rate)
        return self.plain.rate_factors | nested(conv_offset=branch)

    def init(self, rng: Any, dtype: Any = np.float32) -> dict[str, Any]:
        """Parameters from a generator of NumPy or CuPy; those of the branch are zero."""
        branch = self.branch.init(rng, dtype, zero=True)
        return self.plain.init(rng, dtype) | nested(conv_offset=branch)

    def deformation(self, params: Mapping[str, Array], x: Array) -> tuple[Array, Array | None]:
        """The offset and the mask, None in version 1, for x (N, C, H, W)."""
        fields, _ = self.branch.forward(inner(params, "conv_offset"), x)
        if not self.modulated:
            return fields, None
        return fields[:, : 2 * self.taps], sigmoid(fields[:, 2 * self.taps :])

    def forward(self, params: Mapping[str, Array], x: Array) -> tuple[Array, Any]:
        """The result (N, O, Ho, Wo) for x (N, C, H, W), and what `backward` needs."""
        check_input("DeformConv2d", x, self.in_channels)
        offset, mask = self.deformation(params, x)
        options = (*self._window[1:], mask)
        y = deform_conv2d(x, offset, params["weight"], params.get("bias"), *options)
        return y, (x, offset, mask)

    def backward(
        self, params: Mapping[str, Array], saved: Any, grad_y: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Gradients of x and of the parameters."""
        x, offset, mask = saved
        needs = ["input", "offset", "weight"]
        needs += ["bias"] * self.bias + ["mask"] * self.modulated
        options = (*self._window[1:], mask)
        grads = deform_conv2d_backward(grad_y, x, offset, params["weight"], *options, needs=needs)
        branch, grad_fields = inner(params, "conv_offset"), branch_gradient(grads, mask)
        grad_x, grad_branch = self.branch.backward(branch, x, grad_fields)
        own = {name: getattr(grads, name) for name in self.plain.rate_factors}
        return grads.input + grad_x, own | nested(conv_offset=grad_branch)
