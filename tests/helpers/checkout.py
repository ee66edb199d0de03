"""Where the files are: the root of the checkout, and the package's modules."""

from pathlib import Path

__all__ = ["MODULES", "PACKAGE", "ROOT"]

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "cudeform"


def _module_name(path):
    """cudeform/ops/sampling.py -> "ops.sampling"; cudeform/__init__.py -> ""."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
