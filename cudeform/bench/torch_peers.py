"""Implementations in PyTorch on the CPU; their gradients are autograd's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cudeform.bench.engines import Call, Lacking, Unavailable
from cudeform.bench.workload import Aggregation, Attention, Workload

Arrays = dict[str, np.ndarray]
Setup = Callable[[Workload], Callable[..., Any]]  # gives a function of tensors by their names


def _peer(setup: Setup) -> Callable[..., Call]:
    """What `setup` finds, as a peer of the forward or of the backward."""

    def peer(work: Workload, arrays: Arrays, threads: int, *, backward: bool) -> Call:
        try:
            function = setup(work)
            import torch
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            raise Unavailable(str(error).splitlines()[0]) from error
        torch.set_num_threads(threads)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        grad_output = tensors.pop("grad_output")
        if not backward:

            def forward() -> tuple[np.ndarray, ...]:
                with torch.inference_mode():
                    return (function(**tensors).numpy(),)

            return forward
        wanted = [tensors[name].requires_grad_() for name in work.gradients if name in tensors]
        output = function(**tensors)

        def gradients() -> tuple[np.ndarray, ...]:
            found = torch.autograd.grad(output, wanted, grad_output, retain_graph=True)
            return tuple(gradient.numpy() for gradient in found)

        return gradients

    return peer


@_peer
def torchvision(work: Workload) -> Callable[..., Any]:
    if not work.in_torchvision:
        raise Lacking(work.operator)
    import torch
    import torchvision

    # a wheel may come without its operators
    getattr(torch.ops.torchvision, work.operator)
    function = getattr(torchvision.ops, work.operator)
    return lambda **tensors: function(**tensors, **work.options)


@_peer
def transformers(work: Workload) -> Callable[..., Any]:
    """Its function in PyTorch, which is made of grid_sample."""
    if not isinstance(work, Attention):
        raise Lacking(work.operator)
    import torch
    from transformers.models.deformable_detr import modeling_deformable_detr

    function = modeling_deformable_detr.MultiScaleDeformableAttention().forward
    shapes = list(work.options["spatial_shapes"])
    sizes = torch.tensor(shapes)

    def attention(value: Any, sampling_locations: Any, attention_weights: Any) -> Any:
        return function(value, sizes, shapes, None, sampling_locations, attention_weights, 64)

    return attention


@_peer
def torch_ms_deform_attn(work: Workload) -> Callable[..., Any]:
    """Its operator in C++."""
    if not isinstance(work, Attention):
        raise Lacking(work.operator)
    import torch
    import torch_ms_deform_attn

    sizes = torch.tensor(work.options["spatial_shapes"])
    areas = sizes.prod(1)
    starts = areas.cumsum(0) - areas

    def attention(value: Any, sampling_locations: Any, attention_weights: Any) -> Any:
        return torch_ms_deform_attn.ms_deform_attn(
            value, sizes, starts, sampling_locations, attention_weights
        )

    return attention


@_peer
def grid_sample(work: Workload) -> Callable[..., Any]:
    """What PyTorch has for DCNv3 and DCNv4: all samples by grid_sample, then their sums."""
    if not isinstance(work, Aggregation):
        raise Lacking(work.operator)
    import torch
    from torch.nn import functional

    n, height, width, channels = work.batch, work.height, work.width, work.channels
    groups, points = work.groups, 9
    side = torch.arange(3.0) - 1
    taps = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1)  # (x, y), down the columns
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    base = torch.stack([x, y], -1)[:, :, None, None] + taps.reshape(points, 2)
    size = torch.tensor([width, height])

    def aggregate(input: Any, offset: Any, mask: Any) -> Any:
        places = base + offset.reshape(n, height, width, groups, points, 2)
        grid = (2 * places + 1) / size - 1
        grid = grid.permute(0, 3, 1, 2, 4, 5).reshape(n * groups, height * width, points, 2)
        image = input.permute(0, 3, 1, 2).reshape(n * groups, -1, height, width)
        samples = functional.grid_sample(image, grid, align_corners=False)
        shares = mask.reshape(n, height * width, groups, points)
        shares = shares.transpose(1, 2).reshape(n * groups, 1, height * width, points)
        sums = (samples * shares).sum(-1).reshape(n, channels, height, width)
        return sums.permute(0, 2, 3, 1).contiguous()

    def dcnv3(input: Any, offset: Any, mask: Any) -> Any:
        logits = mask.reshape(n, height, width, groups, points)
        return aggregate(input, offset, logits.softmax(-1))

    def dcnv4(input: Any, offset_mask: Any) -> Any:
        used = offset_mask[..., : 3 * groups * points].reshape(n, height, width, groups, -1)
        return aggregate(input, used[..., : 2 * points], used[..., 2 * points :])

    return dcnv3 if work.operator == "dcnv3" else dcnv4
