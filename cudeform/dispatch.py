"""Arrays of other frameworks: which bridge takes a call.

An operator computes on NumPy and CuPy arrays. A torch tensor or a JAX array among its arguments
sends the whole call to `cudeform.torch` or `cudeform.jax`, where it is differentiable. They are
imported at the first such call, and a framework that the caller has not imported never is.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

from cudeform import checks
from cudeform.descriptions import described

_Function = TypeVar("_Function", bound=Callable[..., Any])
# Module to look up in `sys.modules`, the type that its arrays are instances of, our bridge.
_BRIDGES = (
    ("torch", "Tensor", "cudeform.torch"),
    ("torch.fx", "Proxy", "cudeform.torch.fx"),
    ("jax", "Array", "cudeform.jax"),
    ("jax.core", "Tracer", "cudeform.jax"),  # an Array to isinstance, but not to issubclass
)
_TORCH = (2, 8)  # older ones lack what the bridge is made of, and are no obstacle to NumPy
_CONSTANTS = (np.ndarray, np.memmap)
_MOST_TYPES = 256
_found: dict[type, str | None] = dict.fromkeys(
    (np.ndarray, type(None), bool, int, float, str, tuple, list, set, frozenset)
)
_calls: dict[str, Callable[..., Any]] = {}  # by bridge


def _bridge_of(array_type: type) -> str | None:
    """The name of the bridge for values of a type, or None for values that need none."""
    for module, array, bridge in _BRIDGES:
        framework = sys.modules.get(module)
        if framework is not None and issubclass(array_type, getattr(framework, array)):
            return bridge
    native = _native(array_type)
    if native is None:
        return "cudeform.dlpack" if hasattr(array_type, "__dlpack__") else None
    return None if array_type is native else "cudeform.arrays"


def _native(array_type: type) -> type | None:
    """The type of array that backends compute on, which a type is or is derived from."""
    cupy = sys.modules.get("cupy")
    native = (np.ndarray,) if cupy is None else (np.ndarray, cupy.ndarray)
    return next((base for base in native if issubclass(array_type, base)), None)


def _bridge(array_type: type) -> str | None:
    """`_bridge_of`, looked up."""
    if array_type in _found:
        return _found[array_type]
    found = _bridge_of(array_type)
    # torch.compile may be watching, and must see no side effects. Of a program that makes types
    # without end the later ones are found anew each time, and can be freed.
    if found != "cudeform.torch" and len(_found) < _MOST_TYPES:
        _found[array_type] = found
    return found


def remember(bridge: str, call: Callable[..., Any], *array_types: type) -> None:
    """A bridge that has been loaded, and types of arrays to know without looking for them."""
    _calls[bridge] = call
    _found.update(dict.fromkeys(array_types, bridge))


def _framework(value: Any) -> str | None:
    """The framework that an array belongs to, as its users import it; None for other values."""
    array_type = type(value)
    array_type = _native(array_type) or array_type
    bridge = _bridge(array_type)
    if bridge in ("cudeform.torch", "cudeform.torch.fx", "cudeform.jax"):
        return bridge.split(".")[1]
    return array_type.__module__.partition(".")[0] if hasattr(array_type, "__dlpack__") else None


def _one_framework(op: str, given: dict[str, Any], bridge: str) -> None:
    """Check that all arrays of a call, also those in lists, belong to one framework.

    NumPy arrays beside JAX's are constants, as they are for JAX itself.
    """
    types = {type(value) for value in given.values() if value is not None}
    if len(types) == 1 and types.isdisjoint((list, tuple)):
        return
    constants = _CONSTANTS if bridge == "cudeform.jax" else ()
    entries = []
    for name, value in given.items():
        if isinstance(value, (list, tuple)):
            entries += [(f"{name}[{i}]", item) for i, item in enumerate(value)]
        else:
            entries.append((name, value))
    arrays = [
        (name, framework)
        for name, value in entries
        if type(value) not in constants and (framework := _framework(value))
    ]
    first, expected = arrays[0]
    for name, framework in arrays[1:]:
        if framework != expected:
            wanted = f"to be a {expected} array like `{first}`"
            why = "all arrays of one call belong to one framework"
            checks.fail(op, name, wanted, f"a {framework} array", why, TypeError)


def _load(bridge: str) -> Callable[..., Any]:
    """A bridge's `call`: by import statements, which torch.compile follows, and no function."""
    if bridge in _calls:  # an import statement takes its time, also of what is loaded
        return _calls[bridge]
    if bridge == "cudeform.torch":
        from cudeform.torch import call
    elif bridge == "cudeform.torch.fx":
        from cudeform.torch.fx import call
    elif bridge == "cudeform.jax":
        from cudeform.jax import call
    elif bridge == "cudeform.arrays":
        from cudeform.arrays import call
    else:
        from cudeform.dlpack import call
    return call


def define() -> None:
    """Tell torch of the operators, where it is loaded: saved programs find them by their names."""
    torch = sys.modules.get("torch")
    version = getattr(torch, "__version__", "0.0").split(".")
    if tuple(map(int, version[:2])) >= _TORCH:
        import cudeform.torch  # noqa: F401


def dispatched(*arrays: str) -> Callable[[_Function], _Function]:
    """Let the bridge of a framework answer calls with arrays of that framework.

    `arrays` are the parameters that take them. A bridge has ``call(name, function, given)``, with
    `given` the arguments by name as they came: defaults are not filled in. What the function's
    docstring shares with others is filled in, see `cudeform.descriptions`.
    """

    def decorate(function: _Function) -> _Function:
        parameters = inspect.signature(described(function)).parameters
        names = tuple(parameters)
        known = frozenset(names)
        assert known.issuperset(arrays), f"{function.__name__} does not take all of {arrays}"
        positional = sum(p.kind is not p.KEYWORD_ONLY for p in parameters.values())
        required = frozenset(n for n, p in parameters.items() if p.default is p.empty)
        needed = len(required)  # the first ones, as Python has it

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for value in (*args, *kwargs.values()):
                array_type = type(value)
                bridge = _found[array_type] if array_type in _found else _bridge(array_type)
                if bridge is not None:
                    break
            else:
                return function(*args, **kwargs)
            # torch.compile of PyTorch 2.8 takes strict=False for strict, and compares no keys().
            given = dict(zip(names, args))  # noqa: B905
            fits = len(args) <= positional
            if kwargs:
                given.update(kwargs)
                fits = fits and len(given) == len(args) + len(kwargs)
                fits = fits and required <= frozenset(given) <= known
            if not fits or len(given) < needed:
                return function(*args, **kwargs)  # raises what Python says of such a call
            bridge = None
            for name in arrays:
                if name in given:
                    array_type = type(given[name])
                    found = _found[array_type] if array_type in _found else _bridge(array_type)
                    if found is not None:
                        bridge = found
                        if found != "cudeform.arrays":
                            break
            if bridge is None:  # an option that is an array: its check says so
                return function(*args, **kwargs)
            if bridge != "cudeform.torch":  # which does this in passing
                named = {n: given[n] for n in arrays if n in given}
                _one_framework(function.__name__, named, bridge)
            return _load(bridge)(function.__name__, function, given)

        return cast(_Function, call)

    return decorate
