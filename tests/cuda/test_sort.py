"""Points in buckets by their keys, against a stable sort."""

import backends
import numpy as np
import pytest
from emulator.device import EmulatorDevice, EmulatorError, to_device, to_host
from kernel_runs import SCHEDULES

from cudeform.cuda import lanes, sort
from cudeform.cuda.compile import flatten


def _assert_sorted(device, values, keys, dtype=np.int32):
    """Records are where a stable sort puts them; the key `keys` marks points nobody wants."""
    records = np.arange(4 * values.size, dtype=dtype).reshape(-1, 4)
    given = to_device(values, read_only=True), keys, to_device(records, read_only=True)
    buckets = sort.sort_points(device, *given)
    starts = np.searchsorted(np.sort(values), np.arange(keys + 1))
    np.testing.assert_array_equal(to_host(buckets.starts), starts)
    wanted = np.argsort(values, kind="stable")[: starts[-1]]
    np.testing.assert_array_equal(to_host(buckets.records)[: starts[-1]], records[wanted])


@pytest.mark.parametrize("count", [1, 31, 2048, 2049, 7001])
@pytest.mark.parametrize("keys", [1, 200, sort.TILE - 1, sort.TILE, 70_000])
def test_sort_is_stable(device, count, keys):
    values = np.random.default_rng(count).integers(0, keys + 1, count).astype(np.int32)
    _assert_sorted(device, values, keys)


WARP_HOLDS, HELD, WHOLE = lanes.WARP * sort.HELD, sort.HELD, sort.WHOLE
LENGTHS = [1, 0, 3, 4, 5, HELD, HELD + 1, 8 * HELD, 8 * HELD + 1, 2, WARP_HOLDS, WARP_HOLDS + 1]


@pytest.mark.parametrize("empty", [0, 40, 400, 2000])
@pytest.mark.parametrize(("order", "seed"), SCHEDULES)
def test_every_length_of_a_bucket_is_in_order_under_every_schedule(order, seed, empty):
    """Each way to put a bucket in order, at both ends of the lengths that take it.

    With more keys that have no points a bucket has fewer threads.
    """
    lengths = LENGTHS if empty else [*LENGTHS, WHOLE, WHOLE + 1, 300_000]
    lengths = [*lengths, *[0] * empty, 2]
    values = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    values = np.random.default_rng(0).permutation(values)
    emulated = EmulatorDevice(order=order, seed=seed)
    for unwanted, dtype in ((0, np.int32), (1, np.int64)):
        _assert_sorted(emulated, values, len(lengths) - unwanted, dtype)


PLANTED = {  # text of the kernels, with what
    "no barrier before the numbers of others are read": (
        " : ALL;\n  }\n  __syncwarp(ALL);",
        " : ALL;\n  }",
    ),
    "memory of a group by half of what it may hold": (
        "HELD * (threadIdx.x - lane)",
        "HELD / 2 * (threadIdx.x - lane)",
    ),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bug_is_caught(bug):
    backends.require(backends.BACKENDS["emulator"])
    old, new = PLANTED[bug]

    def planted(unit):
        assert flatten(unit).count(old) == 1
        return flatten(unit).replace(old, new)

    lengths = [*[120] * 20, *[9] * 200]  # of groups that hold 128
    values = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    with pytest.raises(EmulatorError, match="race|uninitialised"):
        _assert_sorted(EmulatorDevice(flatten=planted), values, len(lengths))


@pytest.mark.parametrize("threads, bits", [(1, 0), (2, 1), (3, 2), (32, 5), (33, 5)])
def test_as_many_lanes_as_there_are_packs(threads, bits):
    assert lanes.lane_bits(threads) == bits
    assert lanes.lane_bits(threads, 8) == min(bits, 3)
    assert [*lanes.vectors("float16")] == [1, 2, 4, 8] and lanes.vector_of("f4", 64, 6) == 2


def test_no_point_is_wanted(device):
    records = to_device(np.zeros((300, 4), np.float32))
    buckets = sort.sort_points(device, to_device(np.full(300, 70, np.int32)), 70, records)
    assert not to_host(buckets.starts).any()


def test_sort_takes_six_launches_whatever_the_keys(device, monkeypatch):
    launched = []
    launch = device.launch
    monkeypatch.setattr(device, "launch", lambda *a, **k: launched.append(a[1]) or launch(*a, **k))
    for keys in (1, 70_000):
        records = to_device(np.zeros((300, 4), np.float32))
        sort.sort_points(device, to_device(np.zeros(300, np.int32)), keys, records)
    steps = ["clear", "count_points", "count_tiles", "find_starts", "place_points", "order_points"]
    assert launched == 2 * steps
