"""How a call is cut up: groups of images, and chunks of output pixels, of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

from cudeform.plans.points import Points

IMAGE_BYTES = 64 << 20  # images that are worked on at once, in channels-last copies and buckets
# Parts of an image begin at a multiple of so many pixels: products write to rows on the grid of
# vectors, without which cuBLAS has only kernels of older GPUs, and fill its tiles.
STEP = 64


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
    """Divide the output pixels of some images into chunks of at most so many pixels, alike."""
    at_once = max(1, most_pixels) // points.pixels
    if at_once:
        for part in _alike(images, at_once):
            yield Chunk(part.start, len(part), 0, points.pixels)
        return
    most = max(1, most_pixels)
    step = STEP if most >= STEP else 1
    parts = list(_alike(range(points.pixels), most // step * step, step))
    for image, part in product(images, parts):
        yield Chunk(image, 1, part.start, len(part))


def image_groups(points: Points, most_pixels: int, itemsize: int) -> Iterator[range]:
    """Divide the batch into groups of images whose copies and buckets stay small."""
    cells = points.offset_groups * (points.height + 1) * (points.width + 1)
    image_bytes = points.height * points.width * points.channels * itemsize + cells * 4
    at_once = max(1, min(most_pixels // points.pixels, IMAGE_BYTES // image_bytes))
    yield from _alike(range(points.batch), at_once)


def _alike(whole: range, most: int, step: int = 1) -> Iterator[range]:
    """As few parts as have at most so many each, of one size, in steps, but for the last."""
    parts = -(-len(whole) // most)
    size = -(-len(whole) // (parts * step)) * step
    return (whole[first : first + size] for first in range(0, len(whole), size))
