"""A device that runs what NVRTC makes of the kernels, in the place of the emulator's."""

from __future__ import annotations

from functools import cache
from typing import Any

from emulator.device import EmulatorDevice, Launched
from gates import nvrtc, table

from cudeform.cuda.compile import flatten

from .machine import Machine
from .program import Fault, parse

__all__ = ["UNFUSED", "PtxDevice"]

UNFUSED = ("--fmad=false",)  # a product and a sum are rounded each, as in the emulator


class PtxDevice(EmulatorDevice):
    """Same interface as the ``CupyDevice``; arrays and matrix products are those of the emulator.

    Parameters
    ----------
    arch : str
        The architecture that NVRTC is told of, the one of the version of CUDA that has it here.
    options : tuple of str
        For NVRTC, besides those that CuPy gives it.
    edit : callable, optional
        ``(unit, text) -> text`` of PTX, before it is run.

    Attributes
    ----------
    launches : list of Launched
        Every launch since the device was made; its `work` is that of `machine.Ran`.
    """

    name = "ptx"

    def __init__(self, *, arch="compute_80", options=(), edit=None):
        super().__init__()
        self.arch, self.options = arch, options
        self._edit = edit

    def machine(self, unit: Any, kernel: str) -> Machine:
        """A kernel, ready to run."""
        text = _ptx(unit, self.arch, self.options)
        return _machine(text if self._edit is None else self._edit(unit, text), kernel)

    def launch(self, unit, kernel, grid, block, arrays, params, shared_bytes=0) -> None:
        """Run `kernel` of `unit` and return when it is done."""
        if params.dtype != unit.params:
            raise Fault(f"{kernel}: expected params of dtype {unit.params}, got {params.dtype}")
        for position, array in enumerate(arrays):
            if array is not None and not array.flags.c_contiguous:
                raise Fault(f"{kernel}: argument {position} is not C-contiguous")
        ran = self.machine(unit, kernel).run(grid, block, arrays, params, shared_bytes)
        self.launched.add((unit.file, unit.defines, kernel))
        launched = Launched(unit.file, unit.defines, kernel, grid, block, ran._asdict())
        self.launches.append(launched)


@cache
def _ptx(unit: Any, arch: str, options: tuple[str, ...]) -> str:
    major = table.cuda_of(arch.replace("compute", "sm"))
    return nvrtc.ptx(flatten(unit), arch, major, (*unit.options, *options))


@cache
def _machine(text: str, kernel: str) -> Machine:
    kernels = parse(text)
    if kernel not in kernels:
        raise Fault(f"no kernel {kernel}")
    return Machine(kernels[kernel])
