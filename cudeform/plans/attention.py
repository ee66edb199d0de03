"""The plan of attention to points of several levels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from cudeform import checks
from cudeform.plans.arguments import SOFTMAX, Argument, Option, Options, choice
from cudeform.plans.outlines import Outline, Plan, hashed_once, planner

_SHAPES = "(L, (H, W))"
_MOST = 2**31 - 1  # pixels of all levels


@hashed_once
@dataclass(frozen=True)
class AttentionPlan(Plan):
    """Attention that has passed all checks of shapes.

    Where `shapes` is None, an array on a GPU has them, and nobody has looked into it: backends
    that are given it read nothing outside of the values, whatever it says.
    """

    batch: int
    values: int  # pixels of all levels
    heads: int
    channels: int  # of a head
    queries: int
    shapes: tuple[tuple[int, int], ...] | None  # (H, W) of each level
    points: tuple[int, ...]  # of each level, for a head of a query
    method: str
    softmax: bool
    ragged: bool  # locations have one axis for the points of all levels

    family = "attention"

    @property
    def levels(self) -> int:
        return len(self.points)

    @cached_property
    def samples(self) -> int:
        """Points of a head of a query, on all levels."""
        return sum(self.points)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first value of each level, where the shapes are known."""
        found, start = [], 0
        for height, width in self.shapes or ():
            found.append(start)
            start += height * width
        return tuple(found)

    @property
    def shares(self) -> tuple[int, ...]:
        """The axes of the factors, of which the last has the points of a head of a query."""
        return self.batch, self.queries, self.heads, self.samples

    @cached_property
    def steps(self) -> dict[str, int]:
        """Elements from a query or a head to the next, of locations and weights."""
        return {
            "location_query": 2 * self.heads * self.samples,
            "location_head": 2 * self.samples,
            "weight_query": self.heads * self.samples,
            "weight_head": self.samples,
        }

    def counts(self, backward: bool) -> dict[str, int]:
        points = {"Lq*sum P": self.queries * self.samples} if backward else {}
        return {
            "S": self.values,
            "8*M*D": 8 * self.heads * self.channels,  # bytes of a pixel
            "Lq*M": self.queries * self.heads,
            **points,
        }

    @property
    def blended(self) -> int:
        each = 4 if self.method == "bilinear" else 1
        return each * prod(self.shares) * self.channels

    @cached_property
    def results(self) -> tuple[Outline, ...]:
        shape = (self.batch, self.queries, self.heads * self.channels)
        return (Outline(shape, "(N, Lq, M*D)", "value"),)

    @cached_property
    def gradients(self) -> dict[str, Outline]:
        values = (self.batch, self.values, self.heads, self.channels)
        each = (self.samples,) if self.ragged else (self.levels, self.points[0])
        points = (self.batch, self.queries, self.heads, *each)
        axes = "sum P" if self.ragged else "L, P"
        return {
            "value": Outline(values, "(N, S, M, D)", "value"),
            "sampling_locations": Outline(
                (*points, 2), f"(N, Lq, M, {axes}, (x, y))", "sampling_locations"
            ),
            "attention_weights": Outline(points, f"(N, Lq, M, {axes})", "attention_weights"),
        }


def _counts(op: str, name: str, value: Any) -> tuple[int, ...]:
    """Points of each level."""
    expected = "to be a sequence of integers, one for each level"
    if not isinstance(value, (tuple, list)):
        checks.fail(op, name, expected, checks.shown(value), error=TypeError)
    if not value:
        checks.fail(op, name, expected, checks.shown(value))
    return tuple(checks.integer(op, name, count, 1, expected) for count in value)


@planner(
    Argument("value", ("N", "S", "M", "D"), "image"),
    Argument("spatial_shapes", ("L", "2"), "shapes"),
    Argument("sampling_locations", ("N", "Lq", "M", "L", "P", "2"), "coordinates"),
    Argument("attention_weights", ("N", "Lq", "M", "L", "P"), "shares"),
    options=(
        Option("points_per_level", "integers", _counts, None),
        choice("method", "bilinear", "nearest"),
        SOFTMAX,
    ),
)
def ms_deform_attn(
    op: str, options: Options, value: Outline, sampling_locations: Outline,
    attention_weights: Outline, spatial_shapes: Any = None,
) -> AttentionPlan:  # fmt: skip
    """Check the shapes of attention; those of levels are pairs, or the outline of an array."""
    symbols = "(N, S, M, D)"
    checks.rank(op, "value", value, symbols)
    checks.non_empty(op, "value", value, symbols, may_be_empty=1)
    batch, values, heads, channels = value.shape
    if values > _MOST:
        checks.fail(op, "value", f"with S at most {_MOST}", values, "kernels count in 32 bits")
    counts = options["points_per_level"]
    points = _points(op, sampling_locations, counts)
    return AttentionPlan(
        batch=batch,
        values=values,
        heads=heads,
        channels=channels,
        queries=sampling_locations.shape[1],
        shapes=_shapes(op, spatial_shapes, len(points), values),
        points=points,
        method=options["method"],
        softmax=options["softmax"],
        ragged=counts is not None,
    ).fitting(op, sampling_locations=sampling_locations, attention_weights=attention_weights)


def _points(op: str, locations: Outline, counts: tuple[int, ...] | None) -> tuple[int, ...]:
    """Points of each level: a number for all in the shape of the locations, or one for each."""
    if counts is not None:
        checks.rank(op, "sampling_locations", locations, "(N, Lq, M, sum P, 2)")
        return counts
    symbols = "(N, Lq, M, L, P, (x, y))"
    if locations.ndim != 6:
        got = f"shape {tuple(locations.shape)}"
        why = "or (N, Lq, M, sum P, (x, y)) with `points_per_level`"
        checks.fail(op, "sampling_locations", f"to have 6 axes {symbols}", got, why)
    checks.non_empty(op, "sampling_locations", locations, symbols, may_be_empty=2)
    return (locations.shape[4],) * locations.shape[3]


def _pair(op: str, name: str, size: Any) -> tuple[int, int]:
    """Height and width; symbols of a tracer stay what they are."""
    if len(size) == 2 and any(map(checks.is_symbol, size)):
        return tuple(size)
    return checks.pair(op, name, size, 1)


def _shapes(op: str, shapes: Any, levels: int, values: int) -> tuple[tuple[int, int], ...] | None:
    """The pairs after checking them; None where an array holds them."""
    name = "spatial_shapes"
    if isinstance(shapes, Outline):
        checks.shape(op, name, shapes, (levels, 2), _SHAPES)
        return None
    if not isinstance(shapes, (tuple, list)):
        expected = f"to be pairs or an integer array {_SHAPES}"
        checks.fail(op, name, expected, checks.shown(shapes), error=TypeError)
    checks.listed_pairs(op, name, shapes, levels)
    pairs = tuple(_pair(op, name, size) for size in shapes)
    total = sum(height * width for height, width in pairs)
    if total != values:
        expected = f"of {values} pixels in all, as many as `value` (N, S, M, D) has"
        checks.fail(op, name, expected, total, "the sum of H*W over the levels")
    return pairs
