"""The taps of a deformable convolution as other libraries write them down.

A library differs from ours in the order of taps, of coordinates and of axes, and in the unit of
its offsets. The functions here rearrange arrays of any framework, by functions that all of them
have under one name. So where a framework has derivatives, these functions have them too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cudeform import arrays, checks
from cudeform.dispatch import dispatched
from cudeform.plans.aggregation import packed_channels
from cudeform.plans.points import LAYOUTS
from cudeform.types import Array, Layout, Pair

LIBRARIES = ("torchvision", "chainer", "dcnv3")


@dataclass(frozen=True)
class _Taps:
    """How the channels of an offset (two components) or a mask (one) are made of taps."""

    op: str
    argument: str
    components: int
    kernel: tuple[int, int]
    remove_center: bool
    channels_last: bool  # where torchvision's channels are; the others have one place for them

    @property
    def count(self) -> int:
        return self.kernel[0] * self.kernel[1]

    def stored(self, library: str) -> int:
        """Taps that a library stores of one group."""
        return self.count - (self.remove_center and library == "dcnv3")

    def last(self, library: str) -> bool:
        return library == "dcnv3" or (library == "torchvision" and self.channels_last)

    def axes(self, library: str) -> str:
        taps = "points" if library == "dcnv3" else "kh*kw"
        groups = "" if library == "chainer" else "groups*"
        channels = ("2*" if self.components == 2 else "") + groups + taps
        return f"(N, Ho, Wo, {channels})" if self.last(library) else f"(N, {channels}, Ho, Wo)"

    def groups(self, array: Any, library: str) -> int:
        """The offset groups of an array in a library's layout, after checking its shape."""
        axes = self.axes(library)
        checks.rank(self.op, self.argument, array, axes)
        channels = array.shape[3 if self.last(library) else 1]
        one = self.components * self.stored(library)
        if one == 0 or channels == 0 or channels % one:
            expected = f"with channels a multiple of {one} in the layout {axes} of {library!r}"
            checks.fail(self.op, self.argument, expected, tuple(array.shape))
        self.check_one_group(array, channels // one, library)
        return channels // one

    def check_one_group(self, array: Any, groups: int, library: str) -> None:
        if library == "chainer" and groups != 1:
            expected = f"with one offset group, which is all that {library!r} has"
            checks.fail(self.op, self.argument, expected, f"{groups} in {tuple(array.shape)}")

    def read(self, array: Any, library: str, xp: Any) -> Any:
        """A library's array as (N, Ho, Wo, groups, kh, kw, components): y, then x."""
        groups = self.groups(array, library)
        kh, kw = self.kernel
        if not self.last(library):
            array = xp.moveaxis(array, 1, 3)
        grid = array.shape[:3]
        if library == "torchvision":
            return array.reshape(*grid, groups, kh, kw, self.components)
        if library == "chainer":
            planes = array.reshape(*grid, groups, self.components, kh, kw)
            return xp.flip(xp.moveaxis(planes, 4, 6), (6,))
        stored = array.reshape(*grid, groups, self.stored(library), self.components)
        if self.remove_center:
            center = self.count // 2
            before, after = stored[..., :center, :], stored[..., center:, :]
            stored = xp.concatenate([before, xp.zeros_like(stored[..., :1, :]), after], 4)
        stored = stored.reshape(*grid, groups, kw, kh, self.components)
        return xp.flip(xp.swapaxes(stored, 4, 5), (6,))

    def write(self, array: Any, library: str, xp: Any) -> Any:
        """The inverse of `read`."""
        grid, groups = array.shape[:3], array.shape[3]
        self.check_one_group(array, groups, library)
        if library == "chainer":
            array = xp.moveaxis(xp.flip(array, (6,)), 6, 4)
        elif library == "dcnv3":
            array = xp.swapaxes(xp.flip(array, (6,)), 4, 5)
            if self.remove_center:
                array = array.reshape(*grid, groups, self.count, self.components)
                center = self.count // 2
                array = xp.concatenate([array[..., :center, :], array[..., center + 1 :, :]], 4)
        array = array.reshape(*grid, self.components * groups * self.stored(library))
        if not self.last(library):
            array = xp.moveaxis(array, 3, 1)
        return array


def _taps(op: str, argument: str, components: int, kernel: Any, center: Any, layout: str) -> _Taps:
    kernel = checks.pair(op, "kernel_size", kernel, 1)
    checks.choice(op, "layout", layout, LAYOUTS)
    center = checks.flag(op, "remove_center", center)
    if center and (kernel[0] * kernel[1]) % 2 == 0:
        checks.fail(op, "kernel_size", "to be odd with remove_center", kernel)
    return _Taps(op, argument, components, kernel, center, layout == "NHWC")


def _scaled_grid(kernel: tuple[int, int], dilation: tuple[int, int], scale: float) -> np.ndarray:
    """How far DCNv3's scaling about the kernel's centre moves each tap.  # (kh, kw, 2)"""
    a, b = (d * np.arange(k) - ((d * (k - 1)) >> 1) for k, d in zip(kernel, dilation, strict=True))
    return (scale - 1.0) * np.stack(np.meshgrid(a, b, indexing="ij"), axis=-1)


@dispatched("offset")
def convert_offset(
    offset: Array, source: str, target: str,
    *, kernel_size: Pair, dilation: Pair = 1, offset_scale: float = 1.0,
    remove_center: bool = False, layout: Layout = "NCHW",
) -> Array:  # fmt: skip
    r"""Offsets of a deformable convolution from the layout of one library in that of another.

    "torchvision" is the layout of `deform_conv2d`; it is also that of mmcv, detectron2, ONNX,
    OpenVINO, MXNet and Paddle. :doc:`/conventions` has a picture of all three.

    Parameters
    ----------
    offset : array
        Of shape (N, 2*groups*kh*kw, Ho, Wo) for "torchvision", (N, 2*kh*kw, Ho, Wo) for "chainer",
        (N, Ho, Wo, 2*groups*points) for "dcnv3", where points is kh*kw, or one less with
        `remove_center`.
    source, target : {"torchvision", "chainer", "dcnv3"}
        The layout of `offset`, and that of the result.
    kernel_size : int or (int, int)
        (kh, kw) in taps.
    dilation : int or (int, int)
        (y, x) in pixels. It matters only to an `offset_scale` other than 1.
    offset_scale : float
        Of DCNv3: a factor of its offsets and of the distance of each tap from the kernel's centre.
        The other layouts have pixels, so the scale is multiplied in or divided out.
    remove_center : bool
        Of DCNv3: the tap at the centre is not stored. It becomes a zero offset elsewhere, to which
        `convert_mask` gives a mask of zero.
    %(layout_of_torchvision)s

    Returns
    -------
    array of the same dtype

    %(raises)s

    Notes
    -----
    With e the offset of DCNv3, σ its scale, d the dilation and k the kernel size, tap b is
    displaced along x, and likewise along y, by

    .. math:: \Delta x = σ \, e_x + (σ - 1) (b d - \lfloor d (k - 1) / 2 \rfloor)

    %(examples)s

    Chainer keeps all x before all y, here of a kernel of 1 x 2 taps:

    >>> chainer = np.array([1.0, 2.0, 10.0, 20.0]).reshape(1, 4, 1, 1)
    >>> ours = cudeform.convert_offset(chainer, "chainer", "torchvision", kernel_size=(1, 2))
    >>> ours.ravel()
    array([10.,  1., 20.,  2.])
    """
    op = "convert_offset"
    kind = arrays.kind_of(op, {"offset": offset})
    checks.choice(op, "source", source, LIBRARIES)
    checks.choice(op, "target", target, LIBRARIES)
    dilation = checks.pair(op, "dilation", dilation, 1)
    offset_scale = checks.positive(op, "offset_scale", offset_scale)
    taps = _taps(op, "offset", 2, kernel_size, remove_center, layout)
    xp = arrays.namespace(kind)
    result = taps.read(offset, source, xp)
    if offset_scale != 1 and source != target and "dcnv3" in (source, target):
        result = arrays.widened(kind, result)
        moved = kind.constant(_scaled_grid(taps.kernel, dilation, offset_scale), result)
        if source == "dcnv3":
            result = result * offset_scale + moved
        else:
            result = (result - moved) / offset_scale
        result = kind.cast(result, offset.dtype)
    return kind.contiguous(taps.write(result, target, xp))


@dispatched("mask")
def convert_mask(
    mask: Array, source: str, target: str,
    *, kernel_size: Pair, remove_center: bool = False, layout: Layout = "NCHW",
) -> Array:  # fmt: skip
    """Masks of a deformable convolution from the layout of one library in that of another.

    Parameters
    ----------
    mask : array
        Of shape (N, groups*kh*kw, Ho, Wo) for "torchvision", (N, Ho, Wo, groups*points) for
        "dcnv3", where points is kh*kw, or one less with `remove_center`.
    source, target : {"torchvision", "dcnv3"}
        The layout of `mask`, and that of the result.
    kernel_size : int or (int, int)
        (kh, kw) in taps.
    remove_center : bool
        Of DCNv3: the tap at the centre is not stored. It is a mask of zero elsewhere.
    %(layout_of_torchvision)s

    Returns
    -------
    array of the same dtype

    %(raises)s

    See Also
    --------
    convert_offset : the offsets of the same taps.

    %(examples)s

    DCNv3 counts taps down the columns, torchvision along the rows:

    >>> dcnv3 = np.array([0.0, 1.0, 2.0, 3.0]).reshape(1, 1, 1, 4)
    >>> cudeform.convert_mask(dcnv3, "dcnv3", "torchvision", kernel_size=2).ravel()
    array([0., 2., 1., 3.])
    """
    op = "convert_mask"
    kind = arrays.kind_of(op, {"mask": mask})
    with_masks = tuple(library for library in LIBRARIES if library != "chainer")
    checks.choice(op, "source", source, with_masks)
    checks.choice(op, "target", target, with_masks)
    taps = _taps(op, "mask", 1, kernel_size, remove_center, layout)
    xp = arrays.namespace(kind)
    return kind.contiguous(taps.write(taps.read(mask, source, xp), target, xp))


@dispatched("offset_mask")
def unpack_dcnv4(offset_mask: Array, groups: int, points: int) -> tuple[Array, Array]:
    """The offset and the mask that DCNv4 keeps in one array, in DCNv3's layout.

    Parameters
    ----------
    offset_mask : array of shape (..., channels)
        For each group its points' (x, y), then its points' masks; at the end zeros up to a
        multiple of 8 channels.
    groups, points : int
        How many groups there are, and points in each: kh*kw, or one less without the centre.

    Returns
    -------
    offset : array of shape (..., 2*groups*points)
    mask : array of shape (..., groups*points)
        Both as `convert_offset` and `convert_mask` take them from "dcnv3".

    %(raises)s

    See Also
    --------
    pack_dcnv4 : the inverse.

    %(examples)s
    >>> packed = np.array([1.0, 2.0, 3.0, 4.0, 0.5, 0.25, 0.0, 0.0])
    >>> cudeform.unpack_dcnv4(packed, groups=1, points=2)
    (array([1., 2., 3., 4.]), array([0.5 , 0.25]))
    """
    op = "unpack_dcnv4"
    kind = arrays.kind_of(op, {"offset_mask": offset_mask})
    groups = checks.integer(op, "groups", groups, 1)
    points = checks.integer(op, "points", points, 1)
    shape = tuple(offset_mask.shape)
    want = packed_channels(groups * points)
    if not shape or shape[-1] != want:
        expected = f"of shape (..., {want}) = (..., 3*groups*points up to a multiple of 8)"
        checks.fail(op, "offset_mask", expected, shape)
    used = offset_mask[..., : 3 * groups * points].reshape(*shape[:-1], groups, 3 * points)
    offset = used[..., : 2 * points].reshape(*shape[:-1], 2 * groups * points)
    mask = used[..., 2 * points :].reshape(*shape[:-1], groups * points)
    return kind.contiguous(offset), kind.contiguous(mask)


@dispatched("offset", "mask")
def pack_dcnv4(offset: Array, mask: Array, groups: int) -> Array:
    """The inverse of `unpack_dcnv4`: one array for DCNv4 from an offset and a mask of DCNv3.

    Parameters
    ----------
    offset : array of shape (..., 2*groups*points)
    mask : array of shape (..., groups*points)
    groups : int

    Returns
    -------
    array of shape (..., channels)
        ``3*groups*points`` channels, then zeros up to a multiple of 8.

    %(raises)s
    """
    op = "pack_dcnv4"
    kind = arrays.kind_of(op, {"offset": offset, "mask": mask})
    groups = checks.integer(op, "groups", groups, 1)
    shape = tuple(mask.shape)
    if not shape or shape[-1] == 0 or shape[-1] % groups:
        expected = f"with channels a multiple of {groups} = groups"
        checks.fail(op, "mask", expected, shape)
    *grid, channels = shape
    points = channels // groups
    checks.shape(op, "offset", offset, (*grid, 2 * channels), "(..., 2*groups*points)")
    xp = arrays.namespace(kind)
    used = xp.concatenate(
        [offset.reshape(*grid, groups, 2 * points), mask.reshape(*grid, groups, points)], -1
    ).reshape(*grid, 3 * channels)
    unused = kind.constant(xp.zeros((*grid, packed_channels(channels) - 3 * channels)), used)
    return xp.concatenate([used, unused], -1)
