"""One row per operator: all there is to know of it. Bridges, tests and tools loop over the rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_origin

import numpy as np

import cudeform
from cudeform import cases
from cudeform.cases import Case
from cudeform.plans.arguments import RETURN_ARGMAX, Argument, Option, Roles
from cudeform.plans.outlines import ARGUMENTS, PLANNERS


@dataclass(frozen=True)
class Operator(Roles):
    """What there is to know of an operator without calling it."""

    name: str
    summary: str
    paper: str
    slopes: str = ""  # the module of cudeform.derivatives for coordinates that move
    apart: str = ""  # the operator with the same result and one array for each role

    @cached_property
    def family(self) -> str:
        """That of its plan; cuda/ and cpu/ have one module of this name."""
        return inspect.signature(PLANNERS[self.name], eval_str=True).return_annotation.family

    @property
    def forward(self) -> Callable[..., Any]:
        return getattr(cudeform, self.name)

    @property
    def backward(self) -> Callable[..., Any]:
        """Called with grad_output first, then the arguments of the forward that it needs."""
        return getattr(cudeform, self.name + "_backward")

    @property
    def cases(self) -> Callable[[np.random.Generator], Iterator[Case]]:
        """What gives its cases, of float64 arrays: the function of its name in `cudeform.cases`."""
        return getattr(cases, self.name)

    @cached_property
    def gradients(self) -> type:
        """The named tuple that the backward returns."""
        return get_origin(inspect.signature(self.backward, eval_str=True).return_annotation)

    @cached_property
    def arguments(self) -> tuple[Argument, ...]:
        """The arrays, which its planner names."""
        return ARGUMENTS[self.name].arguments

    @cached_property
    def options(self) -> tuple[Option, ...]:
        """The arguments that are no arrays, and say what the result is."""
        return tuple(o for o in ARGUMENTS[self.name].options if o is not RETURN_ARGMAX)

    @property
    def argmax(self) -> bool:
        """Whether it can return which pixels it chose, and takes them in the backward."""
        return RETURN_ARGMAX in ARGUMENTS[self.name].options

    @cached_property
    def kept(self) -> tuple[str, ...]:
        """The arrays that the backward takes, besides grad_output."""
        accepted = inspect.signature(self.backward).parameters
        return tuple(a.name for a in self.arguments if a.name in accepted)

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """Of the options; `REQUIRED` for those that have to be given."""
        return {option.name: option.default for option in self.options}

    def call(self, case: Case, convert: Callable[[Any], Any] = lambda array: array) -> Any:
        """The forward on a case, each array converted first."""
        return self.forward(**{**self._given(case, convert), **case.options})

    def call_backward(
        self,
        grad_output: Any,
        case: Case,
        convert: Callable[[Any], Any] = lambda array: array,
        needs: Any = None,
    ) -> Any:
        """The backward on a case: `grad_output` as it is, the other arrays converted first."""
        accepted = inspect.signature(self.backward).parameters
        given = {k: v for k, v in self._given(case, convert).items() if k in accepted}
        return self.backward(grad_output, **{**given, **case.options}, needs=needs)

    def _given(self, case: Case, convert: Callable[[Any], Any]) -> dict[str, Any]:
        """All array arguments, None for those that the case leaves out."""
        arrays = {argument.name: case.arrays.get(argument.name) for argument in self.arguments}
        return {name: None if array is None else convert(array) for name, array in arrays.items()}


OPERATORS = (
    Operator(
        name="deform_conv2d",
        summary="deformable convolution v1, and v2 with a mask",
        paper="Dai et al. 2017, Zhu et al. 2019",
        slopes="taps",
    ),
    Operator(
        name="conv2d",
        summary="convolution without offsets",
        paper="",
    ),
    Operator(
        name="bilinear_sample",
        summary="bilinear sampling at given points",
        paper="Dai et al. 2017, equations 3 and 4",
        slopes="points",
    ),
    Operator(
        name="dcnv3",
        summary="weighted sums of samples around each pixel",
        paper="Wang et al. 2023",
        slopes="grid",
    ),
    Operator(
        name="dcnv4",
        summary="the same, with offsets and factors in one array",
        paper="Xiong et al. 2024",
        slopes="grid",
        apart="dcnv3",
    ),
    Operator(
        name="ms_deform_attn",
        summary="weighted sums of samples of several levels",
        paper="Zhu et al. 2021",
        slopes="levels",
    ),
    Operator(
        name="roi_align",
        summary="average or maximum of bilinear samples in the bins of regions",
        paper="He et al. 2017",
    ),
    Operator(
        name="ps_roi_align",
        summary="average of bilinear samples from channels of each bin's own",
        paper="Dai et al. 2016, He et al. 2017",
    ),
    Operator(
        name="roi_pool",
        summary="maximum or average of the pixels in the bins of regions",
        paper="Girshick 2015; Dai et al. 2017, equation 5",
    ),
    Operator(
        name="ps_roi_pool",
        summary="average of pixels from channels of each bin's own",
        paper="Dai et al. 2016",
    ),
    Operator(
        name="deform_roi_pool",
        summary="RoI pooling with bins that move, and v2 with a mask",
        paper="Dai et al. 2017, equation 6; Zhu et al. 2019",
        slopes="bins",
    ),
    Operator(
        name="deform_ps_roi_pool",
        summary="position-sensitive RoI pooling with bins that move, and v2 with a mask",
        paper="Dai et al. 2017; Zhu et al. 2019",
        slopes="bins",
    ),
)


def row_of(name: str) -> Operator:
    """The row of an operator."""
    (row,) = (row for row in OPERATORS if row.name == name)
    return row
