"""DCNv3 and DCNv4, beyond what the registry's cases ask."""

import numpy as np
import pytest
from cases import Problem, dtype_of, operator
from tolerances import assert_close

import cudeform
from cudeform import threads
from cudeform.cases import Case


def arguments(rng, n=2, size=(6, 7), out=(6, 7), groups=2, channels=5, points=9, spread=1.5):
    return {
        "input": rng.standard_normal((n, *size, groups * channels)),
        "offset": spread * rng.standard_normal((n, *out, 2 * groups * points)),
        "mask": rng.uniform(-1, 1, (n, *out, groups * points)),
    }


def compare(backend, arrays, dtype="float64", name="dcnv3", **options):
    """Forward and all gradients with the reference's."""
    asked = Problem(operator(name), Case("", arrays, options), dtype)
    assert_close(asked.forward(backend), asked.output)
    for argument, gradient in asked.backward(backend).items():
        assert_close(gradient, asked.gradients[argument], what=argument)


# -- as a depthwise deformable convolution -----------------------------------------------------

LAYERS = {
    "square": dict(kernel_size=3, padding=1),
    "uneven": dict(kernel_size=(2, 3), stride=(2, 1), padding=(1, 3), dilation=(3, 2)),
    "scaled": dict(kernel_size=(3, 5), padding=(0, 2), stride=(1, 2), offset_scale=0.75),
    "without a center": dict(kernel_size=3, padding=1, remove_center=True, offset_scale=2.0),
    "even": dict(kernel_size=(4, 1), padding=(3, 0), dilation=(2, 1), offset_scale=1.5),
}


def out_of(size, options):
    pairs = {
        name: value if isinstance(value, tuple) else (value, value)
        for name, value in {**dict(stride=1, padding=0, dilation=1), **options}.items()
    }
    extent = [d * (k - 1) for d, k in zip(pairs["dilation"], pairs["kernel_size"], strict=True)]
    return [
        (size[i] + 2 * pairs["padding"][i] - extent[i] - 1) // pairs["stride"][i] + 1
        for i in (0, 1)
    ]


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_it_is_a_depthwise_deformable_convolution(options, rng):
    """Forward and gradients, in float64, by other kernels and the converters."""
    kernel = options["kernel_size"]
    kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    removed, scale = options.get("remove_center", False), options.get("offset_scale", 1.0)
    points = kernel[0] * kernel[1] - removed
    arrays = arguments(rng, size=(7, 9), out=out_of((7, 9), options), points=points)
    found = cudeform.dcnv3(**arrays, groups=2, **options)

    layout = dict(kernel_size=kernel, layout="NHWC", remove_center=removed)
    there = dict(source="dcnv3", target="torchvision", **layout)
    back = dict(source="torchvision", target="dcnv3", **layout)
    geometry = {k: options[k] for k in ("stride", "padding", "dilation") if k in options}
    dilation = options.get("dilation", 1)
    shift = dict(offset_scale=scale, dilation=dilation)
    layer = dict(
        input=arrays["input"],
        offset=cudeform.convert_offset(arrays["offset"], **there, **shift),
        weight=np.ones((10, 1, *kernel)),
        mask=cudeform.convert_mask(arrays["mask"], **there),
    )
    expected = cudeform.deform_conv2d(**layer, **geometry, layout="NHWC")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)

    grad_output = rng.standard_normal(found.shape)
    grads = cudeform.dcnv3_backward(grad_output, **arrays, groups=2, **options)
    wanted = cudeform.deform_conv2d_backward(grad_output, **layer, **geometry, layout="NHWC")
    of_offset = scale * cudeform.convert_offset(wanted.offset, **back)
    np.testing.assert_allclose(grads.input, wanted.input, rtol=0, atol=1e-10)
    np.testing.assert_allclose(grads.offset, of_offset, rtol=0, atol=1e-10)
    of_mask = cudeform.convert_mask(wanted.mask, **back)
    np.testing.assert_allclose(grads.mask, of_mask, rtol=0, atol=1e-10)


# -- softmax and packing ------------------------------------------------------------------------


def test_a_softmax_inside_is_one_outside(rng):
    arrays = arguments(rng)
    powers = np.exp(arrays["mask"].reshape(2, 6, 7, 2, 9))
    shares = (powers / powers.sum(-1, keepdims=True)).reshape(arrays["mask"].shape)
    options = dict(kernel_size=3, padding=1, groups=2)
    found = cudeform.dcnv3(**arrays, **options, softmax=True)
    expected = cudeform.dcnv3(**{**arrays, "mask": shares}, **options)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    shifted = {**arrays, "mask": arrays["mask"] + 700.0}
    np.testing.assert_allclose(
        cudeform.dcnv3(**shifted, **options, softmax=True), found, rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("removed", [False, True])
def test_a_packed_array_is_read_where_its_parts_are(backend, removed, rng):
    """Equal bytes; what is behind the last group is not looked at, and its gradient is 0."""
    arrays = arguments(rng, groups=3, channels=4, points=9 - removed)
    options = dict(kernel_size=3, padding=1, groups=3, offset_scale=0.5, remove_center=removed)
    grad_output = rng.standard_normal(arrays["input"].shape)
    packed = cudeform.pack_dcnv4(arrays["offset"], arrays["mask"], 3)
    used = 9 * (9 - removed)
    packed[..., used:] = np.nan

    def on_device(function, *given, **named):
        given = map(backend.to_device, given)
        return function(*given, **{k: backend.to_device(v) for k, v in named.items()}, **options)

    found = on_device(cudeform.dcnv4, input=arrays["input"], offset_mask=packed)
    expected = on_device(cudeform.dcnv3, **arrays)
    assert backend.to_host(found).tobytes() == backend.to_host(expected).tobytes()
    grads = on_device(cudeform.dcnv4_backward, grad_output, arrays["input"], packed)
    wanted = on_device(cudeform.dcnv3_backward, grad_output, **arrays)
    found = backend.to_host(grads.offset_mask)
    apart = cudeform.unpack_dcnv4(found, 3, 9 - removed)
    assert apart[0].tobytes() == backend.to_host(wanted.offset).tobytes()
    assert apart[1].tobytes() == backend.to_host(wanted.mask).tobytes()
    assert backend.to_host(grads.input).tobytes() == backend.to_host(wanted.input).tobytes()
    assert found.shape[-1] % 8 == 0 and (found[..., used:] == 0).all()


# -- shapes, and where points are --------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 8, 17, 32, 33])
def test_groups_of_any_width(backend, channels, rng):
    arrays = arguments(rng, n=1, size=(4, 5), out=(4, 5), groups=3, channels=channels)
    compare(backend, arrays, "float32", kernel_size=3, padding=1, groups=3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("channels", [6, 16])
def test_16_bits(backend, dtype, channels, rng):
    arrays = arguments(rng, channels=channels)
    compare(backend, arrays, dtype, kernel_size=3, padding=1, groups=2, softmax=True)


@pytest.mark.parametrize("name", ["dcnv3", "dcnv4"])
def test_points_that_are_nowhere_read_nothing(backend, name, rng):
    arrays = arguments(rng, n=1)
    nowhere = rng.choice([np.nan, np.inf, -np.inf, 1e30, -1e30], arrays["offset"].shape)
    arrays["offset"] = np.where(rng.random(nowhere.shape) < 0.2, nowhere, arrays["offset"])
    if name == "dcnv4":
        packed = cudeform.pack_dcnv4(arrays["offset"], arrays["mask"], 2)
        arrays = {"input": arrays["input"], "offset_mask": packed}
    compare(backend, arrays, "float32", name, kernel_size=3, padding=1, groups=2)


def test_no_bit_of_an_offset_is_lost_far_from_the_first_pixel():
    width = 2**24 + 8
    image = np.zeros((1, 1, width, 1), np.float32)
    image[0, 0, 2**24 + 1] = 8
    offset = np.zeros((1, 1, 2, 2), np.float32)
    offset[0, 0, 1, 0] = -0.25
    options = dict(kernel_size=1, stride=(1, 2**24 + 1))
    output = cudeform.dcnv3(image, offset, np.ones((1, 1, 2, 1), np.float32), **options)
    assert output.ravel().tolist() == [0, 6]


def test_bases_beyond_31_bits_are_outside():
    image, far = np.ones((1, 3, 3, 1)), 2**31 - 1
    offset, mask = np.zeros((1, 3, 1, 2)), np.ones((1, 3, 1, 1))
    options = dict(kernel_size=1, padding=(far, 0), stride=(far, 3))
    output = cudeform.dcnv3(image, offset, mask, **options)
    assert output.ravel().tolist() == [0, 1, 0]


def test_equal_bytes_for_every_number_of_threads(rng):
    arrays = {
        k: a.astype(np.float32)
        for k, a in arguments(rng, n=1, size=(31, 29), out=(31, 29), channels=9).items()
    }
    options = dict(kernel_size=3, padding=1, groups=2)
    grad_output = rng.standard_normal(arrays["input"].shape).astype(np.float32)
    before, found = threads.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            threads.set_num_threads(count)
            output = cudeform.dcnv3(**arrays, **options)
            grads = cudeform.dcnv3_backward(grad_output, **arrays, **options)
            found.append([array.tobytes() for array in (output, *grads)])
    finally:
        threads.set_num_threads(before)
    assert found[0] == found[1] == found[2]


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        (dict(groups=3), r"expected `groups` to divide the 10 channels of `input` \(N, H, W, G\*"),
        (dict(kernel_size=2), r"expected `offset` of shape \(2, 7, 8, 16\) = \(N, Ho, Wo, 2\*G\*P"),
        (dict(kernel_size=(3, 10)), r"expected `kernel_size` to be a kernel that fits the padded"),
        (dict(padding=-1), "expected `padding` to be at least 0, got -1"),
        (dict(padding=((1, 1), (1, 1))), "expected `padding` to be an integer or a pair"),
        (dict(offset_scale=0), "expected `offset_scale` to be above 0, got 0"),
        (dict(softmax=1), "expected `softmax` to be True or False, got 1"),
        (dict(remove_center=True), r"expected `offset` of shape \(2, 6, 7, 32\)"),
        (dict(kernel_size=(3, 2), remove_center=True), "expected `kernel_size` to be odd along b"),
        (dict(kernel_size=1, padding=0, remove_center=True), "and more than 1 x 1, got"),
        (dict(mask=np.zeros((2, 6, 7, 9))), r"expected `mask` of shape \(2, 6, 7, 18\) = \(N, Ho"),
        (dict(input=np.zeros((2, 10, 6))), r"expected `input` to have 4 axes \(N, H, W, G\*Cg\)"),
        (dict(input=np.zeros((2, 6, 0, 10))), "expected `input` to be non-empty"),
    ],
)
def test_what_does_not_fit_is_refused(replaced, message, rng):
    given = {**arguments(rng), **dict(kernel_size=3, padding=1, groups=2), **replaced}
    with pytest.raises((TypeError, ValueError), match=f"^dcnv3: .*{message}"):
        cudeform.dcnv3(**given)


def test_a_packed_array_of_another_length_is_refused(rng):
    image = rng.standard_normal((1, 3, 3, 4))
    with pytest.raises(
        ValueError, match=r"^dcnv4: expected `offset_mask` of shape \(1, 3, 3, 56\)"
    ):
        cudeform.dcnv4(image, np.zeros((1, 3, 3, 54)), 3, padding=1, groups=2)


def test_masks_of_dcnv3_may_be_finer_and_those_of_convolutions_not(rng):
    arrays = {k: a.astype(dtype_of("bfloat16")) for k, a in arguments(rng).items()}
    finer = {**arrays, "mask": arrays["mask"].astype(np.float32)}
    options = dict(kernel_size=3, padding=1, groups=2)
    found = cudeform.dcnv3(**finer, **options)
    assert found.tobytes() == cudeform.dcnv3(**arrays, **options).tobytes()
    with pytest.raises(TypeError, match="expected `mask` of dtype"):
        cudeform.dcnv3(**{**arrays, "mask": arrays["mask"].astype(np.float64)}, **options)
