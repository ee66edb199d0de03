"""Sampling points in the coordinates of other libraries."""

from __future__ import annotations

from typing import Any

from cudeform import arrays, checks
from cudeform.dispatch import dispatched
from cudeform.types import Array


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
    name = "spatial_shapes"
    if not isinstance(spatial_shapes, (list, tuple)):
        kind = arrays.known(op, name, spatial_shapes)
        if not kind.dtype_name(spatial_shapes.dtype).startswith(("int", "uint", "float")):
            expected = "of integers or real numbers"
            checks.fail(op, name, expected, repr(spatial_shapes.dtype), error=TypeError)
        checks.shape(op, name, spatial_shapes, (levels, 2), "(L, (H, W))")
        if kind.backend == "cpu" and not (spatial_shapes > 0).all():
            checks.fail(op, name, "to be above 0", spatial_shapes.min())
        return spatial_shapes
    checks.listed_pairs(op, name, spatial_shapes, levels)
    return [checks.pair(op, name, size, 1) for size in spatial_shapes]


@dispatched("locations", "spatial_shapes")
def points_from_msda(locations: Array, spatial_shapes: Any) -> Array:
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

    %(raises)s

    %(examples)s

    The centre of a level of 2 x 4 pixels, and the centre of its first pixel:

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


@dispatched("points", "spatial_shapes")
def points_to_msda(points: Array, spatial_shapes: Any) -> Array:
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

    %(raises)s

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
