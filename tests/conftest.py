"""Fixtures that every test may ask for."""

import backends
import hypothesis
import numpy as np
import pytest

# One machine's luck must not decide: the same examples everywhere, and no time limit on a
# first call that compiles.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=500)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(params=list(backends.BACKENDS))
def backend(request):
    """Each backend in turn, active while the test runs."""
    chosen = backends.BACKENDS[request.param]
    backends.require(chosen)
    with chosen.active():
        yield chosen


@pytest.fixture
def rng():
    return np.random.default_rng(20170317)
