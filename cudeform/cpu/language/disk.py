"""Compiled kernels on disk for the next process. A cache may cost time, never an answer.

Numba's cache raises whatever goes wrong with a file, in this process and in all later ones. Here
a file carries a digest of its contents, is removed where it is broken, and the kernel is compiled
as if it were not there.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files
from io import BytesIO
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core import config
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile

from cudeform.cpu.language import simd

# What Numba takes from the environment and compiles into a kernel.
_SETTINGS = (
    "OPT",
    "LOOP_VECTORIZE",
    "SLP_VECTORIZE",
    "ENABLE_AVX",
    "USING_SVML",
    "BOUNDSCHECK",
    "DEBUGINFO_DEFAULT",
)


@functools.cache
def _sources() -> str:
    """A digest of what all kernels are made from: any edit and any other compiler makes them stale.

    Numba looks at the one file a kernel stands in, and would keep a kernel that calls into
    another, edited file.
    """
    digest = hashlib.sha256()
    folders = [files("cudeform.cpu")]
    while folders:
        for source in sorted(folders.pop().iterdir(), key=lambda source: source.name):
            if source.is_dir():
                folders.append(source)
            elif source.name.endswith(".py"):
                digest.update(source.read_bytes())
    for module in (numba, llvmlite, np):
        digest.update(f"{module.__name__} {module.__version__}\n".encode())
    return digest.hexdigest()


def _facts() -> tuple[Any, ...]:
    """What else a kernel depends on, besides its sources, its types and the target's processor.

    Kernels that differ in it stand beside each other.
    """
    settings = tuple((name, getattr(config, name, None)) for name in _SETTINGS)
    return (simd.BLOCK_BYTES, simd.BLOCK_ROWS, *settings)


def folder(function: Callable[..., Any]) -> str:
    """Where the kernels of this process are kept that stand in one folder with a function.

    Raises
    ------
    RuntimeError
        Nowhere: none of Numba's places can be written.
    """
    return CompileResultCacheImpl(function).locator.get_cache_path()


def keep(compiled: Any, declare: Callable[[], None] | None = None) -> None:
    """Let a kernel be read from disk instead of compiled, and written there, where possible.

    `declare` makes Numba ready to read one, in less time than it takes to be ready for everything.
    """
    function = getattr(compiled, "py_func", None)
    if function is None:  # NUMBA_DISABLE_JIT
        return
    try:
        compiled._cache = _Cache(function, declare)
    except (RuntimeError, OSError) as error:
        _say("compiled kernels can be written nowhere, and every process compiles them", error)


class _Files(IndexDataCacheFile):
    """A file for each function, its types and target: digest, stamp, key and kernel."""

    def path(self, key: Any) -> str:
        base, _ = os.path.splitext(self._index_name)
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        return os.path.join(self._cache_path, f"{base}.{digest}.nbc")

    def load(self, key: Any) -> Any:
        try:
            with open(self.path(key), "rb") as file:
                digest, content = file.read(32), file.read()
        except FileNotFoundError:
            return None
        if hashlib.sha256(content).digest() != digest:
            raise OSError(f"{self.path(key)} is damaged")
        stream = BytesIO(content)
        if pickle.load(stream) != self._source_stamp or pickle.load(stream) != key:
            return None
        return pickle.load(stream)

    def save(self, key: Any, data: Any) -> None:
        content = b"".join(map(self._dump, (self._source_stamp, key, data)))
        with self._open_for_write(self.path(key)) as file:
            file.write(hashlib.sha256(content).digest())
            file.write(content)

    def discard(self, key: Any) -> None:
        with suppress(OSError):
            os.unlink(self.path(key))


class _Cache(FunctionCache):
    """Numba's, with other files, and no exceptions."""

    def __init__(self, function: Callable[..., Any], declare: Callable[[], None] | None) -> None:
        super().__init__(function)
        self._declare = declare
        base = self._impl.filename_base
        stamp = base, _sources(), self._impl.locator.get_source_stamp()
        self._cache_file = _Files(self._cache_path, base, stamp)

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(sig, codegen), _facts())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        (self._declare or target_context.refresh)()
        return self._load_overload(sig, target_context)

    def _load_overload(self, sig: Any, target_context: Any) -> Any:
        key = self._index_key(sig, target_context.codegen())
        try:
            data = self._cache_file.load(key)
            return None if data is None else self._impl.rebuild(target_context, data)
        except Exception as error:
            self._cache_file.discard(key)
            _say(f"a compiled kernel in {self._cache_path} cannot be read, and is removed", error)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception as error:
            _say(f"no compiled kernel can be written in {self._cache_path}", error)


_said: set[str] = set()


def _say(what: str, error: Exception) -> None:
    """Warn, once in a process for each kind and folder."""
    if what not in _said:
        _said.add(what)
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(f"cudeform: {what}; {reason}", RuntimeWarning, stacklevel=2)
