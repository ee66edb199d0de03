"""Deformable convolution of images larger than memory, in blocks of dask arrays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dask
import dask.array as da
import numpy as np

import cudeform
from cudeform import arrays, checks
from cudeform.geometry import ConvPlan
from cudeform.ops import implementation
from cudeform.shapes import Shape

__all__ = ["deform_conv2d", "halo"]


def halo(
    offset: Any, kernel_size: int | tuple[int, int], dilation: int | tuple[int, int] = 1
) -> tuple[int, int]:
    """How far beyond its own pixels a block of a deformable convolution reads.

    Parameters
    ----------
    offset : array of shape (N, 2*offset_groups*kh*kw, Ho, Wo)
        As for `cudeform.deform_conv2d`. A dask array is computed, block by block.
    kernel_size, dilation : int or (int, int)
        One integer for both axes or (y, x).

    Returns
    -------
    (int, int)
        Pixels along y and x: half of the kernel's extent, and the largest offset rounded up.
        Offsets that are NaN or infinite read nothing.

    Examples
    --------
    >>> import numpy as np
    >>> from cudeform.dask import halo
    >>> offset = np.zeros((1, 18, 8, 8))
    >>> offset[0, 0, 3, 3] = -2.5  # y of one tap at one pixel
    >>> halo(offset, 3)
    (4, 1)
    """
    kernel = checks.pair("halo", "kernel_size", kernel_size, 1)
    dilation = checks.pair("halo", "dilation", dilation, 1)
    offset = _dask_array("halo", "offset", offset)
    checks.rank("halo", "offset", offset, "(N, 2*offset_groups*kh*kw, Ho, Wo)")
    y, x = _half(kernel, dilation)
    reach_y, reach_x = _reach(offset)
    return y + reach_y, x + reach_x


def _dask_array(op: str, name: str, array: Any) -> da.Array:
    """An array or a dask array of such as a dask array."""
    blocks = array._meta if isinstance(array, da.Array) else array
    arrays.kind_of(op, {name: blocks})
    return da.asarray(array)


def _half(kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    """Half of a kernel's extent, rounded up."""
    y, x = ((dilation[axis] * (kernel[axis] - 1) + 1) // 2 for axis in (0, 1))
    return y, x


def _reach(offset: da.Array) -> tuple[int, int]:
    """The largest offsets along y and x, rounded up."""
    if 0 in offset.shape:
        return 0, 0
    y, x = dask.compute(*(offset[:, axis::2].map_blocks(_finite).max() for axis in (0, 1)))
    return int(np.ceil(y)), int(np.ceil(x))


def _finite(offset: Any) -> Any:
    """Magnitudes, 0 for those that are NaN or infinite."""
    magnitude = abs(offset.astype(np.float64))
    magnitude[~(magnitude < np.inf)] = 0
    return magnitude


def deform_conv2d(
    input: Any,
    offset: Any,
    weight: Any,
    bias: Any = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] = 0,
    dilation: int | tuple[int, int] = 1,
    mask: Any = None,
    *,
    halo: tuple[int, int] | None = None,
    border: str = "zeros",
    precision: str = "ieee",
) -> da.Array:
    """Deformable convolution of dask arrays, a block of the output at a time.

    Parameters
    ----------
    input, offset, mask : dask arrays
        As for `cudeform.deform_conv2d`, with blocks of NumPy or CuPy arrays. The blocks of the
        result are those of `offset`.
    weight, bias : arrays or dask arrays
    stride, padding, dilation, border, precision
        As for `cudeform.deform_conv2d`.
    halo : (int, int), optional
        What `halo` returns, or a bound that is known to hold. By default it is found from the
        offsets, which are computed once for that alone.

    Returns
    -------
    dask array of shape (N, O, Ho, Wo)

    Raises
    ------
    TypeError, ValueError
        As `cudeform.deform_conv2d`. While it computes, a ValueError where an offset points beyond
        the halo given; what lies there is never taken for zeros.

    See Also
    --------
    halo : how far a block reads.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from cudeform.dask import deform_conv2d
    >>> image = da.ones((1, 3, 64, 64), chunks=(1, 3, 32, 32), dtype=np.float32)
    >>> offset = da.full((1, 18, 64, 64), 0.25, chunks=(1, 18, 16, 64), dtype=np.float32)
    >>> weight = np.ones((4, 3, 3, 3), np.float32)
    >>> output = deform_conv2d(image, offset, weight, padding=1)
    >>> output.numblocks, float(output[0, 0, 30, 30])
    ((1, 1, 4, 1), 27.0)
    """
    given = {"input": input, "offset": offset, "weight": weight, "bias": bias, "mask": mask}
    given = {
        name: _dask_array("deform_conv2d", name, array)
        for name, array in given.items()
        if array is not None or name in ("input", "offset", "weight")
    }
    plan = cudeform.deform_conv2d(
        **{name: Shape(array.shape, array.dtype) for name, array in given.items()},
        stride=stride,
        padding=padding,
        dilation=dilation,
        border=border,
        precision=precision,
    ).plan
    half = _half(plan.points.kernel, plan.points.dilation)
    if halo is None:
        reach = _reach(given["offset"])
    else:
        halo = checks.pair("deform_conv2d", "halo", halo, 0)
        reach = halo[0] - half[0], halo[1] - half[1]
    if min(reach) < 0:
        why = "half of the kernel's extent"
        checks.fail("deform_conv2d", "halo", f"to be at least {half}", halo, why)
    return _tiled(plan, reach, given)


def _tiled(plan: ConvPlan, reach: tuple[int, int], given: dict[str, da.Array]) -> da.Array:
    """The result in the blocks of the offset, each from the part of the input that it reads."""
    given["offset"] = given["offset"].rechunk({1: -1})
    images, _, rows, columns = given["offset"].chunks
    compute = dask.delayed(_compute)
    blocks = []
    for n in _slices(images):
        blocks.append([])
        for i in _slices(rows):
            blocks[-1].append([])
            for j in _slices(columns):
                y, origin_y = _read(plan, reach, 0, i)
                x, origin_x = _read(plan, reach, 1, j)
                part = {
                    "input": given["input"][n, :, y, x],
                    **{k: given[k][n, :, i, j] for k in ("offset", "mask") if k in given},
                    **{k: given[k] for k in ("weight", "bias") if k in given},
                }
                shape = (n.stop - n.start, plan.out_channels, i.stop - i.start, j.stop - j.start)
                block = compute(plan, reach, (origin_y, origin_x), part)
                blocks[-1][-1].append(da.from_delayed(block, shape, meta=given["offset"]._meta))
    return da.concatenate(
        [da.concatenate([da.concatenate(row, 3) for row in image], 2) for image in blocks], 0
    )


def _slices(chunks: tuple[int, ...]) -> list[slice]:
    ends = np.cumsum(chunks).tolist()
    return [slice(end - size, end) for size, end in zip(chunks, ends, strict=True)]


def _read(plan: ConvPlan, reach: tuple[int, int], axis: int, block: slice) -> tuple[slice, int]:
    """What outputs of a block read of an axis, and where their first tap is without offset."""
    points = plan.points
    size = (points.height, points.width)[axis]
    first = block.start * points.stride[axis] + points.origin[axis]
    last = (block.stop - 1) * points.stride[axis] + points.origin[axis]
    last += points.dilation[axis] * (points.kernel[axis] - 1)
    start = min(max(first - reach[axis], 0), size - 1)
    stop = max(min(last + reach[axis], size - 1), start) + 1
    return slice(start, stop), first - start


def _compute(
    plan: ConvPlan, reach: tuple[int, int], origin: tuple[int, int], part: dict[str, Any]
) -> Any:
    """One block of the output."""
    input, offset = part["input"], part["offset"]
    for axis, name in enumerate("yx"):
        magnitude = _finite(offset[:, axis::2])
        largest = float(magnitude.max()) if magnitude.size else 0.0
        if largest > reach[axis]:
            half = _half(plan.points.kernel, plan.points.dilation)[axis]
            got, why = half + reach[axis], f"an offset along {name} of {largest:g} pixels"
            wanted = f"to be at least {half + int(np.ceil(largest))} along {name}"
            checks.fail("deform_conv2d", "halo", wanted, got, why)
    points = replace(
        plan.points,
        batch=input.shape[0],
        height=input.shape[2],
        width=input.shape[3],
        out_height=offset.shape[2],
        out_width=offset.shape[3],
        origin=origin,
    )
    kind = arrays.kind_of("deform_conv2d", part)
    names = ("input", "offset", "weight", "bias", "mask")
    given = [arrays.contiguous(part.get(name)) for name in names]
    return implementation(kind, "deform_conv").forward(replace(plan, points=points), *given)
