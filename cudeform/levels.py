"""Sizes of levels: pairs (H, W) on the host, or an integer array of them."""

from __future__ import annotations

from typing import Any

from cudeform import arrays, checks

_DTYPES = ("int32", "int64")


def check_sizes(op: str, sizes: Any, name: str, first: Any) -> None:
    """Check an array of sizes but for what is in it: integers, where the array `first` is.

    Beside arrays on a GPU it may also be on the host.
    """
    argument = "spatial_shapes"
    if not hasattr(sizes, "shape") or not hasattr(sizes, "dtype"):
        expected = "to be pairs or an integer array (L, (H, W))"
        checks.fail(op, argument, expected, checks.shown(sizes), error=TypeError)
    kind = arrays.known(op, argument, sizes)
    if kind.dtype_name(sizes.dtype) not in _DTYPES:
        expected = "of dtype " + ", ".join(_DTYPES)
        checks.fail(op, argument, expected, repr(sizes.dtype), error=TypeError)
    first_kind = arrays.known(op, name, first)
    elsewhere = kind is not first_kind or kind.device(sizes) != first_kind.device(first)
    if elsewhere and str(kind.device(sizes)) != "cpu":
        arrays.same_place(op, argument, sizes, name, first)


def sizes_on_host(op: str, sizes: Any) -> tuple[tuple[int, ...], ...] | None:
    """The sizes of an array as pairs, if it is on the host and can be looked into."""
    kind = arrays.known(op, "spatial_shapes", sizes)
    if kind.backend != "cpu" or sizes.ndim != 2 or sizes.shape[1] != 2:
        return None
    return tuple(map(tuple, sizes.tolist()))
