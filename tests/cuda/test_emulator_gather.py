"""What is easy to forget in the gather, planted and found: its lanes fetch for each other."""

import backends
import numpy as np
import pytest
from emulator.device import EmulatorDevice, EmulatorError, install, to_device
from kernel_runs import SCHEDULES, planted

import cudeform

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
    # Four lanes a pixel, and points that lie close together in some places.
    rng = np.random.default_rng(1)
    input = rng.standard_normal((1, 16, 9, 9)).astype(np.float32)
    grad = rng.standard_normal((9, 16, 3, 3)).astype(np.float32)
    boxes = np.tile(np.array([[0, 1, 1, 3, 4]], np.float32), (9, 1))
    flatten = planted(*PLANTED[bug], "regions.cu")
    with install(EmulatorDevice(order=order, seed=seed, flatten=flatten)):
        with pytest.raises(EmulatorError, match="race|divergent|uninitialised"):
            cudeform.roi_align_backward(*map(to_device, (grad, input, boxes)), 3)
