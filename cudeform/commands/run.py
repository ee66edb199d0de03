"""Run a Python program that needs compiled modules which are not built here.

They are stood in for, in the processes that it starts as well; nothing else is changed.
"""

from __future__ import annotations

import argparse
import builtins
import importlib.util
import io
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import cudeform
from cudeform import extensions
from cudeform.commands import CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [--with NAME] [--replace] (script.py | -m module) [ARGUMENT ...]"
    parser.add_argument(
        "--with",
        dest="names",
        action="append",
        default=[],
        metavar="NAME",
        help="stand in for this one too, which other software may have, or for NEW=NAME: see "
        "`python -m cudeform extensions`",
    )
    parser.add_argument(
        "--replace", action="store_true", help="stand in for modules that can be imported, too"
    )
    parser.add_argument(
        "-m",
        dest="module",
        nargs=argparse.REMAINDER,
        metavar="module",
        help="run a module or a package by its name, as `python -m` does",
    )
    parser.add_argument(
        "program",
        nargs=argparse.REMAINDER,
        metavar="script.py",
        help="or a file, or a folder with a __main__.py; what follows are its own arguments",
    )


def run(given: argparse.Namespace) -> int:
    """Become the program: its arguments, its `__main__`, its exit status."""
    _install(given.names, given.replace)
    if given.module is None:
        if not given.program:
            raise CommandError("expected a script or -m and a module")
        path, *arguments = given.program
        main, code = _script(path)
        _find_beside(os.path.realpath(path))
    else:
        if not given.module:
            raise CommandError("expected a module after -m")
        name, *arguments = given.module
        main, code = _module(name)
        path = main.__file__
    sys.argv = [path, *arguments]
    sys.modules["__main__"] = main
    return _execute(code, vars(main))


def _install(names: list[str], replace: bool) -> None:
    """In this process, and by its environment in those that it starts."""
    usual = [row.name for row in extensions.available() if not row.on_request]
    wanted = list(dict.fromkeys([*usual, *names]))
    try:
        extensions.install(*wanted, replace=replace)
    except ValueError as error:
        raise CommandError(str(error)) from error
    os.environ[extensions.NAMES] = ",".join(wanted)
    os.environ[extensions.REPLACE] = "1" if replace else "0"


def _main(path: str, spec: ModuleSpec | None) -> ModuleType:
    """A module `__main__` as Python makes it; `spec` for what was found by a name."""
    main = ModuleType("__main__")
    loader = SourceFileLoader("__main__", path) if spec is None else spec.loader
    names: dict[str, Any] = dict(
        __file__=path,
        __cached__=None if spec is None else spec.cached,
        __loader__=loader,
        __package__=None if spec is None else spec.parent,
        __spec__=spec,
        __builtins__=builtins,
    )
    vars(main).update(names)
    return main


def _script(path: str) -> tuple[ModuleType, CodeType]:
    if os.path.isdir(path) or not path.endswith((".py", ".pyw")):
        spec = PathFinder.find_spec("__main__", [os.path.realpath(path)])
        if spec is not None:  # a folder or an archive with a program in it
            return _main(spec.origin, spec), spec.loader.get_code("__main__")
    try:
        with io.open_code(os.path.abspath(path)) as file:
            source = file.read()
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}") from error
    try:
        return _main(path, None), compile(source, path, "exec", dont_inherit=True)
    except SyntaxError as error:
        _report(error.with_traceback(None))
        raise SystemExit(1) from None


def _module(name: str) -> tuple[ModuleType, CodeType]:
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(name + ".__main__")
    except (ImportError, ValueError) as error:
        raise CommandError(f"cannot find {name}: {error}") from error
    if spec is None or not hasattr(spec.loader, "get_code"):
        raise CommandError(f"cannot find {name}, or what of it can be run")
    code = spec.loader.get_code(spec.name)
    if code is None:
        raise CommandError(f"{name} is no Python code")
    return _main(spec.origin, spec), code


def _find_beside(path: str) -> None:
    """Imports look beside the script, or in the folder or archive that it is; not where this is."""
    if getattr(sys.flags, "safe_path", False):
        return
    ours, beside = sys.path[0], path if os.path.isdir(path) else os.path.dirname(path)
    sys.path[0] = path if _is_archive(path) else beside
    if Path(ours).resolve() == Path(cudeform.__file__).resolve().parents[1]:
        sys.path.append(ours)  # a checkout: we are to be found all the same


def _is_archive(path: str) -> bool:
    return (
        os.path.isfile(path)
        and not path.endswith((".py", ".pyw"))
        and bool(PathFinder.find_spec("__main__", [path]))
    )


def _execute(code: CodeType, names: dict[str, Any]) -> int:
    try:
        exec(code, names)
    except SystemExit:
        raise
    except BaseException as error:  # reported as Python does, without the frames here
        trace = error.__traceback__
        _report(error.with_traceback(trace.tb_next))
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    return 0


def _report(error: BaseException) -> None:
    sys.excepthook(type(error), error, error.__traceback__)
