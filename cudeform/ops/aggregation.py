"""DCNv3 and DCNv4: sums of samples around each pixel of an output, without a weight to multiply."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic

from cudeform.dispatch import dispatched
from cudeform.ops.call import gradients, results
from cudeform.types import Array, NamedTuple, Pair


class DCNv3Gradients(NamedTuple, Generic[Array]):
    """Gradients by the argument they belong to; None where not needed."""

    input: Array | Any = None
    offset: Array | Any = None
    mask: Array | Any = None


@dispatched("input", "offset", "mask")
def dcnv3(
    input: Array, offset: Array, mask: Array,
    kernel_size: Pair, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1, groups: int = 1,
    *, offset_scale: float = 1.0, remove_center: bool = False, softmax: bool = False,
) -> Array:  # fmt: skip
    r"""The aggregation of DCNv3 [1]_: weighted sums of samples around each pixel of the output.

    It is a deformable convolution without a weight: what a channel reads is the same for all
    channels of its group, and only the mask tells the points apart.

    Parameters
    ----------
    %(pixels_channels_last)s
    offset : array of shape (N, Ho, Wo, 2*G*P)
        For each of G groups and P points (x, y), in units of `offset_scale` pixels; of the dtype
        of `input`, or of float32 where that has 16 bits. P is kh*kw, or one less with
        `remove_center`, and points are numbered down the columns of the kernel.
    mask : array of shape (N, Ho, Wo, G*P)
        A factor for each point, of a dtype as `offset` may have. DCNv3's module passes a softmax
        over the points of a group; see `softmax`.
    %(grid_of_points)s
    softmax : bool
        Whether `mask` has logits, of which the softmax over the P points of a group is taken.

    %(aggregate)s

    See Also
    --------
    dcnv3_backward : the gradients.
    dcnv4 : the same with offset and mask in one array.
    convert_offset : offsets for `deform_conv2d`.

    Notes
    -----
    With S the bilinear sample of channel c, which is 0 beyond the border, g its group, s, p, d and
    k stride, padding, dilation and kernel size, σ the `offset_scale` and
    :math:`z = \lfloor d (k - 1) / 2 \rfloor` the centre of the kernel, for every image:

    .. math:: y_{i,j,c} &= \sum_{a,b} m_{i,j,g,a,b} \, S_c(u, v) \\
        u &= i s_y - p_y + z_y + σ (b d_y - z_y + \Delta y_{i,j,g,a,b}) \\
        v &= j s_x - p_x + z_x + σ (a d_x - z_x + \Delta x_{i,j,g,a,b})

    for a along x and, within, b along y. Coordinates and sums are float32 for the two 16-bit types,
    and the result is rounded once. An offset that is NaN or infinite reads 0. Equal arguments give
    equal bytes.

    %(internimage_paper)s

    %(examples)s

    One group of two channels and a kernel of one tap, which reads half a pixel to the right:

    >>> image = np.arange(8.0).reshape(1, 1, 4, 2)
    >>> offset = np.zeros((1, 1, 4, 2))
    >>> offset[..., 0] = 0.5
    >>> cudeform.dcnv3(image, offset, np.ones((1, 1, 4, 1)), 1)[0, 0]
    array([[1. , 2. ],
           [3. , 4. ],
           [5. , 6. ],
           [3. , 3.5]])
    """
    return results("dcnv3", locals())[0]


@dispatched("grad_output", "input", "offset", "mask")
def dcnv3_backward(
    grad_output: Array, input: Array, offset: Array, mask: Array,
    kernel_size: Pair, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1, groups: int = 1,
    *, needs: Iterable[str] | None = None, offset_scale: float = 1.0, remove_center: bool = False,
    softmax: bool = False,
) -> DCNv3Gradients[Array]:  # fmt: skip
    """Gradients of `dcnv3`.

    %(backward)s

    %(on_pixel_centres)s

    %(examples)s
    >>> image = np.array([1.0, 2.0, 4.0]).reshape(1, 1, 3, 1)
    >>> offset = np.zeros((1, 1, 3, 2))
    >>> mask = np.ones((1, 1, 3, 1))
    >>> found = cudeform.dcnv3_backward(np.ones((1, 1, 3, 1)), image, offset, mask, 1)
    >>> found.mask.ravel()
    array([1., 2., 4.])
    """
    return gradients("dcnv3_backward", DCNv3Gradients, locals())


class DCNv4Gradients(NamedTuple, Generic[Array]):
    """Gradients by the argument they belong to; None where not needed."""

    input: Array | Any = None
    offset_mask: Array | Any = None


@dispatched("input", "offset_mask")
def dcnv4(
    input: Array, offset_mask: Array,
    kernel_size: Pair, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1, groups: int = 1,
    *, offset_scale: float = 1.0, remove_center: bool = False,
) -> Array:  # fmt: skip
    """The aggregation of DCNv4 [1]_: that of DCNv3, with offset and mask in one array.

    Parameters
    ----------
    %(pixels_channels_last)s
    offset_mask : array of shape (N, Ho, Wo, channels)
        For each of G groups the offsets (x, y) of its P points, in units of `offset_scale` pixels,
        then their factors; behind the last group anything, up to a multiple of 8 channels. Of the
        dtype of `input`, or of float32 where that has 16 bits. P is kh*kw, or one less with
        `remove_center`, and points are numbered down the columns of the kernel.
    %(grid_of_points)s

    %(aggregate)s

    See Also
    --------
    dcnv4_backward : the gradients.
    dcnv3 : the equation; DCNv4 takes no softmax of its factors.
    pack_dcnv4 : `offset_mask` from an offset and a mask of DCNv3.

    Notes
    -----
    DCNv4's own operator has kernels of 3 x 3 and a stride of 1 alone; this one has any.

    %(dcnv4_paper)s

    %(examples)s

    A kernel of one tap, which reads half a pixel to the right and has a factor of 2:

    >>> image = np.arange(4.0).reshape(1, 1, 4, 1)
    >>> offset_mask = np.zeros((1, 1, 4, 8))
    >>> offset_mask[..., :3] = 0.5, 0, 2
    >>> cudeform.dcnv4(image, offset_mask, 1).ravel()
    array([1., 3., 5., 3.])
    """
    return results("dcnv4", locals())[0]


@dispatched("grad_output", "input", "offset_mask")
def dcnv4_backward(
    grad_output: Array, input: Array, offset_mask: Array,
    kernel_size: Pair, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1, groups: int = 1,
    *, needs: Iterable[str] | None = None, offset_scale: float = 1.0, remove_center: bool = False,
) -> DCNv4Gradients[Array]:  # fmt: skip
    """Gradients of `dcnv4`.

    %(backward)s

    %(on_pixel_centres)s

    Behind the last group the gradient of `offset_mask` is 0.

    %(examples)s
    >>> image = np.array([1.0, 2.0, 4.0]).reshape(1, 1, 3, 1)
    >>> offset_mask = np.zeros((1, 1, 3, 8))
    >>> offset_mask[..., 2] = 1
    >>> found = cudeform.dcnv4_backward(np.ones((1, 1, 3, 1)), image, offset_mask, 1)
    >>> found.offset_mask[0, 0, :, 2]
    array([1., 2., 4.])
    """
    return gradients("dcnv4_backward", DCNv4Gradients, locals())
