"""The kernels of regions of interest in the emulator, beyond what the registry's cases reach."""

from itertools import product

import backends
import numpy as np
import pytest
import reference
from cases import dtype_of, problem
from emulator.device import EmulatorDevice, EmulatorError, install, to_device, to_host
from kernel_runs import SCHEDULES, kernel_names, planted
from poolings import calls
from tolerances import assert_close

import cudeform
from cudeform.cuda import lanes, layout
from cudeform.cuda.compile import SCALARS, flatten
from cudeform.cuda.regions import pooling, rows

EMULATOR = backends.BACKENDS["emulator"]
READS = [  # a case for each way to read, and its forward and backward kernels
    ("roi_align", "wide"),
    ("roi_align", "adaptive"),
    ("roi_align", "max"),
    ("roi_pool", "max"),
    ("roi_pool", "avg"),
    ("deform_roi_pool", "v2"),
    ("deform_ps_roi_pool", "classes"),
    ("ps_roi_pool", "msra"),
]
SUMMED = [read for read in READS if read[1] != "max"]  # whose gradient is gathered


def results(todo):
    return {"output": todo.forward(EMULATOR), **todo.backward(EMULATOR)}


def assert_same_bytes(got, want):
    assert got.keys() == want.keys()
    for name, array in want.items():
        if array is not None:
            np.testing.assert_array_equal(got[name], array, err_msg=name)


# -- schedules, and bugs that must be found -------------------------------------------------------


@pytest.mark.parametrize(("op", "case"), READS)
def test_order_of_threads_does_not_matter(op, case):
    backends.require(EMULATOR)
    todo = problem(op, case, "float32")
    found = []
    for order, seed in SCHEDULES:
        with install(EmulatorDevice(order=order, seed=seed)):
            found.append(results(todo))
    for other in found[1:]:
        assert_same_bytes(other, found[0])


STAGED = "+ pack * VEC));"
BARRIER = "    __syncwarp(0xffffffffu);\n"
PLANTED = {  # text of the kernels, with what, and what is found
    "no barrier before the notes are read": (BARRIER + "    const int here", "    const int here"),
    "no barrier before new notes are made": ("use(shared[i]);\n" + BARRIER, "use(shared[i]);\n"),
    "as many rounds as this row needs": ("first < walk.rounds", "first < walk.count"),
    "a row that is not there": ("if (number < p.rows) {", "{"),
    "no barrier before values are written": (STAGED + "\n  __syncthreads();", STAGED),
    "a note that nobody makes": ("task.lane < walk.count", "task.lane < walk.count && first > 0"),
    "a pixel too far": ("min(max(cell.x + (k & 1), 0), width - 1)", "cell.x + (k & 1) + width"),
}  # fmt: skip
MESSAGES = "race|divergent|out of bounds|uninitialised"


@pytest.mark.parametrize(("order", "seed"), SCHEDULES[:3])
@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bug_is_caught(bug, order, seed):
    backends.require(EMULATOR)
    # Two lanes and 2 to 40 samples a row: rows of a warp need different numbers of rounds.
    rng = np.random.default_rng(1)
    input = rng.standard_normal((1, 8, 12, 12)).astype(np.float32)
    size = rng.uniform(2, 9, (7, 2))
    boxes = np.concatenate([np.zeros((7, 1)), rng.uniform(0, 3, (7, 2)), 3 + size], 1)
    flatten = planted(*PLANTED[bug], "regions.cu")
    with install(EmulatorDevice(order=order, seed=seed, flatten=flatten)):
        with pytest.raises(EmulatorError, match=MESSAGES):
            cudeform.roi_align(to_device(input), to_device(boxes.astype(np.float32)), 2)


# -- every variant --------------------------------------------------------------------------------


def on_device(given):
    return {k: to_device(v) if isinstance(v, np.ndarray) else v for k, v in given.items()}


def check(op, given, dtype):
    """Compare forward and backward with the reference."""
    exact = {k: v.astype(np.float64) if isinstance(v, np.ndarray) else v for k, v in given.items()}
    output = to_host(getattr(cudeform, op)(**on_device(given)))
    assert_close(output, getattr(reference, op)(**exact), dtype, what=f"{op} output")
    grad = np.random.default_rng(9).standard_normal(output.shape).astype(output.dtype)
    got = getattr(cudeform, op + "_backward")(to_device(grad), **on_device(given))
    want = getattr(reference, op + "_backward")(grad.astype(np.float64), **exact)
    for name, gradient in want.items():
        assert_close(to_host(getattr(got, name)), gradient, dtype, what=f"{op} {name}")


@pytest.mark.parametrize("index", ["int", "long long"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_every_variant_runs_clean_on_small_arrays(monkeypatch, device, dtype, index):
    """Both widths of the index, which are forced, every vector width, split gathers, chunks."""
    monkeypatch.setattr(layout, "index_type", lambda elements: index)
    widest = 16 // dtype_of(dtype).itemsize
    for channels, least in product({widest, widest // 2, 2, 3}, (0, 1 << 10)):
        monkeypatch.setattr(lanes, "PART_POINTS", least)
        for op, given in calls(channels, dtype):
            check(op, given, dtype)
    monkeypatch.setattr(lanes, "PART_POINTS", 0)
    monkeypatch.setattr(pooling, "WORKSPACE_BYTES", 1 << 9)
    for op, given in calls(3, dtype):
        if op in ("roi_align", "roi_pool", "ps_roi_pool"):
            check(op, given, dtype)
    launched = {}
    for file, defines, kernel in device.launched:
        launched.setdefault((file, defines), set()).add(kernel)
    wanted = [
        unit
        for unit in rows.units()
        if unit.file.startswith("region")
        and ("SCALAR", SCALARS[dtype]) in unit.defines
        and dict(unit.defines).get("OFFSET", SCALARS[dtype]) == SCALARS[dtype]
        and dict(unit.defines).get("INDEX", index) == index
    ]
    assert len(wanted) == widest.bit_length() + 2
    for unit in wanted:
        assert (unit.file, unit.defines) in launched
    for file in ("regions.cu", "region_rows.cu", "region_planes.cu"):
        ran = set().union(*(kernels for (name, _), kernels in launched.items() if name == file))
        every = set(kernel_names(next(unit for unit in wanted if unit.file == file)))
        if widest < 8:  # what is not rounded is summed where it belongs
            every = {kernel for kernel in every if not kernel.endswith("_sums")}
        assert ran == every


@pytest.mark.parametrize("channels", [33 * 2, 64, 1])
def test_more_channels_than_lanes_and_fewer(device, channels):
    """Several slices of channels, of which the last is not full; one lane for a row."""
    for op, given in calls(channels, "float64"):
        if op in ("roi_align", "roi_pool", "deform_roi_pool"):
            check(op, given, "float64")


@pytest.mark.parametrize("part", [(3, 2), (5, 7), (1, 4)])
def test_parts_that_do_not_divide_the_bins(device, part):
    """Parts of several bins, of different numbers of bins, and more parts than bins."""
    rng = np.random.default_rng(6)
    given = {
        "input": rng.standard_normal((1, 8, 7, 6)),
        "boxes": np.array([[0, 0, 0, 5, 6], [0, 1, 2, 4, 4]], np.float64),
        "offset": rng.standard_normal((2, 4, *part)),
        "mask": rng.uniform(size=(2, 2, *part)),
        "output_size": (4, 5),
        "part_size": part,
    }
    options = dict(spatial_scale=1.0, output_dim=2, group_size=2, sample_per_part=3)
    check("deform_ps_roi_pool", {**given, **options}, "float64")


# -- chunks ---------------------------------------------------------------------------------------


def dyadic(op):
    """Arguments whose results and gradients are sums without a rounding in float32."""
    rng = np.random.default_rng(4)
    boxes = np.array([[n, x, y, x + 4, y + 8] for n, x, y in rng.integers(0, 2, (9, 3))])
    boxes = np.concatenate([boxes, [[0, 50, 50, 60, 60]], boxes[:3] - [0, 4, 8, 0, 0]])
    given = {
        "input": rng.integers(-4, 5, (2, 4, 9, 8)),
        "boxes": boxes,
        "output_size": 2,
    }
    if op == "deform_roi_pool":
        given["offset"] = rng.integers(-4, 5, (13, 2, 2, 2))
        given["mask"] = rng.integers(-2, 3, (13, 1, 2, 2))
        given["gamma"] = 0.0625
    given = {k: v.astype(np.float32) if isinstance(v, np.ndarray) else v for k, v in given.items()}
    options = {"roi_align": {"aligned": True}, "roi_pool-avg": {"mode": "avg"}}
    given.update(options.get(op, {}))
    grad = rng.integers(-4, 5, (13, 1 if op.startswith("ps") else 4, 2, 2)).astype(np.float32)
    return op.split("-")[0], grad, given


@pytest.mark.parametrize(
    ("op", "options"),
    [
        ("roi_align", {}),
        ("roi_align", {"sampling_ratio": 2}),
        ("roi_align", {"mode": "max"}),
        ("roi_pool", {}),
        ("roi_pool-avg", {}),
        ("ps_roi_pool", {}),
        ("deform_roi_pool", {}),
        ("deform_roi_pool", {"sampling_ratio": 2}),
    ],
)
def test_chunks_give_the_same_bytes(monkeypatch, device, op, options):
    """Regions, rows, samples and images a few at a time, with numbers that need no rounding."""
    name, grad, given = dyadic(op)
    given.update(options)

    def run():
        arguments = on_device(given)
        output = getattr(cudeform, name)(**arguments)
        gradients = getattr(cudeform, name + "_backward")(to_device(grad), **arguments)
        return {
            "output": to_host(output),
            **{k: to_host(v) for k, v in gradients._asdict().items()},
        }

    whole = run()
    assert np.abs(whole["input"]).max() > 0
    for limit in (1 << 9, 1 << 12):
        monkeypatch.setattr(pooling, "WORKSPACE_BYTES", limit)
        assert_same_bytes(run(), whole)


@pytest.mark.parametrize(("op", "case"), [*SUMMED, ("ps_roi_align", "fixed")])
def test_small_workspaces_round_once(monkeypatch, device, op, case):
    todo = problem(op, case, "float16")
    whole = results(todo)
    monkeypatch.setattr(pooling, "WORKSPACE_BYTES", 1 << 8)
    device.launched.clear()
    parts = results(todo)
    assert any(kernel.endswith("_sums") for _, _, kernel in device.launched)
    for name, want in whole.items():
        if want is not None:
            assert_close(parts[name], want.astype(np.float64), "float16", what=name)


@pytest.mark.parametrize("op", ["roi_align", "ps_roi_pool"])
def test_more_regions_and_rows_than_a_block_lists_at_once(device, op):
    """In one tile of pixels, and of another image between them."""
    rng = np.random.default_rng(2)
    corner = rng.uniform(-2, 6, (700, 2))
    boxes = [rng.integers(0, 2, (700, 1)), corner, corner + rng.uniform(1, 7, (700, 2))]
    image = rng.standard_normal((2, 4, 7, 6))
    given = {"input": image, "boxes": np.concatenate(boxes, 1), "output_size": 2}
    got = getattr(cudeform, op)(**on_device(given))
    grad = rng.standard_normal(got.shape)
    call = getattr(cudeform, op + "_backward")
    found = to_host(call(to_device(grad), **on_device(given)).input)
    np.testing.assert_allclose(found, call(grad, **given).input, rtol=1e-12, atol=1e-12)


REGION, ROW = "      start += THREADS;", "        begin += THREADS;"
USE = "use(listed.rows + first, count);"
SYNC = "__syncthreads();"
TILES = {  # text of the kernels, with what, and what is found
    "no barrier before the list is read": (f"{REGION}\n      {SYNC}", REGION),
    "no barrier before the rows are read": (f"{ROW}\n        {SYNC}", ROW),
    "no barrier before shares are read": (f"{SYNC}\n        {USE}", USE),
    "no barrier before shares are made anew": (f"{USE}\n        {SYNC}", USE),
    "a list that is too short": ("2 * THREADS]", "THREADS]"),
    "a row that is not there": ("candidate < found * per_region;", "true;"),
}


@pytest.mark.parametrize("bug", TILES)
def test_planted_bug_of_the_gather_is_caught(bug):
    backends.require(EMULATOR)
    rng = np.random.default_rng(3)
    corner = rng.uniform(0, 3, (400, 2))
    boxes = np.concatenate([np.zeros((400, 1)), corner, corner + 4], 1).astype(np.float32)
    given = {"input": np.zeros((1, 4, 9, 9), np.float32), "boxes": boxes, "output_size": 1}
    grad = np.ones((400, 4, 1, 1), np.float32)
    old, new = TILES[bug]
    assert old in flatten(next(unit for unit in rows.units() if unit.file == "regions.cu"))
    changed = lambda unit: flatten(unit).replace(old, new)  # noqa: E731
    with install(EmulatorDevice(order="random", seed=1, flatten=changed)):
        with pytest.raises(EmulatorError, match=MESSAGES):
            cudeform.roi_align_backward(to_device(grad), **on_device(given))


def _plan(input, boxes, output_size):
    return cudeform.plans.regions.RoiPlan(
        *input.shape, len(boxes), output_size, scale=1.0, region="unaligned", reads="grid_centers"
    )


def test_a_row_takes_as_much_as_it_is_given(device):
    """New arrays are full of NaN in the emulator. In float64 a row has a gap."""
    boxes = np.array([[0, 1, 2, 8, 7], [0, 0, 0, 3, 3]], np.float32)
    plan = _plan(np.empty((1, 2, 9, 9)), boxes, (2, 3))
    found = to_host(rows.Launcher(device, plan, boxes.dtype).rows(to_device(boxes), None, None))
    assert len(found) == 2 * 2 * 3 and not np.isnan(found).any()


# -- what the host waits for, and boxes that are no boxes -----------------------------------------


@pytest.mark.parametrize(("op", "case"), [*READS, ("ps_roi_align", "adaptive")])
def test_nothing_waits_for_the_device(monkeypatch, device, op, case):
    todo = problem(op, case, "float32")
    waits = []
    monkeypatch.setattr(device, "to_host", waits.append)
    monkeypatch.setattr(device, "to_device", waits.append)
    results(todo)
    assert waits == []


NO_BOXES = [
    [np.nan, 1, 3, 4],
    [1, 1, np.inf, 4],
    [-np.inf, 1, 3, np.inf],
    [1e30, 1e30, 2e30, 2e30],
    [-1e30, -1e30, -9e29, -9e29],
    [-3e38, 1, 3e38, 4],
]


@pytest.mark.parametrize(
    "op", [row.name for row in cudeform.registry.OPERATORS if row.family == "regions"]
)
def test_boxes_that_are_nowhere(device, op):
    rng = np.random.default_rng(0)
    boxes = np.array([[0, *box] for box in NO_BOXES], np.float32)
    given = {"input": rng.standard_normal((1, 8, 5, 6)).astype(np.float32), "boxes": boxes}
    given["output_size"] = 2
    if op == "deform_roi_pool":
        given["offset"] = np.full((6, 2, 2, 2), 0.5, np.float32)
    if op == "deform_ps_roi_pool":
        given["offset"] = np.full((6, 2, 2, 2), 0.5, np.float32)
        given.update(spatial_scale=1.0, output_dim=2, group_size=2)
    output = getattr(cudeform, op)(**on_device(given))
    np.testing.assert_array_equal(to_host(output), 0)
    grad = rng.standard_normal(output.shape).astype(np.float32)
    for gradient in getattr(cudeform, op + "_backward")(to_device(grad), **on_device(given)):
        if gradient is not None:
            np.testing.assert_array_equal(to_host(gradient), 0)


def test_samples_of_wide_boxes_are_bounded(device):
    """A box of 1e30 pixels that covers the image has no more samples than the image has places."""
    plan = cudeform.plans.regions.RoiPlan(
        1, 1, 5, 6, 3, bins=(1, 1), scale=1.0, region="aligned", reads="grid_centers"
    )
    launcher = rows.Launcher(device, plan, np.float32)
    boxes = [[0, -1e30, -1e30, 1e30, 1e30], [0, -1e6, 0, 1e6, 4], [0, 0, -1e4, 5, 3]]
    found = to_host(launcher.rows(to_device(np.array(boxes, np.float32)), None, None))
    counts = found.view(np.int32)[:, 5:7]
    assert counts.min() >= 0 and (counts.max(0) <= (9, 10)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30])
@pytest.mark.parametrize("op", ["deform_roi_pool", "deform_ps_roi_pool"])
def test_offsets_that_are_nowhere(device, op, value):
    rng = np.random.default_rng(0)
    boxes = np.array([[0, 1, 1, 4, 4], [0, 0, 0, 3, 5]], np.float32)
    offset = np.full((2, 2, 2, 2), value, np.float32)
    offset[1, :, 0, 0] = 0  # one bin that stays
    given = dict(input=rng.standard_normal((1, 8, 5, 6)).astype(np.float32), boxes=boxes)
    given.update(offset=offset, output_size=2, spatial_scale=1.0)
    if op == "deform_ps_roi_pool":
        given.update(output_dim=2, group_size=2)
    output = to_host(getattr(cudeform, op)(**on_device(given)))
    assert (output[1, :, 0, 0] != 0).all()
    assert np.count_nonzero(output) == output.shape[1]
    grad = np.ones(output.shape, np.float32)
    got = getattr(cudeform, op + "_backward")(to_device(grad), **on_device(given))
    assert np.isfinite(to_host(got.input)).all() and to_host(got.input).any()
    moved = to_host(got.offset)
    np.testing.assert_array_equal(moved[0], 0)
    np.testing.assert_array_equal(moved[1, :, 1], 0)


def test_the_first_of_equal_pixels_and_of_nans_is_the_largest(device):
    image = np.zeros((1, 3, 3, 4), np.float32)
    image[0, 0, 1, 2] = image[0, 0, 2, 1] = 5
    image[0, 1, 1, 1] = image[0, 1, 2, 2] = np.nan
    image[0, 2] = -np.inf
    boxes = np.array([[0, 0, 0, 3, 2], [0, 9, 9, 9, 9]], np.float32)
    output, argmax = cudeform.roi_pool(to_device(image), to_device(boxes), 1, return_argmax=True)
    np.testing.assert_array_equal(to_host(output)[:, :, 0, 0], [[5, np.nan, -np.inf], [0, 0, 0]])
    np.testing.assert_array_equal(to_host(argmax)[:, :, 0, 0], [[6, 5, 0], [-1, -1, -1]])


# -- the transpose behind it ----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 5, 3, 33), (1, 40, 2, 7), (3, 1, 4, 35)])
def test_transpose_of_interleaved_matrices(device, shape):
    batch, rows, groups, columns = shape
    source = np.arange(np.prod(shape)).reshape(shape).astype(np.float32)
    target = device.empty((batch, groups, columns, rows), np.float32)
    matrices = batch * groups
    layout.transpose(
        device,
        to_device(source),
        target,
        (matrices, rows, columns),
        groups=groups,
        of_source=layout.Strides(groups * columns, columns),
    )
    np.testing.assert_array_equal(to_host(target), source.transpose(0, 2, 3, 1))
    back = device.empty(shape, np.float32)
    layout.transpose(
        device,
        target,
        back,
        (matrices, columns, rows),
        groups=groups,
        of_target=layout.Strides(groups * columns, columns),
    )
    np.testing.assert_array_equal(to_host(back), source)
