"""Pooling of regions by bilinear samples: RoIAlign, plain and position-sensitive."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from cudeform import arrays, checks
from cudeform.boxes import box_rows, groups_of, pool_plan, sampling
from cudeform.dispatch import operator
from cudeform.geometry import RoiPlan
from cudeform.ops import pool, pool_gradients

__all__ = [
    "RoiAlignGradients",
    "ps_roi_align",
    "ps_roi_align_backward",
    "roi_align",
    "roi_align_backward",
]


class RoiAlignGradients(NamedTuple):
    """Gradients by the argument they belong to; None where not needed."""

    input: Any = None


@checks.remembered("input", "rows", "grad_output")
def _ps_plan(
    op: str,
    input: Any,
    rows: Any,
    output_size: Any,
    spatial_scale: Any,
    sampling_ratio: Any,
    grad_output: Any = None,
) -> RoiPlan:
    checks.rank(op, "input", input, "(N, C, H, W)")
    bins = checks.pair(op, "output_size", output_size, 1)
    return pool_plan(
        op,
        input,
        rows,
        bins,
        spatial_scale,
        grad_output,
        region="center",
        reads="centers",
        samples=sampling(op, sampling_ratio),
        groups=groups_of(op, input.shape[1], bins, "ph * pw"),
    )


@operator
def roi_align(
    input: Any,
    boxes: Any,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Any:
    """Average of bilinear samples in each bin of regions of interest (RoIAlign, [1]_).

    Parameters
    ----------
    input : array of shape (N, C, H, W)
        Feature maps, of dtype float16, bfloat16, float32 or float64.
    boxes : array of shape (R, 5), or list of N arrays of shape (L, 4)
        Rows (image, x1, y1, x2, y2), or for each image rows (x1, y1, x2, y2), in the coordinates
        of the image; of the dtype of `input`, or of float32 where that has 16 bits.
    output_size : int or (int, int)
        Bins (ph, pw) along y and x.
    spatial_scale : float
        Pixels of `input` per unit of `boxes`.
    sampling_ratio : int
        Samples of a bin along each axis, at most 32768; 0 or -1: as many as the bin has pixels,
        rounded up.
    aligned : bool
        Whether to move the boxes by half a pixel, so that a pixel's centre is where sampling
        expects it. Without, regions are at least one pixel large.

    Returns
    -------
    array of shape (R, C, ph, pw)

    Raises
    ------
    TypeError
        An array of an unknown kind or dtype, or arrays that differ in kind, device or dtype.
    ValueError
        A shape, an option or an image index that does not fit; the message says what was
        expected.

    See Also
    --------
    roi_align_backward : the gradient.
    deform_roi_pool : bins that move.
    roi_pool : whole pixels.

    Notes
    -----
    Boxes are no function to differentiate here. A sample more than one pixel outside the image
    is 0 and counts; a region that is inverted (x2 < x1) is empty and gives 0 with ``aligned``.

    References
    ----------
    .. [1] He, K. et al., "Mask R-CNN", ICCV 2017, arXiv:1703.06870.

    Examples
    --------
    >>> import numpy as np
    >>> import cudeform
    >>> image = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> boxes = np.array([[0.0, 0.0, 0.0, 4.0, 4.0]])
    >>> cudeform.roi_align(image, boxes, 2, aligned=True)[0, 0]
    array([[ 2.5,  4.5],
           [10.5, 12.5]])
    """
    op = "roi_align"
    kind = arrays.kind_of(op, dict(input=input))
    rows = box_rows(op, boxes, input, kind)
    plan = _plan(op, input, rows, output_size, spatial_scale, sampling_ratio, aligned)
    return pool(plan, kind, input, rows)[0]


@checks.remembered("input", "rows", "grad_output")
def _plan(
    op: str,
    input: Any,
    rows: Any,
    output_size: Any,
    spatial_scale: Any,
    sampling_ratio: Any,
    aligned: bool,
    grad_output: Any = None,
) -> RoiPlan:
    return pool_plan(
        op,
        input,
        rows,
        output_size,
        spatial_scale,
        grad_output,
        region="center" if checks.flag(op, "aligned", aligned) else "corner",
        reads="centers",
        samples=sampling(op, sampling_ratio),
    )


@operator
def roi_align_backward(
    grad_output: Any,
    input: Any,
    boxes: Any,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    needs: Iterable[str] | None = None,
) -> RoiAlignGradients:
    """Gradient of `roi_align`.

    Parameters
    ----------
    grad_output : array of shape (R, C, ph, pw)
        The gradient of a scalar with respect to the result of the forward.
    input, boxes, output_size, spatial_scale, sampling_ratio, aligned
        As they were given to `roi_align`.
    needs : iterable of str, optional
        Names of the gradients to compute: "input", the default, or none.

    Returns
    -------
    RoiAlignGradients
        A named tuple with the field input.

    Raises
    ------
    TypeError, ValueError
        As `roi_align`, and for an unknown name in `needs`.
    """
    op = "roi_align_backward"
    kind = arrays.kind_of(op, dict(grad_output=grad_output, input=input))
    needed = checks.needs(op, needs, {}, RoiAlignGradients._fields)
    rows = box_rows(op, boxes, input, kind)
    plan = _plan(op, input, rows, output_size, spatial_scale, sampling_ratio, aligned, grad_output)
    return RoiAlignGradients(**pool_gradients(plan, kind, grad_output, input, rows, needed))


@operator
def ps_roi_align(
    input: Any,
    boxes: Any,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
) -> Any:
    """Position-sensitive RoIAlign: each bin reads channels of its own [1]_.

    Parameters
    ----------
    input : array of shape (N, C*ph*pw, H, W)
        Score maps; bin (i, j) of output channel c reads channel (c*ph + i)*pw + j.
    boxes, output_size, spatial_scale, sampling_ratio
        As in `roi_align`; boxes are moved by half a pixel, as there with ``aligned=True``.

    Returns
    -------
    array of shape (R, C, ph, pw)

    Raises
    ------
    TypeError, ValueError
        As `roi_align`, and for a number of channels that ph*pw does not divide.

    See Also
    --------
    deform_ps_roi_pool : bins that move.
    ps_roi_pool : whole pixels.

    References
    ----------
    .. [1] Dai, J. et al., "R-FCN: Object Detection via Region-based Fully Convolutional
       Networks", NeurIPS 2016, arXiv:1605.06409.

    Examples
    --------
    >>> import numpy as np
    >>> import cudeform
    >>> maps = np.arange(4.0).reshape(1, 4, 1, 1) * np.ones((4, 4))
    >>> cudeform.ps_roi_align(maps, np.array([[0.0, 0.0, 0.0, 4.0, 4.0]]), 2)[0, 0]
    array([[0., 1.],
           [2., 3.]])
    """
    op = "ps_roi_align"
    kind = arrays.kind_of(op, dict(input=input))
    rows = box_rows(op, boxes, input, kind)
    plan = _ps_plan(op, input, rows, output_size, spatial_scale, sampling_ratio)
    return pool(plan, kind, input, rows)[0]


@operator
def ps_roi_align_backward(
    grad_output: Any,
    input: Any,
    boxes: Any,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    *,
    needs: Iterable[str] | None = None,
) -> RoiAlignGradients:
    """Gradient of `ps_roi_align`.

    Parameters
    ----------
    grad_output : array of shape (R, C, ph, pw)
    input, boxes, output_size, spatial_scale, sampling_ratio
        As they were given to `ps_roi_align`.
    needs : iterable of str, optional
        As in `roi_align_backward`.

    Returns
    -------
    RoiAlignGradients
        A named tuple with the field input.

    Raises
    ------
    TypeError, ValueError
        As `ps_roi_align`, and for an unknown name in `needs`.
    """
    op = "ps_roi_align_backward"
    kind = arrays.kind_of(op, dict(grad_output=grad_output, input=input))
    needed = checks.needs(op, needs, {}, RoiAlignGradients._fields)
    rows = box_rows(op, boxes, input, kind)
    plan = _ps_plan(op, input, rows, output_size, spatial_scale, sampling_ratio, grad_output)
    return RoiAlignGradients(**pool_gradients(plan, kind, grad_output, input, rows, needed))
