"""The driver: kernels by number, and launches whose arguments lie in the host's memory."""

import ctypes

import numpy as np

from . import runtime
from .stream import check_current, enqueue

_BUFFER, _SIZE, _END = 1, 2, 0
_functions = []


def enter(kernel):
    """The number of a kernel, for `launchKernel`: a function of grid, block, arguments, ..."""
    _functions.append(kernel)
    return 0x7000 + len(_functions) - 1


def launchKernel(
    f, grid_dim_x, grid_dim_y, grid_dim_z, block_dim_x, block_dim_y, block_dim_z,
    shared_mem_bytes, stream, kernel_params, extra,
):  # fmt: skip
    """Start a kernel with the arguments that `extra` tells of, which are copied before."""
    if kernel_params:
        raise NotImplementedError("an array of pointers to arguments")
    words = np.array((ctypes.c_uint64 * 5).from_address(extra)).tolist()
    if words[0] != _BUFFER or words[2] != _SIZE or words[4] != _END:
        raise runtime.CUDARuntimeError("CUDA_ERROR_INVALID_VALUE", f"extra = {words}")
    size = ctypes.c_size_t.from_address(words[3]).value
    check_current(stream)
    work = _functions[f - 0x7000](
        (grid_dim_x, grid_dim_y, grid_dim_z),
        (block_dim_x, block_dim_y, block_dim_z),
        ctypes.string_at(words[1], size),
        shared_mem_bytes,
    )
    enqueue(work)
