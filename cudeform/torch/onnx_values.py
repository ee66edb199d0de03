"""What the translations to ONNX say of shapes and dtypes, in the standard's operators."""

from __future__ import annotations

from typing import Any, NamedTuple

_FLOAT = 1  # of onnx.TensorProto


class Target(NamedTuple):
    """What an export goes to."""

    standard: Any  # onnxscript's operators of an opset
    linear: str  # GridSample's mode
    plugin: Any  # TensorRT's operator of attention, or None for the standard's
    decompose: bool  # there is no DeformConv


def widened(standard: Any, coordinates: Any) -> Any:
    """Coordinates in float32 at least: 16 bits are too few for pixels of a whole image."""
    if coordinates.dtype.itemsize >= 4:
        return coordinates
    return standard.Cast(coordinates, to=_FLOAT)


def beside(standard: Any, coordinates: Any, *arrays: Any) -> list[Any]:
    """Arrays of one dtype with their coordinates, as the standard wants them: that in which all is
    computed here too, where the coordinates are finer.
    """
    if coordinates.dtype == arrays[0].dtype:
        return list(arrays)
    return [a if a is None else standard.CastLike(a, coordinates) for a in arrays]


def numbers(standard: Any, coordinates: Any, values: Any) -> Any:
    """A number or a list of them, of the dtype that `widened` gives to coordinates."""
    from onnxscript import ir

    dtype = coordinates.dtype if coordinates.dtype.itemsize >= 4 else ir.DataType.FLOAT
    return standard.Constant(value=ir.tensor(values, dtype=dtype))


def indices(standard: Any, *values: int) -> Any:
    return standard.Constant(value_ints=values)


def sizes(standard: Any, array: Any, begin: int, end: int) -> Any:
    return standard.Shape(array, start=begin, end=end)


def shaped(standard: Any, array: Any, *shape: Any) -> Any:
    """`array` in a shape of integers and of what `sizes` gives."""
    parts = [indices(standard, s) if isinstance(s, int) else s for s in shape]
    return standard.Reshape(array, standard.Concat(*parts, axis=0))


def starts(standard: Any, array: Any, axis: int, stride: int, behind: int) -> Any:
    """Where a kernel begins for each entry of an axis, in pixels, with `behind` axes after it."""
    count = standard.Squeeze(sizes(standard, array, axis, axis + 1))
    zero, one, stride = (standard.Constant(value_int=i) for i in (0, 1, stride))
    pixels = standard.Mul(standard.Range(zero, count, one), stride)
    return shaped(standard, pixels, -1, *[1] * behind)


def twice(values: Any) -> tuple[int, int]:
    """What an option says along y and x."""
    values = tuple(values)
    return (values[0], values[-1]) if values else (0, 0)


def concrete(standard: Any, integers: Any) -> Any:
    """An array of integers, of which some are values that come with the call."""
    one = indices(standard, 1)
    parts = [
        indices(standard, i) if isinstance(i, int) else standard.Reshape(i, one) for i in integers
    ]
    return standard.Concat(*parts, axis=0)
