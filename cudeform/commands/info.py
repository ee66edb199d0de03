"""Versions, backends, GPU, caches, and the command that installs what is missing."""

from __future__ import annotations

import argparse
import os
import platform
import stat
from importlib.util import find_spec
from pathlib import Path

import cudeform
from cudeform.commands import machine
from cudeform.threads import get_num_threads

VERSIONS = ("numpy", "numba", "ml_dtypes", "cupy", "torch", "jax", "keras")
CUPY = ("cupy-cuda13x", "cupy-cuda12x", "cupy")
OPTIONAL = (
    # what for, the distributions it takes, the command that installs them
    ("bfloat16", ("ml_dtypes",), "pip install ml_dtypes"),
    (
        "demo, plot",
        ("matplotlib", "rich", "scikit-image", "scikit-learn"),
        "pip install 'cudeform[demo]'",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(given: argparse.Namespace) -> int:
    for title, lines in facts().items():
        print(title)
        for name, text in lines.items():
            print(f"  {name:<20} {text}")
    return 0


def facts() -> dict[str, dict[str, str]]:
    """Titles of sections, and what there is to say in each: name -> text."""
    cupy, reason = machine.cupy_or_reason()
    found = machine.nvidia_gpu()
    versions = {"cudeform": cudeform.__version__, "python": platform.python_version()}
    for name in VERSIONS:
        distributions = CUPY if name == "cupy" else (name,)
        versions[name] = machine.version(*distributions) or "not installed"

    gpu = {"cuda backend": "ready" if cupy else f"not available: {reason}"}
    if cupy is not None:
        gpu.update(machine.gpu(cupy))
    elif found is not None:
        gpu.update({"gpu": found[0], "driver": found[1]})
    return {
        "versions": versions,
        "cpu": {
            "cpu backend": _cpu_backend(),
            "processor": machine.processor(),
            "threads": str(get_num_threads()),
        },
        "gpu": gpu,
        "caches": _caches(),
        "missing": _missing() or {"nothing": ""},
    }


def _cpu_backend() -> str:
    if machine.version("numba") is None:
        return "not available: Numba is missing: pip install numba"
    return "ready"


def _caches() -> dict[str, str]:
    """Where compiled kernels are kept between runs, and who can write there."""
    cupy = os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache"
    try:
        from cudeform.cpu import conv, regions
        from cudeform.cpu.language.disk import folder  # Numba's answer: it tries what it can write

        folders = dict.fromkeys(folder(family.forward) for family in (conv, regions))
        numba = ", ".join(_with_writers(Path(name)) for name in folders)
    except ImportError:
        numba = "Numba is missing"
    except RuntimeError:
        numba = "nowhere: no folder can be written"
    return {"Numba": numba, "CuPy": _with_writers(Path(cupy))}


def _with_writers(folder: Path) -> str:
    """A folder, and whether others can put kernels there, which will run as this user."""
    if not hasattr(os, "getuid"):
        return str(folder)
    folder = folder.resolve()
    # What decides who can change a file in it. What does not exist yet will be this user's.
    ways = [folder, *folder.parents, *folder.glob("*.nb[ci]"), *folder.glob("*.cubin")]
    for path in filter(Path.exists, ways):
        facts = path.stat()
        # In a sticky folder, as /tmp is, others make files, and cannot move those of this user.
        safe = path in folder.parents and bool(facts.st_mode & stat.S_ISVTX)
        if facts.st_uid not in (os.getuid(), 0) or (facts.st_mode & 0o022 and not safe):
            return f"{folder} (OTHERS CAN WRITE to {path}, and so run code as you)"
    return f"{folder} (others cannot write to it)"


def _missing() -> dict[str, str]:
    """What for -> the command that would install it."""
    missing = {}
    for purpose, distributions, command in OPTIONAL:
        if any(machine.version(name) is None for name in distributions):
            missing[purpose] = command
    found = machine.nvidia_gpu()
    if found is not None and find_spec("cupy") is None:
        missing["GPU"] = machine.cuda_extra(found[1])
    return missing
