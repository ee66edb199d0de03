"""Convolutions in torch.channels_last: values as ever, formats as of torch's own convolutions."""

import shutil
from itertools import product

import pytest

import cudeform

torch = pytest.importorskip("torch")

from cudeform.torch import nn  # noqa: E402

LAST = torch.channels_last
IMAGES = ("input", "offset", "mask")
NAMES = ("input", "offset", "weight", "bias", "mask")
KINDS = {"plain": ("input", "weight", "bias"), "v1": NAMES[:-1], "v2": NAMES}


def tensors(kind="v2", last=IMAGES, dtype=torch.float64, size=(5, 6), channels=4, batch=2):
    """What a convolution to three channels takes, some of it in channels_last."""
    generator = torch.Generator().manual_seed(3)
    shapes = {
        "input": (batch, channels, *size),
        "offset": (batch, 18, *size),
        "weight": (3, channels, 3, 3),
        "bias": (3,),
        "mask": (batch, 9, *size),
    }
    found = {}
    for name in KINDS[kind]:
        tensor = torch.randn(shapes[name], generator=generator, dtype=torch.float64).to(dtype)
        found[name] = tensor.to(memory_format=LAST) if name in last else tensor
    return found


def first(given, index=...):
    """With channels first; of stacks those of this index."""
    return {name: tensor[index].contiguous() for name, tensor in given.items()}


def conv(given):
    return (cudeform.deform_conv2d if "offset" in given else cudeform.conv2d)(**given, padding=1)


def torchs(given):
    return torch.nn.functional.conv2d(given["input"], given["weight"], given["bias"], padding=1)


def computed(function, given, like=None):
    """The result, and by argument the gradients of a sum, whose own are in the format `like`."""
    given = {name: tensor.detach().requires_grad_() for name, tensor in given.items()}
    output = function(given)
    weights = torch.linspace(0, 1, output.numel(), dtype=output.dtype).view(output.shape)
    weights = weights if like is None else weights.to(memory_format=like)
    found = torch.autograd.grad(output, list(given.values()), weights, allow_unused=True)
    return {"output": output, **dict(zip(given, found, strict=True))}


def assert_last(tensor):
    assert tensor.is_contiguous(memory_format=LAST) and not tensor.is_contiguous()


def assert_close(found, expected):
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def assert_same(found, expected):
    """Also where the numbers are in memory."""
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
        assert found[name].stride() == expected[name].stride(), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("last", [("input",), ("weight",), IMAGES, (*IMAGES, "weight")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_formats_are_those_of_torchs_convolution(kind, last, dtype):
    given = tensors(kind, last, dtype)
    expected = computed(conv, first(given))
    assert all(found.is_contiguous() for found in expected.values())
    for like in (torch.contiguous_format, LAST):
        theirs, found = computed(torchs, given, like), computed(conv, given, like)
        for name in ("output", "input"):
            assert_last(theirs[name])
            assert found[name].stride() == theirs[name].stride()
        for name in ("offset", "mask"):
            if name in found:
                assert_last(found[name])
        assert_close(found, expected)


SIZES = list(product((1, 2), (1, 4), ((1, 1), (1, 6), (6, 1), (4, 5))))


@pytest.mark.parametrize("last", [(), ("input",), ("weight",)])
def test_sizes_for_which_formats_are_alike(last):
    """Strides say which it is as torch reads them, where an axis has one entry."""
    for batch, channels, size in SIZES:
        given = tensors("plain", last, size=size, channels=channels, batch=batch)
        theirs, found = torchs(given), conv(given)
        assert found.stride() == theirs.stride(), (batch, channels, size)
        torch.testing.assert_close(found, theirs)


def test_parts_of_images():
    """Which are not contiguous in any format, and still in the order of one."""
    image = tensors("plain", size=(9, 8))["input"]
    across = image.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
    parts = [image[:, :2], image[:, :, ::2], image[..., 1:6], image[:1].expand(3, -1, -1, -1)]
    parts += [image[:, :1].expand(-1, 3, -1, -1), image.mT, across]
    for part in parts:
        given = {"input": part, "weight": torch.ones(3, part.shape[1], 1, 1, dtype=part.dtype)}
        found, theirs = (f(**given) for f in (cudeform.conv2d, torch.nn.functional.conv2d))
        assert found.stride() == theirs.stride(), part.stride()
        torch.testing.assert_close(found, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_functions_that_compute_gradients(kind):
    given = tensors(kind)
    expected = computed(conv, given)
    backward = cudeform.conv2d_backward if kind == "plain" else cudeform.deform_conv2d_backward
    kept = {name: tensor for name, tensor in given.items() if name != "bias"}
    weights = torch.linspace(0, 1, expected["output"].numel(), dtype=torch.float64)
    weights = weights.view(expected["output"].shape)
    found = backward(weights, **kept, padding=1, needs=list(given))
    assert_same(found._asdict(), {name: expected[name] for name in given})
    some = backward(weights, **kept, padding=1, needs=["input"])
    assert torch.equal(some.input, expected["input"]) and some.weight is None


def test_images_that_say_where_their_channels_are():
    """What has a layout is not looked at: (N, H, W, C) with strides of another format."""
    given = tensors(last=())
    expected = conv(given)
    views = {n: t.permute(0, 2, 3, 1) if n in IMAGES else t for n, t in given.items()}
    found = cudeform.deform_conv2d(**views, padding=1, layout="NHWC")
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected.permute(0, 2, 3, 1))


def test_what_is_wrong_is_said_of_the_axes_that_were_given():
    given = tensors(last=("input",))
    given["offset"] = given["offset"][:, :-1]
    with pytest.raises(ValueError, match=r"deform_conv2d: .*`offset` .*\(N, 2\*offset_groups\*kh"):
        conv(given)
    given["offset"] = given["offset"][0]
    with pytest.raises(ValueError, match=r"`offset` to have 4 axes \(N, 2\*offset_groups"):
        conv(given)
    with pytest.raises(TypeError, match="`input` to be a dense tensor of numbers, got sparse"):
        cudeform.conv2d(given["input"].to_sparse(), given["weight"])
    with pytest.raises(ValueError, match="`layout` to be one of 'NCHW', 'NHWC', got 'CHW'"):
        cudeform.conv2d(given["input"], given["weight"], layout="CHW")


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_gradients(kind):
    given = tensors(kind, size=(3, 4), channels=2, batch=1)
    moving = [tensor.requires_grad_() for tensor in given.values()]

    def function(*values):
        return conv(dict(zip(given, values, strict=True)))

    assert torch.autograd.gradcheck(function, moving, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, moving)


def test_transforms():
    """Of several batches of images, each in channels_last."""
    given = tensors()
    batches = {name: torch.stack([given[name], -given[name]]) for name in IMAGES}
    last = {n: t.movedim(2, -1).contiguous().movedim(-1, 2) for n, t in batches.items()}
    others = {name: given[name] for name in ("weight", "bias")}

    def of_all(weight, batches):
        return torch.vmap(lambda images: conv({**others, "weight": weight, **images}))(batches)

    def total(*given):
        return of_all(*given).sin().sum((1, 2, 3, 4))

    expected = torch.stack([conv({**others, **first(batches, i)}) for i in (0, 1)])
    torch.testing.assert_close(of_all(given["weight"], batches), expected)
    found = of_all(given["weight"], last)
    torch.testing.assert_close(found, expected)
    assert_last(found[0])
    slopes = [torch.func.jacrev(total, (0, 1))(given["weight"], x) for x in (last, batches)]
    torch.testing.assert_close(*slopes)
    direction = {name: torch.ones_like(tensor) for name, tensor in given.items()}
    found, expected = (torch.func.jvp(conv, (x,), (direction,)) for x in (given, first(given)))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
        assert_last(one)


class Network(torch.nn.Module):
    """A module of ours behind two of torch's."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(4)
        self.before = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        self.ours = kind(4, 6, 3, 1, 1)
        for branch in (getattr(self.ours, n, None) for n in ("conv_offset", "conv_offset_mask")):
            if branch is not None:
                torch.nn.init.normal_(branch.weight, std=0.1)
        self.offset = torch.nn.Conv2d(4, 18, 3, padding=1) if kind is nn.DeformConv2d else None

    def forward(self, images):
        seen = self.before(images).relu()
        more = () if self.offset is None else (self.offset(seen),)
        return self.ours(seen, *more)


MODULES = (nn.DeformConv2d, nn.DeformConv2dPack, nn.ModulatedDeformConv2dPack, nn.DCN)


@pytest.mark.parametrize("kind", MODULES)
def test_a_model_trains(kind):
    images = torch.rand(2, 3, 7, 8)
    models = [Network(kind), Network(kind).to(memory_format=LAST)]
    for model, format in zip(models, (torch.contiguous_format, LAST), strict=True):
        output = model(images.to(memory_format=format))
        output.square().mean().backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        if other.ndim == 4:
            assert other.grad.stride() == other.stride()
    assert_last(output)


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_modules_are_compiled(kind, dtype):
    """Under autocast, with gradients: what a compiler expects of memory is what comes."""
    torch._dynamo.reset()
    model, images = Network(kind).to(memory_format=LAST), torch.rand(2, 3, 7, 8)
    images = images.to(memory_format=LAST)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = []
    for function in (model, compiled):
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            output = function(images)
        output.float().sin().sum().backward()
        assert_last(output)
        found.append([output, *(parameter.grad for parameter in model.parameters())])
        model.zero_grad()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_functions(backend, dynamic):
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("needs g++")
    torch._dynamo.reset()
    compiled = torch.compile(conv, fullgraph=True, backend=backend, dynamic=dynamic)
    for last in (IMAGES, (), ("input",), ("weight",)):
        given = tensors(last=last, dtype=torch.float32)
        assert_same(computed(compiled, given, LAST), computed(conv, given, LAST))


def test_fake_tensors_have_the_strides_of_results():
    from torch._subclasses.fake_tensor import FakeTensorMode

    for last, (batch, channels, size) in product(((), ("input",), ("weight",)), SIZES):
        given = tensors("v2", last, size=size, channels=channels, batch=batch)
        with FakeTensorMode() as mode:
            fake = {name: mode.from_tensor(tensor) for name, tensor in given.items()}
            found = conv(fake)
        assert found.stride() == conv(given).stride()


class Chosen(torch.nn.Module):
    """Of how many images nobody knows before it runs."""

    def forward(self, images, chosen, weight):
        images = images[chosen.nonzero().squeeze(1)].contiguous(memory_format=LAST)
        return cudeform.conv2d(images, weight, padding=1)


def test_exported_for_numbers_of_images_that_follow_from_values():
    images, chosen = torch.rand(4, 3, 5, 6), torch.tensor([True, False, True, True])
    given = images, chosen, torch.rand(2, 3, 3, 3)
    found = torch.export.export(Chosen(), given).module()(*given)
    assert torch.equal(found, Chosen()(*given)) and len(found) == 3
    assert_last(found)


class Exported(torch.nn.Module):
    def forward(self, input, offset, weight, bias, mask):
        return conv(dict(zip(NAMES, (input, offset, weight, bias, mask), strict=True)))


def exported(given):
    return torch.export.export(Exported(), given).module()


def traced(given):
    return torch.jit.trace(Exported(), given)


def symbolic(given):
    return torch.fx.symbolic_trace(Exported())


@pytest.mark.parametrize("program", [exported, traced, symbolic])
def test_programs(program):
    """They run in either format, whichever they were made in."""
    for last, other in ((IMAGES, ()), ((), IMAGES)):
        run = program(tuple(tensors(last=last).values()))
        given = tensors(last=last)
        expected = conv(given)
        found = run(*given.values())
        assert torch.equal(found, expected) and found.stride() == expected.stride()
        torch.testing.assert_close(run(*tensors(last=other).values()), expected)
