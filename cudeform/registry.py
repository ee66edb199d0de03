"""One row per operator: what its arguments are. Tests, docs and tools loop over the rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import cudeform
from cudeform.checks import pad_pairs, pair

__all__ = ["OPERATORS", "Argument", "Case", "Operator"]


@dataclass(frozen=True)
class Argument:
    """An array argument of an operator."""

    name: str
    axes: str  # "(N, C, H, W)"
    optional: bool = False
    differentiable: bool = True


@dataclass(frozen=True)
class Case:
    """Arguments to try an operator with: the arrays by name, then the options."""

    name: str
    arrays: dict[str, np.ndarray]
    options: dict[str, Any]


@dataclass(frozen=True)
class Operator:
    """What there is to know of an operator without calling it."""

    name: str
    family: str  # cuda/ and cpu/ have one file of this name
    summary: str
    paper: str
    arguments: tuple[Argument, ...]
    options: tuple[str, ...]
    cases: Callable[[np.random.Generator], Iterator[Case]]  # float64 arrays

    @property
    def forward(self) -> Callable[..., Any]:
        return getattr(cudeform, self.name)

    @property
    def backward(self) -> Callable[..., Any]:
        """Called with grad_output first, then the arguments of the forward that it needs."""
        return getattr(cudeform, self.name + "_backward")

    def call(self, case: Case, convert: Callable[[Any], Any] = lambda array: array) -> Any:
        """The forward on a case, each array converted first."""
        return self.forward(**{k: convert(v) for k, v in case.arrays.items()}, **case.options)

    def call_backward(
        self,
        grad_output: Any,
        case: Case,
        convert: Callable[[Any], Any] = lambda array: array,
        needs: Any = None,
    ) -> Any:
        """The backward on a case: `grad_output` as it is, the other arrays converted first."""
        accepted = inspect.signature(self.backward).parameters
        given = {k: convert(v) for k, v in case.arrays.items() if k in accepted}
        return self.backward(grad_output, **given, **case.options, needs=needs)


def _convolution(
    rng: np.random.Generator,
    name: str,
    *,
    n: int = 2,
    c: int = 6,
    size: tuple[int, int] = (7, 9),
    o: int = 4,
    kernel: tuple[int, int] = (3, 3),
    groups: int = 1,
    offset_groups: int = 1,
    spread: float = 1.5,
    bias: bool = True,
    mask: bool = False,
    deformable: bool = True,
    **options: Any,
) -> Case:
    """Random arguments of a convolution; the shapes follow from the options."""
    last = options.get("layout", "NCHW") == "NHWC"
    (top, bottom), (left, right) = pad_pairs("case", "padding", options.get("padding", 0))
    stride = pair("case", "stride", options.get("stride", 1), 1)
    dilation = pair("case", "dilation", options.get("dilation", 1), 1)
    padded = size[0] + top + bottom, size[1] + left + right
    out = tuple((padded[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1))

    def images(channels: int, height: int, width: int) -> tuple[int, ...]:
        return (n, height, width, channels) if last else (n, channels, height, width)

    taps = offset_groups * kernel[0] * kernel[1]
    arrays = {"input": rng.standard_normal(images(c, *size))}
    if deformable:
        arrays["offset"] = spread * rng.standard_normal(images(2 * taps, *out))
    arrays["weight"] = rng.standard_normal((o, c // groups, *kernel))
    if bias:
        arrays["bias"] = rng.standard_normal(o)
    if mask:
        arrays["mask"] = rng.uniform(size=images(taps, *out))
    return Case(name, arrays, options)


def _deform_conv2d_cases(rng: np.random.Generator) -> Iterator[Case]:
    yield _convolution(rng, "v1", padding=1)
    yield _convolution(rng, "v2", padding=1, mask=True, c=16, o=8)
    yield _convolution(rng, "v2-channels-last", padding=1, mask=True, c=16, o=8, layout="NHWC")
    yield _convolution(
        rng,
        "groups",
        c=12,
        o=6,
        groups=3,
        offset_groups=2,
        mask=True,
        stride=(2, 1),
        padding=((2, 1), (0, 3)),
        dilation=(1, 2),
        size=(11, 13),
    )
    yield _convolution(rng, "clamp", padding=1, border="clamp", mask=True, spread=3.0)
    yield _convolution(rng, "depthwise", c=5, o=5, groups=5, offset_groups=5, kernel=(2, 3))
    yield _convolution(rng, "one-tap", n=1, c=3, kernel=(1, 1), bias=False)
    yield _convolution(rng, "far", n=3, c=7, padding=2, spread=30.0, mask=True)
    yield _convolution(rng, "empty-batch", n=0, padding=1, mask=True)
    # More channels and pixels than a backend takes at once, in groups that cut across each other.
    wide = dict(n=1, c=156, o=20, size=(12, 17), groups=2, offset_groups=3, mask=True, padding=1)
    yield _convolution(rng, "wide", **wide)
    yield _convolution(rng, "wide-channels-last", **wide, layout="NHWC")


def _conv2d_cases(rng: np.random.Generator) -> Iterator[Case]:
    yield _convolution(rng, "plain", padding=1, deformable=False)
    yield _convolution(
        rng, "channels-last", c=8, o=8, groups=2, stride=2, layout="NHWC", deformable=False
    )
    yield _convolution(rng, "dilated", dilation=2, padding=3, bias=False, deformable=False)
    yield _convolution(rng, "wide", n=1, c=150, o=70, size=(12, 17), padding=1, deformable=False)


def _bilinear_sample_cases(rng: np.random.Generator) -> Iterator[Case]:
    for layout, border in (("NCHW", "zeros"), ("NHWC", "zeros"), ("NCHW", "clamp")):
        shape = (2, 6, 8, 5) if layout == "NHWC" else (2, 5, 6, 8)
        arrays = {
            "input": rng.standard_normal(shape),
            "points": rng.uniform(-2, 9, size=(2, 4, 7, 2)),
        }
        options = {"border": border, "layout": layout}
        yield Case(f"{layout}-{border}", arrays, options)


_IMAGE = Argument("input", "(N, C, H, W)")
_WEIGHT = Argument("weight", "(O, C/groups, kh, kw)")
_BIAS = Argument("bias", "(O,)", optional=True)

OPERATORS = (
    Operator(
        name="deform_conv2d",
        family="deform_conv",
        summary="deformable convolution v1, and v2 with a mask",
        paper="Dai et al. 2017, Zhu et al. 2019",
        arguments=(
            _IMAGE,
            Argument("offset", "(N, 2*offset_groups*kh*kw, Ho, Wo)"),
            _WEIGHT,
            _BIAS,
            Argument("mask", "(N, offset_groups*kh*kw, Ho, Wo)", optional=True),
        ),
        options=("stride", "padding", "dilation", "border", "layout", "precision"),
        cases=_deform_conv2d_cases,
    ),
    Operator(
        name="conv2d",
        family="deform_conv",
        summary="convolution without offsets",
        paper="",
        arguments=(_IMAGE, _WEIGHT, _BIAS),
        options=("stride", "padding", "dilation", "layout", "precision"),
        cases=_conv2d_cases,
    ),
    Operator(
        name="bilinear_sample",
        family="sampling",
        summary="bilinear sampling at given points",
        paper="Dai et al. 2017, equations 3 and 4",
        arguments=(_IMAGE, Argument("points", "(N, ..., 2)")),
        options=("border", "layout"),
        cases=_bilinear_sample_cases,
    ),
)
