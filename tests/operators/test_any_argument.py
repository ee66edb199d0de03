"""Every argument of every public function with values that are wrong in every way.

The answer is the house's message, or the result of the plain value that was meant. By default each
argument meets a part of the table, CUDEFORM_ARGUMENTS=full tries all of it.
"""

import os
import re
import warnings
from types import FunctionType

import numpy as np
import pytest
from good_calls import CALLS, converter_calls, operator_calls, torch_calls
from wrong_values import ARRAYS, SHAPES, VALUES, WRONG, meant

from cudeform.registry import OPERATORS

FULL = os.environ.get("CUDEFORM_ARGUMENTS") == "full"
OF_OPERATORS = {name for row in OPERATORS for name in (row.name, row.name + "_backward")}


def made(value):
    """A value of the table: some are made anew for each reading."""
    return value() if isinstance(value, FunctionType) else value


def outcome(call, argument, value):
    """(result, None) or (None, message). Anything else than the house's message goes through."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return call(**{argument: made(value)}), None
        except (TypeError, ValueError) as error:
            message = str(error)
            assert message.startswith(f"{call.op}: expected `"), repr(error)
            assert type(error) in (TypeError, ValueError)
            hidden = error.__suppress_context__  # else a traceback begins with another error
            assert hidden or error.__context__ is None, repr(error.__context__)
            assert len(message) < 700 and "\n" not in message
            return None, message


def plain(result):
    """Results as something to compare."""
    if isinstance(result, (tuple, list)):
        return [plain(part) for part in result]
    if getattr(result, "is_meta", False):
        return tuple(result.shape), result.dtype
    if getattr(result, "requires_grad", False):
        result = result.detach()
    return np.asarray(result).tobytes() if hasattr(result, "shape") else repr(result)


def check_value(call, argument, name, value):
    """Right as what it stands for; or else refused, and `argument` is blamed."""
    kind = call.kinds[argument]
    right = meant(kind, name, made(value))
    result, message = outcome(call, argument, value)
    if right is not WRONG:
        expected, why = outcome(call, argument, right)
        assert (message is None) == (why is None), message or why
        assert plain(result) == plain(expected)
        return
    assert message, f"accepted in silence: {plain(result)}"[:200]
    blamed = re.match(rf"{call.op}: expected `{argument}(\[\d+\])?` ", message)
    assert blamed or "all arrays of one call belong to one framework" in message, message


def check_array(call, argument, make):
    result, message = outcome(call, argument, make(call.given[argument]))
    assert message, f"accepted in silence: {plain(result)}"[:200]


def failures(checks):
    """What does not hold, by name: one argument's faults are seen together."""
    found = {}
    for name, check in checks:
        try:
            check()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {str(error)[:150]}"
    return found


def some(table, start, step):
    """Entries of a table; different ones for each start."""
    return list(table.items())[0 if FULL else start % step :: 1 if FULL else step]


def arguments(calls):
    return [(call, argument) for call in calls for argument in call.given]


def ids(given):
    return [f"{call.op}-{argument}" for call, argument in given]


EVERY = arguments(CALLS)


@pytest.mark.parametrize(("call", "argument"), EVERY, ids=ids(EVERY))
def test_any_value(call, argument):
    given = some(VALUES, EVERY.index((call, argument)), 3)
    assert not failures(
        (name, lambda n=name, v=value: check_value(call, argument, n, v)) for name, value in given
    )


IN_ARRAYS = [(call, name) for call, name in EVERY if call.kinds[name].startswith("array")]


@pytest.mark.parametrize(("call", "argument"), IN_ARRAYS, ids=ids(IN_ARRAYS))
def test_any_array(call, argument):
    table = ARRAYS | (SHAPES if call.op in OF_OPERATORS else {})
    given = some(table, EVERY.index((call, argument)), 2)
    assert not failures(
        (name, lambda m=make: check_array(call, argument, m)) for name, make in given
    )


def test_the_calls_are_of_every_public_function():
    import cudeform
    from cudeform import layers

    called = {call.op for call in CALLS}
    assert called >= {*cudeform.__all__, *layers.__all__}
    for name in cudeform.__all__:
        (call,) = (c for c in CALLS if c.op == name and c.function is getattr(cudeform, name))
        assert call.given.keys() == call.kinds.keys()


def checks_of(calls, values, arrays, step):
    """A few checks of each argument of the calls."""
    for number, (call, argument) in enumerate(arguments(calls)):
        at = f"{call.op} {argument} "
        for name, value in some(values, 7 * number, step):
            yield at + name, lambda c=call, a=argument, n=name, v=value: check_value(c, a, n, v)
        if call.kinds[argument].startswith("array"):
            for name, make in some(arrays, number, len(arrays)):
                yield at + name, lambda c=call, a=argument, m=make: check_array(c, a, m)


def test_torch():
    """The bridge hands options on, and looks at tensors itself."""
    torch = pytest.importorskip("torch")
    values = VALUES | {
        "tensor of an integer": torch.tensor(1),
        "tensor of a number": torch.tensor(0.5),
        "tensor of a flag": torch.tensor(True),
        "tensor of a pair": torch.tensor([1, 1]),
        "dtype": torch.float32,
    }
    tensors = {
        "float8": lambda t: t.to(torch.float8_e4m3fn),
        "sparse": lambda t: t.to_sparse(),
        "compressed": lambda t: t.reshape(len(t), -1).to_sparse_csr(),
        "nested": lambda t: torch.nested.nested_tensor([t.float()]),
        "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
        "complex": lambda t: t.to(torch.complex64),
        "bool": lambda t: t.bool(),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, that some of these are prototypes
        tensors = {k: _quietly(make) for k, make in tensors.items()}
        calls = [*operator_calls(torch.from_numpy), *converter_calls(torch.from_numpy)]
        assert not failures(checks_of(calls, values, tensors, 19))


def test_torch_where_there_is_a_gradient_or_no_memory():
    """Other ways through the bridge, which refuse what the plain one does."""
    torch = pytest.importorskip("torch")
    values = VALUES | {"four in a row": (1, 2, 3, 4), "tensor of a pair": torch.tensor([1, 1])}
    tensors = {"complex": lambda t: t.to(torch.complex64), "axis more": lambda t: t[None]}

    def differentiated(array):
        return torch.from_numpy(array).requires_grad_(array.dtype.kind == "f")

    def without_memory(array):
        return torch.from_numpy(array).to("meta")

    assert not failures(checks_of(operator_calls(differentiated), values, tensors, 29))
    values.pop("tensor of a pair")  # of another device, which is said first
    assert not failures(checks_of(operator_calls(without_memory), values, tensors, 29))


def _quietly(make):
    def call(tensor):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make(tensor)

    return call


def test_modules_of_torch():
    pytest.importorskip("onnxscript")
    assert not failures(checks_of(torch_calls(), VALUES, {}, 5))


def test_jax():
    jax = pytest.importorskip("jax")
    values = VALUES | {
        "array of an integer": jax.numpy.int32(1),
        "array of a number": jax.numpy.float32(0.5),
        "array of a flag": jax.numpy.array(True),
    }
    arrays = {
        "float8": lambda a: a.astype(jax.numpy.float8_e4m3fn),
        "complex": lambda a: a.astype(jax.numpy.complex64),
        "key": lambda a: jax.random.key(0),
        "list": lambda a: a.tolist(),
    }
    assert not failures(checks_of(operator_calls(jax.numpy.asarray), values, arrays, 41))
