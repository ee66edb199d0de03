"""The host side of the CUDA backend, beyond what the operators' own tests reach by small shapes."""

import os
from dataclasses import replace
from functools import partial
from itertools import product
from types import SimpleNamespace

import backends
import ml_dtypes
import numpy as np
import pytest
import reference
from cases import dtype_of, problem
from emulator.device import EmulatorError, to_device, to_host
from kernel_runs import kernel_names
from tolerances import assert_close

import cudeform
from cudeform.cuda import chunks, conv, lanes, layout, sampler, sort
from cudeform.cuda.compile import SCALARS, flatten
from cudeform.cuda.cupy_device import CupyDevice
from cudeform.cuda.gemm import gemm_arguments
from cudeform.cuda.regions import pooling, rows


@pytest.mark.parametrize("most", [1, 5, 63, 64, 200, 10_000])
def test_chunks_cover_every_pixel_once(most):
    points = cudeform.plans.points.Points(5, 3, 9, 9, 7, 9)
    seen = np.zeros((5, 63), int)
    for chunk in chunks.chunks(points, range(1, 5), most):
        assert chunk.size <= most
        seen[chunk.batch, chunk.pixel : chunk.pixel + chunk.pixels] += 1
    np.testing.assert_array_equal(seen[1:], 1)
    assert not seen[0].any()


@pytest.mark.parametrize(("most", "sizes"), [
    (9102, [7616, 7584]), (20_000, [15_200]), (4551, [3840] * 3 + [3680]),
    (64, [64] * 237 + [32]), (63, None),
])  # fmt: skip
def test_parts_of_an_image_are_alike_and_begin_on_the_grid_of_vectors(most, sizes):
    points = cudeform.plans.points.Points(1, 3, 9, 9, 100, 152)
    parts = list(chunks.chunks(points, range(1), most))
    if sizes is None:
        assert {part.pixels for part in parts[:-1]} == {63}
    else:
        assert [part.pixels for part in parts] == sizes


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("size", [(5, 5), (10, 20), (4, 6)])
@pytest.mark.parametrize(("dtype", "precision"), [("float16", "ieee"), ("float32", "tf32")])
def test_products_write_to_rows_on_the_grid_of_vectors(
    monkeypatch, device, layout, size, dtype, precision
):
    """Whatever the number of pixels is: in an output of NCHW their rows may lie anywhere."""
    rng, rows, gemm = np.random.default_rng(0), [], device.gemm

    def recorded(a, b, out, **options):
        rows.append(out)
        gemm(a, b, out, **options)

    monkeypatch.setattr(device, "gemm", recorded)
    monkeypatch.setattr(conv, "COLUMN_BYTES", 64 * 9 * 8 * np.dtype(dtype).itemsize)
    shapes = {"input": (2, 8, *size), "offset": (2, 18, *size), "weight": (8, 8, 3, 3), "bias": 8}
    arrays = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    exact = {name: array.astype(np.float64) for name, array in arrays.items()}
    want = reference.deform_conv2d(**exact, padding=1)
    if layout == "NHWC":
        for name in ("input", "offset"):
            arrays[name] = np.ascontiguousarray(np.moveaxis(arrays[name], 1, -1))
        want = np.moveaxis(want, 1, -1)
    given = {name: to_device(array) for name, array in arrays.items()}
    got = cudeform.deform_conv2d(**given, padding=1, layout=layout, precision=precision)
    assert_close(to_host(got), want, tolerance=1e-2, what="output")
    assert rows
    for out in rows:
        steps = [s for s, n in zip(out.strides, out.shape, strict=True) if n > 1]
        assert all(step % 16 == 0 or step == out.itemsize for step in steps)
        assert out.ctypes.data % 16 == 0


@pytest.mark.parametrize("most, bytes_at_once, together", [
    (1, 1 << 20, 1), (125, 1 << 20, 1), (126, 1 << 20, 2), (10_000, 1 << 20, 5), (10_000, 4200, 3),
])  # fmt: skip
def test_groups_of_images_are_as_large_as_they_may_be(monkeypatch, most, bytes_at_once, together):
    """Images of 63 output pixels, whose copies and buckets take 1372 bytes."""
    monkeypatch.setattr(chunks, "IMAGE_BYTES", bytes_at_once)
    points = cudeform.plans.points.Points(5, 3, 9, 9, 7, 9)
    groups = list(chunks.image_groups(points, most, 4))
    assert [image for group in groups for image in group] == list(range(5))
    assert {len(group) for group in groups[:-1]} <= {together} == {len(groups[0])}


@pytest.mark.parametrize("name", ["v2", "v2-channels-last", "groups"])
@pytest.mark.parametrize("dtype", ["float64", "float16"])
@pytest.mark.parametrize("small", [1 << 12, 1 << 14])
def test_results_do_not_depend_on_the_workspace(monkeypatch, device, name, dtype, small):
    """Small workspaces cut images into parts, whose sums are added before they are rounded."""
    todo = problem("deform_conv2d", name, dtype)
    emulator = backends.BACKENDS["emulator"]
    whole = {"output": todo.forward(emulator), **todo.backward(emulator)}
    monkeypatch.setattr(sampler, "GRADIENT_BYTES", small)
    monkeypatch.setattr(conv, "COLUMN_BYTES", small)
    monkeypatch.setattr(chunks, "IMAGE_BYTES", small)
    device.launched.clear()
    parts = {"output": todo.forward(emulator), **todo.backward(emulator)}
    kernels = {kernel for _, _, kernel in device.launched}
    if small == 1 << 12:
        assert "gather_input_sums" in kernels
    for argument, want in whole.items():
        assert_close(parts[argument], want.astype(np.float64), dtype, what=argument)


@pytest.mark.parametrize(("limit", "launches"), [(116_000, 1), (60_000, 2), (30_000, 4)])
def test_blocks_of_channels_are_as_wide_as_a_whole_image_allows(
    monkeypatch, device, limit, launches
):
    """64 bytes for each of 25 pixels and 9 taps, and 512, 256 or 128 for the channels at once."""
    monkeypatch.setattr(sampler, "GRADIENT_BYTES", limit + 25 * 9 * 64)
    rng = np.random.default_rng(0)
    shapes = (1, 2, 5, 5), (1, 256, 5, 5), (1, 18, 5, 5), (2, 256, 3, 3)
    arrays = [to_device(rng.standard_normal(shape).astype("float16")) for shape in shapes]
    ran, launch = [], device.launch

    def recorded(unit, kernel, *given, **options):
        ran.append(kernel)
        launch(unit, kernel, *given, **options)

    monkeypatch.setattr(device, "launch", recorded)
    cudeform.deform_conv2d_backward(*arrays, padding=1, needs=["offset"])
    assert ran.count("corner_dots") == launches


def _allocations(monkeypatch, device, call):
    """The (shape, dtype) of every array that the call makes."""
    made = []
    empty = device.empty

    def recorded(shape, dtype):
        made.append((shape, dtype))
        return empty(shape, dtype)

    with monkeypatch.context() as patch:
        patch.setattr(device, "empty", recorded)
        call()
    return made


def test_rows_fit_the_workspace(monkeypatch, device):
    """Those of so many regions at a time."""
    todo = problem("roi_align", "adaptive", "float32")
    limit, made, empty = 1 << 9, [], device.empty
    monkeypatch.setattr(pooling, "WORKSPACE_BYTES", limit)
    monkeypatch.setattr(device, "empty", lambda *of: made.append(empty(*of)) or made[-1])
    todo.backward(backends.BACKENDS["emulator"])
    sizes = [a.nbytes for a in made if a.ndim == 2 and a.shape[1] == rows.ROW_ITEMS]
    assert len(sizes) > 1 and max(sizes) <= limit


def test_workspace_does_not_grow_with_the_batch(monkeypatch, device):
    """The largest array besides arguments and results is the same for 1 image and for 8."""
    monkeypatch.setattr(chunks, "IMAGE_BYTES", 1 << 12)
    monkeypatch.setattr(sampler, "GRADIENT_BYTES", 1 << 14)
    monkeypatch.setattr(conv, "COLUMN_BYTES", 1 << 14)
    rng = np.random.default_rng(0)
    largest = {}
    for batch in (1, 8):
        arrays = [
            to_device(rng.standard_normal((batch, *shape)).astype(np.float32))
            for shape in ((4, 8, 8), (8, 8, 8), (18, 8, 8))
        ]
        weight = to_device(rng.standard_normal((8, 4, 3, 3)).astype(np.float32))
        x, grad_output, offset = arrays
        shapes = _allocations(
            monkeypatch,
            device,
            partial(cudeform.deform_conv2d_backward, grad_output, x, offset, weight, padding=1),
        )
        results = {x.shape, offset.shape}
        sizes = [np.prod(s) * np.dtype(d).itemsize for s, d in shapes if s not in results]
        largest[batch] = max(sizes)
    assert largest[8] == largest[1]


@pytest.mark.parametrize(
    ("dtype", "finer", "index"),
    [
        *product(["float16", "bfloat16", "float32", "float64"], [None], ["int", "long long"]),
        ("float16", "float32", "int"),
        ("bfloat16", "float32", "int"),
    ],
)
def test_every_variant_runs_clean_on_small_arrays(monkeypatch, device, dtype, finer, index):
    """Both widths of the index, every vector width, under the checker, against the reference.

    The width is forced: that a call asks for the right one is not what is tested here. With finer
    offsets one width of the index: where they are read does not depend on it.
    """
    monkeypatch.setattr(layout, "index_type", lambda elements: index)
    rng = np.random.default_rng(3)
    emulator = backends.BACKENDS["emulator"]
    for channels in (3, 2, 4, 8):
        arrays = {
            "input": rng.standard_normal((1, channels, 5, 6)),
            "offset": rng.standard_normal((1, 18, 5, 6)),
            "weight": rng.standard_normal((2, channels, 3, 3)),
            "bias": rng.standard_normal(2),
            "mask": rng.uniform(size=(1, 9, 5, 6)),
        }
        grad_output = rng.standard_normal((1, 2, 5, 6)).astype(dtype_of(dtype))
        dtypes = {"offset": finer or dtype}
        arrays = {k: v.astype(dtype_of(dtypes.get(k, dtype))) for k, v in arrays.items()}
        on_device = {k: to_device(v) for k, v in arrays.items()}
        output = cudeform.deform_conv2d(**on_device, padding=1)
        exact = {k: v.astype(np.float64) for k, v in arrays.items()}
        want = reference.deform_conv2d(**exact, padding=1)
        assert_close(emulator.to_host(output), want, dtype, what="output")
        on_device.pop("bias"), exact.pop("bias")
        # Gathers whole, split, and of an image in parts
        for limit, least in (
            (sampler.GRADIENT_BYTES, 1 << 10),
            (sampler.GRADIENT_BYTES, 0),
            (1 << 10, 0),
        ):
            monkeypatch.setattr(sampler, "GRADIENT_BYTES", limit)
            monkeypatch.setattr(lanes, "PART_POINTS", least)
            got = cudeform.deform_conv2d_backward(to_device(grad_output), **on_device, padding=1)
            want = reference.deform_conv2d_backward(
                grad_output.astype(np.float64), **exact, padding=1
            )
            for argument, gradient in want.items():
                assert_close(to_host(getattr(got, argument)), gradient, dtype, what=argument)
        given = {"padding": 1, "needs": ["input"]}  # without corner dots, which write the keys
        alone = cudeform.deform_conv2d_backward(to_device(grad_output), **on_device, **given)
        np.testing.assert_array_equal(to_host(alone.input), to_host(got.input))
        monkeypatch.undo()
        monkeypatch.setattr(layout, "index_type", lambda elements: index)
    ran = {(file, defines) for file, defines, _ in device.launched}
    scalar = SCALARS[dtype]
    wanted = [
        unit
        for unit in sampler.units()
        if unit.file == "sampling.cu"
        and ("SCALAR", scalar) in unit.defines
        and ("OFFSET", SCALARS[finer or dtype]) in unit.defines
        and ("INDEX", index) in unit.defines
    ]
    assert wanted
    for unit in wanted:
        assert (unit.file, unit.defines) in ran
    sampled = {kernel for file, _, kernel in device.launched if file == "sampling.cu"}
    assert sampled == set(kernel_names(wanted[0]))


def test_misaligned_arrays_give_the_same_bytes(device):
    """A contiguous array that starts off the 16-byte grid, as one cut out of another may."""
    rng = np.random.default_rng(5)
    batch = rng.standard_normal((2, 3, 3, 8)).astype(np.float32)
    flat = to_device(np.concatenate([[0.0], batch.ravel()]).astype(np.float32))
    shifted = flat[1:].reshape(batch.shape)
    points = to_device(rng.uniform(0, 2, size=(2, 9, 2)).astype(np.float32))
    got = cudeform.bilinear_sample(shifted, points, layout="NHWC")
    want = cudeform.bilinear_sample(to_device(batch), points, layout="NHWC")
    np.testing.assert_array_equal(to_host(got), to_host(want))
    grads = [shifted.reshape(2, 9, 8), to_device(batch).reshape(2, 9, 8)]
    got, want = (
        cudeform.bilinear_sample_backward(grad, to_device(batch), points, layout="NHWC")
        for grad in grads
    )
    np.testing.assert_array_equal(to_host(got.input), to_host(want.input))
    np.testing.assert_array_equal(to_host(got.points), to_host(want.points))


def test_all_points_on_one_pixel(device):
    """The worst case for the gather: one pixel collects from every point."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((1, 2, 6, 7))
    offset = np.empty((1, 18, 6, 7))
    a, b, i, j = np.meshgrid(*map(np.arange, (3, 3, 6, 7)), indexing="ij")
    offset[0, 0::2] = (2.25 - (i - 1 + a)).reshape(9, 6, 7)
    offset[0, 1::2] = (3.5 - (j - 1 + b)).reshape(9, 6, 7)
    weight, grad = rng.standard_normal((3, 2, 3, 3)), rng.standard_normal((1, 3, 6, 7))
    got = cudeform.deform_conv2d_backward(
        *map(to_device, (grad, x, offset, weight)), padding=1, needs=["input"]
    )
    want = reference.deform_conv2d_backward(grad, x, offset, weight, padding=1)["input"]
    np.testing.assert_allclose(to_host(got.input), want, atol=1e-12)
    assert np.count_nonzero(want) == 8


def test_gemm_repeats_a_batch_of_one():
    a, b, out = np.ones((1, 2, 3)), np.ones((4, 3, 5)), np.empty((4, 2, 5))
    g = gemm_arguments(a, b, out)
    assert (g.batch, g.stride_a, g.stride_b) == (4, 15, 0)


def test_tf32_rounds_the_factors_of_float32_products_only(device):
    rng = np.random.default_rng(4)
    arrays = [rng.standard_normal(shape) for shape in ((1, 8, 5, 5), (1, 18, 5, 5), (4, 8, 3, 3))]
    results = {}
    for dtype in ("float32", "float64"):
        given = [to_device(array.astype(dtype)) for array in arrays]
        for precision in ("ieee", "tf32"):
            output = cudeform.deform_conv2d(*given, padding=1, precision=precision)
            results[dtype, precision] = to_host(output)
    np.testing.assert_array_equal(results["float64", "tf32"], results["float64", "ieee"])
    exact = results["float64", "ieee"]
    error = {p: np.abs(results["float32", p] - exact).max() for p in ("ieee", "tf32")}
    assert error["ieee"] < 1e-5 < error["tf32"] < 2e-2


def test_flattened_text_needs_no_other_file():
    for unit in conv.units():
        text = flatten(unit)
        assert "#include" not in text
        assert text.count("enum Border") <= 1


def test_params_that_differ_from_the_dtype_do_not_compile(device):
    wrong = np.dtype(
        [("count", "i4"), ("blocks", "i4"), ("shift", "i4"), ("keys", "i4")], align=True
    )
    unit = replace(sort.UNIT, params=wrong)
    with pytest.raises(Exception, match="differs from the dtype of the host"):
        device.launch(unit, "count_points", 1, 256, (None, None), np.zeros((), wrong))


class _FakeModule:
    def __init__(self, error=None):
        self.error = error
        self.launches = []

    def compile(self):
        if self.error:
            raise self.error

    def get_function(self, name):
        return SimpleNamespace(kernel=SimpleNamespace(ptr=name))


def _fake_cupy(module):
    made = []
    cuda = SimpleNamespace(
        runtime=SimpleNamespace(runtimeGetVersion=lambda: 13000, memGetInfo=lambda: (0, 0)),
        driver=SimpleNamespace(launchKernel=lambda *launch: module.launches.append(launch)),
        get_current_stream=lambda: SimpleNamespace(ptr=0),
    )
    cupy = SimpleNamespace(
        RawModule=lambda **arguments: made.append(arguments) or module, cuda=cuda, empty=np.empty
    )
    return cupy, made


@pytest.fixture
def cupy_device():
    """A CupyDevice that sees a CuPy without a GPU behind it."""

    def make(module):
        cupy, made = _fake_cupy(module)
        return CupyDevice(cupy, 0), made

    return make


def test_a_unit_is_compiled_once(cupy_device):
    module = _FakeModule()
    device, made = cupy_device(module)
    params = np.zeros((), sort.PARAMS)
    for kernel in ("count_points", "place_points", "count_points"):
        device.launch(sort.UNIT, kernel, 3, 256, (None, None), params)
    assert len(made) == 1 and made[0]["code"] == flatten(sort.UNIT)
    assert [launch[0] for launch in module.launches] == [
        "count_points",
        "place_points",
        "count_points",
    ]
    assert module.launches[0][1:9] == (3, 1, 1, 256, 1, 1, 0, 0)


def test_missing_nvrtc_names_the_command(cupy_device):
    device, _ = cupy_device(_FakeModule(RuntimeError("CuPy failed to load libnvrtc.so.13")))
    with pytest.raises(RuntimeError, match=r"pip install 'cudeform\[cuda13\]'"):
        device.launch(sort.UNIT, "count_points", 1, 256, (), np.zeros((), sort.PARAMS))


def test_other_compile_errors_are_not_disguised(cupy_device):
    device, _ = cupy_device(_FakeModule(RuntimeError("expected a ';'")))
    with pytest.raises(RuntimeError, match="expected a ';'"):
        device.launch(sort.UNIT, "count_points", 1, 256, (), np.zeros((), sort.PARAMS))


class _NoCache(_FakeModule):
    """What CuPy does where it cannot write."""

    def compile(self):
        if "CUPY_CACHE_IN_MEMORY" not in os.environ:
            raise OSError(28, "No space left on device", "/cache/tmp1")


def test_a_cache_that_cannot_be_written_costs_only_time(cupy_device, monkeypatch):
    monkeypatch.delenv("CUPY_CACHE_IN_MEMORY", raising=False)
    module = _NoCache()
    device, _ = cupy_device(module)
    other = replace(sort.UNIT)
    with pytest.warns(RuntimeWarning, match="cannot keep compiled kernels.*No space") as warned:
        for unit in (sort.UNIT, other):
            device.launch(unit, "count_points", 1, 256, (), np.zeros((), sort.PARAMS))
    assert len(warned) == 1 and len(module.launches) == 2
    assert "CUPY_CACHE_IN_MEMORY" not in os.environ


def test_an_error_of_the_system_that_is_not_the_cache_reaches_the_caller(cupy_device):
    device, _ = cupy_device(_FakeModule(OSError("out of handles")))
    with pytest.warns(RuntimeWarning), pytest.raises(OSError, match="out of handles"):
        device.launch(sort.UNIT, "count_points", 1, 256, (), np.zeros((), sort.PARAMS))


def test_an_emulator_error_reaches_the_caller(device):
    with pytest.raises(EmulatorError):
        device.launch(sort.UNIT, "no_such_kernel", 1, 256, (), np.zeros((), sort.PARAMS))


def test_bfloat16_is_a_storage_type():
    assert set(SCALARS) == set(cudeform.arrays.DTYPES)
    assert dtype_of("bfloat16") == ml_dtypes.bfloat16
