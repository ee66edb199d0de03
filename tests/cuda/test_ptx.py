"""What NVRTC makes of the kernels computes what their source says."""

import re

import backends
import needs
import numpy as np
import pytest
from cases import problem, problems
from emulator.device import EmulatorDevice, install, to_device, to_host
from gates import nvrtc, table
from ptx.device import UNFUSED, PtxDevice
from ptx.program import Fault

from cudeform.cuda import sort

HOST = backends.BACKENDS["emulator"]
# Cases that are not compared bit by bit, or take long.
EXPONENTIALS = ("softmax", "uneven", "ragged")  # which differ in the last bit
LARGE = ("wide", "wide-channels-last")
REPEATED = ("far", "scaled", "without-center", "one-tap", "one-level")  # others say the same
LEFT_OUT = {*EXPONENTIALS, *LARGE, *REPEATED}


def answers(given, device):
    """The output and the gradients of a problem."""
    with install(device):
        return {"output": given.forward(HOST), **given.backward(HOST)}


def assert_same_bits(given, device):
    """As the emulator has them."""
    backends.require(HOST)
    expected = answers(given, EmulatorDevice(check=False))
    for name, found in answers(given, device).items():
        if found is not None:
            bits = np.dtype(f"u{found.dtype.itemsize}")
            different = np.count_nonzero(found.view(bits) != expected[name].view(bits))
            assert not different, f"{name}: {different} of {found.size} numbers differ"


def compiles(arch="compute_80"):
    """Skip the test without the compiler for an architecture, or fail it where CI is set."""
    needs.wheels(nvrtc.WHEELS[table.cuda_of(arch.replace("compute", "sm"))])


@pytest.mark.parametrize(("name", "case"), [one for one in problems() if one[1] not in LEFT_OUT])
def test_same_bits_where_nothing_is_fused(name, case):
    compiles()
    assert_same_bits(problem(name, case, "float32"), PtxDevice(options=UNFUSED))


@pytest.mark.parametrize(
    ("name", "case", "dtype", "arch"),
    [
        ("deform_conv2d", "v2", "float16", "compute_80"),
        ("deform_conv2d", "v2", "bfloat16", "compute_90"),
        ("bilinear_sample", "NHWC-zeros", "float32", "compute_70"),  # by the NVRTC of CUDA 12
        ("bilinear_sample", "NHWC-zeros", "float64", "compute_120"),
    ],
)
def test_same_bits_in_other_dtypes_and_on_other_gpus(name, case, dtype, arch):
    compiles(arch)
    assert_same_bits(problem(name, case, dtype), PtxDevice(arch=arch, options=UNFUSED))


@pytest.mark.parametrize(
    ("name", "case"),
    [("deform_conv2d", "v2"), ("ms_deform_attn", "softmax"), ("roi_align", "aligned")],
)
def test_fused_as_users_have_it(name, case):
    compiles()
    with install(PtxDevice()):
        problem(name, case, "float32").assert_right(HOST)


def test_points_are_in_order_in_buckets_of_every_length():
    """Those of one thread, of some lanes, of a warp, of a block's memory, and longer ones."""
    compiles()
    held = sort.HELD
    lengths = [1, 0, 3, held, held + 1, 9 * held, 33 * held, sort.WHOLE + 1, 140_000]
    values = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    values = np.random.default_rng(0).permutation(values)
    records = np.arange(4 * values.size, dtype=np.int32).reshape(-1, 4)
    for count, keys in ((values.size, len(lengths)), (20_000, 100_000)):
        points = values[:count]
        buckets = sort.sort_points(PtxDevice(), to_device(points), keys, to_device(records[:count]))
        wanted = records[np.argsort(points, kind="stable")]
        np.testing.assert_array_equal(to_host(buckets.records), wanted)


# What a compiler could get wrong, planted in what it made: the emulator sees only the source.

SELECTION = r"(selp\.f32\s+%f\d+, )([^,]+), ([^,]+), (%p\d+);"
PLANTED = {  # in which file: what is replaced, by what, and a dtype in which that is seen
    "down is toward zero": ("sampling.cu", r"cvt\.rmi", "cvt.rzi", "float32"),
    "rounded toward zero": ("sampling.cu", r"cvt\.rn\.f16\.f32", "cvt.rz.f16.f32", "float16"),
    "a choice the other way": ("sampling.cu", SELECTION, r"\1\3, \2, \4;", "float32"),
    "those behind for those before": (
        "sort.cu",
        r"(selp\.u32\s+%r\d+), 1, 0",
        r"\1, 0, 1",
        "float32",
    ),
    "points of others": ("sort.cu", r"shfl\.sync\.idx", "shfl.sync.bfly", "float32"),
    "a row too far": ("layout.cu", r"shr\.u32(\s+%r\d+, %r\d+), 6;", r"shr.u32\1, 5;", "float32"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_fault_of_the_compiler_is_found(fault):
    compiles()
    file, pattern, replacement, dtype = PLANTED[fault]
    planted = []

    def edit(unit, text):
        if unit.file != file:
            return text
        edited, count = re.subn(pattern, replacement, text)
        planted.append(count)
        return edited

    device = PtxDevice(options=UNFUSED, edit=edit)
    with pytest.raises((AssertionError, Fault)) as found:
        assert_same_bits(problem("deform_conv2d", "v2", dtype), device)
    assert any(planted), fault
    assert "known here" not in str(found.value), fault
