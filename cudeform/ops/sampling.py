"""Bilinear sampling at given points: the papers' equations 3 and 4 as an operator of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic

from cudeform.dispatch import dispatched
from cudeform.ops.call import gradients, results
from cudeform.types import Array, Border, Layout, NamedTuple


class BilinearSampleGradients(NamedTuple, Generic[Array]):
    """Gradients by the argument they belong to; None where not needed."""

    input: Array | Any = None
    points: Array | Any = None


@dispatched("input", "points")
def bilinear_sample(
    input: Array, points: Array, *, border: Border = "zeros", layout: Layout = "NCHW"
) -> Array:
    r"""Bilinear samples of images at given points: equations 3 and 4 of [1]_.

    Parameters
    ----------
    input : array of shape (N, C, H, W)
        Images, of dtype float16, bfloat16, float32 or float64.
    points : array of shape (N, ..., 2)
        Absolute coordinates (y, x) in pixels of `input`, pixel centres on integers; of the dtype
        of `input`, or of float32 where that has 16 bits.
    border : {"zeros", "clamp"}
        What a point near or beyond the edge reads, see :doc:`/conventions`.
    layout : {"NCHW", "NHWC"}
        Where the channels of `input` and of the result are.

    Returns
    -------
    array of shape (N, C, ...), or (N, ..., C) with layout "NHWC"
        The axes ``...`` are those of `points`.

    %(raises)s

    See Also
    --------
    bilinear_sample_backward : the gradients.
    points_from_msda : points from normalised coordinates (x, y).

    Notes
    -----
    .. math:: S(y, x) = \sum_{q} \max(0, 1 - |y - q_y|) \, \max(0, 1 - |x - q_x|) \, v_q

    Coordinates of 16-bit types are taken to float32 first; but a float16 array itself holds whole
    pixels only beyond 1024, and float32 beyond 2**23. A point is read exactly where it says.

    %(deformable_paper)s

    %(examples)s
    >>> image = np.array([[0.0, 1.0], [2.0, 3.0]]).reshape(1, 1, 2, 2)
    >>> points = np.array([[[0.5, 0.5], [0.0, 1.25], [5.0, 5.0]]])
    >>> cudeform.bilinear_sample(image, points)
    array([[[1.5 , 0.75, 0.  ]]])
    """
    return results("bilinear_sample", locals())[0]


@dispatched("grad_output", "input", "points")
def bilinear_sample_backward(
    grad_output: Array, input: Array, points: Array,
    *, needs: Iterable[str] | None = None, border: Border = "zeros", layout: Layout = "NCHW",
) -> BilinearSampleGradients[Array]:  # fmt: skip
    """Gradients of `bilinear_sample`.

    %(backward)s

    %(on_pixel_centres)s

    %(examples)s
    >>> image = np.array([[0.0, 1.0], [2.0, 3.0]]).reshape(1, 1, 2, 2)
    >>> points = np.array([[[0.5, 0.5]]])
    >>> cudeform.bilinear_sample_backward(np.ones((1, 1, 1)), image, points).points
    array([[[2., 1.]]])
    """
    return gradients("bilinear_sample_backward", BilinearSampleGradients, locals())
