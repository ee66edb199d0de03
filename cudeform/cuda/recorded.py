"""Calls of the operators on a GPU: the host code runs once, and what it started is started again.

That follows from the plan, the gradients that are asked for, and the shape, the dtype and the place
on the grid of vectors of each argument. Where it does not, the host code runs at every call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

from cudeform.cuda.device import Device, device_of
from cudeform.cuda.lanes import VECTOR_BYTES
from cudeform.cuda.program import Known, address
from cudeform.cuda.tracing import Unforeseen, trace


class Family:
    """A family's module, whose forward and backward are recorded."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def forward(self, plan: Any, **given: Any) -> tuple[Any, ...]:
        return _compute(self._module.forward, plan, given, {})

    def backward(self, plan: Any, *, needs: frozenset[str], **given: Any) -> dict[str, Any]:
        return _compute(self._module.backward, plan, given, {"needs": needs})

    def record(
        self, device: Device, function: Callable[..., Any], given: Mapping[str, Any]
    ) -> Known:
        """How a device computes what a function makes of the module and of arrays like these."""
        return _record(device, partial(function, self._module), given)


def _compute(
    function: Callable[..., Any], plan: Any, given: Mapping[str, Any], options: Mapping[str, Any]
) -> Any:
    arrays = tuple(given.values())
    key: list[Any] = [function, plan, *options.values(), *given]
    addresses = []
    for array in arrays:
        if array is None:
            key.append(None)
            addresses.append(0)
        else:
            addresses.append(place := address(array))
            key += array.shape, array.dtype, place % VECTOR_BYTES
    with device_of(arrays[0]) as device:
        known = tuple(key)
        kept = device.programs.get(known)
        if kept is None:
            kept = _record(device, partial(function, plan, **options), given)
            device.programs.keep(known, kept)
        if kept.run is None:
            return function(plan, **given, **options)
        return kept.run(arrays, addresses)


def _record(device: Device, function: Callable[..., Any], given: Mapping[str, Any]) -> Known:
    try:
        program = trace(function, given)
    except Unforeseen:
        return Known(None, 1)
    return Known(device.prepare(program), 4 + len(program.steps))
