"""What a type checker says of calls: `mypy` reads this file, and nothing runs it.

`assert_type` holds what comes out; a line with `type: ignore` is one that mypy must refuse.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type

import cudeform
from cudeform.layers import DeformConv2d, DeformRoiPool

Floats = npt.NDArray[np.float32]


class Tensor:
    """Stands for an array of another framework."""

    shape: tuple[int, ...]
    dtype: object


def arrays(image: Floats, offset: Floats, weight: Floats, boxes: Floats) -> None:
    output = cudeform.deform_conv2d(image, offset, weight, padding=1)
    assert_type(output, Floats)
    assert_type(cudeform.conv2d(image, weight, None, (2, 1), ((0, 1), (2, 3))), Floats)
    gradients = cudeform.deform_conv2d_backward(output, image, offset, weight, needs=["offset"])
    assert_type(gradients.offset, Floats | Any)
    print(gradients.offset.shape, gradients[1].sum())
    assert_type(cudeform.roi_align(image, boxes, 7, 1 / 16), Floats)
    assert_type(cudeform.roi_align(image, [boxes, boxes], (7, 7)), Floats)
    assert_type(cudeform.roi_pool(image, boxes, 7), Floats)
    pooled, argmax = cudeform.roi_pool(image, boxes, 7, return_argmax=True)
    assert_type(pooled, Floats)
    cudeform.roi_pool_backward(pooled, image, boxes, 7, argmax=argmax)
    assert_type(cudeform.deform_roi_pool(image, boxes, None, 7), Floats)
    assert_type(cudeform.unpack_dcnv4(offset, 4, 9), tuple[Floats, Floats])
    assert_type(cudeform.points_from_msda(offset, [(6, 8), (3, 4)]), Floats)


def tensors(image: Tensor, points: Tensor) -> None:
    assert_type(cudeform.bilinear_sample(image, points, layout="NHWC"), Tensor)


def widened(image: npt.NDArray[np.float16], boxes: Floats) -> None:
    print(cudeform.roi_align(image, boxes, 7).shape)


def layers(params: dict[str, Floats], x: Floats, boxes: Floats) -> None:
    convolution = DeformConv2d(16, 8, kernel_size=3, modulated=True)
    y, saved = convolution.forward(params, x)
    assert_type(y, Floats)
    assert_type(convolution.backward(params, saved, y), tuple[Floats, dict[str, Floats]])
    assert_type(convolution.deformation(params, x), tuple[Floats, Floats | None])
    assert_type(DeformRoiPool(16, 7, 1 / 16).forward(params, x, boxes)[0], Floats)


def refused(image: Floats, points: Floats, tensor: Tensor) -> None:
    cudeform.bilinear_sample(image, tensor).sum()  # type: ignore[attr-defined]
    cudeform.bilinear_sample([[1.0]], points)  # type: ignore[type-var]
    cudeform.bilinear_sample(image, points, border="zero")  # type: ignore[arg-type]
    cudeform.bilinear_sample(image)  # type: ignore[call-arg]
    cudeform.conv2d(image, points, stride="2")  # type: ignore[arg-type]
    cudeform.conv2d(image, points, step=2)  # type: ignore[call-arg]
    cudeform.roi_pool(image, points, 7, mode="mean")  # type: ignore[call-overload]
