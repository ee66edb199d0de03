"""Sampling points in the coordinates of other libraries."""

from __future__ import annotations

from typing import Any

from cudeform import arrays, checks
from cudeform.dispatch import operator

__all__ = ["convert_roi_offset", "points_from_msda", "points_to_msda"]


def _with_sizes(op: str, kind: arrays.Kind, name: str, array: Any, spatial_shapes: Any) -> Any:
    """An array (..., L, P, 2) and, to broadcast against it, the (H, W) of each level."""
    shape = tuple(array.shape)
    if len(shape) < 3 or shape[-1] != 2:
        checks.fail(op, name, "of shape (..., L, P, 2)", shape)
    wide = arrays.widened(kind, array)
    sizes = kind.constant(_sizes(op, spatial_shapes, shape[-3]), wide)
    return wide, sizes[:, None, :]


def _sizes(op: str, spatial_shapes: Any, levels: int) -> Any:
    """Sizes of levels after checking them; what is in an array only where it is at hand."""
    name, shape, symbols = "spatial_shapes", (levels, 2), "(L, (H, W))"
    if not isinstance(spatial_shapes, (list, tuple)):
        kind = arrays.known(op, name, spatial_shapes)
        if not kind.dtype_name(spatial_shapes.dtype).startswith(("int", "uint", "float")):
            wanted = "of integers or real numbers"
            checks.fail(op, name, wanted, repr(spatial_shapes.dtype), error=TypeError)
        checks.shape(op, name, spatial_shapes, shape, symbols)
        if kind.backend == "cpu" and not (spatial_shapes > 0).all():
            checks.fail(op, name, "to be above 0", spatial_shapes.min())
        return spatial_shapes
    for size in spatial_shapes:
        if not isinstance(size, (list, tuple)):
            checks.fail(op, name, f"of pairs {symbols}", checks.shown(size), error=TypeError)
    if len(spatial_shapes) != levels:
        checks.fail(op, name, f"of shape {shape} = {symbols}", f"length {len(spatial_shapes)}")
    return [checks.pair(op, name, size, 1) for size in spatial_shapes]


@operator
def points_from_msda(locations: Any, spatial_shapes: Any) -> Any:
    """Points (y, x) in pixels from the sampling locations of multi-scale deformable attention.

    Parameters
    ----------
    locations : array of shape (N, Lq, M, L, P, 2)
        Normalised (x, y): 0 and 1 are the outer edges of the first and the last pixel of a level.
        Other leading axes are as good.
    spatial_shapes : array or sequence of shape (L, 2)
        (H, W) of each level.

    Returns
    -------
    array of shape (N, Lq, M, L, P, 2)
        (y, x) in pixels of the level, pixel centres on integers, as `bilinear_sample` takes them.

    Raises
    ------
    TypeError, ValueError
        An array of the wrong kind, dtype or shape.

    Examples
    --------
    The centre of a level of 2 x 4 pixels, and the centre of its first pixel:

    >>> import numpy as np
    >>> import cudeform
    >>> locations = np.array([[0.5, 0.5], [0.125, 0.25]]).reshape(1, 2, 2)
    >>> cudeform.points_from_msda(locations, [(2, 4)])
    array([[[0.5, 1.5],
            [0. , 0. ]]])
    """
    op = "points_from_msda"
    kind = arrays.kind_of(op, {"locations": locations})
    xy, sizes = _with_sizes(op, kind, "locations", locations, spatial_shapes)
    points = arrays.namespace(kind).flip(xy, (-1,)) * sizes - 0.5
    return kind.contiguous(kind.cast(points, locations.dtype))


@operator
def points_to_msda(points: Any, spatial_shapes: Any) -> Any:
    """The inverse of `points_from_msda`, up to rounding.

    Parameters
    ----------
    points : array of shape (N, Lq, M, L, P, 2)
        (y, x) in pixels of the level.
    spatial_shapes : array or sequence of shape (L, 2)
        (H, W) of each level.

    Returns
    -------
    array of shape (N, Lq, M, L, P, 2)
        Normalised (x, y).

    Raises
    ------
    TypeError, ValueError
        An array of the wrong kind, dtype or shape.

    Notes
    -----
    Rounding can move a point that lies on a pixel centre to the other side of it, where the
    derivative is another one.
    """
    op = "points_to_msda"
    kind = arrays.kind_of(op, {"points": points})
    yx, sizes = _with_sizes(op, kind, "points", points, spatial_shapes)
    locations = arrays.namespace(kind).flip((yx + 0.5) / sizes, (-1,))
    return kind.contiguous(kind.cast(locations, points.dtype))


def _roi_size_mmcv(boxes: Any, scale: float, xp: Any) -> Any:
    return (boxes[:, 3:] - boxes[:, 1:3]) * scale


def _roi_size_mxnet(boxes: Any, scale: float, xp: Any) -> Any:
    rounded = xp.copysign(xp.floor(xp.abs(boxes) + 0.5), boxes)  # half away from zero
    return xp.clip((rounded[:, 3:] + 1 - rounded[:, 1:3]) * scale, 0.1, None)


_ROI_SIZES = {"mmcv": _roi_size_mmcv, "mxnet": _roi_size_mxnet}


@operator
def convert_roi_offset(
    offset: Any,
    boxes: Any,
    source: str,
    target: str,
    *,
    spatial_scale: float = 1.0,
    gamma: float = 0.1,
    trans_std: float = 0.1,
    classes: int = 1,
) -> Any:
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

    Raises
    ------
    TypeError, ValueError
        An array or option of the wrong kind, dtype, shape or value.

    Notes
    -----
    mmcv's RoI is ``(x2 - x1) * spatial_scale`` wide, MXNet's
    ``max((round(x2) + 1 - round(x1)) * spatial_scale, 0.1)``, and so with y.

    Examples
    --------
    A RoI 9 wide and 19 high counts as 10 by 20 in MXNet:

    >>> import numpy as np
    >>> import cudeform
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
