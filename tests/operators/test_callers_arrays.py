"""The caller's arrays: what was checked is what is used, and results are plain."""

import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from cases import operator, problem
from good_calls import CALLS

import cudeform
from cudeform import arrays, dispatch
from cudeform.ops import call as calls
from cudeform.registry import OPERATORS

POOLINGS = [row for row in OPERATORS if any(a.name == "boxes" for a in row.arguments)]


def first_problem(row):
    return problem(row.name, next(iter(row.cases(np.random.default_rng(1)))).name, "float32")


@pytest.fixture
def writer(monkeypatch):
    """After the checks of a call and before its work, somebody writes to the caller's array."""
    real = calls.implementation

    def over(array, value):
        def implementation(kind, family):
            found = real(kind, family)

            def writing(function):
                def call(*given, **named):
                    array[...] = value
                    return function(*given, **named)

                return call

            return SimpleNamespace(forward=writing(found.forward), backward=writing(found.backward))

        monkeypatch.setattr(calls, "implementation", implementation)

    return over


@pytest.mark.parametrize("row", POOLINGS, ids=lambda row: row.name)
def test_image_indices_are_those_that_were_checked(backend, writer, row):
    """Another thread's writes cannot send a pooling beyond its arrays.

    On a GPU nobody checks: regions of images that do not exist are NaN and have no gradient.
    """
    asked = first_problem(row)
    output, gradients = asked.forward(backend), asked.backward(backend)

    def convert(array):
        own = backend.to_device(array.copy())
        if array is asked.case.arrays["boxes"]:
            writer(own, 1e9)
        return own

    if backend.name != "cpu":
        output = np.full_like(output, np.nan)
        gradients = {n: None if g is None else np.zeros_like(g) for n, g in gradients.items()}
    np.testing.assert_array_equal(backend.to_host(row.call(asked.case, convert)), output)
    grad_output = backend.to_device(asked.grad_output)
    found = row.call_backward(grad_output, asked.case, convert)._asdict()
    for name, expected in gradients.items():
        if expected is not None:
            np.testing.assert_array_equal(backend.to_host(found[name]), expected, name)


def test_pixels_that_are_none_get_no_gradient(backend):
    """An `argmax` may hold anything: what is no pixel of the image is passed over."""
    image = np.random.default_rng(2).standard_normal((2, 3, 5, 6)).astype(np.float32)
    boxes = backend.to_device(np.array([[0, 0, 0, 5, 4], [1, 1, 1, 4, 4]], np.float32))
    given = backend.to_device(image), boxes, 2
    _, argmax = cudeform.roi_pool(*given, return_argmax=True)
    argmax = backend.to_host(argmax).copy()
    wild = np.array([30, 2**31 - 1, -(2**31), -2, 10**9], np.int32)
    grad = np.ones(argmax.shape, np.float32)
    places = np.arange(0, argmax.size, 2)
    argmax.reshape(-1)[places] = np.resize(wild, len(places))
    found = cudeform.roi_pool_backward(
        backend.to_device(grad), *given, argmax=backend.to_device(argmax)
    )
    grad.reshape(-1)[places] = 0
    expected = cudeform.roi_pool_backward(backend.to_device(grad), *given)
    found, expected = (backend.to_host(gradients.input) for gradients in (found, expected))
    np.testing.assert_array_equal(found, expected)
    assert found.any()


class Derived(np.ndarray):
    """An array type of a caller's."""


def mapped(array, folder):
    path = folder / f"{array.ctypes.data}"
    result = np.memmap(path, array.dtype, "w+", shape=array.shape or (1,))
    result[...] = array
    return result


def plain_parts(result):
    return [part for part in result if part is not None] if isinstance(result, tuple) else [result]


@pytest.mark.parametrize("kind", ["memmap", "derived", "read-only", "fortran"])
@pytest.mark.parametrize(
    "call", [c for c in CALLS if c.op in cudeform.__all__], ids=lambda call: call.op
)
def test_results_are_plain_arrays(call, kind, tmp_path):
    """In every field, whatever type the caller derives from NumPy's, with the same bytes."""
    make = {
        "memmap": lambda array: mapped(array, tmp_path),
        "derived": lambda array: array.view(Derived),
        "read-only": lambda array: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape),
        "fortran": lambda array: np.asfortranarray(array),
    }[kind]
    needs = {"needs": None} if "needs" in call.given else {}
    expected = plain_parts(call(**needs))
    given = {k: make(v) for k, v in call.given.items() if isinstance(v, np.ndarray)}
    found = plain_parts(call(**given, **needs))
    assert len(found) == len(expected)
    for result, same in zip(found, expected, strict=True):
        assert type(result) is np.ndarray
        assert result.tobytes() == same.tobytes()
        assert not any(np.shares_memory(result, array) for array in given.values())


def test_boxes_by_image_of_a_derived_type():
    row = operator("roi_align")
    image = np.ones((2, 1, 4, 4), np.float32)
    boxes = [np.array([[0, 0, 3, 3]], np.float32).view(Derived)] * 2
    assert type(row.forward(image.view(Derived), boxes, 2)) is np.ndarray


def test_types_of_arrays_are_not_kept_without_end():
    image, weight = np.ones((1, 1, 3, 3)), np.ones((1, 1, 1, 1))
    for number in range(400):
        own = type(f"Own{number}", (np.ndarray,), {})
        cudeform.conv2d(image.view(own), weight)
        with pytest.raises(TypeError, match="to be True or False"):
            cudeform.roi_align(image, np.zeros((1, 5)), 1, aligned=type(f"Flag{number}", (), {})())
    seen = weakref.ref(own)
    del own
    gc.collect()
    assert seen() is None
    assert len(dispatch._found) < 400 and len(arrays._kinds) < 400
    assert type(cudeform.conv2d(image.view(Derived), weight)) is np.ndarray
