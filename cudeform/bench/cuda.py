"""The benchmark on a GPU: CUDA events, and inputs rotated past the L2 cache.

Every call reads another copy of its arguments, so many that they fill the L2 cache twice: all
sides are fed from device memory. Eager calls and replays of captured graphs are timed apart: the
first hold what Python and the launches cost, the second do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import cycle
from statistics import median
from typing import Any

import numpy as np

from cudeform.bench import cuda_contender, cuda_peers
from cudeform.bench.cuda_contender import Contender, Peer, of_torch
from cudeform.bench.workload import Aggregation, Attention, Convolution, Workload, cast, error
from cudeform.commands.dtypes import numpy_dtype

OURS, OURS_LAST = "cudeform", "cudeform NHWC"
PASSES = ("forward", "backward")
# dtype, precision -> the largest error, in units of the largest magnitude
SETTINGS = {
    ("float32", "ieee"): 1e-4,
    ("float32", "tf32"): 3e-3,
    ("float16", "ieee"): 4e-3,
    ("bfloat16", "ieee"): 3e-2,
}
SPARED = 1e-3  # of the gradients of coordinates
SPARED_BINS = 1e-2  # of what whole pixels are pooled to: a bin that ends on a line of them


def measure(cupy: Any, workloads: Iterable[Workload], turns: int) -> Iterable[dict[str, Any]]:
    """Forward and backward of each workload in each setting."""
    for work in workloads:
        for setting in settings(work):
            for name in PASSES:
                yield measure_one(cupy, work, setting, name, turns)


def settings(work: Workload) -> list[tuple[str, str]]:
    """Those that make a difference: a pooling multiplies no matrices."""
    return [s for s in SETTINGS if s[1] == "ieee" or isinstance(work, Convolution)]


def measure_one(
    cupy: Any,
    work: Workload,
    setting: tuple[str, str],
    name: str,
    turns: int,
    graphs: bool = False,
    arrays: dict[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """One pass of one workload in one setting; with `graphs` replays of captured calls as well.

    `arrays` are the workload's, which take their time to make.

    What of ours is not as precise as it has to be, or cannot be called, is `wrong`. Of another
    library that is only kept, as `imprecise` and `unavailable`.
    """
    dtype, precision = setting
    host = cast(arrays or work.arrays(), numpy_dtype(dtype))
    expected = cuda_contender.exact(cupy, work, host, name == "backward")
    names = [n for n in work.gradients if n in host] if name == "backward" else ["output"]
    timers, errors, unavailable = {}, {}, {}
    for peer, set_up in contenders(cupy, work, host, name == "backward", setting).items():
        try:
            contender = set_up()
            found = contender.on_host(contender.calls[0]())
            errors[peer] = _error(work, names, found, expected)
            timers[peer] = _timer(cupy, contender.calls)
            if graphs and contender.capture is not None:
                graph = f"{peer}, graph"
                replays = [contender.capture(call) for call in contender.calls]
                found = contender.on_host(replays[0]())
                errors[graph] = _error(work, names, found, expected)
                if not errors[graph] <= 2 * max(errors[peer], SETTINGS[setting]):
                    raise RuntimeError("the graph computes something else than the call")
                timers[graph] = _timer(cupy, replays)
        except Exception as problem:  # what one contender cannot do must not end the others' run
            lines = str(problem).splitlines() or [""]
            unavailable[peer] = f"{type(problem).__name__}: {lines[0]}"
    medians = _take_turns(timers, turns)
    above: dict[str, Any] = {peer: e for peer, e in errors.items() if not e <= SETTINGS[setting]}
    first = medians.get(OURS, float("nan"))
    return {
        "operator": work.operator,
        "workload": str(work),
        "pass": name,
        "dtype": "tf32" if precision == "tf32" else dtype,
        "median_ms": {peer: round(value, 5) for peer, value in medians.items()},
        "ratio": {peer: round(value / first, 3) for peer, value in medians.items()},
        "errors": errors,
        "wrong": {p: why for p, why in {**above, **unavailable}.items() if p.startswith(OURS)},
        "imprecise": {p: e for p, e in above.items() if not p.startswith(OURS)},
        "unavailable": unavailable,
    }


def _error(
    work: Workload, names: list[str], found: list[np.ndarray], expected: list[np.ndarray]
) -> float:
    """The largest of all arrays.

    Where a point lies on a line of pixels, up to rounding, the slopes on both sides are right: so
    of the gradient of coordinates a few are spared. Likewise a bin of whole pixels may have one
    line of them more.
    """
    spared = {work.row.coordinates: SPARED}
    if work.operator in ("roi_pool", "ps_roi_pool"):
        spared |= dict.fromkeys(("output", "input"), SPARED_BINS)
    pairs = zip(names, found, expected, strict=True)
    return max(error(array, want, spared.get(name, 0.0)) for name, array, want in pairs)


def contenders(
    cupy: Any,
    work: Workload,
    host: dict[str, np.ndarray],
    backward: bool,
    setting: tuple[str, str],
) -> dict[str, Callable[[], Contender]]:
    """Who can be asked for a pass in a setting, each set up when it is called."""
    cache = cupy.cuda.Device().attributes["L2CacheSize"]
    given = work, host, backward, 2 + 2 * cache // sum(array.nbytes for array in host.values())
    ours = partial(cuda_contender.ours, cupy, *given)
    found: dict[str, Callable[[], Contender]] = {OURS: ours}
    if isinstance(work, Convolution):
        found[OURS] = partial(ours, precision=setting[1])
        found[OURS_LAST] = partial(ours, layout="NHWC", precision=setting[1])
    for name, peer in _peers(work, *setting).items():
        # Autograd's backward stays on the stream of the forward, which no capture sees.
        graphs = not (backward and peer is cuda_peers.deformops)
        found[name] = partial(of_torch, peer, *given, *setting, graphs=graphs)
    return found


def _peers(work: Workload, dtype: str, precision: str) -> dict[str, Peer]:
    if isinstance(work, Aggregation):
        return {work.operator.replace("dcn", "DCN"): getattr(cuda_peers, work.operator)}
    found: dict[str, Peer] = {}
    # torchvision's poolings take boxes in the dtype of the features: 16 bits are too few for them
    if work.in_torchvision and (isinstance(work, Convolution) or dtype == "float32"):
        found["torchvision"] = cuda_peers.torchvision
    if isinstance(work, Attention):
        found["kernel hub"] = cuda_peers.kernel_hub
        found["Deformable DETR"] = cuda_peers.deformable_detr
    if isinstance(work, (Attention, Convolution)) and precision == "ieee":
        found["deformops"] = cuda_peers.deformops
    return found


def _timer(cupy: Any, calls: list[Callable[[], Any]]) -> Callable[[], float]:
    """A function that makes the next call and returns the milliseconds between two events.

    CuPy's and PyTorch's current stream are both the default one here, so one pair of events
    serves both.
    """
    turn = cycle(calls)
    start, stop = cupy.cuda.Event(), cupy.cuda.Event()

    def timed() -> float:
        call = next(turn)
        start.record()
        call()
        stop.record()
        stop.synchronize()
        return cupy.cuda.get_elapsed_time(start, stop)

    return timed


def _take_turns(timers: dict[str, Callable[[], float]], turns: int) -> dict[str, float]:
    """The median of each, in milliseconds; the first three turns warm up."""
    times: dict[str, list[float]] = {name: [] for name in timers}
    for turn in range(turns + 3):
        for name, timer in timers.items():
            value = timer()
            if turn >= 3:
                times[name].append(value)
    return {name: median(values) for name, values in times.items()}
