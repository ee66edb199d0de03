"""Every backward is the transpose of its forward's derivative, in float64, exactly.

All operators are linear in every array but the sampling coordinates, and within a cell of the
pixel grid quadratic in those along any direction. For such a function the central difference has
no truncation error, so a large step measures a derivative to rounding, and one random direction
tests every element of a gradient at once: <(f(x + hv) - f(x - hv)) / 2h, g> = <v, grad_x>.
"""

import numpy as np
import pytest
from cases import Problem, operator, problem, problems

from cudeform.cases import Case
from cudeform.checks import pair

COORDINATES = ("offset", "points")
NAMED_PAIRS = ("kernel_size", "dilation")
STEP = 0.05
# Of the sum of the magnitudes added up on either side: rounding of sums of some thousand terms.
TOLERANCE = 1e-12
# An offset of a bin moves many samples, each in a cell of its own, a maximum has knots as well, and
# a softmax is no polynomial: a step that is small enough for them pays in digits.
SMALL_STEP, COARSE_TOLERANCE = 1e-6, 1e-8


def off_the_knots(case, rng):
    """The case with every sampling coordinate between 0.1 and 0.9 past an integer."""
    arrays = dict(case.arrays)
    for name in COORDINATES & arrays.keys():
        fraction = rng.uniform(0.1, 0.9, arrays[name].shape)
        arrays[name] = np.floor(arrays[name]) + fraction
    if "kernel_size" in case.options:
        name = "offset_mask" if "offset_mask" in arrays else "offset"
        scale = case.options.get("offset_scale", 1.0)
        taps = fractions_of_taps(case, scale, arrays[name].shape[-1])
        at = np.floor(arrays[name] * scale) + rng.uniform(0.1, 0.9, arrays[name].shape)
        arrays[name] = (at - taps) / scale
    if "sampling_locations" in arrays:
        at = arrays["sampling_locations"]
        sizes = sizes_of_points(case).reshape(at.shape[3:])
        fraction = rng.uniform(0.1, 0.9, at.shape)
        arrays["sampling_locations"] = (np.floor(at * sizes - 0.5) + fraction + 0.5) / sizes
    return Case(case.name, arrays, case.options)


def fractions_of_taps(case, scale, channels):
    """How far scaling moves the taps of DCNv3 and DCNv4, of a channel of an offset each."""
    (kh, kw), (dy, dx) = (pair("case", n, case.options.get(n, 1), 1) for n in NAMED_PAIRS)
    y, x = (d * np.arange(k) - d * (k - 1) // 2 for k, d in ((kh, dy), (kw, dx)))
    taps = np.stack(np.meshgrid(x, y, indexing="ij"), -1).reshape(-1, 2) * (scale - 1)
    if scale == 1:
        return np.zeros(channels)
    each = [*taps.ravel(), *[0.0] * (len(taps) * ("offset_mask" in case.arrays))]
    used = np.tile(each, case.options["groups"])
    return np.pad(used, (0, channels - len(used)))


def sizes_of_points(case):
    """(W, H) of the level of each point."""
    shapes = case.arrays.get("spatial_shapes")
    shapes = np.array(case.options["spatial_shapes"] if shapes is None else shapes)
    points = case.options.get("points_per_level") or case.arrays["sampling_locations"].shape[4]
    return np.repeat(shapes[:, ::-1], points, 0)


def arguments():
    """Every (operator, case, argument) of the registry with something in it."""
    return [
        (name, case, argument.name)
        for name, case in problems()
        if problem(name, case, "float64").output.size
        for argument in operator(name).arguments
        if argument.differentiable and argument.name in problem(name, case, "float64").case.arrays
        if not (case == "nearest" and argument.role == "coordinates")  # steps, not slopes
    ]


def needs_small_steps(row, case, argument):
    if argument == "offset_mask":  # factors times samples that move
        return True
    if case.options.get("softmax"):
        return argument in ("attention_weights", "mask")
    return row.family == "regions" and (argument == "offset" or case.options.get("mode") == "max")


def pairing(row, case, grad_output, argument, direction, backend, length):
    """Both sides of the identity for one argument, and the size of the terms in them."""

    def forward(step):
        moved = {**case.arrays, argument: case.arrays[argument] + step * direction}
        output = row.call(Case(case.name, moved, case.options), backend.to_device)
        return backend.to_host(output)

    difference = (forward(length) - forward(-length)) / (2 * length)
    gradients = row.call_backward(
        backend.to_device(grad_output), case, backend.to_device, needs=(argument,)
    )
    gradient = backend.to_host(getattr(gradients, argument))
    size = np.sum(np.abs(difference * grad_output)) + np.sum(np.abs(direction * gradient))
    return np.sum(difference * grad_output), np.sum(direction * gradient), size


@pytest.mark.parametrize(("name", "case", "argument"), arguments())
def test_backward_is_the_transposed_derivative(backend, name, case, argument, rng):
    asked = problem(name, case, "float64")
    moved = off_the_knots(asked.case, rng)
    direction = rng.uniform(-1, 1, moved.arrays[argument].shape)
    if argument == "sampling_locations":  # in pixels
        direction /= sizes_of_points(moved).reshape(direction.shape[3:])
    coarse = needs_small_steps(asked.row, moved, argument)
    left, right, size = pairing(
        asked.row,
        moved,
        asked.grad_output,
        argument,
        direction,
        backend,
        SMALL_STEP if coarse else STEP,
    )
    assert size > 0
    assert abs(left - right) <= (COARSE_TOLERANCE if coarse else TOLERANCE) * size


@pytest.mark.parametrize("border", ["zeros", "clamp"])
def test_each_offset_has_its_own_derivative(border, rng):
    """Element by element, where the identity above sums over all elements."""
    row = operator("deform_conv2d")
    (case,) = (c for c in row.cases(rng) if c.name == "v2")
    case = off_the_knots(Case(case.name, case.arrays, {**case.options, "border": border}), rng)
    asked = Problem(row, case, "float64")
    gradient = row.call_backward(asked.grad_output, case, needs=("offset",)).offset
    elements = rng.choice(gradient.size, 40, replace=False)
    for element in elements:
        direction = np.zeros(gradient.size)
        direction[element] = 1
        sides = []
        for step in (STEP, -STEP):
            offset = case.arrays["offset"] + step * direction.reshape(gradient.shape)
            moved = Case(case.name, {**case.arrays, "offset": offset}, case.options)
            sides.append(row.call(moved))
        difference = np.sum((sides[0] - sides[1]) / (2 * STEP) * asked.grad_output)
        np.testing.assert_allclose(gradient.flat[element], difference, rtol=1e-9, atol=1e-11)
