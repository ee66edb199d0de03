"""What an installed wheel must do with nothing of the checkout in sight: CI runs it elsewhere."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np

import cudeform

loaded = {"cupy", "torch", "jax", "keras", "numba"} & set(sys.modules)
assert not loaded, f"import cudeform imported {loaded}"
assert Path(cudeform.__file__).is_relative_to(sys.prefix), cudeform.__file__

assert Path(cudeform.__file__).with_name("py.typed").is_file(), "py.typed is not in the wheel"

for module in pkgutil.walk_packages(cudeform.__path__, "cudeform."):
    if module.name != "cudeform.__main__":
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:  # the wheel is installed without its extras
            assert error.name.partition(".")[0] != "cudeform", error

compiling = importlib.import_module("cudeform.cuda.compile")
for kernel_file in ("sampling.cu", "sort.cu"):  # flattened: every header is in the wheel too
    unit = compiling.Unit(kernel_file, (), np.dtype([("height", np.int32)]))
    assert "__global__" in compiling.flatten(unit)

rng = np.random.default_rng(0)
image = rng.standard_normal((1, 4, 8, 8)).astype(np.float32)
weight = rng.standard_normal((4, 4, 3, 3)).astype(np.float32)
offset = np.zeros((1, 18, 8, 8), np.float32)
plain = cudeform.conv2d(image, weight, padding=1)
deformed = cudeform.deform_conv2d(image, offset, weight, padding=1)
assert np.abs(deformed - plain).max() < 1e-4


def command_line(*arguments):
    program = [sys.executable, "-m", "cudeform", *arguments]
    return subprocess.run(program, capture_output=True, text=True)


assert command_line("info").returncode == 0
for example in ("digits", "rois", "detr"):  # trainings stay in the checkout; one line says so
    refused = command_line("demo", example)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1, refused.stderr
    assert f"run examples/{example}.py there" in refused.stderr, refused.stderr
print(f"Python {sys.version.split()[0]}: cudeform {cudeform.__version__} works from its wheel")
