"""What the benchmarks compute: layers with their shapes, and how two results are compared."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from cudeform.arrays import sum_dtype
from cudeform.converters.offsets import pack_dcnv4
from cudeform.registry import Operator, row_of

TORCHVISION = ("deform_conv2d", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")
SCALE = 1 / 16  # pixels of a feature map per pixel of the image that boxes are in
BINS = 7


class Workload:
    """Arguments of an operator: its options, and arrays that follow from shapes."""

    operator: str
    options: dict[str, Any]

    def arrays(self, seed: int = 0) -> dict[str, np.ndarray]:
        """The array arguments in float32, and a grad_output."""
        raise NotImplementedError

    @property
    def row(self) -> Operator:
        """Of the registry."""
        return row_of(self.operator)

    @property
    def gradients(self) -> tuple[str, ...]:
        """The arguments that the backward computes gradients of, if they are given."""
        return self.row.gradients._fields

    @property
    def in_torchvision(self) -> bool:
        return self.operator in TORCHVISION and "convention" not in self.options

    def call(
        self, arrays: dict[str, Any], backward: bool = False, **options: Any
    ) -> Callable[[], tuple[Any, ...]]:
        """A call of cudeform on arrays of any kind, which returns the output or the gradients."""
        function = self.row.backward if backward else self.row.forward
        accepted = inspect.signature(function).parameters
        given = {name: array for name, array in arrays.items() if name in accepted} | self.options
        if backward and {**self.row.defaults, **self.options}.get("mode") == "max":
            forward = {name: given[name] for name in given if name != "grad_output"}
            forward["return_argmax"] = True  # it is kept, as by others
            _, given["argmax"] = self.row.forward(**forward)
        if not backward:
            return lambda: (function(**given, **options),)
        return lambda: tuple(g for g in function(**given, **options) if g is not None)


@dataclass(frozen=True)
class Convolution(Workload):
    """A deformable convolution v2: 3x3, stride 1, padding 1, one group, one offset group."""

    batch: int
    channels: int
    height: int
    width: int
    out_channels: int
    operator: ClassVar[str] = "deform_conv2d"
    options: ClassVar[dict[str, Any]] = {"padding": 1}

    def __str__(self) -> str:
        return f"{self.batch}x{self.channels}x{self.height}x{self.width} -> {self.out_channels}"

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def arrays(self, seed: int = 0) -> dict[str, np.ndarray]:
        """The arguments in float32, and a grad_output.

        The offsets have a standard deviation of two pixels. The magnitudes are those of a trained
        network's layers, so that float16 does not overflow.
        """
        rng = np.random.default_rng(seed)

        def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
            return rng.standard_normal(shape, np.float32) * np.float32(scale)

        n, c, h, w, o = self.batch, self.channels, self.height, self.width, self.out_channels
        return {
            "input": normal(n, c, h, w),
            "offset": normal(n, 18, h, w, scale=2.0),
            "weight": normal(o, c, 3, 3, scale=(9 * c) ** -0.5),
            "bias": normal(o),
            "mask": rng.random((n, 9, h, w), np.float32),
            "grad_output": normal(n, o, h, w),
        }


@dataclass(frozen=True)
class Aggregation(Workload):
    """A layer of InternImage or FlashInternImage: 3x3 points of each group of 16 channels.

    DCNv3 takes the softmax of its masks itself; DCNv4 has none.
    """

    operator: str
    batch: int
    channels: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.height}x{self.width}x{self.channels}"

    @property
    def groups(self) -> int:
        return self.channels // 16

    @property
    def options(self) -> dict[str, Any]:
        options = {"kernel_size": 3, "padding": 1, "groups": self.groups}
        return options | {"softmax": True} if self.operator == "dcnv3" else options

    def arrays(self, seed: int = 0) -> dict[str, np.ndarray]:
        """The arguments in float32, offsets of about two pixels, and a grad_output.

        The mask of `dcnv3` is logits, which are within the operator.
        """
        rng = np.random.default_rng(seed)
        pixels, points = (self.batch, self.height, self.width), self.groups * 9

        def normal(channels: int) -> np.ndarray:
            return rng.standard_normal((*pixels, channels), np.float32)

        arrays = {"input": normal(self.channels)}
        points_of = {"offset": 2 * normal(2 * points), "mask": normal(points)}
        if self.operator == "dcnv4":
            points_of = {"offset_mask": pack_dcnv4(**points_of, groups=self.groups)}
        return arrays | points_of | {"grad_output": normal(self.channels)}


@dataclass(frozen=True)
class Attention(Workload):
    """Attention of a detector's decoder or encoder: 8 heads of 32, 4 points of each level."""

    batch: int
    queries: int
    shapes: tuple[tuple[int, int], ...] = ((64, 64), (32, 32), (16, 16), (8, 8))
    near: bool = False  # whether queries are pixels of the levels, and points some pixels from them
    operator: ClassVar[str] = "ms_deform_attn"

    def __str__(self) -> str:
        first, last = (f"{height}x{width}" for height, width in (self.shapes[0], self.shapes[-1]))
        where = ", points near" if self.near else ""
        return f"{self.batch}x{self.queries} queries, {first} to {last}{where}"

    @property
    def options(self) -> dict[str, Any]:
        return {"spatial_shapes": self.shapes}

    def arrays(self, seed: int = 0) -> dict[str, np.ndarray]:
        """The arguments in float32, and a grad_output.

        Points are anywhere within their level or, as in a trained encoder, offset by about two of
        its pixels from the query's own.
        """
        rng = np.random.default_rng(seed)
        pixels = sum(height * width for height, width in self.shapes)
        points = (self.batch, self.queries, 8, len(self.shapes), 4)
        weights = rng.random(points, np.float32)
        return {
            "value": rng.standard_normal((self.batch, pixels, 8, 32), np.float32),
            "sampling_locations": self._locations(rng, points),
            "attention_weights": weights / weights.sum((3, 4), keepdims=True),
            "grad_output": rng.standard_normal((self.batch, self.queries, 256), np.float32),
        }

    def _locations(self, rng: np.random.Generator, points: tuple[int, ...]) -> np.ndarray:
        if not self.near:
            return rng.random((*points, 2), np.float32)
        grids = [(np.indices(shape).T + 0.5) / shape for shape in self.shapes]  # [x, y, axis]
        centers = np.concatenate([grid.swapaxes(0, 1).reshape(-1, 2) for grid in grids])
        pixels = 2 * rng.standard_normal((*points, 2), np.float32)
        sizes = np.array(self.shapes)[:, None, ::-1]
        own = centers[: self.queries, None, None, None, ::-1]
        return (own + pixels / sizes).astype(np.float32)


@dataclass(frozen=True)
class Pooling(Workload):
    """A pooling of regions of interest, 7x7 bins, from features of stride 16."""

    operator: str
    batch: int
    channels: int
    height: int
    width: int
    boxes: int  # of each image
    chosen: dict[str, Any] = field(default_factory=dict)  # options

    def __str__(self) -> str:
        shape = f"{self.batch}x{self.channels}x{self.height}x{self.width}"
        chosen = (f"{name} {value}" for name, value in self.chosen.items())
        return ", ".join([f"{shape}, {self.boxes} boxes", *chosen])

    @property
    def options(self) -> dict[str, Any]:
        fixed: dict[str, Any] = {"output_size": BINS, "spatial_scale": SCALE}
        if self.operator == "deform_ps_roi_pool":
            fixed |= {"output_dim": self.out_channels, "group_size": BINS}
        return fixed | self.chosen

    @property
    def out_channels(self) -> int:
        return self.channels // BINS**2 if "ps_" in self.operator else self.channels

    def arrays(self, seed: int = 0) -> dict[str, np.ndarray]:
        """The arguments in float32, and a grad_output; boxes in the order of their images.

        The offsets have a standard deviation of a tenth of the region, times the default of 0.1.
        """
        rng = np.random.default_rng(seed)
        images = (self.batch, self.channels, self.height, self.width)
        count = self.batch * self.boxes
        arrays = {"input": rng.standard_normal(images, np.float32), "boxes": self._boxes(rng)}
        if self.operator.startswith("deform"):
            arrays["offset"] = rng.standard_normal((count, 2, BINS, BINS), np.float32)
        if self.operator == "deform_roi_pool":  # v2; no other library has it for the other one
            arrays["mask"] = rng.random((count, 1, BINS, BINS), np.float32)
        pooled = (count, self.out_channels, BINS, BINS)
        arrays["grad_output"] = rng.standard_normal(pooled, np.float32)
        return arrays

    def _boxes(self, rng: np.random.Generator) -> np.ndarray:
        """Of all sizes between three pixels and most of the image, and inside it, (R, 5)."""
        limit = np.array([self.width, self.height]) - 1.0
        count = self.batch * self.boxes
        center = rng.uniform(0, limit, (count, 2))
        half = np.exp(rng.uniform(np.log(1.5), np.log(0.4 * limit.min()), (count, 2)))
        corners = np.clip(np.concatenate([center - half, center + half], 1), 0, np.tile(limit, 2))
        image = np.repeat(np.arange(self.batch), self.boxes)[:, None]
        return np.concatenate([image, corners / SCALE], 1).astype(np.float32)


def _poolings(*shape: int) -> tuple[Pooling, ...]:
    """All of them, on images (batch, height, width) with so many boxes each."""
    batch, height, width, boxes = shape

    def pooling(operator: str, channels: int, **options: Any) -> Pooling:
        return Pooling(operator, batch, channels, height, width, boxes, options)

    return (
        pooling("deform_roi_pool", 256, sampling_ratio=2),
        pooling("deform_ps_roi_pool", 490),
        pooling("ps_roi_pool", 490, convention="msra"),
        pooling("ps_roi_pool", 490),
        pooling("ps_roi_align", 490),
        pooling("ps_roi_align", 490, sampling_ratio=2),
        pooling("roi_pool", 256),
        pooling("roi_align", 256),
        pooling("roi_align", 256, sampling_ratio=2),
    )


# The rows of the CPU benchmark, the last of each family the quick one: a wide layer, an early one,
# a late one in a batch, a narrow one; an early one and a late one of InternImage; an encoder, a
# decoder and a few queries; then a detector's second stage.
CPU: tuple[Workload, ...] = (
    Convolution(1, 256, 64, 64, 256),
    Convolution(1, 64, 128, 128, 64),
    Convolution(4, 256, 14, 14, 256),
    Convolution(2, 32, 56, 56, 32),
    Aggregation("dcnv3", 1, 64, 56, 56),
    Aggregation("dcnv3", 1, 256, 14, 14),
    Aggregation("dcnv4", 1, 64, 56, 56),
    Aggregation("dcnv4", 1, 256, 14, 14),
    Attention(1, 5440),
    Attention(1, 300),
    Attention(1, 20),
    *_poolings(1, 50, 76, 300),
)
# And of the GPU benchmark: a detector's finest level, a training batch; its encoder and decoder;
# stages of InternImage and FlashInternImage; then a second stage.
DETECTOR = ((100, 152), (50, 76), (25, 38), (13, 19))  # its levels
CUDA: tuple[Workload, ...] = (
    Convolution(2, 256, 100, 152, 256),
    Convolution(8, 256, 64, 64, 256),
    Attention(2, 20197, DETECTOR),
    Attention(2, 20197, DETECTOR, near=True),
    Attention(2, 300, DETECTOR),
    Aggregation("dcnv3", 64, 64, 56, 56),
    Aggregation("dcnv3", 64, 256, 14, 14),
    Aggregation("dcnv4", 64, 64, 56, 56),
    *_poolings(2, 100, 152, 512),
)


def cast(arrays: dict[str, np.ndarray], dtype: np.dtype) -> dict[str, np.ndarray]:
    """Arguments in another dtype; the coordinates of boxes keep 32 bits at least."""
    return {
        name: array.astype(sum_dtype(dtype) if name == "boxes" else dtype)
        for name, array in arrays.items()
    }


def error(actual: Any, expected: Any, spared: float = 0.0) -> float:
    """The largest difference in units of the largest expected magnitude.

    The part `spared` of the elements, those that differ most, is not looked at unless it is NaN.
    """
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    differences = abs(actual - expected).ravel()
    last = differences.size - 1 - int(spared * differences.size)
    if spared and not np.isnan(differences).any():
        differences = np.partition(differences, last)[: last + 1]
    return float(differences.max() / abs(expected).max())
