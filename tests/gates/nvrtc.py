"""NVRTC through ctypes: it compiles for any GPU; CuPy would ask the one in the machine."""

import ctypes
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from typing import NamedTuple

__all__ = [
    "WHEELS",
    "Binary",
    "CompileError",
    "Missing",
    "Resources",
    "compile",
    "ptx",
    "wheel_file",
]

WHEELS = {12: "nvidia-cuda-nvrtc-cu12", 13: "nvidia-cuda-nvrtc"}  # by CUDA's major version

OPTIONS = ("-ftz=true",)  # what CuPy gives NVRTC besides a unit's own


class Missing(Exception):
    """A wheel that the gates need is not installed."""


class CompileError(Exception):
    """NVRTC's log of a compilation that failed."""


class Resources(NamedTuple):
    """What a thread of a kernel takes, and a block of shared memory; all but registers in bytes."""

    registers: int
    spill: int
    stack: int
    shared: int


class Binary(NamedTuple):
    """A unit as machine code, and what ptxas says of its kernels."""

    cubin: bytes
    resources: dict[str, Resources]


def wheel_file(wheel: str, name: str):
    """The path of a file that an installed wheel brought, by the beginning of its name."""
    try:
        files = distribution(wheel).files or []
    except PackageNotFoundError:
        raise Missing(f"needs the wheel {wheel}: pip install {wheel}") from None
    for file in files:
        if file.name.startswith(name):
            return file.locate()
    raise Missing(f"the wheel {wheel} {version(wheel)} has no {name}")


@cache
def _library(major: int):
    # Loaded before it is asked for by name alone, which finds it in no folder of the system's.
    builtins = wheel_file(WHEELS[major], f"libnvrtc-builtins.so.{major}")
    ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(wheel_file(WHEELS[major], f"libnvrtc.so.{major}")))
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def architectures(major: int) -> list[str]:
    """Every architecture that this NVRTC compiles for."""
    library = _library(major)
    count = ctypes.c_int()
    library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    numbers = (ctypes.c_int * count.value)()
    library.nvrtcGetSupportedArchs(numbers)
    return [f"sm_{number}" for number in numbers]


def compile(text: str, arch: str, major: int, options=("-std=c++17",)) -> Binary:
    """Compile a unit's text; CompileError if that fails."""
    given = (*options, *OPTIONS, "--ptxas-options=-v", f"-arch={arch}")
    log, cubin = _compiled(text, major, given, "CUBIN")
    return Binary(cubin, _resources(log))


def ptx(text: str, arch: str, major: int, options=("-std=c++17",)) -> str:
    """What a unit's text is before it becomes machine code; `arch` is a virtual one, compute_80."""
    _, found = _compiled(text, major, (*options, *OPTIONS, f"-arch={arch}"), "PTX")
    return found.rstrip(b"\0").decode()


def _compiled(text: str, major: int, options: tuple[str, ...], what: str) -> tuple[str, bytes]:
    """NVRTC's log, and what it was asked for."""
    library = _library(major)
    program = ctypes.c_void_p()
    _checked(
        library,
        "nvrtcCreateProgram",
        ctypes.byref(program),
        text.encode(),
        b"unit.cu",
        0,
        None,
        None,
    )
    try:
        array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        status = library.nvrtcCompileProgram(program, len(options), array)
        log = _output(library, program, "ProgramLog").rstrip(b"\0").decode()
        if status:
            raise CompileError(log)
        return log, _output(library, program, what)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _checked(library, function: str, *arguments) -> None:
    status = getattr(library, function)(*arguments)
    if status:
        raise RuntimeError(f"{function}: {library.nvrtcGetErrorString(status).decode()}")


def _output(library, program, what: str) -> bytes:
    size = ctypes.c_size_t()
    _checked(library, f"nvrtcGet{what}Size", program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    _checked(library, f"nvrtcGet{what}", program, buffer)
    return buffer.raw


def _resources(log: str) -> dict[str, Resources]:
    """Kernels and their resources from ptxas's report."""

    def number(pattern: str, text: str) -> int:
        return sum(int(found) for found in re.findall(pattern, text))

    parts = re.split(r"Compiling entry function '(\w+)'", log)
    return {
        kernel: Resources(
            number(r"Used (\d+) registers", report),
            number(r"(\d+) bytes spill", report),
            number(r"(\d+) bytes stack frame", report),
            number(r"(\d+) bytes smem", report),
        )
        for kernel, report in zip(parts[1::2], parts[2::2], strict=True)
    }
