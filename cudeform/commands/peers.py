"""Other implementations on the CPU, each set up with the same arguments and number of threads.

A peer is a function (workload, arrays, threads) -> call, where call() computes and returns NumPy
arrays: the output, or the five gradients in order. It raises `Unavailable` where it cannot run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cudeform import deform_conv2d, deform_conv2d_backward
from cudeform.commands.workload import GRADIENTS, Workload

__all__ = ["BACKWARD", "DISTRIBUTIONS", "FORWARD", "GEMM", "OURS", "Peer", "Unavailable"]

OURS = "cudeform"
GEMM = "bare GEMM"
DISTRIBUTIONS = ("numpy", "numba", "onnxruntime", "openvino", "torch", "torchvision")

Call = Callable[[], tuple[np.ndarray, ...]]
Peer = Callable[[Workload, dict[str, np.ndarray], int], Call]


class Unavailable(Exception):
    """A peer is not installed or does not work here."""


def _given(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays.items() if name != "grad_output"}


def _cudeform(work: Workload, arrays: dict[str, np.ndarray], threads: int) -> Call:
    given = _given(arrays)
    return lambda: (deform_conv2d(**given, padding=1),)


def _cudeform_backward(work: Workload, arrays: dict[str, np.ndarray], threads: int) -> Call:
    given = {name: array for name, array in arrays.items() if name != "bias"}
    return lambda: tuple(deform_conv2d_backward(**given, padding=1))


def _onnx_model(work: Workload) -> bytes:
    """A model of one DeformConv node."""
    try:
        from onnx import TensorProto, helper
    except ImportError as error:
        raise Unavailable(str(error)) from error
    names = ("X", "W", "offset", "B", "mask")
    shapes = [work.arrays()[name].shape for name in ("input", "weight", "offset", "bias", "mask")]
    node = helper.make_node(
        "DeformConv", list(names), ["Y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]
    )
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(names, shapes, strict=True)
    ]
    out = (work.batch, work.out_channels, work.height, work.width)
    outputs = [helper.make_tensor_value_info("Y", TensorProto.FLOAT, out)]
    graph = helper.make_graph([node], "deform_conv", inputs, outputs)
    opsets = [helper.make_opsetid("", 19)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def _onnxruntime(work: Workload, arrays: dict[str, np.ndarray], threads: int) -> Call:
    try:
        import onnxruntime
    except ImportError as error:
        raise Unavailable(str(error)) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            _onnx_model(work), options, providers=["CPUExecutionProvider"]
        )
    except RuntimeError as error:
        raise Unavailable(str(error)) from error
    names = {"input": "X", "weight": "W", "offset": "offset", "bias": "B", "mask": "mask"}
    feeds = {names[name]: array for name, array in _given(arrays).items()}
    return lambda: tuple(session.run(None, feeds))


def _openvino(work: Workload, arrays: dict[str, np.ndarray], threads: int) -> Call:
    try:
        import openvino
        from openvino import opset8
    except ImportError as error:
        raise Unavailable(str(error)) from error
    order = ("input", "offset", "weight", "mask")
    parameters = [opset8.parameter(arrays[name].shape, np.float32) for name in order]
    image, offset, weight, mask = parameters
    convolution = opset8.deformable_convolution(
        image, offset, weight, [1, 1], [1, 1], [1, 1], [1, 1], mask, bilinear_interpolation_pad=True
    )
    bias = arrays["bias"].reshape(1, -1, 1, 1)
    model = openvino.Model([opset8.add(convolution, bias)], parameters)
    compiled = openvino.Core().compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    )
    request = compiled.create_infer_request()
    feeds = [arrays[name] for name in order]
    return lambda: (request.infer(feeds, share_inputs=True, share_outputs=True)[0],)


def _torch(threads: int) -> tuple[Any, Any]:
    try:
        import torch
        import torchvision

        torch.set_num_threads(threads)
        torch.ops.torchvision.deform_conv2d  # noqa: B018  a wheel may come without its operators
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise Unavailable(str(error).splitlines()[0]) from error
    return torch, torchvision.ops.deform_conv2d


def _torchvision(work: Workload, arrays: dict[str, np.ndarray], threads: int) -> Call:
    torch, operator = _torch(threads)
    tensors = {name: torch.from_numpy(array) for name, array in _given(arrays).items()}

    def call() -> tuple[np.ndarray, ...]:
        with torch.inference_mode():
            return (operator(**tensors, padding=1).numpy(),)

    return call


def _torchvision_backward(work: Workload, arrays: dict[str, np.ndarray], threads: int) -> Call:
    torch, operator = _torch(threads)
    tensors = {
        name: torch.from_numpy(array).requires_grad_() for name, array in _given(arrays).items()
    }
    output = operator(**tensors, padding=1)
    grad_output = torch.from_numpy(arrays["grad_output"])
    wanted = [tensors[name] for name in GRADIENTS]

    def call() -> tuple[np.ndarray, ...]:
        gradients = torch.autograd.grad(output, wanted, grad_output, retain_graph=True)
        return tuple(gradient.numpy() for gradient in gradients)

    return call


def _gemm(work: Workload, arrays: dict[str, np.ndarray], threads: int) -> Call:
    """Weight times columns, by NumPy's BLAS: what no convolution of this kind can leave out."""
    weight = arrays["weight"].reshape(work.out_channels, -1)
    columns = np.ones((weight.shape[1], work.batch * work.pixels), np.float32)
    return lambda: (weight @ columns,)


def _gemm_backward(work: Workload, arrays: dict[str, np.ndarray], threads: int) -> Call:
    """The gradients of the columns and of the weight."""
    weight = arrays["weight"].reshape(work.out_channels, -1)
    columns = np.ones((weight.shape[1], work.batch * work.pixels), np.float32)
    grad = np.moveaxis(arrays["grad_output"], 1, 0).reshape(work.out_channels, -1)
    return lambda: (weight.T @ grad, grad @ columns.T)


FORWARD: dict[str, Peer] = {
    OURS: _cudeform,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "torchvision": _torchvision,
    GEMM: _gemm,
}
BACKWARD: dict[str, Peer] = {
    OURS: _cudeform_backward,
    "torchvision": _torchvision_backward,
    GEMM: _gemm_backward,
}
