"""torchvision's operators computed by cudeform, for as long as it is asked for."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch

import cudeform

__all__ = ["Patch", "patch"]

# They have the same names and arguments here and there.
NAMES = ("deform_conv2d", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")


def _replacement(original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """A function of its own, by which `undo` knows what it may put back."""

    @functools.wraps(original)
    def function(*given: Any, **options: Any) -> Any:
        if torch.onnx.is_in_onnx_export():  # which knows torchvision's operators
            return original(*given, **options)
        return ours(*given, **options)

    # torch.jit.script compiles a function's text, and asks by this name for another function.
    function.__prepare_scriptable__ = lambda: original  # type: ignore[attr-defined]
    return function


def _replace(functions: Mapping[int, Callable[..., Any]]) -> None:
    """Put other functions, by the id of those there, wherever a loaded module has one by a name."""
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", None)
        if not isinstance(names, dict):
            continue
        for name, value in list(names.items()):
            other = functions.get(id(value))
            if other is not None:
                names[name] = other


class Patch:
    """What `patch` returns: `undo` ends it, and so does the end of a ``with`` block."""

    def __init__(self, originals: Mapping[str, Callable[..., Any]]) -> None:
        self._pairs = [
            (original, _replacement(original, getattr(cudeform, name)))
            for name, original in originals.items()
        ]
        _replace({id(original): replaced for original, replaced in self._pairs})

    def undo(self) -> None:
        """Put torchvision's functions back, also where they were imported from since.

        A second time does nothing.
        """
        _replace({id(replaced): original for original, replaced in self._pairs})
        self._pairs = []

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()


def patch() -> Patch:
    """Let torchvision's operators run on cudeform: an existing model is tried in one line.

    Replaces `deform_conv2d`, `roi_align`, `roi_pool`, `ps_roi_align` and `ps_roi_pool` of
    ``torchvision.ops`` in all modules that are loaded, and with them the modules and the models
    that call them by name. What is scripted or compiled already stays as it is, and what is
    scripted or exported to ONNX meanwhile gets torchvision's operators.

    Returns
    -------
    Patch
        Call its `undo`, or use it in a ``with`` statement. Of several, one in the other, the
        first replaces and ends it.

    Raises
    ------
    RuntimeError
        torchvision has not been imported, so that there is nothing to replace.
    """
    operators = sys.modules.get("torchvision.ops")
    if operators is None:
        raise RuntimeError("patch: expected torchvision to be imported before")
    originals = {name: getattr(operators, name) for name in NAMES}
    return Patch(
        {name: f for name, f in originals.items() if not hasattr(f, "__prepare_scriptable__")}
    )
