"""Deformable convolution and attention as layers of Keras 3, on torch, JAX and TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import keras
import numpy as np
from keras import ops

import cudeform
from cudeform import checks
from cudeform.descriptions import described
from cudeform.directions import first_offsets
from cudeform.registry import row_of

__all__ = ["DeformConv2D", "MSDeformAttn"]


class _OnAllBackends(keras.layers.Layer):
    """What TensorFlow wants to know of a layer that is a NumPy function there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if keras.backend.backend() == "tensorflow":
            self.supports_jit = False  # XLA cannot call back into Python

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> Any:
        """What TensorFlow asks of a layer that it saves, with or without programs."""
        if save_type == "savedmodel":
            raise NotImplementedError(
                f"{type(self).__name__}: a SavedModel cannot hold it: on TensorFlow it is a "
                "function of this process, which the process that loads the model does not have; "
                "save as .keras, or export from the torch backend"
            )
        return super()._trackable_children(save_type, **kwargs)


@keras.saving.register_keras_serializable("cudeform")
@described
class DeformConv2D(_OnAllBackends, keras.layers.Conv2D):
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
        self, filters: int, kernel_size: int | tuple[int, int],
        strides: int | tuple[int, int] = (1, 1), padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | tuple[int, int] = (1, 1), groups: int = 1,
        *, offset_groups: int = 1, modulated: bool = False, **kwargs: Any,
    ) -> None:  # fmt: skip
        window = dict(strides=strides, padding=padding, dilation_rate=dilation_rate)
        window["data_format"] = data_format
        super().__init__(filters, kernel_size, **window, groups=groups, **kwargs)
        self.offset_groups = checks.integer("DeformConv2D", "offset_groups", offset_groups, 1)
        self.modulated = checks.flag("DeformConv2D", "modulated", modulated)
        self.offset_branch = keras.layers.Conv2D(
            self._offset_channels + self._mask_channels,
            kernel_size,
            **window,
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
        given = {"input": inputs, "offset": offset, "weight": weight}
        if self.bias is not None:
            given["bias"] = ops.convert_to_tensor(self.bias)
        if mask is not None:
            given["mask"] = mask
        shape = self.compute_output_shape(tuple(inputs.shape))
        outputs = _computed(self, "deform_conv2d", given, self._options, shape)
        return outputs if self.activation is None else self.activation(outputs)

    def get_config(self) -> dict[str, Any]:
        own = {"offset_groups": self.offset_groups, "modulated": self.modulated}
        return {**super().get_config(), **own}

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        """The options of `cudeform.deform_conv2d` for images of this size."""
        last, shape = self.data_format == "channels_last", given["input"].shape
        size = shape[1:3] if last else shape[2:4]
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


@keras.saving.register_keras_serializable("cudeform")
@described
class MSDeformAttn(_OnAllBackends):
    """Multi-scale deformable attention [1]_: from queries follows where and how much they read.

    A dense layer looks at a query and says where each head reads, a few points on every level of a
    pyramid of feature maps, and another how much of each it takes. At first each head looks in a
    direction of its own, and at all its points alike.

    Parameters
    ----------
    num_heads : int
        Heads M; they divide the channels C of the queries, which are also those of the result.
    num_levels : int
        Feature maps L.
    num_points : int
        Points P of a head on each level.
    **kwargs
        Further arguments of `keras.layers.Layer`: name, dtype, trainable.

    Notes
    -----
    It is called with

    - query (N, Lq, C),
    - reference (N, Lq, L, 2), points (x, y) in parts of the image, or (N, Lq, L, 4), boxes
      (x, y, w, h) by their middle; one in place of L is that of all levels,
    - features (N, S, C'), the pixels of all levels, one level after the other,
    - ``spatial_shapes=``, pairs (H, W) of each level, or an integer tensor (L, 2),
    - ``features_mask=``, optional, (N, S), booleans, as all masks of Keras True where there **is**
      something,

    and returns what the queries read, (N, Lq, C). With mixed precision the reference may be, and
    should be, of float32. The weights are kernel and bias of the dense layers `sampling_offsets`,
    `attention_weights`, `value_proj` and `output_proj`. On a GPU the TensorFlow backend computes on
    the host; torch and JAX compute on the GPU.

    %(deformable_detr_paper)s
    """

    def __init__(
        self, num_heads: int = 8, num_levels: int = 4, num_points: int = 4, **kwargs: Any
    ) -> None:
        super().__init__(autocast=False, **kwargs)  # 16 bits are too few for reference points
        self.num_heads = checks.integer("MSDeformAttn", "num_heads", num_heads, 1)
        self.num_levels = checks.integer("MSDeformAttn", "num_levels", num_levels, 1)
        self.num_points = checks.integer("MSDeformAttn", "num_points", num_points, 1)
        samples = self.num_heads * self.num_levels * self.num_points
        self.sampling_offsets = self._dense("sampling_offsets", 2 * samples, self._first_offsets)
        self.attention_weights = self._dense("attention_weights", samples, "zeros")

    def _dense(self, name: str, units: int, begin: Any = None) -> keras.layers.Dense:
        """A dense layer; with `begin` its bias begins so, and its kernel at 0."""
        first = {} if begin is None else dict(kernel_initializer="zeros", bias_initializer=begin)
        return keras.layers.Dense(units, dtype=self.dtype_policy, name=name, **first)

    def _first_offsets(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        offsets = first_offsets(self.num_heads, [self.num_points] * self.num_levels)
        return ops.convert_to_tensor(offsets.reshape(shape), dtype)

    def build(
        self, query_shape: tuple[int | None, ...], features_shape: tuple[int | None, ...]
    ) -> None:
        channels = query_shape[-1]
        if channels is None or channels % self.num_heads:
            expected = f"with channels divisible by `num_heads` = {self.num_heads}"
            checks.fail("MSDeformAttn", "query", expected, tuple(query_shape))
        self.value_proj = self._dense("value_proj", channels)
        self.output_proj = self._dense("output_proj", channels)
        self.value_proj.build(features_shape)
        for layer in (self.sampling_offsets, self.attention_weights, self.output_proj):
            layer.build(query_shape)

    def compute_output_shape(self, query_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return query_shape

    def call(
        self, query: Any, reference: Any, features: Any,
        *, spatial_shapes: Any, features_mask: Any = None,
    ) -> Any:  # fmt: skip
        value = self.value_proj(features)
        if features_mask is not None:
            value = ops.where(features_mask[..., None], value, ops.zeros_like(value))
        wide = "float64" if self.compute_dtype == "float64" else "float32"
        samples = *ops.shape(query)[:2], self.num_heads, self.num_levels, self.num_points
        weights = ops.reshape(self.attention_weights(query), samples)
        offsets = ops.reshape(self.sampling_offsets(query), (*samples, 2))
        reference, offsets = ops.cast(reference, wide), ops.cast(offsets, wide)
        given = {
            "value": ops.reshape(value, (*ops.shape(value)[:2], self.num_heads, -1)),
            "sampling_locations": self._locations(reference, offsets, spatial_shapes),
            "attention_weights": ops.cast(weights, wide),
        }
        options = {"softmax": True}
        of = given if ops.is_tensor(spatial_shapes) else options
        of["spatial_shapes"] = spatial_shapes
        read = _computed(self, "ms_deform_attn", given, lambda given: options, query.shape)
        return self.output_proj(read)

    def _locations(self, reference: Any, offsets: Any, shapes: Any) -> Any:
        """(N, Lq, M, L, P, 2): offsets are pixels around points, and parts of boxes."""
        levels, numbers = reference.shape[-2:]
        if levels not in (1, self.num_levels) or numbers not in (2, 4):
            expected = f"of shape (N, Lq, {self.num_levels} or 1, 2 or 4)"
            checks.fail("MSDeformAttn", "reference", expected, tuple(reference.shape))
        reference = reference[:, :, None, :, None]
        if numbers == 4:
            offsets = offsets * reference[..., 2:] * (0.5 / self.num_points)
        else:
            sizes = ops.flip(ops.cast(ops.convert_to_tensor(shapes), offsets.dtype), -1)
            offsets = offsets / sizes[:, None]
        return reference[..., :2] + offsets

    def get_config(self) -> dict[str, Any]:
        names = ("num_heads", "num_levels", "num_points")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _computed(
    layer: keras.layers.Layer, op: str, given: dict[str, Any],
    options: Callable[[dict[str, Any]], dict[str, Any]], shape: tuple[int | None, ...],
) -> Any:  # fmt: skip
    """The result of an operator, of which `shape` is known; options may follow from the arrays."""
    if keras.backend.backend() == "tensorflow":
        return _on_tensorflow(type(layer).__name__, op, given, options, shape)
    return getattr(cudeform, op)(**given, **options(given))


def _on_tensorflow(
    layer: str, op: str, arrays: dict[str, Any],
    options: Callable[[dict[str, Any]], dict[str, Any]], shape: tuple[int | None, ...],
) -> Any:  # fmt: skip
    import tensorflow as tf

    row, names = row_of(op), tuple(arrays)
    moving = tuple(name for name in row.gradients._fields if name in arrays)

    def forward(*values: np.ndarray) -> np.ndarray:
        given = dict(zip(names, values, strict=True))
        return row.forward(**given, **options(given))

    def backward(grad_output: np.ndarray, *values: np.ndarray) -> list[np.ndarray]:
        given = dict(zip(names, values, strict=True))
        kept = {name: array for name, array in given.items() if name in row.kept}
        found = row.backward(grad_output, **kept, **options(given), needs=moving)
        return [getattr(found, name) for name in moving]

    def no_second_derivative(*grads: Any) -> NoReturn:
        # TensorFlow itself would leave that part of a derivative out, in silence.
        raise NotImplementedError(
            f"{layer}: no second derivatives on TensorFlow, where the layer is a NumPy function; "
            "the backends torch and jax have them"
        )

    @tf.custom_gradient
    def operator(*tensors: Any) -> Any:
        output = tf.numpy_function(forward, tensors, tensors[0].dtype, stateful=False)
        output.set_shape(shape)

        def back(grad_output: Any) -> list[Any]:
            found = dict(zip(moving, gradients(grad_output, *tensors), strict=True))
            return [found.get(name) for name in names]

        return output, back

    @tf.custom_gradient
    def gradients(grad_output: Any, *tensors: Any) -> tuple[list[Any], Any]:
        own = [tensor for name, tensor in zip(names, tensors, strict=True) if name in moving]
        dtypes = [tensor.dtype for tensor in own]
        found = tf.numpy_function(backward, (grad_output, *tensors), dtypes, stateful=False)
        for result, tensor in zip(found, own, strict=True):
            result.set_shape(tensor.shape)
        return found, no_second_derivative

    return operator(*map(tf.convert_to_tensor, arrays.values()))
