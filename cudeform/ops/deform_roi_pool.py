"""Deformable pooling of regions, plain and position-sensitive, and their modulated forms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from cudeform import arrays, checks
from cudeform.boxes import box_rows, pool_plan, sampling, shift_cells
from cudeform.dispatch import operator
from cudeform.geometry import RoiPlan
from cudeform.ops import pool, pool_gradients

__all__ = [
    "DeformRoiPoolGradients",
    "deform_ps_roi_pool",
    "deform_ps_roi_pool_backward",
    "deform_roi_pool",
    "deform_roi_pool_backward",
]


def _kind(op: str, given: dict[str, Any]) -> arrays.Kind:
    return arrays.kind_of(op, given, ("offset", "mask"), coordinates="offset")


class DeformRoiPoolGradients(NamedTuple):
    """Gradients by the argument they belong to; None where not needed or not given."""

    input: Any = None
    offset: Any = None
    mask: Any = None


@checks.remembered("input", "rows", "offset", "mask", "grad_output")
def _plan(
    op: str,
    input: Any,
    rows: Any,
    offset: Any,
    output_size: Any,
    spatial_scale: Any,
    sampling_ratio: Any,
    gamma: Any,
    mask: Any,
    grad_output: Any = None,
) -> RoiPlan:
    plan = pool_plan(
        op,
        input,
        rows,
        output_size,
        spatial_scale,
        grad_output,
        region="center",
        reads="centers",
        samples=sampling(op, sampling_ratio),
        part=checks.pair(op, "output_size", output_size, 1),
        offset_scale=checks.number(op, "gamma", gamma),
        deformable=offset is not None,
        modulated=mask is not None,
    )
    shift_cells(op, plan, offset, mask)
    return plan


@checks.remembered("input", "rows", "offset", "mask", "grad_output")
def _ps_plan(
    op: str,
    input: Any,
    rows: Any,
    offset: Any,
    output_size: Any,
    spatial_scale: Any,
    output_dim: Any,
    group_size: Any,
    part_size: Any,
    sample_per_part: Any,
    trans_std: Any,
    mask: Any,
    grad_output: Any = None,
) -> RoiPlan:
    checks.rank(op, "input", input, "(N, C, H, W)")
    output_dim = checks.integer(op, "output_dim", output_dim, 1)
    groups = checks.pair(op, "group_size", group_size, 1)
    if input.shape[1] != output_dim * groups[0] * groups[1]:
        checks.fail(
            op,
            "input",
            f"with {output_dim} * {groups[0]} * {groups[1]} = output_dim * group_size^2 channels",
            input.shape[1],
        )
    plan = pool_plan(
        op,
        input,
        rows,
        output_size,
        spatial_scale,
        grad_output,
        region="msra_center",
        reads="corners",
        samples=sampling(op, sample_per_part, "sample_per_part", 1),
        groups=groups,
        classes=_classes(op, offset, mask, output_dim),
        part=checks.pair(op, "part_size", output_size if part_size is None else part_size, 1),
        offset_scale=checks.number(op, "trans_std", trans_std),
        deformable=offset is not None,
        modulated=mask is not None,
    )
    shift_cells(op, plan, offset, mask)
    return plan


def _classes(op: str, offset: Any, mask: Any, output_dim: int) -> int:
    """How many classes move on their own."""
    for name, array, parts in (("offset", offset, 2), ("mask", mask, 1)):
        if array is None:
            continue
        axes = f"(R, {'2*' if parts == 2 else ''}classes, part_h, part_w)"
        checks.rank(op, name, array, axes)
        classes = array.shape[1] // parts
        if classes < 1 or classes * parts != array.shape[1] or output_dim % classes:
            checks.fail(
                op,
                name,
                f"of shape {axes} with classes that divide output_dim = {output_dim}",
                tuple(array.shape),
            )
        return classes
    return 1


@operator
def deform_roi_pool(
    input: Any,
    boxes: Any,
    offset: Any,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
    mask: Any = None,
) -> Any:
    """Deformable RoI pooling ([1]_, equation 6), modulated with a `mask` [2]_.

    Parameters
    ----------
    input : array of shape (N, C, H, W)
        Feature maps, of dtype float16, bfloat16, float32 or float64.
    boxes : array of shape (R, 5), or list of N arrays of shape (L, 4)
        Rows (image, x1, y1, x2, y2), or for each image rows (x1, y1, x2, y2), in the coordinates
        of the image; of the dtype of `input`, or of float32 where that has 16 bits.
    offset : array of shape (R, 2, ph, pw) or None
        How far each bin moves, x before y, in units of `gamma` times the size of the region; of
        the dtype of `input`, or of float32 where that has 16 bits.
    output_size : int or (int, int)
        Bins (ph, pw) along y and x.
    spatial_scale : float
        Pixels of `input` per unit of `boxes`.
    sampling_ratio : int
        Samples of a bin along each axis, at most 32768; 0 or -1: as many as the bin has pixels,
        rounded up.
    gamma : float
        Scale of the offsets.
    mask : array of shape (R, 1, ph, pw), optional
        Multiplies the bins, as it is: the sigmoid is the caller's.

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
    deform_roi_pool_backward : the gradients.
    roi_align : without offset and mask this is ``roi_align(..., aligned=True)``.

    References
    ----------
    .. [1] Dai, J. et al., "Deformable Convolutional Networks", ICCV 2017, arXiv:1703.06211.
    .. [2] Zhu, X. et al., "Deformable ConvNets v2: More Deformable, Better Results", CVPR 2019,
       arXiv:1811.11168.

    Examples
    --------
    Moving both columns of bins to the right by a quarter of the region, one pixel:

    >>> import numpy as np
    >>> import cudeform
    >>> image = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> boxes = np.array([[0.0, 0.0, 0.0, 4.0, 4.0]])
    >>> offset = np.zeros((1, 2, 2, 2))
    >>> offset[:, 0] = 2.5
    >>> cudeform.deform_roi_pool(image, boxes, offset, 2)[0, 0]
    array([[ 3.5,  5. ],
           [11.5, 13. ]])
    """
    op = "deform_roi_pool"
    kind = _kind(op, dict(input=input, offset=offset, mask=mask))
    rows = box_rows(op, boxes, input, kind)
    plan = _plan(op, input, rows, offset, output_size, spatial_scale, sampling_ratio, gamma, mask)
    return pool(op, plan, kind, input, rows, offset, mask)[0]


@operator
def deform_roi_pool_backward(
    grad_output: Any,
    input: Any,
    boxes: Any,
    offset: Any,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
    mask: Any = None,
    *,
    needs: Iterable[str] | None = None,
) -> DeformRoiPoolGradients:
    """Gradients of `deform_roi_pool`.

    Parameters
    ----------
    grad_output : array of shape (R, C, ph, pw)
        The gradient of a scalar with respect to the result of the forward.
    input, boxes, offset, output_size, spatial_scale, sampling_ratio, gamma, mask
        As they were given to `deform_roi_pool`.
    needs : iterable of str, optional
        Names of the gradients to compute, by default all; the work for the others is not done.

    Returns
    -------
    DeformRoiPoolGradients
        A named tuple with the fields input, offset and mask; None where not needed or not given.

    Raises
    ------
    TypeError, ValueError
        As `deform_roi_pool`, and for `needs` with an unknown name or one that was not given.

    Notes
    -----
    The gradient of `offset` is the true derivative also where samples are clamped at the border of
    the image: it is 0 along that axis.
    """
    op = "deform_roi_pool_backward"
    given = dict(grad_output=grad_output, input=input, offset=offset, mask=mask)
    kind = _kind(op, given)
    given = {"offset": offset, "mask": mask}
    needed = checks.needs(op, needs, given, DeformRoiPoolGradients._fields)
    rows = box_rows(op, boxes, input, kind)
    plan = _plan(
        op,
        input,
        rows,
        offset,
        output_size,
        spatial_scale,
        sampling_ratio,
        gamma,
        mask,
        grad_output,
    )
    gradients = pool_gradients(
        op, plan, kind, grad_output, input, rows, needed, offset=offset, mask=mask
    )
    return DeformRoiPoolGradients(**gradients)


@operator
def deform_ps_roi_pool(
    input: Any,
    boxes: Any,
    offset: Any,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    output_dim: int,
    group_size: int | tuple[int, int],
    part_size: int | tuple[int, int] | None = None,
    sample_per_part: int = 4,
    trans_std: float = 0.1,
    mask: Any = None,
) -> Any:
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
    output_size : int or (int, int)
        Bins (ph, pw) along y and x.
    spatial_scale : float
        Pixels of `input` per unit of `boxes`.
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

    Raises
    ------
    TypeError, ValueError
        As `deform_roi_pool`.

    See Also
    --------
    deform_ps_roi_pool_backward : the gradients.
    convert_roi_offset : offsets between this operator and `deform_roi_pool`.

    Notes
    -----
    Samples more than half a pixel outside the image do not count; a bin is the mean of those that
    do, and 0 if there are none.

    References
    ----------
    .. [1] Dai, J. et al., "Deformable Convolutional Networks", ICCV 2017, arXiv:1703.06211.
    .. [2] Zhu, X. et al., "Deformable ConvNets v2: More Deformable, Better Results", CVPR 2019,
       arXiv:1811.11168.

    Examples
    --------
    >>> import numpy as np
    >>> import cudeform
    >>> maps = np.arange(4.0).reshape(1, 4, 1, 1) * np.ones((4, 4))
    >>> boxes = np.array([[0.0, 0.0, 0.0, 3.0, 3.0]])
    >>> cudeform.deform_ps_roi_pool(maps, boxes, None, 2, 1.0, 1, 2)[0, 0]
    array([[0., 1.],
           [2., 3.]])
    """
    op = "deform_ps_roi_pool"
    kind = _kind(op, dict(input=input, offset=offset, mask=mask))
    rows = box_rows(op, boxes, input, kind)
    plan = _ps_plan(
        op,
        input,
        rows,
        offset,
        output_size,
        spatial_scale,
        output_dim,
        group_size,
        part_size,
        sample_per_part,
        trans_std,
        mask,
    )
    return pool(op, plan, kind, input, rows, offset, mask)[0]


@operator
def deform_ps_roi_pool_backward(
    grad_output: Any,
    input: Any,
    boxes: Any,
    offset: Any,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    output_dim: int,
    group_size: int | tuple[int, int],
    part_size: int | tuple[int, int] | None = None,
    sample_per_part: int = 4,
    trans_std: float = 0.1,
    mask: Any = None,
    *,
    needs: Iterable[str] | None = None,
) -> DeformRoiPoolGradients:
    """Gradients of `deform_ps_roi_pool`.

    Parameters
    ----------
    grad_output : array of shape (R, output_dim, ph, pw)
    input, boxes, offset, output_size, spatial_scale, output_dim, group_size, part_size
        As they were given to `deform_ps_roi_pool`.
    sample_per_part, trans_std, mask
        As they were given to `deform_ps_roi_pool`.
    needs : iterable of str, optional
        As in `deform_roi_pool_backward`.

    Returns
    -------
    DeformRoiPoolGradients
        A named tuple with the fields input, offset and mask; None where not needed or not given.

    Raises
    ------
    TypeError, ValueError
        As `deform_ps_roi_pool`, and for `needs` with an unknown name or one that was not given.
    """
    op = "deform_ps_roi_pool_backward"
    given = dict(grad_output=grad_output, input=input, offset=offset, mask=mask)
    kind = _kind(op, given)
    given = {"offset": offset, "mask": mask}
    needed = checks.needs(op, needs, given, DeformRoiPoolGradients._fields)
    rows = box_rows(op, boxes, input, kind)
    plan = _ps_plan(
        op,
        input,
        rows,
        offset,
        output_size,
        spatial_scale,
        output_dim,
        group_size,
        part_size,
        sample_per_part,
        trans_std,
        mask,
        grad_output,
    )
    gradients = pool_gradients(
        op, plan, kind, grad_output, input, rows, needed, offset=offset, mask=mask
    )
    return DeformRoiPoolGradients(**gradients)
