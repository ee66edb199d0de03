"""Deformable poolings of regions with the branches that learn where the bins go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cudeform import (
    checks,
    deform_ps_roi_pool,
    deform_ps_roi_pool_backward,
    deform_roi_pool,
    deform_roi_pool_backward,
)
from cudeform.descriptions import described
from cudeform.layers.plain import (
    Array,
    Conv2d,
    Layer,
    Linear,
    branch_gradient,
    check_input,
    inner,
    nested,
    positive_integer,
    sigmoid,
)


@dataclass(frozen=True)
@described
class DeformRoiPool(Layer):
    """Deformable RoI pooling; what the bins read unmoved tells where they move.

    In version 1 [1]_ one fully connected layer, ``offset_fc``, gives the offsets; in version 2
    [2]_ three, ``offset_mask_fc``, with ReLUs between, give offsets and, by a sigmoid, masks. The
    last layer is zero at first: the block starts as RoIAlign (``aligned=True``) in version 1, and
    as half of it in version 2.

    Parameters
    ----------
    channels : int
        Of the feature maps.
    %(output_size)s
    spatial_scale, sampling_ratio, gamma
        As in `cudeform.deform_roi_pool`.
    modulated : bool
        Version 2.
    hidden : int
        Width of the two hidden layers of version 2.
    %(branch_rate)s
        Version 1 was published with 0.01.

    %(deformable_papers)s

    %(examples)s
    >>> pool = DeformRoiPool(8, output_size=3, spatial_scale=0.5)
    >>> params = pool.init(np.random.default_rng(0))
    >>> {name: array.shape for name, array in params.items()}
    {'offset_fc.weight': (18, 72), 'offset_fc.bias': (18,)}
    >>> boxes = np.array([[0, 2, 2, 20, 14], [1, 0, 4, 9, 12]], np.float32)
    >>> y, saved = pool.forward(params, np.ones((2, 8, 10, 12), np.float32), boxes)
    >>> grad_x, grad_params = pool.backward(params, saved, np.ones_like(y))
    >>> y.shape, grad_x.shape, grad_params.keys() == params.keys()
    ((2, 8, 3, 3), (2, 8, 10, 12), True)
    """

    channels: int
    output_size: int | tuple[int, int]
    spatial_scale: float = 1.0
    sampling_ratio: int = 0
    gamma: float = 0.1
    modulated: bool = False
    hidden: int = 1024
    branch_rate: float = 0.1

    @property
    def bins(self) -> tuple[int, int]:
        return checks.pair("DeformRoiPool", "output_size", self.output_size, 1)

    @property
    def branch(self) -> dict[str, Linear]:
        """The fully connected layers by name; a ReLU stands between two."""
        bins = self.bins[0] * self.bins[1]
        features = self.channels * bins
        if not self.modulated:
            return {"offset_fc": Linear(features, 2 * bins)}
        return {
            "offset_mask_fc.0": Linear(features, self.hidden),
            "offset_mask_fc.2": Linear(self.hidden, self.hidden),
            "offset_mask_fc.4": Linear(self.hidden, 3 * bins),
        }

    @property
    def rate_factors(self) -> dict[str, float]:
        """What to multiply a learning rate with, by parameter: `branch_rate` for all."""
        factors = {name: layer.rate_factors for name, layer in self.branch.items()}
        return dict.fromkeys(nested(**factors), self.branch_rate)

    def init(self, rng: Any, dtype: Any = np.float32) -> dict[str, Any]:
        """Parameters from a generator of NumPy or CuPy; those of the last layer are zero."""
        last = list(self.branch)[-1]
        layers = self.branch.items()
        return nested(**{name: fc.init(rng, dtype, zero=name == last) for name, fc in layers})

    def _options(self) -> tuple[Any, ...]:
        return (self.output_size, self.spatial_scale, self.sampling_ratio, self.gamma)

    def deformation(
        self, params: Mapping[str, Array], x: Array, boxes: Any
    ) -> tuple[Array, Array | None]:
        """Offset (R, 2, ph, pw) and mask (R, 1, ph, pw), None in version 1, for each box."""
        return self._deformation(params, x, boxes)[0]

    def _deformation(self, params: Mapping[str, Any], x: Any, boxes: Any) -> tuple[Any, list[Any]]:
        """(offset, mask), and what each layer of the branch read."""
        check_input("DeformRoiPool", x, self.channels)
        bins = deform_roi_pool(x, boxes, None, *self._options())
        features, read = bins.reshape(bins.shape[0], -1), []
        for name, layer in self.branch.items():
            features = np.maximum(features, 0) if read else features
            features, saved = layer.forward(inner(params, name), features)
            read.append(saved)
        fields = features.reshape(len(features), -1, *self.bins)
        if not self.modulated:
            return (fields, None), read
        return (fields[:, :2], sigmoid(fields[:, 2:])), read

    def forward(self, params: Mapping[str, Array], x: Array, boxes: Any) -> tuple[Array, Any]:
        """The bins (R, C, ph, pw) of x (N, C, H, W) in the boxes, and what `backward` needs."""
        (offset, mask), read = self._deformation(params, x, boxes)
        y = deform_roi_pool(x, boxes, offset, *self._options(), mask)
        return y, (x, boxes, offset, mask, read)

    def backward(
        self, params: Mapping[str, Array], saved: Any, grad_y: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Gradients of x and of the parameters; boxes have none."""
        x, boxes, offset, mask, read = saved
        grads = deform_roi_pool_backward(grad_y, x, boxes, offset, *self._options(), mask)
        grad = branch_gradient(grads, mask)
        grad, grad_params = grad.reshape(len(grad), -1), {}
        for (name, layer), features in reversed(list(zip(self.branch.items(), read, strict=True))):
            grad, own = layer.backward(inner(params, name), features, grad)
            grad_params |= nested(**{name: own})
            if features is not read[0]:
                grad = grad * (features > 0)
        grad_bins = grad.reshape(grad_y.shape)
        needs = ["input"]
        unmoved = deform_roi_pool_backward(grad_bins, x, boxes, None, *self._options(), needs=needs)
        return grads.input + unmoved.input, grad_params


@dataclass(frozen=True)
@described
class DeformPSRoiPool(Layer):
    """Deformable position-sensitive RoI pooling with its two convolutional branches [1]_.

    A convolution, ``conv``, makes k*k score maps of each class, and a second one, ``conv_offset``,
    two times as many offset fields. Pooling the fields gives each region, class and bin an offset;
    the pooling of the score maps follows it. The second convolution is zero at first: the block
    starts as position-sensitive pooling that does not move.

    Parameters
    ----------
    in_channels : int
        Of the feature maps.
    classes : int
        Of the scores, with one for the background where there is one.
    output_size : int
        Bins k along y and x.
    spatial_scale : float
        Pixels of the feature maps per unit of the boxes.
    sample_per_part, gamma
        As in `cudeform.deform_ps_roi_pool`, which calls the second `trans_std`.
    branch_rate : float
        The learning rate of ``conv_offset`` as a part of that of ``conv``, for `rate_factors`;
        it was published with 1.

    %(deformable_paper)s

    %(examples)s
    >>> pool = DeformPSRoiPool(8, classes=3, output_size=2, spatial_scale=0.5)
    >>> params = pool.init(np.random.default_rng(0))
    >>> {name: array.shape for name, array in params.items()}
    {'conv.weight': (12, 8, 1, 1), 'conv.bias': (12,),
     'conv_offset.weight': (24, 8, 1, 1), 'conv_offset.bias': (24,)}
    >>> x = np.ones((2, 8, 10, 12), np.float32)
    >>> boxes = np.array([[0, 2, 2, 20, 14], [1, 0, 4, 9, 12]], np.float32)
    >>> y, saved = pool.forward(params, x, boxes)
    >>> grad_x, grad_params = pool.backward(params, saved, np.ones_like(y))
    >>> y.shape, pool.deformation(params, x, boxes).shape
    ((2, 3, 2, 2), (2, 6, 2, 2))
    >>> grad_x.shape == x.shape, grad_params.keys() == params.keys()
    (True, True)
    """

    in_channels: int
    classes: int
    output_size: int
    spatial_scale: float = 1.0
    sample_per_part: int = 4
    gamma: float = 0.1  # the operator's trans_std
    branch_rate: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settle({"output_size": positive_integer})  # as many along both axes

    @property
    def branches(self) -> dict[str, Conv2d]:
        """The 1 x 1 convolutions that make score maps and offset fields."""
        maps = self.classes * self.output_size**2
        return {
            "conv": Conv2d(self.in_channels, maps, 1),
            "conv_offset": Conv2d(self.in_channels, 2 * maps, 1),
        }

    @property
    def rate_factors(self) -> dict[str, float]:
        """What to multiply a learning rate with, by parameter."""
        conv, offset = (layer.rate_factors for layer in self.branches.values())
        return nested(conv=conv, conv_offset=dict.fromkeys(offset, self.branch_rate))

    def init(self, rng: Any, dtype: Any = np.float32) -> dict[str, Any]:
        """Parameters from a generator of NumPy or CuPy; those of ``conv_offset`` are zero."""
        conv, offset = self.branches.values()
        return nested(conv=conv.init(rng, dtype), conv_offset=offset.init(rng, dtype, zero=True))

    def _options(self, classes: int) -> tuple[Any, ...]:
        k = self.output_size
        return (k, self.spatial_scale, classes, k, k, self.sample_per_part, self.gamma)

    def deformation(self, params: Mapping[str, Array], x: Array, boxes: Any) -> Array:
        """The offset (R, 2*classes, k, k) of each box, class and bin."""
        return self._deformation(params, x, boxes)[0]

    def _deformation(self, params: Mapping[str, Any], x: Any, boxes: Any) -> tuple[Any, Any]:
        """The offset, and the fields that it was pooled from."""
        fields, _ = self.branches["conv_offset"].forward(inner(params, "conv_offset"), x)
        offset = deform_ps_roi_pool(fields, boxes, None, *self._options(2 * self.classes))
        return offset, fields

    def forward(self, params: Mapping[str, Array], x: Array, boxes: Any) -> tuple[Array, Any]:
        """The bins (R, classes, k, k) of x (N, C, H, W) in the boxes, and what `backward` needs.

        The mean over the bins is a region's score.
        """
        check_input("DeformPSRoiPool", x, self.in_channels)
        scores, _ = self.branches["conv"].forward(inner(params, "conv"), x)
        offset, fields = self._deformation(params, x, boxes)
        y = deform_ps_roi_pool(scores, boxes, offset, *self._options(self.classes))
        return y, (x, boxes, scores, offset, fields)

    def backward(
        self, params: Mapping[str, Array], saved: Any, grad_y: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Gradients of x and of the parameters; boxes have none."""
        x, boxes, scores, offset, fields = saved
        conv, conv_offset = self.branches.values()
        options = self._options(self.classes)
        grads = deform_ps_roi_pool_backward(grad_y, scores, boxes, offset, *options)
        grad_x, grad_conv = conv.backward(inner(params, "conv"), x, grads.input)
        options = self._options(2 * self.classes)
        grad_fields = deform_ps_roi_pool_backward(
            grads.offset, fields, boxes, None, *options, needs=["input"]
        ).input
        own = inner(params, "conv_offset")
        grad_x_offset, grad_offset = conv_offset.backward(own, x, grad_fields)
        return grad_x + grad_x_offset, nested(conv=grad_conv, conv_offset=grad_offset)
