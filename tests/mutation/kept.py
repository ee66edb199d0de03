"""A plugin of pytest: kernels stay on disk for as long as what they are made of stays.

The package's own cache lets any edit of the CPU backend make all kernels stale, which is safe and
rarely matters. A mutant is such an edit, and most of them change what few kernels are made of. So
here a kernel is kept by a digest of the code that it reaches, and mutants and the original lie
beside each other.
"""

import functools
import hashlib
import inspect
import sys
from types import CodeType, FunctionType, ModuleType

import numba
import numpy as np

from cudeform.cpu.language import disk


class Kept(disk._Cache):
    """Without dates and digests of files, and with one of the code in the key."""

    def __init__(self, function):
        super().__init__(function)
        self._function = function
        base = self._impl.filename_base
        self._cache_file = disk._Files(self._cache_path, base, base)

    def _index_key(self, sig, codegen):
        return (*super()._index_key(sig, codegen), digest(self._function))


@functools.cache
def digest(function):
    """Of a function and all of ours that it calls or reads."""
    parts, versions = {}, [(m.__name__, m.__version__) for m in (numba, np)]
    _add(function, parts)
    return hashlib.sha256(repr([versions, sorted(parts.values())]).encode()).hexdigest()


def _add(value, parts):
    value = getattr(value, "py_func", value)
    if id(value) in parts:
        return
    if isinstance(value, FunctionType) and _is_ours(value):
        parts[id(value)] = f"{value.__module__} {value.__qualname__} {_text(value.__code__)}"
        for cell in value.__closure__ or ():
            _add(cell.cell_contents, parts)
        for name in _names(value.__code__) & value.__globals__.keys():
            _add(value.__globals__[name], parts)
    elif hasattr(value, "_fields"):
        parts[id(value)] = f"{value.__qualname__} {value._fields}"
    elif isinstance(value, (int, float, str, tuple, np.dtype, np.generic)):
        parts[id(value)] = repr(value)
    elif _is_ours(value):  # an intrinsic, a class, a module: all of its file
        home = value if isinstance(value, ModuleType) else sys.modules[value.__module__]
        parts[id(value)] = inspect.getsource(home)
        if value is home:
            for other in vars(home).values():
                _add(other, parts)


def _is_ours(value):
    home = getattr(value, "__module__", None) or getattr(value, "__name__", "")
    return isinstance(home, str) and home.startswith("cudeform.")


def _text(code):
    """What a function does, wherever it stands and whatever its docstring says."""
    constants = [_text(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    names = code.co_names + code.co_varnames + code.co_freevars
    return repr((code.co_code, constants, names))


def _names(code):
    inner = [_names(c) for c in code.co_consts if isinstance(c, CodeType)]
    return set(code.co_names).union(*inner)


def pytest_load_initial_conftests():
    """As a plugin, before any kernel is made: a mere import, as for doctests, changes nothing."""
    disk._Cache = Kept
