"""Attention to a few points of feature maps of several resolutions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Generic, Literal

from cudeform.dispatch import dispatched
from cudeform.ops.call import gradients, results
from cudeform.types import Array, NamedTuple


class MSDeformAttnGradients(NamedTuple, Generic[Array]):
    """Gradients by the argument they belong to; None where not needed."""

    value: Array | Any = None
    sampling_locations: Array | Any = None
    attention_weights: Array | Any = None


@dispatched("value", "spatial_shapes", "sampling_locations", "attention_weights")
def ms_deform_attn(
    value: Array, spatial_shapes: Array | Sequence[tuple[int, int]], sampling_locations: Array,
    attention_weights: Array,
    *, points_per_level: Sequence[int] | None = None,
    method: Literal["bilinear", "nearest"] = "bilinear", softmax: bool = False,
) -> Array:  # fmt: skip
    r"""Multi-scale deformable attention [1]_: weighted sums of samples of several levels.

    Parameters
    ----------
    value : array of shape (N, S, M, D)
        The pixels of all levels one after the other, each level row by row, with D channels for
        each of M heads; of dtype float16, bfloat16, float32 or float64.
    spatial_shapes : sequence of L pairs (H, W), or integer array of shape (L, 2)
        The size of each level; their pixels are S in all.
    sampling_locations : array of shape (N, Lq, M, L, P, 2)
        For each of Lq queries P points of each level, normalised (x, y): 0 and 1 are the outer
        edges of the first and the last pixel. Of the dtype of `value`, or of float32 where that
        has 16 bits. With `points_per_level` of shape (N, Lq, M, sum P, 2), level by level.
    attention_weights : array of shape (N, Lq, M, L, P)
        A factor for each point, of a dtype as `sampling_locations` may have; with
        `points_per_level` of shape (N, Lq, M, sum P).
    points_per_level : sequence of int, optional
        How many points each level has, where these are not the same number.
    method : {"bilinear", "nearest"}
        How a level is sampled. "nearest" takes one pixel, at floor(y*H + 1/2) and
        floor(x*W + 1/2), which are clamped to the level, as RT-DETRv2's "discrete" does; it has
        no derivative along `sampling_locations`.
    softmax : bool
        Whether `attention_weights` are logits, of which the softmax over all points of a head of
        a query is taken.

    Returns
    -------
    array of shape (N, Lq, M*D)

    %(raises)s

    See Also
    --------
    ms_deform_attn_backward : the gradients.
    points_from_msda : locations in pixels.

    Notes
    -----
    .. math:: y_{nqmd} = \sum_{l,p} A_{nqmlp} \, S(v^l_{nmd}, \,
              y_{nqmlp} H_l - \tfrac12, \, x_{nqmlp} W_l - \tfrac12)

    with the bilinear samples S of `bilinear_sample`, which are 0 beyond the border. Locations are
    taken to float32 before anything is computed with them; those that are NaN read nothing.

    Sizes in an array on the host are read once. In an array on a GPU they are read by the kernels
    and never by the host; then they are not checked, and nothing beyond `value` is read whatever
    they say.

    %(deformable_detr_paper)s

    %(examples)s

    One query with one head, one channel and a point on each of two levels, of 2 x 2 and 1 x 1
    pixels:

    >>> value = np.array([1.0, 2.0, 3.0, 4.0, 10.0]).reshape(1, 5, 1, 1)
    >>> locations = np.array([[0.5, 0.5], [0.5, 0.5]]).reshape(1, 1, 1, 2, 1, 2)
    >>> weights = np.array([0.4, 0.6]).reshape(1, 1, 1, 2, 1)
    >>> cudeform.ms_deform_attn(value, [(2, 2), (1, 1)], locations, weights)
    array([[[7.]]])
    """
    points_per_level = _hashable(points_per_level)
    return results("ms_deform_attn", locals())[0]


@dispatched("grad_output", "value", "spatial_shapes", "sampling_locations", "attention_weights")
def ms_deform_attn_backward(
    grad_output: Array, value: Array, spatial_shapes: Array | Sequence[tuple[int, int]],
    sampling_locations: Array, attention_weights: Array,
    *, needs: Iterable[str] | None = None, points_per_level: Sequence[int] | None = None,
    method: Literal["bilinear", "nearest"] = "bilinear", softmax: bool = False,
) -> MSDeformAttnGradients[Array]:  # fmt: skip
    """Gradients of `ms_deform_attn`.

    %(backward)s

    %(on_pixel_centres)s

    With method "nearest" that of `sampling_locations` is 0.

    %(examples)s
    >>> value = np.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1)
    >>> locations = np.full((1, 1, 1, 1, 1, 2), 0.5)
    >>> weights = np.ones((1, 1, 1, 1, 1))
    >>> given = value, [(2, 2)], locations, weights
    >>> found = cudeform.ms_deform_attn_backward(np.ones((1, 1, 1)), *given)
    >>> found.sampling_locations.ravel(), found.attention_weights.ravel()
    (array([2., 4.]), array([2.5]))
    """
    points_per_level = _hashable(points_per_level)
    return gradients("ms_deform_attn_backward", MSDeformAttnGradients, locals())


def _hashable(points: Any) -> Any:
    return tuple(points) if isinstance(points, list) else points
