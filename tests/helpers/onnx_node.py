"""One node of ONNX, run by onnxruntime."""

import pytest

__all__ = ["run_onnx"]


def run_onnx(operator, arrays, opset, **attributes):
    """The output of one ONNX node on arrays by name, None for one left out, by onnxruntime."""
    helper = pytest.importorskip("onnx.helper")
    onnxruntime = pytest.importorskip("onnxruntime")
    slots = [name if array is not None else "" for name, array in arrays.items()]
    node = helper.make_node(operator, slots, ["Y"], **attributes)
    arrays = {name: array for name, array in arrays.items() if array is not None}
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in arrays.items()
    ]
    dtype = helper.np_dtype_to_tensor_dtype(next(iter(arrays.values())).dtype)
    output = helper.make_tensor_value_info("Y", dtype, None)
    graph = helper.make_graph([node], "one-node", inputs, [output])
    # An old file format, so that any onnxruntime reads what any onnx writes.
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, arrays)[0]
