"""Offsets of deformable poolings in the units of other libraries."""

from __future__ import annotations

from typing import Any

from cudeform import arrays, checks
from cudeform.dispatch import dispatched
from cudeform.types import Array, Boxes


def _roi_size_mmcv(boxes: Any, scale: float, xp: Any) -> Any:
    return (boxes[:, 3:] - boxes[:, 1:3]) * scale


def _roi_size_mxnet(boxes: Any, scale: float, xp: Any) -> Any:
    rounded = xp.copysign(xp.floor(xp.abs(boxes) + 0.5), boxes)  # half away from zero
    return xp.clip((rounded[:, 3:] + 1 - rounded[:, 1:3]) * scale, 0.1, None)


_ROI_SIZES = {"mmcv": _roi_size_mmcv, "mxnet": _roi_size_mxnet}


@dispatched("offset", "boxes")
def convert_roi_offset(
    offset: Array, boxes: Boxes[Array],
    source: str, target: str,
    *, spatial_scale: float = 1.0, gamma: float = 0.1, trans_std: float = 0.1, classes: int = 1,
) -> Array:  # fmt: skip
    """Offsets of a deformable RoI pooling from the unit of one library in that of another.

    mmcv's deform_roi_pool and MXNet's deformable position-sensitive RoI pooling both shift a bin
    by a fraction of its RoI, and measure the RoI differently. The result shifts every bin by as
    many pixels as `offset` did.

    Parameters
    ----------
    offset : array of shape (R, 2, ph, pw)
        (x, y) of each bin; for "mxnet" its `trans` with one class.
    boxes : array of shape (R, 5)
        (image, x1, y1, x2, y2) of each RoI, before scaling; of the dtype of `offset`, or of
        float32 where that has 16 bits.
    source, target : {"mmcv", "mxnet"}
        The unit of `offset`, and that of the result. "mxnet" is also that of OpenVINO.
    spatial_scale : float
        Pixels of the input for one unit of `boxes`.
    gamma, trans_std : float
        The factor of mmcv's offsets and that of MXNet's.
    classes : int
        With target "mxnet": every class gets the same offsets.

    Returns
    -------
    array of shape (R, 2*classes, ph, pw)

    %(raises)s

    Notes
    -----
    mmcv's RoI is ``(x2 - x1) * spatial_scale`` wide, MXNet's
    ``max((round(x2) + 1 - round(x1)) * spatial_scale, 0.1)``, and so with y.

    %(examples)s

    A RoI 9 wide and 19 high counts as 10 by 20 in MXNet:

    >>> offset = np.array([1.0, 1.0]).reshape(1, 2, 1, 1)
    >>> boxes = np.array([[0.0, 0.0, 0.0, 9.0, 19.0]])
    >>> cudeform.convert_roi_offset(offset, boxes, "mmcv", "mxnet").ravel()
    array([0.9 , 0.95])
    """
    op = "convert_roi_offset"
    kind = arrays.kind_of(op, {"offset": offset, "boxes": boxes}, coordinates="boxes")
    checks.choice(op, "source", source, tuple(_ROI_SIZES))
    checks.choice(op, "target", target, tuple(_ROI_SIZES))
    classes = checks.integer(op, "classes", classes, 1)
    checks.rank(op, "offset", offset, "(R, 2, ph, pw)")
    rois, *bins = offset.shape[0], *offset.shape[2:]
    checks.shape(op, "offset", offset, (rois, 2, *bins), "(R, (x, y), ph, pw)")
    checks.shape(op, "boxes", boxes, (rois, 5), "(R, (image, x1, y1, x2, y2))")
    if target == "mmcv" and classes != 1:
        checks.fail(op, "classes", "to be 1 with target 'mmcv', which has no classes", classes)
    factors = {
        "mmcv": checks.positive(op, "gamma", gamma),
        "mxnet": checks.positive(op, "trans_std", trans_std),
    }
    spatial_scale = checks.positive(op, "spatial_scale", spatial_scale)
    xp = arrays.namespace(kind)
    corners = arrays.widened(kind, boxes)
    before, after = (
        factors[library] * _ROI_SIZES[library](corners, spatial_scale, xp)
        for library in (source, target)
    )
    ratio = (before / after)[:, :, None, None]  # (R, 2, 1, 1)
    return xp.tile(kind.cast(offset * ratio, offset.dtype), (1, classes, 1, 1))
