"""Poolings of regions of interest."""

from cudeform.cpu.regions.pool import backward, forward

__all__ = ["backward", "forward"]
