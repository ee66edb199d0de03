"""Pooling of regions over whole pixels: Fast R-CNN's RoI pooling, plain and position-sensitive."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, Literal, TypeAlias, overload

from cudeform.dispatch import dispatched
from cudeform.ops.call import gradients, results
from cudeform.types import Array, Boxes, NamedTuple, Pair

_Mode: TypeAlias = Literal["max", "avg"]


@overload
def roi_pool(
    input: Array, boxes: Boxes[Array],
    output_size: Pair, spatial_scale: float = 1.0,
    *, mode: _Mode = "max", return_argmax: Literal[False] = False,
) -> Array: ...  # fmt: skip
@overload
def roi_pool(
    input: Array, boxes: Boxes[Array],
    output_size: Pair, spatial_scale: float = 1.0,
    *, mode: _Mode = "max", return_argmax: Literal[True],
) -> tuple[Array, Array]: ...  # fmt: skip
@overload
def roi_pool(
    input: Array, boxes: Boxes[Array],
    output_size: Pair, spatial_scale: float = 1.0,
    *, mode: _Mode = "max", return_argmax: bool = False,
) -> Array | tuple[Array, Array]: ...  # fmt: skip
@dispatched("input", "boxes")
def roi_pool(
    input: Array, boxes: Boxes[Array],
    output_size: Pair, spatial_scale: float = 1.0,
    *, mode: _Mode = "max", return_argmax: bool = False,
) -> Array | tuple[Array, Array]:  # fmt: skip
    """Maximum [1]_ or average ([2]_, equation 5) of the pixels in each bin of regions of interest.

    Parameters
    ----------
    %(maps_and_boxes)s
    %(bins)s
    mode : {"max", "avg"}
        What becomes of the pixels of a bin.
    return_argmax : bool
        Whether to return as well which pixel was the largest; for mode "max".

    Returns
    -------
    array of shape (R, C, ph, pw)
        With `return_argmax` a pair: that, and an int32 array of its shape with y*W + x of the first
        largest pixel, -1 for a bin without pixels.

    %(raises)s

    See Also
    --------
    roi_pool_backward : the gradient.
    roi_align : bilinear samples in place of whole pixels.
    deform_roi_pool : bins that move.

    Notes
    -----
    The scaled corners are rounded, halves away from zero, both included; bins may overlap by a
    pixel. A bin without pixels, as outside of the image, is 0. Regions are at least one pixel
    large: an inverted box is the pixel of its first corner. Edges of bins are rounded as in
    torchvision: i * (size / bins) in the dtype of the boxes.

    References
    ----------
    .. [1] Girshick, R., "Fast R-CNN", ICCV 2015, arXiv:1504.08083.
    .. [2] Dai, J. et al., "Deformable Convolutional Networks", ICCV 2017, arXiv:1703.06211.

    %(examples)s
    >>> image = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> boxes = np.array([[0.0, 0.0, 0.0, 3.0, 3.0]])
    >>> cudeform.roi_pool(image, boxes, 2)[0, 0]
    array([[ 5.,  7.],
           [13., 15.]])
    >>> cudeform.roi_pool(image, boxes, 2, mode="avg").ravel()
    array([ 2.5,  4.5, 10.5, 12.5])
    """
    outputs = results("roi_pool", locals())
    return outputs if return_argmax else outputs[0]


class RoiPoolGradients(NamedTuple, Generic[Array]):
    """Gradients by the argument they belong to; None where not needed."""

    input: Array | Any = None


@dispatched("grad_output", "input", "boxes", "argmax")
def roi_pool_backward(
    grad_output: Array, input: Array, boxes: Boxes[Array],
    output_size: Pair, spatial_scale: float = 1.0,
    *, mode: _Mode = "max", argmax: Array | None = None, needs: Iterable[str] | None = None,
) -> RoiPoolGradients[Array]:  # fmt: skip
    """Gradient of `roi_pool`.

    %(backward)s

    Notes
    -----
    With mode "max" the pixel that was the largest of a bin has all of that bin's gradient.
    """
    return gradients("roi_pool_backward", RoiPoolGradients, locals())


_Convention: TypeAlias = Literal["torchvision", "rfcn", "msra"]


@dispatched("input", "boxes")
def ps_roi_pool(
    input: Array, boxes: Boxes[Array],
    output_size: Pair, spatial_scale: float = 1.0,
    *, convention: _Convention = "torchvision",
) -> Array:  # fmt: skip
    """Position-sensitive RoI pooling: the average of a bin, in channels of its own [1]_.

    Parameters
    ----------
    %(score_maps)s
    boxes, output_size, spatial_scale
        As in `roi_pool`.
    convention : {"torchvision", "rfcn", "msra"}
        How a box becomes a region: "torchvision" rounds the scaled corners, the second excluded,
        and never reads the last row and column of the image, as torchvision's forward; "rfcn" is
        the same up to the edge of the image; "msra", of the paper's own code, MXNet and
        OpenVINO, rounds before scaling, the second corner included, and leaves regions on
        fractions of a pixel.

    %(score_bins)s

    See Also
    --------
    ps_roi_align : bilinear samples in place of whole pixels.
    deform_ps_roi_pool : bins that move.

    %(rfcn_paper)s

    %(examples)s
    >>> maps = np.arange(4.0).reshape(1, 4, 1, 1) * np.ones((4, 4))
    >>> boxes = np.array([[0.0, 0.0, 0.0, 4.0, 4.0]])
    >>> cudeform.ps_roi_pool(maps, boxes, 2).ravel()
    array([0., 1., 2., 3.])
    """
    return results("ps_roi_pool", locals())[0]


@dispatched("grad_output", "input", "boxes")
def ps_roi_pool_backward(
    grad_output: Array, input: Array, boxes: Boxes[Array],
    output_size: Pair, spatial_scale: float = 1.0,
    *, convention: _Convention = "torchvision", needs: Iterable[str] | None = None,
) -> RoiPoolGradients[Array]:  # fmt: skip
    """Gradient of `ps_roi_pool`.

    %(backward)s
    """
    return gradients("ps_roi_pool_backward", RoiPoolGradients, locals())
