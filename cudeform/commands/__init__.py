"""What ``python -m cudeform`` does: one module a command, with `add_arguments` and `run`."""

from __future__ import annotations

__all__ = ["CommandError"]


class CommandError(Exception):
    """A command cannot do what it was asked; the message says why and what would help."""
