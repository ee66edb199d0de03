"""Which framework answers a call: what is remembered of the types of arguments."""

import gc
import weakref

import numpy as np
import pytest

import cudeform
from cudeform import dispatch


def test_types_are_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(dispatch, "_found", dict(dispatch._found))
    monkeypatch.setattr(dispatch, "_MOST_TYPES", len(dispatch._found) + 3)
    types = [type(f"Odd{i}", (), {}) for i in range(10)]
    for odd in types:
        for _ in range(2):
            with pytest.raises(TypeError, match="expected `weight` to be a"):
                cudeform.conv2d(np.zeros((1, 1, 2, 2)), odd())
    known = list(map(weakref.ref, types))
    del types, odd
    gc.collect()
    assert sum(type_of() is not None for type_of in known) == 3
