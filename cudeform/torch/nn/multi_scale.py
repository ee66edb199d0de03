"""What the modules of multi-scale deformable attention share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import cudeform
from cudeform import checks
from cudeform.directions import first_offsets
from cudeform.torch.nn.module import Module, begin_as_projections, begin_with_zeros


class Attention(Module):
    """What all have: the parameters, where a query reads, and the call of the operator."""

    def __init__(
        self, sizes: dict[str, Any], method: str = "bilinear", offset_scale: float = 0.5,
        projected: bool = True, **factory: Any,
    ) -> None:  # fmt: skip
        """`sizes` by the names that users know, see `_checked`, are attributes as well."""
        super().__init__()
        op = type(self).__name__
        width, heads, points, inner = _checked(op, sizes)
        vars(self).update(sizes | dict(zip(sizes, (width, heads, len(points)), strict=False)))
        self._heads, self._points, self._method = heads, points, method
        self.offset_scale = checks.number(op, "offset_scale", offset_scale)
        self.sampling_offsets = nn.Linear(width, 2 * heads * sum(points), **factory)
        self.attention_weights = nn.Linear(width, heads * sum(points), **factory)
        self.value_proj = nn.Linear(width, inner, **factory) if projected else None
        self.output_proj = nn.Linear(inner, width, **factory) if projected else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the paper begins: each head in a direction of its own, all points with one weight."""
        offsets = torch.from_numpy(first_offsets(self._heads, self._points))
        begin_with_zeros(self.sampling_offsets, self.attention_weights)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        begin_as_projections(self.value_proj, self.output_proj)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *others: Any, **more: Any
    ) -> None:
        """RT-DETRv2 and D-FINE save with the parameters what follows from the numbers of points."""
        for name in ("num_points_scale", "n_points_scale"):
            scale = state_dict.pop(prefix + name, None)
            expected = torch.tensor([1 / count for count in self._points for _ in range(count)])
            if scale is not None and (
                scale.shape != expected.shape
                or not torch.allclose(scale.float().cpu(), expected, rtol=1e-2)
            ):
                raise ValueError(
                    f"{type(self).__name__}: expected a checkpoint for {self._points} points per "
                    f"level, got `{prefix + name}` = {scale.tolist()}"
                )
        super()._load_from_state_dict(state_dict, prefix, *others, **more)

    def _attend(
        self, query: Tensor, reference: Tensor, value: Tensor, shapes: Any, padding: Tensor | None
    ) -> Tensor:
        """(N, Lq, C), (N, Lq, L, 2 or 4), (N, S, C), (L, 2), (N, S) -> (N, Lq, C)"""
        if self.value_proj is not None:
            value = self.value_proj(value)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        output = cudeform.ms_deform_attn(
            value.unflatten(-1, (self._heads, -1)),
            shapes,
            self._locations(query, reference, shapes),
            self.attention_weights(query).unflatten(-1, (self._heads, -1)),
            points_per_level=self._points,
            method=self._method,
            softmax=True,
        )
        return output if self.output_proj is None else self.output_proj(output)

    def _locations(self, query: Tensor, reference: Tensor, shapes: Any) -> Tensor:
        """Where the points are, (N, Lq, M, all points, 2), in float32 at least.

        Offsets are pixels of each level around a point, and around a box parts of its size.
        """
        op, symbols = type(self).__name__, "(N, Lq, levels or 1, 2 or 4)"
        checks.rank(op, "reference_points", reference, symbols)
        levels, numbers = reference.shape[-2:]
        if levels not in (1, len(self._points)) or numbers not in (2, 4):
            expected = f"of shape {symbols} with {len(self._points)} levels"
            checks.fail(op, "reference_points", expected, tuple(reference.shape))
        offsets = self.sampling_offsets(query)
        dtype = torch.promote_types(offsets.dtype, torch.float32)
        offsets = offsets.to(dtype).unflatten(-1, (self._heads, -1, 2))
        reference = reference.to(dtype)
        if numbers == 2:
            offsets = offsets / self._by_point(_widths_and_heights(shapes, offsets))
        else:
            scales = [self.offset_scale / count for count in self._points]
            offsets = offsets * self._by_point(reference[..., 2:], scales)[:, :, None]
        return self._by_point(reference[..., :2])[:, :, None] + offsets

    def _by_point(self, rows: Tensor, factors: Sequence[float] | None = None) -> Tensor:
        """(..., levels or 1, C) -> (..., all points, C): for each point the row of its level."""
        parts = []
        for level, count in enumerate(self._points):
            row = rows if rows.shape[-2] == 1 else rows[..., level : level + 1, :]
            row = row if factors is None else row * factors[level]
            parts.append(row.expand(*row.shape[:-2], count, row.shape[-1]))
        return torch.cat(parts, -2)


def _widths_and_heights(shapes: Any, like: Tensor) -> Tensor:
    """(L, 2), without a copy from the host, which a CUDA graph cannot hold."""
    if isinstance(shapes, Tensor):
        return shapes.to(like).flip(-1)
    sizes = [like.new_full((), size) for height, width in shapes for size in (width, height)]
    return torch.stack(sizes).view(-1, 2)


def _checked(op: str, sizes: dict[str, Any]) -> tuple[int, int, tuple[int, ...], int]:
    """Channels; heads, which divide them; points of a head on each level; channels of the values.

    In the order of `sizes`: channels, heads, levels, points, and what part of all channels values
    have, if that can be told.
    """
    names = list(sizes)
    width, heads, levels = (checks.integer(op, name, sizes[name], 1) for name in names[:3])
    if width % heads:
        checks.fail(op, names[0], f"divisible by `{names[1]}` = {heads}", width)
    points = sizes[names[3]]
    if not isinstance(points, (tuple, list)):
        points = (points,) * levels
    if len(points) != levels:
        checks.fail(op, names[3], f"of {levels} levels", checks.shown(points))
    points = tuple(checks.integer(op, names[3], count, 1) for count in points)
    inner = width
    for name in names[4:]:
        inner = int(width * checks.positive(op, name, sizes[name]))
        if inner < 1 or inner % heads:
            expected = f"to make of {width} channels a multiple of {heads} heads"
            checks.fail(op, name, expected, sizes[name])
    return width, heads, points, inner


def boolean(op: str, name: str, mask: Tensor | None) -> Tensor | None:
    """A mask that is one: numbers would be neither of the two meanings."""
    if mask is not None and mask.dtype != torch.bool:
        checks.fail(op, name, "of dtype torch.bool", mask.dtype, error=TypeError)
    return mask
