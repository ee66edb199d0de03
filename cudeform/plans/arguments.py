"""What operators take: arrays, with their axes and what each is; options, with their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from inspect import Parameter
from typing import Any, Literal

from cudeform import checks
from cudeform.plans.points import BORDERS, LAYOUTS

REQUIRED = Parameter.empty  # the default of an option that has to be given
Options = Mapping[str, Any]  # by name


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


@dataclass(frozen=True)
class Option:
    """An argument of an operator that is no array."""

    name: str
    # "pair": an integer, or one for each axis; "padding": also one for each side
    # "integers": any number of them, or None
    kind: Literal["flag", "integer", "number", "choice", "pair", "padding", "integers"]
    check: Callable[[str, str, Any], Any]  # takes the operator, the name and a value
    default: Any = REQUIRED

    def value(self, op: str, given: Any) -> Any:
        """What a value of a call of `op` stands for, or an error; None may be the default."""
        if given is REQUIRED:
            raise TypeError(f"{op}() missing a required argument: {self.name!r}")
        if given is None and self.default is None:
            return None
        return self.check(op, self.name, given)


def flag(name: str) -> Option:
    """False if it is not given."""
    return Option(name, "flag", checks.flag, False)


def choice(name: str, *values: str) -> Option:
    """One of a few strings, the first if it is not given."""
    return Option(name, "choice", partial(checks.choice, options=values), values[0])


def pair(name: str, default: Any = REQUIRED, minimum: int = 1) -> Option:
    """Integers along y and x."""
    return Option(name, "pair", partial(checks.pair, minimum=minimum), default)


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
    options: tuple[Option, ...] = ()


IMAGE = Argument("input", ("N", "C", "H", "W"), "image")
PIXELS = Argument("input", ("N", "H", "W", "G*Cg"), "image")
BOXES = Argument("boxes", ("R", "5"), "boxes")
WEIGHT = Argument("weight", ("O", "C/groups", "kh", "kw"), "factor")
BIAS = Argument("bias", ("O",), "addend", optional=True)

STRIDE = pair("stride", 1)
DILATION = pair("dilation", 1)
BORDER = choice("border", *BORDERS)
LAYOUT = choice("layout", *LAYOUTS)
SOFTMAX = flag("softmax")
RETURN_ARGMAX = flag("return_argmax")  # whether the forward is asked for its second result
