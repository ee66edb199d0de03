"""Beyond what 24 and what 31 bits count: long axes, and arrays of more than 2**31 elements.

Large arrays are mapped and not filled: memory is only what a test writes or an operator touches.
What has to touch all of an image is not tried: gradients of the input, and copies of images with
their channels last.
"""

import mmap
import re
from functools import partial

import backends
import numpy as np
import pytest
import reference
from cases import cases, operator
from emulator import device as emulated

import cudeform
from cudeform.plans import Outline, plan

LONG = 2**24 + 64  # pixels: float32 does not tell the last ones apart


@pytest.fixture(params=["cpu", "emulator"])
def backend(request):
    """Those that compute on the host's memory; without the checker, which remembers all of it."""
    chosen = backends.BACKENDS[request.param]
    backends.require(chosen)
    with chosen.active(check=False):
        yield chosen


def mapped(shape, dtype="float32"):
    """Zeros that take no memory until they are written."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    return np.frombuffer(mmap.mmap(-1, size, flags=flags), dtype).reshape(shape)


def on(backend, array):
    """The array itself, as one of the backend's."""
    return array.view(emulated.DeviceArray) if backend.name == "emulator" else array


def call(backend, function, arrays, **options):
    """A function on large arrays, which are not copied, and small ones; the results on the host."""
    results = function(**{name: on(backend, array) for name, array in arrays.items()}, **options)
    if not isinstance(results, tuple):
        return backend.to_host(results)
    found = {k: v for k, v in results._asdict().items() if v is not None}
    return {name: backend.to_host(array) for name, array in found.items()}


# -- axes of more than 2**24 pixels ---------------------------------------------------------------


def along(axis, values):
    """(64, ...) pixels of one column or one row, (N, H, W, C)."""
    return np.expand_dims(np.expand_dims(values, 1 - axis), (0, -1))


def with_tail(axis, tail):
    image = mapped(along(axis, np.broadcast_to(np.float32(0), LONG)).shape)
    image[:, -64:, -64:] = along(axis, tail)
    return image


def twins(axis, rng):
    """A convolution at the end of a long axis, and what it is without the pixels before."""
    tail = rng.standard_normal(64).astype(np.float32)
    tail[:4] = 0  # where the short image has a border and the long one none
    weight = rng.standard_normal((1, 1, *((2, 1) if axis == 0 else (1, 2)))).astype(np.float32)
    long = {"input": with_tail(axis, tail), "weight": weight}
    short = {
        "input": np.moveaxis(along(axis, tail), -1, 1).astype(np.float64),
        "weight": weight[..., -1:, -1:].astype(np.float64),
    }
    return long, short, {"dilation": (2**24, 1) if axis == 0 else (1, 2**24), "layout": "NHWC"}


@pytest.mark.parametrize("axis", [0, 1])
def test_plain_convolutions_count_pixels_in_integers(backend, axis, rng):
    long, short, options = twins(axis, rng)
    output = call(backend, cudeform.conv2d, long, **options)
    expected = reference.conv2d(**short)
    np.testing.assert_allclose(np.moveaxis(output, -1, 1), expected, rtol=1e-6)
    grad_output = rng.standard_normal(output.shape).astype(np.float32)
    needs = ("weight", "input") if backend.name == "cpu" else ("weight",)
    given = {"grad_output": grad_output, **long}
    gradients = call(backend, cudeform.conv2d_backward, given, needs=needs, **options)
    grad_output = np.moveaxis(grad_output, -1, 1).astype(np.float64)
    expected = reference.conv2d_backward(grad_output, **short)
    weight = gradients["weight"][..., -1:, -1:]
    np.testing.assert_allclose(weight, expected["weight"], rtol=1e-5)
    if "input" in gradients:
        tail = gradients["input"][:, -64:, -64:]
        np.testing.assert_allclose(np.moveaxis(tail, -1, 1), expected["input"], rtol=1e-6)


@pytest.mark.parametrize("border", ["zeros", "clamp"])
@pytest.mark.parametrize("axis", [0, 1])
def test_offsets_keep_their_bits_on_a_long_axis(backend, axis, border, rng):
    long, short, options = twins(axis, rng)
    offset = np.zeros((*along(axis, np.zeros(64)).shape[:3], 2, 2), np.float32)
    offset[..., 1, axis] = along(axis, rng.uniform(-3, 3, 64))[..., 0]
    long["offset"] = offset.reshape(*offset.shape[:3], 4)
    short["offset"] = np.moveaxis(offset[..., 1, :], -1, 1).astype(np.float64)
    options["border"] = border
    output = call(backend, cudeform.deform_conv2d, long, **options)
    expected = reference.deform_conv2d(**short, border=border)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.moveaxis(output, -1, 1), expected, atol=1e-6 * scale)
    grad_output = rng.standard_normal(output.shape).astype(np.float32)
    needs = ("weight", "offset")
    given = {"grad_output": grad_output, **long}
    gradients = call(backend, cudeform.deform_conv2d_backward, given, needs=needs, **options)
    grad_output = np.moveaxis(grad_output, -1, 1).astype(np.float64)
    expected = reference.deform_conv2d_backward(grad_output, **short, border=border)
    weight, found = gradients["weight"][..., -1:, -1:], gradients["offset"][..., 2:]
    np.testing.assert_allclose(weight, expected["weight"], rtol=1e-5)
    scale = np.abs(expected["offset"]).max()
    np.testing.assert_allclose(np.moveaxis(found, -1, 1), expected["offset"], atol=1e-6 * scale)


@pytest.mark.parametrize("axis", [0, 1])
def test_points_are_read_where_they_say(backend, axis, rng):
    tail = rng.standard_normal(64).astype(np.float32)
    points = np.zeros((1, 32, 2), np.float32)
    points[0, :, axis] = 2**24 + np.arange(0, 64, 2)
    arrays = {"input": with_tail(axis, tail), "points": points}
    found = call(backend, cudeform.bilinear_sample, arrays, layout="NHWC")
    np.testing.assert_array_equal(found.ravel(), tail[::2])
    arrays["grad_output"] = np.ones_like(found)
    backward = cudeform.bilinear_sample_backward
    gradients = call(backend, backward, arrays, layout="NHWC", needs=("points",))
    steps = np.diff(tail, append=np.float32(0))[::2]
    np.testing.assert_array_equal(gradients["points"][0, :, axis], steps)


# -- what cannot be counted is refused ------------------------------------------------------------


def unfilled(backend, shape, dtype="float32"):
    """An array of this shape that has one element."""
    return on(backend, np.broadcast_to(np.zeros((), dtype), shape))


POOLINGS = [row.name for row in cudeform.registry.OPERATORS if row.family == "regions"]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", POOLINGS)
def test_poolings_refuse_a_long_axis_in_float32(backend, name, backward):
    row, case = operator(name), next(iter(cases(name).values()))
    arrays = {k: on(backend, a.astype(np.float32)) for k, a in case.arrays.items()}
    absent = {a.name: None for a in row.arguments if a.optional and a.name not in arrays}
    channels = case.arrays["input"].shape[1]
    for size in ((1, 2**24 + 1), (2**24 + 1, 1)):
        arrays["input"] = unfilled(backend, (2, channels, *size))
        message = rf"{name}.*: expected `input` of at most 16777216 pixels .* got 16777217 \("
        with pytest.raises(ValueError, match=message):
            if backward:
                row.backward(arrays["input"], **arrays, **absent, **case.options)
            else:
                row.forward(**arrays, **absent, **case.options)


def test_poolings_take_the_longest_axis_of_float32(backend):
    """The last pixel of one is a number that float32 has."""
    image = unfilled(backend, (1, 1, 1, 2**24), "float32")
    boxes = on(backend, np.array([[0, 2**24 - 1, 0, 2**24 - 1, 0]], np.float32))
    assert cudeform.roi_pool(image, boxes, 1).shape == (1, 1, 1, 1)


def test_argmax_holds_the_number_of_every_pixel(backend):
    image, boxes = unfilled(backend, (1, 1, 2**16, 2**15 + 1), "float64"), np.zeros((1, 5))
    message = r"roi_pool: expected `input` of at most 2147483648 pixels, got 2147549184 \(argmax"
    with pytest.raises(ValueError, match=message):
        cudeform.roi_pool(image, on(backend, boxes), 1)


def attend(backend, pixels, queries, heads, backward=False):
    """Attention of so many to four points."""
    value = unfilled(backend, (1, pixels, heads, 1))
    each = (1, queries, heads, 1, 4)
    points = (unfilled(backend, (*each, 2)), unfilled(backend, each))
    if not backward:
        return cudeform.ms_deform_attn(value, ((pixels, 1),), *points)
    grad = unfilled(backend, (1, queries, heads))
    return cudeform.ms_deform_attn_backward(grad, value, ((pixels, 1),), *points)


def test_kernels_number_the_cells_of_an_image_in_32_bits(backend):
    """On a GPU; on the CPU all of these are numbered in 64 bits."""
    if backend.name == "cpu":
        pytest.skip("no limit")
    fits, wide = (unfilled(backend, (1, 1, 2**15, w)) for w in (2**15, 2**16))
    weight, half = unfilled(backend, (1, 1, 1, 1)), unfilled(backend, (1, 2, 2**15, 2**15))
    points, boxes = unfilled(backend, (1, 1, 2)), unfilled(backend, (1, 5))
    offset = unfilled(backend, (1, 4, 1, 1))
    one, small = unfilled(backend, (1, 1, 1, 1)), unfilled(backend, (1, 1, 1))
    two, grid = unfilled(backend, (1, 2, 1, 1)), {"stride": 2**15}
    calls = {
        "(H + 1)*(W + 1)": [
            lambda: cudeform.conv2d(wide, weight, stride=2**15),
            lambda: cudeform.bilinear_sample(wide, points),
            lambda: cudeform.roi_align(wide, boxes, 1),
            lambda: cudeform.roi_pool(wide, boxes, 1, mode="avg"),
            lambda: cudeform.roi_pool_backward(one, wide, boxes, 1, mode="avg"),
        ],
        "offset_groups*(H + 1)*(W + 1)": [
            lambda: cudeform.bilinear_sample_backward(small, wide, points),
            lambda: cudeform.deform_conv2d_backward(one, half, offset, two, **grid),
        ],
        "Ho*Wo": [lambda: cudeform.bilinear_sample(one, unfilled(backend, (1, 2**31, 2)))],
        "the padded height": [
            lambda: cudeform.conv2d(fits, weight, padding=((2**31 - 1, 0), (0, 0)), stride=2**30)
        ],
        "kh*kw*C": [lambda: cudeform.conv2d(*[unfilled(backend, (1, 2**28, 3, 3))] * 2)],
        "S": [partial(attend, backend, 2**31 - 1, 1, 1)],
        "8*M*D": [partial(attend, backend, 1, 1, 2**28)],
        "Lq*M": [partial(attend, backend, 1, 2**20, 2**11)],
        "Lq*sum P": [partial(attend, backend, 1, 2**29, 1, backward=True)],
    }
    for what, some in calls.items():
        for refused in some:
            with pytest.raises(ValueError) as caught:
                refused()
            assert re.search("`(input|value)` with at most 2147482624 pixels", str(caught.value))
            assert f"({what}, which the kernels of a GPU count in 32 bits)" in str(caught.value)


def test_poolings_count_the_cells_of_one_image_whatever_the_classes_and_groups():
    """Their gradients gather rows tile by tile: nothing is numbered across images."""
    given = {"input": Outline((1, 36, 4, 6)), "boxes": Outline((2, 5))}
    given["offset"] = Outline((2, 2 * 3, 2, 2))  # of 3 classes
    options = dict(spatial_scale=1.0, output_dim=6, group_size=(2, 3), output_size=2, part_size=2)
    planned = plan("deform_ps_roi_pool", given, options)
    for backward in (False, True):
        assert planned.counts(backward) == {"(H + 1)*(W + 1)": 5 * 7}


# -- arrays of more than 2**31 elements -----------------------------------------------------------

WIDE = (1, 4, 2**23 + 3, 64)  # (N, H, W, C)


def corner(image):
    """Fill the last pixels of the last row, beyond 2**31 elements, for the reference."""
    pixels = np.arange(-8 * image.shape[-1], 0).reshape(1, 1, 8, -1) % 13 - 4.0
    image[:, -1:, -8:] = pixels
    return pixels


def wide_image(backend):
    """The CPU widens 16-bit images as a whole."""
    return mapped(WIDE, "float32" if backend.name == "cpu" else "float16")


def test_convolutions_beyond_2_31_elements(backend, rng):
    image = wide_image(backend)
    pixels = corner(image)
    dtype, stride = image.dtype, (1, WIDE[2] - 4)  # two columns of outputs: 0, and 4 before the end
    weight = rng.integers(-2, 3, (2, WIDE[3], 1, 1)).astype(dtype)
    arrays = {"input": image, "weight": weight}
    output = call(backend, cudeform.conv2d, arrays, stride=stride, layout="NHWC")
    want = pixels[0, 0, 4] @ weight[:, :, 0, 0].T.astype(np.float64)
    assert not output[0, :3].any() and not output[0, 3, 0].any()
    np.testing.assert_array_equal(output[0, 3, 1], want)

    offset = np.zeros((1, 4, 2, 2), dtype)
    offset[..., 1] = 1.5
    arrays["offset"] = offset
    output = call(backend, cudeform.deform_conv2d, arrays, stride=stride, layout="NHWC")
    half = (pixels[0, 0, 5] + pixels[0, 0, 6]) / 2
    want = half @ weight[:, :, 0, 0].T.astype(np.float64)
    np.testing.assert_allclose(output[0, 3, 1], want, rtol=1e-3)

    grad_output = np.zeros((1, 4, 2, 2), dtype)
    grad_output[0, 3, 1] = 1, -2
    gradients = call(
        backend,
        cudeform.deform_conv2d_backward,
        {"grad_output": grad_output, **arrays},
        stride=stride,
        layout="NHWC",
        needs=("weight", "offset"),
    )
    np.testing.assert_array_equal(gradients["weight"][:, :, 0, 0], np.outer([1, -2], half))
    step = grad_output[0, 3, 1].astype(np.float64) @ weight[:, :, 0, 0].astype(np.float64)
    want = step @ (pixels[0, 0, 6] - pixels[0, 0, 5])
    np.testing.assert_allclose(gradients["offset"][0, 3, 1, 1], want, rtol=1e-3)


def test_samples_beyond_2_31_elements(backend):
    image = wide_image(backend)
    pixels = corner(image)
    points = np.array([[[3, WIDE[2] - 3.0], [0, 0], [2, WIDE[2] - 1.0]]], np.float32)
    arrays = {"input": image, "points": points}
    output = call(backend, cudeform.bilinear_sample, arrays, layout="NHWC")
    np.testing.assert_array_equal(output[0], [pixels[0, 0, 5], 0 * pixels[0, 0, 5], [0] * 64])
    arrays["grad_output"] = np.ones_like(output)
    backward = cudeform.bilinear_sample_backward
    gradients = call(backend, backward, arrays, layout="NHWC", needs=("points",))
    want = [[-pixels[0, 0, 5].sum(), (pixels[0, 0, 6] - pixels[0, 0, 5]).sum()], [0, 0]]
    want.append([pixels[0, 0, 7].sum(), 0])
    np.testing.assert_array_equal(gradients["points"][0], want)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_nearest_pixel_of_a_long_axis_is_in_its_level(backend, axis):
    """The last one, of which float32 makes a pixel of the next level."""
    length = 2**24 + 3
    value = mapped((1, length + 4, 1, 1))
    value[0, length - 1], value[0, length:] = 5, 7
    shapes = ((length, 1) if axis == 0 else (1, length), (2, 2))
    locations = np.full((1, 1, 1, 2, 1, 2), 2, np.float32)
    weights = np.array([1, 0], np.float32).reshape(1, 1, 1, 2, 1)
    arrays = dict(value=value, sampling_locations=locations, attention_weights=weights)
    options = dict(spatial_shapes=shapes, method="nearest")
    assert call(backend, cudeform.ms_deform_attn, arrays, **options).item() == 5


def test_attention_beyond_2_31_elements(backend, rng):
    """To a small level behind a huge one, of which nothing is read."""
    tail, shapes = 8, ((2**25, 1), (2, 4))
    value = mapped((1, 2**25 + tail, 1, 64), "float32" if backend.name == "cpu" else "float16")
    value[:, -tail:] = rng.integers(-4, 5, (tail, 1, 64))
    locations = rng.integers(0, 9, (1, 3, 1, 2, 5, 2)) / 8
    locations[:, :, :, 0] = 2  # outside
    arrays = {
        "value": value,
        "sampling_locations": locations.astype(value.dtype),
        "attention_weights": rng.integers(1, 5, (1, 3, 1, 2, 5)).astype(value.dtype),
    }
    small = {k: a.astype(np.float64) for k, a in arrays.items() if k != "value"}
    small["value"] = np.zeros((1, 1 + tail, 1, 64))
    small["value"][:, 1:] = value[:, -tail:]
    output = call(backend, cudeform.ms_deform_attn, arrays, spatial_shapes=shapes)
    expected = reference.ms_deform_attn(**small, spatial_shapes=((1, 1), shapes[1]))
    np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-3)
    grad_output = rng.integers(-2, 3, output.shape).astype(value.dtype)
    needs = ("sampling_locations", "attention_weights")
    gradients = call(
        backend,
        cudeform.ms_deform_attn_backward,
        {"grad_output": grad_output, **arrays},
        spatial_shapes=shapes,
        needs=needs,
    )
    expected = reference.ms_deform_attn_backward(
        grad_output.astype(np.float64), **small, spatial_shapes=((1, 1), shapes[1])
    )
    for name in needs:
        np.testing.assert_allclose(gradients[name], expected[name], rtol=2e-3, atol=1e-2)


def test_every_pooling_beyond_2_31_elements(backend):
    """In channels that each have a bin to themselves, as they lie; the box in the last image."""
    options = {
        "roi_align": dict(output_size=1, sampling_ratio=1),
        "ps_roi_align": dict(output_size=2, sampling_ratio=1),
        "roi_pool": dict(output_size=1, mode="max"),
        "ps_roi_pool": dict(output_size=2),
        "deform_roi_pool": dict(offset=None, output_size=1, sampling_ratio=1),
        "deform_ps_roi_pool": dict(
            offset=None,
            output_size=2,
            spatial_scale=1.0,
            output_dim=1,
            group_size=2,
            sample_per_part=1,
        ),
    }
    assert options.keys() == set(POOLINGS)
    memory = mapped((2**21 + 4, 32, 32), "float16")  # planes
    memory[-4:] = np.arange(1, 5)[:, None, None]
    for name, given in options.items():
        maps = 1 if given["output_size"] == 1 else 4
        image = memory.reshape(-1, maps, 32, 32)
        boxes = np.array([[len(image) - 1, 8, 8, 16, 16]], np.float32)
        arrays = {"input": image, "boxes": boxes}
        function = getattr(cudeform, name)
        output = call(backend, function, arrays, **given)
        np.testing.assert_array_equal(output.ravel(), [4] if maps == 1 else [1, 2, 3, 4], name)
