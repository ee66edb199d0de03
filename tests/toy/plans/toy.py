"""The plan of the toy operator."""

from dataclasses import dataclass
from functools import cached_property

from cudeform import checks
from cudeform.plans.arguments import IMAGE, Argument, Option
from cudeform.plans.outlines import Outline, Plan, planner


@dataclass(frozen=True)
class ToyPlan(Plan):
    """y[n, c, i, j] = gain * input[n, c, i, j] * factor[n, c]."""

    shape: tuple[int, ...]
    gain: float

    family = "toy"

    @cached_property
    def results(self):
        return (Outline(self.shape, "(N, C, H, W)"),)

    @cached_property
    def gradients(self):
        return {
            "input": Outline(self.shape, "(N, C, H, W)"),
            "factor": Outline(self.shape[:2], "(N, C)", "factor"),
        }


@planner(
    IMAGE,
    Argument("factor", ("N", "C"), "factor"),
    options=(Option("gain", "number", checks.number, 1.0),),
)
def toy(op, options, input, factor) -> ToyPlan:
    checks.rank(op, "input", input, "(N, C, H, W)")
    checks.shape(op, "factor", factor, input.shape[:2], "(N, C)")
    return ToyPlan(input.shape, options["gain"])
