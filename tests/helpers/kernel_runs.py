"""What a unit of kernels has, and in which orders the emulator runs the blocks of one."""

import re

from cudeform.cuda.compile import flatten

__all__ = ["SCHEDULES", "kernel_names"]

SCHEDULES = [("ascending", 0), ("descending", 0), ("random", 1), ("random", 2)]


def kernel_names(unit):
    return re.findall(r'extern "C" __global__.*?\)?\s+(\w+)\(const', flatten(unit))
