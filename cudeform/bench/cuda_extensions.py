"""More contenders on a GPU: the operators that papers came with, as their users install them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cudeform.bench.cuda_peers import Contender, levels, of_torch
from cudeform.bench.workload import Workload

__all__ = ["dcnv3", "dcnv4", "deformable_detr"]

Arrays = dict[str, Any]
STEP = 256  # images at a time, or all if there are fewer; their own modules' default


def deformable_detr(
    work: Workload, host: Arrays, backward: bool, copies: int, dtype: str, precision: str
) -> Contender:
    """The kernels of Deformable DETR, which have no 16-bit types."""
    import torch  # noqa: F401  first, as it loads what the extension is linked with
    import MultiScaleDeformableAttention as operators  # isort: skip

    step = 64

    def set_up(t: Arrays) -> Callable[[], Any]:
        given = (t["value"], *levels(work), t["sampling_locations"], t["attention_weights"])
        if not backward:
            return lambda: (operators.ms_deform_attn_forward(*given, step),)
        return lambda: operators.ms_deform_attn_backward(*given, t["grad_output"], step)

    return of_torch(host, copies, dtype, set_up)


def dcnv3(
    work: Workload, host: Arrays, backward: bool, copies: int, dtype: str, precision: str
) -> Contender:
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

    return of_torch(host, copies, dtype, set_up)


def dcnv4(
    work: Workload, host: Arrays, backward: bool, copies: int, dtype: str, precision: str
) -> Contender:
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

    return of_torch(host, copies, dtype, set_up)


def _grid(work: Workload) -> tuple[int, ...]:
    """Kernel, stride, padding, dilation along y and x; groups, and channels in each."""
    return (3, 3, 1, 1, 1, 1, 1, 1, work.groups, work.channels // work.groups)
