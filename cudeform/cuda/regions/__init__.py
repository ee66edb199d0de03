"""Poolings of regions of interest."""

from cudeform.cuda.regions.pooling import backward, forward
from cudeform.cuda.regions.rows import units

__all__ = ["backward", "forward", "units"]
