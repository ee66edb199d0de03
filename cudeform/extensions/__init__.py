"""Stand-ins for compiled modules: which there are, and how they get where imports look.

Nothing here imports torch, so that a program can be run with them before it does. What they
compute with is in `cudeform.torch.extensions`, which has the public names.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager

from cudeform.extensions.finder import Finder, found
from cudeform.extensions.table import EXTENSIONS, Extension

__all__ = [
    "NAMES",
    "REPLACE",
    "Extension",
    "Installed",
    "available",
    "install",
    "install_as_told",
    "selected",
]

# What a process tells those that it starts, and `cudeform_autoload` reads there.
NAMES, REPLACE = "CUDEFORM_EXTENSIONS", "CUDEFORM_EXTENSIONS_REPLACE"


class Installed(AbstractContextManager["Installed"]):
    """What `install` returns: `undo` ends it, and so does the end of a ``with`` block.

    Attributes
    ----------
    names : tuple of str
        The modules that are stood in for, if they are imported.
    """

    def __init__(self, extensions: Iterable[Extension], replace: bool) -> None:
        extensions = tuple(extensions)
        self.names = tuple(extension.name for extension in extensions)
        self._finder = Finder(extensions, replace)
        self._finder.start()

    def undo(self) -> None:
        """Let imports find what they found before.

        What has been imported from a stand-in stays where it was imported to, and works. A second
        time does nothing.
        """
        self._finder.stop()

    def __exit__(self, *raised: object) -> None:
        self.undo()


def available() -> tuple[Extension, ...]:
    """The compiled modules that have stand-ins.

    Returns
    -------
    tuple of Extension
        With the attributes `name`, `users` (who imports it), `functions` (the names that work),
        `missing` (the names that are there and raise `NotImplementedError`) and `on_request`
        (whether `install` has to be given its name, since other software has one like it).
    """
    return tuple(EXTENSIONS.values())


def selected(names: Iterable[str]) -> tuple[Extension, ...]:
    """The rows by these names, of which "new=known" is a known one in another place."""
    rows = []
    for name in names:
        new, equals, known = name.rpartition("=") if isinstance(name, str) else ("", "", name)
        fits = not equals or all(part.isidentifier() for part in new.split("."))
        if known not in EXTENSIONS or not fits:
            raise ValueError(
                f"install: expected names of extensions, which are {', '.join(EXTENSIONS)}, "
                f"or NEW=NAME, got {name!r}"
            )
        rows.append(EXTENSIONS[known].called(new) if equals else EXTENSIONS[known])
    return tuple(rows)


def install(*names: str, replace: bool = False) -> Installed:
    """Let imports of compiled modules that were not built find stand-ins with the same functions.

    A repository that needs `MultiScaleDeformableAttention`, `mmcv._ext` or another module that
    does not build here runs unmodified. Call it before that repository is imported. Nothing is
    written anywhere, and nothing but these modules is found differently.

    Parameters
    ----------
    *names : str
        Modules, by the names in `available`. By default all but those that are `on_request`.
        "mine.deform_conv_ext=basicsr.ops.dcn.deform_conv_ext" is one of them under another name,
        for a repository with a copy of its own.
    replace : bool
        Whether to stand in also for modules that can be imported. By default they are left alone:
        a stand-in is for a module that is missing, or whose import fails, with a warning then.

    Returns
    -------
    Installed
        Call its `undo`, or use it in a ``with`` statement.

    Raises
    ------
    ValueError
        A name that has no stand-in.
    RuntimeError
        A module to be replaced has been imported before.

    Notes
    -----
    The functions have the names, the order and the keywords of the arguments of the compiled ones,
    fill the tensors that those fill and add to those they add to, on the CPU and on a GPU. Scratch
    tensors such as `columns` and steps such as `im2col_step` are ignored: any batch size works.

    Examples
    --------
    >>> from cudeform.torch import extensions
    >>> with extensions.install("MultiScaleDeformableAttention"):
    ...     import MultiScaleDeformableAttention
    >>> MultiScaleDeformableAttention.ms_deform_attn_forward.__name__
    'ms_deform_attn_forward'
    """
    if names:
        rows = selected(names)
    else:
        rows = tuple(row for row in EXTENSIONS.values() if not row.on_request)
    if replace:
        imported = [row.name for row in rows if row.name in sys.modules]
        if imported:
            raise RuntimeError(
                f"install: expected {imported[0]} not to be imported before it is replaced"
            )
    return Installed(rows, replace)


def install_as_told() -> None:
    """As the process that started this one says, if it does."""
    names = os.environ.get(NAMES)
    if names and not found():
        install(*names.split(","), replace=os.environ.get(REPLACE) == "1")
