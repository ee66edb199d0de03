"""Poolings of regions of interest."""

from cudeform.cuda.regions.pooling import backward, forward, units

__all__ = ["backward", "forward", "units"]
