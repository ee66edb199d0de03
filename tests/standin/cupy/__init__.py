"""A stand-in for CuPy on a machine without a GPU: see ../README.md."""

from . import cuda
from ._array import (
    abs,
    asarray,
    asnumpy,
    clip,
    concatenate,
    copysign,
    empty,
    flip,
    floor,
    from_dlpack,
    moveaxis,
    ndarray,
    ones_like,
    swapaxes,
    tile,
    zeros,
    zeros_like,
)
from ._raw import RawKernel, RawModule

__all__ = [
    "RawKernel",
    "RawModule",
    "abs",
    "asarray",
    "asnumpy",
    "clip",
    "concatenate",
    "copysign",
    "cuda",
    "empty",
    "flip",
    "float32",
    "float64",
    "floor",
    "from_dlpack",
    "get_default_memory_pool",
    "moveaxis",
    "ndarray",
    "ones_like",
    "swapaxes",
    "tile",
    "zeros",
    "zeros_like",
]
__version__ = "14.2.0 (stand-in)"

from numpy import float32, float64  # noqa: E402


def get_default_memory_pool():
    return cuda.memory.default
