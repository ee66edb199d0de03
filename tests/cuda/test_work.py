"""What kernels do, by the emulator's count, is what is recorded of it: a gate against more."""

import json

import backends
import numpy as np
import pytest
from emulator.device import EmulatorDevice, install, to_device
from gates import work

import cudeform

RECORD_ANEW = (
    "if that is meant, run `python benchmarks/work.py --json benchmarks/work.json` and commit it"
)


@pytest.fixture(scope="module")
def recorded():
    return json.loads(work.PATH.read_text())


def same(before, now):
    found = work.difference(before, now)
    assert not found, "\n".join([*found, RECORD_ANEW])


def test_launches_of_every_case(recorded):
    backends.require(backends.BACKENDS["emulator"])
    same(recorded["launches"], work.launches())


def test_a_convolution_is_few_launches(recorded):
    """Of one chunk: what is moved before, samples, corner dots, order, gather, moved after."""
    forward, product, backward, products = recorded["launches"]["deform_conv2d"]["v2"]
    assert forward <= 3 and product == 1
    assert backward <= 10 and products <= 3


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("scaled", work.SCALED, ids=lambda scaled: scaled.name)
def test_work_of_emulated_kernels(recorded, scaled, direction):
    backends.require(backends.BACKENDS["emulator"])
    now = work.counts(scaled.work, direction == "backward")
    same(recorded["workloads"][scaled.name][direction], now)


def test_more_work_is_found(recorded):
    workload = recorded["workloads"]["a"]["forward"]
    more = json.loads(json.dumps(workload))
    more["kernels"]["sampling.cu sample"]["read_sectors"] += 1
    (line,) = work.difference(workload, more)
    assert line.startswith("kernels sampling.cu sample read_sectors: ")
    fewer = {name: kernel for name, kernel in workload["kernels"].items() if "sample" not in name}
    assert work.difference(workload, {**workload, "kernels": fewer})


def test_emulated_counts_are_those_of_a_copy():
    """A transpose reads and writes each element once; of whole tiles, in whole sectors."""
    backends.require(backends.BACKENDS["emulator"])
    with install(EmulatorDevice(count=True)) as device:
        input = to_device(np.zeros((1, 32, 8, 8), np.float32))
        weight = to_device(np.zeros((1, 32, 1, 1), np.float32))
        cudeform.conv2d(input, weight)
    (moved,) = (one.work for one in device.launches if one.blocks == 2)
    assert moved["read_bytes"] == moved["written_bytes"] == input.nbytes
    assert moved["read_sectors"] == moved["written_sectors"] == input.nbytes // 32
    assert moved["shared_read_bytes"] == moved["shared_written_bytes"] == input.nbytes
    assert moved["atomics"] == moved["shared_atomics"] == 0
