"""Deformable and plain convolution."""

from cudeform.cpu.conv.widening import backward, forward

__all__ = ["backward", "forward"]
