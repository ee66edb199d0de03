"""The gather: lanes fetch for each other, and share channels and points where pixels are few.

What is easy to forget there is planted, and found.
"""

from itertools import product

import backends
import numpy as np
import pytest
import reference
from emulator.device import EmulatorDevice, EmulatorError, install, to_device, to_host
from kernel_runs import SCHEDULES, planted
from tolerances import assert_close

import cudeform
from cudeform.cuda import lanes
from cudeform.cuda.lanes import Choice, Shares, choose, choose_gather, choose_tiles

BARRIER = "    __syncwarp(0xffffffffu);\n"
READY = "    const int ready"
ADDED = "share.weight);\n    }\n"
PLANTED = {  # text of the kernels, with what
    "no barrier before the shares are read": (BARRIER + READY, READY),
    "no barrier before new shares": (ADDED + BARRIER, ADDED),
    "as many rounds as this pixel needs": ("first < runs.most", "first < runs.count"),
}


@pytest.mark.parametrize(("order", "seed"), SCHEDULES[:3])
@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bug_is_caught(bug, order, seed):
    backends.require(backends.BACKENDS["emulator"])
    name, arrays, options = convolved(16, "float32")
    y, x = np.indices((5, 6))
    down, across = np.indices((3, 3)).reshape(2, 9, 1, 1) - 1
    near = np.stack([2.4 - y - down, 2.6 - x - across], axis=1).reshape(1, 18, 5, 6)
    arrays["offset"][..., :4, :] = near[..., :4, :]  # more points than are fetched at a time
    given = [to_device(array.astype("float32")) for array in arrays.values()]
    flatten = planted(*PLANTED[bug], "sampling.cu")
    with install(EmulatorDevice(order=order, seed=seed, flatten=flatten)):
        with pytest.raises(EmulatorError, match="race|divergent|uninitialised"):
            getattr(cudeform, name)(*given, **options)


# -- split gathers --------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks, packs, points, shares", [
    (576, 8, 36 * 576, Shares(3, 2, 0)),  # the rest of the warp has points
    (576, 16, 36 * 576, Shares(3, 2, 1)),  # lanes make room for them, down to a line of the cache
    (576, 2, 36 * 576, Shares(1, 3, 0)),  # as many points as are worth it
    (576, 1, 1000 * 576, Shares(0, 5, 0)),
    (576, 64, 7 * 576, Shares(5, 0, 1)),  # too few points: slices alone
    (576, 8, 7 * 576, Shares(3)),
    (2000, 16, 36 * 2000, Shares(4, 1, 0)),  # no more than makes enough warps
    (2048, 16, 36 * 2048, Shares(4)),
    (1023, 40, 36 * 1023, Shares(5, 0, 1)),
    (1024, 40, 36 * 1024, Shares(5)),
])  # fmt: skip
def test_how_a_gather_is_shared(tasks, packs, points, shares):
    choice = choose_gather("gather", tasks, packs, 4, points)
    assert choice.shares == shares and choice.vector == 4
    assert choice.kernel == ("gather_split" if sum(shares[1:]) else "gather")
    assert choice.tasks == tasks << shares.slices
    assert choice.per_block << shares.lanes + shares.parts == choice.threads == 64
    unrounded = choose_gather("gather", tasks, packs, 4, None)
    assert unrounded.kernel == "gather_sums" and not unrounded.shares.are_split


@pytest.mark.parametrize("choice, expected, grid", [
    (choose("pool", 1000), Choice("pool", 1000, 256), 4),
    (choose("pool", 1000, 6, 4), Choice("pool", 1000, 32, vector=4, shares=Shares(3)), 32),
    (choose("pool", 7, 100), Choice("pool", 7, 8, shares=Shares(5)), 1),
    # Small tiles where there are few points, but none smaller than a block's groups of lanes
    (choose_tiles("sample", 2**20, 16, 8), Choice("sample", 2**20, 256, 256, 8, Shares(3)), 4096),
    (choose_tiles("sample", 9000, 16, 8), Choice("sample", 9000, 64, 256, 8, Shares(3)), 141),
    (choose_tiles("sample", 9000, 2, 8), Choice("sample", 9000, 128, 256, 8, Shares(1)), 71),
])  # fmt: skip
def test_how_a_launch_is_shared(choice, expected, grid):
    assert choice == expected and choice.grid == grid


def test_slices_are_of_whole_warps_and_all_channels_are_shared():
    """What the kernels take for granted."""
    sizes = [1, 2, 3, 7, 8, 9, 16, 31, 32, 33, 64, 100]
    for tasks, packs, each in product((1, 60, 576, 1023, 5000), sizes, (0, 1, 9, 36, 5000)):
        shares = choose_gather("gather", tasks, packs, 1, each * tasks).shares
        assert shares.lanes + shares.parts <= 5, (tasks, packs, each)
        if shares.are_split:
            assert packs <= 1 << shares.lanes + shares.slices < 2 * packs
            assert not shares.slices or shares.lanes + shares.parts == 5


def convolved(channels, dtype, groups=1):
    """deform_conv2d_backward of few pixels, some with many points and some with none."""
    rng = np.random.default_rng(channels)
    arrays = {
        "grad_output": rng.standard_normal((1, 2, 5, 6)),
        "input": rng.standard_normal((1, channels, 5, 6)),
        "offset": rng.standard_normal((1, 18 * groups, 5, 6)),
        "weight": rng.standard_normal((2, channels, 3, 3)),
    }
    arrays["offset"][..., :3, :] -= rng.uniform(0, 3, (5, 6))[:3]
    options = {"padding": 1, "needs": ["input"]}
    return "deform_conv2d_backward", arrays, options


SPLIT = {  # a call, its dtype, and lanes, parts and slices of its gather
    "points": (convolved(4, "float32"), "float32", Shares(0, 3, 0)),
    "a warp": (convolved(32, "float32"), "float32", Shares(3, 2, 0)),
    "channels": (convolved(64, "float32"), "float32", Shares(3, 2, 1)),
    "a slice that is not full": (convolved(44, "float64"), "float64", Shares(3, 2, 2)),
    "offset groups": (convolved(48, "float16", 2), "float16", Shares(2, 3, 0)),
}


def run(call, dtype, device):
    """The gradient of the input, and how its gather was split."""
    name, arrays, options = call
    shares, launch = [], device.launch

    def recorded(unit, kernel, *rest):
        if kernel.endswith("_split"):
            bits = int(rest[3]["lane_bits"][0])
            shares.append(Shares(bits & 255, bits >> 8 & 255, bits >> 16))
        launch(unit, kernel, *rest)

    device.launch = recorded
    with install(device):
        given = [to_device(array.astype(dtype)) for array in arrays.values()]
        return to_host(getattr(cudeform, name)(*given, **options).input), shares


def exact(call, dtype):
    """What the reference makes of a call."""
    name, arrays, options = call
    given = [array.astype(dtype).astype(np.float64) for array in arrays.values()]
    options = {k: v for k, v in options.items() if k != "needs"}
    return getattr(reference, name)(*given, **options)["input"]


@pytest.mark.parametrize("split", SPLIT)
def test_split_gathers_give_one_sum_under_every_schedule(split):
    backends.require(backends.BACKENDS["emulator"])
    call, dtype, shares = SPLIT[split]
    found = []
    for order, seed in SCHEDULES:
        gradient, launched = run(call, dtype, EmulatorDevice(order=order, seed=seed))
        assert launched == [shares]
        found.append(gradient)
    assert_close(found[0], exact(call, dtype), dtype)
    for other in found[1:]:
        assert other.tobytes() == found[0].tobytes()


@pytest.mark.parametrize("split", ["channels", "a slice that is not full", "offset groups"])
def test_slices_alone_change_no_byte(monkeypatch, split):
    """Each channel is added up as in a gather that is not split."""
    backends.require(backends.BACKENDS["emulator"])
    call, dtype, _ = SPLIT[split]
    monkeypatch.setattr(lanes, "PART_POINTS", 1 << 10)
    few, _ = run(call, dtype, EmulatorDevice())
    monkeypatch.setattr(lanes, "ENOUGH_WARPS", 0)
    whole, launched = run(call, dtype, EmulatorDevice())
    assert not launched and few.tobytes() == whole.tobytes()


@pytest.mark.parametrize("old, new", [
    ("(runs.count + (1 << bits) - 1) >> bits", "runs.count >> bits"),  # points that no part has
    ("me.part_bits, me.lanes)", "me.part_bits, 2 * me.lanes)"),  # a part that nobody adds
])  # fmt: skip
def test_lost_points_are_noticed(old, new):
    backends.require(backends.BACKENDS["emulator"])
    call, dtype, _ = SPLIT["a warp"]
    device = EmulatorDevice(flatten=planted(old, new, "sampling.cu"))
    gradient, _ = run(call, dtype, device)
    with pytest.raises(AssertionError, match="elements are off"):
        assert_close(gradient, exact(call, dtype), dtype)
