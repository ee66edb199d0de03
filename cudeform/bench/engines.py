"""onnxruntime and OpenVINO on the CPU: each a model of one node, forward only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cudeform.bench.workload import BINS, SCALE, Convolution, Workload

Call = Callable[[], tuple[np.ndarray, ...]]


class Unavailable(ImportError):
    """A peer does not work here: as good as not installed."""


class Lacking(Exception):
    """A peer does not have the operator."""


def onnxruntime(work: Workload, arrays: dict[str, np.ndarray], threads: int) -> Call:
    kind, opset, feeds, attributes = _onnx_node(work, arrays)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            _onnx_model(kind, opset, feeds, attributes),
            options,
            providers=["CPUExecutionProvider"],
        )
    except RuntimeError as error:
        raise Unavailable(str(error)) from error
    return lambda: tuple(session.run(None, feeds))


def _onnx_node(
    work: Workload, arrays: dict[str, np.ndarray]
) -> tuple[str, int, dict[str, np.ndarray], dict[str, Any]]:
    """Type, opset, inputs in order and attributes of the node that computes this."""
    if isinstance(work, Convolution):
        names = {"X": "input", "W": "weight", "offset": "offset", "B": "bias", "mask": "mask"}
        feeds = {name: arrays[ours] for name, ours in names.items()}
        return "DeformConv", 19, feeds, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    if "boxes" not in arrays:
        raise Lacking(work.operator)
    image, boxes = arrays["input"], arrays["boxes"]
    if work.operator == "roi_pool":
        attributes = {"pooled_shape": [BINS, BINS], "spatial_scale": SCALE}
        return "MaxRoiPool", 16, {"X": image, "rois": boxes}, attributes
    if work.operator == "roi_align":
        feeds = {"X": image, "rois": boxes[:, 1:].copy(), "batch": boxes[:, 0].astype(np.int64)}
        attributes = {
            "coordinate_transformation_mode": "output_half_pixel",
            "output_height": BINS,
            "output_width": BINS,
            "sampling_ratio": work.options.get("sampling_ratio", 0),
            "spatial_scale": SCALE,
        }
        return "RoiAlign", 16, feeds, attributes
    raise Lacking(work.operator)


def _onnx_model(
    kind: str, opset: int, feeds: dict[str, np.ndarray], attributes: dict[str, Any]
) -> bytes:
    from onnx import TensorProto, helper

    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in feeds.items()
    ]
    outputs = [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None] * 4)]
    node = helper.make_node(kind, list(feeds), ["Y"], **attributes)
    graph = helper.make_graph([node], kind, inputs, outputs)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def openvino(work: Workload, arrays: dict[str, np.ndarray], threads: int) -> Call:
    feeds = _openvino_feeds(work, arrays)
    import openvino
    from openvino import opset9

    parameters = [opset9.parameter(array.shape, array.dtype) for array in feeds]
    model = openvino.Model([_openvino_node(opset9, work, arrays, parameters)], parameters)
    compiled = openvino.Core().compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    )
    request = compiled.create_infer_request()
    return lambda: (request.infer(feeds, share_inputs=True, share_outputs=True)[0],)


def _openvino_feeds(work: Workload, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The arrays that change from call to call."""
    if isinstance(work, Convolution):
        return [arrays[name] for name in ("input", "offset", "weight", "mask")]
    if "boxes" not in arrays:
        raise Lacking(work.operator)
    image, boxes = arrays["input"], arrays["boxes"]
    if work.operator == "roi_align":
        return [image, boxes[:, 1:].copy(), boxes[:, 0].astype(np.int32)]
    if work.operator == "deform_ps_roi_pool":
        return [image, boxes, arrays["offset"]]
    if work.options.get("convention") == "msra":
        return [image, boxes]
    raise Lacking(work.operator)


def _openvino_node(
    opset: Any, work: Workload, arrays: dict[str, np.ndarray], parameters: list[Any]
) -> Any:
    if isinstance(work, Convolution):
        image, offset, weight, mask = parameters
        ones = [[1, 1]] * 4  # stride, padding on two sides, dilation
        convolution = opset.deformable_convolution(
            image, offset, weight, *ones, mask, bilinear_interpolation_pad=True
        )
        return opset.add(convolution, arrays["bias"].reshape(1, -1, 1, 1))
    if work.operator == "roi_align":
        ratio = work.options.get("sampling_ratio", 0)
        return opset.roi_align(*parameters, BINS, BINS, ratio, SCALE, "avg", "asymmetric")
    dim = work.options.get("output_dim", arrays["grad_output"].shape[1])
    if work.operator == "ps_roi_pool":
        return opset.psroi_pooling(*parameters, dim, BINS, SCALE, 1, 1, "average")
    image, boxes, offset = parameters
    return opset.deformable_psroi_pooling(
        image, boxes, dim, SCALE, BINS, "bilinear_deformable", 4, 4, 0.1, BINS, offset
    )
