"""What a CUDA graph can record: docs/cuda_graphs.md, against the stand-in for a GPU."""

import re
from dataclasses import replace

import numpy as np
import pytest
from cases import cases
from checkout import ROOT

import cudeform
from cudeform.registry import OPERATORS


def documented():
    """The table's rows: (function, forward, backward)."""
    page = (ROOT / "docs" / "cuda_graphs.md").read_text()
    return re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", page, re.M)


def by_image(boxes, images):
    """An array (K, 4) for each image."""
    return [np.ascontiguousarray(boxes[boxes[:, 0] == image, 1:]) for image in range(images)]


def forms(case):
    """A case as it is, and with its boxes image by image."""
    yield case
    if "boxes" in case.arrays:
        boxes = by_image(case.arrays["boxes"], len(case.arrays["input"]))
        yield replace(case, arrays={**case.arrays, "boxes": boxes})


def is_recorded(cupy, call):
    """Whether the stand-in records it; it may ask for memory, but only where it is told to."""
    stream, pool = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool()
    before = len(cupy.get_default_memory_pool().sizes)
    with stream, cupy.cuda.using_allocator(pool.malloc):
        stream.begin_capture()
        try:
            call()
        except RuntimeError as error:
            assert "cudaErrorStreamCaptureUnsupported" in str(error)
            return False
        finally:
            stream.end_capture()
    assert len(cupy.get_default_memory_pool().sizes) == before
    return True


def on_device(cupy, value):
    return [cupy.asarray(v) for v in value] if isinstance(value, list) else cupy.asarray(value)


def recorded(cupy, row):
    """[backward][whether it is recorded] of all cases with work to do."""
    found = {False: [], True: []}
    for case in cases(row.name).values():
        single = case.astype(np.float32)
        shape = row.call(single).shape
        if 0 in shape:
            continue
        for form in forms(single):
            given = replace(
                form, arrays={name: on_device(cupy, a) for name, a in form.arrays.items()}
            )
            grad_output = cupy.zeros(shape, np.float32)
            calls = (
                lambda given=given: row.call(given),
                lambda given=given, grad=grad_output: row.call_backward(grad, given),
            )
            for backward, call in enumerate(calls):
                found[bool(backward)].append(is_recorded(cupy, call))
    return found


def test_the_table_has_every_operator():
    assert [name for name, *_ in documented()] == [row.name for row in OPERATORS]


@pytest.mark.parametrize("row", OPERATORS, ids=lambda row: row.name)
def test_what_the_page_says_is_what_is_recorded(cupy, row):
    said = {name: (forward, backward) for name, forward, backward in documented()}
    found = recorded(cupy, row)
    assert all(found[False]) and all(found[True])
    assert said[row.name] == ("yes", "yes")


@pytest.mark.parametrize("levels", [16, 17])
def test_attention_to_many_levels(cupy, rng, levels):
    value, points = (
        rng.standard_normal((1, levels, 1, 4)),
        rng.uniform(size=(1, 2, 1, levels, 1, 2)),
    )
    weights = rng.uniform(size=(1, 2, 1, levels, 1))
    arrays = [cupy.asarray(a.astype(np.float32)) for a in (value, points, weights)]
    shapes = ((1, 1),) * levels
    call = lambda: cudeform.ms_deform_attn(arrays[0], shapes, *arrays[1:])  # noqa: E731
    assert is_recorded(cupy, call) == (levels <= 16)
