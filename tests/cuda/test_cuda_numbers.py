"""Numbers in kernels: conversions of 16 bits and divisions by reciprocals are exact."""

import re

import backends
import numpy as np
import pytest
from cases import dtype_of
from emulator.device import EmulatorDevice, install, to_device, to_host

from cudeform.commands import selftest
from cudeform.cuda import layout
from cudeform.cuda.compile import flatten, reciprocal


def _converted(device, source, dtype):
    target = device.empty(source.shape, dtype)
    layout.fill(device, to_device(source), target)
    return to_host(target)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_16_bit_number_widens_exactly(device, dtype):
    numbers = np.arange(1 << 16, dtype=np.uint16).view(dtype_of(dtype))
    got = _converted(device, numbers, np.float32)
    np.testing.assert_array_equal(got, numbers.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_to_16_bits_is_to_nearest_even(device, dtype):
    rng = np.random.default_rng(11)
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype_of(dtype)).astype(np.float32)
    finite = np.sort(every[np.isfinite(every)])
    between = (finite[:-1].astype(np.float64) + finite[1:]) / 2  # the ties
    random = rng.integers(0, 1 << 32, 100_000, dtype=np.uint32).view(np.float32)
    numbers = np.concatenate([every, between.astype(np.float32), random])
    numbers = numbers[~np.isnan(numbers)]
    with np.errstate(over="ignore"):
        want = numbers.astype(dtype_of(dtype))
    got = _converted(device, numbers, dtype_of(dtype))
    np.testing.assert_array_equal(got.view(np.uint16), want.view(np.uint16))
    assert np.isnan(_converted(device, np.full(3, np.nan, np.float32), dtype_of(dtype))).all()


CONVERSIONS = {  # text of the kernels, with what, the dtype, and what becomes of which number
    "truncated bfloat16": (
        "(word + 0x7fffu + ((word >> 16) & 1u)) >> 16",
        "word >> 16",
        "bfloat16",
        "of float32 becomes .* of bfloat16, not",
    ),
    "ties of bfloat16 away from zero": (
        "word + 0x7fffu + ((word >> 16) & 1u)",
        "word + 0x8000u",
        "bfloat16",
        "of float32 becomes .* of bfloat16, not",
    ),
    "truncated float16": (
        "magnitude + 0xfffu + ((magnitude >> 13) & 1u)",
        "magnitude",
        "float16",
        "of float32 becomes .* of float16, not",
    ),
    "no subnormals of float16": (
        "return sign ? -tiny : tiny",
        "return 0.0f",
        "float16",
        "of float16 becomes 0.0 of float32, not",
    ),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_selftest_compares_conversions(device, dtype):
    outcome = selftest.check_conversions(dtype, to_device, to_host)
    assert outcome.passed, outcome.failure
    assert outcome.cases > 65_536 + 65_536 + 3 * 60_000 + 100_000


@pytest.mark.parametrize("bug", CONVERSIONS)
def test_selftest_finds_a_planted_conversion(bug):
    backends.require(backends.BACKENDS["emulator"])
    old, new, dtype, message = CONVERSIONS[bug]

    def planted(unit):
        assert flatten(unit).count(old) == 1
        return flatten(unit).replace(old, new)

    with install(EmulatorDevice(flatten=planted, check=False)):
        outcome = selftest.check_conversions(dtype, to_device, to_host)
    assert re.search(message, outcome.failure), outcome.failure


LARGEST = 2**31 - 1  # dividend: what an int counts


def _dividends(divisor, rng):
    """Around multiples of a divisor, the ends of the range, and some between."""
    multiples = divisor * np.unique(rng.integers(0, LARGEST // divisor + 1, 50))
    last = LARGEST // divisor * divisor
    near = np.concatenate([multiples, multiples - 1, [last, last - 1, 0, 1, LARGEST - 1, LARGEST]])
    random = rng.integers(0, LARGEST + 1, 20)
    return np.clip(np.concatenate([near, random]), 0, LARGEST).astype(np.uint64)


def test_reciprocals_divide_exactly():
    """By every divisor up to 4,096, powers of two and their neighbours, and random ones."""
    rng = np.random.default_rng(0)
    powers = [2**k + d for k in range(13, 31) for d in (-1, 0, 1)]
    divisors = [*range(1, 4097), *powers, *rng.integers(1, LARGEST, 2000).tolist(), LARGEST]
    for divisor in divisors:
        multiplier, shift = reciprocal(divisor)
        assert 0 < multiplier < 2**32 and 31 <= shift < 64
        numbers = _dividends(divisor, rng)
        got = numbers * np.uint64(multiplier) >> np.uint64(shift)
        np.testing.assert_array_equal(got, numbers // np.uint64(divisor), err_msg=str(divisor))


def test_kernels_divide_as_the_host_says(device):
    """The same struct, unpacked and used by a kernel: quotients and remainders of a fill."""
    for channels, inner in ((1, 1), (1, 7), (7, 1), (3, 5), (1000, 33), (257, 64)):
        source = np.arange(channels, dtype=np.float64)
        target = device.empty((2 * channels * inner + 1,), np.float64)
        layout.fill(device, to_device(source), target, inner)
        want = source[np.arange(target.size) // inner % channels]
        np.testing.assert_array_equal(to_host(target), want)
