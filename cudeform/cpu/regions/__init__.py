"""Poolings of regions of interest."""

from cudeform.cpu.regions.gradients import backward
from cudeform.cpu.regions.pool import forward

__all__ = ["STRIDED", "backward", "forward"]

STRIDED = ("grad_output", "input", "offset", "mask", "argmax")  # need not be contiguous
