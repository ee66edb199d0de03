"""Compiles a unit's text with g++ against the emulator, caches the library, and loads it."""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = ("runtime.cpp", "shared_memory.cpp", "checker.cpp", "counter.cpp")
HEADERS = ("runtime.h", "fiber.h", "shim.h", "collectives.h", "intrinsics.h")

COMPILER = "g++"
# -fno-gnu-unique and -Bsymbolic: statics of templates are not shared between units of one process.
# -ffp-contract=off: only fmaf fuses, so that results do not depend on the host.
COMMON_FLAGS = (
    *("-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique"),
    *("-fno-exceptions", "-fno-rtti", "-ffp-contract=off"),
)
RUNTIME_FLAGS = ("-O2", "-Wall", "-Wextra")
# -w: g++ warns of the pragmas that it does not know. DWARF 4: addr2line of binutils 2.40 mistakes
# the unit's own name for that of the first #line in DWARF 5.
UNIT_FLAGS = ("-O1", "-fno-tree-sra", "-gdwarf-4", "-w")
CHECK_FLAGS = (
    "-fsanitize=thread",
    "-fsanitize=alignment,bounds,float-cast-overflow,integer-divide-by-zero,shift",
    "-fsanitize=signed-integer-overflow",
    *("--param", "tsan-instrument-func-entry-exit=0"),
)

KERNEL = re.compile(
    r'extern\s+"C"\s+__global__\s+(?:void\s+)?(?:__launch_bounds__\s*\([^)]*\)\s*)?(?:void\s+)?(\w+)\s*\('
)


class BuildError(RuntimeError):
    """g++ is missing or refuses the text."""


class Array(ctypes.Structure):
    """``emulator::Array`` of runtime.h."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("argument", ctypes.c_int),
        ("writable", ctypes.c_int),
    ]


class Failure(ctypes.Structure):
    """``emulator::Failure`` of runtime.h."""

    _fields_ = [
        ("failed", ctypes.c_int),
        ("what", ctypes.c_char * 400),
        ("pc", ctypes.c_size_t),
        ("other_pc", ctypes.c_size_t),
        ("block", ctypes.c_uint * 3),
        ("thread", ctypes.c_uint * 3),
    ]


class Work(ctypes.Structure):
    """``emulator::Work`` of runtime.h."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "read_bytes",
            "written_bytes",
            "read_sectors",
            "written_sectors",
            "wide_reads",
            "atomics",
            "accesses",
            "shared_read_bytes",
            "shared_written_bytes",
            "shared_atomics",
        )
    ]


class Launch(ctypes.Structure):
    """``emulator::Launch`` of runtime.h."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_size_t),
        ("shared_limit", ctypes.c_size_t),
        ("order", ctypes.c_int),
        ("check", ctypes.c_int),
        ("count", ctypes.c_int),
        ("seed", ctypes.c_uint64),
        ("arrays", ctypes.POINTER(Array)),
        ("array_count", ctypes.c_int),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("failure", Failure),
        ("work", Work),
    ]


class Parameter(ctypes.Structure):
    """``emulator::Parameter`` of shim.h: what a kernel expects at one position."""

    _fields_ = [("kind", ctypes.c_char), ("read_only", ctypes.c_char), ("bytes", ctypes.c_int)]


class Library:
    """A compiled unit."""

    def __init__(self, path: Path, kernels: list[str]):
        self.path = path
        self.kernels = kernels
        self._library = ctypes.CDLL(str(path))

    def signature(self, kernel: str) -> list[Parameter]:
        """Return the parameters of `kernel`."""
        function = self._library[f"emulator_signature_{kernel}"]
        function.restype = ctypes.POINTER(Parameter)
        parameters = []
        for parameter in function():
            if parameter.kind == b"\0":
                return parameters
            parameters.append(parameter)

    def run(self, kernel: str, launch: Launch) -> None:
        """Run one grid; problems are left in ``launch.failure``."""
        self._library[f"emulator_run_{kernel}"](ctypes.byref(launch))

    def lines(self, offset: int) -> list[str]:
        """Return ``file:line`` of an instruction, innermost inlined function first."""
        # The offset is a return address: the call lies before it.
        command = ["addr2line", "-i", "-e", str(self.path), hex(offset - 1)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        places = [Path(line.split(" ")[0]).name for line in answer.splitlines()]
        return [place for place in places if place.split(":")[0] not in HEADERS]


def kernel_names(text: str) -> list[str]:
    """Return the names of the kernels in a unit's text."""
    return KERNEL.findall(text)


def load(text: str, *, check: bool) -> Library:
    """Compile `text` (a unit after `flatten`), or find it in the cache, and load it."""
    return _load(text, check, cache_folder())


@functools.cache
def _load(text: str, check: bool, folder: Path) -> Library:
    kernels = kernel_names(text)
    exports = "".join(f"EMULATOR_EXPORT({name})\n" for name in kernels)
    source = f'{text}\n#line 1 "exports"\n{exports}'
    flags = [*COMMON_FLAGS, *UNIT_FLAGS, *(CHECK_FLAGS if check else ())]
    path = folder / f"{_key(source, *flags)}.so"
    if not path.exists():
        objects = [_runtime_object(name, folder) for name in SOURCES]
        command = ["-shared", "-Wl,-Bsymbolic", *COMMON_FLAGS]
        with tempfile.TemporaryDirectory() as scratch:
            unit = Path(scratch) / "unit.cpp"
            unit.write_text(source)
            unit_object = unit.with_suffix(".o")
            include = ["-include", str(HERE / "shim.h")]
            _compile([*flags, *include, "-c", str(unit)], unit_object)
            _compile([*command, str(unit_object), *map(str, objects)], path)
    return Library(path, kernels)


def _runtime_object(name: str, folder: Path) -> Path:
    flags = [*COMMON_FLAGS, *RUNTIME_FLAGS]
    path = folder / f"{_key(name, *flags)}.o"
    if not path.exists():
        _compile([*flags, "-c", str(HERE / name)], path)
    return path


def shared_library(source: Path) -> Path:
    """Compile a file on its own, or find it in the cache."""
    path = cache_folder() / f"{_key(source.read_text())}.so"
    if not path.exists():
        _compile(["-shared", "-fPIC", "-O1", "-Wall", str(source)], path)
    return path


def cache_folder() -> Path:
    """Return the folder of compiled units, which is made if needed."""
    root = os.environ.get("CUDEFORM_CACHE_DIR") or Path.home() / ".cache" / "cudeform"
    folder = Path(root) / "emulator"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def _emulator_text() -> str:
    return "".join((HERE / name).read_text() for name in (*HEADERS, *SOURCES))


def _key(*parts: str) -> str:
    text = "\0".join((*parts, COMPILER, _emulator_text()))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _compile(arguments: list[str], output: Path) -> None:
    """Run g++; `output` appears whole or not at all, whatever other processes do."""
    if not shutil.which(COMPILER):
        raise BuildError("the emulator needs the compiler g++ 12 or later (Debian package: g++)")
    handle, unfinished = tempfile.mkstemp(dir=output.parent, suffix=output.suffix)
    os.close(handle)
    try:
        result = subprocess.run(
            [COMPILER, *arguments, "-o", unfinished], capture_output=True, text=True
        )
        if result.returncode:
            raise BuildError(f"g++ refuses the kernels:\n{result.stderr}")
        os.replace(unfinished, output)
    finally:
        Path(unfinished).unlink(missing_ok=True)
