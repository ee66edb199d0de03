"""What several docstrings share: a line `%(boxes)s` in one of them stands for what is said here.

What is said may have such lines, too. `{forward}` is the operator whose backward says it, `{plain}`
that which is not position-sensitive, and `{gradients}` what the backward returns.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["described"]

_Described = TypeVar("_Described", bound=Callable[..., Any])

_SHARED = {
    "feature_maps": """\
input : array of shape (N, C, H, W)
    Feature maps, of dtype float16, bfloat16, float32 or float64.""",
    "pixels_channels_last": """\
input : array of shape (N, H, W, G*Cg)
    Images, channels last, of G groups of channels; of dtype float16, bfloat16, float32 or
    float64.""",
    "grid_of_points": """\
kernel_size : int or (int, int)
    (kh, kw) in taps.
stride, padding, dilation : int or (int, int)
    In pixels, one integer for both axes or (y, x).
groups : int
    G, which divides the channels.
offset_scale : float
    A factor above 0 of the offsets and of the distance of each tap from the kernel's centre.
remove_center : bool
    Whether the middle tap of a kernel of odd sizes is no point.""",
    "raises_for_aggregation": """\
Raises
------
TypeError, ValueError
    An array or option of the wrong kind, dtype, device, shape or value, before any work.""",
    "internimage_paper": """\
References
----------
.. [1] Wang, W. et al., "InternImage: Exploring Large-Scale Vision Foundation Models with
   Deformable Convolutions", CVPR 2023, arXiv:2211.05778.""",
    "dcnv4_paper": """\
References
----------
.. [1] Xiong, Y. et al., "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator
   for Vision Applications", CVPR 2024, arXiv:2401.06197.""",
    "boxes": """\
boxes : array of shape (R, 5), or list of N arrays of shape (L, 4)
    Rows (image, x1, y1, x2, y2), or for each image rows (x1, y1, x2, y2), in the coordinates
    of the image; of the dtype of `input`, or of float32 where that has 16 bits.""",
    "output_size": """\
output_size : int or (int, int)
    Bins (ph, pw) along y and x.""",
    "spatial_scale": """\
spatial_scale : float
    Pixels of `input` per unit of `boxes`.""",
    "sampling_ratio": """\
sampling_ratio : int
    Samples of a bin along each axis, at most 32768; 0 or -1: as many as the bin has pixels,
    rounded up.""",
    "grid_as_given": """\
kernel_size, stride, padding, dilation, groups
    As they were given to `{forward}`.
%(needs)s""",
    "grad_of_aggregate": """\
grad_output : array of shape (N, Ho, Wo, G*Cg)
    The gradient of a scalar with respect to the result of the forward.""",
    "aggregate": """\
Returns
-------
array of shape (N, Ho, Wo, G*Cg)
    ``Ho = (H + 2*padding - dilation*(kh - 1) - 1) // stride + 1``, and Wo likewise.

%(raises_for_aggregation)s""",
    "score_maps": """\
input : array of shape (N, C*ph*pw, H, W)
    Score maps; bin (i, j) of output channel c reads channel (c*ph + i)*pw + j.""",
    "grad_of_bins": """\
grad_output : array of shape (R, C, ph, pw)
    The gradient of a scalar with respect to the result of the forward.""",
    "needs": """\
needs : iterable of str, optional
    Names of the gradients to compute, by default all; the work for the others is not done.""",
    "needs_input": """\
needs : iterable of str, optional
    Names of the gradients to compute: "input", the default, or none.""",
    "score_bins": """\
Returns
-------
array of shape (R, C, ph, pw)

Raises
------
TypeError, ValueError
    As `{plain}`, and for a number of channels that ph*pw does not divide.""",
    "gradient_of_input": """\
Returns
-------
{gradients}
    A named tuple with the field input.""",
    "gradients_of_bins": """\
Returns
-------
{gradients}
    A named tuple with the fields input, offset and mask; None where not needed or not given.

%(raises_for_absent)s""",
    "raises_in_backward": """\
Raises
------
TypeError, ValueError
    As `{forward}`, and for an unknown name in `needs`.""",
    "raises_with_argmax": """\
Raises
------
TypeError, ValueError
    As `{forward}`, and for an unknown name in `needs` or an `argmax` that does not fit.""",
    "raises_for_absent": """\
Raises
------
TypeError, ValueError
    As `{forward}`, and for `needs` with an unknown name or one that was not given.""",
    "raises_for_regions": """\
Raises
------
TypeError
    An array of an unknown kind or dtype, or arrays that differ in kind, device or dtype.
ValueError
    A shape, an option or an image index that does not fit; the message says what was
    expected.""",
    "channels_and_kernel": """\
in_channels, out_channels : int
kernel_size, stride, padding, dilation : int or (int, int)
    As in `cudeform.conv2d`, the kernel's size as (height, width).
groups : int
    Of the channels, which are convolved apart.""",
    "with_bias": """\
bias : bool
    Whether to add a number to each output channel.""",
    "layout_of_torchvision": """\
layout : {"NCHW", "NHWC"}
    Where the channels are on the "torchvision" side.""",
    "raises_for_converters": """\
Raises
------
TypeError, ValueError
    An array or option of the wrong kind, dtype, shape or value.""",
    "deformable_paper": """\
References
----------
.. [1] Dai, J. et al., "Deformable Convolutional Networks", ICCV 2017, arXiv:1703.06211.""",
    "deformable_papers": """\
References
----------
.. [1] Dai, J. et al., "Deformable Convolutional Networks", ICCV 2017, arXiv:1703.06211.
.. [2] Zhu, X. et al., "Deformable ConvNets v2: More Deformable, Better Results", CVPR 2019,
   arXiv:1811.11168.""",
    "deformable_detr_paper": """\
References
----------
.. [1] Zhu, X. et al., "Deformable DETR: Deformable Transformers for End-to-End Object
   Detection", ICLR 2021, arXiv:2010.04159.""",
    "rfcn_paper": """\
References
----------
.. [1] Dai, J. et al., "R-FCN: Object Detection via Region-based Fully Convolutional
   Networks", NeurIPS 2016, arXiv:1605.06409.""",
}

_FIELD = re.compile(r"^( *)%\((\w+)\)s$", re.MULTILINE)
_NAME = re.compile(r"\{(forward|plain|gradients)\}")


def described(function: _Described) -> _Described:
    """Fill in what the docstring of a function or class shares with others."""
    if function.__doc__:  # none under `python -OO`
        forward = function.__name__.removesuffix("_backward")
        names = {"forward": forward, "plain": forward.removeprefix("ps_")}
        names["gradients"] = str(function.__annotations__.get("return")).partition("[")[0]

        def shared(field: re.Match[str]) -> str:
            text = _NAME.sub(lambda name: names[name[1]], _SHARED[field[2]])
            return textwrap.indent(_FIELD.sub(shared, text), field[1])

        function.__doc__ = _FIELD.sub(shared, function.__doc__)
    return function
