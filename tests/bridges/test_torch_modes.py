"""The ways to run a program, taken together: how, under which autocast, gradients, form and memory.

Each way alone has tests elsewhere. Here every pair of settings is in some test, and all of them
are the tests of `CUDEFORM_MODES=full`, which take an hour.
"""

import contextlib
import shutil
from itertools import combinations, product

import pytest
from cases import problem

import cudeform

torch = pytest.importorskip("torch")

from torch_programs import FULL, FULLEST, Functions, Modules  # noqa: E402

from cudeform.torch.signatures import BRIDGES, flat  # noqa: E402

AXES = {
    "how": ("eager", "static", "dynamic", "export", "aoti"),
    "dtype": (None, torch.bfloat16, torch.float16),
    "where": ("outside", "inside"),  # of what is compiled autocast is on
    "grad": ("grad", "no_grad", "inference_mode"),
    "form": ("functions", "modules"),
    "memory": ("contiguous", "channels_last"),
}


def pairwise(axes):
    """Few elements of the product, with each pair of values of two axes in one of them at least."""
    names, rest = list(axes), list(product(*axes.values()))

    def pairs(row):
        return set(combinations(zip(names, row, strict=True), 2))

    missing, chosen = set().union(*map(pairs, rest)), []
    while missing:
        best = max(rest, key=lambda row: len(pairs(row) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


def ways():
    # Compiled to a library it has no gradients, takes half a minute, and is tried by hand.
    axes = AXES if FULL else {**AXES, "how": AXES["how"][:-1]}
    return list(product(*axes.values())) if FULL else pairwise(axes)


class Inside(torch.nn.Module):
    """Autocast as a part of the program."""

    def __init__(self, program, dtype):
        super().__init__()
        self.program, self.dtype = program, dtype

    def forward(self, *tensors):
        with torch.autocast("cpu", dtype=self.dtype):
            return self.program(*tensors)


def autocast(dtype):
    on = dtype is not None
    return torch.autocast("cpu", dtype=dtype if on else torch.bfloat16, enabled=on)


def run(program, given, grad):
    """The results, and the gradients of all that can have one."""
    if grad != "grad":
        with getattr(torch, grad)():
            return program(*given)
    given = [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in given]
    results = program(*given)
    sum(result.float().sin().sum() for result in results).backward()
    parameters = list(program.parameters()) if isinstance(program, torch.nn.Module) else []
    gradients = [tensor.grad for tensor in [*given, *parameters]]
    for parameter in parameters:
        parameter.grad = None
    return [*results, *gradients]


def made(how, program, given, folder):
    """The program as it runs in one of the ways."""
    if how in ("static", "dynamic"):
        torch._dynamo.reset()
        dynamic = how == "dynamic"
        return torch.compile(program, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    if how == "export":
        return torch.export.export(program, tuple(given)).module()
    if how == "aoti":
        exported = torch.export.export(program, tuple(given))
        path = torch._inductor.aoti_compile_and_package(exported, package_path=f"{folder}/it.pt2")
        return torch._inductor.aoti_load_package(path)
    return program


@pytest.mark.parametrize("way", ways(), ids=lambda way: "-".join(str(v) for v in way))
def test_every_way_gives_what_the_plain_program_gives(way, tmp_path):
    how, dtype, where, grad, form, memory = way
    if how == "aoti" and (grad == "grad" or shutil.which("g++") is None):
        pytest.skip("a library has no gradients, and wants g++")
    program = (Functions if form == "functions" else Modules)(dtype or torch.float32)
    given = program.given()
    if memory == "channels_last":
        given = [
            t.to(memory_format=torch.channels_last) if t.ndim == 4 else t.contiguous()
            for t in given
        ]
    with autocast(dtype):
        expected = run(program, given, grad)
    inside = dtype is not None and where == "inside"
    asked = Inside(program, dtype) if inside else program
    with contextlib.nullcontext() if inside else autocast(dtype):
        found = run(made(how, asked, given, tmp_path), given, grad)
    for one, other in zip(found, expected, strict=True):
        if form == "functions":
            assert other is None if one is None else torch.equal(one, other)
        else:
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FULLEST)
def test_autocast_is_float32_and_one_rounding(name, dtype):
    """The forward, its gradients, and the function that computes them."""
    asked, bridge = FULLEST[name], BRIDGES[name]
    given = {n: torch.tensor(array) for n, array in asked.case.arrays.items()}
    images = asked.row.images
    half = {**given, images: given[images].to(dtype)}
    wide = {**half, images: half[images].float()}
    missing = {n: None for n in bridge.names if n not in given}
    options = asked.case.options
    grad_output = torch.tensor(asked.grad_output).to(dtype)
    needs = [n for n in bridge.differentiable if n in given]

    def gradients(grad_output, tensors):
        kept = {n: (tensors | missing)[n] for n in bridge.kept}
        found = asked.row.backward(grad_output, **kept, **options, needs=needs)
        return [getattr(found, n) for n in needs]

    output = asked.row.forward(**wide, **missing, **options).to(dtype)
    expected = gradients(grad_output.float(), wide)
    with torch.autocast("cpu", dtype=dtype):
        moving = {n: t.clone().requires_grad_(n in needs) for n, t in half.items()}
        found = asked.row.forward(**moving, **missing, **options)
        differentiated = torch.autograd.grad(found, [moving[n] for n in needs], grad_output)
        direct = gradients(grad_output, half)
        traced = getattr(torch.ops.cudeform, name)(
            *((half | missing)[n] for n in bridge.names), *flat(bridge, options)
        )
    assert torch.equal(found, output) and torch.equal(traced, output)
    assert found.dtype == traced.dtype == dtype
    for n, one, other, wanted in zip(needs, differentiated, direct, expected, strict=True):
        assert one.dtype == other.dtype == half[n].dtype
        assert torch.equal(one, wanted.to(one.dtype)) and torch.equal(other, one)


def test_autocast_leaves_float64_alone():
    """As torch's own operators do: float32 would lose half of the digits, and say nothing."""
    asked = problem("deform_conv2d", "v2", "float64")
    given = {n: torch.tensor(array) for n, array in asked.case.arrays.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cudeform.deform_conv2d(**given, **asked.case.options)
    assert torch.equal(found, cudeform.deform_conv2d(**given, **asked.case.options))


def test_autocast_leaves_other_devices_alone():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images, weight = (
            torch.ones(1, 1, 3, 3, device="meta"),
            torch.ones(2, 1, 3, 3, device="meta"),
        )
        assert cudeform.conv2d(images, weight).shape == (1, 2, 1, 1)


def test_a_compiled_function_notices_autocast():
    """Whatever it was compiled for first."""
    torch._dynamo.reset()
    asked = problem("bilinear_sample", "NCHW-zeros", "float32")
    images, points = (torch.tensor(asked.case.arrays[n]) for n in ("input", "points"))

    def function(images, points):
        return cudeform.bilinear_sample(images, points)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for dtype in (None, torch.bfloat16, None, torch.float16, torch.bfloat16):
        half = images if dtype is None else images.to(dtype)
        with autocast(dtype):
            assert torch.equal(compiled(half, points), function(half, points))


def test_an_exported_program_notices_autocast():
    program = Modules(torch.float32)
    given = program.given()
    exported = torch.export.export(program, tuple(given)).module()
    with autocast(torch.bfloat16):
        (expected,), (found,) = program(*given), exported(*given)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected)
