"""Arrays of frameworks that we know nothing of but that they speak DLPack."""

import inspect
import types

import numpy as np
import pytest
from cases import operator, problem, problems

import cudeform
from cudeform.registry import OPERATORS


class Buffer:
    """An array of some framework that can hand its memory over, and no more."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **how):
        return self.array.__dlpack__(**how)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Tensor(Buffer):
    """The same with a namespace, as the array API standard has it."""

    def __array_namespace__(self, api_version=None):
        return types.SimpleNamespace(from_dlpack=lambda array: Tensor(np.from_dlpack(array)))


class Elsewhere(Buffer):
    def __dlpack_device__(self):
        return 8, 0  # kDLMetal


class Own(Buffer):
    """The same with a constructor of its own."""

    @classmethod
    def from_dlpack(cls, array):
        return cls(np.from_dlpack(array))


@pytest.mark.parametrize("name", [row.name for row in OPERATORS])
@pytest.mark.parametrize("framework", [Tensor, Own])
def test_results_are_of_the_callers_kind(name, framework):
    of = problem(name, next(case for row, case in problems() if row == name), "float32")
    expected = of.row.call(of.case)
    found = of.row.call(of.case, framework)
    assert type(found) is framework
    np.testing.assert_array_equal(found.array, expected)
    expected = of.row.call_backward(of.grad_output, of.case)
    found = of.row.call_backward(framework(of.grad_output), of.case, framework)
    assert type(found) is type(expected)
    for gradient, want in zip(found, expected, strict=True):
        assert (gradient is None) == (want is None)
        if want is not None:
            np.testing.assert_array_equal(gradient.array, want)


def arrays():
    return next(operator("conv2d").cases(np.random.default_rng(0))).arrays


def test_result_is_a_numpy_array_where_the_framework_takes_none():
    plain = arrays()
    found = cudeform.conv2d(**{name: Buffer(array) for name, array in plain.items()})
    np.testing.assert_array_equal(found, cudeform.conv2d(**plain))


def test_all_arguments_may_be_given_by_their_places():
    plain = arrays()
    parameters = inspect.signature(cudeform.conv2d).parameters.values()
    given = [
        Tensor(plain[p.name]) if p.name in plain else p.default
        for p in parameters
        if p.kind is not p.KEYWORD_ONLY
    ]
    np.testing.assert_array_equal(cudeform.conv2d(*given).array, cudeform.conv2d(**plain))


def test_the_first_array_says_what_results_are():
    """Of two types of one framework."""
    plain = arrays()
    first, second = Own(plain["input"]), Tensor(plain["weight"])
    output = cudeform.conv2d(first, second)
    assert type(output) is Own
    gradients = cudeform.conv2d_backward(Tensor(output.array), first, second)
    assert type(gradients.input) is type(gradients.weight) is Tensor


def test_arrays_are_not_copied_and_not_written(monkeypatch):
    from cudeform.cpu import conv

    seen, compute = [], conv.forward

    def forward(plan, **given):
        seen.extend(array for array in given.values() if array is not None)
        return compute(plan, **given)

    monkeypatch.setattr(conv, "forward", forward)
    plain = arrays()
    before = {name: array.copy() for name, array in plain.items()}
    cudeform.conv2d(**{name: Tensor(array) for name, array in plain.items()})
    for got, (name, array) in zip(seen, plain.items(), strict=True):
        assert np.shares_memory(got, array)
        np.testing.assert_array_equal(array, before[name])


def test_negative_strides_cross():
    """NumPy hands them over, and the operator makes them contiguous."""
    plain = arrays()
    flipped = {**plain, "input": plain["input"][:, :, ::-1]}
    found = cudeform.conv2d(**{name: Tensor(array) for name, array in flipped.items()})
    flipped["input"] = flipped["input"].copy()
    np.testing.assert_array_equal(found.array, cudeform.conv2d(**flipped))


def test_frameworks_and_devices_that_do_not_go():
    plain = arrays()
    message = "conv2d: expected `weight` to be a test_dlpack array like `input`, got a numpy array"
    with pytest.raises(TypeError, match=message):
        cudeform.conv2d(Tensor(plain["input"]), plain["weight"])
    with pytest.raises(TypeError, match="conv2d: expected `input` on the CPU or a CUDA device"):
        cudeform.conv2d(Elsewhere(plain["input"]), Elsewhere(plain["weight"]))
    with pytest.raises(TypeError, match="conv2d: expected `weight` of dtype float64 like `input`"):
        cudeform.conv2d(Tensor(plain["input"]), Tensor(plain["weight"].astype(np.float32)))
