"""How a call is cut up: groups of images, and chunks of output pixels, of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from cudeform.plans.points import Points

__all__ = ["IMAGE_BYTES", "Chunk", "chunks", "image_groups"]

IMAGE_BYTES = 64 << 20  # images that are worked on at once, in channels-last copies and buckets


class Chunk(NamedTuple):
    """A part of the output pixels that is worked on at once: whole images, or a part of one."""

    image: int
    images: int
    pixel: int  # the first, within its image
    pixels: int  # of each image

    @property
    def size(self) -> int:
        return self.images * self.pixels

    @property
    def batch(self) -> slice:
        return slice(self.image, self.image + self.images)

    def of(self, *arrays: Any) -> Iterator[Any]:
        """Its images of each array; None stays None."""
        return (None if array is None else array[self.batch] for array in arrays)

    def within(self, images: range) -> slice:
        """The chunk's images, counted from the first of a range."""
        return slice(self.image - images.start, self.image - images.start + self.images)

    def whole(self, points: Points) -> bool:
        return self.pixels == points.pixels


def chunks(points: Points, images: range, most_pixels: int) -> Iterator[Chunk]:
    """Divide the output pixels of some images into chunks of at most so many pixels."""
    at_once = max(1, most_pixels) // points.pixels
    if at_once:
        for first in images[::at_once]:
            yield Chunk(first, min(at_once, images.stop - first), 0, points.pixels)
        return
    for image, pixel in product(images, range(0, points.pixels, max(1, most_pixels))):
        yield Chunk(image, 1, pixel, min(most_pixels, points.pixels - pixel))


def image_groups(points: Points, most_pixels: int, itemsize: int) -> Iterator[range]:
    """Divide the batch into groups of images whose copies and buckets stay small."""
    cells = points.offset_groups * (points.height + 1) * (points.width + 1)
    image_bytes = points.height * points.width * points.channels * itemsize + cells * 4
    at_once = max(1, min(most_pixels // points.pixels, IMAGE_BYTES // image_bytes))
    for first in range(0, points.batch, at_once):
        yield range(first, min(first + at_once, points.batch))
