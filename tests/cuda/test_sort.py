"""Points in buckets by their keys, against a stable sort."""

import numpy as np
import pytest
from emulator.device import EmulatorDevice, to_device, to_host
from kernel_runs import SCHEDULES

from cudeform.cuda import sort


def _assert_sorted(buckets, values, keys):
    """`buckets` are what a stable sort makes of them; the key `keys` marks points nobody wants."""
    starts = np.searchsorted(np.sort(values), np.arange(keys + 1))
    np.testing.assert_array_equal(to_host(buckets.starts), starts)
    wanted = np.argsort(values, kind="stable")[: starts[-1]]
    np.testing.assert_array_equal(to_host(buckets.order)[: starts[-1]], wanted)


@pytest.mark.parametrize("count", [1, 31, 2048, 2049, 7001])
@pytest.mark.parametrize("keys", [1, 200, sort.TILE - 1, sort.TILE, 70_000])
def test_sort_is_stable(device, count, keys):
    values = np.random.default_rng(count).integers(0, keys + 1, count).astype(np.int32)
    _assert_sorted(sort.sort_points(device, to_device(values, read_only=True), keys), values, keys)


@pytest.mark.parametrize(("order", "seed"), SCHEDULES)
def test_every_length_of_a_bucket_is_in_order_under_every_schedule(order, seed):
    """Each way to put a bucket in order, at both ends of the lengths that take it."""
    emulated = EmulatorDevice(order=order, seed=seed)
    short, whole = sort.SHORT, sort.WHOLE
    lengths = [1, 0, short, short + 1, 0, 2 * short, 2 * short + 1, whole, whole + 1, 300_000, 2]
    values = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    values = np.random.default_rng(0).permutation(values)
    for unwanted in (0, 1):
        keys = len(lengths) - unwanted
        buckets = sort.sort_points(emulated, to_device(values), keys)
        _assert_sorted(buckets, values, keys)
        for dtype in (np.int32, np.int64):
            records = np.arange(4 * values.size, dtype=dtype).reshape(-1, 4)
            by_record = sort.sort_points(emulated, to_device(values), keys, to_device(records))
            wanted = to_host(buckets.order)[: to_host(buckets.starts)[-1]]
            found = to_host(by_record.records)[: wanted.size]
            np.testing.assert_array_equal(found, records[wanted])


def test_no_point_is_wanted(device):
    buckets = sort.sort_points(device, to_device(np.full(300, 70, np.int32)), 70)
    assert not to_host(buckets.starts).any()


def test_sort_takes_five_launches_whatever_the_keys(device, monkeypatch):
    launched = []
    launch = device.launch
    monkeypatch.setattr(device, "launch", lambda *a, **k: launched.append(a[1]) or launch(*a, **k))
    for keys in (1, 70_000):
        sort.sort_points(device, to_device(np.zeros(300, np.int32)), keys)
    steps = ["clear", "count_points", "find_starts", "place_points", "order_points"]
    assert launched == 2 * steps
