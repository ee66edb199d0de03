"""Check every operator and dtype on this machine: the GPU against the CPU, gradients too.

The CPU backend in float64, on arguments rounded to the dtype under test, is the reference. Without
a GPU the CPU backend's other dtypes are compared with it, which checks rounding and sums and not
the equations. The backward runs twice and must return equal bytes. Conversions of a GPU between 16
bits and float32 must be exact.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cudeform.arrays import DTYPES
from cudeform.cases import Case
from cudeform.commands import CommandError, conversions, machine
from cudeform.commands.conversions import ToDevice, ToHost
from cudeform.commands.dtypes import numpy_dtype
from cudeform.commands.table import table
from cudeform.registry import OPERATORS, Operator

# The largest error allowed, in units of the largest magnitude of the array that is compared.
TOLERANCE = {"float16": 2e-3, "bfloat16": 1.6e-2, "float32": 1e-5, "float64": 1e-12}


@dataclass
class _Outcome:
    """The worst of all cases of one operator in one dtype."""

    operator: str
    dtype: str
    tolerance: float
    failure: str = ""  # the first one
    repeatable: bool = True
    cases: int = 0
    forward: float = 0.0
    gradients: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.failure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="what to test; default: the GPU where CuPy finds one",
    )
    parser.add_argument(
        "--operator",
        nargs="+",
        choices=[operator.name for operator in OPERATORS],
        metavar="NAME",
        help="only these operators, instead of all",
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=DTYPES,
        metavar="NAME",
        help=f"only these dtypes, among {', '.join(DTYPES)}",
    )


def run(given: argparse.Namespace) -> int:
    cupy, reason = (None, None) if given.device == "cpu" else machine.cupy_or_reason()
    if cupy is None and given.device == "cuda":
        raise CommandError(f"no GPU to test: {reason}")
    if cupy is not None:
        gpu = machine.gpu(cupy)
        print(f"testing the GPU ({gpu['gpu']}, {gpu['architecture']}) against the CPU in float64")
        to_device, to_host = cupy.asarray, cupy.asnumpy
    else:
        why = f" ({reason})" if reason else ""
        print(f"The GPU is NOT tested{why}: this compares the CPU backend with itself in float64.")
        to_device = to_host = _same

    dtypes = [d for d in _dtypes(cupy is not None) if given.dtype is None or d in given.dtype]
    outcomes = [
        check(operator, dtype, to_device, to_host)
        for operator in OPERATORS
        if given.operator is None or operator.name in given.operator
        for dtype in dtypes
    ]
    if cupy is not None:
        narrow = [dtype for dtype in dtypes if dtype in conversions.NARROW]
        outcomes += [check_conversions(dtype, to_device, to_host) for dtype in narrow]
    print(_report(outcomes))
    for outcome in outcomes:
        if not outcome.passed:
            print(f"FAILED {outcome.operator} in {outcome.dtype}: {outcome.failure}")
    failures = sum(not outcome.passed for outcome in outcomes)
    print(f"{len(outcomes)} checks, {failures} failed")
    return 1 if failures else 0


def _same(array: Any) -> Any:
    return array


def _dtypes(gpu: bool) -> list[str]:
    """The dtypes that can be tested here; says which cannot."""
    dtypes = [name for name in DTYPES if gpu or name != "float64"]
    if machine.version("ml_dtypes") is None:
        print("bfloat16 is NOT tested (ml_dtypes is missing): pip install ml_dtypes")
        dtypes.remove("bfloat16")
    return dtypes


def check(operator: Operator, dtype: str, to_device: ToDevice, to_host: ToHost) -> _Outcome:
    """All cases of an operator in a dtype against float64 on the CPU."""
    outcome = _Outcome(operator.name, dtype, TOLERANCE[dtype])
    for case in _cases(operator, dtype):
        outcome.cases += 1
        try:
            _check_case(outcome, operator, case, to_device, to_host)
        except Exception as error:  # whatever goes wrong in one check, the others still run
            _fail(outcome, case, f"{type(error).__name__}: {error}")
    return outcome


def check_conversions(dtype: str, to_device: ToDevice, to_host: ToHost) -> _Outcome:
    """Every number of 16 bits to float32, and from there what is hard to round: exactly."""
    outcome = _Outcome("conversions", dtype, 0.0)
    try:
        outcome.cases, outcome.failure = conversions.wrong(dtype, to_device, to_host)
    except Exception as error:  # as in `check`
        outcome.failure = f"{type(error).__name__}: {error}"
    return outcome


def _cases(operator: Operator, dtype: str) -> Iterator[Case]:
    """The cases in a dtype; where that has 16 bits, also with offsets, points and boxes of 32."""
    finer = {argument.name for argument in operator.arguments if argument.finer}
    for case in operator.cases(np.random.default_rng(0)):
        yield case.astype(numpy_dtype(dtype))
        if "16" in dtype and finer & case.arrays.keys():
            wide = case.astype(numpy_dtype(dtype), **dict.fromkeys(finer, np.float32))
            yield replace(wide, name=f"{case.name} beside float32")


def _fail(outcome: _Outcome, case: Case, why: str) -> None:
    outcome.failure = outcome.failure or f"case {case.name}: {why}"


def _check_case(
    outcome: _Outcome, operator: Operator, case: Case, to_device: ToDevice, to_host: ToHost
) -> None:
    dtype = numpy_dtype(outcome.dtype)

    def exact(array: np.ndarray) -> np.ndarray:
        return array if array.dtype.kind == "i" else array.astype(np.float64)

    expected = operator.call(case, exact)
    got = to_host(operator.call(case, to_device))
    error = _compare(outcome, case, "output", got, expected, dtype)
    outcome.forward = max(outcome.forward, error)

    grad_output = np.random.default_rng(1).standard_normal(expected.shape).astype(dtype)
    expected_gradients = operator.call_backward(exact(grad_output), case, exact)
    first, second = (
        operator.call_backward(to_device(grad_output), case, to_device) for _ in range(2)
    )
    for name, gradient in expected_gradients._asdict().items():
        if gradient is None:
            continue
        got, again = to_host(getattr(first, name)), to_host(getattr(second, name))
        kept = case.arrays[name].dtype if name in case.arrays else dtype
        error = _compare(outcome, case, f"gradient of {name}", got, gradient, kept)
        outcome.gradients = max(outcome.gradients, error)
        if got.tobytes() != again.tobytes():
            outcome.repeatable = False
            _fail(outcome, case, f"gradient of {name} differs between two runs")


def _compare(
    outcome: _Outcome, case: Case, what: str, got: Any, expected: np.ndarray, dtype: np.dtype
) -> float:
    """The largest error in units of the largest magnitude; a failure is noted."""
    if got.shape != expected.shape or got.dtype != dtype:
        _fail(outcome, case, f"{what} is {got.dtype} {got.shape}, expected {expected.shape}")
        return float("inf")
    if expected.size == 0:
        return 0.0
    worst = np.abs(got.astype(np.float64) - expected).max()
    error = float(worst / max(np.abs(expected).max(), np.finfo(np.float64).tiny))
    if not error <= outcome.tolerance:  # also true for NaN
        _fail(outcome, case, f"{what} is off by {error:.2g} of its largest value")
    return error


def _report(outcomes: list[_Outcome]) -> str:
    header = ("operator", "dtype", "cases", "output", "gradients", "tolerance", "repeatable", "")
    return table(
        header,
        [
            (
                o.operator,
                o.dtype,
                str(o.cases),
                f"{o.forward:.1e}",
                f"{o.gradients:.1e}",
                f"{o.tolerance:.1e}",
                "yes" if o.repeatable else "NO",
                "ok" if o.passed else "FAILED",
            )
            for o in outcomes
        ],
    )
