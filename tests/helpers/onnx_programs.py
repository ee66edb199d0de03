"""Modules of torch as ONNX has them, and run by onnxruntime."""

import pytest
import torch

from cudeform.torch import onnx

__all__ = ["exported", "run"]


def exported(module, arrays, opset=19, **options):
    """The model; `options` are those of `translations`, and `dynamic_shapes`."""
    pytest.importorskip("onnxscript")
    more = {"dynamic_shapes": options.pop("dynamic_shapes", None)}
    program = torch.onnx.export(
        module.eval(),
        arrays,
        dynamo=True,
        opset_version=opset,
        custom_translation_table=onnx.translations(opset, **options),
        verbose=False,
        **more,
    )
    return program.model_proto


def run(model, *arrays):
    """What onnxruntime computes: the results in a list, or the only one."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [entry.name for entry in session.get_inputs()]
    found = session.run(None, {n: a.numpy() for n, a in zip(names, arrays, strict=True)})
    return found if len(found) > 1 else found[0]
