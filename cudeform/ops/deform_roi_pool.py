"""Deformable pooling of regions, plain and position-sensitive, and their modulated forms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic

from cudeform.dispatch import dispatched
from cudeform.ops.call import gradients, results
from cudeform.types import Array, Boxes, NamedTuple, Pair


@dispatched("input", "boxes", "offset", "mask")
def deform_roi_pool(
    input: Array, boxes: Boxes[Array], offset: Array | None,
    output_size: Pair, spatial_scale: float = 1.0, sampling_ratio: int = 0, gamma: float = 0.1,
    mask: Array | None = None,
) -> Array:  # fmt: skip
    """Deformable RoI pooling ([1]_, equation 6), modulated with a `mask` [2]_.

    Parameters
    ----------
    %(maps_and_boxes)s
    offset : array of shape (R, 2, ph, pw) or None
        How far each bin moves, x before y, in units of `gamma` times the size of the region; of
        the dtype of `input`, or of float32 where that has 16 bits.
    %(bins)s
    %(sampling_ratio)s
    gamma : float
        Scale of the offsets.
    mask : array of shape (R, 1, ph, pw), optional
        Multiplies the bins, as it is: the sigmoid is the caller's.

    Returns
    -------
    array of shape (R, C, ph, pw)

    %(raises)s

    See Also
    --------
    deform_roi_pool_backward : the gradients.
    roi_align : without offset and mask this is ``roi_align(..., aligned=True)``.

    %(deformable_papers)s

    %(examples)s

    Moving both columns of bins to the right by a quarter of the region, one pixel:

    >>> image = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> boxes = np.array([[0.0, 0.0, 0.0, 4.0, 4.0]])
    >>> offset = np.zeros((1, 2, 2, 2))
    >>> offset[:, 0] = 2.5
    >>> cudeform.deform_roi_pool(image, boxes, offset, 2)[0, 0]
    array([[ 3.5,  5. ],
           [11.5, 13. ]])
    """
    return results("deform_roi_pool", locals())[0]


class DeformRoiPoolGradients(NamedTuple, Generic[Array]):
    """Gradients by the argument they belong to; None where not needed or not given."""

    input: Array | Any = None
    offset: Array | Any = None
    mask: Array | Any = None


@dispatched("grad_output", "input", "boxes", "offset", "mask")
def deform_roi_pool_backward(
    grad_output: Array, input: Array, boxes: Boxes[Array], offset: Array | None,
    output_size: Pair, spatial_scale: float = 1.0, sampling_ratio: int = 0, gamma: float = 0.1,
    mask: Array | None = None,
    *, needs: Iterable[str] | None = None,
) -> DeformRoiPoolGradients[Array]:  # fmt: skip
    """Gradients of `deform_roi_pool`.

    %(backward)s

    Notes
    -----
    The gradient of `offset` is the true derivative also where samples are clamped at the border of
    the image: it is 0 along that axis.
    """
    return gradients("deform_roi_pool_backward", DeformRoiPoolGradients, locals())


@dispatched("input", "boxes", "offset", "mask")
def deform_ps_roi_pool(
    input: Array, boxes: Boxes[Array], offset: Array | None,
    output_size: Pair, spatial_scale: float, output_dim: int, group_size: Pair,
    part_size: Pair | None = None, sample_per_part: int = 4, trans_std: float = 0.1,
    mask: Array | None = None,
) -> Array:  # fmt: skip
    """Deformable position-sensitive RoI pooling [1]_, modulated with a `mask` [2]_.

    Parameters
    ----------
    input : array of shape (N, output_dim*group_size*group_size, H, W)
        Score maps; bin (i, j) of output channel c reads channel (c*G + gh)*G + gw, where
        (gh, gw) = (floor(i*G/ph), floor(j*G/pw)) and G is the group size.
    boxes : array of shape (R, 5), or list of N arrays of shape (L, 4)
        As in `deform_roi_pool`; their corners are rounded before they are scaled.
    offset : array of shape (R, 2*classes, part_h, part_w) or None
        How far the bins of a part move, per class x before y, in units of `trans_std` times the
        size of the region; of the dtype of `input`, or of float32 where that has 16 bits.
    %(bins)s
    output_dim : int
        Output channels C; the classes divide them into equal runs.
    group_size : int or (int, int)
        Position-sensitive groups along y and x.
    part_size : int or (int, int), optional
        Cells of the offsets along y and x; by default the bins.
    sample_per_part : int
        Samples of a bin along each axis, at most 32768, at the upper left corners of its cells.
    trans_std : float
        Scale of the offsets.
    mask : array of shape (R, classes, part_h, part_w), optional
        Multiplies the bins of a part, as it is.

    Returns
    -------
    array of shape (R, output_dim, ph, pw)
        The mean of those samples of each bin that are no more than half a pixel outside the image,
        and 0 if there are none.

    %(raises)s

    See Also
    --------
    deform_ps_roi_pool_backward : the gradients.
    convert_roi_offset : offsets between this operator and `deform_roi_pool`.

    %(deformable_papers)s

    %(examples)s
    >>> maps = np.arange(4.0).reshape(1, 4, 1, 1) * np.ones((4, 4))
    >>> boxes = np.array([[0.0, 0.0, 0.0, 3.0, 3.0]])
    >>> cudeform.deform_ps_roi_pool(maps, boxes, None, 2, 1.0, 1, 2).ravel()
    array([0., 1., 2., 3.])
    """
    return results("deform_ps_roi_pool", locals())[0]


@dispatched("grad_output", "input", "boxes", "offset", "mask")
def deform_ps_roi_pool_backward(
    grad_output: Array, input: Array, boxes: Boxes[Array], offset: Array | None,
    output_size: Pair, spatial_scale: float, output_dim: int, group_size: Pair,
    part_size: Pair | None = None, sample_per_part: int = 4, trans_std: float = 0.1,
    mask: Array | None = None,
    *, needs: Iterable[str] | None = None,
) -> DeformRoiPoolGradients[Array]:  # fmt: skip
    """Gradients of `deform_ps_roi_pool`.

    %(backward)s
    """
    return gradients("deform_ps_roi_pool_backward", DeformRoiPoolGradients, locals())
