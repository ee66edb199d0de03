"""Arrays as users have them: strided, read-only, empty, many images, not finite."""

import numpy as np
import pytest
from cases import Problem, batch_of, operator, problem, problems
from tolerances import assert_close

import cudeform
from cudeform.cases import Case
from cudeform.cuda import lanes

every_case = pytest.mark.parametrize(("name", "case"), problems())


def strided(backend, array):
    """The elements of `array` in an array of the backend that is not contiguous."""
    spread = np.zeros((*array.shape[:-1], 3 * array.shape[-1]), array.dtype)
    spread[..., 1::3] = array
    return backend.to_device(spread)[..., 1::3]


@every_case
def test_strided_arrays_give_the_same_bytes(backend, name, case):
    asked = problem(name, case, "float32")
    held = Case(
        case,
        {k: strided(backend, array) for k, array in asked.case.arrays.items()},
        asked.case.options,
    )
    output = backend.to_host(asked.row.call(held))
    assert output.tobytes() == asked.forward(backend).tobytes()

    grad_output = strided(backend, asked.grad_output)
    gradients = asked.row.call_backward(grad_output, held)._asdict()
    for argument, expected in asked.backward(backend).items():
        if expected is not None:
            assert backend.to_host(gradients[argument]).tobytes() == expected.tobytes(), argument


@every_case
def test_results_are_new_contiguous_arrays(backend, name, case):
    asked = problem(name, case, "float32")
    arrays = {k: backend.to_device(array) for k, array in asked.case.arrays.items()}
    held = Case(case, arrays, asked.case.options)
    grad_output = backend.to_device(asked.grad_output)
    gradients = [g for g in asked.row.call_backward(grad_output, held) if g is not None]
    for result in (asked.row.call(held), *gradients):
        assert isinstance(result, type(grad_output))
        assert result.flags.c_contiguous
        for array in (*arrays.values(), grad_output):
            if result.size:
                assert not np.shares_memory(backend.to_host(result), backend.to_host(array))


@pytest.mark.parametrize("images", [1, 33, 37])
@pytest.mark.parametrize("name", ["deform_conv2d", "conv2d", "bilinear_sample"])
def test_any_batch_size(backend, name, images):
    asked, _ = batch_of(name, images)
    assert_close(asked.forward(backend), asked.output)
    expected = asked.gradients
    for argument, gradient in asked.backward(backend).items():
        if argument in expected:
            assert_close(gradient, expected[argument], what=argument)


@pytest.mark.parametrize("name", ["deform_conv2d", "conv2d", "bilinear_sample"])
def test_images_of_a_batch_do_not_see_each_other(monkeypatch, backend, name):
    """Each image alone gives the same bytes as in a batch: how work is cut changes nothing.

    But for one cut: where a GPU has few pixels it adds their points in parts, here in both. And a
    BLAS has other ways to add for products of other sizes.
    """
    monkeypatch.setattr(lanes, "ENOUGH_WARPS", 1 << 20)
    multiplies = backend.name != "cpu" and "conv2d" in name

    def assert_same(actual, expected, what):
        if multiplies:
            assert_close(actual, expected.astype(np.float64), what=what)
        else:
            assert actual.tobytes() == expected.tobytes(), what

    asked, batched = batch_of(name, 37)
    together = asked.forward(backend)
    gradients = asked.backward(backend)
    for n in (0, 1, 32, 36):
        alone = Case(
            "alone",
            {
                k: backend.to_device(a[n : n + 1] if k in batched else a)
                for k, a in asked.case.arrays.items()
            },
            asked.case.options,
        )
        output = backend.to_host(asked.row.call(alone))
        assert_same(output, together[n : n + 1], f"image {n}")
        grad_output = backend.to_device(asked.grad_output[n : n + 1])
        own = asked.row.call_backward(grad_output, alone)._asdict()
        for k in batched:
            assert_same(backend.to_host(own[k]), gradients[k][n : n + 1], f"{k} of image {n}")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("images", "grid"), [(0, (4,)), (0, ()), (2, (0,)), (2, (3, 0, 2)), (0, (0,))]
)
def test_no_points_or_no_images(backend, images, grid, layout):
    shape = (images, 5, 6, 3) if layout == "NHWC" else (images, 3, 5, 6)
    held = (
        backend.to_device(np.ones(shape, np.float32)),
        backend.to_device(np.ones((images, *grid, 2), np.float32)),
    )
    output = cudeform.bilinear_sample(*held, layout=layout)
    assert output.shape == ((images, *grid, 3) if layout == "NHWC" else (images, 3, *grid))
    gradients = cudeform.bilinear_sample_backward(output, *held, layout=layout)
    np.testing.assert_array_equal(backend.to_host(gradients.input), np.zeros(shape))
    assert gradients.points.shape == (images, *grid, 2)


def test_gradients_of_an_empty_batch_are_zero(backend):
    asked = problem("deform_conv2d", "empty-batch", "float32")
    gradients = asked.backward(backend)
    assert gradients["input"].shape == asked.case.arrays["input"].shape
    for name in ("weight", "bias"):
        np.testing.assert_array_equal(gradients[name], np.zeros(asked.case.arrays[name].shape))


NOWHERE = [np.nan, np.inf, -np.inf, 1e30, -1e30, 2.0**31, -(2.0**31), 2.0**63]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("border", ["zeros", "clamp"])
@pytest.mark.parametrize("value", NOWHERE, ids=str)
def test_offsets_that_point_nowhere(backend, value, border, dtype, rng):
    """They read nothing and write nothing; their neighbours do not notice."""
    row = operator("deform_conv2d")
    case = next(c for c in row.cases(rng) if c.name == "v2")
    offset = case.arrays["offset"]
    lost = rng.uniform(size=offset.shape) < 0.3
    with np.errstate(over="ignore"):
        wild = np.where(lost, value, offset).astype(dtype)
    tame = np.where(lost, 1000, offset)
    options = {**case.options, "border": border}
    asked = Problem(row, Case(case.name, {**case.arrays, "offset": wild}, options), dtype)
    far = Problem(row, Case(case.name, {**case.arrays, "offset": tame}, options), dtype)
    assert asked.forward(backend).tobytes() == far.forward(backend).tobytes()
    expected = far.backward(backend)
    for name, gradient in asked.backward(backend).items():
        assert gradient.tobytes() == expected[name].tobytes(), name


@pytest.mark.parametrize("border", ["zeros", "clamp"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_pixel_that_is_not_finite_reaches_who_reads_it(backend, value, border, layout):
    """A point outside the image reads nothing, whatever stands in the corner of the image."""
    image = np.ones((1, 8, 4, 5), np.float32)
    image[:, :, 0, 0] = image[:, :, -1, -1] = value
    points = np.array([[[-1, -1], [-2, 0], [0, 50], [np.nan, 0], [4, 5], [1e30, 4], [1, 1]]])
    image = np.ascontiguousarray(np.moveaxis(image, 1, -1)) if layout == "NHWC" else image
    output = cudeform.bilinear_sample(
        backend.to_device(image),
        backend.to_device(points.astype(np.float32)),
        border=border,
        layout=layout,
    )
    output = backend.to_host(output)[0]
    output = output.T if layout == "NHWC" else output
    np.testing.assert_array_equal(output[:, :-1], np.zeros((8, 6)))
    np.testing.assert_array_equal(output[:, -1], np.ones(8))


def test_padding_does_not_read_a_pixel_that_is_not_finite(backend):
    """The taps that fall outside add 0, whatever stands in the corner of the image."""
    image = np.ones((1, 3, 6, 7), np.float32)
    image[:, :, 0, 0] = image[:, :, -1, -1] = np.nan
    offset, weight = np.zeros((1, 2, 10, 11), np.float32), np.ones((2, 3, 1, 1), np.float32)
    arguments = map(backend.to_device, (image, offset, weight))
    output = backend.to_host(cudeform.deform_conv2d(*arguments, padding=2))
    inside = output[0, :, 2:-2, 2:-2]
    # A sampler reads the corners of its cell, and 0 * NaN is NaN.
    near = np.zeros((6, 7), bool)
    near[0, 0] = near[-2:, -2:] = True
    np.testing.assert_array_equal(inside[:, ~near], np.full((2, np.count_nonzero(~near)), 3.0))
    assert np.isnan(inside[:, 0, 0]).all() and np.isnan(inside[:, -1, -1]).all()
    inside[...] = 0
    np.testing.assert_array_equal(output, np.zeros((1, 2, 10, 11)))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_plain_convolution_reads_its_window_and_no_more(backend, layout):
    """NaN in a pixel reaches the outputs whose windows hold it, and back, no others."""
    image = np.ones((1, 3, 6, 7), np.float32)
    image[:, :, 2, 3] = np.nan
    grad_output = np.ones((1, 2, 6, 7), np.float32)
    grad_output[:, :, 4, 1] = np.inf
    if layout == "NHWC":
        image, grad_output = (
            np.ascontiguousarray(np.moveaxis(array, 1, -1)) for array in (image, grad_output)
        )
    weight = backend.to_device(np.ones((2, 3, 1, 1), np.float32))
    image, grad_output = backend.to_device(image), backend.to_device(grad_output)
    output = backend.to_host(cudeform.conv2d(image, weight, layout=layout))
    gradients = cudeform.conv2d_backward(
        grad_output, image, weight, layout=layout, needs=("input",)
    )
    for result, (y, x) in ((output, (2, 3)), (backend.to_host(gradients.input), (4, 1))):
        wild = ~np.isfinite(np.moveaxis(result, -1, 1) if layout == "NHWC" else result)
        assert wild[:, :, y, x].all()
        assert wild.sum() == wild[:, :, y, x].size


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_mask_multiplies_nothing_too(backend, value):
    """Outside the image S is 0, and 0 times a mask that is not finite is NaN, as in y = m * S."""
    offset, mask = np.full((1, 2, 4, 4), 100.0), np.ones((1, 1, 4, 4))
    mask[0, 0, 1, 2] = value
    arrays = (np.ones((1, 5, 4, 4)), offset, np.ones((1, 5, 1, 1)))
    output = cudeform.deform_conv2d(*map(backend.to_device, arrays), mask=backend.to_device(mask))
    expected = np.zeros((1, 1, 4, 4))
    expected[0, 0, 1, 2] = np.nan
    np.testing.assert_array_equal(backend.to_host(output), expected)


def test_gradients_that_are_not_finite_reach_who_was_read(backend):
    """NaN in grad_output at one pixel reaches the pixels its taps read, no others."""
    image = np.ones((1, 4, 6, 7), np.float32)
    offset = np.zeros((1, 2, 6, 7), np.float32)
    grad = np.ones((1, 1, 6, 7), np.float32)
    grad[0, 0, 2, 3] = np.nan
    offset[0, :, 0, 0] = -100  # reads nothing, and its gradient is finite
    gradients = cudeform.deform_conv2d_backward(
        *map(backend.to_device, (grad, image, offset, np.ones((1, 4, 1, 1), np.float32))),
        needs=("input", "offset"),
    )
    expected = np.broadcast_to(grad, image.shape).copy()
    expected[:, :, 0, 0] = 0
    # At integer coordinates the other three corners are read with weight 0, and 0 * NaN is NaN.
    expected[:, :, 2:4, 3:5] = np.nan
    grad_input = backend.to_host(gradients.input)
    touched = np.isnan(expected)
    np.testing.assert_array_equal(grad_input[~touched], expected[~touched])
    assert np.isnan(grad_input[0, :, 2, 3]).all()
    grad_offset = backend.to_host(gradients.offset)
    assert np.isnan(grad_offset[0, :, 2, 3]).all()
    assert np.isfinite(np.delete(grad_offset.reshape(2, -1), 2 * 7 + 3, axis=1)).all()


def sample_of_a_region(image, y, x):
    """All corners of the cell times their weights, also those of 0."""
    cells = []
    for at, size in zip((y, x), image.shape, strict=True):
        low = min(int(max(at, 0)), size - 1)
        fraction = max(at, 0) - low if low < size - 1 else 0.0
        cells.append([(low, 1 - fraction), (min(low + 1, size - 1), fraction)])
    with np.errstate(invalid="ignore"):
        return sum(v * h * image[i, j] for i, v in cells[0] for j, h in cells[1])


@pytest.mark.parametrize("place", [(2, 0), (3, 4), (3, 2), (1, 2), (0, 4)])
def test_an_infinite_pixel_beside_a_sample(backend, rng, place):
    """NaN where it is a corner and takes no part, and infinite where it does."""
    image = rng.standard_normal((4, 5))
    image[place] = np.inf
    along = [-1, -0.5, 0, 0.5, 1, 2, 2.5, 3, 3.5, 4]
    points = np.array([(y, x) for y in along for x in along])
    expected = [sample_of_a_region(image, y, x) for y, x in points]
    assert np.isnan(expected).any() and np.isinf(expected).any()
    corners = points[:, ::-1] + 0.5  # without area, and a sample half a pixel up and left
    boxes = np.concatenate([np.zeros((len(points), 1)), corners, corners], 1)
    given = map(backend.to_device, (image[None, None], boxes))
    output = cudeform.roi_align(*given, 1, sampling_ratio=1, aligned=True)
    np.testing.assert_allclose(backend.to_host(output).ravel(), expected, atol=1e-12)


def sample_within(image, y, x):
    """The corners within the image times their weights, also those of 0."""
    total = 0.0
    for i, v in ((np.floor(y), 1 - y % 1), (np.floor(y) + 1, y % 1)):
        for j, h in ((np.floor(x), 1 - x % 1), (np.floor(x) + 1, x % 1)):
            if -1 < y < image.shape[0] and -1 < x < image.shape[1]:
                if 0 <= i < image.shape[0] and 0 <= j < image.shape[1]:
                    total += v * h * image[int(i), int(j)]
    return total


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("place", [(2, 0), (3, 4), (3, 2), (1, 2), (0, 4)])
def test_an_infinite_pixel_beside_a_point(backend, rng, place):
    """A corner outside takes no part: it is no weight of 0 for the pixel that stands for it."""
    image = rng.standard_normal((4, 5))
    image[place] = np.inf
    along = [-1, -0.5, 0, 0.5, 1, 2, 2.5, 3, 3.5, 4, 4.5]
    points = np.array([(y, x) for y in along for x in along])
    expected = [sample_within(image, y, x) for y, x in points]
    assert np.isnan(expected).any() and np.isinf(expected).any()
    given = map(backend.to_device, (image[None, None], points[None]))
    output = backend.to_host(cudeform.bilinear_sample(*given)).ravel()
    np.testing.assert_allclose(output, expected, atol=1e-12)
