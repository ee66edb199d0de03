"""What a unit of kernels has, and in which orders the emulator runs the blocks of one."""

import re

from cudeform.cuda.compile import flatten

__all__ = ["SCHEDULES", "kernel_names", "planted"]

SCHEDULES = [("ascending", 0), ("descending", 0), ("random", 1), ("random", 2)]


def kernel_names(unit):
    return re.findall(r'extern "C" __global__.*?\)?\s+(\w+)\(const', flatten(unit))


def planted(old, new, file):
    """What flattens units for an `EmulatorDevice`, with a text of `file` replaced."""

    def flattened(unit):
        text = flatten(unit)
        assert unit.file != file or text.count(old) == 1
        return text.replace(old, new)

    return flattened
