"""Deformable vision operators on arrays: NumPy on the CPU, CuPy on the GPU, nothing to build."""

from cudeform.ops.deform_conv import (
    conv2d,
    conv2d_backward,
    deform_conv2d,
    deform_conv2d_backward,
)
from cudeform.ops.sampling import bilinear_sample, bilinear_sample_backward

__all__ = [
    "bilinear_sample",
    "bilinear_sample_backward",
    "conv2d",
    "conv2d_backward",
    "deform_conv2d",
    "deform_conv2d_backward",
]

__version__ = "0.1.0"
