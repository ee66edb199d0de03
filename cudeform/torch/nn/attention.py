"""Modules of multi-scale deformable attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cudeform import checks
from cudeform.descriptions import described
from cudeform.torch.nn.multi_scale import Attention, boolean

_METHODS = {"default": "bilinear", "discrete": "nearest"}  # what RT-DETRv2 calls ours


@described
class MSDeformAttn(Attention):
    """Multi-scale deformable attention as Deformable DETR has it [1]_.

    A query tells by a linear layer where each of its heads reads, a few points on every level of a
    pyramid of feature maps, and by another how much of each it takes. The parameters have the names
    that the checkpoints of Deformable-DETR, DINO, Mask2Former, OneFormer, MaskDINO, ViT-Adapter,
    RF-DETR, Grounding DINO, detrex, mmcv, RT-DETR and transformers have.

    Parameters
    ----------
    d_model : int
        Channels C of queries, inputs and outputs.
    n_levels : int
        Feature maps L.
    n_heads : int
        Heads M; they divide the channels.
    n_points : int or sequence of int
        Points of a head on each level, or level by level.
    ratio : float
        Channels of the values as a part of C.
    method : {"bilinear", "nearest"}
        As in `cudeform.ms_deform_attn`.
    offset_scale : float
        Around reference boxes: offsets of all a level's points in a row reach this part of a box.

    %(deformable_detr_paper)s

    %(examples)s
    >>> attention = MSDeformAttn(d_model=32, n_levels=2, n_heads=4, n_points=3)
    >>> shapes = [(6, 8), (3, 4)]
    >>> features = torch.rand(1, 6 * 8 + 3 * 4, 32)
    >>> queries, middles = torch.rand(1, 5, 32), torch.rand(1, 5, 2, 2)
    >>> attention(queries, middles, features, shapes).shape
    torch.Size([1, 5, 32])
    """

    def __init__(
        self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: Any = 4,
        ratio: float = 1.0,
        *, method: str = "bilinear", offset_scale: float = 0.5, device: Any = None,
        dtype: Any = None,
    ) -> None:  # fmt: skip
        sizes = {"d_model": d_model, "n_heads": n_heads, "n_levels": n_levels}
        sizes.update(n_points=n_points, ratio=ratio)
        method = checks.choice(type(self).__name__, "method", method, tuple(_METHODS.values()))
        super().__init__(sizes, method, offset_scale, device=device, dtype=dtype)
        self.method = method

    def forward(
        self, query: Tensor, reference_points: Tensor, input_flatten: Tensor,
        input_spatial_shapes: Any, input_level_start_index: Tensor | None = None,
        input_padding_mask: Tensor | None = None,
        *, input_keep_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """What the queries read.

        Parameters
        ----------
        query : Tensor
            (N, Lq, C)
        reference_points : Tensor
            (N, Lq, L, 2), points (x, y), or (N, Lq, L, 4), boxes (x, y, w, h) by their middle; in
            parts of the image. One in place of L is that of all levels.
        input_flatten : Tensor
            (N, S, C), the pixels of all levels, one level after the other.
        input_spatial_shapes : sequence of (int, int) or Tensor
            (L, 2), (H, W) of each level.
        input_level_start_index : Tensor, optional
            It is not read: it follows from the shapes.
        input_padding_mask : Tensor, optional
            (N, S), bool, True where there is **no image**: as in Deformable-DETR and Mask2Former.
        input_keep_mask : Tensor, optional
            (N, S), bool, True where there **is** image: as in transformers and RT-DETR.

        Returns
        -------
        Tensor
            (N, Lq, C)

        Raises
        ------
        ValueError
            Both masks are given, or shapes do not fit.
        TypeError
            A mask is not of booleans.
        """
        op = type(self).__name__
        padding = boolean(op, "input_padding_mask", input_padding_mask)
        keep = boolean(op, "input_keep_mask", input_keep_mask)
        if keep is not None:
            if padding is not None:
                checks.fail(op, "input_keep_mask", "without `input_padding_mask`", "both")
            padding = ~keep
        return self._attend(query, reference_points, input_flatten, input_spatial_shapes, padding)


class MultiScaleDeformableAttention(Attention):
    """mmcv's and detrex's module, which adds position and identity by itself.

    Parameters
    ----------
    embed_dims, num_heads, num_levels, num_points
        Channels, heads, levels and points, as in `MSDeformAttn`.
    dropout : float
        What part of the outputs is dropped in training, before the identity is added.
    batch_first : bool
        Whether arrays are (N, length, C) instead of (length, N, C).
    value_proj_ratio : float
        Channels of the values as a part of all.
    im2col_step, img2col_step : int
        How many images mmcv and detrex work on at a time; nothing here depends on it.
    norm_cfg, init_cfg : None
        Arguments of mmcv, for configurations that say that there are none.
    """

    def __init__(
        self, embed_dims: int = 256, num_heads: int = 8, num_levels: int = 4, num_points: int = 4,
        im2col_step: int = 64, dropout: float = 0.1, batch_first: bool = False,
        norm_cfg: None = None, init_cfg: None = None, value_proj_ratio: float = 1.0,
        *, img2col_step: int = 64, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        op = type(self).__name__
        checks.integer(op, "im2col_step", im2col_step, 1)
        checks.integer(op, "img2col_step", img2col_step, 1)
        for name, config in {"norm_cfg": norm_cfg, "init_cfg": init_cfg}.items():
            if config is not None:
                checks.fail(op, name, "to be None", checks.shown(config), "it is not built here")
        sizes = {"embed_dims": embed_dims, "num_heads": num_heads, "num_levels": num_levels}
        sizes.update(num_points=num_points, value_proj_ratio=value_proj_ratio)
        super().__init__(sizes, device=device, dtype=dtype)
        self.batch_first = checks.flag(op, "batch_first", batch_first)
        self.dropout = nn.Dropout(checks.number(op, "dropout", dropout))

    def forward(
        self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None,
        identity: Tensor | None = None, query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None, reference_points: Tensor | None = None,
        spatial_shapes: Any = None, level_start_index: Tensor | None = None, **others: Any,
    ) -> Tensor:  # fmt: skip
        """What the queries read, and the identity.

        Parameters
        ----------
        query : Tensor
            (Lq, N, C), or (N, Lq, C) where the batch is first.
        value : Tensor, optional
            (S, N, C), or (N, S, C), the pixels of all levels; the query where there is none.
        identity : Tensor, optional
            Like `query`; it is added to the result, and is the query where there is none.
        query_pos : Tensor, optional
            Like `query`, to which it is added for where and how much is read.
        key_padding_mask : Tensor, optional
            (N, S), bool, True where there is **no image**.
        reference_points : Tensor
            (N, Lq, L, 2 or 4), as in `MSDeformAttn`.
        spatial_shapes : sequence of (int, int) or Tensor
            (L, 2), (H, W) of each level.
        key, level_start_index, others
            They are not read; mmcv's layers give them to every attention.

        Returns
        -------
        Tensor
            Like `query`.
        """
        op = type(self).__name__
        for name, given in (
            ("reference_points", reference_points),
            ("spatial_shapes", spatial_shapes),
        ):
            if given is None:
                checks.fail(op, name, "to be given", None, error=TypeError)
        padding = boolean(op, "key_padding_mask", key_padding_mask)
        value = query if value is None else value
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        output = self._attend(query, reference_points, value, spatial_shapes, padding)
        output = output if self.batch_first else output.transpose(0, 1)
        return self.dropout(output) + identity


class MSDeformableAttention(Attention):
    """The module of RT-DETR and RT-DETRv2, and without projections that of D-FINE and DEIM.

    Parameters
    ----------
    embed_dim, num_heads, num_levels, num_points, offset_scale
        Channels, heads, levels and points, as in `MSDeformAttn`; `num_points` may differ by level.
    method : {"default", "discrete"}
        Bilinear samples, or the nearest pixels, which are on the edge for points outside.
    projected : bool
        Whether there are `value_proj` and `output_proj`; D-FINE has neither.
    """

    def __init__(
        self, embed_dim: int = 256, num_heads: int = 8, num_levels: int = 4, num_points: Any = 4,
        method: str = "default", offset_scale: float = 0.5,
        *, projected: bool = True, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        op = type(self).__name__
        sizes = {"embed_dim": embed_dim, "num_heads": num_heads, "num_levels": num_levels}
        sizes.update(num_points=num_points)
        ours = _METHODS[checks.choice(op, "method", method, tuple(_METHODS))]
        projected = checks.flag(op, "projected", projected)
        super().__init__(sizes, ours, offset_scale, projected, device=device, dtype=dtype)
        self.method, self.projected = method, projected

    def forward(
        self, query: Tensor, reference_points: Tensor,
        value: Any, value_spatial_shapes: Any, value_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """What the queries read.

        Parameters
        ----------
        query, reference_points : Tensor
            (N, Lq, C) and (N, Lq, L or 1, 2 or 4), as in `MSDeformAttn`.
        value : Tensor or sequence of Tensor
            (N, S, C), the pixels of all levels; without projections also (N, M, C / M, H W) for
            each level.
        value_spatial_shapes : sequence of (int, int) or Tensor
            (L, 2), (H, W) of each level.
        value_mask : Tensor, optional
            (N, S), bool, True where there **is** image.

        Returns
        -------
        Tensor
            (N, Lq, C)
        """
        op = type(self).__name__
        if isinstance(value, (tuple, list)):
            if self.projected:
                checks.fail(op, "value", "to be a tensor", "levels", "there is a `value_proj`")
            value = torch.cat(list(value), -1).permute(0, 3, 1, 2).flatten(2)
        keep = boolean(op, "value_mask", value_mask)
        padding = None if keep is None else ~keep
        return self._attend(query, reference_points, value, value_spatial_shapes, padding)
