"""DCNv3 and DCNv4 in ONNX: an attention of one level, whose points are around each pixel."""

from __future__ import annotations

from typing import Any

from cudeform.plans.aggregation import PointGrid
from cudeform.plans.arguments import Options
from cudeform.torch.onnx_attention import Call, attended
from cudeform.torch.onnx_values import (
    Target,
    beside,
    indices,
    numbers,
    shaped,
    sizes,
    starts,
    twice,
    widened,
)


def dcnv3(target: Target, options: Options, input: Any, offset: Any, mask: Any) -> Any:
    """An attention with the points of all groups."""
    standard, groups, grid = target.standard, options["groups"], _grid(options)
    moves = widened(standard, offset)
    wide, mask = beside(standard, moves, input, mask)
    moves = shaped(standard, moves, 0, 0, 0, groups, grid.points, 2)
    mask = shaped(standard, mask, 0, 0, 0, groups, grid.points)
    locations = _locations(standard, moves, wide, grid, offset)
    output = _aggregated(target, wide, locations, mask, grid.points, options["softmax"])
    return output if wide is input else standard.CastLike(output, input)


def dcnv4(target: Target, options: Options, input: Any, offset_mask: Any) -> Any:
    """The same, of parts of one array."""
    standard, groups, grid = target.standard, options["groups"], _grid(options)

    def part(array: Any, begin: int, end: int) -> Any:
        return standard.Slice(array, *(indices(standard, i) for i in (begin, end, -1)))

    points = grid.points
    packed = widened(standard, offset_mask)
    (wide,) = beside(standard, packed, input)
    packed = part(packed, 0, 3 * groups * points)  # what comes after is not read
    packed = shaped(standard, packed, 0, 0, 0, groups, 3 * points)
    moves = shaped(standard, part(packed, 0, 2 * points), 0, 0, 0, 0, points, 2)
    mask = part(packed, 2 * points, 3 * points)
    locations = _locations(standard, moves, wide, grid, offset_mask)
    output = _aggregated(target, wide, locations, mask, points, softmax=False)
    return output if wide is input else standard.CastLike(output, input)


def _grid(options: Options) -> PointGrid:
    pairs = (twice(options[n]) for n in ("kernel_size", "stride", "padding", "dilation"))
    scale, remove_center = options["offset_scale"], options["remove_center"]
    return PointGrid(*pairs, scale=scale, remove_center=remove_center)


def _locations(standard: Any, moves: Any, input: Any, grid: PointGrid, given: Any) -> Any:
    """Points in parts of the image, for moves (N, Ho, Wo, G, P, 2) of `given`; x before y."""
    moves = standard.Mul(moves, numbers(standard, given, grid.scale))
    found = []
    for axis, move in zip((1, 0), standard.Split(moves, axis=-1, num_outputs=2), strict=True):
        center = grid.center[axis]
        first = center - grid.padding[axis] + 0.5  # from the outer edge of the image
        taps = [[first + grid.scale * (tap[axis] - center)] for tap in grid.taps]
        begins = starts(standard, move, 1 + axis, grid.stride[axis], 4 - axis)
        plain = standard.Add(standard.CastLike(begins, move), numbers(standard, given, taps))
        length = standard.CastLike(sizes(standard, input, 1 + axis, 2 + axis), move)
        found.append(standard.Div(standard.Add(move, plain), length))
    return standard.Concat(*found, axis=-1)


def _aggregated(
    target: Target, input: Any, locations: Any, mask: Any, points: int, softmax: bool
) -> Any:
    """For locations (N, Ho, Wo, G, P, 2) and mask (N, Ho, Wo, G, P): each pixel is a query."""
    standard = target.standard
    size, groups = sizes(standard, input, 1, 3), sizes(standard, mask, 3, 4)
    value = shaped(standard, input, 0, standard.ReduceProd(size), groups, -1)
    queries = shaped(standard, locations, 0, -1, groups, points, 2)
    weights = shaped(standard, mask, 0, -1, groups, points)
    shapes = standard.Unsqueeze(size, indices(standard, 0))
    output = attended(target, Call(value, queries, weights, shapes, (points,)), softmax)
    return shaped(standard, output, 0, sizes(standard, locations, 1, 3), -1)
