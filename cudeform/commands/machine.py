"""What this machine has to compute with: versions, processor, GPU. The one place that asks."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

import cudeform
from cudeform.commands import CommandError
from cudeform.threads import get_num_threads

# The first NVIDIA driver of CUDA 13; cudeform[cuda12] serves older ones.
_CUDA13_DRIVER = 580


def version(*distributions: str) -> str | None:
    """The version of the first of these distributions that is installed; imports nothing."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def processor() -> str:
    """The processor's name as the system gives it, and its kind: a name may be of several."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    try:
        from cudeform.cpu.language.compiler import host
    except ImportError:  # Numba is missing, or does not work here
        return name
    return f"{name} ({host()})"


def nvidia_gpu() -> tuple[str, str] | None:
    """Name and driver version of the first NVIDIA GPU, from the driver alone, without CuPy."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        name, driver = answer.stdout.splitlines()[0].rsplit(",", 1)
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None
    return name.strip(), driver.strip()


def cuda_extra(driver: str | None) -> str:
    """The command that installs what the GPU backend needs, for this driver."""
    major = (driver or "").partition(".")[0]
    new = not major.isdigit() or int(major) >= _CUDA13_DRIVER
    return f"pip install 'cudeform[cuda{13 if new else 12}]'"


def cupy_or_reason() -> tuple[Any, str | None]:
    """CuPy if it can use a GPU here, and else the reason, with the command that helps if any."""
    found = nvidia_gpu()
    try:
        import cupy
    except ImportError as error:
        if found is None:
            return None, "no NVIDIA GPU found"
        return None, f"CuPy cannot be imported ({error}): {cuda_extra(found[1])}"
    if cupy.cuda.is_available():
        return cupy, None
    if found is None:
        return None, "no NVIDIA GPU found"
    return None, f"CuPy cannot use the {found[0]} with driver {found[1]}: {cuda_extra(found[1])}"


def namespace(wanted: str | None) -> tuple[Any, str]:
    """NumPy or CuPy, as wanted or as there is, and the name of what it computes on."""
    if wanted != "cpu":
        cupy, reason = cupy_or_reason()
        if cupy is not None:
            return cupy, gpu(cupy)["gpu"]
        if wanted == "cuda":
            raise CommandError(f"no GPU to compute on: {reason}")
    return np, f"{processor()}, {get_num_threads()} threads"


def gpu(cupy: Any) -> dict[str, str]:
    """Name, architecture, driver and CUDA libraries of CuPy's current GPU."""
    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(cupy.cuda.Device().id)
    cuda = runtime.runtimeGetVersion()
    facts = {
        "gpu": properties["name"].decode(),
        "architecture": f"sm_{properties['major']}{properties['minor']}",
        "driver's CUDA": _dotted(runtime.driverGetVersion()),
        "CUDA runtime": _dotted(cuda),
    }
    try:
        facts["NVRTC"] = ".".join(map(str, cupy.cuda.nvrtc.getVersion()))
    except (ImportError, OSError, RuntimeError):
        facts["NVRTC"] = f"missing: pip install 'cudeform[cuda{cuda // 1000}]'"
    return facts


def _dotted(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def describe(*distributions: str) -> dict[str, Any]:
    """What to keep beside a measurement: the machine, the versions, the date."""
    facts: dict[str, Any] = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor(),
        "threads": get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cudeform": cudeform.__version__,
    }
    for name in distributions:
        if version(name) is not None:
            facts[name] = version(name)
    cupy, _ = cupy_or_reason()
    if cupy is not None:
        facts.update(gpu(cupy), cupy=cupy.__version__)
    return facts
