"""The machine that runs PTX, on kernels of a few instructions, against what PTX says of them."""

from fractions import Fraction

import numpy as np
import pytest
from emulator.device import to_device, to_host
from ptx import machine, program
from ptx.program import Fault

NAN, INF = np.nan, np.inf
TEXT = """
.visible .entry planted(
\t.param .u64 planted_param_0,
\t.param .u64 planted_param_1,
\t.param .align 4 .b8 planted_param_2[4]
)
.maxntid 64, 1, 1
{
\t.reg .pred \t%p<9>;
\t.reg .b16 \t%rs<9>;
\t.reg .b32 \t%r<20>;
\t.reg .f32 \t%f<9>;
\t.reg .b64 \t%rd<20>;
\t.reg .f64 \t%fd<9>;
\t.shared .align 16 .b8 own[256];
\tld.param.u64 \t%rd10, [planted_param_0];
\tld.param.u64 \t%rd11, [planted_param_1];
\tmov.u32 \t%r10, %tid.x;
\tmul.wide.u32 \t%rd12, %r10, SIZE;
\tadd.s64 \t%rd10, %rd10, %rd12;
\tmul.wide.u32 \t%rd13, %r10, WIDE;
\tadd.s64 \t%rd11, %rd11, %rd13;
BODY
\tret;
}
"""


def run(lines, given, result=np.uint32, threads=32):
    """What a kernel writes that has these lines; %rd10 and %rd11 are a thread's elements."""
    given = to_device(np.asarray(given))
    out = to_device(np.zeros(threads, result))
    text = TEXT.replace("BODY", "\n".join(f"\t{line}" for line in lines))
    text = text.replace("SIZE", str(given.itemsize)).replace("WIDE", str(out.itemsize))
    kernel = machine.Machine(program.parse(text)["planted"])
    ran = kernel.run(1, threads, (given, out), np.zeros(1, np.int32))
    return to_host(out), ran


def computed(instruction, given, result):
    """What an instruction makes of a column for each operand; registers by their letters."""
    letter = {"f4": "f", "f8": "fd", "u2": "rs", "i2": "rs", "u8": "rd", "i8": "rd"}
    given = np.asarray(given)
    columns = given.reshape(len(given), -1)
    packed = np.ones((32, columns.shape[1]), given.dtype)
    packed[: len(given)] = columns
    rows = np.ascontiguousarray(packed).view(f"V{packed.itemsize * packed.shape[1]}").ravel()
    came, to = (letter.get(np.dtype(d).str[1:], "r") for d in (given.dtype, result))
    bits, out_bits = 8 * given.itemsize, 8 * np.dtype(result).itemsize
    lines = [
        f"ld.global.b{bits} %{came}{i}, [%rd10+{i * given.itemsize}];"
        for i in range(columns.shape[1])
    ]
    operands = ", ".join(f"%{came}{i}" for i in range(columns.shape[1]))
    lines.append(f"{instruction} %{to}9, {operands};")
    lines.append(f"st.global.b{out_bits} [%rd11], %{to}9;")
    return run(lines, rows, result)[0][: len(given)]


@pytest.mark.parametrize(
    ("instruction", "given", "expected"),
    [
        (
            "cvt.rmi.s32.f32",
            np.float32([-1.5, 2.5, NAN, 1e30, -INF]),
            np.int32([-2, 2, 0, 2**31 - 1, -(2**31)]),
        ),
        ("cvt.rzi.s32.f64", np.float64([-1.5, 2.9, NAN, 1e30]), np.int32([-1, 2, 0, 2**31 - 1])),
        ("cvt.rn.f32.s32", np.int32([2**24 + 1, 2**24 + 3]), np.float32([2**24, 2**24 + 4])),
        (
            "cvt.rz.f32.s32",
            np.int32([2**24 + 3, -(2**24) - 3]),
            np.float32([2**24 + 2, -(2**24) - 2]),
        ),
        (
            "cvt.rn.f16.f32",
            np.float32([1 + 2**-11, 1 + 3 * 2**-11, 65519, 65520, NAN]),
            np.uint16([0x3C00, 0x3C02, 0x7BFF, 0x7C00, 0x7FFF]),
        ),
        (
            "cvt.rn.bf16.f32",
            np.float32([1 + 2**-8, 1 + 3 * 2**-8, -INF, NAN]),
            np.uint16([0x3F80, 0x3F82, 0xFF80, 0x7FFF]),
        ),
        (
            "cvt.f32.f16",
            np.uint16([0x0001, 0xFC00, 0x3555]),
            np.float32([2**-24, -INF, 0.333251953125]),
        ),
        ("cvt.s64.s32", np.int32([-1, 7]), np.int64([-1, 7])),
        ("cvt.u64.u32", np.int32([-1, 7]), np.int64([2**32 - 1, 7])),
        ("cvt.ftz.sat.f32.f32", np.float32([-3, 0.5, 2, NAN]), np.float32([0, 0.5, 1, 0])),
        ("add.ftz.f32", np.float32([[1e-38, 2e-39], [1.5e-38, -1.4e-38]]), np.float32([0, 0])),
        ("add.f32", np.float32([[2e-39, 1e-39]]), np.float32([3e-39])),
        ("min.f32", np.float32([[NAN, 1], [2, NAN], [-1, 3]]), np.float32([1, 2, -1])),
        ("copysign.f32", np.float32([[-1, 2], [3, -4]]), np.float32([-2, 4])),
        ("shl.b32", np.uint32([[1, 31], [1, 32], [3, 40]]), np.uint32([2**31, 0, 0])),
        ("shr.s32", np.int32([[-8, 1], [-8, 32], [8, 99]]), np.int32([-4, -1, 0])),
        ("shr.u32", np.uint32([[2**31, 31], [5, 32]]), np.uint32([1, 0])),
        ("mul.wide.s32", np.int32([[-3, 2**30]]), np.int64([-3 * 2**30])),
        ("mul.hi.u32", np.uint32([[2**31, 6]]), np.uint32([3])),
        ("mul.lo.s32", np.int32([[2**30, 6]]), np.int32([-(2**31)])),
        ("mad.lo.s32", np.int32([[5, -6, 7]]), np.int32([-23])),
        ("div.s32", np.int32([[-7, 2], [7, -2], [-8, 2]]), np.int32([-3, -3, -4])),
        ("rem.s32", np.int32([[-7, 2], [7, -2]]), np.int32([-1, 1])),
        ("bfind.shiftamt.u32", np.uint32([0, 1, 2**31]), np.uint32([2**32 - 1, 31, 0])),
        ("clz.b32", np.uint32([0, 1, 2**31]), np.uint32([32, 31, 0])),
        ("brev.b32", np.uint32([1, 6]), np.uint32([2**31, 3 << 29])),
        ("popc.b32", np.uint32([255, 0]), np.uint32([8, 0])),
        ("bfi.b32", np.uint32([[7, 0xFF00, 4, 2], [5, 9, 0, 32]]), np.uint32([0xFF30, 5])),
        (
            "prmt.b32",
            np.uint32([[0x44332211, 0x887766F5, 0x7654], [0x112233F4, 0, 0x8880]]),
            np.uint32([0x887766F5, 0xFFFFFFF4]),
        ),
    ],
)
def test_instruction(instruction, given, expected):
    np.testing.assert_array_equal(computed(instruction, given, expected.dtype), expected)


def nearest(exact, dtype):
    """The float nearest to a fraction, ties to even, of those around it."""
    near = dtype(float(exact))
    around = [near, np.nextafter(near, dtype(INF)), np.nextafter(near, dtype(-INF))]
    bits = f"i{near.itemsize}"
    return min(around, key=lambda x: (abs(Fraction(float(x)) - exact), x.view(bits) & 1))


@pytest.mark.parametrize(("kind", "dtype"), [("f32", np.float32), ("f64", np.float64)])
def test_fused_products_are_rounded_once(kind, dtype):
    """Also where the product of two numbers is nearly what is subtracted, and at ties."""
    rng = np.random.default_rng(0)
    digits = 23 if kind == "f32" else 52
    a, b = 1 + rng.integers(0, 2**10, (2, 30)).astype(dtype) * dtype(2.0) ** -digits
    c = np.concatenate([-a[:10] * b[:10], dtype(2.0) ** rng.integers(-digits - 40, 3, 20)])
    for sign in (1, -1):
        given = np.stack([a, sign * b, c.astype(dtype)], axis=1)
        exact = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in given]
        expected = np.array([nearest(one, dtype) for one in exact])
        found = computed(f"fma.rn.{kind}", given, dtype)
        np.testing.assert_array_equal(found, expected)


def test_sums_rounded_down_up_and_toward_zero():
    a, b = np.float32(1), np.float32(2**-30)
    given = np.array([[a, b], [a, -b], [-a, b], [-a, -b]])
    below, above = 1 - np.float32(2**-24), 1 + np.float32(2**-23)
    expected = {
        "rm": [1, below, -1, -above],
        "rp": [above, 1, -below, -1],
        "rz": [1, below, -below, -1],
    }
    for mode, numbers in expected.items():
        found = computed(f"add.{mode}.f32", given, np.float32)
        np.testing.assert_array_equal(found, np.float32(numbers), err_msg=mode)


LANES = np.arange(32, dtype=np.uint32)
LOAD, STORE = "ld.global.u32 %r1, [%rd10];", "st.global.u32 [%rd11], %r2;"


@pytest.mark.parametrize(
    ("shuffle", "expected"),
    [
        ("up.b32 %r2, %r1, 3, 0, -1", np.where(LANES < 3, LANES, LANES - 3)),
        ("down.b32 %r2, %r1, 3, 6175, -1", np.where(LANES % 8 > 4, LANES, LANES + 3)),  # eights
        ("bfly.b32 %r2, %r1, 5, 31, -1", LANES ^ 5),
        ("idx.b32 %r2, %r1, 2, 7199, -1", LANES // 4 * 4 + 2),  # of fours
    ],
)
def test_shuffles(shuffle, expected):
    found, _ = run([LOAD, f"shfl.sync.{shuffle};", STORE], LANES * 10)
    np.testing.assert_array_equal(found, expected * 10)


def test_votes_and_matches_are_of_the_lanes_that_are_there():
    """Of the even ones."""
    head = [LOAD, "and.b32 %r3, %r10, 1;", "setp.eq.s32 %p1, %r3, 1;", "@%p1 bra $end;"]
    head += ["mov.u32 %r4, 1431655765;", "setp.lt.u32 %p2, %r1, 20;"]
    even = LANES % 2 == 0
    below = sum(1 << int(n) for n in LANES[even] if n < 20)
    vote = ["vote.sync.ballot.b32 %r2, %p2, %r4;", STORE, "$end:"]
    np.testing.assert_array_equal(run([*head, *vote], LANES)[0], np.where(even, below, 0))
    match = ["match.any.sync.b32 %r2, %r1, %r4;", STORE, "$end:"]
    found, _ = run([*head, *match], LANES // 8)
    expected = [0x55 << n // 8 * 8 if n % 2 == 0 else 0 for n in range(32)]
    np.testing.assert_array_equal(found, np.uint32(expected))


def test_instructions_are_counted():
    """Threads that leave a loop early execute less; a warp issues what its last thread needs."""
    loop = ["mov.u32 %r1, 0;", "$again:", "add.s32 %r1, %r1, 1;", "setp.le.u32 %p1, %r1, %r10;"]
    found, ran = run([*loop, "@%p1 bra $again;", "st.global.u32 [%rd11], %r1;"], LANES)
    np.testing.assert_array_equal(found, LANES + 1)
    once = 7 + 1 + 2  # what comes before, and the store and the end
    assert ran == (32 * once + 3 * sum(range(1, 33)), once + 3 * 32)


def test_numbers_in_instructions():
    """Decimal, hexadecimal as NVRTC marks it, and the bits of floats."""
    lines = ["mov.f32 %f1, 0f3F800000;", "mov.b32 %r3, %f1;", "sub.s32 %r3, %r3, 0x3F800000U;"]
    found, _ = run([*lines, "add.s32 %r2, %r3, -7;", STORE], LANES)
    np.testing.assert_array_equal(found, np.uint32(2**32 - 7))


def test_inline_assembly_in_braces():
    """Has registers of its own."""
    split = "{ .reg .b16 tmp; mov.b32 {tmp, %rs4}, %r1; }"
    found, _ = run([LOAD, split, "cvt.u32.u16 %r2, %rs4;", STORE], LANES * 70_000)
    np.testing.assert_array_equal(found, LANES * 70_000 >> 16)


def test_atomics_come_in_turn():
    place = "ld.param.u64 %rd1, [planted_param_0];"
    found, _ = run([place, "atom.global.add.u32 %r2, [%rd1], 5;", STORE], LANES + 7)
    np.testing.assert_array_equal(found, 7 + 5 * LANES)


def test_a_barrier_is_waited_at():
    """The other warp's numbers are there after it."""
    own = ["shl.b32 %r1, %r10, 2;", "mov.u32 %r2, own;", "add.s32 %r3, %r1, %r2;"]
    own += ["setp.lt.u32 %p1, %r10, 32;", "@%p1 bra $late;", "bra $write;", "$late:"]
    own += ["add.s32 %r5, %r10, 100;", "$write:", "st.shared.u32 [%r3], %r10;", "bar.sync 0;"]
    own += ["xor.b32 %r4, %r1, 252;", "ld.shared.u32 %r2, [%r4];", STORE]
    found, _ = run(own, np.zeros(64, np.uint32), threads=64)
    np.testing.assert_array_equal(found, np.arange(64)[::-1])


FAULTS = {
    "nothing has written %r7": ["add.s32 %r1, %r7, 1;"],
    "out of bounds": ["ld.global.u32 %r1, [%rd10+4];"],
    "bytes of shared memory": ["mov.u32 %r1, own;", "st.shared.u32 [%r1+256], %r10;"],
    "misaligned": ["ld.global.u32 %r1, [%rd10+2];"],
    "a division by zero": ["div.u32 %r1, %r10, 0;"],
    "not all threads come to": [
        "setp.eq.s32 %p1, %r10, 0;",
        "@%p1 bra $x;",
        "bar.sync 0;",
        "bra $y;",
        "$x:",
        "bar.sync 0;",
        "$y:",
    ],
    "known here": ["tanh.approx.f32 %f1, %f2;"],
    "what is surprise": ["add.s32 %r1, %r10, surprise;"],
    "is too short": ["mul.wide.u32 %r1, %r2, %r3;"],
    "no register": ["mov.u32 %q1, 1;"],
    "not told how to round": ["cvt.f32.s32 %f1, %r10;"],
}


def test_what_nothing_has_written_may_be_moved():
    """As compilers do where ways meet, on one of which it is not used."""
    run(["mov.u32 %r1, %r7;", "mov.b64 %rd1, {%r7, %r10};"], np.zeros(32, np.uint32))
    with pytest.raises(Fault, match="nothing has written %r7"):
        run(["mov.u32 %r1, %r10;", "add.s32 %r1, %r7, 1;"], np.zeros(32, np.uint32))


@pytest.mark.parametrize("fault", FAULTS)
def test_fault(fault):
    with pytest.raises(Fault, match=f"planted: .*{fault}"):
        run(FAULTS[fault], np.zeros(32, np.uint32))


def test_a_read_only_array_is_not_written():
    kernel = program.parse(
        TEXT.replace("BODY", "\tst.global.u32 [%rd11], %r10;")
        .replace("SIZE", "4")
        .replace("WIDE", "4")
    )
    out = to_device(np.zeros(32, np.uint32), read_only=True)
    with pytest.raises(Fault, match="read-only"):
        machine.Machine(kernel["planted"]).run(1, 32, (None, out), np.zeros(1, np.int32))
    with pytest.raises(Fault, match="do not fit the kernel"):
        machine.Machine(kernel["planted"]).run(1, 32, (out,), np.zeros(1, np.int32))
