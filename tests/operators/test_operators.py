"""Every registry row, case, backend and dtype against the float64 reference."""

import numpy as np
import pytest
from cases import DTYPES, problem, problems
from tolerances import assert_close

from cudeform.arrays import kind_of

every_case = pytest.mark.parametrize(("operator", "case"), problems())
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def test_backend_is_the_one_asked_for(backend):
    kind = kind_of("test", {"input": backend.to_device(np.ones(1, np.float32))})
    assert kind.backend == ("cpu" if backend.name == "cpu" else "cuda")


@every_dtype
@every_case
def test_forward_equals_reference(backend, operator, case, dtype):
    asked = problem(operator, case, dtype)
    output = asked.forward(backend)
    assert output.dtype == asked.grad_output.dtype
    assert_close(output, asked.output, what="output")


@every_dtype
@every_case
def test_backward_equals_reference(backend, operator, case, dtype):
    asked = problem(operator, case, dtype)
    gradients = asked.backward(backend)
    expected = asked.gradients
    for name, gradient in gradients.items():
        if name not in expected:
            assert gradient is None
            continue
        assert gradient.dtype == asked.grad_output.dtype
        assert_close(gradient, expected[name], what=f"gradient of {name}")


@every_case
def test_gradients_have_the_arguments_shapes(operator, case):
    """The reference itself: a gradient for every array given, of its shape."""
    asked = problem(operator, case, "float64")
    gradients = asked.gradients
    for argument in asked.row.arguments:
        array = asked.case.arrays.get(argument.name)
        if argument.differentiable and array is not None:
            assert gradients[argument.name].shape == array.shape


@every_case
def test_needs_computes_the_same_bytes_or_nothing(backend, operator, case):
    asked = problem(operator, case, "float32")
    everything = asked.backward(backend)
    given = [name for name, gradient in everything.items() if gradient is not None]
    subsets = [(name,) for name in given] + [(), tuple(given[1:]), tuple(given[::2])]
    for needs in subsets:
        for name, gradient in asked.backward(backend, needs=needs).items():
            if name in needs:
                assert gradient.tobytes() == everything[name].tobytes(), (name, needs)
            else:
                assert gradient is None, (name, needs)


@every_case
def test_arguments_are_left_alone(backend, operator, case):
    """Read-only arguments give the same answers, and writable ones are not written to."""
    asked = problem(operator, case, "float32")
    row = asked.row
    before = {name: array.tobytes() for name, array in asked.case.arrays.items()}
    on_device = {name: backend.to_device(array.copy()) for name, array in asked.case.arrays.items()}
    if backend.name != "cuda":  # CuPy has no read-only arrays
        for array in on_device.values():
            array.flags.writeable = False
    held = type(asked.case)(case, on_device, asked.case.options)
    output = row.call(held)
    row.call_backward(backend.to_device(asked.grad_output), held)
    np.testing.assert_array_equal(backend.to_host(output), asked.forward(backend))
    for name, array in on_device.items():
        assert backend.to_host(array).tobytes() == before[name], name
