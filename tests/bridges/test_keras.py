"""The Keras layer on each of its backends, in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT

PROGRAM = Path(__file__).with_name("keras_layer.py")


@pytest.mark.parametrize("backend", ["jax", "torch", "tensorflow"])
def test_layer(backend):
    """keras_layer.py: initial values, training, saving, mixed precision, configuration."""
    for module in ("keras", backend):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["PYTHONPATH"] = str(ROOT)
    run = subprocess.run([sys.executable, PROGRAM], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    assert run.stdout.strip().endswith(f"ok {backend}")
