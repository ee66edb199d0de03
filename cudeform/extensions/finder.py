"""How an import finds a stand-in: a finder of exact names, before the others.

It asks the others first. A module that they find is loaded as it would have been; only if that
fails, the stand-in takes its place.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from cudeform.extensions.table import Extension, Names

_CODE = "cudeform.torch.extensions"
# A folder with the metadata of distributions alone, for those who ask for a version.
DISTRIBUTIONS = str(Path(__file__).with_name("distributions"))


def stands_in(module: ModuleType | None) -> bool:
    """Whether a module is one of ours."""
    loader = getattr(getattr(module, "__spec__", None), "loader", None)
    return isinstance(loader, _StandIn)


def found() -> bool:
    """Whether there is a finder at work."""
    return any(isinstance(finder, Finder) for finder in sys.meta_path)


def _absent(module: str, name: str) -> Callable[..., Any]:
    def function(*given: Any, **options: Any) -> Any:
        raise NotImplementedError(
            f"{module}.{name}: cudeform's stand-in for {module} does not compute this; "
            "python -m cudeform extensions lists what it does"
        )

    function.__name__ = function.__qualname__ = name
    return function


def _contents(module: str, names: Names) -> dict[str, Any]:
    contents = {}
    for name, code in names.items():
        if code:
            room, _, own = code.partition(".")
            contents[name] = getattr(importlib.import_module(f"{_CODE}.{room}"), own)
        else:
            contents[name] = _absent(module, name)
    return contents


class _StandIn(Loader):
    """Loads a stand-in, or what the others found if that can be loaded."""

    def __init__(self, names: Names, real: ModuleSpec | None) -> None:
        self._names, self._real = names, real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        if self._real is not None:
            try:
                return importlib.util.module_from_spec(self._real)
            except Exception as error:  # a compiled module for another Python, PyTorch or CUDA
                self._give_up(error)
        return None

    def exec_module(self, module: ModuleType) -> None:
        ours, loaded = module.__spec__, set(sys.modules)
        if self._real is not None:
            module.__spec__ = self._real
            try:
                self._real.loader.exec_module(module)
                return
            except Exception as error:  # a package that asks for a GPU of its time
                self._give_up(error)
            module.__spec__, module.__loader__ = ours, self
            for name in [name for name in vars(module) if not name.startswith("__")]:
                delattr(module, name)
            for name in set(sys.modules) - loaded:
                if name.startswith(module.__name__ + "."):
                    del sys.modules[name]
        if ours.submodule_search_locations is not None:
            module.__path__ = []
        vars(module).update(_contents(module.__name__, self._names))
        module.__doc__ = f"cudeform's stand-in for {module.__name__}."

    def _give_up(self, error: Exception) -> None:
        reason, name = f"{type(error).__name__}: {error}", self._real.name
        self._real = None
        warnings.warn(
            f"cudeform stands in for {name}, which is installed and cannot be imported; {reason}",
            RuntimeWarning,
            stacklevel=2,
        )


class Finder(MetaPathFinder):
    """Finds the modules of some extensions from `start` to `stop`."""

    def __init__(self, extensions: Iterable[Extension], replace: bool) -> None:
        extensions = tuple(extensions)
        self._modules = {n: held for row in extensions for n, held in row.modules.items()}
        self._replace = replace
        self._distribution = any(row.distribution for row in extensions)
        self._loaders: list[_StandIn] = []

    def start(self) -> None:
        sys.meta_path.insert(0, self)
        if self._distribution:  # at the end: one that is installed comes first
            sys.path.append(DISTRIBUTIONS)
            resources = sys.modules.get("pkg_resources")
            if resources is not None:
                resources.working_set.add_entry(DISTRIBUTIONS)

    def stop(self) -> None:
        """Find nothing any more, and forget the stand-ins that were imported."""
        if self not in sys.meta_path:
            return
        sys.meta_path.remove(self)
        if self._distribution:
            sys.path.remove(DISTRIBUTIONS)
        for name in self._modules:
            module = sys.modules.get(name)
            if stands_in(module) and module.__spec__.loader in self._loaders:
                del sys.modules[name]
                parent, _, own = name.rpartition(".")
                if vars(sys.modules.get(parent, sys)).get(own) is module:
                    delattr(sys.modules[parent], own)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        names = self._modules.get(name)
        if names is None:
            return None
        real = None if self._replace else self._others(name, path, target)
        loader = _StandIn(names, real)
        self._loaders.append(loader)
        package = any(other.startswith(name + ".") for other in self._modules)
        return ModuleSpec(name, loader, origin=_CODE, is_package=package)

    def _others(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        for finder in list(sys.meta_path):
            find = None if isinstance(finder, Finder) else getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find else None
            if spec is not None and spec.loader is not None:
                return spec
        return None
