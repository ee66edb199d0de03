"""The toy operator's public functions."""

from collections.abc import Iterable
from typing import Any, Generic

from cudeform.dispatch import dispatched
from cudeform.ops.call import gradients, results
from cudeform.types import Array, NamedTuple


class ToyGradients(NamedTuple, Generic[Array]):
    input: Array | Any = None
    factor: Array | Any = None


@dispatched("input", "factor")
def toy(input: Array, factor: Array, *, gain: float = 1.0) -> Array:
    return results("toy", locals())[0]


@dispatched("grad_output", "input", "factor")
def toy_backward(
    grad_output: Array, input: Array, factor: Array,
    *, needs: Iterable[str] | None = None, gain: float = 1.0,
) -> ToyGradients[Array]:  # fmt: skip
    return gradients("toy_backward", ToyGradients, locals())
