"""List the compiled modules that have stand-ins, who imports them, and what is here."""

from __future__ import annotations

import argparse
import sys
import textwrap
from importlib.machinery import ModuleSpec, PathFinder

from cudeform.commands import CommandError
from cudeform.commands.table import table
from cudeform.extensions import Extension, available, selected


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="one of them: which of its functions work")


def run(given: argparse.Namespace) -> int:
    if given.name is not None:
        try:
            _show(*selected([given.name]))
        except ValueError as error:
            raise CommandError(str(error)) from error
        return 0
    rows = [(row.name, state(row), _how_many(row), row.users) for row in available()]
    print(table(("module", "here", "functions", "used by"), rows, text=4))
    print(
        "\nrun a program with the stand-ins: python -m cudeform run [--with NAME] script.py\n"
        "which functions one of them has:  python -m cudeform extensions NAME"
    )
    return 0


def _how_many(row: Extension) -> str:
    works, whole = len(row.functions), len(row.functions) + len(row.missing)
    return "all" if works == whole else f"{works} of {whole}"


def state(row: Extension) -> str:
    """Whether a compiled module is here, without importing anything."""
    parent = row.name.rpartition(".")[0]
    if parent and _find(parent) is None:
        return f"no {parent} here"
    if _find(row.name) is not None:
        return "installed, left alone"
    return "stood in with --with" if row.on_request else "stood in"


def _find(name: str) -> ModuleSpec | None:
    path, spec = sys.path, None
    done = ""
    for part in name.split("."):
        done = f"{done}.{part}" if done else part
        spec = PathFinder.find_spec(done, path)
        if spec is None:
            return None
        path = spec.submodule_search_locations or []
    return None if spec.loader is None and not path else spec


def _show(row: Extension) -> None:
    print(f"{row.name}, used by {row.users}: {state(row)}")
    for title, names in (("works", row.functions), ("raises NotImplementedError", row.missing)):
        if names:
            text = textwrap.fill(", ".join(names), 96, initial_indent="  ", subsequent_indent="  ")
            print(f"{title}:\n{text}")
