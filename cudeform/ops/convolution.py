"""Deformable convolution v1 and v2, and the plain convolution that its blocks need."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic

from cudeform.dispatch import dispatched
from cudeform.ops.call import gradients, results
from cudeform.types import Array, Border, Layout, NamedTuple, Padding, Pair, Precision


class Conv2dGradients(NamedTuple, Generic[Array]):
    """Gradients by the argument they belong to; None where not needed."""

    input: Array | Any = None
    weight: Array | Any = None
    bias: Array | Any = None


class DeformConv2dGradients(NamedTuple, Generic[Array]):
    """Gradients by the argument they belong to; None where not needed or not given."""

    input: Array | Any = None
    offset: Array | Any = None
    weight: Array | Any = None
    bias: Array | Any = None
    mask: Array | Any = None


@dispatched("input", "offset", "weight", "bias", "mask")
def deform_conv2d(
    input: Array, offset: Array, weight: Array, bias: Array | None = None,
    stride: Pair = 1, padding: Padding = 0, dilation: Pair = 1, mask: Array | None = None,
    *, border: Border = "zeros", layout: Layout = "NCHW", precision: Precision = "ieee",
) -> Array:  # fmt: skip
    r"""Deformable convolution: a convolution whose taps are displaced, each by its own offset.

    Without a mask this is version 1 [1]_, with a mask version 2 [2]_. The order of the arguments
    and the meaning of `offset` and `mask` are torchvision's.

    Parameters
    ----------
    input : array of shape (N, C, H, W)
        Images; of dtype float16, bfloat16, float32 or float64 like the other arrays of the call.
    offset : array of shape (N, 2*offset_groups*kh*kw, Ho, Wo)
        Displacements in pixels of `input`, of its dtype, or of float32 where that has 16 bits.
        Channel ``2*(t*kh*kw + a*kw + b)`` is the y component for tap (a, b) of offset group t, the
        next channel its x component.
    weight : array of shape (O, C/groups, kh, kw)
        The filters, in this order of axes for both layouts.
    bias : array of shape (O,), optional
    stride, dilation : int or (int, int)
        In pixels, one integer for both axes or (y, x).
    padding : int, (int, int) or ((int, int), (int, int))
        In pixels, for all sides, (y, x), or ((top, bottom), (left, right)).
    mask : array of shape (N, offset_groups*kh*kw, Ho, Wo), optional
        A factor for each tap. It is used as given: a network passes its sigmoid.
    border : {"zeros", "clamp"}
        What a point near or beyond the edge reads, see :doc:`/conventions`.
    layout : {"NCHW", "NHWC"}
        Where the channels of `input`, `offset`, `mask` and the result are; "NHWC" is not copied.
    precision : {"ieee", "tf32"}
        How a GPU multiplies float32 matrices: in full, or with tensor cores and 10-bit mantissas.

    Returns
    -------
    array of shape (N, O, Ho, Wo)
        ``Ho = (H + top + bottom - dilation*(kh - 1) - 1) // stride + 1``, and Wo likewise.

    %(raises)s

    See Also
    --------
    deform_conv2d_backward : the gradients.
    convert_offset : offsets from the layouts of other libraries.

    Notes
    -----
    With S the bilinear sample of channel c, s, p and d stride, padding and dilation, g(o) the
    channels of o's group and t the offset group of channel c, for every image:

    .. math:: y_{o,i,j} &= b_o + \sum_{c \in g(o)} \sum_{a,b} w_{o,c,a,b} m_{t,a,b,i,j} S_c(u, v) \\
        u &= i s_y - p_y + a d_y + \Delta y_{t,a,b,i,j} \\
        v &= j s_x - p_x + b d_x + \Delta x_{t,a,b,i,j}

    Coordinates and sums are float32 for the two 16-bit types, and the result is rounded once. An
    offset is added to whole coordinates without losing a bit, however large the image; one that is
    NaN or infinite reads 0. Equal arguments give equal bytes, whatever the number of threads.

    %(deformable_papers)s

    %(examples)s

    One tap that reads half a pixel to the right; beyond the last column lie zeros:

    >>> image = np.arange(8.0).reshape(1, 1, 2, 4)
    >>> weight = np.ones((1, 1, 1, 1))
    >>> offset = np.zeros((1, 2, 2, 4))
    >>> offset[:, 1] = 0.5
    >>> cudeform.deform_conv2d(image, offset, weight)[0, 0]
    array([[0.5, 1.5, 2.5, 1.5],
           [4.5, 5.5, 6.5, 3.5]])
    """
    return results("deform_conv2d", locals())[0]


@dispatched("grad_output", "input", "offset", "weight", "mask")
def deform_conv2d_backward(
    grad_output: Array, input: Array, offset: Array, weight: Array,
    stride: Pair = 1, padding: Padding = 0, dilation: Pair = 1, mask: Array | None = None,
    *, needs: Iterable[str] | None = None, border: Border = "zeros", layout: Layout = "NCHW",
    precision: Precision = "ieee",
) -> DeformConv2dGradients[Array]:  # fmt: skip
    """Gradients of `deform_conv2d`.

    %(backward)s

    Notes
    -----
    The gradients are the exact derivative wherever there is one. Where a point lies on a pixel
    centre the derivative jumps, and the gradient of `offset` is the one to the right and below.
    Every sum has a fixed order: no atomic additions, equal bytes in every run.

    %(examples)s

    How the four samples of the first row change when they move along x:

    >>> image = np.arange(8.0).reshape(1, 1, 2, 4)
    >>> offset = np.full((1, 2, 2, 4), 0.5)
    >>> offset[:, 0] = 0
    >>> weight, ones = np.ones((1, 1, 1, 1)), np.ones((1, 1, 2, 4))
    >>> gradients = cudeform.deform_conv2d_backward(ones, image, offset, weight, needs=["offset"])
    >>> gradients.offset[0, 1, 0]
    array([ 1.,  1.,  1., -3.])
    """
    return gradients("deform_conv2d_backward", DeformConv2dGradients, locals())


@dispatched("input", "weight", "bias")
def conv2d(
    input: Array, weight: Array, bias: Array | None = None,
    stride: Pair = 1, padding: Padding = 0, dilation: Pair = 1,
    *, layout: Layout = "NCHW", precision: Precision = "ieee",
) -> Array:  # fmt: skip
    """Convolution without offsets, for the layers that predict them.

    Parameters
    ----------
    input, weight, bias, stride, padding, dilation, layout, precision
        As in `deform_conv2d`.

    Returns
    -------
    array of shape (N, O, Ho, Wo)

    %(raises)s

    %(examples)s
    >>> image = np.arange(6.0).reshape(1, 1, 2, 3)
    >>> cudeform.conv2d(image, np.ones((1, 1, 1, 2)))[0, 0]
    array([[1., 3.],
           [7., 9.]])
    """
    return results("conv2d", locals())[0]


@dispatched("grad_output", "input", "weight")
def conv2d_backward(
    grad_output: Array, input: Array, weight: Array,
    stride: Pair = 1, padding: Padding = 0, dilation: Pair = 1,
    *, needs: Iterable[str] | None = None, layout: Layout = "NCHW", precision: Precision = "ieee",
) -> Conv2dGradients[Array]:  # fmt: skip
    """Gradients of `conv2d`.

    %(backward)s
    """
    return gradients("conv2d_backward", Conv2dGradients, locals())
