"""The demo's method: its pieces are transposes, gradients and interpolations of each other."""

import numpy as np
import pytest

from cudeform.demo import alignment


def test_offsets_of_a_flow_and_back(rng):
    """`_flow_offsets_backward` is the transpose of `flow_offsets`."""
    flow = rng.standard_normal((1, 2, 7, 9))
    offset = alignment.flow_offsets(np, flow)
    assert offset[0, 2 * 5 + 1, 3, 4] == flow[0, 1, 3 + 1, 4 + 2]  # tap (1, 2), x
    other = rng.standard_normal(offset.shape)
    back = alignment._flow_offsets_backward(np, other)
    assert np.vdot(offset, other) == pytest.approx(np.vdot(flow, back))


def test_grid_spans_the_image(rng):
    grid = alignment.FlowGrid(np, (17, 25), 8, np.float64)
    assert grid.values.shape == (1, 2, 3, 4)
    grid.values = rng.standard_normal(grid.values.shape)
    flow = grid.flow()
    assert flow.shape == (1, 2, 17, 25)
    np.testing.assert_allclose(flow[..., ::8, ::8], grid.values)


def test_grid_is_resampled_with_its_values_in_pixels(rng):
    coarse = alignment.FlowGrid(np, (9, 9), 4, np.float64)
    coarse.values[:] = 1.5
    fine = alignment.FlowGrid(np, (18, 18), 4, np.float64)
    fine.resample(coarse)
    np.testing.assert_allclose(fine.values, 3.0)


def test_bending_is_the_gradient_of_smoothness(rng):
    grid = alignment.FlowGrid(np, (20, 30), 5, np.float64)
    grid.values = values = rng.standard_normal(grid.values.shape)
    bending = grid.bending()

    def energy(values):
        squares = (np.sum(np.diff(values, axis=axis) ** 2) for axis in (2, 3))
        return sum(squares) / 2 / values.size

    step = np.zeros_like(values)
    step[0, 1, 2, 0] = 1e-4
    slope = (energy(values + step) - energy(values - step)) / 2e-4
    assert bending[0, 1, 2, 0] == pytest.approx(slope)


def test_adam_starts_with_steps_of_the_rate():
    adam = alignment.Adam()
    update = adam.update(np.array([3.0, -1e-4]), 0.1)
    np.testing.assert_allclose(update, [-0.1, 0.1])


def test_recovers_a_shift(rng):
    """A flow of one and a half pixels along x, on an image that is smooth."""
    y, x = np.indices((40, 60)) / 5

    def image(x):
        return (np.sin(x) * np.cos(1.3 * y) + np.cos(0.7 * x + y))[None, None]

    flow, offset = alignment.align(np, image(x), image(x + 0.3), levels=2, steps=40)
    inner = flow[0, :, 5:-5, 5:-5]
    assert np.abs(inner[0]).mean() < 0.1
    assert np.abs(inner[1] - 1.5).mean() < 0.1
    np.testing.assert_array_equal(offset, alignment.flow_offsets(np, flow))


def test_flow_is_smooth_and_ends_at_the_border():
    flow = alignment.smooth_flow(60, 80, 5.0, seed=3)
    assert np.linalg.norm(flow, axis=-1).max() == pytest.approx(5.0)
    for edge in (flow[0], flow[-1], flow[:, 0], flow[:, -1]):
        assert np.abs(edge).max() < 1e-6
