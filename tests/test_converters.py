"""Converters take the arrays of every framework, and give them back."""

import numpy as np
import pytest

import cudeform

jnp = pytest.importorskip("jax.numpy")
torch = pytest.importorskip("torch")

MAKE = {"torch": torch.from_numpy, "jax": jnp.asarray}


def calls(make, rng):
    """Every converter with arrays that `make` made of NumPy's."""
    offset = make(rng.standard_normal((2, 18, 4, 5)).astype(np.float32))
    mask = make(rng.random((2, 9, 4, 5)).astype(np.float32))
    packed = make(rng.random((2, 4, 5, 56)).astype(np.float32))
    points = make(rng.random((1, 3, 2, 1, 4, 2)).astype(np.float32))
    boxes = make(np.array([[0, 1, 2, 8, 9.0]], np.float32))
    shifts = make(rng.random((1, 2, 3, 3)).astype(np.float32))
    there = dict(source="torchvision", target="dcnv3", kernel_size=3)
    yield lambda: cudeform.convert_offset(offset, **there)
    yield lambda: cudeform.convert_mask(mask, **there)
    yield lambda: cudeform.unpack_dcnv4(packed, 2, 9)
    yield lambda: cudeform.points_from_msda(points, [(6, 7)])
    yield lambda: cudeform.points_to_msda(points, [(6, 7)])
    yield lambda: cudeform.convert_roi_offset(shifts, boxes, "mmcv", "mxnet")


@pytest.mark.parametrize("framework", MAKE)
def test_a_converter_answers_in_kind(framework):
    theirs = calls(MAKE[framework], np.random.default_rng(0))
    for call, expected in zip(theirs, calls(np.asarray, np.random.default_rng(0)), strict=True):
        results, wanted = call(), expected()
        if not isinstance(wanted, tuple):
            results, wanted = (results,), (wanted,)
        for result, value in zip(results, wanted, strict=True):
            assert isinstance(result, torch.Tensor if framework == "torch" else jnp.ndarray)
            np.testing.assert_array_equal(np.asarray(result), value)


def test_a_gradient_is_not_cut_off_in_silence():
    offset = torch.zeros(1, 18, 2, 2, requires_grad=True)
    message = "convert_offset: expected `offset` to require no gradient"
    with pytest.raises(ValueError, match=message):
        cudeform.convert_offset(offset, "torchvision", "dcnv3", kernel_size=3)
    with torch.no_grad():
        converted = cudeform.convert_offset(offset, "torchvision", "dcnv3", kernel_size=3)
    assert converted.shape == (1, 2, 2, 18)
