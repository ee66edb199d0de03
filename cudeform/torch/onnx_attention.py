"""Multi-scale deformable attention in ONNX: standard operators, or TensorRT's plugin."""

from __future__ import annotations

from typing import Any, NamedTuple

from cudeform import checks
from cudeform.plans.arguments import Options
from cudeform.torch.onnx_values import Target, beside, concrete, indices, shaped, sizes, widened

_INT32, _INT64 = 6, 7  # of onnx.TensorProto


class Call(NamedTuple):
    """Arrays of one dtype with one axis for the points of all levels, and what is known of them."""

    value: Any  # (N, S, M, D)
    locations: Any  # (N, Lq, M, K, 2), in float32 at least
    weights: Any  # (N, Lq, M, K)
    shapes: Any  # (L, 2) of integers of 64 bits
    points: tuple[int, ...]  # of each level


def ms_deform_attn(
    target: Target,
    options: Options,
    value: Any,
    spatial_shapes: Any,
    sampling_locations: Any,
    attention_weights: Any,
) -> Any:
    """What `attended` makes of points in an array for each level, or in one for all."""
    standard, counts = target.standard, options["points_per_level"]
    shapes = _shapes(standard, spatial_shapes, options["spatial_shapes_pairs"])
    points = _points(sampling_locations, counts)
    locations = widened(standard, sampling_locations)
    wide, weights = beside(standard, locations, value, attention_weights)
    if not counts:
        locations = shaped(standard, locations, 0, 0, 0, -1, 2)
        weights = shaped(standard, weights, 0, 0, 0, -1)
    call = Call(wide, locations, weights, shapes, points)
    output = attended(target, call, options["softmax"], options["method"])
    return output if wide is value else standard.CastLike(output, value)


def attended(target: Target, call: Call, softmax: bool, method: str = "bilinear") -> Any:
    """(N, Lq, M*D)"""
    standard = target.standard
    if softmax:
        call = call._replace(weights=standard.Softmax(call.weights, axis=-1))
    if target.plugin is not None:
        return _by_plugin(standard, target.plugin, call, method)
    if method == "nearest":
        return _nearest(standard, call)
    return _bilinear(standard, call, target.linear)


def _shapes(standard: Any, array: Any, pairs: Any) -> Any:
    """Sizes of the levels, from an array or from integers, of which some may not be known yet."""
    if array is not None:
        return standard.Cast(array, to=_INT64)
    return shaped(standard, concrete(standard, pairs), -1, 2)


def _points(locations: Any, points_per_level: Any) -> tuple[int, ...]:
    if points_per_level:
        return tuple(points_per_level)
    levels, points = locations.shape[3:5]
    return (points,) * levels


def _level(standard: Any, shapes: Any, level: int) -> tuple[Any, Any]:
    """(H, W), each an array of one element."""
    row = standard.Gather(shapes, indices(standard, level), axis=0)
    return tuple(standard.Squeeze(half, indices(standard, 0)) for half in _halves(standard, row))


def _halves(standard: Any, pairs: Any) -> Any:
    return standard.Split(pairs, axis=-1, num_outputs=2)


def _part(standard: Any, array: Any, first: Any, end: Any, axis: int) -> Any:
    first, end = (indices(standard, i) if isinstance(i, int) else i for i in (first, end))
    return standard.Slice(array, first, end, indices(standard, axis))


def _bilinear(standard: Any, call: Call, mode: str) -> Any:
    """A GridSample for each level, and the sum of all samples times their weights."""
    one, two = (
        standard.CastLike(standard.Constant(value_float=number), call.locations)
        for number in (1.0, 2.0)
    )
    grids = standard.Sub(standard.Mul(call.locations, two), one)
    total, pixel, point = None, indices(standard, 0), 0
    for level, count in enumerate(call.points):
        height, width = _level(standard, call.shapes, level)
        end = standard.Add(pixel, standard.Mul(height, width))
        images = standard.Transpose(
            _part(standard, call.value, pixel, end, 1), perm=[0, 2, 3, 1]
        )  # (N, M, D, H*W)
        channels = sizes(standard, images, 2, 3)
        images = shaped(standard, images, -1, channels, height, width)
        grid = standard.Transpose(
            _part(standard, grids, point, point + count, 3), perm=[0, 2, 1, 3, 4]
        )  # (N, M, Lq, P, 2)
        queries = sizes(standard, grid, 2, 3)
        grid = shaped(standard, grid, -1, queries, count, 2)
        samples = standard.GridSample(images, grid, mode=mode, align_corners=0)
        weights = standard.Transpose(
            _part(standard, call.weights, point, point + count, 3), perm=[0, 2, 1, 3]
        )
        weights = shaped(standard, weights, -1, 1, queries, count)
        part = standard.ReduceSum(
            standard.Mul(samples, weights), indices(standard, -1), keepdims=0
        )  # (N*M, D, Lq)
        total = part if total is None else standard.Add(total, part)
        pixel, point = end, point + count
    batch, heads = sizes(standard, call.value, 0, 1), sizes(standard, call.value, 2, 3)
    total = shaped(standard, total, batch, heads, -1, sizes(standard, call.locations, 1, 2))
    total = standard.Transpose(total, perm=[0, 3, 1, 2])
    return shaped(standard, total, 0, 0, -1)


def _nearest(standard: Any, call: Call) -> Any:
    """A gather from the pixels of all levels."""
    zero, half = (
        standard.CastLike(standard.Constant(value_float=number), call.locations)
        for number in (0.0, 0.5)
    )
    found, pixel, point = [], indices(standard, 0), 0
    for level, count in enumerate(call.points):
        size = _level(standard, call.shapes, level)
        places = _halves(standard, _part(standard, call.locations, point, point + count, 3))
        x, y = (  # (N, Lq, M, P, 1)
            standard.Cast(
                standard.Max(
                    standard.Min(
                        standard.Floor(standard.Add(standard.Mul(place, length), half)),
                        standard.Sub(length, standard.Add(half, half)),
                    ),
                    zero,
                ),
                to=_INT64,
            )
            for place, length in (
                (place, standard.CastLike(length, place))
                for place, length in zip(places, reversed(size), strict=True)
            )
        )
        found.append(standard.Add(standard.Add(standard.Mul(y, size[1]), x), pixel))
        pixel = standard.Add(pixel, standard.Mul(*size))
        point += count
    at = standard.Transpose(standard.Concat(*found, axis=3), perm=[0, 2, 1, 3, 4])
    values = standard.Transpose(call.value, perm=[0, 2, 1, 3])  # (N, M, S, D)
    samples = standard.GatherND(values, at, batch_dims=2)  # (N, M, Lq, K, D)
    weights = standard.Unsqueeze(
        standard.Transpose(call.weights, perm=[0, 2, 1, 3]), indices(standard, -1)
    )
    total = standard.ReduceSum(standard.Mul(samples, weights), indices(standard, 3), keepdims=0)
    return shaped(standard, standard.Transpose(total, perm=[0, 2, 1, 3]), 0, 0, -1)


def _by_plugin(standard: Any, plugin: Any, call: Call, method: str) -> Any:
    op = "ms_deform_attn"
    if method != "bilinear":
        checks.fail(op, "method", "to be 'bilinear' for TensorRT's plugin", repr(method))
    if len(set(call.points)) > 1:
        expected = "to be equal on all levels for TensorRT's plugin"
        checks.fail(op, "points_per_level", expected, call.points)
    levels, points = len(call.points), call.points[0]
    areas = standard.Mul(*_halves(standard, call.shapes))
    areas = standard.Squeeze(areas, indices(standard, 1))
    starts = standard.CumSum(areas, standard.Constant(value_int=0), exclusive=1)
    shapes, starts = (standard.Cast(array, to=_INT32) for array in (call.shapes, starts))
    locations = shaped(standard, call.locations, 0, 0, 0, levels, points, 2)
    weights = shaped(standard, call.weights, 0, 0, 0, levels, points)
    output = plugin(call.value, shapes, starts, locations, weights)  # (N, Lq, M, D)
    return shaped(standard, output, 0, 0, -1)
