"""A device that runs the CUDA kernels on the CPU, with the interface of the CuPy device."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import threading
from typing import NamedTuple

import numpy as np

from cudeform.cuda.program import Launch, Product, Programs

from . import build

GUARD_BYTES = 256
GUARD_BYTE = 0xA5
POISON_BYTE = 0xFF  # NaN in every floating dtype, -1 in the integers
ALIGNMENT = 256
ORDERS = ("ascending", "descending", "random")


class EmulatorError(RuntimeError):
    """A launch is wrong, or the kernel did something that it must not do on a GPU."""


class Memory(NamedTuple):
    """Where an array's first element is; named as in CuPy."""

    ptr: int


class Launched(NamedTuple):
    """One launch, and what it moved where that is counted: see ``emulator::Work`` of runtime.h."""

    file: str
    defines: tuple
    kernel: str
    blocks: int
    threads: int  # of a block
    work: dict[str, int]


class DeviceArray(np.ndarray):
    """An array that lives "on the emulated device": only the host's memory, marked by its type."""

    @property
    def data(self) -> Memory:
        return Memory(self.__array_interface__["data"][0])


def _allocate(shape, dtype) -> DeviceArray:
    """Return a poisoned array between guard bytes, aligned as an allocation on a GPU is."""
    shape = (shape,) if np.isscalar(shape) else tuple(shape)
    dtype = np.dtype(dtype)
    nbytes = math.prod(shape) * dtype.itemsize
    memory = np.full(nbytes + 2 * GUARD_BYTES + ALIGNMENT, GUARD_BYTE, np.uint8)
    start = _data_start(memory)
    data = memory[start : start + nbytes]
    data[...] = POISON_BYTE
    return data.view(dtype).reshape(shape).view(DeviceArray)


def _data_start(memory: np.ndarray) -> int:
    return GUARD_BYTES + -(memory.ctypes.data + GUARD_BYTES) % ALIGNMENT


def _guards_are_intact(array: np.ndarray) -> bool:
    memory = array
    while isinstance(memory.base, np.ndarray):
        memory = memory.base
    if isinstance(memory, DeviceArray) or memory.dtype != np.uint8:
        return True  # the result of NumPy arithmetic, which has no guards
    start = _data_start(memory)
    end = start + memory.size - 2 * GUARD_BYTES - ALIGNMENT
    return bool((memory[:start] == GUARD_BYTE).all() and (memory[end:] == GUARD_BYTE).all())


def to_device(x, *, read_only: bool = False) -> DeviceArray | None:
    """Copy `x` to the device, C-contiguous; None stays None."""
    if x is None:
        return None
    x = np.asarray(x)
    array = _allocate(x.shape, x.dtype)
    array[...] = x
    array.flags.writeable = not read_only
    return array


def to_host(x) -> np.ndarray | None:
    """Copy `x` to a plain NumPy array; None stays None."""
    return None if x is None else np.array(x)


@contextlib.contextmanager
def install(device: EmulatorDevice):
    """Let cudeform's public functions take `DeviceArray` and run their kernels on `device`.

    Within the ``with`` block ``cudeform.arrays`` sends a `DeviceArray` to the "cuda" backend, and
    ``cudeform.cuda.device`` gives that backend `device` for it.
    """
    from cudeform import arrays
    from cudeform.cuda.device import register

    arrays.register(DeviceArray, arrays.Kind("emulator", "cuda", lambda array: device.name))
    register(DeviceArray, lambda: device)
    try:
        yield device
    finally:
        arrays.register(DeviceArray, None)
        register(DeviceArray, None)


class EmulatorDevice:
    """Same interface as the ``CupyDevice``.

    Parameters
    ----------
    check : bool
        Look for races, accesses out of bounds, uninitialised shared memory, misaligned
        accesses and undefined arithmetic. Without it a launch is several times faster.
    order : {"ascending", "descending", "random"}
        The order in which blocks run, and the threads of a block between two barriers.
    seed : int
        Of the random order.
    flatten : callable, optional
        ``unit -> text``; ``cudeform.cuda.compile.flatten`` by default.
    count : bool
        Count what launches move. Wants `check`, and takes longer.

    Attributes
    ----------
    launches : list of Launched
        Every launch since the device was made, in order.
    products : int
        The matrix products since then.
    """

    name = "emulator"
    capability = 80
    multiprocessors = 4
    warp_size = 32
    max_threads = 1024
    max_shared_bytes = 48 * 1024

    def __init__(self, *, check=True, order="ascending", seed=0, flatten=None, count=False):
        if order not in ORDERS:
            raise ValueError(f"order: expected one of {ORDERS}, got {order!r}")
        self.check = check
        self.order = order
        self.seed = seed
        self.count = count
        self.launched: set[tuple] = set()  # (file, defines, kernel)
        self.launches: list[Launched] = []
        self.products = 0
        self.programs = _Forgetful()
        self._flatten = flatten

    def __repr__(self) -> str:
        return self.name

    def empty(self, shape, dtype) -> DeviceArray:
        """Return a new array full of NaN."""
        return _allocate(shape, dtype)

    def to_device(self, array) -> DeviceArray:
        """Return a copy on the device."""
        return to_device(array)

    def to_host(self, array) -> np.ndarray:
        """Return a copy as a plain array."""
        return to_host(array)

    def launch(self, unit, kernel, grid, block, arrays, params, shared_bytes=0) -> None:
        """Run `kernel` of `unit` and return when it is done.

        Raises
        ------
        EmulatorError
            The arguments do not fit the kernel, or the checker found something.
        """
        library = self.library(unit)
        if kernel not in library.kernels:
            raise EmulatorError(f"{unit.file} has no kernel {kernel}")
        launch = build.Launch(
            grid=_dimensions(kernel, "grid", grid, (2**31 - 1, 65535, 65535)),
            block=_dimensions(kernel, "block", block, (self.max_threads, self.max_threads, 64)),
            shared_bytes=shared_bytes,
            shared_limit=self.max_shared_bytes,
            order=ORDERS.index(self.order),
            check=self.check,
            count=self.count,
            seed=self.seed,
        )
        if math.prod(launch.block) > self.max_threads:
            raise EmulatorError(f"{kernel}: {tuple(launch.block)} is more than 1024 threads")
        if shared_bytes > self.max_shared_bytes:
            raise EmulatorError(f"{kernel}: {shared_bytes} bytes of shared memory are too many")
        params = _check_params(kernel, unit, params)
        _check_arguments(kernel, library.signature(kernel), arrays, params)
        read_only = [a for a in arrays if a is not None and not a.flags.writeable]
        before = [a.tobytes() for a in read_only]
        with _one_launch_at_a_time:
            _run(library, kernel, launch, arrays, params)
        if launch.failure.failed:
            raise EmulatorError(_describe(unit, kernel, library, launch.failure))
        self.launched.add((unit.file, unit.defines, kernel))
        self.launches.append(_launched(unit, kernel, launch))
        for array, content in zip(read_only, before, strict=True):
            if array.tobytes() != content:
                raise EmulatorError(f"{kernel} ({unit.file}): write into a read-only array")
        for position, array in enumerate(arrays):
            if array is not None and not _guards_are_intact(array):
                raise EmulatorError(
                    f"{kernel} ({unit.file}): out of bounds: write beside argument {position}"
                )

    def gemm(self, a, b, out, *, accumulate=False, precision="ieee") -> None:
        """Compute ``out[...] = a @ b``, plus `out` if `accumulate`, with one rounding.

        Operands are matrices or stacks of them, strided as they like. 16-bit operands are
        multiplied and summed in float32.
        """
        for name, array in (("a", a), ("b", b), ("out", out)):
            if not isinstance(array, DeviceArray):
                raise EmulatorError(
                    f"gemm: `{name}` is a {type(array).__name__}, not on the device"
                )
            if array.ndim not in (2, 3):
                raise EmulatorError(
                    f"gemm: expected `{name}` of 2 or 3 dimensions, got {array.ndim}"
                )
        sums = np.dtype(np.float64 if a.dtype == np.float64 else np.float32)
        if a.dtype != b.dtype or out.dtype not in (a.dtype, sums):
            raise EmulatorError(f"gemm: dtypes {a.dtype} @ {b.dtype} -> {out.dtype}")
        expected = (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        if a.shape[-1] != b.shape[-2] or out.shape != expected:
            raise EmulatorError(f"gemm: shapes {a.shape} @ {b.shape} -> {out.shape}")
        if not out.flags.writeable:
            raise EmulatorError("gemm: `out` is read-only")
        if precision not in ("ieee", "tf32"):
            raise EmulatorError(f"gemm: precision {precision!r}")
        from cudeform.cuda.gemm import gemm_arguments

        gemm_arguments(a, b, out)  # refuses strides that cuBLAS would refuse
        self.products += 1
        rounded = precision == "tf32" and a.dtype == np.float32
        left, right = (to_tf32(x) if rounded else to_host(x).astype(sums) for x in (a, b))
        product = left @ right
        if accumulate:
            product += out
        out[...] = product.astype(out.dtype)

    def prepare(self, program):
        """A function of the arguments that does a program's steps, with all arrays apart."""
        return functools.partial(_perform, self, program)

    def library(self, unit) -> build.Library:
        """Compile `unit`, or find it in the cache."""
        if self._flatten is None:
            from cudeform.cuda.compile import flatten

            self._flatten = flatten
        return build.load(self._flatten(unit), check=self.check)


class _Forgetful(Programs):
    """Every call is recorded anew: tests change what host code depends on."""

    def keep(self, key, kept):
        pass


def _perform(device: EmulatorDevice, program, given, addresses):
    arrays = [*given, *[device.empty(*slot) for slot in program.slots[program.given :]]]

    def part(view):
        if view is None:
            return None
        whole = arrays[view.slot].reshape(-1).view(np.uint8)
        return np.ndarray.__new__(
            DeviceArray, view.shape, view.dtype, whole, view.offset, view.strides
        )

    for step in program.steps:
        parts = tuple(map(part, step.arrays))
        if isinstance(step, Launch):
            sizes = step.grid, step.block
            device.launch(step.unit, step.kernel, *sizes, parts, step.params, step.shared_bytes)
        elif isinstance(step, Product):
            device.gemm(*parts, accumulate=step.accumulate, precision=step.precision)
        else:
            parts[-1][...] = parts[0] if len(parts) == 2 else 0
    results = map(part, program.results)
    return (
        tuple(results) if program.names is None else dict(zip(program.names, results, strict=True))
    )


_one_launch_at_a_time = threading.Lock()  # the emulator's state is global


def _dimensions(kernel: str, name: str, size, limits) -> tuple[int, int, int]:
    size = (size,) if np.isscalar(size) else tuple(size)
    size = tuple(int(n) for n in size) + (1,) * (3 - len(size))
    if len(size) != 3 or any(not 1 <= n <= limit for n, limit in zip(size, limits, strict=True)):
        raise EmulatorError(f"{kernel}: {name} {size} is empty or beyond {tuple(limits)}")
    return size


def _launched(unit, kernel: str, launch: build.Launch) -> Launched:
    work = {name: getattr(launch.work, name) for name, _ in build.Work._fields_}
    blocks, threads = math.prod(launch.grid), math.prod(launch.block)
    return Launched(unit.file, unit.defines, kernel, blocks, threads, work)


def _check_params(kernel: str, unit, params) -> np.ndarray:
    params = np.asarray(params)
    if params.dtype != unit.params or params.size != 1:
        raise EmulatorError(
            f"{kernel}: expected params of dtype {unit.params}, got {params.dtype} x {params.size}"
        )
    return np.ascontiguousarray(params)


def _check_arguments(kernel: str, signature, arrays, params: np.ndarray) -> None:
    pointers = [parameter for parameter in signature if parameter.kind != b"v"]
    values = [parameter for parameter in signature if parameter.kind == b"v"]
    if len(values) != 1 or signature[-1].kind != b"v":
        raise EmulatorError(f"{kernel}: expected a signature of pointers, then Params by value")
    if values[0].bytes != params.nbytes:
        raise EmulatorError(
            f"{kernel}: the kernel's Params has {values[0].bytes} bytes, params {params.nbytes}"
        )
    if len(pointers) != len(arrays):
        raise EmulatorError(f"{kernel}: expected {len(pointers)} arrays, got {len(arrays)}")
    for position, (parameter, array) in enumerate(zip(pointers, arrays, strict=True)):
        if array is not None:
            _check_array(f"{kernel}: argument {position}", parameter, array)


def _check_array(what: str, parameter: build.Parameter, array) -> None:
    if not isinstance(array, DeviceArray):
        raise EmulatorError(f"{what} is a {type(array).__name__}, not on the device")
    if not array.flags.c_contiguous:
        raise EmulatorError(f"{what} is not C-contiguous")
    if parameter.bytes == 0:
        return  # void*
    if parameter.bytes % array.dtype.itemsize:
        raise EmulatorError(
            f"{what} has dtype {array.dtype}, the kernel's elements have {parameter.bytes} bytes"
        )
    # Half precision and vectors are structs to the compiler; only plain scalars tell their kind.
    kinds = {b"f": "f", b"i": "iub", b"s": "fiubcV"}[parameter.kind]
    if array.dtype.kind not in kinds:
        raise EmulatorError(f"{what} has dtype {array.dtype}, the kernel's elements are of another")


def _run(library, kernel: str, launch: build.Launch, arrays, params: np.ndarray) -> None:
    """Fill in the arguments and run."""
    given = [(i, array) for i, array in enumerate(arrays) if array is not None]
    regions = (build.Array * len(given))(
        *[build.Array(a.ctypes.data, a.nbytes, i, a.flags.writeable) for i, a in given]
    )
    pointers = [ctypes.c_void_p(None if a is None else a.ctypes.data) for a in arrays]
    addresses = [*map(ctypes.addressof, pointers), params.ctypes.data]
    launch.arrays = regions
    launch.array_count = len(given)
    launch.arguments = (ctypes.c_void_p * len(addresses))(*addresses)
    library.run(kernel, launch)


def _describe(unit, kernel: str, library, failure: build.Failure) -> str:
    what = failure.what.decode(errors="replace")
    text = f"{kernel} ({unit.file}): {what}"
    if failure.pc:
        text += "\n  at " + " < ".join(library.lines(failure.pc))
    if failure.other_pc:
        text += "\n  the other access at " + " < ".join(library.lines(failure.other_pc))
    return text + f"\n  block {tuple(failure.block)} thread {tuple(failure.thread)}"


def to_tf32(x) -> np.ndarray:
    """Round float32 to 10 mantissa bits, to nearest, ties away from zero."""
    x = to_host(x)
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(x), rounded, x)
