"""The hot loops of the CPU backend hold what they compute in registers, on every kind of processor.

What LLVM makes of them is read, for the processor at hand and for others that it can write code
for. A vector that goes through memory in an innermost loop costs half of the speed, and more where
the stack happens to lie badly.
"""

import json
import os
import platform
import subprocess
import sys

import pytest
from checkout import ROOT
from gates import cpu_code

TARGETS = {
    "host": ("host",),
    "avx512": ("x86-64-v4",),
    "avx2": ("x86-64-v3",),
    "sse2": ("x86-64",),
    "neon": ("generic", "aarch64-unknown-linux-gnu"),
}
# Bytes and rows of the block of a product, which fills the registers
BLOCKS = {"avx512": (128, 12), "avx2": (64, 6), "sse2": (32, 6), "neon": (64, 6)}


@pytest.mark.parametrize("name", TARGETS)
def test_no_vector_is_spilled_in_an_innermost_loop(name):
    command = [sys.executable, "-m", "gates.cpu_code", *TARGETS[name]]
    done = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not found["faults"], "\n".join(found["faults"])
    assert not found["missing"], "name it in gates/cpu_code.py"
    assert all(found["loops"].values()), found["loops"]
    if name in BLOCKS:
        assert (found["bytes"], found["rows"]) == BLOCKS[name]
    for name in ("multiply", "across_columns", "fresh_columns", "down_columns"):
        # the product's loop was read whole: a multiply-add for each element of a row at least
        assert max(found["loops"][name]) > 2 * found["rows"]


LISTING = """\
product:                                # @product
# %bb.0:                                # %entry
	vmovups	%zmm3, (%rsp)           # 64-byte Spill
.LBB0_1:                                # %outer
                                        # =>This Loop Header: Depth=1
                                        #     Child Loop BB0_2 Depth 2
	vmovups	%zmm3, 64(%rsp)         # 64-byte Spill
	.p2align	4
.LBB0_2:                                # %inner
                                        #   Parent Loop BB0_1 Depth=1
                                        # =>  This Inner Loop Header: Depth=2
	movq	%rax, 8(%rsp)           # 8-byte Spill
	vfmadd231ps	%zmm1, %zmm2, %zmm0
# %bb.3:                                # %more
                                        #   in Loop: Header=BB0_2 Depth=2
	vmovups	128(%rsp), %zmm4        # 64-byte Reload
	jne	.LBB0_2
# %bb.4:                                # %after
                                        #   in Loop: Header=BB0_1 Depth=1
	vmovups	192(%rsp), %zmm4        # 64-byte Reload
	jne	.LBB0_1
"""


def test_what_a_spill_is():
    assert [len(loop.lines) for loop in cpu_code.inner_loops(LISTING)] == [4]
    (fault,) = cpu_code.faults(LISTING)
    assert fault.startswith("product BB0_2: vmovups	128(%rsp), %zmm4")
    arm = LISTING.replace("%zmm4", "q4").replace("# ", "// ")
    assert len(cpu_code.faults(arm)) == 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("vmovups\t%ymm1, 8(%rdx)", True),
        ("stp\tq0, q1, [x8], #32", True),
        ("vmovss\t%xmm1, 8(%rdx)", False),
        ("vmovups\t%ymm1, 8(%rsp)           # 32-byte Spill", False),
        ("vmovups\t8(%rdx), %ymm1", False),
    ],
)
def test_what_a_loop_of_vectors_is(line, expected):
    listing = LISTING.replace("movq\t%rax, 8(%rsp)           # 8-byte Spill", line)
    assert cpu_code.in_vectors(listing, "product") == expected
    assert not cpu_code.in_vectors(listing, "another")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="is about x86")
def test_sizes_follow_the_processor_that_numba_compiles_for():
    """Numba keeps kernels by that processor: two machines that share them must agree on sizes."""
    program = "from cudeform.cpu.language import simd; print(simd.BLOCK_BYTES, simd.BLOCK_ROWS)"
    environment = dict(os.environ, NUMBA_CPU_NAME="generic")
    environment.pop("NUMBA_CPU_FEATURES", None)
    printed = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
    assert printed.split() == ["32", "6"]  # two vectors of 16 bytes, whatever this machine has
