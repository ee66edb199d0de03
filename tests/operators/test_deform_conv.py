"""Which number of offset, mask, weight, padding acts where: one at a time, exactly."""

import itertools

import numpy as np
import pytest

import cudeform

KERNEL = (2, 3)
TAPS = KERNEL[0] * KERNEL[1]
HEIGHT, WIDTH = 4, 6
OUT = (HEIGHT - KERNEL[0] + 1, WIDTH - KERNEL[1] + 1)


@pytest.fixture(params=["NCHW", "NHWC"])
def layout(request):
    return request.param


def numbered(*shape):
    """An array of float32 integers that all differ."""
    return np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)


def one_hot(shape, *where):
    array = np.zeros(shape, np.float32)
    array[where] = 1
    return array


def shifted(image, top, left):
    """The window of `OUT` pixels of an image (..., H, W) that starts at (top, left), 0 outside."""
    there = image[..., top : top + OUT[0], left : left + OUT[1]]
    window = np.zeros((*image.shape[:-2], *OUT), image.dtype)
    window[..., : there.shape[-2], : there.shape[-1]] = there
    return window


def run(backend, layout, input, offset, weight, mask=None, **options):
    """deform_conv2d on host arrays in NCHW, computed in the layout asked for."""

    def move(array, source, target):
        return np.ascontiguousarray(
            np.moveaxis(array, source, target) if layout == "NHWC" else array
        )

    if mask is not None:
        options["mask"] = backend.to_device(move(mask, 1, -1))
    output = cudeform.deform_conv2d(
        backend.to_device(move(input, 1, -1)),
        backend.to_device(move(offset, 1, -1)),
        backend.to_device(weight),
        layout=layout,
        **options,
    )
    return move(backend.to_host(output), -1, 1)


@pytest.mark.parametrize("tap", range(TAPS))
@pytest.mark.parametrize(("axis", "step"), [(0, 2), (1, 1)], ids=["y", "x"])
def test_offset_channels_are_taps_row_major_with_y_before_x(backend, layout, tap, axis, step):
    """Channel 2*(a*kw + b) moves tap (a, b) down; the channel after it moves it right."""
    image = numbered(1, 1, HEIGHT, WIDTH)
    a, b = divmod(tap, KERNEL[1])
    offset = step * one_hot((1, 2 * TAPS, *OUT), 0, 2 * tap + axis)
    output = run(backend, layout, image, offset, one_hot((1, 1, *KERNEL), 0, 0, a, b))
    moved = (a + step, b) if axis == 0 else (a, b + step)
    np.testing.assert_array_equal(output, shifted(image, *moved))


@pytest.mark.parametrize("group", range(3))
def test_offset_group_moves_its_own_channels(backend, layout, group):
    """Of six input channels in three offset groups, two consecutive ones move."""
    image = numbered(1, 6, HEIGHT, WIDTH)
    offset = one_hot((1, 3 * 2, HEIGHT, WIDTH), 0, 2 * group + 1)
    identity = np.eye(6, dtype=np.float32)[:, :, None, None]
    output = run(backend, layout, image, offset, identity)
    for channel in range(6):
        right = 1 if channel // 2 == group else 0
        expected = np.zeros((HEIGHT, WIDTH))
        expected[:, : WIDTH - right] = image[0, channel, :, right:]
        np.testing.assert_array_equal(output[0, channel], expected, err_msg=f"channel {channel}")


def test_weight_group_reads_its_own_channels(backend, layout):
    """Four outputs in two groups over six channels: o reads the channels 3*(o // 2) + c."""
    image = numbered(1, 6, HEIGHT, WIDTH)
    offset = np.zeros((1, 2, HEIGHT, WIDTH), np.float32)
    for o, c in itertools.product(range(4), range(3)):
        output = run(backend, layout, image, offset, one_hot((4, 3, 1, 1), o, c))
        expected = np.zeros_like(output)
        expected[0, o] = image[0, 3 * (o // 2) + c]
        np.testing.assert_array_equal(output, expected, err_msg=f"weight[{o}, {c}]")


@pytest.mark.parametrize("tap", range(TAPS))
def test_mask_multiplies_its_own_tap_and_group(backend, layout, tap):
    """Mask channel t*kh*kw + tap scales that tap in the channels of group t, as it is given."""
    image = numbered(1, 2, HEIGHT, WIDTH)
    a, b = divmod(tap, KERNEL[1])
    offset = np.zeros((1, 2 * 2 * TAPS, *OUT), np.float32)
    mask = np.zeros((1, 2 * TAPS, *OUT), np.float32)
    mask[0, TAPS + tap] = -4  # no sigmoid, no clipping
    weight = np.ones((2, 1, *KERNEL), np.float32)
    output = run(backend, layout, image, offset, weight, mask)
    np.testing.assert_array_equal(output[0, 0], np.zeros(OUT))
    np.testing.assert_array_equal(output[0, 1], -4 * shifted(image[0, 1], a, b))


def test_padding_per_side(backend, layout):
    """((top, bottom), (left, right)): the image appears so many pixels from each edge."""
    image = numbered(1, 1, HEIGHT, WIDTH)
    (top, bottom), (left, right) = pads = ((1, 2), (3, 0))
    size = HEIGHT + top + bottom, WIDTH + left + right
    offset = np.zeros((1, 2, *size), np.float32)
    output = run(backend, layout, image, offset, np.ones((1, 1, 1, 1), np.float32), padding=pads)
    np.testing.assert_array_equal(output, np.pad(image, ((0, 0), (0, 0), *pads)))


def test_stride_and_dilation_per_axis(backend, layout):
    """Output (i, j) of tap (a, b) reads (i*2 + a*3, j*3 + b*2)."""
    image = numbered(1, 1, 9, 11)
    offset = np.zeros((1, 2 * 4, 3, 3), np.float32)
    for a, b in itertools.product((0, 1), (0, 1)):
        weight = one_hot((1, 1, 2, 2), 0, 0, a, b)
        output = run(backend, layout, image, offset, weight, stride=(2, 3), dilation=(3, 2))
        np.testing.assert_array_equal(output[0, 0], image[0, 0, 3 * a :: 2, 2 * b :: 3][:3, :3])


def test_bias_is_added_to_its_own_channel(backend, layout):
    image = numbered(2, 1, HEIGHT, WIDTH)
    offset = np.zeros((2, 2, HEIGHT, WIDTH), np.float32)
    weight = np.zeros((3, 1, 1, 1), np.float32)
    bias = numbered(3)
    output = run(backend, layout, image, offset, weight, bias=backend.to_device(bias))
    expected = np.broadcast_to(bias[:, None, None], (2, 3, HEIGHT, WIDTH))
    np.testing.assert_array_equal(output, expected)


def test_arguments_stand_in_torchvisions_order(rng):
    """input, offset, weight, bias, stride, padding, dilation, mask may be given by position."""
    image = rng.standard_normal((1, 2, 8, 8))
    weight, bias = rng.standard_normal((3, 2, 3, 3)), rng.standard_normal(3)
    offset, mask = rng.standard_normal((1, 18, 3, 3)), rng.uniform(size=(1, 9, 3, 3))
    by_position = cudeform.deform_conv2d(image, offset, weight, bias, 2, 1, 2, mask)
    by_name = cudeform.deform_conv2d(
        image, offset, weight, bias=bias, stride=2, padding=1, dilation=2, mask=mask
    )
    np.testing.assert_array_equal(by_position, by_name)
