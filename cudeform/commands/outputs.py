"""Files that a command writes: tried before it works for minutes."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from cudeform.commands import CommandError


def check(option: str, file: str) -> None:
    """Raise unless the file can be written; what it holds stays, and no new file is left."""
    path = Path(file)
    if path.is_dir():
        raise CommandError(f"expected {option} to be a file, got the folder {file}")
    if not path.parent.is_dir():
        raise CommandError(f"cannot write {option} {file}: no folder {path.parent}")
    existed = path.exists()
    try:
        with path.open("ab"):
            pass
        if not existed:
            path.resolve().unlink()
    except OSError as error:
        raise CommandError(f"cannot write {option} {file}: {error.strerror}") from error


def figure_format(option: str, file: str, formats: Container[str]) -> str:
    """What to write a figure as, by the file's suffix; PNG where it has none."""
    suffix = Path(file).suffix[1:].lower()
    if not suffix:
        return "png"
    if suffix not in formats:
        known = "png, pdf, svg or another that Matplotlib writes"
        raise CommandError(f"expected the suffix of {option} to be {known}, got {file}")
    return suffix
