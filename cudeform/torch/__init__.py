"""PyTorch: every operator takes tensors, is differentiable, and can be compiled and exported."""

from cudeform.torch.calls import call

__all__ = ["call"]
