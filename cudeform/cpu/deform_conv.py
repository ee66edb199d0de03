"""Deformable and plain convolution."""

from __future__ import annotations

from cudeform.cpu.precision import backward, forward

__all__ = ["backward", "forward"]
