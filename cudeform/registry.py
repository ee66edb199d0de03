"""One row per operator: all there is to know of it. Bridges, tests and tools loop over the rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_origin

import numpy as np

import cudeform
from cudeform import cases
from cudeform.cases import Case
from cudeform.plans import ARGUMENTS
from cudeform.plans.arguments import Argument, Roles

__all__ = ["OPERATORS", "Operator", "Option"]


@dataclass(frozen=True)
class Option:
    """An argument that is no array."""

    name: str
    # "pair": an integer, or one for each axis; "padding": also one for each side
    # "integers": any number of them, or None
    kind: Literal["flag", "integer", "number", "choice", "pair", "padding", "integers"]


@dataclass(frozen=True)
class Operator(Roles):
    """What there is to know of an operator without calling it."""

    name: str
    family: str  # cuda/ and cpu/ have one file of this name
    summary: str
    paper: str
    options: tuple[Option, ...]
    cases: Callable[[np.random.Generator], Iterator[Case]]  # float64 arrays
    slopes: str = ""  # the module of cudeform.derivatives for coordinates that move
    apart: str = ""  # the operator with the same result and one array for each role
    argmax: bool = False  # can return which pixels it chose, and takes them in the backward

    @property
    def forward(self) -> Callable[..., Any]:
        return getattr(cudeform, self.name)

    @property
    def backward(self) -> Callable[..., Any]:
        """Called with grad_output first, then the arguments of the forward that it needs."""
        return getattr(cudeform, self.name + "_backward")

    @cached_property
    def gradients(self) -> type:
        """The named tuple that the backward returns."""
        return get_origin(inspect.signature(self.backward, eval_str=True).return_annotation)

    @cached_property
    def arguments(self) -> tuple[Argument, ...]:
        """The arrays, which its planner names."""
        return ARGUMENTS[self.name].arguments

    @cached_property
    def kept(self) -> tuple[str, ...]:
        """The arrays that the backward takes, besides grad_output."""
        accepted = inspect.signature(self.backward).parameters
        return tuple(a.name for a in self.arguments if a.name in accepted)

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """Of the options; `inspect.Parameter.empty` for those that have to be given."""
        parameters = inspect.signature(self.forward).parameters
        return {option.name: parameters[option.name].default for option in self.options}

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


_STRIDE = Option("stride", "pair")
_PADDING = Option("padding", "padding")
_DILATION = Option("dilation", "pair")
_BORDER = Option("border", "choice")
_LAYOUT = Option("layout", "choice")
_PRECISION = Option("precision", "choice")
_OUTPUT_SIZE = Option("output_size", "pair")
_SPATIAL_SCALE = Option("spatial_scale", "number")
_SAMPLING_RATIO = Option("sampling_ratio", "integer")
_ALIGNED = Option("aligned", "flag")
_MODE = Option("mode", "choice")
_CONVENTION = Option("convention", "choice")
_GAMMA = Option("gamma", "number")
_OUTPUT_DIM = Option("output_dim", "integer")
_GROUP_SIZE = Option("group_size", "pair")
_PART_SIZE = Option("part_size", "pair")
_SAMPLE_PER_PART = Option("sample_per_part", "integer")
_TRANS_STD = Option("trans_std", "number")
_POINTS_PER_LEVEL = Option("points_per_level", "integers")
_METHOD = Option("method", "choice")
_SOFTMAX = Option("softmax", "flag")
_GRID_OF_POINTS = (
    Option("kernel_size", "pair"),
    _STRIDE,
    Option("padding", "pair"),
    _DILATION,
    Option("groups", "integer"),
    Option("offset_scale", "number"),
    Option("remove_center", "flag"),
)

OPERATORS = (
    Operator(
        name="deform_conv2d",
        family="conv",
        summary="deformable convolution v1, and v2 with a mask",
        paper="Dai et al. 2017, Zhu et al. 2019",
        options=(_STRIDE, _PADDING, _DILATION, _BORDER, _LAYOUT, _PRECISION),
        cases=cases.deform_conv2d,
        slopes="taps",
    ),
    Operator(
        name="conv2d",
        family="conv",
        summary="convolution without offsets",
        paper="",
        options=(_STRIDE, _PADDING, _DILATION, _LAYOUT, _PRECISION),
        cases=cases.conv2d,
    ),
    Operator(
        name="bilinear_sample",
        family="sampling",
        summary="bilinear sampling at given points",
        paper="Dai et al. 2017, equations 3 and 4",
        options=(_BORDER, _LAYOUT),
        cases=cases.bilinear_sample,
        slopes="points",
    ),
    Operator(
        name="dcnv3",
        family="aggregation",
        summary="weighted sums of samples around each pixel",
        paper="Wang et al. 2023",
        options=(*_GRID_OF_POINTS, _SOFTMAX),
        cases=cases.dcnv3,
        slopes="grid",
    ),
    Operator(
        name="dcnv4",
        family="aggregation",
        summary="the same, with offsets and factors in one array",
        paper="Xiong et al. 2024",
        options=_GRID_OF_POINTS,
        cases=cases.dcnv4,
        slopes="grid",
        apart="dcnv3",
    ),
    Operator(
        name="ms_deform_attn",
        family="attention",
        summary="weighted sums of samples of several levels",
        paper="Zhu et al. 2021",
        options=(_POINTS_PER_LEVEL, _METHOD, _SOFTMAX),
        cases=cases.ms_deform_attn,
        slopes="levels",
    ),
    Operator(
        name="roi_align",
        family="regions",
        summary="average or maximum of bilinear samples in the bins of regions",
        paper="He et al. 2017",
        options=(_OUTPUT_SIZE, _SPATIAL_SCALE, _SAMPLING_RATIO, _ALIGNED, _MODE),
        cases=cases.roi_align,
        argmax=True,
    ),
    Operator(
        name="ps_roi_align",
        family="regions",
        summary="average of bilinear samples from channels of each bin's own",
        paper="Dai et al. 2016, He et al. 2017",
        options=(_OUTPUT_SIZE, _SPATIAL_SCALE, _SAMPLING_RATIO),
        cases=cases.ps_roi_align,
    ),
    Operator(
        name="roi_pool",
        family="regions",
        summary="maximum or average of the pixels in the bins of regions",
        paper="Girshick 2015; Dai et al. 2017, equation 5",
        options=(_OUTPUT_SIZE, _SPATIAL_SCALE, _MODE),
        cases=cases.roi_pool,
        argmax=True,
    ),
    Operator(
        name="ps_roi_pool",
        family="regions",
        summary="average of pixels from channels of each bin's own",
        paper="Dai et al. 2016",
        options=(_OUTPUT_SIZE, _SPATIAL_SCALE, _CONVENTION),
        cases=cases.ps_roi_pool,
    ),
    Operator(
        name="deform_roi_pool",
        family="regions",
        summary="RoI pooling with bins that move, and v2 with a mask",
        paper="Dai et al. 2017, equation 6; Zhu et al. 2019",
        options=(_OUTPUT_SIZE, _SPATIAL_SCALE, _SAMPLING_RATIO, _GAMMA),
        cases=cases.deform_roi_pool,
        slopes="bins",
    ),
    Operator(
        name="deform_ps_roi_pool",
        family="regions",
        summary="position-sensitive RoI pooling with bins that move, and v2 with a mask",
        paper="Dai et al. 2017; Zhu et al. 2019",
        options=(
            _OUTPUT_SIZE,
            _SPATIAL_SCALE,
            _OUTPUT_DIM,
            _GROUP_SIZE,
            _PART_SIZE,
            _SAMPLE_PER_PART,
            _TRANS_STD,
        ),
        cases=cases.deform_ps_roi_pool,
        slopes="bins",
    ),
)
