"""Every operator on its knots and edges, on every backend, against the float64 reference."""

import numpy as np
import pytest
from edges import PROBLEMS, edge_problem
from tolerances import assert_close

from cudeform.registry import OPERATORS

every_problem = pytest.mark.parametrize("name", PROBLEMS)


def test_every_operator_has_edges():
    assert {op for op, _, _ in PROBLEMS.values()} == {row.name for row in OPERATORS}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_problem
def test_values_and_one_sided_derivatives(backend, name, dtype):
    asked = edge_problem(name, dtype)
    assert len(np.unique(asked.output)) > 10
    assert_close(asked.forward(backend), asked.output, what="output")
    for argument, gradient in asked.backward(backend).items():
        if argument in asked.gradients:
            assert_close(gradient, asked.gradients[argument], what=f"gradient of {argument}")
