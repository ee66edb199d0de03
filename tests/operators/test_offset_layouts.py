"""The converters against the sampling formulas of the libraries they convert between."""

import itertools

import backends
import numpy as np
import pytest

import cudeform

GEOMETRIES = [
    pytest.param(kernel, dilation, scale, center, id=f"{kernel}-{dilation}-{scale}-{center}")
    for kernel, dilation, scale, center in [
        ((3, 3), (1, 1), 1.0, False),
        ((3, 3), (1, 1), 2.0, True),
        ((3, 5), (2, 1), 0.5, True),
        ((2, 3), (3, 2), 1.7, False),
        ((4, 2), (1, 3), 2.5, False),
        ((1, 1), (1, 1), 3.0, False),
    ]
]
STRIDE, PADDING = (2, 1), (0, 1)
N, HO, WO, GROUPS = 2, 3, 4, 2


def dcnv3_taps(kernel, remove_center):
    """(index in the array, row a, column b) of each stored tap: columns outside, rows inside."""
    kh, kw = kernel
    order = [(a, b) for b in range(kw) for a in range(kh)]
    if remove_center:
        del order[kh * kw // 2]
    return [(index, a, b) for index, (a, b) in enumerate(order)]


def dcnv3_axis(pixel, tap, offset, axis, kernel, dilation, scale):
    """A coordinate of a sampling point as DCNv3 computes it."""
    center = (dilation[axis] * (kernel[axis] - 1)) >> 1
    base = center - PADDING[axis] + pixel * STRIDE[axis] - center * scale
    return base + (tap * dilation[axis] + offset) * scale


def our_axis(pixel, tap, offset, axis, dilation):
    return pixel * STRIDE[axis] - PADDING[axis] + tap * dilation[axis] + offset


def dcnv3_offset(rng, kernel, center):
    points = kernel[0] * kernel[1] - center
    return rng.standard_normal((N, HO, WO, 2 * GROUPS * points))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("kernel, dilation, scale, center", GEOMETRIES)
def test_dcnv3_points_stay_where_they_are(rng, kernel, dilation, scale, center, layout):
    theirs = dcnv3_offset(rng, kernel, center)
    options = dict(kernel_size=kernel, dilation=dilation, offset_scale=scale, layout=layout)
    ours = cudeform.convert_offset(theirs, "dcnv3", "torchvision", remove_center=center, **options)
    if layout == "NHWC":
        ours = ours.transpose(0, 3, 1, 2)
    taps = kernel[0] * kernel[1]
    assert ours.shape == (N, 2 * GROUPS * taps, HO, WO)
    for n, i, j, g in np.ndindex(N, HO, WO, GROUPS):
        for index, a, b in dcnv3_taps(kernel, center):
            x, y = theirs[n, i, j, 2 * (g * (taps - center) + index) :][:2]
            their_point = (
                dcnv3_axis(i, a, y, 0, kernel, dilation, scale),
                dcnv3_axis(j, b, x, 1, kernel, dilation, scale),
            )
            y, x = ours[n, 2 * (g * taps + a * kernel[1] + b) :, i, j][:2]
            our_point = our_axis(i, a, y, 0, dilation), our_axis(j, b, x, 1, dilation)
            np.testing.assert_allclose(our_point, their_point, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kernel, dilation, scale, center", GEOMETRIES)
def test_dcnv3_round_trip(rng, kernel, dilation, scale, center):
    offset = dcnv3_offset(rng, kernel, center)
    options = dict(kernel_size=kernel, dilation=dilation, offset_scale=scale, remove_center=center)
    ours = cudeform.convert_offset(offset, "dcnv3", "torchvision", **options)
    back = cudeform.convert_offset(ours, "torchvision", "dcnv3", **options)
    np.testing.assert_allclose(back, offset, rtol=0, atol=1e-13)
    mask = rng.uniform(size=(N, HO, WO, offset.shape[3] // 2))
    shared = dict(kernel_size=kernel, remove_center=center)
    ours = cudeform.convert_mask(mask, "dcnv3", "torchvision", **shared)
    back = cudeform.convert_mask(ours, "torchvision", "dcnv3", **shared)
    np.testing.assert_array_equal(back, mask)


def dcnv3_forward(image, offset, mask, kernel, dilation, scale, center, sample):
    """DCNv3 in loops: image (N, H, W, C), the result (N, Ho, Wo, C)."""
    group_channels = image.shape[3] // GROUPS
    taps = dcnv3_taps(kernel, center)
    output = np.zeros((N, HO, WO, image.shape[3]))
    for n, i, j, g in np.ndindex(N, HO, WO, GROUPS):
        channels = slice(g * group_channels, (g + 1) * group_channels)
        for index, a, b in taps:
            number = g * len(taps) + index
            x, y = offset[n, i, j, 2 * number : 2 * number + 2]
            y = dcnv3_axis(i, a, y, 0, kernel, dilation, scale)
            x = dcnv3_axis(j, b, x, 1, kernel, dilation, scale)
            output[n, i, j, channels] += mask[n, i, j, number] * sample(image[n], y, x)[channels]
    return output


def bilinear(image, y, x):
    """The sum over all pixels with the hat function of the papers' equation 3."""
    rows = np.maximum(0, 1 - np.abs(y - np.arange(image.shape[0])))
    columns = np.maximum(0, 1 - np.abs(x - np.arange(image.shape[1])))
    return np.einsum("h,w,hwc->c", rows, columns, image)


@pytest.mark.parametrize("kernel, dilation, scale, center", GEOMETRIES)
def test_deform_conv2d_computes_dcnv3(rng, kernel, dilation, scale, center):
    size = [
        (out - 1) * STRIDE[axis] + dilation[axis] * (kernel[axis] - 1) + 1 - 2 * PADDING[axis]
        for axis, out in enumerate((HO, WO))
    ]
    channels = 3 * GROUPS
    image = rng.standard_normal((N, *size, channels))
    offset = dcnv3_offset(rng, kernel, center)
    mask = rng.uniform(size=(N, HO, WO, offset.shape[3] // 2))
    shared = dict(kernel_size=kernel, remove_center=center, layout="NHWC")
    ours = cudeform.deform_conv2d(
        image,
        cudeform.convert_offset(
            offset, "dcnv3", "torchvision", dilation=dilation, offset_scale=scale, **shared
        ),
        np.ones((channels, 1, *kernel)),
        stride=STRIDE,
        padding=PADDING,
        dilation=dilation,
        mask=cudeform.convert_mask(mask, "dcnv3", "torchvision", **shared),
        layout="NHWC",
    )
    theirs = dcnv3_forward(image, offset, mask, kernel, dilation, scale, center, bilinear)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", [(3, 3), (2, 3), (1, 1)])
def test_chainer_planes(rng, kernel):
    taps = kernel[0] * kernel[1]
    theirs = rng.standard_normal((N, 2 * taps, HO, WO))
    ours = cudeform.convert_offset(theirs, "chainer", "torchvision", kernel_size=kernel)
    for tap in range(taps):
        np.testing.assert_array_equal(ours[:, 2 * tap], theirs[:, taps + tap])  # y
        np.testing.assert_array_equal(ours[:, 2 * tap + 1], theirs[:, tap])  # x
    back = cudeform.convert_offset(ours, "torchvision", "chainer", kernel_size=kernel)
    np.testing.assert_array_equal(back, theirs)


def test_every_pair_of_libraries_agrees(rng):
    libraries = ("torchvision", "chainer", "dcnv3")
    options = dict(kernel_size=(3, 5), dilation=(2, 1), offset_scale=1.5)
    start = {"torchvision": rng.standard_normal((N, 30, HO, WO))}
    for name in libraries[1:]:
        start[name] = cudeform.convert_offset(start["torchvision"], "torchvision", name, **options)
    for source, target in itertools.product(libraries, repeat=2):
        got = cudeform.convert_offset(start[source], source, target, **options)
        assert got.flags.c_contiguous
        np.testing.assert_allclose(got, start[target], rtol=0, atol=1e-13)


@pytest.mark.parametrize("groups, points", [(1, 9), (4, 9), (4, 8), (3, 5), (2, 1)])
def test_dcnv4_packing(rng, groups, points):
    offset = rng.standard_normal((N, HO, WO, 2 * groups * points))
    mask = rng.uniform(size=(N, HO, WO, groups * points))
    packed = cudeform.pack_dcnv4(offset, mask, groups)
    used = 3 * groups * points
    assert packed.shape[3] % 8 == 0 and 0 <= packed.shape[3] - used < 8
    assert not packed[..., used:].any()
    for g, p in np.ndindex(groups, points):
        first = 3 * g * points
        for part in (0, 1):
            want = offset[..., 2 * (g * points + p) + part]
            np.testing.assert_array_equal(packed[..., first + 2 * p + part], want)
        want = mask[..., g * points + p]
        np.testing.assert_array_equal(packed[..., first + 2 * points + p], want)
    got_offset, got_mask = cudeform.unpack_dcnv4(packed, groups, points)
    np.testing.assert_array_equal(got_offset, offset)
    np.testing.assert_array_equal(got_mask, mask)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_any_array_of_a_known_dtype(rng, dtype):
    dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), dtype, dtype))
    offset = rng.standard_normal((N, HO, WO, 36)).astype(dtype)[:, ::-1]
    offset.flags.writeable = False
    shared = dict(kernel_size=3, dilation=2, offset_scale=1.75)
    got = cudeform.convert_offset(offset, "dcnv3", "torchvision", **shared)
    exact = cudeform.convert_offset(
        offset.astype(np.float64), "dcnv3", "torchvision", **shared
    ).astype(dtype)
    assert got.dtype == dtype
    # 16-bit offsets times 1.75 are exact in float32: one rounding, at the end.
    tolerance = 1e-6 if dtype == np.float32 else 0
    error = np.abs(got.astype(np.float64) - exact.astype(np.float64))
    assert error.max() <= tolerance
    empty = cudeform.convert_offset(offset[:0], "dcnv3", "torchvision", **shared)
    assert empty.shape == (0, 36, HO, WO)


def test_cupy_arrays_stay_cupy_arrays(rng):
    backends.require(backends.BACKENDS["cuda"])
    import cupy

    offset = rng.standard_normal((N, HO, WO, 32))
    mask = rng.uniform(size=(N, HO, WO, 16))
    options = dict(kernel_size=3, remove_center=True)
    calls = [
        lambda a: cudeform.convert_offset(
            a(offset), "dcnv3", "torchvision", offset_scale=2.0, **options
        ),
        lambda a: cudeform.convert_mask(a(mask), "dcnv3", "torchvision", **options),
        lambda a: cudeform.pack_dcnv4(a(offset), a(mask), 2),
        lambda a: cudeform.unpack_dcnv4(a(np.ones((2, 48))), 2, 8)[1],
    ]
    for call in calls:
        got = call(cupy.asarray)
        assert isinstance(got, cupy.ndarray)
        np.testing.assert_allclose(cupy.asnumpy(got), call(np.asarray), rtol=1e-12)


OFFSET = np.zeros((2, 18, 3, 4))
ERRORS = {
    "unknown library": (
        lambda: cudeform.convert_offset(OFFSET, "pytorch", "chainer", kernel_size=3),
        ValueError,
        "convert_offset: expected `source` to be one of 'torchvision', 'chainer', 'dcnv3', "
        "got 'pytorch'",
    ),
    "channels": (
        lambda: cudeform.convert_offset(OFFSET, "torchvision", "dcnv3", kernel_size=5),
        ValueError,
        "expected `offset` with channels a multiple of 50 in the layout "
        r"\(N, 2\*groups\*kh\*kw, Ho, Wo\) of 'torchvision', got \(2, 18, 3, 4\)",
    ),
    "chainer has one group": (
        lambda: cudeform.convert_offset(
            np.zeros((2, 36, 3, 4)), "torchvision", "chainer", kernel_size=3
        ),
        ValueError,
        "expected `offset` with one offset group, which is all that 'chainer' has, got 2",
    ),
    "even centre": (
        lambda: cudeform.convert_offset(
            OFFSET, "torchvision", "dcnv3", kernel_size=(3, 2), remove_center=True
        ),
        ValueError,
        r"expected `kernel_size` to be odd with remove_center, got \(3, 2\)",
    ),
    "scale": (
        lambda: cudeform.convert_offset(
            OFFSET, "torchvision", "dcnv3", kernel_size=3, offset_scale=float("nan")
        ),
        ValueError,
        "expected `offset_scale` to be finite, got nan",
    ),
    "a list": (
        lambda: cudeform.convert_offset([[0.0]], "torchvision", "dcnv3", kernel_size=3),
        TypeError,
        "expected `offset` to be a NumPy or CuPy array, got .*list",
    ),
    "chainer has no mask": (
        lambda: cudeform.convert_mask(OFFSET, "chainer", "dcnv3", kernel_size=3),
        ValueError,
        "convert_mask: expected `source` to be one of 'torchvision', 'dcnv3', got 'chainer'",
    ),
    "packed channels": (
        lambda: cudeform.unpack_dcnv4(np.zeros((2, 27)), 1, 9),
        ValueError,
        r"expected `offset_mask` of shape \(..., 32\) = .*, got \(2, 27\)",
    ),
    "groups": (
        lambda: cudeform.pack_dcnv4(np.zeros((2, 18)), np.zeros((2, 9)), 2.0),
        TypeError,
        "pack_dcnv4: expected `groups` to be an integer, got 2.0",
    ),
    "offset and mask": (
        lambda: cudeform.pack_dcnv4(np.zeros((2, 16)), np.zeros((2, 9)), 1),
        ValueError,
        r"expected `offset` of shape \(2, 18\) = \(..., 2\*groups\*points\), got \(2, 16\)",
    ),
}


@pytest.mark.parametrize("call, error, message", ERRORS.values(), ids=ERRORS)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
