"""Modules of ours that follow a framework: imported as soon as both it and cudeform are."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def follow(framework: str, ours: str) -> None:
    """Import a module of ours now if a framework is loaded, else right after it is.

    For what a framework finds by name in a registry that exists only when it is loaded. The
    framework itself is not imported.
    """
    if sys.modules.get(framework) is not None:
        _load(ours)
    else:
        sys.meta_path.insert(0, _Follower(framework, ours))


def _load(ours: str) -> None:
    try:
        importlib.import_module(ours)
    except Exception as error:  # of a framework that is too old: no reason to fail its import
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(f"cudeform: {ours} cannot be used; {reason}", RuntimeWarning, stacklevel=2)


class _Follower:
    """Finds nothing; has what others find load ours after it."""

    def __init__(self, framework: str, ours: str) -> None:
        self._framework, self._ours = framework, ours

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._framework:
            return None
        for finder in list(sys.meta_path):
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find else None
            if spec is not None:
                break
        else:
            return None
        loader = spec.loader
        execute = getattr(loader, "exec_module", None)
        if execute is None:  # a namespace package
            return spec

        def execute_and_follow(module: ModuleType) -> None:
            del loader.exec_module
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _load(self._ours)

        loader.exec_module = execute_and_follow
        return spec
