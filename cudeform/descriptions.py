"""What several docstrings share: a line `%(bins)s` in one of them stands for what is said here.

What is said may have such lines, too, and in braces what follows from a function: `{forward}` is
the operator whose backward it is, `{plain}` that which is not position-sensitive. `_of_backward`
has the others: `%(backward)s` says of any gradients what all of them say.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any, TypeVar, get_args, get_origin

_Described = TypeVar("_Described", bound=Callable[..., Any])

_SHARED = {
    "examples": """\
Examples
--------
>>> {imports}""",
    "backward": """\
Parameters
----------
grad_output : {result}
    The gradient of a scalar with respect to the result of the forward.
{given}
needs : iterable of str, optional
    Names of the gradients to compute, by default all; the work for the others is not done.

Returns
-------
{gradients}
    {fields}

Raises
------
TypeError, ValueError
    As `{forward}`, and for {refused}.""",
    "on_pixel_centres": """\
Notes
-----
Where a point lies on a pixel centre, its gradient is the derivative to the right and below.""",
    "maps_and_boxes": """\
input : array of shape (N, C, H, W)
    Feature maps, of dtype float16, bfloat16, float32 or float64.
boxes : array of shape (R, 5), or list of N arrays of shape (L, 4)
    Rows (image, x1, y1, x2, y2), or for each image rows (x1, y1, x2, y2), in the coordinates
    of the image; of the dtype of `input`, or of float32 where that has 16 bits. An image that
    does not exist is an error; on a GPU all values of its region are NaN, without gradients.""",
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
    "raises": """\
Raises
------
TypeError
    An array or an option of the wrong kind or dtype, or arrays that differ in kind, device or
    dtype.
ValueError
    A shape, a value or an option that does not fit. Both say what was expected, before any
    work.""",
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
    "output_size": """\
output_size : int or (int, int)
    Bins (ph, pw) along y and x.""",
    "bins": """\
%(output_size)s
spatial_scale : float
    Pixels of `input` per unit of `boxes`.""",
    "sampling_ratio": """\
sampling_ratio : int
    Samples of a bin along each axis, at most 32768; 0 or -1: as many as the bin has pixels,
    rounded up.""",
    "aggregate": """\
Returns
-------
array of shape (N, Ho, Wo, G*Cg)
    ``Ho = (H + 2*padding - dilation*(kh - 1) - 1) // stride + 1``, and Wo likewise.

%(raises)s""",
    "score_maps": """\
input : array of shape (N, C*ph*pw, H, W)
    Score maps; bin (i, j) of output channel c reads channel (c*ph + i)*pw + j.""",
    "score_bins": """\
Returns
-------
array of shape (R, C, ph, pw)

Raises
------
TypeError, ValueError
    As `{plain}`, and for a number of channels that ph*pw does not divide.""",
    "channels_and_kernel": """\
in_channels, out_channels : int
kernel_size, stride, padding, dilation : int or (int, int)
    As in `cudeform.conv2d`, the kernel's size as (height, width).
groups : int
    Of the channels, which are convolved apart.""",
    "grid_of_layer": """\
channels : int
    Channels C of inputs and outputs.
kernel_size : int or (int, int)
    (kh, kw) in taps.
stride, pad, dilation : int or (int, int)
    In pixels. They have to leave the size as it is: the branch has an offset for each pixel of
    the input.
group : int
    Groups G of channels.
offset_scale, remove_center
    As in `cudeform.{operator}`.""",
    "branch_rate": """\
branch_rate : float
    The branch's learning rate as a part of the rest's, for `rate_factors`: 0.1 in version 2.""",
    "with_bias": """\
bias : bool
    Whether to add a number to each output channel.""",
    "layout_of_torchvision": """\
layout : {"NCHW", "NHWC"}
    Where the channels are on the "torchvision" side.""",
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
_NAME = re.compile(r"\{(forward|plain|imports|operator|result|given|gradients|fields|refused)\}")
_ARGMAX = """\
argmax : array, optional
    The second result of the forward with `return_argmax`; without, it is computed once more."""
_RESULT = re.compile(r"^ *Returns\n *-+\n *(.+)$", re.MULTILINE)


def _of_backward(function: Callable[..., Any], forward: str) -> dict[str, str]:
    """What the signature of a backward says, beside the docstring of its forward."""
    signature = inspect.signature(function, eval_str=True)
    parameters, gradients = signature.parameters, get_origin(signature.return_annotation)
    own = ("grad_output", "argmax", "needs")
    names = textwrap.wrap(", ".join(name for name in parameters if name not in own), 96)
    given = [f"{line.rstrip(',')}\n    As they were given to `{forward}`." for line in names]
    *first, last = fields = gradients._fields
    named = f"fields {', '.join(first)} and {last}, each" if first else f"field {last},"
    said = f"A named tuple with the {named} of the shape and the dtype of its argument; None where"
    said += " not needed"
    refused = ["an unknown name in `needs`"]
    types = [parameters[name].annotation for name in fields if name in parameters]
    if any(type(None) in get_args(annotation) for annotation in types):
        said += " or not given"
        refused.append("one that was not given")
    if "argmax" in parameters:
        given.append(_ARGMAX)
        refused.append("an `argmax` that does not fit")
    return {
        "result": _RESULT.search(function.__globals__[forward].__doc__)[1],
        "given": "\n".join(given),
        "gradients": gradients.__name__,
        "fields": textwrap.fill(said + ".", 92, subsequent_indent="    "),
        "refused": " or ".join(refused),
    }


def described(function: _Described) -> _Described:
    """Fill in what the docstring of a function or class shares with others."""
    if function.__doc__:  # none under `python -OO`
        forward = function.__name__.removesuffix("_backward")
        names = {"forward": forward, "plain": forward.removeprefix("ps_")}
        names["imports"] = "import numpy as np\n>>> import cudeform"
        if isinstance(function, type):
            names["operator"] = forward.lower()
            public = function.__module__.rpartition(".")[0]
            library = "torch" if ".torch." in public else "numpy as np"
            names["imports"] = f"import {library}\n>>> from {public} import {forward}"
        if forward != function.__name__:
            names |= _of_backward(function, forward)

        def shared(field: re.Match[str]) -> str:
            text = _FIELD.sub(shared, _NAME.sub(lambda name: names[name[1]], _SHARED[field[2]]))
            return textwrap.indent(text, field[1])

        function.__doc__ = _FIELD.sub(shared, function.__doc__)
    return function
