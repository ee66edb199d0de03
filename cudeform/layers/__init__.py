"""The papers' blocks on plain arrays: an operator and the branch that learns where it reads.

A block is a frozen value that knows sizes and options and holds no arrays. ``init(rng)`` returns
its parameters, a flat dictionary; ``forward(params, x, ...)`` the result and what the backward
needs; ``backward(params, saved, grad_y)`` the gradients of `x` and of every parameter, by name. The
names are those of the usual checkpoints, and the arrays NumPy's or CuPy's.
"""

from cudeform.layers.attention import MSDeformAttn
from cudeform.layers.deform_conv import DeformConv2d
from cudeform.layers.deform_roi_pool import DeformPSRoiPool, DeformRoiPool
from cudeform.layers.plain import Conv2d, Linear

__all__ = ["Conv2d", "DeformConv2d", "DeformPSRoiPool", "DeformRoiPool", "Linear", "MSDeformAttn"]
