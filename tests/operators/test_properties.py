"""What must hold for any shape and any option, on examples that hypothesis draws.

Hypothesis draws the shapes, options and a seed; NumPy fills the arrays, a share of the offsets
with the awkward ones: integers, halves, the image's borders.
"""

import functools

import numpy as np
from cases import Problem, operator
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close

import cudeform
from cudeform.cases import Case

EXAMPLES = {"cpu": 60, "emulator": 6, "cuda": 60}


def on_examples(test):
    """Run a test(backend, data) on as many draws as its backend has time for."""

    @functools.wraps(test)
    def repeated(backend):
        @settings(max_examples=EXAMPLES[backend.name])
        @given(st.data())
        def draw(data):
            test(backend, data)

        draw()

    del repeated.__wrapped__  # pytest reads the signature: a backend and no data
    return repeated


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
pads = st.tuples(st.integers(0, 3), st.integers(0, 3))


def awkward_offsets(rng, shape, size):
    """Gaussian offsets, some of them replaced by integers, halves, and far away."""
    offset = 2 * rng.standard_normal(shape)
    kind = rng.integers(0, 6, shape)
    offset = np.where(kind == 0, np.round(offset), offset)
    offset = np.where(kind == 1, np.round(2 * offset) / 2, offset)
    return np.where(kind == 2, rng.choice([-1, size, size - 1, 2 * size], shape), offset)


@st.composite
def convolutions(draw, mask=None, border=None):
    """A case of deform_conv2d in float64."""
    kernel, stride, dilation = draw(pairs), draw(pairs), draw(pairs)
    padding = draw(pads), draw(pads)
    extent = [dilation[k] * (kernel[k] - 1) + 1 for k in (0, 1)]
    smallest = [max(1, extent[k] - sum(padding[k])) for k in (0, 1)]
    size = [draw(st.integers(smallest[k], smallest[k] + 6)) for k in (0, 1)]
    out = [(size[k] + sum(padding[k]) - extent[k]) // stride[k] + 1 for k in (0, 1)]
    groups, offset_groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    channels = np.lcm(groups, offset_groups) * draw(st.integers(1, 3))
    n, o = draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    taps = offset_groups * kernel[0] * kernel[1]
    arrays = {
        "input": rng.standard_normal((n, channels, *size)),
        "offset": awkward_offsets(rng, (n, 2 * taps, *out), max(size)),
        "weight": rng.standard_normal((o, channels // groups, *kernel)),
    }
    if draw(st.booleans()):
        arrays["bias"] = rng.standard_normal(o)
    if draw(st.booleans()) if mask is None else mask:
        arrays["mask"] = rng.uniform(size=(n, taps, *out))
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    options["border"] = border or draw(st.sampled_from(["zeros", "clamp"]))
    options["layout"] = draw(st.sampled_from(["NCHW", "NHWC"]))
    if options["layout"] == "NHWC":
        for name in {"input", "offset", "mask"} & arrays.keys():
            arrays[name] = np.ascontiguousarray(np.moveaxis(arrays[name], 1, -1))
    return Case("drawn", arrays, options)


def deform_conv2d(backend, case, **replaced):
    """The public function on a case with some of its arrays replaced, None for left out."""
    arrays = {**case.arrays, **replaced}
    arrays = {name: backend.to_device(a) for name, a in arrays.items() if a is not None}
    return backend.to_host(cudeform.deform_conv2d(**arrays, **case.options))


def conv2d(backend, case, **options):
    """The public plain convolution on a case, without its offset and mask."""
    arrays = {name: case.arrays[name] for name in case.arrays if name not in ("offset", "mask")}
    arrays.update((name, options.pop(name)) for name in tuple(options) if name in arrays)
    arrays = {name: backend.to_device(array) for name, array in arrays.items()}
    options = {**case.options, **options}
    del options["border"]  # a plain convolution is padded with zeros
    return backend.to_host(cudeform.conv2d(**arrays, **options))


def check(name, case, backend):
    """Result and gradients against the reference."""
    asked = Problem(operator(name), case, "float64")
    assert_close(asked.forward(backend), asked.output, what="output")
    expected = asked.gradients
    for name, gradient in asked.backward(backend).items():
        if name in expected:
            assert_close(gradient, expected[name], what=f"gradient of {name}")


@on_examples
def test_any_convolution_equals_reference(backend, data):
    check("deform_conv2d", data.draw(convolutions()), backend)


@on_examples
def test_zero_offsets_make_a_plain_convolution(backend, data):
    """With either border: on integers there is nothing to interpolate with."""
    case = data.draw(convolutions(mask=False))
    zeros = np.zeros_like(case.arrays["offset"])
    assert_close(deform_conv2d(backend, case, offset=zeros), conv2d(backend, case))


@on_examples
def test_integer_offsets_make_a_shifted_plain_convolution(backend, data):
    """The same whole number of pixels for every tap moves the window over an image in zeros."""
    case = data.draw(convolutions(mask=False))
    step = data.draw(st.tuples(st.integers(-4, 4), st.integers(-4, 4)))
    last = case.options["layout"] == "NHWC"
    offset = np.empty_like(case.arrays["offset"])
    channels = np.moveaxis(offset, -1, 1) if last else offset
    channels[:, 0::2], channels[:, 1::2] = step

    margin = 8  # more than the largest step and the largest padding together
    image = case.arrays["input"]
    window = [slice(None)] * 4
    spread = [(0, 0)] * 4
    for k, axis in enumerate((1, 2) if last else (2, 3)):
        before, after = case.options["padding"][k]
        start = margin - before + step[k]
        window[axis] = slice(start, start + image.shape[axis] + before + after)
        spread[axis] = (margin, margin)
    moved = np.ascontiguousarray(np.pad(image, spread)[tuple(window)])
    plain = conv2d(backend, case, input=moved, padding=0)
    assert_close(deform_conv2d(backend, case, offset=offset), plain)


@on_examples
def test_output_is_linear_in_input_weight_and_mask(backend, data):
    argument = data.draw(st.sampled_from(["input", "weight", "mask"]))
    case = data.draw(convolutions(mask=True))
    case.arrays.pop("bias", None)
    first = case.arrays[argument]
    second = np.cos(first)
    expected = 2.5 * deform_conv2d(backend, case)
    expected -= 1.5 * deform_conv2d(backend, case, **{argument: second})
    mixed = deform_conv2d(backend, case, **{argument: 2.5 * first - 1.5 * second})
    assert_close(mixed, expected, tolerance=1e-12)


@on_examples
def test_mask_of_ones_is_no_mask(backend, data):
    case = data.draw(convolutions(mask=True))
    ones = np.ones_like(case.arrays["mask"])
    without = deform_conv2d(backend, case, mask=None)
    assert_close(deform_conv2d(backend, case, mask=ones), without)


@on_examples
def test_layouts_agree(backend, data):
    """The same numbers whichever axis the channels are on."""
    case = data.draw(convolutions())
    last = case.options["layout"] == "NHWC"
    source, target = (-1, 1) if last else (1, -1)
    moved = {
        name: np.ascontiguousarray(np.moveaxis(array, source, target)) if array.ndim == 4 else array
        for name, array in case.arrays.items()
        if name != "weight"
    }
    other = Case(
        case.name,
        {**case.arrays, **moved},
        {**case.options, "layout": "NCHW" if last else "NHWC"},
    )
    expected = np.moveaxis(deform_conv2d(backend, case), source, target)
    assert_close(deform_conv2d(backend, other), expected)


@st.composite
def samplings(draw):
    """A case of bilinear_sample in float64."""
    n, c = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    size = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    grid = draw(st.lists(st.integers(1, 5), max_size=3))
    layout = draw(st.sampled_from(["NCHW", "NHWC"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    image = (n, *size, c) if layout == "NHWC" else (n, c, *size)
    arrays = {
        "input": rng.standard_normal(image),
        "points": max(size) / 2 + awkward_offsets(rng, (n, *grid, 2), max(size)),
    }
    border = draw(st.sampled_from(["zeros", "clamp"]))
    return Case("drawn", arrays, {"border": border, "layout": layout})


@on_examples
def test_any_sampling_equals_reference(backend, data):
    check("bilinear_sample", data.draw(samplings()), backend)
