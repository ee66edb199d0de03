"""The command line: ``python -m cudeform info | selftest | bench | demo | run | extensions``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import cudeform
from cudeform.bench import command as bench
from cudeform.commands import CommandError, demo, extensions, info, run, selftest

COMMANDS = {
    "info": info,
    "selftest": selftest,
    "bench": bench,
    "demo": demo,
    "run": run,
    "extensions": extensions,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Ends quietly where nobody reads its output."""
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # as in `info | head -1`
        # What is still buffered goes nowhere when the interpreter flushes it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # what a shell reports of a program that SIGPIPE ended


def _run(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m cudeform", description=cudeform.__doc__)
    parser.add_argument("--version", action="version", version=f"cudeform {cudeform.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = module.__doc__.splitlines()[0]
        command = commands.add_parser(name, help=summary, description=summary)
        module.add_arguments(command)
    given = parser.parse_args(arguments)
    try:
        return COMMANDS[given.command].run(given)
    except CommandError as error:
        print(f"cudeform {given.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"cudeform {given.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
