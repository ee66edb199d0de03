"""Deformable and plain convolution."""

from cudeform.cpu.conv.widening import STRIDED, backward, forward

__all__ = ["STRIDED", "backward", "forward"]
