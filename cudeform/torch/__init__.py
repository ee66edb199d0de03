"""PyTorch: every operator takes tensors, is differentiable, and can be compiled and exported.

Nothing here has to be imported for that: ``cudeform.deform_conv2d(tensor, ...)`` is enough.
`cudeform.torch.nn` has modules, `cudeform.torch.onnx` the way to ONNX.
"""

import torch

from cudeform import dispatch
from cudeform.torch.patching import Patch, patch
from cudeform.torch.route import call
from cudeform.torch.scripting import refuse

__all__ = ["Patch", "call", "patch"]

dispatch.remember("cudeform.torch", call, torch.Tensor, torch.nn.Parameter)
refuse()
