"""What kernels do, by the emulator's count, is what is recorded of it: a gate against more."""

import json

import backends
import needs
import numpy as np
import pytest
from emulator.device import EmulatorDevice, install, to_device
from gates import instructions, model, nvrtc, sass, table, work

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
    """Of one chunk: what is moved before, samples, corner dots, order, gather, moved after.

    Its 63 pixels are off the grid of vectors, so that results are moved as well.
    """
    forward, product, backward, products = recorded["launches"]["deform_conv2d"]["v2"]
    assert forward <= 4 and product == 1
    assert backward <= 11 and products <= 3


@pytest.fixture(
    params=[(s, d) for s in work.SCALED for d in work.DIRECTIONS],
    ids=lambda p: f"{p[0].name}-{p[1]}",
)
def counted(request, recorded):
    """A workload, a direction, and what is recorded of it."""
    scaled, direction = request.param
    return scaled, direction, recorded["workloads"][scaled.name]


def without_instructions(kernels):
    return {
        name: {k: n for k, n in numbers.items() if k != "instructions"}
        for name, numbers in kernels.items()
    }


def test_work_of_emulated_kernels(counted):
    backends.require(backends.BACKENDS["emulator"])
    scaled, direction, record = counted
    before = dict(record[direction])
    for name in ("kernels", "kernels_of_two"):
        before[name] = without_instructions(before[name])
    same(before, work.counts(scaled, direction))


def same_compilers(*wheels):
    """Skip the test with other versions than the record's: their numbers differ."""
    needs.wheels(*wheels)
    if any(table.compilers()[wheel] != table.read()["compilers"][wheel] for wheel in wheels):
        pytest.skip(f"the record is of other versions of {' and '.join(wheels)}")


NVRTC = nvrtc.WHEELS[table.cuda_of(model.A100.arch)]


def test_instructions_and_what_the_model_makes_of_them(counted):
    """From the recorded counts, and from the machine code as it is now."""
    scaled, direction, record = counted
    same_compilers(NVRTC, sass.WHEEL)
    for name in ("kernels", "kernels_of_two"):
        kernels = record[direction][name]
        cold = {kernel: n["instructions"] for kernel, n in kernels.items() if not is_hot(kernel)}
        same(kernels, work.with_instructions(kernels, cold))
    same(record["whole"][direction], work.whole(scaled, direction, record[direction]))


def test_gathers_are_split_where_pixels_are_few(recorded):
    """And in no workload whose counts follow from a smaller one: there they are kept whole."""
    for scaled in work.SCALED:
        split = recorded["workloads"][scaled.name]["whole"]["backward"]["split"]
        assert (split > 0) == (scaled.work == scaled.of), scaled.name


def is_hot(name):
    unit, kernel = name.split()
    return any(unit.startswith(file) and kernel == one for file, one in table.HOT)


@pytest.mark.parametrize("name", ["a", "c", "d", "e"])
def test_instructions_that_are_executed(name, recorded):
    """Of kernels without a hot loop, all of which a backward has."""
    backends.require(backends.BACKENDS["emulator"])
    same_compilers(NVRTC)
    (scaled,) = (scaled for scaled in work.SCALED if scaled.name == name)
    record = recorded["workloads"][name]
    before = {
        images: {
            kernel: numbers["instructions"]
            for kernel, numbers in record["backward"][images].items()
            if not is_hot(kernel)
        }
        for images in ("kernels", "kernels_of_two")
    }
    same(before, work.executed(scaled, "backward"))


@pytest.mark.parametrize("name", instructions.SORTS)
def test_instructions_of_a_sort(name, recorded):
    same_compilers(NVRTC)
    same(recorded["sort"][name], instructions.of_sort(name))


def test_more_work_is_found(recorded):
    workload = recorded["workloads"]["a"]["forward"]
    kernel = "sampling.cu-float-float-4-int sample"
    more = json.loads(json.dumps(workload))
    more["kernels"][kernel]["read_sectors"] += 1
    (line,) = work.difference(workload, more)
    assert line.startswith(f"kernels {kernel} read_sectors: ")
    fewer = {name: numbers for name, numbers in workload["kernels"].items() if name != kernel}
    assert work.difference(workload, {**workload, "kernels": fewer})


def test_the_bound_of_a_call():
    """Issue slots of one kernel and sectors of another, or the memory, and launches besides."""
    gpu, slots = model.A100, 32 * model.A100.issued
    sample, place = "sampling.cu-float-float-4-int sample", "sort.cu-uint4 place_points"
    nothing = {"accesses": 0, "read_sectors": 0, "written_sectors": 0}
    kernels = {
        sample: {**nothing, "instructions": 100 * slots},
        place: {**nothing, "accesses": slots, "instructions": 900 * slots, "read_sectors": 5120},
    }
    found = model.cycles(kernels, 3, 50 * gpu.memory_bytes)
    started = 3 * gpu.launch
    assert found == {"kernels": 132, "launches": started, "memory": 50, "bound": 132 + started}
    slow = model.cycles({place: kernels[place]}, 0, 500 * gpu.memory_bytes)
    assert slow["bound"] == slow["memory"] == 500


def test_emulated_counts_are_those_of_a_copy():
    """A transpose reads and writes each element once; of whole tiles, in whole sectors."""
    backends.require(backends.BACKENDS["emulator"])
    with install(EmulatorDevice(count=True)) as device:
        input = to_device(np.zeros((1, 64, 8, 8), np.float32))
        weight = to_device(np.zeros((1, 64, 1, 1), np.float32))
        cudeform.conv2d(input, weight)
    (moved,) = (one.work for one in device.launches if one.kernel == "arrange")
    assert moved["read_bytes"] == moved["written_bytes"] == input.nbytes
    assert moved["read_sectors"] == moved["written_sectors"] == input.nbytes // 32
    assert moved["shared_read_bytes"] == moved["shared_written_bytes"] == input.nbytes
    assert moved["atomics"] == moved["shared_atomics"] == 0
