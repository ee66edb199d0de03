"""What the translations to ONNX say of shapes and dtypes, in the standard's operators."""

from __future__ import annotations

from typing import Any

__all__ = ["beside", "concrete", "indices", "shaped", "sizes"]


def beside(standard: Any, coordinates: Any, *arrays: Any) -> list[Any]:
    """Arrays of one dtype with their coordinates, as the standard wants them: that in which all is
    computed here too, where the coordinates are finer.
    """
    if coordinates.dtype == arrays[0].dtype:
        return list(arrays)
    return [a if a is None else standard.CastLike(a, coordinates) for a in arrays]


def indices(standard: Any, *values: int) -> Any:
    return standard.Constant(value_ints=values)


def sizes(standard: Any, array: Any, begin: int, end: int) -> Any:
    return standard.Shape(array, start=begin, end=end)


def shaped(standard: Any, array: Any, *shape: Any) -> Any:
    """`array` in a shape of integers and of what `sizes` gives."""
    parts = [indices(standard, s) if isinstance(s, int) else s for s in shape]
    return standard.Reshape(array, standard.Concat(*parts, axis=0))


def concrete(standard: Any, integers: Any) -> Any:
    """An array of integers, of which some are values that come with the call."""
    one = indices(standard, 1)
    parts = [
        indices(standard, i) if isinstance(i, int) else standard.Reshape(i, one) for i in integers
    ]
    return standard.Concat(*parts, axis=0)
