"""Which framework answers a call: what is remembered of the types of arguments."""

import gc
import weakref

import numpy as np
import pytest

import cudeform
from cudeform import dispatch
from cudeform.registry import OPERATORS


def test_types_are_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(dispatch, "_found", dict(dispatch._found))
    monkeypatch.setattr(dispatch, "_MOST_TYPES", len(dispatch._found) + 3)
    types = [type(f"Odd{i}", (), {}) for i in range(10)]
    for odd in types:
        for _ in range(2):
            with pytest.raises(TypeError, match="expected `weight` to be a"):
                cudeform.conv2d(np.zeros((1, 1, 2, 2)), odd())
    known = list(map(weakref.ref, types))
    del types, odd
    gc.collect()
    assert sum(type_of() is not None for type_of in known) == 3


IMAGE, BOXES = np.ones((1, 4, 8, 8), np.float32), np.array([[0, 0, 0, 5, 5]], np.float32)


@pytest.mark.parametrize(
    ("module", "advice"),
    [
        ("PIL.Image", "numpy.asarray"),
        ("dask.array", "cudeform.dask"),
        ("keras.src", "cudeform.keras"),
    ],
)
def test_what_other_libraries_have_is_told_where_to_go(module, advice):
    image = type("Image", (), {"__module__": module})()
    with pytest.raises(TypeError, match=rf"`input` to be .* got {module}.Image \({advice}"):
        cudeform.roi_align(image, BOXES, 2)


def test_a_tensor_among_boxes_of_numpy():
    torch = pytest.importorskip("torch")
    message = r"roi_align: expected `boxes\[0\]` to be a numpy array like `input`, got torch"
    with pytest.raises(TypeError, match=message):
        cudeform.roi_align(IMAGE, [torch.ones(1, 4)], 2)


@pytest.mark.parametrize("given", [None, [[[[1.0]]]]], ids=["nothing", "a list"])
def test_what_is_no_array_beside_arrays_of_jax(given):
    jnp = pytest.importorskip("jax.numpy")
    message = "conv2d: expected `weight` to be a jax array like `input`, got "
    with pytest.raises(TypeError, match=message + type(given).__name__.removesuffix("Type")):
        cudeform.conv2d(jnp.asarray(IMAGE), given)


@pytest.mark.parametrize("framework", ["numpy", "torch", "jax.numpy"])
@pytest.mark.parametrize("row", OPERATORS, ids=lambda row: row.name)
def test_a_backward_without_a_grad_output_is_no_forward(row, framework):
    asarray = pytest.importorskip(framework).asarray
    case = next(iter(row.cases(np.random.default_rng(1))))
    message = f"^{row.name}_backward: expected `grad_output` to be a .*, got None"
    with pytest.raises(TypeError, match=message):
        row.call_backward(None, case, asarray)
