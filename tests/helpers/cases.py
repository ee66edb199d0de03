"""The registry's cases in a dtype, and what the reference makes of them."""

import inspect
from functools import cache, cached_property

import ml_dtypes
import numpy as np
import reference
from tolerances import assert_close

from cudeform.cases import Case
from cudeform.registry import OPERATORS, row_of

__all__ = ["DTYPES", "Problem", "batch_of", "cases", "dtype_of", "operator", "problem", "problems"]

DTYPES = ("float16", "bfloat16", "float32", "float64")


def dtype_of(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def operator(name):
    """The registry row of this name."""
    return row_of(name)


def _is_image(axes):
    """Whether an argument of these axes changes with the layout."""
    return axes[0] == "N" and len(axes) == 4 and "..." not in axes


class Problem:
    """A case in one dtype: arguments, a grad_output, and the reference's answers in float64.

    With `keep` the arrays have the dtypes that they come with; `others` are the dtypes of arguments
    that have another one.
    """

    def __init__(self, row, case, dtype, seed=7, keep=False, **others):
        dtype = dtype_of(dtype)
        others = {name: dtype_of(other) for name, other in others.items()}
        self.row, self.case = row, case if keep else case.astype(dtype, **others)
        self._images = {a.name for a in row.arguments if _is_image(a.axes)}
        self._channels_last = case.options.get("layout", "NCHW") == "NHWC"
        self.output = self._reference_forward()
        noise = np.random.default_rng(seed).standard_normal(self.output.shape)
        self.grad_output = noise.astype(dtype)

    @property
    def id(self):
        return f"{self.row.name}-{self.case.name}"

    def _plain(self, name, array):
        """An argument as the reference wants it."""
        moved = self._channels_last and name in self._images
        array = np.moveaxis(array, -1, 1) if moved else array
        return array.astype(np.float64)

    def _call(self, function, **extra):
        given = dict.fromkeys(argument.name for argument in self.row.arguments)
        given |= {name: self._plain(name, a) for name, a in self.case.arrays.items()}
        given.update(self.case.options, **extra)
        accepted = inspect.signature(function).parameters
        if all(p.kind is not p.VAR_KEYWORD for p in accepted.values()):
            given = {name: value for name, value in given.items() if name in accepted}
        return function(**given)

    def _reference_forward(self):
        output = self._call(getattr(reference, self.row.name))
        return np.moveaxis(output, 1, -1) if self._channels_last else output

    @cached_property
    def gradients(self):
        """By argument name, for the arguments given."""
        grad_output = self.grad_output.astype(np.float64)
        if self._channels_last:
            grad_output = np.moveaxis(grad_output, -1, 1)
        backward = getattr(reference, self.row.name + "_backward")
        gradients = self._call(backward, grad_output=grad_output)
        if self._channels_last:
            for name in self._images & gradients.keys():
                if gradients[name] is not None:
                    gradients[name] = np.moveaxis(gradients[name], 1, -1)
        return {name: gradient for name, gradient in gradients.items() if gradient is not None}

    def assert_right(self, backend):
        """The public functions' answers are the reference's."""
        assert_close(self.forward(backend), self.output, what="output")
        expected = self.gradients
        for argument, gradient in self.backward(backend).items():
            if gradient is not None:
                assert_close(gradient, expected[argument], what=f"gradient of {argument}")

    def forward(self, backend):
        """The public function's answer, back on the host."""
        return backend.to_host(self.row.call(self.case, backend.to_device))

    def backward(self, backend, needs=None, **replaced):
        """The public backward's gradients by name, back on the host; None where it gave None."""
        case = Case(self.case.name, {**self.case.arrays, **replaced}, self.case.options)
        grad_output = backend.to_device(self.grad_output)
        result = self.row.call_backward(grad_output, case, backend.to_device, needs)
        gradients = result._asdict()
        return {k: None if v is None else backend.to_host(v) for k, v in gradients.items()}


@cache
def cases(name):
    """The registry's cases of an operator by name."""
    row = operator(name)
    return {case.name: case for case in row.cases(np.random.default_rng(1))}


@cache
def problem(name, case, dtype):
    """The problem of a registry row's case; callers must not write into its arrays."""
    return Problem(operator(name), cases(name)[case], dtype)


def problems():
    """Every (operator name, case name) of the registry."""
    return [(row.name, case) for row in OPERATORS for case in cases(row.name)]


def batch_of(name, images):
    """The first registry case of an operator with so many images, different ones."""
    row = operator(name)
    case = next(iter(row.cases(np.random.default_rng(3))))
    rng = np.random.default_rng(images)
    batched = {a.name for a in row.arguments if a.axes[0] == "N"}
    arrays = {
        k: rng.uniform(-2, 2, (images, *array.shape[1:])) if k in batched else array
        for k, array in case.arrays.items()
    }
    return Problem(row, Case(case.name, arrays, case.options), "float32"), batched & arrays.keys()
