"""What a plan says of arrays without having them, and what all plans have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

from cudeform import checks
from cudeform.arrays import sum_dtype_name
from cudeform.plans.arguments import Argument, Arguments, Option


class Outline(NamedTuple):
    """An array that is not there: all that a plan may look at, and all that it promises.

    `like` is the argument whose dtype the array has, or "sums" for the dtype of coordinates and
    sums, or the name of a dtype.
    """

    shape: tuple[int, ...]
    axes: str = ""  # by name, "(N, O, Ho, Wo)"
    like: str = "input"

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def dtype_name(self, dtypes: Mapping[str, str]) -> str:
        """The name of its dtype, from those of the arguments."""
        if self.like == "sums":
            return sum_dtype_name(dtypes["input"])
        return dtypes.get(self.like, self.like)


_Plan = TypeVar("_Plan", bound="Plan")


class Plan:
    """What has passed all checks of shapes and options: frozen, hashable, equal for equal calls.

    Attributes
    ----------
    family : str
        ``cudeform.cpu`` and ``cudeform.cuda`` have a module of this name, which computes it.
    results : tuple of Outline
        What the forward returns; the first is what a user asks for and is differentiable.
    gradients : mapping of str to Outline
        What the backward can return, by the argument it belongs to.
    """

    family: ClassVar[str]
    results: tuple[Outline, ...]
    gradients: Mapping[str, Outline]

    def fitting(self: _Plan, op: str, **given: Outline | None) -> _Plan:
        """This plan, once arrays that are given have the shapes that it says."""
        for name, outline in given.items():
            if outline is not None:
                expected = self.gradients[name]
                checks.shape(op, name, outline, expected.shape, expected.axes)
        return self

    def counts(self, backward: bool) -> Mapping[str, int]:
        """What the kernels of a GPU count in 32 bits, by the name that a message uses."""
        return {}

    @property
    def blended(self) -> int:
        """Pixels that samples are blended of, each of all channels counted."""
        return 0

    @property
    def products(self) -> int:
        """Multiplications of samples by a weight."""
        return 0

    def flops(self, needs: Collection[str] | None = None) -> int:
        """Floating-point operations of the forward, or of the gradients in `needs`.

        A multiplication and the addition of what it gives are two. Not counted is what only says
        where to read and how much, nor are poolings, whose work is in the values of boxes.
        """
        image = self.results[0].like
        blends, products = 1, 1
        if needs is not None:
            samples = not {"weight", "bias"}.issuperset(needs)  # whether their gradient is needed
            blends = (image in needs) + (not {image, "bias"}.issuperset(needs))
            products = ("weight" in needs) + samples
        return 2 * (self.blended * blends + self.products * products)


_HASH = "_hash"
_Class = TypeVar("_Class", bound=type[Any])


def hashed_once(frozen: _Class) -> _Class:
    """Let a frozen dataclass keep its hash: every call looks up what is known of its plan.

    Not in what is pickled, as strings have other hashes in another process.
    """
    of_fields = frozen.__hash__

    def __hash__(self: Any) -> int:
        known = self.__dict__
        if _HASH not in known:
            known[_HASH] = of_fields(self)
        return known[_HASH]

    def __getstate__(self: Any) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != _HASH}

    frozen.__hash__, frozen.__getstate__ = __hash__, __getstate__
    return frozen


_Planner = Callable[..., Plan]
PLANNERS: dict[str, _Planner] = {}  # by operator
ARGUMENTS: dict[str, Arguments] = {}  # by function: a backward has those of its operator


def planner(
    *arguments: Argument, options: tuple[Option, ...] = ()
) -> Callable[[_Planner], _Planner]:
    """Let a function plan the operator of its name, which takes these arrays and options.

    It takes the name that messages use, the values of all options, each checked by itself, and by
    name an `Outline` of each array that is given.
    """

    def enter(function: _Planner) -> _Planner:
        @functools.wraps(function)
        def planned(op: str, **given: Any) -> Plan:
            values = {o.name: o.value(op, given.pop(o.name, o.default)) for o in options}
            return function(op, values, **given)

        name, taken = function.__name__, Arguments(arguments, options)
        PLANNERS[name] = planned
        ARGUMENTS.update({name: taken, name + "_backward": taken})
        return function

    return enter
