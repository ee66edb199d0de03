"""Kernels of other libraries on a GPU, on tensors: those of papers as their users install them.

A peer is a function (workload, backward) -> set_up, where set_up(tensors by name) gives a call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cudeform.bench.cuda_contender import Arrays, SetUp
from cudeform.bench.workload import BINS, SCALE, Aggregation, Convolution, Workload

STEP = 256  # images at a time, or all if there are fewer: as the modules of DCNv3 and v4 say


def torchvision(work: Workload, backward: bool) -> SetUp:
    """torchvision's kernels without autograd around them."""
    import torch
    import torchvision  # noqa: F401  registers its operators

    operators = torch.ops.torchvision
    if isinstance(work, Convolution):
        return lambda t: _convolution(operators, t, backward)
    return lambda t: _pooling(operators, work, t, backward)


def _convolution(operators: Any, t: Arrays, backward: bool) -> Callable[[], tuple[Any, ...]]:
    # stride, padding, dilation along y and x, weight groups, offset groups, with a mask
    settings = (1, 1, 1, 1, 1, 1, 1, 1, True)
    given = [t[name] for name in ("input", "weight", "offset", "mask", "bias")]
    if not backward:
        return lambda: (operators.deform_conv2d(*given, *settings),)

    def call() -> tuple[Any, ...]:
        image, weight, offset, mask, bias = operators._deform_conv2d_backward(
            t["grad_output"], *given, *settings
        )
        return image, offset, weight, bias, mask

    return call


def _pooling(
    operators: Any, work: Workload, t: Arrays, backward: bool
) -> Callable[[], tuple[Any, ...]]:
    forward = getattr(operators, work.operator)
    boxes, bins = t["boxes"], (SCALE, BINS, BINS)
    ratio = [work.options.get("sampling_ratio", -1)] if work.operator.endswith("align") else []
    if work.operator == "roi_align":
        if not backward:
            return lambda: (forward(t["input"], boxes, *bins, *ratio, False),)
        kept, more = [], [*t["input"].shape, *ratio, False]
    else:
        if not backward:
            return lambda: forward(t["input"], boxes, *bins, *ratio)[:1]
        kept = [forward(t["input"], boxes, *bins, *ratio)[1]]  # which pixels, or which channels
        more = [*ratio, *t["input"].shape]
    gradient = getattr(operators, f"_{work.operator}_backward")
    return lambda: (gradient(t["grad_output"], boxes, *kept, *bins, *more),)


def deformops(work: Workload, backward: bool) -> SetUp:
    """Its functions of tensors, which choose a backend, and their derivatives by autograd."""
    import torch

    if isinstance(work, Convolution):
        from deformops.integrations.torchvision import deform_conv2d

        def function(t: Arrays) -> Any:
            given = (t[name] for name in ("input", "offset", "weight", "bias"))
            return deform_conv2d(*given, padding=(1, 1), mask=t["mask"])

    else:
        from deformops.registry import msda

        def function(t: Arrays) -> Any:
            return msda(*_attention(work, t))

    def set_up(t: Arrays) -> Callable[[], Any]:
        if not backward:
            return lambda: (function(t),)
        wanted = [t[name].requires_grad_() for name in work.gradients]
        output = function(t)
        return lambda: torch.autograd.grad(output, wanted, t["grad_output"], retain_graph=True)

    return set_up


def kernel_hub(work: Workload, backward: bool) -> SetUp:
    """The kernels of attention that transformers fetches for its detectors."""
    from kernels import get_kernel

    return _deformable_detr(get_kernel("kernels-community/deformable-detr"), work, backward)


def deformable_detr(work: Workload, backward: bool) -> SetUp:
    """The kernels of Deformable DETR, which have no 16-bit types."""
    import torch  # noqa: F401  first, as it loads what the extension is linked with
    import MultiScaleDeformableAttention as operators  # isort: skip

    return _deformable_detr(operators, work, backward)


def _deformable_detr(operators: Any, work: Workload, backward: bool) -> SetUp:
    step = 64  # images at a time

    def set_up(t: Arrays) -> Callable[[], Any]:
        given = _attention(work, t)
        if not backward:
            return lambda: (operators.ms_deform_attn_forward(*given, step),)
        return lambda: operators.ms_deform_attn_backward(*given, t["grad_output"], step)

    return set_up


def _attention(work: Workload, t: Arrays) -> tuple[Any, ...]:
    """The arguments of Deformable DETR: with the sizes of levels, and where each begins."""
    import torch

    sizes = np.array(work.options["spatial_shapes"])
    begins = np.cumsum([0, *sizes.prod(1)[:-1]])
    levels = (torch.from_numpy(array).to("cuda") for array in (sizes, begins))
    return (t["value"], *levels, t["sampling_locations"], t["attention_weights"])


def dcnv3(work: Aggregation, backward: bool) -> SetUp:
    """The kernels of InternImage, and around them the softmax that its module takes."""
    import torch
    import DCNv3 as operators  # isort: skip

    grid, scale, remove_center = _grid(work), 1.0, 0
    softmax_backward = getattr(torch.ops.aten, "_softmax_backward_data")  # noqa: B009  autograd's

    def set_up(t: Arrays) -> Callable[[], Any]:
        logits = t["mask"].unflatten(-1, (work.groups, 9))

        def forward(mask: Any) -> Any:
            given = (t["input"], t["offset"], mask.flatten(-2))
            return operators.dcnv3_forward(*given, *grid, scale, STEP, remove_center)

        if not backward:
            return lambda: (forward(logits.softmax(-1)),)
        mask = logits.softmax(-1)  # kept from the forward

        def call() -> tuple[Any, ...]:
            given = (t["input"], t["offset"], mask.flatten(-2))
            image, offset, factors = operators.dcnv3_backward(
                *given, *grid, scale, t["grad_output"], STEP, remove_center
            )
            gradient = softmax_backward(factors.view_as(mask), mask, -1, mask.dtype)
            return image, offset, gradient.flatten(-2)

        return call

    return set_up


def dcnv4(work: Aggregation, backward: bool) -> SetUp:
    """The kernels of FlashInternImage, launched as its tables and rules say."""
    from DCNv4 import ext as operators
    from DCNv4.functions.dcnv4_func import find_spec_bwd, findspec

    grid, scale, remove_center, softmax = _grid(work), 1.0, 0, False
    choose = find_spec_bwd if backward else findspec
    launch = choose(work.batch, work.height, work.width, *grid[-2:])

    def set_up(t: Arrays) -> Callable[[], Any]:
        given = (t["input"], t["offset_mask"], *grid, scale, STEP)
        if not backward:
            return lambda: (operators.dcnv4_forward(*given, remove_center, *launch, softmax),)
        return lambda: operators.dcnv4_backward(
            *given, t["grad_output"], remove_center, *launch, softmax
        )

    return set_up


def _grid(work: Aggregation) -> tuple[int, ...]:
    """Kernel, stride, padding, dilation along y and x; groups, and channels in each."""
    return (3, 3, 1, 1, 1, 1, 1, 1, work.groups, work.channels // work.groups)
