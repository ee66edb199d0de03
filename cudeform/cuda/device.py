"""What the host code of the operators sees of a GPU, and which one an array is on.

CuPy's is `cudeform.cuda.cupy_device`; the tests have another that runs the kernels on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from cudeform.cuda.program import Program, Programs, Starter
from cudeform.plans.outlines import Plan


class Device(Starter, Protocol):
    """What the host code of an operator may ask of a GPU."""

    programs: Programs  # what is known of calls

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """A new array with undefined contents."""

    def to_device(self, array: np.ndarray) -> Any:
        """A copy of a NumPy array."""

    def to_host(self, array: Any) -> np.ndarray:
        """A copy as a NumPy array; the one call that waits for what was started before."""

    def prepare(self, program: Program) -> Callable[[tuple[Any, ...], list[int]], Any]:
        """A function that runs a program: of the arguments and their addresses, 0 for None."""


_registered: dict[type, Callable[[], Device]] = {}
_cupy_devices: dict[int, Device] = {}


def register(array_type: type, device: Callable[[], Device] | None) -> None:
    """Say which device computes on arrays of exactly this type; None forgets the type."""
    if device is None:
        _registered.pop(array_type, None)
    else:
        _registered[array_type] = device


@contextmanager
def device_of(array: Any) -> Iterator[Device]:
    """The array's device, made current for the time of a call."""
    if type(array) in _registered:
        yield _registered[type(array)]()
        return
    cupy = load_cupy()
    with array.device:
        index = array.device.id
        if index not in _cupy_devices:
            from cudeform.cuda.cupy_device import CupyDevice

            _cupy_devices.setdefault(index, CupyDevice(cupy, index))
        yield _cupy_devices[index]


def gradients(
    device: Device, plan: Plan, given: Mapping[str, Any], needs: Container[str], zero: bool = False
) -> dict[str, Any]:
    """Places for the gradients that are needed, of 0 where there is nothing to sum."""
    needed = {name: outline for name, outline in plan.gradients.items() if name in needs}
    grads = {n: device.empty(o.shape, given[o.like].dtype) for n, o in needed.items()}
    for grad in grads.values() if zero else ():
        grad.fill(0)
    return grads


class _Stream:
    """A stream of another framework, as CuPy asks for it."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._pointer


def stream_at(cupy: Any, pointer: int, device: int) -> Any:
    """What makes another framework's stream on a device CuPy's current one, in a `with`."""
    if hasattr(cupy.cuda.Stream, "from_external"):  # since CuPy 14, which deprecates the other way
        return cupy.cuda.Stream.from_external(_Stream(pointer))
    return cupy.cuda.ExternalStream(pointer, device)


def load_cupy() -> Any:
    """CuPy, which the caller of a framework with arrays on a GPU may not have installed."""
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            "cudeform: arrays on a GPU are computed on with CuPy, which cannot be imported "
            f"({error}); install it with: pip install 'cudeform[cuda13]', or 'cudeform[cuda12]' "
            "for drivers before 580"
        ) from error
    return cupy
