"""The CPU's poolings of regions at sizes where work is cut up, and with boxes that nobody means."""

from pathlib import Path

import backends
import numpy as np
import pytest
from cases import DTYPES, Problem, operator, problem, problems
from poolings import PEAK, POOLINGS, many
from processes import python
from tolerances import assert_close

import cudeform
from cudeform import threads
from cudeform.cases import Case
from cudeform.cpu.language import workspace
from cudeform.cpu.regions import at_once, blocking

CPU = backends.BACKENDS["cpu"]
every_case = pytest.mark.parametrize(
    ("name", "case"), [pair for pair in problems() if pair[0] in POOLINGS]
)


def assert_right(asked):
    assert_close(asked.forward(CPU), asked.output, what="output")
    for name, gradient in asked.backward(CPU).items():
        if gradient is not None:
            assert_close(gradient, asked.gradients[name], what=f"gradient of {name}")


@pytest.fixture(params=[1, 20_000])
def small_workspace(monkeypatch, request):
    """Bytes for images laid out, and for regions in a wider dtype."""
    monkeypatch.setattr(workspace, "SCRATCH_BYTES", request.param)
    for remembered in (blocking.job_of, blocking.rounds, at_once.prepared):
        remembered.cache_clear()
    yield
    for remembered in (blocking.job_of, blocking.rounds, at_once.prepared):
        remembered.cache_clear()


@every_case
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_small_workspace_gives_the_same_results(small_workspace, name, case, dtype):
    assert_right(problem(name, case, dtype))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", POOLINGS)
def test_any_number_of_threads_gives_equal_bytes(name, dtype):
    """With more images, boxes and channels than fit in a slice, a tile or a task."""
    row, case = operator(name), many(name, 200)
    arrays = {k: array.astype(dtype) for k, array in case.arrays.items()}
    case = Case(case.name, arrays, case.options)
    before, outcomes = threads.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7):
            threads.set_num_threads(count)
            output = row.call(case)
            gradients = row.call_backward(output, case)
            outcomes.append([a.tobytes() for a in (output, *gradients) if a is not None])
    finally:
        threads.set_num_threads(before)
    assert all(outcome == outcomes[0] for outcome in outcomes)


@pytest.mark.parametrize("name", POOLINGS)
def test_ten_thousand_boxes(name):
    """Each as when it is among few, and forward and backward are adjoint."""
    row, case = operator(name), many(name, 10_000)
    output = row.call(case)
    grad_output = np.random.default_rng(1).standard_normal(output.shape)
    gradients = row.call_backward(grad_output, case)._asdict()
    picked = np.arange(0, 10_000, 97)
    per_region = {k: a for k, a in case.arrays.items() if k != "input"}
    few = {k: a[picked] for k, a in per_region.items()}
    few = Case("few", {"input": case.arrays["input"], **few}, case.options)
    assert output[picked].tobytes() == row.call(few).tobytes()
    found = row.call_backward(grad_output[picked], few)._asdict()
    for argument in found.keys() - {"input"}:
        if found[argument] is not None:
            assert gradients[argument][picked].tobytes() == found[argument].tobytes(), argument
    if "mode" not in case.options:  # linear in the input
        change = (case.arrays["input"] * gradients["input"]).sum()
        assert change == pytest.approx((output * grad_output).sum(), rel=1e-9)


@every_case
def test_all_at_once_gives_the_bytes_of_one_step_after_the_other(monkeypatch, name, case):
    asked = problem(name, case, "float32")
    outcomes = []
    for most in (at_once._MOST, 0):
        monkeypatch.setattr(at_once, "_MOST", most)
        at_once.prepared.cache_clear()
        found = [asked.forward(CPU), *asked.backward(CPU).values()]
        outcomes.append([array.tobytes() for array in found if array is not None])
    at_once.prepared.cache_clear()
    assert outcomes[0] == outcomes[1]


ABSURD = [
    (0, 0, 0, 0),
    (5, 5, -5, -5),
    (-1e9, -1e9, 1e9, 1e9),
    (-1e30, -1e30, 1e30, 1e30),
    (1e30, 1e30, -1e30, -1e30),
    (-3.4e38, -3.4e38, 3.4e38, 3.4e38),
    (1e30, 1e30, 1e30, 1e30),
    (0, 0, 1e30, 1e-30),
    (np.nan, 0, 4, 4),
    (0, 0, 4, np.nan),
    (-np.inf, -np.inf, np.inf, np.inf),
    (0, 0, np.inf, 4),
    (np.inf, 0, 4, 4),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("name", POOLINGS)
def test_absurd_boxes_end_and_leave_the_others_alone(name, dtype):
    row = operator(name)
    for case in row.cases(np.random.default_rng(2)):
        arrays = {k: array.astype(dtype) for k, array in case.arrays.items()}
        count = len(arrays["boxes"])
        if count < 3:
            continue
        plain = Case("plain", arrays, case.options)
        expected = row.call(plain)
        boxes = arrays["boxes"] if dtype != "float16" else arrays["boxes"].astype(np.float32)
        for box in ABSURD:
            changed = boxes.copy()
            changed[1, 1:] = box
            given = Case("absurd", {**arrays, "boxes": changed}, case.options)
            output = row.call(given)
            assert np.isfinite(output).all(), box
            others = np.arange(count) != 1
            assert output[others].tobytes() == expected[others].tobytes(), box
            if not np.isfinite(box).all():
                assert not output[1].any(), box
            for gradient in row.call_backward(np.ones_like(output), given):
                assert gradient is None or not np.isnan(gradient).any(), box


@pytest.mark.parametrize("name", ["roi_align", "deform_roi_pool", "deform_ps_roi_pool"])
def test_coordinates_that_are_not_finite_read_nothing(name):
    row = operator(name)
    *_, case = row.cases(np.random.default_rng(4))
    if "offset" in case.arrays:
        for value in (np.nan, np.inf, 1e300):
            offset = case.arrays["offset"].copy()
            offset[4] = value
            output = row.call(Case("moved", {**case.arrays, "offset": offset}, case.options))
            assert not output[4].any()
    image = case.arrays["input"].copy()
    image[:, :, 0, 0] = np.nan  # a neighbour in memory of what is read, but never read
    boxes = np.tile([0.0, 4, 4, 8, 8], (len(case.arrays["boxes"]), 1))
    boxes[:, 1:] /= case.options.get("spatial_scale", 1.0)
    arrays = {k: a * 0 if k == "offset" else a for k, a in case.arrays.items()}
    arrays.update(input=image, boxes=boxes)
    assert np.isfinite(row.call(Case("nan", arrays, case.options))).all()


def test_the_largest_pixel_is_the_first_and_nan_is_larger():
    image = np.array([[[[3.0, 1, 3], [np.nan, 2, np.nan], [-np.inf, -np.inf, 0]]]])
    boxes = np.array([[0.0, 0, 0, 2, 0], [0, 0, 0, 2, 1], [0, 0, 2, 1, 2], [0, 5, 5, 6, 6]])
    output, argmax = cudeform.roi_pool(image, boxes, 1, return_argmax=True)
    np.testing.assert_array_equal(output.ravel(), [3, np.nan, -np.inf, 0])
    np.testing.assert_array_equal(argmax.ravel(), [0, 3, 6, -1])
    gradient = cudeform.roi_pool_backward(np.full_like(output, 2), image, boxes, 1, argmax=argmax)
    expected = np.zeros((3, 3))
    expected.ravel()[[0, 3, 6]] = 2
    np.testing.assert_array_equal(gradient.input[0, 0], expected)


def test_an_argmax_that_is_no_pixel_is_passed_over():
    image, boxes = np.zeros((1, 2, 3, 3)), np.array([[0.0, 0, 0, 2, 2]])
    argmax = np.array([[[[9, -7], [2**31 - 1, 4]], [[-1, -(2**31)], [18, 4]]]], np.int32)
    grad_output = np.ones(argmax.shape)
    gradient = cudeform.roi_pool_backward(grad_output, image, boxes, 2, argmax=argmax).input
    assert gradient[0, 0, 1, 1] == gradient[0, 1, 1, 1] == 1
    assert gradient.sum() == 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_classes_of_one_channel_and_groups_without_bins(dtype):
    """Channels too few for a vector, one or many, and more groups than bins."""
    rng = np.random.default_rng(6)
    for dim, classes in ((3, 3), (6, 2), (20, 2)):
        arrays = {
            "input": rng.standard_normal((2, dim * 9, 7, 8)),
            "boxes": np.array([[1.0, 0.2, 0.3, 9.1, 8.6], [0, 3.3, 2.7, 12.2, 11.4]]),
            "offset": rng.standard_normal((2, 2 * classes, 2, 1)),
            "mask": rng.uniform(size=(2, classes, 2, 1)),
        }
        options = dict(spatial_scale=0.6, output_dim=dim, group_size=3, output_size=2)
        options |= dict(part_size=(2, 1), sample_per_part=2)
        assert_right(Problem(operator("deform_ps_roi_pool"), Case("few", arrays, options), dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_averages_of_more_channels_than_are_worked_on_at_a_time(dtype):
    rng = np.random.default_rng(8)
    boxes = np.array([[1.0, 0, 0, 9, 6], [0, 3, 2, 7, 6], [1, 4, 1, 6, 9], [1, -9, -9, -5, -5]])
    arrays = {"input": rng.standard_normal((2, 30 * 6, 7, 8)), "boxes": boxes}
    options = {"output_size": (2, 3)}
    assert_right(Problem(operator("ps_roi_pool"), Case("many", arrays, options), dtype))


MEMORY = f"""
import numpy, cudeform
{PEAK}
rng = numpy.random.default_rng(0)
def arrays(n, count, dtype):
    boxes = rng.uniform(0, 100, (count, 5)).astype("float32")
    boxes[:, 0] = rng.integers(0, n, count)
    boxes[:, 3:] += boxes[:, 1:3]
    image = rng.standard_normal((n, 128, 100, 100), "float32").astype(dtype)
    return image, boxes, rng.standard_normal((count, 128, 7, 7), "float32").astype(dtype)

for dtype in ("float32", "float16"):
    for n, count in ((1, 4), (24, 3000)):
        image, boxes, grad = arrays(n, count, dtype)
        forward = peak(lambda: cudeform.roi_align(image, boxes, 7))
        backward = peak(lambda: cudeform.roi_align_backward(grad, image, boxes, 7))
        if n > 1:
            print("peak", forward[0] - forward[1], backward[0] - backward[1])
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_is_bounded_whatever_the_batch():
    """Images of 123 MB and results of 75 MB; what is laid out at a time is 16 MB."""
    said = python(MEMORY)
    peaks = [line.split()[1:] for line in said.splitlines() if line.startswith("peak")]
    assert len(peaks) == 2, said
    assert max(int(value) for pair in peaks for value in pair) < 64e6, said
