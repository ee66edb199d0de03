"""JAX arrays on several devices, and on a GPU as far as that can be played."""

import os
import subprocess
import sys
import types
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from checkout import ROOT

pytest.importorskip("jax")
PROGRAM = Path(__file__).with_name("jax_devices.py")


def test_shard_map_forward_and_backward():
    """jax_devices.py, under the default check_vma; and what plain jit does instead."""
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, PROGRAM], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    assert run.stdout.strip() == "ok"


class FakeCupy(types.ModuleType):
    """What is asked of CuPy, with the context that it is asked in."""

    def __init__(self):
        super().__init__("cupy")
        self.context, self.seen = [], []
        self.cuda = types.SimpleNamespace(
            Device=lambda ordinal: self._within(("device", ordinal)),
            Stream=types.SimpleNamespace(
                from_external=lambda of: self._within(("stream", *of.__cuda_stream__()))
            ),
        )

    @contextmanager
    def _within(self, what):
        self.context.append(what)
        yield
        self.context.pop()

    def from_dlpack(self, buffer):
        self.seen.append(tuple(self.context))
        return buffer.array


class Buffer:
    def __init__(self, array, ordinal=3):
        self.array, self.ordinal = array, ordinal

    def __dlpack_device__(self):
        return 2, self.ordinal


def test_gpu_buffers_are_computed_on_the_stream_of_the_program(monkeypatch):
    from cudeform.jax import buffers

    captured = {}

    def callback_of(callback, results):
        captured["callback"] = callback
        return lambda *arrays: results

    fake = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(buffers, "buffer_callback", callback_of)
    array = np.arange(3.0)

    def double(given):
        assert fake.context == [("device", 3), ("stream", 0, 77)]
        return (2 * given,)

    buffers.compute(double, [array], [array])
    output = np.zeros(3)
    captured["callback"](types.SimpleNamespace(stream=77), [Buffer(output)], Buffer(array))
    np.testing.assert_array_equal(output, 2 * array)
    assert set(fake.seen) == {(("device", 3), ("stream", 0, 77))} and not fake.context
