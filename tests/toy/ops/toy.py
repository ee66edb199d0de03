"""The toy operator's public functions."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from cudeform.dispatch import dispatched
from cudeform.ops.call import gradients, results


class ToyGradients(NamedTuple):
    input: Any = None
    factor: Any = None


@dispatched("input", "factor")
def toy(input: Any, factor: Any, *, gain: float = 1.0) -> Any:
    return results("toy", dict(input=input, factor=factor), dict(gain=gain))[0]


@dispatched("grad_output", "input", "factor")
def toy_backward(
    grad_output: Any,
    input: Any,
    factor: Any,
    *,
    needs: Iterable[str] | None = None,
    gain: float = 1.0,
) -> ToyGradients:
    given = dict(grad_output=grad_output, input=input, factor=factor)
    return gradients("toy_backward", ToyGradients, given, dict(gain=gain), needs)
