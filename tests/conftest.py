"""Fixtures that every test may ask for."""

import importlib
import sys
from pathlib import Path

import backends
import hypothesis
import numpy as np
import pytest

import cudeform

# One machine's luck must not decide: the same examples everywhere, and no time limit on a
# first call that compiles.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=500)
hypothesis.settings.load_profile("repeatable")

STANDIN = ("cupy", "cupy_backends")


@pytest.fixture(params=list(backends.BACKENDS))
def backend(request):
    """Each backend in turn, active while the test runs."""
    chosen = backends.BACKENDS[request.param]
    backends.require(chosen)
    with chosen.active():
        yield chosen


@pytest.fixture
def cupy(monkeypatch):
    """The CuPy of tests/standin, which ``import cupy`` finds while the test runs."""
    from cudeform import arrays
    from cudeform.cuda import device

    backends.require(backends.BACKENDS["emulator"])
    monkeypatch.syspath_prepend(Path(__file__).with_name("standin"))
    for name in [name for name in sys.modules if name.partition(".")[0] in STANDIN]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(device, "_cupy_devices", {})
    module = importlib.import_module("cupy")
    yield module
    for name in [name for name in sys.modules if name.partition(".")[0] in STANDIN]:
        del sys.modules[name]
    arrays.register(module.ndarray, None)


@pytest.fixture
def rng():
    return np.random.default_rng(20170317)


@pytest.fixture
def rejecting(monkeypatch):
    """From good arguments by operator, a function that calls one with some of them bad.

    It returns the message, if the call fails before any work: no backend is reached, the arguments
    are as they were, and the message starts with the operator's name.
    """

    def unreachable(kind, family):
        raise AssertionError(f"{family} was reached with bad arguments")

    def over(calls):
        monkeypatch.setattr("cudeform.ops.call.implementation", unreachable)

        def call(name, error, **bad):
            arguments = {**calls[name](), **bad}
            held = {k: v.tobytes() for k, v in arguments.items() if isinstance(v, np.ndarray)}
            with pytest.raises(error) as caught:
                getattr(cudeform, name)(**arguments)
            for argument, before in held.items():
                assert arguments[argument].tobytes() == before, argument
            assert caught.type is error
            message = str(caught.value)
            assert message.startswith(f"{name}: expected `"), message
            return message

        return call

    return over
