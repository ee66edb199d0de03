"""Equal calls give equal bytes: twice in a row, on any number of threads, in any schedule."""

import backends
import numpy as np
import pytest
from cases import DTYPES, Problem, operator, problem, problems

from cudeform.cases import Case

every_case = pytest.mark.parametrize(("name", "case"), problems())


def outcome(asked, backend):
    """The bytes of the output and of every gradient."""
    results = {"output": asked.forward(backend), **asked.backward(backend)}
    return {name: array.tobytes() for name, array in results.items() if array is not None}


def crowded(name, dtype):
    """A problem in which many points share few pixels, so that every order of a sum shows."""
    rng = np.random.default_rng(5)
    row = operator(name)
    case = next(iter(row.cases(rng)))
    arrays = dict(case.arrays)
    for coordinates in {"offset", "points"} & arrays.keys():
        arrays[coordinates] = rng.uniform(-1.5, 1.5, arrays[coordinates].shape)
    arrays["input"] = arrays["input"] * np.exp(rng.standard_normal(arrays["input"].shape))
    return Problem(row, Case("crowded", arrays, case.options), dtype)


@every_case
def test_two_calls_give_equal_bytes(backend, name, case):
    asked = problem(name, case, "float32")
    assert outcome(asked, backend) == outcome(asked, backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["deform_conv2d", "conv2d", "bilinear_sample"])
def test_crowded_points_give_equal_bytes(backend, name, dtype):
    asked = crowded(name, dtype)
    assert outcome(asked, backend) == outcome(asked, backend)


@pytest.fixture
def threads(monkeypatch):
    """cudeform.threads, which shares the smallest call out; its number is put back afterwards."""
    from cudeform import threads

    monkeypatch.setattr(threads, "_SMALL", 1)
    monkeypatch.setattr(threads, "_LEAST", 1)
    before = threads.get_num_threads()
    yield threads
    threads.set_num_threads(before)


@every_case
def test_any_number_of_threads_gives_equal_bytes(threads, name, case):
    cpu = backends.BACKENDS["cpu"]
    asked = problem(name, case, "float32")
    outcomes = []
    for count in (1, 2, 3, 5):
        threads.set_num_threads(count)
        outcomes.append(outcome(asked, cpu))
    assert all(other == outcomes[0] for other in outcomes[1:])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_threads_share_a_large_image_bit_for_bit(threads, dtype):
    """Large enough that every thread gets several tiles and several slices of the channels."""
    rng = np.random.default_rng(9)
    row = operator("deform_conv2d")
    size, channels = 40, 37
    arrays = {
        "input": rng.standard_normal((2, channels, size, size)),
        "offset": 2 * rng.standard_normal((2, 18, size, size)),
        "weight": rng.standard_normal((16, channels, 3, 3)),
        "mask": rng.uniform(size=(2, 9, size, size)),
    }
    arrays = {k: array.astype(dtype) for k, array in arrays.items()}
    case = Case("large", arrays, {"padding": 1})
    grad_output = rng.standard_normal((2, 16, size, size)).astype(dtype)
    outcomes = []
    for count in (1, 2, 3, 8):
        threads.set_num_threads(count)
        results = [row.call(case), *row.call_backward(grad_output, case)]
        outcomes.append([result.tobytes() for result in results])
    assert all(other == outcomes[0] for other in outcomes[1:])


@pytest.mark.parametrize("name", ["deform_conv2d", "conv2d", "bilinear_sample"])
def test_any_schedule_gives_equal_bytes(name):
    """Blocks and threads of the emulated GPU run in three orders and end in the same bytes."""
    emulator = backends.BACKENDS["emulator"]
    backends.require(emulator)
    asked = crowded(name, "float32")
    outcomes = []
    for order in ("ascending", "descending", "random"):
        with emulator.active(order=order, seed=11):
            outcomes.append(outcome(asked, emulator))
    assert all(other == outcomes[0] for other in outcomes[1:])
