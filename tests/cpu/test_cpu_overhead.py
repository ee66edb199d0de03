"""What a call costs beside its kernels, counted, as times depend on the machine."""

import importlib.util
import json
import sys

import numpy as np
import pytest
from processes import python

import cudeform


def array(*shape):
    return np.ones(shape, np.float32)


IMAGE, OFFSET, WEIGHT = array(1, 4, 8, 8), array(1, 18, 8, 8), array(4, 4, 3, 3)
BOXES = np.array([[0, 0, 0, 5, 5], [0, 1, 1, 6, 7]], np.float32)
POOLED, MOVES = array(2, 4, 2, 2), array(2, 2, 2, 2)
HEADS = array(1, 20, 2, 8), [(4, 4), (2, 2)], array(1, 3, 2, 2, 4, 2), array(1, 3, 2, 2, 4)
CALLS = {  # with how many functions each may call, of Python or C: a tenth more than it does
    "deform_conv2d": ((IMAGE, OFFSET, WEIGHT, None, 1, 1), 84),
    "deform_conv2d_backward": ((IMAGE, IMAGE, OFFSET, WEIGHT, 1, 1), 146),
    "bilinear_sample": ((IMAGE, array(1, 5, 2)), 72),
    "roi_align": ((IMAGE, BOXES, 2, 1.0, 2), 59),
    "roi_align_backward": ((POOLED, IMAGE, BOXES, 2, 1.0, 2), 75),
    "roi_pool_backward": ((POOLED, IMAGE, BOXES, 2), 110),
    "ps_roi_pool": ((IMAGE, BOXES, 2), 59),
    "ps_roi_pool_backward": ((POOLED[:, :1], IMAGE, BOXES, 2), 75),
    "deform_roi_pool_backward": ((POOLED, IMAGE, BOXES, MOVES, 2, 1.0, 2), 75),
    "ms_deform_attn": (HEADS, 135),
    "roi_align of torch": ((IMAGE, BOXES, 2, 1.0, 2), 119),
}


def counted(name):
    """How many functions a second call calls."""
    given, _ = CALLS[name]
    name, _, framework = name.partition(" of ")
    if framework:
        import torch

        given = [torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in given]
    operator = getattr(cudeform, name)
    operator(*given)  # compiles, and plans
    called = []

    def note(frame, event, function):
        if event in ("call", "c_call"):
            called.append(frame.f_code.co_name if event == "call" else str(function))

    sys.setprofile(note)
    try:
        operator(*given)
    finally:
        sys.setprofile(None)
    return called


@pytest.fixture(scope="module")
def called():
    """By call, in a process that knows of nothing else."""
    alone = f"import runpy, sys; sys.path = {sys.path}; runpy.run_path({__file__!r}, {{}}, 'count')"
    return json.loads(python(alone))


@pytest.mark.parametrize("name", CALLS)
def test_a_tiny_call_is_few_functions(name, called):
    if name not in called:
        pytest.skip("without PyTorch")
    assert len(called[name]) <= CALLS[name][1], called[name]


if __name__ == "count":
    there = [name for name in CALLS if " of " not in name or importlib.util.find_spec("torch")]
    print(json.dumps({name: counted(name) for name in there}))


NEW = """
import sys, numpy
before = set(sys.modules)
import cudeform
print(*(name for name in set(sys.modules) - before if name.partition(".")[0] != "cudeform"))
"""


def test_the_import_brings_little_that_numpy_has_not():
    assert len(python(NEW).split()) <= 8
