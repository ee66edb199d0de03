"""The CPU's poolings read what their boxes cover, and take little memory for it, at any size."""

import sys

import numpy as np
import pytest
from cases import operator
from poolings import PEAK, POOLINGS, many
from processes import python

from cudeform import threads
from cudeform.cases import Case
from cudeform.cpu.regions import frames, gradients, pool


def few(name, case, dtype):
    """A case of the registry on larger images, with channels for vectors and without."""
    arrays = {k: a.astype(dtype) for k, a in many(name, 40).arrays.items()}
    arrays["input"] = arrays["input"][:, : case.arrays["input"].shape[1]]
    if "ps" not in name and case.name != "max":
        arrays["input"] = np.concatenate([arrays["input"]] * 9, 1)
    for argument in ("offset", "mask"):
        arrays.pop(argument, None)
        if argument in case.arrays:
            shape = (40, *case.arrays[argument].shape[1:])
            arrays[argument] = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    return Case(case.name, arrays, case.options)


def outcome(row, case, lying=lambda array: array):
    output = row.call(case)
    found = [output, *row.call_backward(lying(output), case)]
    return [array.tobytes() for array in found if array is not None]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", POOLINGS)
def test_planes_as_they_lie_give_the_bytes_of_whole_images(monkeypatch, name, dtype):
    """Whether laid out at once or read where they lie, and summed up in one place or in frames."""
    row = operator(name)
    before = threads.get_num_threads()
    for case in row.cases(np.random.default_rng(0)):
        asked = few(name, case, dtype)
        seen = []
        for little, side, count in ((False, 64, 2), (True, 8, 1), (True, 16, 3)):
            for module in (pool, gradients):
                monkeypatch.setattr(module, "reads_planes", lambda *_, little=little: little)
            monkeypatch.setattr(frames, "_SIDES", (side, side))
            monkeypatch.setattr(frames, "_LISTED", 7 if side == 16 else 2**14)
            threads.set_num_threads(count)
            try:
                seen.append(outcome(row, asked))
            finally:
                threads.set_num_threads(before)
        assert seen[0] == seen[1] == seen[2], case.name


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("little", [False, True])
def test_inputs_of_any_strides_give_the_bytes_of_contiguous_ones(monkeypatch, dtype, little):
    for module in (pool, gradients):
        monkeypatch.setattr(module, "reads_planes", lambda *_: little)
    record = np.dtype([("value", dtype), ("odd", "u1")])
    for name in ("roi_align", "ps_roi_pool"):
        row, case = operator(name), many(name, 20)
        arrays = {k: a.astype(dtype) for k, a in case.arrays.items()}
        image = arrays["input"]
        inside = np.zeros(image.shape, record)
        inside["value"] = image
        for strided in (
            np.asfortranarray(image),
            image[::-1, ::-1, ::-1, ::-1],
            np.repeat(image, 2, 3)[..., ::2],
            np.broadcast_to(image[:1, :1, :1], image.shape),
            inside["value"],
        ):
            given = Case("strided", {**arrays, "input": strided}, case.options)
            plain = {**arrays, "input": np.ascontiguousarray(strided)}
            assert outcome(row, given) == outcome(row, Case("plain", plain, case.options))


@pytest.mark.parametrize("name", ["roi_align", "roi_pool", "deform_roi_pool", "ps_roi_pool"])
def test_results_of_any_strides_are_gone_through_in_pieces(monkeypatch, name):
    """So are offsets, masks and the places of maxima: to the bytes of contiguous ones."""
    row = operator(name)
    for case in row.cases(np.random.default_rng(0)):
        asked = few(name, case, "float32")
        expected = outcome(row, asked)
        lying = {k: np.asfortranarray(a) if k != "boxes" else a for k, a in asked.arrays.items()}
        with monkeypatch.context() as changed:
            changed.setattr(pool, "prepared", lambda *_: None)
            for module in (pool, gradients):
                changed.setattr(module, "taken_whole", lambda *_: False)
            assert outcome(row, Case(case.name, lying, case.options), np.asfortranarray) == expected


MEMORY = """
import numpy, cudeform
{peak}
dtype, side = "{dtype}", {side}
grad = lambda *shape: numpy.ones(shape, dtype)
ps = dict(output_size=2, spatial_scale=1.0, output_dim=1, group_size=2)
seven, two = grad(1, 4, 7, 7), grad(1, 1, 2, 2)
offset, cells = grad(1, 2, 7, 7), grad(1, 2, 2, 2)
few = dict(output_size=7, sampling_ratio=2)
CALLS = dict(
    roi_align=lambda i, b: cudeform.roi_align(i, b, 7),
    roi_align_max=lambda i, b: cudeform.roi_align(i, b, 7, mode="max", sampling_ratio=2),
    roi_pool=lambda i, b: cudeform.roi_pool(i, b, 7),
    ps_roi_align=lambda i, b: cudeform.ps_roi_align(i, b, 2),
    ps_roi_pool=lambda i, b: cudeform.ps_roi_pool(i, b, 2),
    deform_roi_pool=lambda i, b: cudeform.deform_roi_pool(i, b, offset, **few),
    deform_ps_roi_pool=lambda i, b: cudeform.deform_ps_roi_pool(i, b, cells, **ps),
    roi_align_b=lambda i, b: cudeform.roi_align_backward(seven, i, b, **few),
    roi_align_max_b=lambda i, b: cudeform.roi_align_backward(seven, i, b, mode="max", **few),
    roi_pool_b=lambda i, b: cudeform.roi_pool_backward(seven, i, b, 7),
    ps_roi_align_b=lambda i, b: cudeform.ps_roi_align_backward(two, i, b, 2, sampling_ratio=2),
    ps_roi_pool_b=lambda i, b: cudeform.ps_roi_pool_backward(two, i, b, 2),
    deform_roi_pool_b=lambda i, b: cudeform.deform_roi_pool_backward(seven, i, b, offset, **few),
    deform_ps_roi_pool_b=lambda i, b: cudeform.deform_ps_roi_pool_backward(two, i, b, cells, **ps),
)
small = numpy.array([[0, 3, 3, 23, 23]], "float32")
huge = numpy.array([[0, 1, 1, side - 2, side - 2]], "float32")
image = numpy.zeros((1, 4, side, side), dtype)  # of which only what is touched is there
same = numpy.broadcast_to(numpy.ones((1, 1, 1, 1), dtype), image.shape)
for name, call in CALLS.items():
    call(image, small)  # compiles
for name, call in CALLS.items():
    print(name, "small", *peak(lambda: call(image, small)))
    print(name, "same", *peak(lambda: call(same, small)))
for name in ("roi_align", "roi_align_max", "roi_pool", "ps_roi_pool", "deform_roi_pool"):
    print(name, "huge", *peak(lambda: CALLS[name](same, huge)))
for name in ("roi_align_b", "deform_roi_pool_b"):
    print(name, "huge", *peak(lambda: CALLS[name](same, huge)))
boxes, each = numpy.tile(huge, (500, 1)), numpy.broadcast_to(seven, (500, 4, 7, 7))
print("roi_align_b", "huge", *peak(lambda: cudeform.roi_align_backward(each, same, boxes, **few)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_memory_is_bounded_whatever_the_image(dtype):
    """In a process of its own: 64 megapixels of four channels; a small box, and huge ones."""
    said = python(MEMORY.format(peak=PEAK, dtype=dtype, side=8000))
    lines = [line.split() for line in said.splitlines()]
    assert len(lines) == 36, said
    for name, box, taken, results in lines:
        of_results = int(results) if box == "huge" else 0  # of zeros nothing is there
        assert int(taken) - of_results < 64e6, (name, box, taken)
