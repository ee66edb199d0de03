"""Sums of samples around the pixels of an output, in the emulator, against their equation."""

from dataclasses import replace

import backends
import numpy as np
import pytest
from cases import DTYPES, dtype_of
from emulator.device import EmulatorDevice, install, to_device, to_host
from kernel_runs import SCHEDULES
from tolerances import assert_close

from cudeform.cuda import aggregation
from cudeform.plans.aggregation import AggregationPlan

GRID = dict(kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), scale=1.0)
SIZES = dict(batch=2, height=6, width=5, out_height=6, out_width=5, groups=2, group_channels=8)
PLAIN = AggregationPlan(**GRID, **SIZES, remove_center=False, softmax=False, packed=False)
ODD = dict(kernel=(2, 4), stride=(2, 3), padding=(1, 3), dilation=(2, 2), scale=1.5)
PLANS = {
    "plain": PLAIN,
    "softmax": replace(PLAIN, softmax=True, remove_center=True),
    "odd": replace(PLAIN, **ODD, out_height=3, out_width=2, group_channels=3),
    "strips": replace(PLAIN, batch=1, height=3, out_height=3, width=19, out_width=19),
    "packed": replace(PLAIN, packed=True, remove_center=True, scale=0.5),
    "packed-odd": replace(PLAIN, packed=True, kernel=(3, 2), out_width=6, groups=3),
}


def arguments(plan, dtype="float32"):
    rng = np.random.default_rng(0)
    shapes = {k: outline.shape for k, outline in plan.gradients.items()}
    shapes["grad_output"] = plan.results[0].shape
    spread = {"offset": 2.0, "offset_mask": 1.5}
    drawn = {k: spread.get(k, 1.0) * rng.standard_normal(shape) for k, shape in shapes.items()}
    return {k: array.astype(dtype_of(dtype)) for k, array in drawn.items()}


def call(plan, arrays, needs=None):
    on_device = {k: to_device(a, read_only=True) for k, a in arrays.items()}
    grad_output = on_device.pop("grad_output")
    needs = frozenset(on_device if needs is None else needs)
    (output,) = aggregation.forward(plan, **on_device)
    grads = aggregation.backward(plan, grad_output, **on_device, needs=needs)
    return {"output": to_host(output), **{k: to_host(a) for k, a in grads.items()}}


def expected(plan, arrays):
    """Output and gradients in float64, a point at a time."""
    exact = {k: a.astype(np.float64) for k, a in arrays.items()}
    n, outputs, (groups, taps) = plan.batch, (plan.out_height, plan.out_width), _points(plan)
    image = exact["input"].reshape(n, plan.height, plan.width, groups, -1)
    if plan.packed:
        used = exact["offset_mask"][..., : 3 * groups * len(taps)].reshape(n, *outputs, groups, -1)
        offset, mask = used[..., : 2 * len(taps)], used[..., 2 * len(taps) :]
    else:
        offset, mask = exact["offset"], exact["mask"]
    offset = offset.reshape(n, *outputs, groups, len(taps), 2)
    mask = mask.reshape(n, *outputs, groups, len(taps))
    if plan.softmax:
        mask = np.exp(mask) / np.exp(mask).sum(-1, keepdims=True)
    grad = exact["grad_output"].reshape(n, *outputs, groups, -1)
    output, grads = np.zeros(grad.shape), [np.zeros(a.shape) for a in (image, offset, mask)]
    for at in np.ndindex(*mask.shape):
        m, i, j, g, k = at
        a, b = taps[k]
        center_y = plan.dilation[0] * (plan.kernel[0] - 1) // 2
        center_x = plan.dilation[1] * (plan.kernel[1] - 1) // 2
        dx, dy = offset[at]
        y = i * plan.stride[0] - plan.padding[0] + center_y
        x = j * plan.stride[1] - plan.padding[1] + center_x
        y += (b * plan.dilation[0] - center_y + dy) * plan.scale
        x += (a * plan.dilation[1] - center_x + dx) * plan.scale
        if not (-1 < y < plan.height and -1 < x < plan.width):
            continue
        top, left = int(np.floor(y)), int(np.floor(x))
        for row in (top, top + 1):
            for column in (left, left + 1):
                if not (0 <= row < plan.height and 0 <= column < plan.width):
                    continue
                weight_y, weight_x = 1 - abs(y - row), 1 - abs(x - column)
                weight, pixel = weight_y * weight_x, image[m, row, column, g]
                seen = grad[m, i, j, g] @ pixel
                output[m, i, j, g] += mask[at] * weight * pixel
                grads[0][m, row, column, g] += mask[at] * weight * grad[m, i, j, g]
                slope_y, slope_x = 2 * (row > top) - 1, 2 * (column > left) - 1
                slope = np.array([weight_y * slope_x, weight_x * slope_y])
                grads[1][at] += mask[at] * seen * plan.scale * slope
                grads[2][at] += weight * seen
    if plan.softmax:
        grads[2] = mask * (grads[2] - (mask * grads[2]).sum(-1, keepdims=True))
    found = {"output": output, "input": grads[0]}
    if plan.packed:
        both = np.concatenate([grads[1].reshape(*mask.shape[:4], -1), grads[2]], -1)
        found["offset_mask"] = np.zeros(exact["offset_mask"].shape)
        found["offset_mask"][..., : 3 * groups * len(taps)] = both.reshape(n, *outputs, -1)
    else:
        found["offset"], found["mask"] = grads[1:]
    shapes = {k: a.shape for k, a in exact.items()} | {"output": exact["grad_output"].shape}
    return {k: a.reshape(shapes[k]) for k, a in found.items()}


def _points(plan):
    kh, kw = plan.kernel
    taps = [(a, b) for a in range(kw) for b in range(kh)]
    if plan.remove_center:
        taps.remove((kw // 2, kh // 2))
    return plan.groups, taps


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", PLANS)
def test_equation(device, name, dtype):
    arrays = arguments(PLANS[name], dtype)
    found = call(PLANS[name], arrays)
    for argument, want in expected(PLANS[name], arrays).items():
        assert_close(found[argument], want, what=argument)


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("finer", [False, True])
def test_sixteen_bits(device, dtype, finer):
    arrays = arguments(PLANS["softmax"], dtype)
    if finer:
        arrays["offset"] = arrays["offset"].astype(np.float32)
    found = call(PLANS["softmax"], arrays)
    for argument, want in expected(PLANS["softmax"], arrays).items():
        assert_close(found[argument], want, what=argument)


def test_one_gradient_alone_is_that_of_all(device):
    for name in ("softmax", "packed"):
        arrays = arguments(PLANS[name])
        whole = call(PLANS[name], arrays)
        for argument in arrays.keys() - {"grad_output"}:
            alone = call(PLANS[name], arrays, [argument])
            assert alone.keys() == {"output", argument}
            assert alone[argument].tobytes() == whole[argument].tobytes()


def test_offsets_that_are_no_places(device):
    plan = replace(PLAIN, batch=1, groups=1)
    arrays = arguments(plan)
    odd = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 3e9, -3e9], np.float32)
    for k in range(0, arrays["offset"].size, 5):
        arrays["offset"].reshape(-1)[k] = odd[k // 5 % len(odd)]
    found = call(plan, arrays)
    outside = ~np.isfinite(arrays["offset"]) | (np.abs(arrays["offset"]) > 100)
    pairs = arrays["offset"].reshape(-1, 2)
    pairs[outside.reshape(-1, 2).any(1)] = 100  # outside as well, where the equation can say so
    for argument, want in expected(plan, arrays).items():
        assert_close(found[argument], want, what=argument)


@pytest.mark.parametrize("name", ["softmax", "packed"])
def test_order_of_threads_does_not_matter(name):
    backends.require(backends.BACKENDS["emulator"])
    arrays, found = arguments(PLANS[name]), []
    for order, seed in SCHEDULES:
        with install(EmulatorDevice(order=order, seed=seed)):
            found.append(call(PLANS[name], arrays))
    for other in found[1:]:
        assert {k: a.tobytes() for k, a in other.items()} == {
            k: a.tobytes() for k, a in found[0].items()
        }


def test_empty_batch(device):
    plan = replace(PLAIN, batch=0)
    arrays = arguments(plan)
    found = call(plan, arrays)
    assert {k: a.shape for k, a in found.items()} == {
        k: a.shape for k, a in arrays.items() if k != "grad_output"
    } | {"output": arrays["grad_output"].shape}
