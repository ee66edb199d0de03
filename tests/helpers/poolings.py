"""Poolings of regions at sizes where work is cut up, and the memory that a call takes."""

import numpy as np
from cases import dtype_of, operator

from cudeform.cases import Case
from cudeform.registry import OPERATORS

__all__ = ["PEAK", "POOLINGS", "calls", "many"]

POOLINGS = [row.name for row in OPERATORS if row.family == "regions"]

# A program's function: how far a call raises its memory, and the bytes of results that it wrote to
PEAK = """
import gc
from pathlib import Path

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(l.split()[1]) * 1024 for l in lines if l.startswith(field))

def peak(call):
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    results = call()
    results = results if isinstance(results, tuple) else (results,)
    touched = sum(r.nbytes for r in results if r is not None and r.any())
    return status("VmHWM") - before, touched

def peaks(*series):  # of large calls, when small ones have compiled what they need
    for made, small, large in series:
        for call, given, options in made(small):
            call(*given, **options)
        for call, given, options in made(large):
            print(call.__name__, *peak(lambda: call(*given, **options)))
"""


def many(name, count, n=3, size=(30, 40), seed=0):
    """The last registry case of a pooling with more and other boxes on larger images."""
    rng = np.random.default_rng(seed)
    *_, case = operator(name).cases(rng)
    center = rng.uniform((0, 0), size[::-1], (count, 2))
    half = rng.uniform(0.01, 0.3, (count, 2)) * size[::-1]
    corners = np.concatenate([center - half, center + half], 1)
    corners /= case.options.get("spatial_scale", 1.0)
    boxes = np.concatenate([rng.integers(0, n, (count, 1)), corners], 1)
    arrays = {
        "input": rng.standard_normal((n, case.arrays["input"].shape[1], *size)),
        "boxes": boxes,
    }
    for name in ("offset", "mask"):
        if name in case.arrays:
            arrays[name] = rng.standard_normal((count, *case.arrays[name].shape[1:]))
    return Case("many", arrays, case.options)


def calls(channels, dtype):
    """Arguments of each operator that together launch every kernel of the family."""
    rng = np.random.default_rng(channels)

    def array(*shape):
        return rng.standard_normal(shape).astype(dtype_of(dtype))

    corner = rng.uniform(-2, 6, (5, 2))
    boxes = np.concatenate(
        [rng.integers(0, 2, (5, 1)), corner, corner + rng.uniform(1, 7, (5, 2))], 1
    )
    boxes = boxes.astype(dtype_of("float64" if dtype == "float64" else "float32"))
    image = {"input": array(2, channels, 7, 6), "boxes": boxes, "output_size": (2, 3)}
    maps = {**image, "input": array(2, 4 * channels, 7, 6), "output_size": 2}
    yield "roi_align", image
    yield "roi_align", {**image, "mode": "max"}
    yield "roi_pool", image
    yield "roi_pool", {**image, "mode": "avg"}
    yield "ps_roi_pool", maps
    yield "deform_roi_pool", {**image, "offset": array(5, 2, 2, 3), "mask": array(5, 1, 2, 3)}
    options = dict(spatial_scale=1.0, output_dim=channels, group_size=2, sample_per_part=2)
    yield "deform_ps_roi_pool", {**maps, "offset": array(5, 2, 2, 2), **options}
