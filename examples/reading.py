"""Where a unit of a network's last map reads the image, through its last two layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from network import Network
from training import Params

from cudeform import bilinear_sample
from cudeform.layers import DeformConv2d


def unit_centre(unit: tuple[int, int]) -> np.ndarray:
    """Where the undeformed network has the middle of what a unit reads, (y, x) of the image."""
    return _to_image(2.0 * np.asarray(unit))


def unit_at(position: Any, units: int) -> tuple[int, int]:
    """The unit of the last map whose centre is next to a position (y, x) of the image."""
    y, x = np.clip(np.rint((np.asarray(position) - 0.5) / 8), 0, units - 1).astype(int)
    return int(y), int(x)


def _to_image(position: np.ndarray) -> np.ndarray:
    """From pixels of the second map to pixels of the image.

    A first layer of stride 2 on images folded by 2: four pixels lie between two units, and the
    first unit is centred on the first block of 2 x 2.
    """
    return 4 * position + 0.5


def reading_points(
    network: Network, params: Params, image: np.ndarray, unit: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The 9 * 9 points (81, 2), in pixels of the image, and how much each counts (81,).

    The unit is one of the last map, (y, x). Each of its 9 taps reads the map below between
    pixels, whose taps are taken as the offsets and masks are there, interpolated. A point counts
    as the product of the masks, and that is 1 where there are none.
    """
    _, saved = network.backbone.forward(params, image[None])
    maps = [maps for _, maps in saved[:2]]  # what each of the last two layers reads
    fields = [
        _fields(network.backbone.convs[name], params[name], x)
        for name, x in zip(("conv2", "conv3"), maps, strict=True)
    ]
    upper, upper_mask = _taps(fields[1], 2.0 * np.asarray(unit, np.float64)[None], np.array([unit]))
    lower, lower_mask = _taps(fields[0], upper[0], upper[0])
    return _to_image(lower.reshape(-1, 2)), (upper_mask[0][:, None] * lower_mask).reshape(-1)


def _fields(layer: Any, params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """Offsets, y and x of each tap, and masks of one image.  # (27, Ho, Wo)"""
    if isinstance(layer, DeformConv2d):
        offset, mask = layer.deformation(params, x)
        if mask is not None:
            return np.concatenate([offset, mask], axis=1)[0]
        return np.concatenate([offset[0], np.ones_like(offset[0, :9])])
    out = [(n + layer.stride - 1) // layer.stride for n in x.shape[2:]]
    return np.concatenate([np.zeros((18, *out), x.dtype), np.ones((9, *out), x.dtype)])


def _taps(
    fields: np.ndarray, middles: np.ndarray, where: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Points (P, 9, 2) and masks (P, 9) of 3 x 3 taps around P middles (P, 2).

    Their offsets and masks are read at positions (P, 2) of the fields, between pixels, too.
    """
    size = np.array(fields.shape[1:])
    points = np.clip(where, 0, size - 1).astype(fields.dtype)
    values = bilinear_sample(fields[None], points[None], border="clamp")[0].T  # (P, 27)
    grid = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"), -1).reshape(9, 2)
    offsets = values[:, :18].reshape(-1, 9, 2)
    return middles[:, None] + grid + offsets, values[:, 18:]
