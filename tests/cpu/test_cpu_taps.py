"""Narrow groups on the CPU: sums over taps where other convolutions multiply matrices."""

import backends
import numpy as np
import pytest
from cases import Problem, operator

from cudeform import cases
from cudeform.cpu.conv import convolve, gradients
from cudeform.cpu.conv.blocking import cut, is_narrow
from cudeform.cpu.language import workspace
from cudeform.plans.convolution import ConvPlan
from cudeform.plans.points import Points

CPU = backends.BACKENDS["cpu"]


def problem(dtype="float32", **shape):
    """A deformable convolution that is in no row of the registry."""
    case = cases._convolution(np.random.default_rng(3), "narrow", **shape)
    return Problem(operator("deform_conv2d"), case, dtype)


SHAPES = {
    # several slices, of vectors by four, by one, and of some lanes; several tiles
    "wide": dict(n=1, c=150, o=150, groups=150, size=(12, 17), padding=1, mask=True),
    "fours": dict(c=24, o=12, groups=6, offset_groups=3, border="clamp", mask=True, padding=2),
    "pairs-to-fours": dict(c=12, o=24, groups=6, stride=(1, 2), layout="NHWC", mask=True),
    "eights": dict(c=32, o=32, groups=4, padding=1),  # the backward alone
    "offsets-across-groups": dict(c=12, o=12, groups=6, offset_groups=4, padding=1),  # neither
}


@pytest.mark.parametrize("name", SHAPES)
def test_narrow_groups(name):
    problem(**SHAPES[name]).assert_right(CPU)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_narrow_groups_in_other_dtypes(dtype):
    problem(dtype, **SHAPES["fours"]).assert_right(CPU)


def test_small_workspace(monkeypatch):
    """Images in parts, of slices that are not all there at once."""
    monkeypatch.setattr(workspace, "SCRATCH_BYTES", 40_000)
    for module in (convolve, gradients):
        module._prepared.cache_clear()
    problem(**SHAPES["wide"]).assert_right(CPU)
    for module in (convolve, gradients):
        module._prepared.cache_clear()


def plan(channels, groups, each, offset_groups=1):
    points = Points(1, channels, 28, 28, 28, 28, (3, 3), offset_groups=offset_groups)
    return ConvPlan(points, groups * each, groups, "ieee", deformable=True, modulated=False)


@pytest.mark.parametrize(
    ("given", "forward", "backward"),
    [
        (plan(128, 128, 1), True, True),
        (plan(33, 33, 2), True, True),
        (plan(128, 128, 16), True, True),
        (plan(128, 32, 4), True, True),
        (plan(128, 16, 8), False, True),
        (plan(128, 8, 16), False, False),
        (plan(128, 1, 128), False, False),
        (plan(1, 1, 1), False, False),  # one group is a matrix, or no weight at all
        (plan(9, 3, 1), False, False),  # groups of three would be cut
        (plan(12, 6, 2, offset_groups=4), False, False),  # and so would these by their offsets
    ],
)
def test_who_sums_and_who_multiplies(given, forward, backward):
    assert is_narrow(given, backward=False) == forward
    assert is_narrow(given, backward=True) == backward


def test_slices_of_narrow_groups_follow_the_offsets_alone():
    slices = cut(plan(128, 32, 4, offset_groups=2), 48, True)
    np.testing.assert_array_equal(slices.first, [0, 32, 64, 96, 128])
    assert len(cut(plan(128, 32, 4, offset_groups=2), 48, False).first) == 33


@pytest.mark.parametrize("name", ["fours", "wide"])
def test_what_is_infinite_stays_in_its_group(name):
    """Were groups computed together with zeros between them, infinity times zero would be NaN."""
    asked = problem(**SHAPES[name])
    width = asked.case.arrays["input"].shape[1] // SHAPES[name]["groups"]
    outputs = asked.output.shape[1] // SHAPES[name]["groups"]
    before = asked.forward(CPU)
    asked.case.arrays["input"][:, width : 2 * width] = np.inf
    after = asked.forward(CPU)
    others = np.arange(before.shape[1]) // outputs != 1
    np.testing.assert_array_equal(after[:, others], before[:, others])
    assert not np.isfinite(after[:, ~others]).all()
