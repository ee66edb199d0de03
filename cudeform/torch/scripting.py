"""torch.jit.script, which compiles the text of Python functions: ours are refused by name.

Their text is checks and plans of arrays. Without a word from us the compiler would say of one of
our own lines that it is no script, and keep halves of what it has compiled.
"""

from __future__ import annotations

import functools
from typing import NoReturn

import cudeform


def refuse_script(name: str) -> NoReturn:
    raise NotImplementedError(
        f"{name}: torch.jit.script does not take it; torch.jit.trace, torch.export and "
        "torch.compile do"
    )


def refuse() -> None:
    """Have every public function refused: the compiler asks them for a function to compile."""
    for name in cudeform.__all__:
        function = getattr(cudeform, name)
        function.__prepare_scriptable__ = functools.partial(refuse_script, name)
