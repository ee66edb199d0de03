"""The kernels of attention in the emulator, beyond what the registry's cases reach."""

import backends
import numpy as np
import pytest
import reference
from cases import DTYPES, dtype_of
from emulator.device import EmulatorDevice, EmulatorError, install, to_device, to_host
from kernel_runs import SCHEDULES, kernel_names, planted
from tolerances import assert_close

import cudeform
from cudeform.arrays import offset_dtypes
from cudeform.cuda import aggregator, attention
from cudeform.cuda.compile import SCALARS

LEVELS = ((4, 7), (3, 3), (1, 2))


def arguments(shapes=LEVELS, points=(3, 6, 1), n=2, queries=5, heads=2, channels=8, **dtypes):
    """Arrays of a call by name, and its grad_output."""
    rng = np.random.default_rng(0)
    pixels, each = sum(height * width for height, width in shapes), (n, queries, heads, sum(points))
    arrays = {
        "value": rng.standard_normal((n, pixels, heads, channels)),
        "sampling_locations": rng.uniform(-0.3, 1.3, (*each, 2)),
        "attention_weights": rng.standard_normal(each),
        "grad_output": rng.standard_normal((n, queries, heads * channels)),
    }
    dtype = dtypes.pop("dtype", "float32")
    return {k: a.astype(dtype_of(dtypes.get(k, dtype))) for k, a in arrays.items()}


def call(arrays, shapes=LEVELS, points=(3, 6, 1), needs=None, **options):
    """Output and gradients by name, on the host."""
    on_device = {k: to_device(a, read_only=True) for k, a in arrays.items()}
    grad_output = on_device.pop("grad_output")
    given = dict(spatial_shapes=shapes, points_per_level=points, **options)
    output = cudeform.ms_deform_attn(**on_device, **given)
    grads = cudeform.ms_deform_attn_backward(grad_output, **on_device, **given, needs=needs)
    found = {"output": output, **grads._asdict()}
    return {k: to_host(a) for k, a in found.items() if a is not None}


def expected(arrays, shapes=LEVELS, points=(3, 6, 1), **options):
    exact = {k: a.astype(np.float64) for k, a in arrays.items()}
    grad_output = exact.pop("grad_output")
    given = dict(**exact, spatial_shapes=shapes, points_per_level=points, **options)
    output = reference.ms_deform_attn(**given)
    return {"output": output, **reference.ms_deform_attn_backward(grad_output, **given)}


def check(arrays, **options):
    found = call(arrays, **options)
    for name, want in expected(arrays, **options).items():
        assert_close(found[name], want, what=name)
    return found


def assert_same_bytes(found, want):
    assert found.keys() == want.keys()
    for name, array in want.items():
        assert found[name].tobytes() == array.tobytes(), name


# -- every variant --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "locations", "weights"),
    [(a, b, c) for a in DTYPES for b in offset_dtypes(a) for c in offset_dtypes(a)],
)
def test_every_variant_runs_clean(device, dtype, locations, weights):
    """All kernels under the checker, with every width of vectors; finer dtypes with one."""
    dtypes = dict(dtype=dtype, sampling_locations=locations, attention_weights=weights)
    widths = (1, 2, 4, 8) if locations == weights == dtype else (8,)
    for channels in widths:
        arrays = arguments(channels=channels, n=1, **dtypes)
        check(arrays, softmax=True)
        check(arrays, method="nearest")
    kind = {("SCALAR", SCALARS[dtype]), ("MIXED", str(int(widths == (8,))))}
    for name in ("aggregate.cu", "gather_values.cu"):
        ran = {(file, defines) for file, defines, _ in device.launched if file == name}
        units = [u for u in attention.units() if u.file == name and kind <= set(u.defines)]
        assert ran == {(unit.file, unit.defines) for unit in units[-len(widths) :]}
        kernels = {kernel for file, _, kernel in device.launched if file == name}
        assert kernels == set(kernel_names(units[0]))


@pytest.mark.parametrize("channels", [1, 3, 32, 40, 64, 150, 256])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_channels(device, channels, dtype):
    """As few as one; as many as a warp takes in several rounds; not a multiple of anything."""
    check(arguments(channels=channels, n=1, queries=3, dtype=dtype), softmax=True)


@pytest.mark.parametrize(
    ("shapes", "points"),
    [
        (((5, 8),), (1,)),
        (((1, 1),), (40,)),
        (((6, 5), (3, 4), (2, 2), (1, 3), (1, 1)), (4,) * 5),
        (((2, 2),) * 16, (1, 2) * 8),
        (((2, 2), (1, 3)) * 10, (1, 2) * 10),  # more than a launch passes by value
    ],
)
@pytest.mark.parametrize("array", [False, True])
def test_levels_and_points(device, shapes, points, array):
    arrays = arguments(shapes, points, channels=4)
    want = expected(arrays, shapes, points)
    sizes = to_device(np.array(shapes, np.int64)) if array else shapes
    found = call(arrays, sizes, points)
    for name, array in want.items():
        assert_close(found[name], array, what=name)


@pytest.mark.parametrize("channels", [4, 40])
@pytest.mark.parametrize("each", [aggregator.CROWD, aggregator.LARGE_CROWD])
def test_crowded_pixels(device, each, channels):
    """Up to a number a group of lanes takes a pixel, beyond it a warp, and then a block."""
    queries, shapes = each // 8, ((1, 1), (1, 2), (2, 2))
    check(arguments(shapes, (8, 9, 8), 1, queries, 1, channels), shapes=shapes, points=(8, 9, 8))


def test_one_gradient_alone_is_that_of_all(device):
    arrays = arguments()
    for options in ({}, {"softmax": True}, {"method": "nearest", "softmax": True}):
        whole = call(arrays, **options)
        for name in ("value", "sampling_locations", "attention_weights"):
            (found,) = (a for k, a in call(arrays, needs=[name], **options).items() if k == name)
            assert found.tobytes() == whole[name].tobytes(), name


# -- sizes that an array says ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_sizes_are_read_where_they_are(device, monkeypatch, dtype):
    """Nothing is copied to the host, and the result is that of sizes on the host."""
    arrays = arguments()
    want = call(arrays, softmax=True)
    sizes = to_device(np.array(LEVELS, dtype), read_only=True)
    monkeypatch.setattr(device, "to_host", None)
    assert_same_bytes(call(arrays, sizes, softmax=True), want)


@pytest.mark.parametrize(
    ("sizes", "kept"),
    [  # and how many of the levels are read
        (((4, 7), (3, 4), (1, 2)), 1),
        (((4, 7), (-3, -3), (1, 2)), 1),
        (((4, 7), (-1, 2), (1, 2)), 1),
        (((40, 7), (3, 3), (1, 2)), 0),
        (((2**31 - 1, 2**31 - 1), (3, 3), (1, 2)), 0),
        (((2**62, 4), (3, 3), (1, 2)), 0),
        (((-(2**63), 2**63 - 1), (3, 3), (1, 2)), 0),
        (((4, 7), (3, 3), (5, 5)), 2),
    ],
)
def test_sizes_that_do_not_fit_read_nothing(device, sizes, kept):
    """From the first level that does not fit, and the checker sees no access out of bounds."""
    arrays, points = arguments(channels=4), (3, 6, 1)
    found = call(arrays, to_device(np.array(sizes)), points)
    part = {k: a.copy() for k, a in arrays.items()}
    part["attention_weights"][..., sum(points[:kept]) :] = 0
    want = expected(part)
    want["sampling_locations"][..., sum(points[:kept]) :, :] = 0
    want["attention_weights"][..., sum(points[:kept]) :] = 0
    for name, array in want.items():
        assert_close(found[name], array, what=name)


def test_an_empty_level_is_passed_over(device):
    arrays = arguments(points=(3, 1, 6, 1))
    sizes = ((4, 7), (0, 5), (3, 3), (1, 2))
    found = call(arrays, to_device(np.array(sizes)), (3, 1, 6, 1))
    of_points = ("sampling_locations", "attention_weights")
    without = {k: np.delete(a, 3, 3) if k in of_points else a for k, a in arrays.items()}
    want = expected(without)
    for name in ("output", "value"):
        assert_close(found[name], want[name], what=name)
    for name in of_points:
        assert not found[name][:, :, :, 3].any()
        assert_close(np.delete(found[name], 3, 3), want[name], what=name)


def test_values_beyond_all_levels_have_no_gradient(device):
    arrays = arguments()
    sizes = ((4, 7), (3, 3), (1, 1))
    gradient = call(arrays, to_device(np.array(sizes)), needs=["value"])["value"]
    assert not gradient[:, -1].any() and gradient[:, :-1].any()


# -- odd values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
@pytest.mark.parametrize("softmax", [False, True])
def test_places_that_are_none(device, method, softmax):
    """NaN reads and writes nothing; huge numbers are outside, or nearest to an edge."""
    arrays = arguments()
    odd = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 3e9, -3e9], np.float32)
    locations = arrays["sampling_locations"]
    rng = np.random.default_rng(1)
    chosen = rng.random(locations.shape) < 0.3
    locations[chosen] = rng.choice(odd, np.count_nonzero(chosen))
    check(arrays, method=method, softmax=softmax)


def test_places_on_edges(device):
    """On the centres and edges of pixels, and right beside."""
    shapes, points = ((4, 8),), (25 * 25,)
    along = np.arange(-4, 21) / 16
    arrays = arguments(shapes, points, n=1, queries=1, heads=1, channels=2, dtype="float64")
    arrays["sampling_locations"][0, 0, 0] = np.stack(np.meshgrid(along, along), -1).reshape(-1, 2)
    check(arrays, shapes=shapes, points=points)
    for beside in (-np.inf, np.inf):
        near = np.nextafter(arrays["sampling_locations"], beside)
        check({**arrays, "sampling_locations": near}, shapes=shapes, points=points)


@pytest.mark.parametrize("channels", [3, 8])
def test_an_infinite_value_that_no_point_touches_does_not_matter(device, channels):
    """The first pixel, which is read for points outside and then not used."""
    arrays = arguments(channels=channels)
    locations = arrays["sampling_locations"]
    locations[...] = (locations + 1.5) / 2
    locations[..., 0, :] = 5  # outside
    clean = call(arrays)
    arrays["value"][:, 0] = np.inf
    found = call(arrays)
    for name in ("output", "sampling_locations", "attention_weights"):
        assert np.isfinite(found[name]).all()
        assert found[name].tobytes() == clean[name].tobytes(), name


def test_lanes_without_a_channel_add_nothing(device):
    """Of three channels a group of four lanes has one to spare; 0 times infinity is not 0."""
    arrays = arguments(((2, 3),), (1,), n=1, queries=1, heads=1, channels=3)
    arrays["sampling_locations"][...] = 0.4
    arrays["value"][..., 0] = np.inf
    arrays["grad_output"] = np.abs(arrays["grad_output"])
    found = call(arrays, ((2, 3),), (1,))
    assert np.isposinf(found["attention_weights"]).all()
    assert np.isfinite(found["output"][..., 1:]).all()


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
def test_infinite_gradients_stay_with_their_points(device, method):
    """A pixel that a point does not touch gets nothing of it, also right of the left edge."""
    arrays = arguments(((2, 3),), (1,), n=1, queries=2, heads=1, channels=4)
    arrays["sampling_locations"][0, :, 0, 0] = [
        [0.05, 0.1],
        [0.5, 0.75],
    ]  # left of and above the centres
    arrays["grad_output"][0, 0] = np.inf
    found = call(arrays, ((2, 3),), (1,), needs=["value"], method=method)["value"]
    assert np.isinf(found[0, 0]).all()
    assert np.isfinite(found[0, 1:]).all()


def test_softmax_of_large_logits(device):
    arrays = arguments()
    arrays["attention_weights"] = 1000 + 3 * arrays["attention_weights"]
    arrays["attention_weights"][0, 0, 0, 3:] = -np.inf
    found = check(arrays, softmax=True)
    assert all(np.isfinite(array).all() for array in found.values())


def test_empty(device):
    for empty in ({"n": 0}, {"queries": 0}):
        arrays = arguments(**empty)
        found = check(arrays)
        assert not found["value"].any() and found["value"].shape == arrays["value"].shape


# -- one result -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"softmax": True}, {"method": "nearest"}])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_order_of_threads_does_not_matter(options, dtype):
    backends.require(backends.BACKENDS["emulator"])
    arrays = arguments(dtype=dtype)
    found = []
    for order, seed in SCHEDULES:
        with install(EmulatorDevice(order=order, seed=seed)):
            found.append(call(arrays, to_device(np.array(LEVELS)), **options))
    for other in found[1:]:
        assert_same_bytes(other, found[0])


@pytest.mark.parametrize("small", [1, 1 << 11, 1 << 13])
def test_results_do_not_depend_on_the_workspace(monkeypatch, device, small):
    """Images and heads are worked on apart, and none has a part in the sums of another."""
    arrays = arguments(n=3, heads=5)
    want = call(arrays, softmax=True)
    monkeypatch.setattr(aggregator, "POINT_BYTES", small)
    assert_same_bytes(call(arrays, softmax=True), want)


def test_workspace_does_not_grow_with_the_batch(monkeypatch, device):
    monkeypatch.setattr(aggregator, "POINT_BYTES", 1 << 14)
    largest = {}
    made, empty = [], device.empty
    monkeypatch.setattr(device, "empty", lambda *how: made.append(how) or empty(*how))
    for batch in (40, 80):
        made.clear()
        arrays = arguments(n=batch)
        call(arrays, softmax=True)
        shapes = {array.shape for array in arrays.values()}
        largest[batch] = max(np.prod(s) * np.dtype(d).itemsize for s, d in made if s not in shapes)
    assert largest[40] == largest[80] <= 1 << 14


def test_arrays_may_begin_anywhere(device):
    """Off the grid of vectors; the bytes of the result are the same."""
    arrays = arguments(dtype="float16")
    want = call(arrays, softmax=True)
    moved = {}
    for name, array in arrays.items():
        room = to_device(np.zeros(array.size + 1, array.dtype))
        moved[name] = room[1:].reshape(array.shape)
        moved[name][...] = array
    grad_output = moved.pop("grad_output")
    given = dict(spatial_shapes=LEVELS, points_per_level=(3, 6, 1), softmax=True)
    output = cudeform.ms_deform_attn(**moved, **given)
    grads = cudeform.ms_deform_attn_backward(grad_output, **moved, **given)
    found = {k: to_host(a) for k, a in {"output": output, **grads._asdict()}.items()}
    assert_same_bytes(found, want)


def test_launches(device, monkeypatch):
    """One for the output; one for locations and weights; the keys, the sort and the gather."""
    launched, launch = [], device.launch

    def recorded(unit, kernel, *how):
        launched.append((unit.file, kernel))
        launch(unit, kernel, *how)

    monkeypatch.setattr(device, "launch", recorded)
    call(arguments(n=4, queries=20, heads=4), to_device(np.array(LEVELS)), softmax=True)
    ours = [kernel for file, kernel in launched if file != "sort.cu"]
    gradient = ["point_keys", "gather_value", "gather_crowded"]
    assert ours == ["aggregate", "point_gradients", *gradient]


# -- bugs that must be found ----------------------------------------------------------------------

BARRIER = "    __syncwarp(WARP);\n"
COUNT, END = "    end = active", "  }\n  Sum scale"
PLANTED = {  # text of the kernels, with what, and what is found
    "no barrier before the notes are read": (BARRIER + COUNT, COUNT),
    "no barrier before new notes are made": (BARRIER + END, END),
    "a task that is not there": ("settled(task.present && c", "settled(c"),
    "a note that nobody makes": ("end = active ? end :", "end = active ? end + 1 :"),
    "a table that is not waited for": ("  }\n  __syncthreads();\n", "  }\n"),
    "sizes as they are said": ("possible && first + height * width <= p.pixels", "possible"),
    "a pixel too far": ("(level.first + x", "(40 + level.first + x"),
}  # fmt: skip


@pytest.mark.parametrize(("order", "seed"), SCHEDULES[:3])
@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bug_is_caught(bug, order, seed):
    backends.require(backends.BACKENDS["emulator"])
    sizes = np.array(((4, 7), (30, 1), (1, 2)))
    arrays = {
        k: to_device(a) for k, a in arguments(points=(9, 6, 1), n=1, queries=5, heads=1).items()
    }
    arrays.pop("grad_output")
    flatten = planted(*PLANTED[bug], "aggregate.cu")
    with install(EmulatorDevice(order=order, seed=seed, flatten=flatten)):
        with pytest.raises(EmulatorError, match="race|divergent|out of bounds|uninitialised"):
            cudeform.ms_deform_attn(
                **arrays, spatial_shapes=to_device(sizes), points_per_level=(9, 6, 1)
            )
