"""What is compiled for which GPU, what is recorded of it, and the record itself."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cudeform.cuda.compile import Unit, flatten
from cudeform.registry import OPERATORS

from . import nvrtc, sass

__all__ = [
    "ARCHITECTURES",
    "HOT",
    "PATH",
    "binary",
    "compilations",
    "compilers",
    "cuda_of",
    "difference",
    "is_recorded",
    "kernel_name",
    "kernels_of",
    "lints",
    "listings_of",
    "loops_of",
    "name_of",
    "read",
    "recorded",
    "text",
    "units",
    "write",
]

PATH = Path(__file__).with_name("resources.json")

# The architectures by CUDA's major version: all that CUDA 13 compiles for, and what it dropped.
ARCHITECTURES = {
    12: ("sm_70",),
    13: tuple(f"sm_{n}" for n in (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)),
}
# Every unit is compiled for these, and for the others, unless CUDEFORM_GATES=full, those of
# `_is_typical`: on two cores the difference is one minute or three.
THOROUGH = ("sm_70", "sm_75", "sm_90", "sm_120")
LINTED = ("sm_80", "sm_90", "sm_120")  # whose machine code is read

VECTOR_BYTES = 16
SCALAR_BYTES = {"float16": 2, "bfloat16": 2, "float": 4, "double": 8}

# Kernels that spend their time in one loop over packs of channels
HOT = {
    ("sampling.cu", "sample"): sass.Hot(4, 1),
    ("sampling.cu", "corner_dots"): sass.Hot(5, 0),
    ("sampling.cu", "gather_input"): sass.Hot(1, 0, chained=False),
    ("sampling.cu", "gather_input_split"): sass.Hot(1, 0, chained=False),
    ("sampling.cu", "gather_input_sums"): sass.Hot(1, 0, chained=False),
    ("aggregate.cu", "aggregate"): sass.Hot(4, 0),
    ("aggregate.cu", "aggregate_nearest"): sass.Hot(1, 0),
    ("aggregate.cu", "point_gradients"): sass.Hot(4, 0),
    ("aggregate.cu", "point_gradients_nearest"): sass.Hot(1, 0),
    ("gather_values.cu", "gather_value"): sass.Hot(1, 0),
    ("regions.cu", "pool"): sass.Hot(4, 0),
    ("regions.cu", "row_gradients"): sass.Hot(4, 0),
    ("regions.cu", "pool_mean"): sass.Hot(1, 0),
    ("regions.cu", "pool_max"): sass.Hot(1, 0),
}


def units() -> list[Unit]:
    """Every variant that a call of any operator can ask for."""
    families = dict.fromkeys(operator.family for operator in OPERATORS)
    modules = [import_module(f"cudeform.cuda.{family}") for family in families]
    return list(dict.fromkeys(unit for module in modules for unit in module.units()))


def name_of(unit: Unit) -> str:
    """A unit as the record and the tests call it: sampling.cu-float16-8-int."""
    return "-".join([unit.file, *(value.replace(" ", "_") for _, value in unit.defines)])


@cache
def _names() -> dict[tuple[Any, ...], str]:
    return {(unit.file, unit.defines): name_of(unit) for unit in units()}


def kernel_name(launched: Any) -> str:
    """A launch's kernel as the record of work calls it: by its unit's name and its own."""
    return f"{_names()[launched.file, launched.defines]} {launched.kernel}"


def _is_widest(unit: Unit) -> bool:
    defines = dict(unit.defines)
    width = int(defines.get("VEC", 0))
    return width > 0 and width * SCALAR_BYTES[defines["SCALAR"]] == VECTOR_BYTES


def _is_typical(unit: Unit) -> bool:
    """A unit that arrays of usual sizes and channel counts ask for."""
    defines = dict(unit.defines)
    return defines.get("INDEX") != "long long" and ("VEC" not in defines or _is_widest(unit))


def is_recorded(unit: Unit, arch: str) -> bool:
    """Whether this compilation is one of every run, and recorded."""
    return arch in THOROUGH or _is_typical(unit)


def compilations(full: bool | None = None) -> Iterator[tuple[Unit, str]]:
    """The units and the architectures that each is compiled for."""
    full = os.environ.get("CUDEFORM_GATES") == "full" if full is None else full
    for unit in units():
        for arch in (arch for archs in ARCHITECTURES.values() for arch in archs):
            runs = int(arch.removeprefix("sm_")) >= unit.capability
            if runs and (full or is_recorded(unit, arch)):
                yield unit, arch


def lints() -> Iterator[tuple[Unit, str]]:
    """The units and architectures whose machine code is read: 128 bits hold a pack of channels."""
    files = {file for file, _ in HOT}
    for unit in units():
        if unit.file in files and _is_typical(unit) and ("SCALAR", "double") not in unit.defines:
            yield from ((unit, arch) for arch in LINTED)


def cuda_of(arch: str) -> int:
    """The major version of the CUDA that compiles for an architecture here."""
    return next(major for major, archs in ARCHITECTURES.items() if arch in archs)


@cache
def binary(unit: Unit, arch: str) -> nvrtc.Binary:
    """A unit as CuPy would compile it on such a GPU."""
    return nvrtc.compile(flatten(unit), arch, cuda_of(arch), unit.options)


def kernels_of(unit: Unit, arch: str) -> dict[str, list[int]]:
    """What is recorded of a compilation: the resources of each kernel."""
    return {kernel: list(used) for kernel, used in sorted(binary(unit, arch).resources.items())}


@cache
def listings_of(unit: Unit, arch: str) -> dict[str, list[str]]:
    """The machine code of each kernel."""
    return sass.disassemble(binary(unit, arch).cubin)


def loops_of(unit: Unit, arch: str) -> dict[str, list[int]]:
    """What is recorded of the hot loops: the instructions, as sass.Cost counts them."""
    listings = listings_of(unit, arch)
    return {
        kernel: list(sass.cost(listings[kernel], hot.loads))
        for (file, kernel), hot in HOT.items()
        if file == unit.file
    }


def read() -> dict[str, Any]:
    """The record."""
    return json.loads(PATH.read_text())


def recorded(what: str, unit: Unit, arch: str) -> dict[str, list[int]]:
    """What `kernels_of` (`what` is "kernels") or `loops_of` ("loops") gave before."""
    by_kernel = read()[what].get(name_of(unit), {})
    return {kernel: archs[arch] for kernel, archs in by_kernel.items() if arch in archs}


def difference(what: str, unit: Unit, arch: str, found: dict[str, list[int]]) -> list[str]:
    """Where `found` is not what is recorded, in words."""
    before = recorded(what, unit, arch)
    columns = read()["columns"][what]
    return [
        f"{name_of(unit)} {kernel} {arch}: {column} {old} -> {new}"
        for kernel in sorted({*before, *found})
        for column, old, new in zip(
            columns,
            before.get(kernel, [None] * len(columns)),
            found.get(kernel, [None] * len(columns)),
            strict=True,
        )
        if old != new
    ]


def compilers() -> dict[str, str | None]:
    """The installed versions of the wheels that the record depends on."""

    def installed(wheel: str) -> str | None:
        try:
            return version(wheel)
        except PackageNotFoundError:
            return None

    return {wheel: installed(wheel) for wheel in (*nvrtc.WHEELS.values(), sass.WHEEL)}


def write(progress: Callable[[Iterable[Any], int], Iterable[Any]]) -> None:
    """Compile everything and write the record anew; `progress` passes results on as they come."""
    record: dict[str, Any] = {
        "compilers": compilers(),
        "columns": {
            "kernels": list(nvrtc.Resources._fields),
            "loops": list(sass.Cost._fields),
        },
    }
    jobs = [("kernels", kernels_of, *job) for job in compilations(full=False)]
    jobs += [("loops", loops_of, *job) for job in lints()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda job: job[1](*job[2:]), jobs)
        for (what, _, unit, arch), found in zip(jobs, progress(results, len(jobs)), strict=True):
            for kernel, numbers in found.items():
                archs = record.setdefault(what, {}).setdefault(name_of(unit), {})
                archs.setdefault(kernel, {})[arch] = numbers
    PATH.write_text(text(record))


def text(record: Any, indent: str = "") -> str:
    """JSON with a line for each innermost object, which makes differences readable."""
    if not isinstance(record, dict) or not any(isinstance(v, dict) for v in record.values()):
        return json.dumps(record)
    inner = indent + "  "
    lines = [f"{inner}{json.dumps(key)}: {text(value, inner)}" for key, value in record.items()]
    return "{\n" + ",\n".join(lines) + f"\n{indent}}}" + ("" if indent else "\n")
