"""Deformable convolution as a layer of Keras 3, on its backends torch, JAX and TensorFlow."""

from __future__ import annotations

from typing import Any, NoReturn

import keras
import numpy as np
from keras import ops

import cudeform
from cudeform import checks
from cudeform.descriptions import described

__all__ = ["DeformConv2D"]


@keras.saving.register_keras_serializable("cudeform")
@described
class DeformConv2D(keras.layers.Conv2D):
    """Deformable convolution with the branch that learns its offsets, v1 and v2.

    A `keras.layers.Conv2D` with two arguments more. A second convolution of the same size, stride,
    padding and dilation looks at the same input and says by how much each tap moves. Its weights
    start at 0, and so the layer starts as the plain convolution; with `modulated` as half of it,
    for the factors start at sigmoid(0).

    Parameters
    ----------
    filters, kernel_size, strides, padding, data_format, dilation_rate, groups
        As of `keras.layers.Conv2D`.
    offset_groups : int
        In how many groups of channels the taps move on their own; it divides the channels of the
        input.
    modulated : bool
        Whether each tap has a factor between 0 and 1 too: version 2 [2]_ instead of version 1 [1]_.
    **kwargs
        Further arguments of `keras.layers.Conv2D`: activation, use_bias, initializers, ...

    Notes
    -----
    The weights are those of `keras.layers.Conv2D`, then kernel and bias of the branch. On a GPU
    the TensorFlow backend computes on the host; torch and JAX compute on the GPU.

    %(deformable_papers)s
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        strides: int | tuple[int, int] = (1, 1),
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | tuple[int, int] = (1, 1),
        groups: int = 1,
        *,
        offset_groups: int = 1,
        modulated: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            filters,
            kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            groups=groups,
            **kwargs,
        )
        self.offset_groups = checks.integer("DeformConv2D", "offset_groups", offset_groups, 1)
        self.modulated = checks.flag("DeformConv2D", "modulated", modulated)
        if keras.backend.backend() == "tensorflow":
            self.supports_jit = False  # XLA cannot call back into Python
        self.offset_branch = keras.layers.Conv2D(
            self._offset_channels + self._mask_channels,
            self.kernel_size,
            strides=self.strides,
            padding=self.padding,
            data_format=self.data_format,
            dilation_rate=self.dilation_rate,
            kernel_initializer="zeros",
            dtype=self.dtype_policy,
            name="offset",
        )

    @property
    def _offset_channels(self) -> int:
        return 2 * self.offset_groups * self.kernel_size[0] * self.kernel_size[1]

    @property
    def _mask_channels(self) -> int:
        return self._offset_channels // 2 if self.modulated else 0

    @property
    def _channels_axis(self) -> int:
        return -1 if self.data_format == "channels_last" else 1

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        channels = input_shape[self._channels_axis]
        if channels is not None and channels % self.offset_groups:
            expected = f"to divide the {channels} channels of the input"
            checks.fail("DeformConv2D", "offset_groups", expected, self.offset_groups)
        self.offset_branch.build(input_shape)
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        offset, mask = self.offset_branch(inputs), None
        if self.modulated:
            # not ops.split, of whose parts torch.export does not know the sizes
            before = (slice(None),) if self._channels_axis == 1 else (Ellipsis,)
            mask = ops.sigmoid(offset[(*before, slice(self._offset_channels, None))])
            offset = offset[(*before, slice(self._offset_channels))]
        weight = ops.transpose(self.kernel, (3, 2, 0, 1))  # (kh, kw, C/groups, O) in Keras
        bias = None if self.bias is None else ops.convert_to_tensor(self.bias)
        compute = _on_tensorflow if keras.backend.backend() == "tensorflow" else _compute
        outputs = compute((inputs, offset, weight, bias, mask), self)
        return outputs if self.activation is None else self.activation(outputs)

    def get_config(self) -> dict[str, Any]:
        own = {"offset_groups": self.offset_groups, "modulated": self.modulated}
        return {**super().get_config(), **own}

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> Any:
        """What TensorFlow asks of a layer that it saves, with or without programs."""
        if save_type == "savedmodel":
            raise NotImplementedError(
                "DeformConv2D: a SavedModel cannot hold it: on TensorFlow it is a function of this "
                "process, which the process that loads the model does not have; save as .keras, "
                "or export from the torch backend"
            )
        return super()._trackable_children(save_type, **kwargs)

    def _options(self, input: Any) -> dict[str, Any]:
        """The options of `cudeform.deform_conv2d` for an image of this size."""
        last = self.data_format == "channels_last"
        size = input.shape[1:3] if last else input.shape[2:4]
        return {
            "stride": self.strides,
            "dilation": self.dilation_rate,
            "padding": tuple(map(self._pad, size, (0, 1))) if self.padding == "same" else 0,
            "layout": "NHWC" if last else "NCHW",
        }

    def _pad(self, size: int, axis: int) -> tuple[int, int]:
        """Padding "same" before and after: as many outputs as strides begin in the image."""
        stride = self.strides[axis]
        extent = self.dilation_rate[axis] * (self.kernel_size[axis] - 1) + 1
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        return total // 2, total - total // 2


_NAMES = ("input", "offset", "weight", "bias", "mask")


def _compute(arrays: tuple[Any, ...], layer: DeformConv2D) -> Any:
    given = {name: array for name, array in zip(_NAMES, arrays, strict=True) if array is not None}
    return cudeform.deform_conv2d(**given, **layer._options(given["input"]))


def _no_second_derivative(*grads: Any) -> NoReturn:
    """TensorFlow itself would leave that part of a derivative out, in silence."""
    raise NotImplementedError(
        "DeformConv2D: no second derivatives on TensorFlow, where the layer is a NumPy function; "
        "the backends torch and jax have them"
    )


def _on_tensorflow(arrays: tuple[Any, ...], layer: DeformConv2D) -> Any:
    import tensorflow as tf

    names = tuple(name for name, array in zip(_NAMES, arrays, strict=True) if array is not None)

    def forward(*values: np.ndarray) -> np.ndarray:
        given = dict(zip(names, values, strict=True))
        return cudeform.deform_conv2d(**given, **layer._options(given["input"]))

    def backward(grad_output: np.ndarray, *values: np.ndarray) -> list[np.ndarray]:
        given = dict(zip(names, values, strict=True))
        given.pop("bias", None)
        options = layer._options(given["input"])
        found = cudeform.deform_conv2d_backward(grad_output, **given, **options, needs=names)
        return [getattr(found, name) for name in names]

    @tf.custom_gradient
    def operator(*tensors: Any) -> Any:
        output = tf.numpy_function(forward, tensors, tensors[0].dtype, stateful=False)
        output.set_shape(layer.compute_output_shape(tuple(tensors[0].shape)))

        return output, lambda grad_output: gradients(grad_output, *tensors)

    @tf.custom_gradient
    def gradients(grad_output: Any, *tensors: Any) -> tuple[list[Any], Any]:
        dtypes = [tensor.dtype for tensor in tensors]
        found = tf.numpy_function(backward, (grad_output, *tensors), dtypes, stateful=False)
        for result, tensor in zip(found, tensors, strict=True):
            result.set_shape(tensor.shape)
        return found, _no_second_derivative

    return operator(*(tf.convert_to_tensor(array) for array in arrays if array is not None))
