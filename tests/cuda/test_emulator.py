"""The emulator computes what a GPU would, and its checker bites: each planted bug is caught."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from checkout import ROOT
from emulator import build
from emulator.device import DeviceArray, EmulatorDevice, EmulatorError, to_device, to_host
from kernel_runs import SCHEDULES

PLANTED = ROOT / "tests" / "emulator" / "planted"


@dataclass(frozen=True)
class Unit:
    """As in cudeform.cuda.compile, for files that are not in kernels/."""

    file: str
    defines: tuple
    params: np.dtype


def flatten(unit):
    lines = [f"#define {name} {value}" for name, value in unit.defines]
    for name in ("shared.cuh", unit.file):
        text = (PLANTED / name).read_text().replace('#include "shared.cuh"', "")
        lines += [f'#line 1 "{name}"', text]
    return "\n".join(lines)


def unit(file, *bugs, **fields):
    """Return the unit with `bugs` planted, and its parameters."""
    dtype = np.dtype([(name, type(value)) for name, value in fields.items()], align=True)
    params = np.array([tuple(fields.values())], dtype)
    return Unit(file, tuple((bug, "1") for bug in bugs), dtype), params


def device(order="ascending", seed=0, check=True):
    return EmulatorDevice(order=order, seed=seed, check=check, flatten=flatten)


# -- the planted bugs ---------------------------------------------------------------------------


def run_row_sum(dev, *bugs):
    x = np.random.default_rng(0).standard_normal((5, 250)).astype(np.float32)
    sums = dev.empty(5, np.float32)
    the_unit, params = unit("reduction.cu", *bugs, columns=np.int32(250))
    dev.launch(the_unit, "row_sum", 5, 96, (to_device(x, read_only=True), sums), params)
    np.testing.assert_allclose(sums, x.sum(1, dtype=np.float64), rtol=1e-5, atol=1e-5)


def run_neighbour_sum(dev, *bugs):
    x = np.arange(7 * 64, dtype=np.float32)
    sums = dev.empty(64, np.float32)
    the_unit, params = unit("double_buffer.cu", *bugs, tiles=np.int32(7))
    arrays = (to_device(x), sums)
    dev.launch(the_unit, "neighbour_sum", (1, 1), (64,), arrays, params, shared_bytes=512)
    np.testing.assert_array_equal(sums, np.roll(x.reshape(7, 64).sum(0), -1))


def run_double_each(dev, *bugs):
    x = np.arange(1, 1001, dtype=np.float32)
    twice = dev.empty(1000, np.float32)
    the_unit, params = unit("arrays.cu", *bugs, count=np.int32(1000))
    dev.launch(the_unit, "double_each", 8, 128, (to_device(x, read_only=True), twice), params)
    np.testing.assert_array_equal(twice, 2 * x)


def run_histogram(dev, *bugs):
    x = np.random.default_rng(0).integers(0, 7, 300).astype(np.int32)
    counts = to_device(np.zeros(7, np.int32))
    the_unit, params = unit("arrays.cu", *bugs, count=np.int32(300))
    dev.launch(the_unit, "histogram", 10, 32, (to_device(x), counts), params)
    np.testing.assert_array_equal(counts, np.bincount(x))


def run_add_up(dev, *bugs):
    x = np.arange(300, dtype=np.int32)
    total = to_device(np.zeros(12, np.int32))
    the_unit, params = unit("arrays.cu", *bugs, count=np.int32(300))
    dev.launch(the_unit, "add_up", 10, 32, (to_device(x), total), params)
    np.testing.assert_array_equal(total[:2], [x.sum(), 300])


def run_sum_fours(dev, *bugs, skip=0):
    x = np.arange(404, dtype=np.float32)
    sums = dev.empty(100, np.float32)
    the_unit, params = unit("arrays.cu", *bugs, count=np.int32(100))
    dev.launch(the_unit, "sum_fours", 1, 100, (to_device(x)[skip : skip + 400], sums), params)
    np.testing.assert_array_equal(sums, x[skip : skip + 400].reshape(-1, 4).sum(1))


def run_sum_fours_misaligned(dev, *bugs):
    run_sum_fours(dev, *bugs, skip=1 if bugs else 4)


def run_shift_blocks(dev, *bugs):
    x = to_device(np.arange(9, dtype=np.float32))
    the_unit, params = unit("arrays.cu", *bugs, count=np.int32(9))
    dev.launch(the_unit, "shift_blocks", 9, 32, (x,), params)
    np.testing.assert_array_equal(x, np.arange(1, 10))


def run_truncate(dev, *bugs):
    x = np.array([1.5, -1.5, np.nan, 1e30, -np.inf], np.float32)
    y = dev.empty(5, np.int32)
    the_unit, params = unit("arrays.cu", *bugs, count=np.int32(5))
    dev.launch(the_unit, "truncate", 1, 32, (to_device(x), y), params)
    np.testing.assert_array_equal(y, [1, -1, 0, 2**31 - 1, -(2**31)])


def run_look_up(dev, *bugs):
    x = np.array([0, 3, 1], np.int32)
    y = dev.empty(3, np.float32)
    the_unit, params = unit("arrays.cu", *bugs, count=np.int32(3))
    dev.launch(the_unit, "look_up", 1, 32, (to_device(x), y), params)
    np.testing.assert_array_equal(y, [1, 8, 2])


def run_buckets(dev, *bugs):
    rng = np.random.default_rng(0)
    keys = rng.permutation(np.arange(300) % 7).astype(np.int32)
    values = rng.standard_normal(300).astype(np.float32)
    counts, sums = to_device(np.zeros(7, np.int32)), to_device(np.zeros(7, np.float32))
    firsts, found = to_device(np.full(7, 300, np.int32)), dev.empty(300, np.int32)
    the_unit, params = unit("buckets.cu", *bugs, count=np.int32(300), keys=np.int32(7))
    on_device = to_device(keys)
    dev.launch(the_unit, "count_points", 10, 32, (on_device, counts), params)
    np.testing.assert_array_equal(counts, np.bincount(keys))
    starts = to_device(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    arrays = (on_device, starts, counts, found, firsts)
    dev.launch(the_unit, "place_points", 10, 32, arrays, params)
    np.testing.assert_array_equal(firsts, [np.argmax(keys == key) for key in range(7)])
    arrays = (to_device(values), on_device, starts, found, sums)
    dev.launch(the_unit, "add_points", 10, 32, arrays, params)
    want = np.zeros(7, np.float32)
    np.add.at(want, keys, values)
    np.testing.assert_array_equal(sums, want)


PLANTED_BUGS = [
    (run_row_sum, "BUG_MISSING_BARRIER", "race: (read after write|write after read)|uninitialised"),
    (run_row_sum, "BUG_UNINITIALISED", "uninitialised read of shared memory `partial`"),
    (run_row_sum, "BUG_SHARED_READ", "out of bounds: read of 4 bytes at byte 12 of shared memory"),
    (run_row_sum, "BUG_DIVERGENT_BARRIER", "divergent barrier: .*reduction.cu:"),
    (run_row_sum, "BUG_DIVERGENT_SHUFFLE", "divergent warp collective: "),
    (run_row_sum, "BUG_DIVERGENT_MASK", "divergent warp collective: "),
    (run_neighbour_sum, "BUG_MISSING_BARRIER", "race: .*shared memory `dynamic`"),
    (run_double_each, "BUG_OFF_BY_ONE", "bounds: write of 4 bytes at byte 4000 of argument 1"),
    (run_double_each, "BUG_WRITE_READ_ONLY", "write into argument 0, which is read-only"),
    (run_histogram, "BUG_NOT_ATOMIC", "race: .*argument 1, the other access by"),
    (run_histogram, "BUG_READ_OF_ATOMIC", "race: .* on argument 1"),
    (run_add_up, "BUG_READ_BEFORE_THE_END", "race: .* argument 1, the other access by another"),
    (run_buckets, "BUG_LOST_UPDATE", "count_points .*race: .* on argument 1"),
    (run_buckets, "BUG_MIXED_ATOMICS", "count_points .*race: atomics whose result depends on"),
    (run_buckets, "BUG_HALF_PLACED", "place_points .*race: read after write on argument 3"),
    (run_buckets, "BUG_FLOAT_ATOMIC", "add_points .*race: atomics whose result depends on"),
    (run_sum_fours_misaligned, "BUG_MISALIGNED", "misaligned access"),
    (run_shift_blocks, "BUG_BLOCKS_COMMUNICATE", "race: .*argument 0, the other access by another"),
    (run_truncate, "BUG_CAST", "conversion of a float"),
    (run_look_up, "BUG_LOCAL_INDEX", "out of bounds: index outside"),
]


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(("order", "seed"), SCHEDULES)
@pytest.mark.parametrize("run", dict.fromkeys(case[0] for case in PLANTED_BUGS))
def test_clean_kernels_pass(run, order, seed, check):
    run(device(order, seed, check))


@pytest.mark.parametrize(("order", "seed"), SCHEDULES)
@pytest.mark.parametrize(("run", "bug", "message"), PLANTED_BUGS)
def test_planted_bug_is_caught(run, bug, message, order, seed):
    with pytest.raises(EmulatorError, match=message):
        run(device(order, seed), bug)


def test_report_names_kernel_line_block_and_thread():
    with pytest.raises(EmulatorError) as caught:
        run_double_each(device(), "BUG_OFF_BY_ONE")
    message = str(caught.value)
    source = (PLANTED / "arrays.cu").read_text().splitlines()
    line = 1 + next(i for i, text in enumerate(source) if "i <= p.count" in text)
    assert message.startswith("double_each (arrays.cu): ")
    assert f"at arrays.cu:{line}" in message
    assert "block (7, 0, 0) thread (104, 0, 0)" in message


@pytest.mark.parametrize("bug", ["BUG_OFF_BY_ONE", "BUG_WRITE_READ_ONLY"])
def test_stray_writes_are_found_without_the_checker(bug):
    with pytest.raises(EmulatorError, match="out of bounds|read-only"):
        run_double_each(device(check=False), bug)


def test_plain_shared_memory_does_not_compile():
    text = 'extern "C" __global__ void f(int n) { __shared__ float x[2]; }'
    with pytest.raises(build.BuildError, match="use_SHARED_or_dynamic_shared"):
        build.load(text, check=False)


# -- what a launch refuses ----------------------------------------------------------------------


def launch_double_each(arrays=None, params=None, grid=8, block=128, **options):
    the_unit, good_params = unit("arrays.cu", count=np.int32(1000))
    x = to_device(np.zeros(1000, np.float32))
    good_arrays = (x, device().empty(1000, np.float32))
    device().launch(
        the_unit,
        options.pop("kernel", "double_each"),
        grid,
        block,
        good_arrays if arrays is None else arrays(x),
        good_params if params is None else params,
        **options,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "no_such"}, "no kernel no_such"),
        ({"arrays": lambda x: (x,)}, "expected 2 arrays, got 1"),
        ({"arrays": lambda x: (x, to_host(x))}, "argument 1 is a ndarray, not on the device"),
        ({"arrays": lambda x: (x[::2], x)}, "argument 0 is not C-contiguous"),
        ({"arrays": lambda x: (x.astype(np.float64), x)}, "argument 0 has dtype float64"),
        ({"arrays": lambda x: (x, x.astype(np.int32))}, "argument 1 has dtype int32"),
        ({"arrays": lambda x: (x, None)}, "write of 4 bytes through a null pointer"),
        ({"params": np.zeros(1, [("count", "i4"), ("more", "i4")])}, "expected params of dtype"),
        ({"grid": (8, 0)}, "grid .* is empty"),
        ({"grid": (8, 65536)}, "grid .* beyond"),
        ({"block": (64, 32)}, "more than 1024 threads"),
        ({"shared_bytes": 50_000}, "50000 bytes of shared memory are too many"),
    ],
)
def test_wrong_launch(options, message):
    with pytest.raises(EmulatorError, match=message):
        launch_double_each(**options)


def test_wrong_params_size():
    the_unit, params = unit("arrays.cu", count=np.int64(1000))
    x = device().empty(1000, np.float32)
    with pytest.raises(EmulatorError, match="kernel's Params has 4 bytes, params 8"):
        device().launch(the_unit, "double_each", 8, 128, (x, x), params)


def test_slices_are_bounds():
    whole = to_device(np.zeros(3000, np.float32))
    the_unit, params = unit("arrays.cu", count=np.int32(1000))
    arrays = (whole[:1000], whole[1000:2000])
    device().launch(the_unit, "double_each", 8, 128, arrays, params)
    with pytest.raises(EmulatorError, match="out of bounds: read"):
        short = (whole[:999], whole[1000:2000])
        device().launch(the_unit, "double_each", 8, 128, short, params)


def test_launches_are_recorded():
    dev = device()
    run_row_sum(dev)
    run_histogram(dev)
    assert dev.launched == {("reduction.cu", (), "row_sum"), ("arrays.cu", (), "histogram")}


# -- the intrinsics, against NumPy --------------------------------------------------------------

LANES = np.arange(32)


@pytest.mark.parametrize("width", [32, 16, 8, 4])
def test_shuffles(width):
    x = np.random.default_rng(0).integers(-100, 100, 64).astype(np.int32)
    out = device().empty((6, 64), np.int32)
    mask = 0b1010_0000_0000_0000_0000_0000_0111_0001
    the_unit, params = unit("intrinsics.cu", width=np.int32(width), mask=np.uint32(mask))
    device("random", 3).launch(the_unit, "shuffles", 1, 64, (to_device(x), out), params)
    warps = x.reshape(2, 32)
    first, last = LANES // width * width, LANES // width * width + width - 1
    up, down, xor = LANES - 3, LANES + 3, LANES ^ 5
    chosen = mask >> LANES & 1 == 1
    expected = [
        np.stack([warps[w, first + ((LANES + 32 * w) * 7 + 3) % width] for w in (0, 1)]),
        warps[:, np.where(up < first, LANES, up)],
        warps[:, np.where(down > last, LANES, down)],
        warps[:, np.where(xor > last, LANES, xor)],
        warps[:, LANES ^ 1],
        np.where(chosen, warps[:, chosen].sum(1, keepdims=True), -7),
    ]
    np.testing.assert_array_equal(out, np.reshape(expected, (6, 64)))


def test_votes():
    x = np.random.default_rng(1).integers(-3, 4, 96).astype(np.int32)
    x[32:64] = 1
    out = device().empty((8, 96), np.uint32)
    the_unit, params = unit("intrinsics.cu", width=np.int32(32), mask=np.uint32(0))
    device("descending").launch(the_unit, "votes", 1, 96, (to_device(x), out), params)
    warps = x.reshape(3, 32)
    bit = 1 << LANES.astype(np.uint64)
    same = warps[:, :, None] == warps[:, None, :]
    expected = [
        np.repeat(((warps > 0) * bit).sum(1), 32),
        (same * bit).sum(2).ravel(),
        np.repeat((warps > 2).any(1), 32),
        np.repeat((warps > -3).all(1), 32),
        np.full(96, (x > 0).sum()),
        np.full(96, (x > 2).any()),
        np.full(96, (x > -3).all()),
        np.repeat(warps.max(1) + 10, 32),
    ]
    np.testing.assert_array_equal(out, np.array(expected, np.uint32))


def test_atomics():
    x = np.random.default_rng(2).integers(1, 100, 300).astype(np.int32)
    integers = to_device(np.array([0, -1000, 1000, 0, 0], np.int32))
    sums = [to_device(np.zeros(1, dtype)) for dtype in (np.float32, np.float64, np.uint64)]
    the_unit, params = unit("intrinsics.cu", width=np.int32(32), mask=np.uint32(0))
    unchecked = device(check=False)  # floats in any order: these sums are whole numbers
    unchecked.launch(the_unit, "atomics", 3, 100, (to_device(x), integers, *sums), params)
    bits = np.bitwise_or.reduce(1 << (x & 15))
    np.testing.assert_array_equal(integers, [x.sum(), x.max(), x.min(), bits, x.sum()])
    assert [int(s[0]) for s in sums] == [x.sum(), x.sum(), x.sum() + 30_000]


def test_vectors():
    rng = np.random.default_rng(3)
    inputs, outputs = [], []
    for dtype, lanes in ((np.float32, 4), (np.uint32, 2), (np.uint16, 4), (np.float64, 2)):
        inputs.append(to_device(rng.integers(0, 1000, (33, lanes)).astype(dtype)))
        outputs.append(device().empty((33, lanes), dtype))
    arrays = tuple(a for pair in zip(inputs, outputs, strict=True) for a in pair)
    the_unit, params = unit("intrinsics.cu", width=np.int32(32), mask=np.uint32(0))
    device().launch(the_unit, "vectors", 1, 33, arrays, params)
    for given, got in zip(inputs, outputs, strict=True):
        np.testing.assert_array_equal(got, given[:, ::-1])


def test_bits():
    values = [0, 1, 2**31, 2**32 - 1, 0x3FC00000, 0xBFC00000, 0x7FC00000, 0x50000000, 12345, 76]
    x = np.array(values, np.uint32)
    out = device().empty((10, 10), np.uint32)
    the_unit, params = unit("intrinsics.cu", width=np.int32(32), mask=np.uint32(0))
    device().launch(the_unit, "bits", 1, 10, (to_device(x), out), params)
    expected = []
    for i, v in enumerate(values):
        text = f"{v:032b}"
        real = float(np.array(v, np.uint32).view(np.float32))
        whole = 0 if np.isnan(real) else np.floor(real)
        rounded = 0 if np.isnan(real) else np.rint(real)
        low, second = v & 255, v >> 8 & 255
        expected.append(
            [
                text.count("1"),
                (v & -v).bit_length(),
                32 - v.bit_length(),
                int(text[::-1], 2),
                v * 0x9E3779B9 >> 32,
                low | 0x11 << 8 | second << 16 | 0x22 << 24,  # bytes 0, 4, 1, 5
                int(np.clip(whole, -(2**31), 2**31 - 1)) % 2**32,
                int(np.clip(rounded, 0, 2**32 - 1)),
                (0x80000001 << 32 | v) >> 9 & 0xFFFFFFFF,
                max(v, 77) + min(i, 5) & 0xFFFFFFFF,
            ]
        )
    np.testing.assert_array_equal(out, np.array(expected, np.uint64).T)


# -- arrays and gemm ----------------------------------------------------------------------------


def test_empty_is_poisoned_and_aligned():
    x = device().empty((3, 5), ml_dtypes.bfloat16)
    assert isinstance(x, DeviceArray)
    assert x.ctypes.data % 256 == 0
    assert np.isnan(x.astype(np.float32)).all()
    assert device().empty((0, 4), np.float32).shape == (0, 4)


def test_copies():
    x = np.arange(6.0).reshape(2, 3)
    there = to_device(x.T)
    assert there.flags.c_contiguous and isinstance(there, DeviceArray)
    back = to_host(there)
    assert type(back) is np.ndarray
    np.testing.assert_array_equal(back, x.T)
    assert to_device(None) is None and to_host(None) is None


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("accumulate", [False, True])
def test_gemm(dtype, accumulate):
    rng = np.random.default_rng(4)
    a = to_device(rng.integers(-4, 5, (3, 7, 5)).astype(dtype)).swapaxes(1, 2)
    b = to_device(rng.integers(-4, 5, (7, 6)).astype(dtype))
    out = to_device(rng.integers(-4, 5, (3, 5, 6)).astype(dtype))
    expected = a.astype(np.float64) @ b.astype(np.float64) + accumulate * out.astype(np.float64)
    device().gemm(a, np.broadcast_to(b, (3, 7, 6), subok=True), out, accumulate=accumulate)
    np.testing.assert_array_equal(out.astype(np.float64), expected)


def test_gemm_rounds_once_and_to_tf32_if_asked():
    a = to_device(np.full((1, 3), 1 + 2**-12, np.float32))
    b = to_device(np.ones((3, 1), np.float32))
    out = device().empty((1, 1), np.float32)
    device().gemm(a, b, out)
    assert out[0, 0] == np.float32(3 + 3 * 2**-12)
    device().gemm(a, b, out, precision="tf32")
    assert out[0, 0] == 3
    half = to_device(np.full((1, 4096), 0.25, np.float16))
    total = to_device(np.array([[1.0]], np.float32))
    device().gemm(half, half.T, total, accumulate=True)
    assert total[0, 0] == 257


@pytest.mark.parametrize(
    ("shapes", "dtypes", "message"),
    [
        (((2, 3), (4, 5), (2, 5)), "fff", "shapes"),
        (((2, 3), (3, 5), (5, 2)), "fff", "shapes"),
        (((2, 3), (3, 5), (2, 5)), "fdf", "dtypes"),
        (((2, 3), (3, 5), (2, 5)), "dde", "dtypes"),
        (((3,), (3, 5), (5,)), "fff", "2 or 3 dimensions"),
    ],
)
def test_wrong_gemm(shapes, dtypes, message):
    arrays = [device().empty(s, d) for s, d in zip(shapes, dtypes, strict=True)]
    with pytest.raises(EmulatorError, match=message):
        device().gemm(*arrays)
