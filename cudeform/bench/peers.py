"""Implementations on the CPU, each set up with the same arguments and number of threads.

A peer is a function (workload, arrays, threads) -> call, where call() computes and returns NumPy
arrays: the output, or the gradients in order. It raises `Lacking` where the library does not have
the operator, and an ImportError where it is not installed or does not work.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

import cudeform
from cudeform.bench import engines, torch_peers
from cudeform.bench.engines import Call, Lacking
from cudeform.bench.workload import Convolution, Workload

__all__ = ["BACKWARD", "DISTRIBUTIONS", "FORWARD", "GEMM", "OURS", "Lacking", "Peer"]

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
    "torch-ms-deform-attn",
    "deformops",
    "kernels",
)

Arrays = dict[str, np.ndarray]
Peer = Callable[[Workload, Arrays, int], Call]


def _cudeform(work: Workload, arrays: Arrays, threads: int, *, backward: bool) -> Call:
    return work.call(arrays, backward)


def _deform_conv2d(work: Workload, arrays: Arrays, threads: int, *, backward: bool) -> Call:
    """DCNv3 by our own convolution, whose weight is ones and has one channel in a group."""
    if work.operator != "dcnv3":
        raise Lacking(work.operator)
    grid = {"kernel_size": 3, "layout": "NHWC"}
    there = {"source": "dcnv3", "target": "torchvision", **grid}
    back = {"source": "torchvision", "target": "dcnv3", **grid}
    geometry = {"padding": 1, "layout": "NHWC"}
    weight = np.ones((work.channels, 1, 3, 3), np.float32)
    rows = (*arrays["mask"].shape[:3], work.groups, 9)

    def layer() -> tuple[np.ndarray, Arrays]:
        powers = np.exp(arrays["mask"].reshape(rows))
        shares = powers / powers.sum(-1, keepdims=True)
        offset = cudeform.convert_offset(arrays["offset"], **there)
        mask = cudeform.convert_mask(shares.reshape(arrays["mask"].shape), **there)
        given = {"input": arrays["input"], "offset": offset, "weight": weight, "mask": mask}
        return shares, given

    def gradients() -> tuple[np.ndarray, ...]:
        shares, given = layer()
        needs = ("input", "offset", "mask")
        found = cudeform.deform_conv2d_backward(
            arrays["grad_output"], **given, **geometry, needs=needs
        )
        of_shares = cudeform.convert_mask(found.mask, **back).reshape(rows)
        of_mask = shares * (of_shares - (shares * of_shares).sum(-1, keepdims=True))
        of_offset = cudeform.convert_offset(found.offset, **back)
        return found.input, of_offset, of_mask.reshape(arrays["mask"].shape)

    if backward:
        return gradients
    return lambda: (cudeform.deform_conv2d(**layer()[1], **geometry),)


def _gemm(work: Workload, arrays: Arrays, threads: int, *, backward: bool) -> Call:
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


def _both(peer: Callable[..., Call]) -> dict[bool, Peer]:
    return {backward: partial(peer, backward=backward) for backward in (False, True)}


_BOTH = {
    OURS: _both(_cudeform),
    "torchvision": _both(torch_peers.torchvision),
    "transformers": _both(torch_peers.transformers),
    "torch-ms-deform-attn": _both(torch_peers.torch_ms_deform_attn),
    "grid_sample": _both(torch_peers.grid_sample),
    "deform_conv2d": _both(_deform_conv2d),
    GEMM: _both(_gemm),
}
FORWARD: dict[str, Peer] = {
    OURS: _BOTH[OURS][False],
    "onnxruntime": engines.onnxruntime,
    "openvino": engines.openvino,
    **{name: peer[False] for name, peer in _BOTH.items()},
}
BACKWARD: dict[str, Peer] = {name: peer[True] for name, peer in _BOTH.items()}
