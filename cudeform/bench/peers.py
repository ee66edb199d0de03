"""Implementations on the CPU, each set up with the same arguments and number of threads.

A peer is a function (workload, arrays, threads) -> call, where call() computes and returns NumPy
arrays: the output, or the gradients in order. It raises `Lacking` where the library does not have
the operator, and `Unavailable` where it is not installed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from cudeform.bench import engines
from cudeform.bench.engines import Call, Lacking, Unavailable
from cudeform.bench.workload import Attention, Convolution, Workload

__all__ = ["BACKWARD", "DISTRIBUTIONS", "FORWARD", "GEMM", "OURS", "Lacking", "Peer", "Unavailable"]

OURS = "cudeform"
GEMM = "bare GEMM"
DISTRIBUTIONS = (
    "numpy",
    "numba",
    "onnxruntime",
    "openvino",
    "torch",
    "torchvision",
    "transformers",
    "deformops",
    "kernels",
)

Peer = Callable[[Workload, dict[str, np.ndarray], int], Call]


def _cudeform(
    work: Workload, arrays: dict[str, np.ndarray], threads: int, *, backward: bool
) -> Call:
    return work.call(arrays, backward)


def _torch(work: Workload, threads: int) -> tuple[Any, Any]:
    if not work.in_torchvision:
        raise Lacking(work.operator)
    try:
        import torch
        import torchvision

        torch.set_num_threads(threads)
        # a wheel may come without its operators
        getattr(torch.ops.torchvision, work.operator)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise Unavailable(str(error).splitlines()[0]) from error
    return torch, getattr(torchvision.ops, work.operator)


def _torchvision(work: Workload, arrays: dict[str, np.ndarray], threads: int) -> Call:
    torch, operator = _torch(work, threads)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    del tensors["grad_output"]

    def call() -> tuple[np.ndarray, ...]:
        with torch.inference_mode():
            return (operator(**tensors, **work.options).numpy(),)

    return call


def _torchvision_backward(work: Workload, arrays: dict[str, np.ndarray], threads: int) -> Call:
    torch, operator = _torch(work, threads)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    grad_output = tensors.pop("grad_output")
    wanted = [tensors[name].requires_grad_() for name in work.gradients if name in tensors]
    output = operator(**tensors, **work.options)

    def call() -> tuple[np.ndarray, ...]:
        gradients = torch.autograd.grad(output, wanted, grad_output, retain_graph=True)
        return tuple(gradient.numpy() for gradient in gradients)

    return call


def _transformers(
    work: Workload, arrays: dict[str, np.ndarray], threads: int, *, backward: bool
) -> Call:
    """Its function in PyTorch, which is made of grid_sample, and its derivative by autograd."""
    if not isinstance(work, Attention):
        raise Lacking(work.operator)
    try:
        import torch
        from transformers.models.deformable_detr import modeling_deformable_detr
    except ImportError as error:
        raise Unavailable(str(error).splitlines()[0]) from error
    torch.set_num_threads(threads)
    function = modeling_deformable_detr.MultiScaleDeformableAttention().forward
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    grad_output = tensors.pop("grad_output")
    value, locations, weights = (t.requires_grad_(backward) for t in tensors.values())
    shapes = list(work.options["spatial_shapes"])
    sizes = torch.tensor(shapes)

    def output() -> Any:
        return function(value, sizes, shapes, None, locations, weights, 64)

    if not backward:
        return lambda: (output().numpy(),)
    found = output()

    def call() -> tuple[np.ndarray, ...]:
        wanted = (value, locations, weights)
        gradients = torch.autograd.grad(found, wanted, grad_output, retain_graph=True)
        return tuple(gradient.numpy() for gradient in gradients)

    return call


def _gemm(work: Workload, arrays: dict[str, np.ndarray], threads: int, *, backward: bool) -> Call:
    """Weight times columns, by NumPy's BLAS: what no convolution of this kind can leave out.

    The backward has two, for the gradients of the columns and of the weight.
    """
    if not isinstance(work, Convolution):
        raise Lacking(work.operator)
    weight = arrays["weight"].reshape(work.out_channels, -1)
    columns = np.ones((weight.shape[1], work.batch * work.pixels), np.float32)
    if not backward:
        return lambda: (weight @ columns,)
    grad = np.moveaxis(arrays["grad_output"], 1, 0).reshape(work.out_channels, -1)
    return lambda: (weight.T @ grad, grad @ columns.T)


FORWARD: dict[str, Peer] = {
    OURS: partial(_cudeform, backward=False),
    "onnxruntime": engines.onnxruntime,
    "openvino": engines.openvino,
    "torchvision": _torchvision,
    "transformers": partial(_transformers, backward=False),
    GEMM: partial(_gemm, backward=False),
}
BACKWARD: dict[str, Peer] = {
    OURS: partial(_cudeform, backward=True),
    "torchvision": _torchvision_backward,
    "transformers": partial(_transformers, backward=True),
    GEMM: partial(_gemm, backward=True),
}
