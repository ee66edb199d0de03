"""A photograph from a file: whatever its format, colours in [0, 1] and the right way up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from skimage import data, io, transform

from cudeform.commands import CommandError

SMALLEST = 8  # pixels along a side
LONGEST = 16  # times the other side


def load(file: str | None, size: int) -> np.ndarray:
    """The photograph, no longer than `size` pixels; None is the cat of scikit-image.  # (H, W, 3)

    Of an animation it is the first picture. Alpha is ignored, grey gets three equal colours.
    """
    image = _colours(data.chelsea() if file is None else _read(file))
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST or max(height, width) > LONGEST * min(height, width):
        raise CommandError(
            f"expected a photograph of at least {SMALLEST} x {SMALLEST} pixels, and at most "
            f"{LONGEST} times as long as it is wide, got {width} x {height}"
        )
    scale = size / max(height, width)
    if scale < 1:
        smaller = [max(SMALLEST, round(scale * n)) for n in (height, width)]
        image = transform.resize(image, smaller, anti_aliasing=True)
    return image


def _read(file: str) -> np.ndarray:
    """The numbers of an image file."""
    path = Path(file)
    if path.is_dir():
        raise CommandError(f"expected --image to be a file, got the folder {file}")
    if not path.exists():
        raise CommandError(f"no such file: {file}")
    try:
        with Image.open(file) as picture:
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith(("I", "F")):  # more than 8 bits: as they are
                return np.asarray(upright)
            return np.asarray(upright.convert("RGB"))
    except UnidentifiedImageError as error:
        if path.suffix.lower() not in (".tif", ".tiff"):  # of three floats: the next reader's
            raise CommandError(f"cannot read {file}: it is no image that Pillow knows") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CommandError(f"cannot read {file}: {error}") from error
    try:
        return io.imread(file)
    except (OSError, ValueError, SyntaxError) as error:
        raise CommandError(f"cannot read {file}: {str(error).splitlines()[0]}") from error


def _colours(image: np.ndarray) -> np.ndarray:
    """Numbers of any type as colours in [0, 1].  # (H, W) or (H, W, 1 | 2 | 3 | 4) -> (H, W, 3)"""
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] > 4:
        raise CommandError(f"expected a photograph, got an array of shape {image.shape}")
    image = image[..., :3] if image.shape[2] > 2 else image[..., :1].repeat(3, axis=2)
    if image.dtype == np.uint8:
        return image / 255
    if image.dtype == np.uint16:
        return image / 65535
    low, high = float(image.min()), float(image.max())
    for white in (1, 255, 65535):
        if 0 <= low and high <= white:
            return image.astype(np.float64) / white
    raise CommandError(
        "expected a photograph whose numbers are from 0 to 1, 255 or 65535, "
        f"got {image.dtype} from {low:g} to {high:g}"
    )
