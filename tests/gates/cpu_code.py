"""The machine code of the CPU's hot loops, for any processor that LLVM can write it for.

``python -m gates.cpu_code CPU [TRIPLE]`` prints what is wrong with it and how much it read. A
process has one target, chosen before the package is imported, whose sizes follow from it; what it
compiles is not run.
"""

import importlib
import json
import pkgutil
import re
import sys
import typing
from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["Loop", "faults", "inner_loops"]

# Names of vector registers; a spill of another kind is a scalar or an address
VECTOR = re.compile(r"%[xyz]mm\d|\b[qz]\d")


# Its floor is a call, around which everything is in memory
NO_ROUNDING = "x86-64"
# Loops with integers of 64 bits, once for a point of a tap: they want the registers of AVX-512
CROWDED = {"_resolve", "_weigh"}
# A store of a whole vector
STORE = re.compile(r"v?mov([ua]p[sd]|dq[ua]\d*)\t%[xyz]mm\d+, .*\(|st[rp]\tq\d")


class Loop(typing.NamedTuple):
    """An innermost loop, as LLVM's comments mark it."""

    function: str
    header: str
    lines: list[str]


def inner_loops(code: str) -> list[Loop]:
    """Those of an assembly listing with comments."""
    function, block, place = "", "", None
    loops: dict[str, Loop] = {}
    lines: list[tuple[str | None, str]] = []  # each with the header of the loop that it is in
    for line in code.splitlines():
        label = re.match(r'"?([^\s"]+)"?:', line)
        if label:
            block = label[1].removeprefix(".L").removeprefix("L")
            if not re.match(r"\.?L", line):
                function = label[1]
        if label or re.match(r"\s*(#|//) %bb\.", line):
            place = None
        if "This Inner Loop Header" in line:
            place, loops[block] = block, Loop(function, block, [])
        elif around := re.search(r"in Loop: Header=(\w+)", line):
            place = around[1]
        lines.append((place, line))
    for place, line in lines:
        if place in loops and not re.match(r"\s*(#|//)|\S", line):
            loops[place].lines.append(line.strip())
    return list(loops.values())


def faults(code: str) -> list[str]:
    """Vectors that an innermost loop keeps in memory, because the registers do not suffice."""
    return [
        f"{loop.function} {loop.header}: {line}"
        for loop in inner_loops(code)
        for line in loop.lines
        if re.search(r"-byte (Folded )?(Spill|Reload)", line) and VECTOR.search(line)
    ]


def in_vectors(code: str, name: str) -> bool:
    """Whether an innermost loop of a function writes whole vectors of results."""
    loops = (loop for loop in inner_loops(code) if name in loop.function)
    stores = (STORE.match(line) for loop in loops for line in loop.lines)
    return any(found and "Spill" not in found.string for found in stores)


def aim(cpu: str, triple: str | None = None) -> None:
    """Let Numba compile for a processor; "host" is this one."""
    import llvmlite.binding
    from numba.core import config

    if cpu != "host":
        config.CPU_NAME, config.CPU_FEATURES = cpu, ""
    if triple:
        llvmlite.binding.initialize_all_targets()
        llvmlite.binding.initialize_all_asmprinters()
        llvmlite.binding.get_process_triple = lambda: triple


def products() -> Iterator[Any]:
    """The product as kernels call it: LLVM makes it a part of them, with the steps that are 1."""
    from cudeform.cpu.language.compiler import inner
    from cudeform.cpu.language.matmul import multiply

    @inner
    def across_columns(a, b, c, n):
        multiply(a, (0, n, 1), b, (0, n, n), c, (0, n), (n, n, n), False)

    @inner
    def fresh_columns(a, b, c, n):
        multiply(a, (0, n, 1), b, (0, n, n), c, (0, n), (n, n, n), True)

    @inner
    def down_columns(a, b, c, n):
        multiply(a, (0, 1, n), b, (0, n, n), c, (0, n), (n, n, n), False)

    yield from (across_columns, fresh_columns, down_columns)


def hot(dtype: Any) -> Iterator[tuple[Any, tuple]]:
    """The functions with vectors in their loops, and arguments of the types that they get."""
    from cudeform.cpu import located, sample_gradients, sampler, sorting, spreading, taps
    from cudeform.cpu.language import halves, matmul, rows, transpose
    from cudeform.cpu.regions import blocking, patches, staging, strips

    flat = np.zeros(0, dtype)
    given = transpose.frozen(flat, flat)
    whole, tiny = np.zeros(0, np.int64), np.zeros(0, np.uint8)
    grid = sampler.Grid(*[0] * len(sampler.Grid._fields))
    image, points = sampler.Image(*[0] * len(sampler.Image._fields)), (whole, tiny, flat)
    tile = patches.Tile(whole, flat, whole, whole, whole, flat, flat)
    yield matmul.multiply, (flat, (0, 0, 0), given, (0, 0, 0), flat, (0, 0), (0, 0, 0), False)
    for product in products():
        yield product, (flat, given, flat, 0)
    yield transpose.transpose, (given, 0, 0, 0, 0, flat, 0, 0)
    yield sampler.blend, (grid, points, 0, given, image, flat, 0)
    yield sample_gradients.measure, (grid, points, 0, given, image, flat, 0, flat, 0)
    yield sample_gradients.spread, (grid, points, 0, flat, 0, flat, image)
    yield sample_gradients.spread_between, (grid, points, 0, flat, 0, flat, image, (0, 0))
    yield sample_gradients.differentiate, (grid, points, 0, given, image, flat, 0, flat, 0, flat)
    place, size = (0, 0), (0, 0, 0, 0)
    yield taps.sum_taps, (grid, points, 0, given, image, given, place, flat, 0)
    yield taps.grad_samples, (size, flat, 0, given, place, flat, 0)
    yield taps.grad_weights, ((0, 0, 0, place), flat, 0, flat, 0, flat, place)
    block, view = (flat, np.zeros(0, np.int32)), located.View(0, 0, 0)
    kinds = [given]
    if dtype == np.float32:  # which words of 16 bits are widened to, here in few steps
        words = (np.int16, np.uint16) if halves.CONVERTS else (np.uint16,)
        kinds += [transpose.frozen(np.zeros(0, kind), flat) for kind in words]
    for source in kinds:
        kept = np.zeros(0, source.dtype)
        yield rows.read_rows, (source, flat, (0, 0, 0, 0), (0, 0))
        yield rows.split_pairs, (source, flat, (0, 0, 0, 0), (0, 0), 0)
        yield rows.write_rows, (flat, kept, (0, 0, 0, 0), (0, 0))
        yield rows.join_pairs, (flat, kept, (0, 0, 0, 0), (0, 0), 0)
        for nearest in None, True:
            yield located.sum_points, (block, located.Rows(0, 0), source, view, flat, nearest)
            yield located.dot_points, (block, located.Rows(0, 0), source, view, flat, flat, nearest)
    yield spreading.spread_points, (block, located.Rows(0, 0), flat, flat, view, (0, 0), None)
    places = np.zeros(0, np.int32)
    yield sorting.add_listed, ((0, 0), places, flat, given, view, flat, view, 0)
    yield patches.blend_tile, (tile, 0, flat, 0, 0, flat)
    yield patches.measure_tile, (tile, 0, flat, 0, 0, flat, flat)
    yield patches.spread_tile, (tile, 0, flat, 0, 0, flat)
    job = blocking.Job(*[0] * len(blocking.Job._fields))
    planes = whole, staging.View(*[0] * len(staging.View._fields)), given
    yield strips.blend_bins, (job, tile, 0, planes, 0, flat, flat, flat)
    yield strips.measure_bins, (job, tile, 0, planes, 0, flat, flat, flat, flat)


def geometry(dtype: Any) -> Iterator[tuple[Any, tuple]]:
    """The loops over points of which LLVM is to make vectors of points."""
    from cudeform.cpu import located, sampler

    flat, whole = np.zeros(0, dtype), np.zeros(0, np.int64)
    block = (flat, np.zeros(0, np.int32))
    grid = sampler.Grid(*[0] * len(sampler.Grid._fields))
    state = np.zeros(0, np.uint8)
    yield sampler._resolve, (grid, 0, whole, whole, state, flat, 0)
    yield sampler._weigh, (grid, state, flat, 0)
    yield located.locate_points, (block, 0)
    yield located.locate_beside, (block, 0, dtype(1))
    yield located.locate_nearest, (block, 0)
    yield located._find_corners, (block, 0)
    yield located._weigh_corners, (block, 0)
    for factor in None, dtype(1):
        yield located.slopes, (block, 0, flat, factor)


_NAMES = {"fma", "add_product", "add_low_product", "transpose_square", "lanes"}


def with_vectors() -> set[str]:
    """All functions of the CPU backend that have vectors in them and are compiled by themselves."""
    from numba.core.dispatcher import Dispatcher

    import cudeform.cpu

    names = set()
    for found in pkgutil.walk_packages(cudeform.cpu.__path__, "cudeform.cpu."):
        for value in vars(importlib.import_module(found.name)).values():
            if isinstance(value, Dispatcher) and value.targetoptions.get("no_cpython_wrapper"):
                if _NAMES & {*value.py_func.__code__.co_names}:
                    names.add(value.py_func.__name__)
    return names


def main(cpu: str, triple: str | None = None) -> None:
    aim(cpu, triple)
    from numba import jit, typeof
    from numba.core.codegen import JITCodeLibrary
    from numba.core.registry import cpu_target
    from numba.types import Array, NamedTuple, Tuple

    from cudeform.cpu.language import bare, pipeline, simd

    class Alone(pipeline._Whole):
        """What LLVM sees by itself before it sees the kernel around it."""

        _optimize_functions = JITCodeLibrary._optimize_functions

    def handed(kind: Any) -> Any:
        """The type of an argument as kernels hand it on."""
        if isinstance(kind, Array):
            return bare._Bare(kind.dtype)
        if isinstance(kind, Tuple):
            return Tuple([handed(each) for each in kind])
        if isinstance(kind, NamedTuple):
            return NamedTuple([handed(each) for each in kind], kind.instance_class)
        return kind

    cpu_target.target_context.codegen()._tm.set_asm_verbosity(True)
    found: dict[str, Any] = {"bytes": simd.BLOCK_BYTES, "rows": simd.BLOCK_ROWS}
    found |= {"faults": [], "loops": {}}
    for dtype in (np.float32, np.float64):
        points = list(geometry(dtype))
        for function, arguments in [*hot(dtype), *points]:
            types = tuple(handed(typeof(argument)) for argument in arguments)
            # down to machine code, which is not written of what kernels call
            given = function._compiler.pipeline_class

            class Compiler(pipeline.Kernels):
                library = Alone if given is pipeline.Parts else pipeline._Whole
                apart = given.apart

            whole = jit(pipeline_class=Compiler, **function.targetoptions)(function.py_func)
            whole.compile(types)
            code = whole.inspect_asm(types)
            name = function.py_func.__name__
            where = f"{np.dtype(dtype)}, "
            if function not in [each for each, _ in points]:
                found["faults"] += [where + fault for fault in faults(code)]
            elif not in_vectors(code, name):
                found["faults"].append(f"{where}{name}: no loop over points is one of vectors")
            elif cpu != NO_ROUNDING and (name not in CROWDED or simd.BLOCK_BYTES == 128):
                found["faults"] += [where + fault for fault in faults(code)]
            found["loops"].setdefault(name, []).extend(len(x.lines) for x in inner_loops(code))
    found["missing"] = sorted(with_vectors() - found["loops"].keys())
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
