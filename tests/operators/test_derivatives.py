"""Directional derivatives on NumPy arrays, against the reference and against the backwards.

What the bridges derive from these, such as derivatives of every order, is tested with them.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from cases import Problem, operator, problem, problems

import cudeform
from cudeform import derivatives
from cudeform.cases import Case
from cudeform.derivatives.bins import _images
from cudeform.derivatives.largest import _at_pixels
from cudeform.registry import OPERATORS

# So close by a result changes linearly. What is left are the digits that a difference loses, in
# units of the largest result: 1e-16 / STEP, times the rounding of sums of some hundred terms.
STEP, TOLERANCE = 1e-6, 1e-8

NUMPY = derivatives.Namespace.of(
    np,
    still=lambda array: array,
    values=lambda array: array,
)
FUNCTIONS = {row.name: row.forward for row in OPERATORS}


def moving(row, arrays):
    return [a.name for a in row.arguments if a.differentiable and a.name in arrays]


def jvp(row, case, tangents, functions=FUNCTIONS):
    absent = {a.name: None for a in row.arguments if a.name not in case.arrays}

    def function(**given):
        return functions[row.name](**{**absent, **given})

    known = {**functions, row.name: function}
    return derivatives.jvp(row.name, known, NUMPY, case.arrays, tangents, case.options)


# The widest convolutions take the reference seconds, and have nothing that the others lack.
NARROW = [(name, case) for name, case in problems() if not case.startswith("wide")]


@pytest.mark.parametrize(("name", "case"), NARROW)
def test_tangents_are_differences_of_the_reference(name, case, rng):
    """Which shares no code with the package. Each array alone, and all together."""
    asked = problem(name, case, "float64")
    directions = {
        n: rng.uniform(-1, 1, asked.case.arrays[n].shape)
        for n in moving(asked.row, asked.case.arrays)
    }

    def reference(names, step):
        moved = {n: asked.case.arrays[n] + step * directions[n] for n in names}
        return Problem(
            asked.row, Case(case, {**asked.case.arrays, **moved}, asked.case.options), "float64"
        ).output

    for names in [[n] for n in directions] + [list(directions)]:
        found = jvp(asked.row, asked.case, {n: directions[n] for n in names})
        expected = (reference(names, STEP) - reference(names, -STEP)) / (2 * STEP)
        assert found.shape == expected.shape
        if found.size:
            error = np.abs(found - expected).max()
            assert error <= TOLERANCE * np.abs(asked.output).max(), names


DEFORMABLE = {
    "adaptive": ("deform_roi_pool", dict(output_size=(2, 3))),
    "fixed": ("deform_roi_pool", dict(output_size=(2, 3), sampling_ratio=5, gamma=0.25)),
    "position-sensitive": (
        "deform_ps_roi_pool",
        dict(
            output_size=(4, 3),
            spatial_scale=0.5,
            output_dim=4,
            group_size=(3, 1),
            part_size=(2, 1),
            sample_per_part=2,
        ),
    ),
}
HUGE = 1e30
BOXES = np.array(
    [
        [0, 0, 0, 6, 6],  # bins whose samples are on whole coordinates
        [1, -1, -1, 7, 9],
        [1, -30, -30, 40, 40],
        [0, 2, 3, 2, 3],  # no area
        [0, 6, 6, 1, 1],  # inverted
        [0, 0, 0, 1e4, 1e4],
        [0, 50, 1, 60, 4],  # outside
        [0, np.nan, 0, 5, 5],
        [0, 1, 2, 5, np.nan],
        [0, 0, 0, np.inf, 5],
        [1, HUGE, 0, 2 * HUGE, 5],
        [1, -1e308, -1e308, 1e308, 1e308],
    ]
)


def at_knots(name, options, rng):
    """A case with every box above, and offsets that are often 0 or not finite."""
    cells = options.get("part_size", options["output_size"])
    classes = 2 if name == "deform_ps_roi_pool" else 1
    offset = rng.choice([0, 0, 0.5, -1, 0.3, np.nan, np.inf], (len(BOXES), 2 * classes, *cells))
    offset[:3] = np.nan_to_num(offset[:3], posinf=-0.25)
    arrays = {
        "input": rng.standard_normal((2, 12, 6, 7)),
        "boxes": BOXES,
        "offset": offset,
        "mask": rng.uniform(size=(len(BOXES), classes, *cells)),
    }
    return operator(name), Case("knots", arrays, options)


@pytest.mark.parametrize(("name", "options"), DEFORMABLE.values(), ids=DEFORMABLE)
def test_tangents_are_the_transpose_of_gradients_at_knots(name, options, rng):
    """On whole coordinates, at borders, and where a box or an offset is nowhere."""
    row, case = at_knots(name, options, rng)
    direction = rng.uniform(-1, 1, case.arrays["offset"].shape)
    with np.errstate(all="ignore"):
        found = jvp(row, case, {"offset": direction})
    grad_output = rng.uniform(-1, 1, found.shape)
    gradient = row.call_backward(grad_output, case, needs=("offset",)).offset
    expected = np.sum(direction * gradient, (1, 2, 3))
    np.testing.assert_allclose(np.sum(found * grad_output, (1, 2, 3)), expected, atol=1e-13)
    assert np.count_nonzero(expected) >= 3


@pytest.mark.parametrize(("name", "options"), DEFORMABLE.values(), ids=DEFORMABLE)
def test_samples_are_read_a_few_at_a_time(name, options, rng):
    """And those of a huge box only where they can be inside the image of 6 x 7 pixels."""
    row, case = at_knots(name, options, rng)
    regions = []

    def function(**given):
        regions.append(given["boxes"].shape[0])
        return row.forward(**given)

    with np.errstate(all="ignore"):
        jvp(row, case, {"offset": np.ones_like(case.arrays["offset"])}, {name: function})
    bins = np.prod(options["output_size"]) * (2 if name == "deform_ps_roi_pool" else 1)
    assert max(regions) <= 16 * len(BOXES) * bins
    assert len(regions) <= 2 * (6 + 6) * (7 + 6)


def test_pixels_beyond_what_is_read_do_not_matter(rng):
    """A sample that is nowhere reads no pixel: it would be 0 times infinity."""
    row, case = at_knots("deform_roi_pool", dict(output_size=(2, 2), sampling_ratio=2), rng)
    arrays = {name: array[5:] for name, array in case.arrays.items() if name != "input"}
    arrays["offset"] = np.zeros(arrays["offset"].shape)
    arrays["input"] = np.full((2, 3, 6, 7), np.inf)
    with np.errstate(all="ignore"):
        found = jvp(row, Case("nowhere", arrays, case.options), {"offset": arrays["offset"] + 1})
    np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_dtype_is_kept(dtype):
    """And 16 bits are widened once: what the same numbers give in float32, rounded."""
    for name in ("roi_pool", "deform_roi_pool", "deform_ps_roi_pool"):
        case = next(c for n, c in problems() if n == name and c in ("max", "v1"))
        asked = problem(name, case, dtype)
        names = moving(asked.row, asked.case.arrays)
        directions = {n: asked.case.arrays[n] for n in names}
        found = jvp(asked.row, asked.case, directions)
        assert found.dtype == dtype
        wide = {n: array.astype("float32") for n, array in asked.case.arrays.items()}
        expected = jvp(asked.row, Case(case, wide, asked.case.options), {n: wide[n] for n in names})
        np.testing.assert_array_equal(found, expected.astype(dtype))


@pytest.mark.parametrize("border", ["zeros", "clamp"])
@pytest.mark.parametrize("name", ["deform_conv2d", "bilinear_sample"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tangents_take_the_cells_of_the_gradients(name, dtype, border, rng):
    """On whole coordinates, and so close below one that a sum with it would be rounded to it."""
    near = [0, -1, 1, 0.5, -1e-9, 1e-9, -1e-17, np.nan, np.inf]
    row = operator(name)
    arrays = {"input": rng.standard_normal((1, 4, 6, 7))}
    if name == "deform_conv2d":
        arrays["offset"] = rng.choice(near, (1, 18, 8, 9))
        arrays["weight"] = rng.standard_normal((3, 4, 3, 3))
        options = {"padding": 2, "border": border}
        moved = "offset"
    else:
        arrays["points"] = rng.choice([*near, 2, 5, 6, 7, 3 - 1e-7], (1, 300, 2))
        options = {"border": border}
        moved = "points"
    case = Case("near", {k: a.astype(dtype) for k, a in arrays.items()}, options)
    direction = rng.uniform(-1, 1, arrays[moved].shape).astype(dtype)
    with np.errstate(all="ignore"):
        found = jvp(row, case, {moved: direction}).astype(np.float64)
    grad_output = rng.uniform(-1, 1, found.shape).astype(dtype)
    gradient = row.call_backward(grad_output, case, needs=(moved,))._asdict()[moved]
    expected = np.sum(direction.astype(np.float64) * gradient)
    scale = np.abs(direction * gradient).sum()
    tolerance = 1e-6 if dtype == "float32" else 1e-13
    assert abs(np.sum(found * grad_output) - expected) <= tolerance * scale


@pytest.mark.parametrize("name", ["deform_conv2d", "bilinear_sample", "ms_deform_attn"])
def test_float32_has_no_slopes_on_a_long_axis(name):
    """A whole number and the next one are one number there."""
    row = operator(name)
    for shape in ((1, 1, 1, 2**24 + 1), (1, 1, 2**24 + 1, 1)):
        arrays = {"input": np.broadcast_to(np.float32(0), shape)}
        if name == "deform_conv2d":  # one output pixel
            arrays |= {"weight": np.ones((1, 1, 1, 1), np.float32)}
            arrays |= {"offset": np.zeros((1, 2, 1, 1), np.float32)}
            options, moved = {"stride": 2**25}, "offset"
        elif name == "ms_deform_attn":
            arrays = {"value": np.broadcast_to(np.float32(0), (1, 2**24 + 1, 1, 1))}
            arrays |= {"sampling_locations": np.zeros((1, 1, 1, 1, 1, 2), np.float32)}
            arrays |= {"attention_weights": np.ones((1, 1, 1, 1, 1), np.float32)}
            options, moved = {"spatial_shapes": (shape[2:],)}, "sampling_locations"
        else:
            arrays |= {"points": np.zeros((1, 1, 2), np.float32)}
            options, moved = {}, "points"
        with pytest.raises(
            NotImplementedError, match=f"^{name}: expected `{row.images}` of at most 1677"
        ):
            jvp(row, Case("long", arrays, options), {moved: arrays[moved]})


def test_values_of_boxes_are_read_for_adaptive_bins_only():
    adaptive, fixed = {"output_size": 2}, {"output_size": 2, "sampling_ratio": 1}
    assert derivatives.reads_boxes("deform_roi_pool", ["offset"], adaptive)
    assert derivatives.reads_boxes("deform_roi_pool", ["offset"], adaptive | {"sampling_ratio": -1})
    assert not derivatives.reads_boxes("deform_roi_pool", ["input", "mask"], adaptive)
    assert not derivatives.reads_boxes("deform_roi_pool", ["offset"], fixed)
    assert not derivatives.reads_boxes("deform_conv2d", ["offset"], {})
    row = operator("deform_roi_pool")
    case = Case("", problem("deform_roi_pool", "v1", "float64").case.arrays, adaptive)
    unknown = NUMPY._replace(values=lambda array: None)
    with pytest.raises(NotImplementedError, match="`sampling_ratio` to be at least 1 where"):
        derivatives.jvp(
            row.name,
            {row.name: cudeform.deform_roi_pool},
            unknown,
            case.arrays,
            {"offset": case.arrays["offset"]},
            adaptive | {"output_size": 3},
        )


def test_a_region_of_no_image_reads_none():
    """On a GPU nobody checks the numbers: their argmax is -1, and no product is that of another."""
    xp = derivatives.Namespace.of(np, still=np.copy, values=np.copy)
    boxes = np.zeros((8, 5), np.float32)
    boxes[:, 0] = 1, -1, 2, 1e9, 0.5, -0.25, np.nan, np.inf
    argmax = np.full((8, 1, 1, 1), -1)
    argmax[0] = 3
    call = SimpleNamespace(xp=xp, primals={"boxes": boxes})
    found = _at_pixels(call, np.ones((2, 1, 2, 2)), argmax)
    np.testing.assert_array_equal(found.ravel(), [1, 0, 0, 0, 0, 0, 0, 0])
    plan = SimpleNamespace(bins=(2, 2), groups=(2, 2), classes=1)
    images = _images(xp, plan, boxes).reshape(8, 4)
    np.testing.assert_array_equal(images[0], [4, 5, 6, 7])
    assert not ((images[1:] >= 0) & (images[1:] < 8)).any()
