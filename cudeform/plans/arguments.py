"""The arrays that operators take: their axes, and what each is to its operator."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

__all__ = ["BIAS", "BOXES", "IMAGE", "PIXELS", "WEIGHT", "Argument", "Arguments", "Roles"]


@dataclass(frozen=True)
class Argument:
    """An array argument of an operator."""

    name: str
    axes: tuple[str, ...]  # as a layout "NCHW" has them
    # What it is to the operator, which is linear in a "factor", and in an "image" it reads:
    # "coordinates" say where, "boxes" also of which image, "addend" is added to the result.
    # Where offsets and factors are one array, that is "coordinates".
    # "shares" are factors of points, or logits of such where there is an option `softmax`.
    # "shapes" are sizes (H, W), pairs of integers on the host or an integer array.
    role: Literal["image", "coordinates", "factor", "shares", "addend", "boxes", "shapes"]
    optional: bool = False

    @property
    def differentiable(self) -> bool:
        return self.role not in ("boxes", "shapes")

    @property
    def finer(self) -> bool:
        """Whether it may be of float32 beside 16-bit arrays, too few for where and how much."""
        return self.role in ("coordinates", "shares", "boxes")

    @property
    def symbols(self) -> str:
        """The axes as documentation and messages write them."""
        return f"({', '.join(self.axes)}{',' if len(self.axes) == 1 else ''})"


class Roles:
    """What follows from the arguments of an operator."""

    arguments: tuple[Argument, ...]

    @cached_property
    def images(self) -> str:
        """The array that is read, whose dtype the result has."""
        return next(a.name for a in self.arguments if a.role == "image")

    @cached_property
    def boxes(self) -> str | None:
        """The array that says what is pooled."""
        return next((a.name for a in self.arguments if a.role == "boxes"), None)

    @cached_property
    def static(self) -> tuple[str, ...]:
        """The arrays that may be values on the host instead, and are options then."""
        return tuple(a.name for a in self.arguments if a.role == "shapes")

    @cached_property
    def required(self) -> tuple[str, ...]:
        """The arrays that have to be given."""
        return tuple(a.name for a in self.arguments if not a.optional)

    @cached_property
    def optional(self) -> tuple[str, ...]:
        """The arrays that may be None."""
        return tuple(a.name for a in self.arguments if a.optional)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All of them, in the order of the signature."""
        return tuple(a.name for a in self.arguments)

    @cached_property
    def own(self) -> tuple[str, ...]:
        """The arrays with a dtype that says nothing of the others'."""
        return tuple(a.name for a in self.arguments if not a.differentiable)

    @cached_property
    def finer(self) -> tuple[str, ...]:
        """The others that may be of float32 beside 16-bit ones."""
        return tuple(a.name for a in self.arguments if a.differentiable and a.finer)

    @cached_property
    def batched(self) -> tuple[str, ...]:
        """The arrays with an entry, like the result, for each image: none where boxes say which."""
        if self.boxes is not None:
            return ()
        return tuple(a.name for a in self.arguments if a.axes[0] == "N")

    @cached_property
    def coordinates(self) -> str | None:
        """The array that says where the operator reads, and may move."""
        return next((a.name for a in self.arguments if a.role == "coordinates"), None)

    @cached_property
    def addends(self) -> dict[str, str]:
        """The arrays that are added to the result, and the factor whose dtype each has.

        No gradient depends on them, so that a backward does not take them.
        """
        factor = next((a.name for a in self.arguments if a.role == "factor"), self.images)
        return {a.name: factor for a in self.arguments if a.role == "addend"}


@dataclass(frozen=True)
class Arguments(Roles):
    """The arguments of an operator, in the order of its signature."""

    arguments: tuple[Argument, ...]


IMAGE = Argument("input", ("N", "C", "H", "W"), "image")
PIXELS = Argument("input", ("N", "H", "W", "G*Cg"), "image")
BOXES = Argument("boxes", ("R", "5"), "boxes")
WEIGHT = Argument("weight", ("O", "C/groups", "kh", "kw"), "factor")
BIAS = Argument("bias", ("O",), "addend", optional=True)
