"""torch.compile, torch.export, torch.jit.trace: the same values, whole graphs, no silent zeros."""

import shutil

import numpy as np
import pytest

import cudeform

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


def tensors(batch=2, height=5):
    rng = np.random.default_rng(8)
    shapes = [(batch, 4, height, 6), (batch, 18, height, 6), (3, 4, 3, 3), (3,)]
    shapes.append((batch, 9, height, 6))
    return [torch.tensor(rng.standard_normal(s), dtype=torch.float32) for s in shapes]


def layer(images, offset, weight, bias, mask):
    return cudeform.deform_conv2d(images, offset, weight, bias, padding=((1, 1), (1, 1)), mask=mask)


def gradients(function, given):
    given = [t.requires_grad_() for t in given]
    output = function(*given)
    return [output, *torch.autograd.grad(output.sin().sum(), given)]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_graph_forward_and_backward(backend):
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("needs g++")
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for one, other in zip(gradients(compiled, tensors()), gradients(layer, tensors()), strict=True):
        assert torch.equal(one, other)


def test_one_graph_for_all_sizes():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(layer, fullgraph=True, backend=backend, dynamic=True)
    for batch, height in ((2, 5), (3, 8), (5, 9)):
        given = tensors(batch, height)
        assert torch.equal(compiled(*given), layer(*given))
    assert len(graphs) == 1


def test_a_pooling_has_one_graph_for_all_numbers_of_boxes():
    def pool(images, boxes):
        return cudeform.roi_align(images, boxes, (2, 3), sampling_ratio=2)

    compiled = torch.compile(pool, fullgraph=True, backend="eager", dynamic=True)
    images = tensors()[0]
    for count in (2, 3, 7):
        boxes = torch.rand(count, 5) * torch.tensor([0.0, 3, 3, 6, 6])
        assert torch.equal(compiled(images, boxes), pool(images, boxes))


class Pool(torch.nn.Module):
    def forward(self, images, boxes):
        return cudeform.roi_pool(images, boxes, 2) + cudeform.roi_align(images, boxes, 2)


def test_export_puts_no_bound_on_sizes():
    """Not even that up to which coordinates are exact: a detector's images are of any size."""
    given = torch.rand(1, 3, 9, 8), torch.tensor([[0.0, 1, 1, 6, 5]])
    sizes = {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    exported = torch.export.export(Pool(), given, dynamic_shapes=(sizes, None))
    other = torch.rand(1, 3, 30, 40), given[1]
    assert torch.equal(exported.module()(*other), Pool()(*other))


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(tensors()[2])

    def forward(self, images, offset):
        return cudeform.deform_conv2d(images, offset, self.weight, padding=1)


@pytest.mark.parametrize("strict", [True, False])
def test_export_keeps_the_batch_open(strict):
    batch = torch.export.Dim("batch")
    given = tuple(tensors()[:2])
    exported = torch.export.export(
        Net(), given, dynamic_shapes=({0: batch}, {0: batch}), strict=strict
    )
    targets = [str(node.target) for node in exported.graph.nodes]
    assert "cudeform.deform_conv2d.default" in targets
    given = tensors(batch=5)[:2]
    assert torch.equal(exported.module()(*given), Net()(*given))


def test_exported_options_keep_their_axes():
    """Nothing is the same along y and x, or on two sides."""
    generator = torch.Generator().manual_seed(6)
    shapes = (2, 4, 8, 7), (2, 24, 4, 7), (6, 2, 3, 2), (2, 12, 4, 7)
    given = tuple(torch.randn(*shape, generator=generator) for shape in shapes)

    class Uneven(torch.nn.Module):
        def forward(self, images, offset, weight, mask):
            options = dict(stride=(2, 1), padding=((1, 0), (0, 2)), dilation=(1, 2))
            return cudeform.deform_conv2d(images, offset, weight, mask=mask, **options)

    exported = torch.export.export(Uneven(), given)
    assert torch.equal(exported.module()(*given), Uneven()(*given))


def test_exported_calls_have_no_empty_list_of_integers():
    """AOTInductor makes None of one; with options that are left out the operator takes that."""

    class Attention(torch.nn.Module):
        def forward(self, value, points, weights):
            return cudeform.ms_deform_attn(value, [(2, 3)], points, weights)

    given = torch.rand(1, 6, 2, 4), torch.rand(1, 5, 2, 1, 3, 2), torch.rand(1, 5, 2, 1, 3)
    exported = torch.export.export(Attention(), given)
    (node,) = (node for node in exported.graph.nodes if "cudeform" in str(node.target))
    assert [2, 3] in node.args and [] not in node.args
    assert torch.equal(exported.module()(*given), Attention()(*given))


def test_tracing_records_the_operator():
    """And not the result of the one call that was traced, as a constant."""
    given = tensors()
    traced = torch.jit.trace(layer, tuple(given))
    given[0] = 2 * given[0]
    assert torch.equal(traced(*given), layer(*given))


def test_wrong_shapes_are_told_while_compiling():
    given = tensors()
    given[1] = given[1][:, :-1]
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="channels a multiple of 18 = 2\\*kh\\*kw"):
        compiled(*given)


def test_arrays_of_numpy_in_a_compiled_function_are_computed_as_such():
    """torch.compile takes them for tensors, and would trace the backend."""
    weight = np.random.default_rng(2).standard_normal((3, 4, 3, 3)).astype(np.float32)

    def inside(images):
        return torch.from_numpy(cudeform.conv2d(2 * images.numpy(), weight)) + 1

    def after_a_break(images):
        torch._dynamo.graph_break()
        return torch.from_numpy(cudeform.conv2d(images.numpy(), weight))

    images = tensors()[0]
    for function in (inside, after_a_break):
        assert torch.equal(torch.compile(function, backend="eager")(images), function(images))


TRANSFORMS = {
    "grad": lambda *t: torch.func.grad(lambda x: layer(x, *t[1:]).square().sum())(t[0]),
    "jvp": lambda *t: torch.func.jvp(lambda x: layer(x, *t[1:]), (t[0],), (t[0],))[1],
    "vmap": lambda *t: torch.vmap(lambda x: layer(x, *t[1:]))(torch.stack([t[0], -t[0]])),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_do_not_get_into_a_graph(name):
    """There the gradient would fail, and the tangent be zero in silence."""
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(TRANSFORMS[name], backend="eager", fullgraph=True)(*tensors())


@pytest.mark.parametrize("name", ["jvp", "vmap"])
def test_transforms_beside_a_graph_are_right(name):
    expected = TRANSFORMS[name](*tensors())
    assert expected.abs().max() > 0
    assert torch.equal(torch.compile(TRANSFORMS[name], backend="eager")(*tensors()), expected)


def test_compiled_dual_numbers_keep_their_tangents():
    from torch.autograd import forward_ad

    compiled, given = torch.compile(layer, backend="eager"), tensors()
    with forward_ad.dual_level():
        given[0] = forward_ad.make_dual(given[0], given[0].clone())
        expected = forward_ad.unpack_dual(layer(*given)).tangent
        assert torch.equal(forward_ad.unpack_dual(compiled(*given)).tangent, expected)
