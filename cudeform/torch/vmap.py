"""torch.vmap: an axis more, folded into the batch where all that has it has a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


def mapped(
    apply: Callable[..., Any],
    size: int,
    in_dims: Sequence[int | None],
    tensors: Sequence[Any],
    batched: Sequence[bool],
) -> tuple[Any, Any]:
    """A function of tensors over the axes `in_dims` of them, of length `size`.

    `batched` says which tensors have a batch along their first axis, like all results. If a
    mapped tensor has none, the function is called for one index of the axis after the other.
    Returns what a rule for torch.vmap has to: results, and where the axis is in them.
    """
    if size == 0:  # the results of zeros have the shapes of those that there are none of
        results = apply(*(_zeros(t, d) for t, d in zip(tensors, in_dims, strict=True)))
        return _each(results, lambda r: r[None][:0])
    foldable = any(batched) and all(
        b for b, d in zip(batched, in_dims, strict=True) if d is not None
    )
    if foldable:
        results = apply(
            *(
                _folded(t, d, size) if b else t
                for t, d, b in zip(tensors, in_dims, batched, strict=True)
            )
        )
        return _each(results, lambda r: _unfolded(r, size))
    parts = [
        apply(*(t if d is None else t.select(d, i) for t, d in zip(tensors, in_dims, strict=True)))
        for i in range(size)
    ]
    if isinstance(parts[0], tuple):
        return tuple(torch.stack(part) for part in zip(*parts, strict=True)), (0,) * len(parts[0])
    return torch.stack(parts), 0


def _folded(tensor: Any, dim: int | None, size: int) -> Any:
    if tensor is None:
        return None
    whole = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return whole.flatten(0, 1)


def _zeros(tensor: Any, dim: int | None) -> Any:
    """A tensor without its mapped axis, which is empty."""
    return tensor if dim is None else torch.zeros_like(tensor.sum(dim))


def _unfolded(tensor: Any, size: int) -> Any:
    if tensor.ndim < 2:
        return tensor
    return tensor.reshape(size, tensor.shape[0] // size, *tensor.shape[1:])


def _each(results: Any, unfold: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Results that are empty for not being needed have no axis to unfold."""
    if not isinstance(results, tuple):
        return unfold(results), 0
    return tuple(map(unfold, results)), tuple(0 if r.ndim > 1 else None for r in results)
