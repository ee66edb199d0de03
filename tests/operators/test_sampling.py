"""The two samplers at their knots and borders: exact values, no tolerance, every dtype.

Along one axis of three pixels a sampler is a table: position -> the weights of the pixels, and
the derivatives of those weights. In two dimensions the sampler is the product of two axes, so
the table is all there is. Every number here is exact in every dtype.
"""

import numpy as np
import pytest
from cases import DTYPES, dtype_of

import cudeform

NOTHING = ((0, 0, 0), (0, 0, 0))
LADDER = {  # position: (weights, derivatives of the weights)
    "zeros": {
        -1.5: NOTHING,
        -1.0: NOTHING,
        -0.75: ((0.25, 0, 0), (1, 0, 0)),
        -0.5: ((0.5, 0, 0), (1, 0, 0)),
        0.0: ((1, 0, 0), (-1, 1, 0)),
        0.25: ((0.75, 0.25, 0), (-1, 1, 0)),
        1.0: ((0, 1, 0), (0, -1, 1)),
        1.5: ((0, 0.5, 0.5), (0, -1, 1)),
        2.0: ((0, 0, 1), (0, 0, -1)),
        2.5: ((0, 0, 0.5), (0, 0, -1)),
        2.75: ((0, 0, 0.25), (0, 0, -1)),
        3.0: NOTHING,
        3.25: NOTHING,
    },
    "clamp": {
        -1.0: NOTHING,
        -0.5: NOTHING,
        -(2.0**-10): NOTHING,
        0.0: ((1, 0, 0), (-1, 1, 0)),
        0.25: ((0.75, 0.25, 0), (-1, 1, 0)),
        1.0: ((0, 1, 0), (0, -1, 1)),
        1.5: ((0, 0.5, 0.5), (0, -1, 1)),
        2.0: ((0, 0, 1), (0, 0, 0)),
        2.5: ((0, 0, 1), (0, 0, 0)),
        2.75: ((0, 0, 1), (0, 0, 0)),
        3.0: NOTHING,
        3.25: NOTHING,
    },
}
NOWHERE = (-1e30, 1e30, 4e9, -4e9, 65504.0, np.inf, -np.inf, np.nan)
# Two channels, three rows, three columns; no two neighbours differ by the same amount.
IMAGE = np.array([[[1, 3, 8], [2, 7, 4], [16, 5, 11]], [[0, -4, 2], [9, 1, -6], [3, 12, -2]]])

every_border = pytest.mark.parametrize("border", LADDER)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def ladder_points(border):
    """All (y, x) of the border's table and of no place at all: (P, 2)."""
    steps = (*LADDER[border], *NOWHERE)
    return np.array([(y, x) for y in steps for x in steps])


def axis_tables(border, positions):
    """Weights and derivatives, each (P, 3), at the positions along one axis; 0 if nowhere."""
    rows = [LADDER[border].get(float(position), NOTHING) for position in positions]
    weights, slopes = np.array(rows, dtype=float).swapaxes(0, 1)
    return weights, slopes


def expected(border, points, grad):
    """Values (2, P), slopes (P, 2) of sum(values * grad), and the grad of the image (2, 3, 3)."""
    (wy, sy), (wx, sx) = axis_tables(border, points[:, 0]), axis_tables(border, points[:, 1])
    values = np.einsum("cyx,py,px->cp", IMAGE, wy, wx)
    slope_y = np.einsum("cp,cyx,py,px->p", grad, IMAGE, sy, wx)
    slope_x = np.einsum("cp,cyx,py,px->p", grad, IMAGE, wy, sx)
    image = np.einsum("cp,py,px->cyx", grad, wy, wx)
    # Outside along one axis means outside: the slope along the other is 0 as well.
    inside = wy.any(axis=1) & wx.any(axis=1)
    return values, np.where(inside, (slope_y, slope_x), 0).T, image


def cast(array, dtype):
    with np.errstate(over="ignore"):  # 1e30 becomes infinity in float16, which is as far away
        return np.asarray(array).astype(dtype_of(dtype))


def expand(image, count):
    """One image of the batch for every point, so that no sum of gradients is ever rounded."""
    return np.broadcast_to(image, (count, *image.shape)).copy()


@every_dtype
@every_border
def test_bilinear_sample_on_knots_and_borders(backend, border, dtype):
    points = cast(ladder_points(border), dtype)
    image = cast(IMAGE[None], dtype)
    arguments = backend.to_device(image), backend.to_device(points[None])
    values, slopes, _ = expected(border, points.astype(float), np.ones((2, len(points))))
    output = backend.to_host(cudeform.bilinear_sample(*arguments, border=border))
    np.testing.assert_array_equal(output[0].astype(float), values)

    grad_output = backend.to_device(np.ones_like(output))
    gradients = cudeform.bilinear_sample_backward(grad_output, *arguments, border=border)
    grad_points = backend.to_host(gradients.points)
    np.testing.assert_array_equal(grad_points[0].astype(float), slopes)


@every_border
def test_bilinear_sample_gives_each_pixel_its_share(backend, border):
    """The gradient of the image, point by point."""
    points = ladder_points(border).astype(np.float32)
    arguments = (
        backend.to_device(expand(IMAGE.astype(np.float32), len(points))),
        backend.to_device(points[:, None]),
    )
    grad = np.tile(np.array([[2.0], [-3.0]], np.float32), (len(points), 1, 1))
    gradients = cudeform.bilinear_sample_backward(
        backend.to_device(grad), *arguments, border=border, needs=("input",)
    )
    grad_input = backend.to_host(gradients.input)
    for point, got in zip(points, grad_input, strict=True):
        _, _, image = expected(border, point[None].astype(float), grad[0])
        np.testing.assert_array_equal(got, image, err_msg=str(point))


def through_convolution(points, dtype):
    """The points as offsets of a 1x1 convolution: (offset, weight, options).

    Its output is (1, 1, P, 1).
    """
    count = len(points)
    options = {"padding": ((0, count - 3), (0, 0)), "stride": (1, 3)}
    offset = np.empty((1, 2, count, 1), dtype_of(dtype))
    offset[0, 0, :, 0] = cast(points[:, 0] - np.arange(count), dtype)
    offset[0, 1, :, 0] = cast(points[:, 1], dtype)
    return offset, np.ones((1, 2, 1, 1), dtype_of(dtype)), options


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_border
def test_deform_conv2d_on_knots_and_borders(backend, border, dtype):
    """The same table through a convolution: its base position and its offset add up exactly."""
    points = ladder_points(border)
    offset, weight, options = through_convolution(points, dtype)
    mask = np.full((1, 1, len(points), 1), 0.5, dtype_of(dtype))
    image = cast(IMAGE[None], dtype)
    held = [backend.to_device(array) for array in (image, offset, weight)]
    options.update(mask=backend.to_device(mask), border=border)

    values, slopes, _ = expected(border, points, np.ones((2, len(points))))
    output = backend.to_host(cudeform.deform_conv2d(*held, **options))
    np.testing.assert_array_equal(output[0, 0, :, 0], 0.5 * values.sum(axis=0))

    gradients = cudeform.deform_conv2d_backward(
        backend.to_device(np.ones_like(output)), *held, **options
    )
    grad_offset = backend.to_host(gradients.offset)[0, :, :, 0]
    np.testing.assert_array_equal(grad_offset.T, 0.5 * slopes)
    grad_mask = backend.to_host(gradients.mask)[0, 0, :, 0]
    np.testing.assert_array_equal(grad_mask, values.sum(axis=0))


@every_border
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (4, 1)])
def test_images_one_pixel_thin(backend, border, size, rng):
    """With one pixel along an axis the near and the far edge are the same place."""
    image = rng.standard_normal((1, 1, *size)).astype(np.float32)
    positions = np.array([-1, -0.5, 0, 0.5, 0.75, 1], np.float32)
    grid = np.stack(np.meshgrid(positions, positions, indexing="ij"), axis=-1)[None]
    held = backend.to_device(image), backend.to_device(grid)
    output = backend.to_host(cudeform.bilinear_sample(*held, border=border))[0, 0]

    share = {  # of the only pixel
        "zeros": np.array([0, 0.5, 1, 0.5, 0.25, 0]),
        "clamp": np.array([0, 0, 1, 1, 1, 0]),
    }[border]
    for axis in (0, 1):
        if size[axis] == 1:
            # At position 0 of the other axis stands its first pixel.
            line = output[:, 2] if axis == 0 else output[2, :]
            np.testing.assert_array_equal(line, (share * image[0, 0, 0, 0]).astype(np.float32))


@pytest.mark.parametrize("grid", [(), (5,), (2, 3), (2, 3, 4)])
def test_points_may_have_any_number_of_axes(backend, grid, rng):
    image = rng.standard_normal((2, 3, 5, 6)).astype(np.float32)
    points = rng.uniform(-1, 6, (2, *grid, 2)).astype(np.float32)
    flat = points.reshape(2, -1, 2)
    first, last = (backend.to_device(image), backend.to_device(np.moveaxis(image, 1, -1).copy()))
    expected_flat = cudeform.bilinear_sample(first, backend.to_device(flat))
    expected_flat = backend.to_host(expected_flat)

    output = backend.to_host(cudeform.bilinear_sample(first, backend.to_device(points)))
    np.testing.assert_array_equal(output, expected_flat.reshape(2, 3, *grid))
    output = cudeform.bilinear_sample(last, backend.to_device(points), layout="NHWC")
    output = backend.to_host(output)
    assert output.shape == (2, *grid, 3)
    np.testing.assert_allclose(
        np.moveaxis(output, -1, 1), expected_flat.reshape(2, 3, *grid), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_coordinates_are_finer_than_the_storage_type(backend, dtype):
    """Half a pixel to the right of pixel 3000, where neither 16-bit type has a half."""
    width = 3001
    row = np.arange(width) % 5
    offset = np.zeros((1, 2, 1, width))
    offset[:, 1] = 0.5
    arrays = (row.reshape(1, 1, 1, width), offset, np.ones((1, 1, 1, 1)))
    output = cudeform.deform_conv2d(*(backend.to_device(cast(array, dtype)) for array in arrays))
    expected = (row + np.append(row[1:], 0)) / 2
    np.testing.assert_array_equal(backend.to_host(output)[0, 0, 0].astype(float), expected)
