"""torchvision's operators computed by cudeform, for as long as it is asked for."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

import cudeform

__all__ = ["Patch", "patch"]

# They have the same names and arguments here and there.
NAMES = ("deform_conv2d", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")


class Patch:
    """What `patch` returns: `undo` ends it, and so does the end of a ``with`` block."""

    def __init__(self) -> None:
        self._replaced: list[tuple[dict[str, Any], str, Any]] = []

    def apply(self, originals: dict[int, str]) -> None:
        """Replace functions, by id, wherever a loaded module has one under some name."""
        for module in list(sys.modules.values()):
            names = getattr(module, "__dict__", None)
            if not isinstance(names, dict):
                continue
            for name, value in list(names.items()):
                replaced = originals.get(id(value))
                if replaced is not None:
                    self._replaced.append((names, name, value))
                    names[name] = getattr(cudeform, replaced)

    def undo(self) -> None:
        """Put torchvision's functions back; a second time does nothing."""
        while self._replaced:
            names, name, original = self._replaced.pop()
            names[name] = original

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
    that call them by name. What is scripted or compiled already stays as it is.

    Returns
    -------
    Patch
        Call its `undo`, or use it in a ``with`` statement.

    Raises
    ------
    RuntimeError
        torchvision has not been imported, so that there is nothing to replace.
    """
    operators = sys.modules.get("torchvision.ops")
    if operators is None:
        raise RuntimeError("patch: expected torchvision to be imported before")
    applied = Patch()
    applied.apply({id(getattr(operators, name)): name for name in NAMES})
    return applied
