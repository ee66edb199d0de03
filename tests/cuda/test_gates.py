"""The kernels compile for every GPU, and their machine code is what is recorded of it."""

import re
from dataclasses import replace

import needs
import numpy as np
import pytest
from gates import nvrtc, sass, table

from cudeform.cuda.compile import flatten

RECORD_ANEW = "if that is meant, run `python -m tests.gates` and commit tests/gates/resources.json"


def same_compilers(*wheels):
    """Skip the rest of a test with other versions than the record's: their numbers differ."""
    recorded, installed = table.read()["compilers"], table.compilers()
    other = [
        f"{wheel} {installed[wheel]}" for wheel in wheels if installed[wheel] != recorded[wheel]
    ]
    if other:
        pytest.skip(f"nothing spills; the rest is not compared: no record for {', '.join(other)}")


def cases(pairs):
    return [pytest.param(unit, arch, id=f"{table.name_of(unit)}-{arch}") for unit, arch in pairs]


@pytest.mark.parametrize(("unit", "arch"), cases(table.compilations()))
def test_resources(unit, arch):
    wheel = nvrtc.WHEELS[table.cuda_of(arch)]
    needs.wheels(wheel)
    for kernel, used in table.binary(unit, arch).resources.items():
        assert (used.spill, used.stack) == (0, 0), f"{kernel} spills on {arch}: {used}"
    same_compilers(wheel)
    if table.is_recorded(unit, arch):
        found = table.difference("kernels", unit, arch, table.kernels_of(unit, arch))
        assert not found, "\n".join([*found, RECORD_ANEW])


@pytest.mark.parametrize(("unit", "arch"), cases(table.lints()))
def test_machine_code(unit, arch):
    wheels = (nvrtc.WHEELS[table.cuda_of(arch)], sass.WHEEL)
    needs.wheels(*wheels)
    for kernel, listing in table.listings_of(unit, arch).items():
        faults = sass.faults(listing, table.HOT.get((unit.file, kernel)))
        assert not faults, "\n".join([f"{table.name_of(unit)} {kernel} {arch}:", *faults])
    same_compilers(*wheels)
    found = table.difference("loops", unit, arch, table.loops_of(unit, arch))
    assert not found, "\n".join([*found, RECORD_ANEW])


def test_sampling_spends_its_instructions_on_samples():
    """Of float32: what a point costs besides its channels, and a pack of them besides samples."""
    (samples,) = (
        archs
        for name, unit in table.read()["loops"].items()
        if name == "sampling.cu-float-float-4-int"
        for kernel, archs in unit.items()
        if kernel == "sample"
    )
    loads, stores, products = 4, 1, 4 * 4
    for arch, numbers in samples.items():
        cost = sass.Cost(*numbers)
        assert cost.before <= 200, arch
        assert cost.pack - (loads + stores + products) <= 8, arch


def test_record_is_complete():
    """What is recorded is what is compiled, and every file with a hot kernel exists."""
    record = table.read()
    for what, pairs in (("kernels", table.compilations(full=False)), ("loops", table.lints())):
        recorded = {
            (unit, arch)
            for unit, kernels in record[what].items()
            for archs in kernels.values()
            for arch in archs
        }
        assert recorded == {(table.name_of(unit), arch) for unit, arch in pairs}
    assert {file for file, _ in table.HOT} <= {unit.file for unit in table.units()}


def test_record_is_of_the_pinned_compilers(pytestconfig):
    pins = (pytestconfig.rootpath / "constraints.txt").read_text()
    for wheel, version in table.read()["compilers"].items():
        assert re.search(rf"^{wheel}=={re.escape(version)}(\s|$)", pins, re.MULTILINE), wheel


def test_every_architecture():
    """All that CUDA 13 compiles for; of CUDA 12's, those it dropped and the kernels can run on."""
    needs.wheels(*nvrtc.WHEELS.values())
    same_compilers(*nvrtc.WHEELS.values())
    assert set(nvrtc.architectures(13)) == set(table.ARCHITECTURES[13])
    assert set(table.ARCHITECTURES[12]) <= set(nvrtc.architectures(12))


# What the gates are for, each planted once.

KERNEL = """
struct Params {{ int count; }};
extern "C" __global__ void planted(const float4* in, float* out, const Params p) {{
  {before}
  for (int i = threadIdx.x; i < p.count; i += 32) {{ {body} }}
  {after}
}}
"""
GOOD = "const float4 v = __ldg(in + i); out[i] = v.x * v.y + v.z * v.w;"
PLANTED = {
    "local memory": {
        "before": "volatile float copy[64];",
        "body": "copy[i & 63] = in[i].x; out[i] = copy[p.count - i & 63];",
    },
    "a float atomic in shared memory": {
        "before": "__shared__ float sum; sum = 0.0f; __syncthreads();",
        "body": GOOD + "atomicAdd(&sum, v.x);",
        "after": "__syncthreads(); out[0] = sum;",
    },
    "no loop with 1 loads of 128 bits": {
        "body": "const float* v = (const float*)(in + i); out[i] = v[0] * v[1] + v[2];"
    },
    "no 128-bit store": {"body": GOOD},
    "a division": {"body": GOOD.replace("[i]", "[i / p.count]")},
    "a shuffle among lanes": {
        "body": GOOD + "out[i] += __shfl_sync(15u << (threadIdx.x & 28), v.y, 0, 4);"
    },
    "a load of the same step": {"body": GOOD.replace("in + i", "in + __ldg((const int*)in + i)")},
}


def compile_planted(arch="sm_90", **parts):
    text = KERNEL.format(**{"before": "", "after": "", **parts})
    return nvrtc.compile(text, arch, 13)


def faults_of(binary, stores=0):
    hot = sass.Hot(1, stores, chained=False)
    return "\n".join(sass.faults(sass.disassemble(binary.cubin)["planted"], hot))


def test_planted_nothing():
    needs.wheels(nvrtc.WHEELS[13], sass.WHEEL)
    binary = compile_planted(body=GOOD)
    assert faults_of(binary) == ""
    assert binary.resources["planted"].stack == 0


def test_a_load_of_the_step_before_is_no_chain():
    """Nor is one that went through shared memory before the loads of this step."""
    needs.wheels(nvrtc.WHEELS[13], sass.WHEEL)
    before = "__shared__ int next[32]; int held = __ldg((const int*)in + threadIdx.x);"
    before += "\n#pragma unroll 1\n"
    ahead = "held = __ldg((const int*)in + i + 32);"
    stage = "next[threadIdx.x] = held; __syncwarp();"
    body = GOOD.replace("in + i", "in + next[i & 31]") + "__syncwarp();"
    clean = compile_planted(before=before, body=stage + ahead + body)
    assert "same step" not in faults_of(clean)
    assert "same step" in faults_of(compile_planted(before=before, body=ahead + stage + body))


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_fault_is_found(fault):
    needs.wheels(nvrtc.WHEELS[13], sass.WHEEL)
    assert fault in faults_of(compile_planted(**PLANTED[fault]), stores=fault == "no 128-bit store")


def test_planted_spill_is_found():
    needs.wheels(nvrtc.WHEELS[13])
    used = compile_planted(**PLANTED["local memory"]).resources["planted"]
    assert used.stack > 0
    values = range(80)
    body = "".join(f"float v{n} = in[i + {n}].x;" for n in values) + "__syncthreads();"
    body += "out[i] = 0" + "".join(f" + v{n} * v{(n * 7 + 3) % 80}" for n in values) + ";"
    text = KERNEL.format(before="", body=body, after="").replace(
        "void planted", "void __launch_bounds__(1024, 2) planted"
    )
    assert nvrtc.compile(text, "sm_90", 13).resources["planted"].spill > 0


@pytest.mark.parametrize("major", nvrtc.WHEELS)
@pytest.mark.parametrize("field", ["sizes", "order"])
def test_planted_params_mismatch_is_found(major, field):
    needs.wheels(nvrtc.WHEELS[major])
    arch = table.ARCHITECTURES[major][0]
    unit = next(unit for unit in table.units() if unit.file == "sort.cu")
    fields = [(name, unit.params[name]) for name in unit.params.names]
    wrong = [*fields, ("more", "i4")] if field == "sizes" else fields[::-1]
    with pytest.raises(nvrtc.CompileError, match="differs from the dtype of the host"):
        nvrtc.compile(flatten(replace(unit, params=np.dtype(wrong))), arch, major)


def test_drift_is_found():
    unit, arch = next(table.compilations())
    recorded = table.recorded("kernels", unit, arch)
    assert table.difference("kernels", unit, arch, recorded) == []
    kernel = next(iter(recorded))
    changed = {**recorded, kernel: [recorded[kernel][0] + 1, *recorded[kernel][1:]]}
    (line,) = table.difference("kernels", unit, arch, changed)
    assert re.search(rf"{kernel} {arch}: registers \d+ -> \d+", line)
    assert len(table.difference("kernels", unit, arch, {})) == 4 * len(recorded)
