"""Poolings of regions of interest."""

from cudeform.cpu.regions.pool import backward, forward

__all__ = ["STRIDED", "backward", "forward"]

STRIDED = ("input",)  # need not be contiguous
