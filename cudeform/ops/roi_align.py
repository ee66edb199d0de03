"""Pooling of regions by bilinear samples: RoIAlign, plain and position-sensitive."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, Literal, TypeAlias, overload

from cudeform.dispatch import dispatched
from cudeform.ops.call import gradients, results
from cudeform.types import Array, Boxes, NamedTuple, Pair

_Mode: TypeAlias = Literal["avg", "max"]


class RoiAlignGradients(NamedTuple, Generic[Array]):
    """Gradients by the argument they belong to; None where not needed."""

    input: Array | Any = None


@overload
def roi_align(
    input: Array, boxes: Boxes[Array],
    output_size: Pair, spatial_scale: float = 1.0, sampling_ratio: int = -1, aligned: bool = False,
    *, mode: _Mode = "avg", return_argmax: Literal[False] = False,
) -> Array: ...  # fmt: skip
@overload
def roi_align(
    input: Array, boxes: Boxes[Array],
    output_size: Pair, spatial_scale: float = 1.0, sampling_ratio: int = -1, aligned: bool = False,
    *, mode: _Mode = "avg", return_argmax: Literal[True],
) -> tuple[Array, Array]: ...  # fmt: skip
@overload
def roi_align(
    input: Array, boxes: Boxes[Array],
    output_size: Pair, spatial_scale: float = 1.0, sampling_ratio: int = -1, aligned: bool = False,
    *, mode: _Mode = "avg", return_argmax: bool = False,
) -> Array | tuple[Array, Array]: ...  # fmt: skip
@dispatched("input", "boxes")
def roi_align(
    input: Array, boxes: Boxes[Array],
    output_size: Pair, spatial_scale: float = 1.0, sampling_ratio: int = -1, aligned: bool = False,
    *, mode: _Mode = "avg", return_argmax: bool = False,
) -> Array | tuple[Array, Array]:  # fmt: skip
    """Average or maximum of bilinear samples in each bin of regions of interest (RoIAlign, [1]_).

    Parameters
    ----------
    %(maps_and_boxes)s
    %(bins)s
    %(sampling_ratio)s
    aligned : bool
        Whether to move the boxes by half a pixel, so that a pixel's centre is where sampling
        expects it. Without, regions are at least one pixel large.
    mode : {"avg", "max"}
        What becomes of the samples of a bin. "max" is mmcv's: the largest sample, the first of
        equal ones, NaN being the largest. ONNX's "max" is another function, the largest of a
        sample's corners times their weights.
    return_argmax : bool
        Whether to return as well where the largest sample is; for mode "max".

    Returns
    -------
    array of shape (R, C, ph, pw)
        With `return_argmax` a pair: that, and an array of shape (R, 2, C, ph, pw) and the dtype of
        coordinates with y and x of the sample, in pixels of `input`; -2 where that is outside or
        the bin has none.

    %(raises)s

    See Also
    --------
    roi_align_backward : the gradient.
    deform_roi_pool : bins that move.
    roi_pool : whole pixels.

    Notes
    -----
    Boxes have no gradient here. A sample more than one pixel outside the image
    is 0 and counts. With ``aligned`` a region without area or an inverted one (x2 < x1) has as
    many samples as it has pixels: none, and its bins are 0. A fixed `sampling_ratio` samples it
    like any other.

    References
    ----------
    .. [1] He, K. et al., "Mask R-CNN", ICCV 2017, arXiv:1703.06870.

    %(examples)s
    >>> image = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> boxes = np.array([[0.0, 0.0, 0.0, 4.0, 4.0]])
    >>> cudeform.roi_align(image, boxes, 2, aligned=True)[0, 0]
    array([[ 2.5,  4.5],
           [10.5, 12.5]])
    >>> cudeform.roi_align(image, boxes, 2, aligned=True, mode="max")[0, 0]
    array([[ 5.,  7.],
           [13., 15.]])
    """
    outputs = results("roi_align", locals())
    return outputs if return_argmax else outputs[0]


@dispatched("grad_output", "input", "boxes", "argmax")
def roi_align_backward(
    grad_output: Array, input: Array, boxes: Boxes[Array],
    output_size: Pair, spatial_scale: float = 1.0, sampling_ratio: int = -1, aligned: bool = False,
    *, mode: _Mode = "avg", argmax: Array | None = None, needs: Iterable[str] | None = None,
) -> RoiAlignGradients[Array]:  # fmt: skip
    """Gradient of `roi_align`.

    %(backward)s
    """
    return gradients("roi_align_backward", RoiAlignGradients, locals())


@dispatched("input", "boxes")
def ps_roi_align(
    input: Array, boxes: Boxes[Array],
    output_size: Pair, spatial_scale: float = 1.0, sampling_ratio: int = -1,
) -> Array:  # fmt: skip
    """Position-sensitive RoIAlign: each bin reads channels of its own [1]_.

    Parameters
    ----------
    %(score_maps)s
    boxes, output_size, spatial_scale, sampling_ratio
        As in `roi_align`; boxes are moved by half a pixel, as there with ``aligned=True``.

    %(score_bins)s

    See Also
    --------
    deform_ps_roi_pool : bins that move.
    ps_roi_pool : whole pixels.

    %(rfcn_paper)s

    %(examples)s
    >>> maps = np.arange(4.0).reshape(1, 4, 1, 1) * np.ones((4, 4))
    >>> cudeform.ps_roi_align(maps, np.array([[0.0, 0.0, 0.0, 4.0, 4.0]]), 2)[0, 0]
    array([[0., 1.],
           [2., 3.]])
    """
    return results("ps_roi_align", locals())[0]


@dispatched("grad_output", "input", "boxes")
def ps_roi_align_backward(
    grad_output: Array, input: Array, boxes: Boxes[Array],
    output_size: Pair, spatial_scale: float = 1.0, sampling_ratio: int = -1,
    *, needs: Iterable[str] | None = None,
) -> RoiAlignGradients[Array]:  # fmt: skip
    """Gradient of `ps_roi_align`.

    %(backward)s
    """
    return gradients("ps_roi_align_backward", RoiAlignGradients, locals())
