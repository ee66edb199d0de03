"""Deformable convolution of images larger than memory, in blocks of dask arrays."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from itertools import product
from operator import getitem
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from cudeform import arrays, checks
from cudeform.ops.call import Call
from cudeform.plans import plan
from cudeform.plans.convolution import ConvPlan

__all__ = ["deform_conv2d", "halo"]

_IMAGES = ("input", "offset", "mask")  # have a batch and channels
_ALL = slice(None)


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
    """An array or a dask array of such as a dask array, whose shape is known."""
    blocks = array._meta if isinstance(array, da.Array) else array
    arrays.kind_of(op, {name: blocks})
    array = da.asarray(array)
    if np.isnan(array.shape).any():
        why = "dask does not know the sizes of its blocks: call compute_chunk_sizes() on it first"
        checks.fail(op, name, "to be of a known shape", array.shape, why)
    return array


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
    names = tuple(given)
    given = {
        name: _dask_array("deform_conv2d", name, array)
        for name, array in given.items()
        if array is not None or name in ("input", "offset", "weight")
    }
    options = dict(
        stride=stride, padding=padding, dilation=dilation, border=border, precision=precision
    )
    metas = {name: given[name]._meta if name in given else None for name in names}
    arrays.kind_of("deform_conv2d", metas, ("bias", "mask"), ("offset",))
    planned = plan("deform_conv2d", given, options)
    half = _half(planned.points.kernel, planned.points.dilation)
    if halo is None:
        reach = _reach(given["offset"])
    else:
        halo = checks.pair("deform_conv2d", "halo", halo, 0)
        reach = halo[0] - half[0], halo[1] - half[1]
    if min(reach) < 0:
        why = "half of the kernel's extent"
        checks.fail("deform_conv2d", "halo", f"to be at least {half}", halo, why)
    return _tiled(planned, reach, given)


def _tiled(plan: ConvPlan, reach: tuple[int, int], given: dict[str, da.Array]) -> da.Array:
    """The result in the blocks of the offset, each from the part of the input that it reads."""
    given = {k: array.rechunk({1: -1} if k in _IMAGES else -1) for k, array in given.items()}
    images, _, rows, columns = given["offset"].chunks
    if "mask" in given:
        given["mask"] = given["mask"].rechunk({0: images, 2: rows, 3: columns})
    token = tokenize(repr(plan), reach, *(array.name for array in given.values()))
    name = f"deform_conv2d-{token}"
    layer = _Layer(name, plan, reach, given)
    graph = HighLevelGraph.from_collections(name, layer, dependencies=list(given.values()))
    chunks = (images, (plan.out_channels,), rows, columns)
    return da.Array(graph, name, chunks, meta=given["offset"]._meta)


class _Layer(Mapping):
    """The layer of a graph that computes every block, written out when it is first looked into.

    dask's own slicing would take a millisecond for each block.
    """

    def __init__(
        self, name: str, plan: ConvPlan, reach: tuple[int, int], given: dict[str, da.Array]
    ) -> None:
        self._name, self._plan, self._reach = name, plan, reach
        self._keys = {k: (array.name, *[0] * array.ndim) for k, array in given.items()}
        self._chunks = {k: given[k].chunks for k in ("input", "offset")}

    def __getitem__(self, key: Any) -> Any:
        return self._tasks[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    @cached_property
    def _tasks(self) -> dict[Any, Any]:
        images, _, rows, columns = map(_slices, self._chunks["offset"])
        reads_y = [_read(self._plan, self._reach, 0, block) for block in rows]
        reads_x = [_read(self._plan, self._reach, 1, block) for block in columns]
        pieces_n = [self._pieces(0, block) for block in images]
        pieces_y = [self._pieces(2, read) for read, _ in reads_y]
        pieces_x = [self._pieces(3, read) for read, _ in reads_x]
        compute = partial(_compute, self._plan, self._reach, tuple(self._keys))
        tasks: dict[Any, Any] = {}
        for n, i, j in product(range(len(images)), range(len(rows)), range(len(columns))):
            origin = reads_y[i][1], reads_x[j][1]
            part = [
                [[self._piece(tasks, a, y, x) for x in pieces_x[j]] for y in pieces_y[i]]
                for a in pieces_n[n]
            ]
            others = [
                (key[0], n, 0, i, j) if k in _IMAGES else key
                for k, key in self._keys.items()
                if k != "input"
            ]
            tasks[self._name, n, 0, i, j] = (compute, *origin, part, *others)
        return tasks

    def _pieces(self, axis: int, wanted: slice) -> list[tuple[int, slice]]:
        """Which blocks of the input have a part of an axis, and what of each."""
        chunks = self._chunks["input"][axis]
        ends = np.cumsum(chunks).tolist()
        found = []
        for block in range(bisect_right(ends, wanted.start), len(chunks)):
            begin = ends[block] - chunks[block]
            if begin >= wanted.stop:
                break
            cut = slice(max(wanted.start - begin, 0), min(wanted.stop - begin, chunks[block]))
            found.append((block, _ALL if cut == slice(0, chunks[block]) else cut))
        return found or [(0, slice(0, 0))]  # of nothing, nothing of one

    def _piece(self, tasks: dict[Any, Any], *cuts: tuple[int, slice]) -> tuple[Any, ...]:
        """The key of a piece of a block of the input, after a task that cuts it out."""
        (n, of_n), (y, of_y), (x, of_x) = cuts
        block = (self._keys["input"][0], n, 0, y, x)
        if of_n is _ALL and of_y is _ALL and of_x is _ALL:
            return block
        key = (f"input-{self._name}", len(tasks))
        tasks[key] = (getitem, block, (of_n, _ALL, of_y, of_x))
        return key


def _joined(pieces: Any, axes: tuple[int, ...] = (0, 2, 3)) -> Any:
    """Nested lists of arrays as one array."""
    if not axes:
        return pieces
    arrays = [_joined(piece, axes[1:]) for piece in pieces]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axes[0])


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
    plan: ConvPlan,
    reach: tuple[int, int],
    names: tuple[str, ...],
    origin_y: int,
    origin_x: int,
    pieces: Any,
    *others: Any,
) -> Any:
    """One block of the output."""
    part = dict(zip(names, (_joined(pieces), *others), strict=True))
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
        origin=(origin_y, origin_x),
    )
    kind = arrays.kind_of("deform_conv2d", part, coordinates=("offset",))
    given = {name: arrays.contiguous(array) for name, array in part.items()}
    return Call(kind, replace(plan, points=points)).forward(given)[0]
