"""Deformable vision operators on arrays: NumPy on the CPU, CuPy on the GPU, nothing to build."""

from cudeform import dispatch, imports
from cudeform.converters.offsets import convert_mask, convert_offset, pack_dcnv4, unpack_dcnv4
from cudeform.converters.points import points_from_msda, points_to_msda
from cudeform.converters.regions import convert_roi_offset
from cudeform.ops.aggregation import dcnv3, dcnv3_backward, dcnv4, dcnv4_backward
from cudeform.ops.attention import ms_deform_attn, ms_deform_attn_backward
from cudeform.ops.convolution import (
    conv2d,
    conv2d_backward,
    deform_conv2d,
    deform_conv2d_backward,
)
from cudeform.ops.deform_roi_pool import (
    deform_ps_roi_pool,
    deform_ps_roi_pool_backward,
    deform_roi_pool,
    deform_roi_pool_backward,
)
from cudeform.ops.roi_align import (
    ps_roi_align,
    ps_roi_align_backward,
    roi_align,
    roi_align_backward,
)
from cudeform.ops.roi_pool import (
    ps_roi_pool,
    ps_roi_pool_backward,
    roi_pool,
    roi_pool_backward,
)
from cudeform.ops.sampling import bilinear_sample, bilinear_sample_backward

__all__ = [
    "bilinear_sample",
    "bilinear_sample_backward",
    "conv2d",
    "conv2d_backward",
    "convert_mask",
    "convert_offset",
    "convert_roi_offset",
    "dcnv3",
    "dcnv3_backward",
    "dcnv4",
    "dcnv4_backward",
    "deform_conv2d",
    "deform_conv2d_backward",
    "deform_ps_roi_pool",
    "deform_ps_roi_pool_backward",
    "deform_roi_pool",
    "deform_roi_pool_backward",
    "ms_deform_attn",
    "ms_deform_attn_backward",
    "pack_dcnv4",
    "points_from_msda",
    "points_to_msda",
    "ps_roi_align",
    "ps_roi_align_backward",
    "ps_roi_pool",
    "ps_roi_pool_backward",
    "roi_align",
    "roi_align_backward",
    "roi_pool",
    "roi_pool_backward",
    "unpack_dcnv4",
]

__version__ = "0.1.0"

dispatch.define()
imports.follow("keras", "cudeform.keras")  # saved models name our layers
