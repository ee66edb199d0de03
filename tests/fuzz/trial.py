"""One trial: random arguments in random memory, against the reference and against themselves."""

import math
from dataclasses import dataclass

import numpy as np
from cases import DTYPES, Problem, dtype_of, operator
from tolerances import TOLERANCE

from cudeform import threads

from .arguments import NEVER_CAST, OPERATORS, random_case
from .dress import Dresser

__all__ = ["Trial"]

SLACK = 2  # times the tolerance of the tests' own arguments, which are tamer


@dataclass
class Trial:
    """The trial of a number and a seed, on a backend."""

    seed: int
    number: int
    backend: object

    def __post_init__(self):
        self.rng = np.random.default_rng([self.seed, self.number])
        self.name = list(OPERATORS)[self.number % len(OPERATORS)]
        self.dtype = DTYPES[self.rng.integers(len(DTYPES))]

    def __str__(self):
        options = ", ".join(f"{k}={v}" for k, v in self.problem.case.options.items())
        shapes = ", ".join(f"{k} {a.shape}" for k, a in self.problem.case.arrays.items())
        return f"{self.name} in {self.dtype}: {shapes}; {options}"

    def run(self):
        """Raise AssertionError if anything is wrong."""
        case = random_case(self.rng, self.name, self.dtype)
        wide = {} if self.dtype == "float64" else NEVER_CAST
        with np.errstate(over="ignore"):
            self.problem = Problem(operator(self.name), case, self.dtype, **wide)
        if self.rng.random() < 0.04:
            return self._refuse_other_byte_order()
        self._threads()
        dressed = Dresser(self.backend, self.rng)
        output = self.problem.forward(dressed)
        self._compare("output", output, self.problem.output, dressed)
        needs = self._needs()
        gradients = self.problem.backward(dressed, needs)
        for argument, gradient in gradients.items():
            if argument not in needs:
                assert gradient is None, f"gradient of {argument} was not asked for"
                continue
            want = self.problem.gradients[argument]
            self._compare(f"gradient of {argument}", gradient, want, dressed)
        assert dressed.unchanged(), "an argument was written to"
        if self.rng.random() < 0.3:
            self._repeat(output, gradients, needs)

    def _threads(self):
        threads.set_num_threads(int(self.rng.integers(1, 5)))

    def _needs(self):
        names = sorted(self.problem.gradients)
        chosen = [name for name in names if self.rng.random() < 0.7]
        return chosen or names[:1]

    def _repeat(self, output, gradients, needs):
        """Plain memory and other threads give equal bytes."""
        self._threads()
        plain = Dresser(self.backend)
        assert self.problem.forward(plain).tobytes() == output.tobytes(), "other bytes: output"
        again = self.problem.backward(plain, needs)
        for argument in needs:
            same = again[argument].tobytes() == gradients[argument].tobytes()
            assert same, f"other bytes: gradient of {argument}"

    def _refuse_other_byte_order(self):
        arrays = self.problem.case.arrays
        name = sorted(arrays)[self.rng.integers(len(arrays))]
        arrays[name] = arrays[name].astype(arrays[name].dtype.newbyteorder())
        if arrays[name].dtype.isnative:  # ml_dtypes has one order
            return
        try:
            self.problem.forward(Dresser(self.backend))
        except TypeError as error:
            assert str(error).startswith(f"{self.name}: expected `{name}` of dtype"), error
        else:
            raise AssertionError(f"took `{name}` in the other byte order")

    def _compare(self, what, found, want, dressed):
        assert type(found) is np.ndarray, f"{what}: {type(found)}"
        assert found.dtype == dtype_of(self.dtype), f"{what}: {found.dtype}"
        assert found.shape == want.shape, f"{what}: {found.shape} instead of {want.shape}"
        for view, *_ in dressed.made:
            assert not np.shares_memory(found, view), f"{what} is an argument's memory"
        if not found.size:
            return
        error = np.abs(found.astype(np.float64) - want)
        bound = SLACK * TOLERANCE[self.dtype] * max(np.abs(want).max(), self._scale())
        ranked = np.where(np.isnan(error), np.inf, error)
        worst = np.unravel_index(np.argmax(ranked), error.shape)
        at = tuple(map(int, worst))
        assert ranked[worst] <= bound, (
            f"{what}: {found[worst]} instead of {want[worst]} at {at}, more than {bound:.2g} off"
        )

    def _scale(self):
        """What a sum of as many terms as the longest here has is about, if it does not cancel."""
        arrays = self.problem.case.arrays
        if "weight" not in arrays:
            return 1.0
        weight, output = arrays["weight"], self.problem.output
        return math.sqrt(max(weight[0].size, output.size / len(weight), len(weight)))
