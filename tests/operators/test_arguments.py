"""Bad arguments: an error in the house's wording, before any work."""

# ruff: noqa: E501 -- one mistake, one row, with all of its message

import re

import numpy as np
import pytest

import cudeform
from cudeform import arrays

N, C, OUT, HEIGHT, WIDTH = 2, 6, 4, 7, 6
TAPS = 9


def good():
    """Arguments of deform_conv2d with padding 1 that are right in every way."""
    return {
        "input": np.ones((N, C, HEIGHT, WIDTH), np.float32),
        "offset": np.zeros((N, 2 * 2 * TAPS, HEIGHT, WIDTH), np.float32),
        "weight": np.ones((OUT, C // 2, 3, 3), np.float32),
        "bias": np.ones(OUT, np.float32),
        "mask": np.ones((N, 2 * TAPS, HEIGHT, WIDTH), np.float32),
        "padding": 1,
    }


def good_backward():
    arguments = good()
    del arguments["bias"]
    return {"grad_output": np.ones((N, OUT, HEIGHT, WIDTH), np.float32), **arguments}


def plain(arguments):
    """The same for conv2d."""
    return {k: v for k, v in arguments.items() if k not in ("offset", "mask")}


def sampled():
    """Arguments of bilinear_sample that are right in every way."""
    return {
        "input": np.ones((N, C, HEIGHT, WIDTH), np.float32),
        "points": np.zeros((N, 5, 2), np.float32),
    }


def sampled_backward():
    return {"grad_output": np.ones((N, C, 5), np.float32), **sampled()}


CALLS = {
    "deform_conv2d": good,
    "deform_conv2d_backward": good_backward,
    "conv2d": lambda: plain(good()),
    "conv2d_backward": lambda: plain(good_backward()),
    "bilinear_sample": sampled,
    "bilinear_sample_backward": sampled_backward,
}


@pytest.fixture
def rejected(rejecting):
    return rejecting(CALLS)


def test_the_good_arguments_are_good():
    for name, arguments in CALLS.items():
        getattr(cudeform, name)(**arguments())


def f32(*shape):
    return np.ones(shape, np.float32)


# operator, what is wrong, error, the message after "<operator>: expected "
WRONG_SHAPE = [
    # rank
    ("deform_conv2d", {"input": f32(C, 7, 6)}, "`input` to have 4 axes (N, C, H, W), got shape (6, 7, 6)"),
    ("deform_conv2d", {"input": f32(C, 7, 6), "layout": "NHWC"}, "`input` to have 4 axes (N, H, W, C), got shape (6, 7, 6)"),
    ("deform_conv2d", {"weight": f32(4, 3, 9)}, "`weight` to have 4 axes (O, C/groups, kh, kw), got shape (4, 3, 9)"),
    ("deform_conv2d", {"offset": f32(36, 7, 6)}, "`offset` to have 4 axes (N, 2*offset_groups*kh*kw, Ho, Wo), got shape (36, 7, 6)"),
    ("deform_conv2d", {"mask": f32(18, 7, 6)}, "`mask` to have 4 axes (N, offset_groups*kh*kw, Ho, Wo), got shape (18, 7, 6)"),
    ("deform_conv2d", {"bias": f32(4, 1)}, "`bias` of shape (4,) = (O,), got (4, 1)"),
    ("deform_conv2d", {"bias": f32()}, "`bias` of shape (4,) = (O,), got ()"),
    ("deform_conv2d_backward", {"grad_output": f32(4, 7, 6)}, "`grad_output` of shape (2, 4, 7, 6) = (N, O, Ho, Wo), got (4, 7, 6)"),
    ("conv2d", {"input": f32()}, "`input` to have 4 axes (N, C, H, W), got shape ()"),
    ("bilinear_sample", {"input": f32(7, 6)}, "`input` to have 4 axes (N, C, H, W), got shape (7, 6)"),
    ("bilinear_sample", {"points": f32(2)}, "`points` of shape (2, ..., 2) = (N, ..., (y, x)), got (2,)"),
    # shape
    ("deform_conv2d", {"offset": f32(2, 36, 6, 6)}, "`offset` of shape (2, 36, 7, 6) = (N, 2*offset_groups*kh*kw, Ho, Wo), got (2, 36, 6, 6)"),
    ("deform_conv2d", {"offset": f32(3, 36, 7, 6)}, "`offset` of shape (2, 36, 7, 6) = (N, 2*offset_groups*kh*kw, Ho, Wo), got (3, 36, 7, 6)"),
    ("deform_conv2d", {"mask": f32(2, 9, 7, 6)}, "`mask` of shape (2, 18, 7, 6) = (N, offset_groups*kh*kw, Ho, Wo), got (2, 9, 7, 6)"),
    ("deform_conv2d", {"bias": f32(3)}, "`bias` of shape (4,) = (O,), got (3,)"),
    ("deform_conv2d_backward", {"grad_output": f32(2, 4, 7, 7)}, "`grad_output` of shape (2, 4, 7, 6) = (N, O, Ho, Wo), got (2, 4, 7, 7)"),
    ("conv2d_backward", {"grad_output": f32(2, 5, 7, 6)}, "`grad_output` of shape (2, 4, 7, 6) = (N, O, Ho, Wo), got (2, 5, 7, 6)"),
    ("bilinear_sample", {"points": f32(2, 5, 3)}, "`points` of shape (2, ..., 2) = (N, ..., (y, x)), got (2, 5, 3)"),
    ("bilinear_sample", {"points": f32(3, 5, 2)}, "`points` of shape (2, ..., 2) = (N, ..., (y, x)), got (3, 5, 2)"),
    ("bilinear_sample_backward", {"grad_output": f32(2, 5, 6)}, "`grad_output` of shape (2, 6, 5) = (N, C, ...), got (2, 5, 6)"),
    # group counts that do not divide
    ("deform_conv2d", {"weight": f32(4, 4, 3, 3)}, "`weight` with a second axis that divides the 6 channels of `input`, got (4, 4, 3, 3) (weight is (O, C/groups, kh, kw))"),
    ("deform_conv2d", {"weight": f32(4, 12, 3, 3)}, "`weight` with a second axis that divides the 6 channels of `input`, got (4, 12, 3, 3)"),
    ("conv2d", {"weight": f32(4, 2, 3, 3)}, "`weight` with a first axis divisible by 3 = groups = C / weight.shape[1], got (4, 2, 3, 3)"),
    ("deform_conv2d", {"offset": f32(2, 20, 7, 6)}, "`offset` with channels a multiple of 18 = 2*kh*kw, got (2, 20, 7, 6)"),
    ("deform_conv2d", {"offset": f32(2, 0, 7, 6)}, "`offset` with channels a multiple of 18 = 2*kh*kw, got (2, 0, 7, 6)"),
    ("deform_conv2d", {"offset": f32(2, 72, 7, 6)}, "`offset` with offset_groups that divide the 6 channels of `input`, got 4 from shape (2, 72, 7, 6)"),
    # nothing where something must be
    ("deform_conv2d", {"input": f32(2, 6, 0, 6)}, "`input` to be non-empty (N, C, H, W), got shape (2, 6, 0, 6)"),
    ("deform_conv2d", {"input": f32(2, 0, 7, 6)}, "`input` to be non-empty (N, C, H, W), got shape (2, 0, 7, 6)"),
    ("conv2d", {"weight": f32(4, 3, 0, 3)}, "`weight` to be non-empty (O, C/groups, kh, kw), got shape (4, 3, 0, 3)"),
    ("conv2d", {"weight": f32(0, 3, 3, 3)}, "`weight` to be non-empty (O, C/groups, kh, kw), got shape (0, 3, 3, 3)"),
    ("bilinear_sample", {"input": f32(2, 6, 7, 0)}, "`input` to be non-empty (N, C, H, W), got shape (2, 6, 7, 0)"),
    # kernel larger than the padded input
    ("conv2d", {"dilation": (1, 4)}, "`weight` to have a kernel that fits the padded input, 8 pixels along x, got 9 pixels (dilation*(k - 1) + 1 with k = 3, dilation = 4)"),
    ("deform_conv2d", {"weight": f32(4, 3, 10, 3)}, "`weight` to have a kernel that fits the padded input, 9 pixels along y, got 10 pixels (dilation*(k - 1) + 1 with k = 10, dilation = 1)"),
]  # fmt: skip
WRONG_OPTION = [
    ("deform_conv2d", {"stride": 0}, ValueError, "`stride` to be at least 1, got 0"),
    ("deform_conv2d", {"stride": (1, -2)}, ValueError, "`stride` to be at least 1, got -2"),
    ("conv2d", {"dilation": 0}, ValueError, "`dilation` to be at least 1, got 0"),
    ("conv2d", {"padding": -1}, ValueError, "`padding` to be at least 0, got -1"),
    ("conv2d", {"padding": ((0, 0), (0, -3))}, ValueError, "`padding` to be at least 0, got -3"),
    ("conv2d", {"padding": ((0, 0),)}, ValueError, "`padding` to be ((top, bottom), (left, right)), got ((0, 0),)"),
    ("conv2d", {"padding": ((1, 1, 1), (0, 0))}, ValueError, "`padding` to be an integer or a pair of integers, got (1, 1, 1)"),
    ("conv2d", {"padding": (1, 1, 1, 1)}, ValueError, "`padding` to be an integer or a pair of integers, got (1, 1, 1, 1)"),
    ("conv2d", {"padding": "same"}, TypeError, "`padding` to be an integer or a pair of integers, got 'same'"),
    ("deform_conv2d", {"stride": 1.0}, TypeError, "`stride` to be an integer or a pair of integers, got 1.0"),
    ("deform_conv2d", {"stride": None}, TypeError, "`stride` to be an integer or a pair of integers, got None"),
    ("deform_conv2d", {"stride": (1, 1, 1)}, ValueError, "`stride` to be an integer or a pair of integers, got (1, 1, 1)"),
    ("deform_conv2d", {"dilation": (1, 2.5)}, TypeError, "`dilation` to be an integer or a pair of integers, got 2.5"),
    ("deform_conv2d", {"border": "reflect"}, ValueError, "`border` to be one of 'zeros', 'clamp', got 'reflect'"),
    ("deform_conv2d", {"border": None}, ValueError, "`border` to be one of 'zeros', 'clamp', got None"),
    ("deform_conv2d", {"layout": "CHW"}, ValueError, "`layout` to be one of 'NCHW', 'NHWC', got 'CHW'"),
    ("deform_conv2d", {"precision": "fast"}, ValueError, "`precision` to be one of 'ieee', 'tf32', got 'fast'"),
    ("conv2d", {"layout": 1}, ValueError, "`layout` to be one of 'NCHW', 'NHWC', got 1"),
    ("bilinear_sample", {"border": "zero"}, ValueError, "`border` to be one of 'zeros', 'clamp', got 'zero'"),
    ("bilinear_sample", {"layout": ["NCHW"]}, ValueError, "`layout` to be one of 'NCHW', 'NHWC', got ['NCHW']"),
    ("deform_conv2d_backward", {"needs": ("inputs",)}, ValueError, "`needs` to be None or some of 'input', 'offset', 'weight', 'bias', 'mask', got ('inputs',)"),
    ("deform_conv2d_backward", {"needs": "input"}, TypeError, "`needs` to be None or some of 'input', 'offset', 'weight', 'bias', 'mask', got 'input'"),
    ("deform_conv2d_backward", {"needs": True}, TypeError, "`needs` to be None or some of 'input', 'offset', 'weight', 'bias', 'mask', got True"),
    ("deform_conv2d_backward", {"mask": None, "needs": ["mask"]}, ValueError, "`needs` without 'mask', got ('mask',) (no `mask` was given)"),
    ("conv2d_backward", {"needs": ("offset",)}, ValueError, "`needs` to be None or some of 'input', 'weight', 'bias', got ('offset',)"),
    ("bilinear_sample_backward", {"needs": (0,)}, ValueError, "`needs` to be None or some of 'input', 'points', got (0,)"),
]  # fmt: skip


def ids(rows):
    return [f"{row[0]}-{'-'.join(row[1])}-{number}" for number, row in enumerate(rows)]


@pytest.mark.parametrize(("name", "bad", "wording"), WRONG_SHAPE, ids=ids(WRONG_SHAPE))
def test_wrong_shape(rejected, name, bad, wording):
    assert rejected(name, ValueError, **bad).startswith(f"{name}: expected {wording}")


@pytest.mark.parametrize(("name", "bad", "error", "wording"), WRONG_OPTION, ids=ids(WRONG_OPTION))
def test_wrong_option(rejected, name, bad, error, wording):
    assert rejected(name, error, **bad).startswith(f"{name}: expected {wording}")


def array_arguments(optional=True):
    """(operator, argument) for each array argument of every public function."""
    may_be_none = {"bias", "mask"}
    return [
        (name, argument)
        for name, arguments in CALLS.items()
        for argument, value in arguments().items()
        if isinstance(value, np.ndarray) and (optional or argument not in may_be_none)
    ]


NOT_AN_ARRAY = {
    "list": (lambda array: array.tolist(), "list"),
    "scalar": (lambda array: 1.0, "float"),
    "NumPy scalar": (lambda array: np.float32(1), "numpy.float32"),
    "memoryview": (lambda array: memoryview(array), "memoryview"),
}


@pytest.mark.parametrize("kind", NOT_AN_ARRAY)
@pytest.mark.parametrize(("name", "argument"), array_arguments())
def test_not_an_array(rejected, name, argument, kind):
    convert, got = NOT_AN_ARRAY[kind]
    message = rejected(name, TypeError, **{argument: convert(CALLS[name]()[argument])})
    assert message == f"{name}: expected `{argument}` to be a NumPy or CuPy array, got {got}"


@pytest.mark.parametrize(("name", "argument"), array_arguments(optional=False))
def test_none_where_an_array_is_needed(rejected, name, argument):
    message = rejected(name, TypeError, **{argument: None})
    assert message == f"{name}: expected `{argument}` to be a NumPy or CuPy array, got None"


DTYPES_WORDING = "of dtype float16, bfloat16, float32, float64, got "


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "complex64", "object", ">f4", "U3"])
@pytest.mark.parametrize(("name", "argument"), array_arguments())
def test_unsupported_dtype(rejected, name, argument, dtype):
    array = CALLS[name]()[argument].astype(dtype)
    message = rejected(name, TypeError, **{argument: array})
    assert message == f"{name}: expected `{argument}` {DTYPES_WORDING}{array.dtype!r}"


@pytest.mark.parametrize(("name", "argument"), array_arguments())
def test_mixed_dtypes(rejected, name, argument):
    """The message names the first argument of the call and the first that differs from it."""
    arguments = CALLS[name]()
    message = rejected(name, TypeError, **{argument: arguments[argument].astype(np.float64)})
    names = [k for k, v in arguments.items() if isinstance(v, np.ndarray)]
    if argument == names[0]:
        wording = f"`{names[1]}` of dtype float64 like `{names[0]}`, got float32"
    else:
        wording = f"`{argument}` of dtype float32 like `{names[0]}`, got float64"
    assert message == f"{name}: expected {wording}"


class Elsewhere(np.ndarray):
    """Arrays of another framework, on the device that their attribute says."""

    place = "far:0"


@pytest.fixture
def elsewhere():
    """Make an array of another framework, on a device."""
    arrays.register(Elsewhere, arrays.Kind("strange", "cuda", lambda array: array.place))

    def make(array, place="far:0"):
        array = array.view(Elsewhere)
        array.place = place
        return array

    yield make
    arrays.register(Elsewhere, None)


@pytest.mark.parametrize(("name", "argument"), array_arguments())
def test_mixed_frameworks(rejected, elsewhere, name, argument):
    arguments = CALLS[name]()
    message = rejected(name, TypeError, **{argument: elsewhere(arguments[argument])})
    first, second = [k for k, v in arguments.items() if isinstance(v, np.ndarray)][:2]
    if argument == first:
        wording = f"`{second}` to be a strange array like `{first}`, got numpy"
    else:
        wording = f"`{argument}` to be a numpy array like `{first}`, got strange"
    why = "(all arrays of one call belong to one framework)"
    assert message == f"{name}: expected {wording} {why}"


@pytest.mark.parametrize("name", CALLS)
def test_mixed_devices(rejected, elsewhere, name):
    arguments = CALLS[name]()
    names = [k for k, v in arguments.items() if isinstance(v, np.ndarray)]
    there = {k: elsewhere(arguments[k], "far:0") for k in names}
    for argument in names[1:]:
        moved = {**there, argument: elsewhere(arguments[argument], "far:1")}
        message = rejected(name, TypeError, **moved)
        assert message == f"{name}: expected `{argument}` on far:0 like `{names[0]}`, got far:1"


@pytest.mark.parametrize("name", CALLS)
def test_unknown_keyword(name):
    with pytest.raises(TypeError, match=re.escape("unexpected keyword argument 'pad'")):
        getattr(cudeform, name)(**CALLS[name](), pad=1)


@pytest.mark.parametrize("name", ["deform_conv2d", "deform_conv2d_backward"])
def test_layout_changes_the_axes_in_the_message(rejected, name):
    last = {
        k: np.ascontiguousarray(np.moveaxis(v, 1, -1))
        for k, v in CALLS[name]().items()
        if isinstance(v, np.ndarray) and k not in ("weight", "bias")
    }
    last["offset"] = f32(2, 7, 6, 35)
    message = rejected(name, ValueError, layout="NHWC", **last)
    assert message.startswith(
        f"{name}: expected `offset` with channels a multiple of 18 = 2*kh*kw, got (2, 7, 6, 35)"
    )
    last["offset"] = f32(2, 6, 7, 36)
    message = rejected(name, ValueError, layout="NHWC", **last)
    assert message == (
        f"{name}: expected `offset` of shape (2, 7, 6, 36) = (N, Ho, Wo, 2*offset_groups*kh*kw),"
        " got (2, 6, 7, 36)"
    )


@pytest.mark.parametrize("padding", [1, (1, 1), [1, 1], ((1, 1), (1, 1)), np.int64(1)], ids=repr)
def test_every_spelling_of_padding(padding):
    expected = cudeform.deform_conv2d(**good())
    np.testing.assert_array_equal(
        cudeform.deform_conv2d(**{**good(), "padding": padding}), expected
    )


def with_ints(stride=1, padding=1, dilation=1):
    arguments = {**plain(good()), "stride": stride, "padding": padding, "dilation": dilation}
    return cudeform.conv2d(**arguments)


@pytest.mark.parametrize(
    "option, right, wrong",
    [
        ("stride", 1, 1.0),
        ("stride", (1, 1), (1.0, 1.0)),
        ("stride", (1, 1), ((1, 1), (1, 1))),
        ("padding", ((1, 1), (1, 1)), ((1, 1), (1.0, 1))),
        ("dilation", 1, np.array([1])),
    ],
)
def test_a_good_call_does_not_excuse_a_bad_one(option, right, wrong):
    with_ints(**{option: right})
    with pytest.raises(TypeError, match=f"^conv2d: expected `{option}` to be an integer"):
        with_ints(**{option: wrong})


def test_a_bad_call_is_bad_again():
    for _ in range(2):
        with pytest.raises(ValueError, match="to be at least 1, got 0") as caught:
            with_ints(stride=0)
        assert caught.value.__context__ is None  # nothing of how calls are remembered


def test_no_call_is_taken_for_another():
    for one, two in [(np.int64(1), np.int64(2)), (np.int8(1), 2), (1, 2), ([1], [2])]:
        strides = [one * 2, two * 2] if isinstance(one, list) else [one, two]
        assert [with_ints(stride=s).shape[2] for s in strides] == [7, 4], strides
    assert cudeform.conv2d(np.ones((1, 2, 4, 5)), np.ones((1, 2, 1, 1))).shape == (1, 1, 4, 5)
    assert cudeform.conv2d(np.ones((1, 2, 5, 4)), np.ones((1, 2, 1, 1))).shape == (1, 1, 5, 4)
