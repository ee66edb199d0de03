"""Every argument may be asked for a gradient: it has one, or it gets None, as in torchvision."""

import pytest
from cases import problem, problems

import cudeform

torch = pytest.importorskip("torch")

from torch.autograd import forward_ad  # noqa: E402

from cudeform.registry import OPERATORS  # noqa: E402
from cudeform.torch.signatures import BRIDGES  # noqa: E402

every_row = pytest.mark.parametrize("row", OPERATORS, ids=lambda row: row.name)
REGIONS = [row for row in OPERATORS if any(a.name == "boxes" for a in row.arguments)]
every_pooling = pytest.mark.parametrize("row", REGIONS, ids=lambda row: row.name)


def asked(row):
    """(tensors of a small case with all arrays, the other arguments)"""
    found = [problem(row.name, case, "float64") for name, case in problems() if name == row.name]
    found = [p for p in found if p.output.size]
    chosen = max(found, key=lambda p: (len(p.case.arrays), -p.output.size))
    tensors = {n: torch.tensor(array) for n, array in chosen.case.arrays.items()}
    missing = {a.name: None for a in row.arguments if a.name not in tensors}
    return tensors, missing | chosen.case.options


def marked(tensors):
    return {n: t.clone().requires_grad_(t.is_floating_point()) for n, t in tensors.items()}


def eager(function):
    return function


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True)


def through_the_dispatcher(function):
    """As what is exported is called."""

    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            return operator(*args, **(kwargs or {}))

    def call(**tensors):
        with Watching():
            return function(**tensors)

    return call


@every_row
@pytest.mark.parametrize("way", [eager, compiled, through_the_dispatcher])
def test_all_arguments_at_once(row, way):
    tensors, others = asked(row)
    expected = marked({n: tensors[n] for n in BRIDGES[row.name].differentiable if n in tensors})
    row.forward(**{**tensors, **expected}, **others).sin().sum().backward()
    found = marked(tensors)
    way(lambda **given: row.forward(**given, **others))(**found).sin().sum().backward()
    for name in tensors:
        if name in expected:
            assert torch.equal(found[name].grad, expected[name].grad), name
        else:
            assert name in ("boxes", "spatial_shapes") and found[name].grad is None


@every_pooling
@pytest.mark.parametrize("way", [eager, compiled])
def test_boxes_alone(row, way):
    """Alone, and as one tensor for each image: the result has a gradient, that gives them none."""
    tensors, others = asked(row)
    boxes, images = tensors["boxes"], tensors["input"]
    order = boxes[:, 0].argsort(stable=True)
    by_image = [boxes[boxes[:, 0] == i, 1:].requires_grad_() for i in range(len(images))]
    rows = {n: t[order] for n, t in tensors.items() if n in ("offset", "mask")}

    def pool(boxes):
        return row.forward(**{**tensors, **rows, "boxes": boxes}, **others)

    whole = boxes[order].requires_grad_()
    outputs = [way(pool)(given) for given in (whole, by_image)]
    assert torch.equal(*outputs)
    for output in outputs:
        assert output.requires_grad
        output.sum().backward()
    assert whole.grad is None
    assert all(part.grad is None or not part.grad.any() for part in by_image)  # of torch.cat


@every_row
def test_all_arguments_of_a_gradient(row):
    """For the second, of the first by autograd and by <name>_backward."""
    tensors, others = asked(row)
    found, again = marked(tensors), marked(tensors)
    names = [n for n in BRIDGES[row.name].kept if n in found and found[n].requires_grad]
    moving = [n for n in BRIDGES[row.name].differentiable if n in tensors]
    output = row.forward(**found, **others)
    grad_output = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    first = torch.autograd.grad(output, [found[n] for n in moving], grad_output, create_graph=True)
    kept = {n: again.get(n) for n in BRIDGES[row.name].kept}
    options = {n: value for n, value in others.items() if n in BRIDGES[row.name].kinds}
    direct = row.backward(grad_output.requires_grad_(), **kept, **options, needs=moving)
    seconds = []
    for gradients, given in ((first, found), ([getattr(direct, n) for n in moving], again)):
        total = sum(gradient.sin().sum() for gradient in gradients)
        asked_for = [given[n] for n in names]
        seconds.append(torch.autograd.grad(total, asked_for, allow_unused=True))
    for name, one, other in zip(names, *seconds, strict=True):
        assert (one is None) == (other is None), name
        assert one is None or (name != "boxes" and torch.equal(one, other)), name


@every_pooling
def test_boxes_have_no_derivative_under_torch_func(row):
    tensors, others = asked(row)
    boxes = tensors.pop("boxes")

    def pool(boxes):
        return row.forward(boxes=boxes, **tensors, **others)

    assert not torch.func.grad(lambda boxes: pool(boxes).sum())(boxes).any()
    output, tangent = torch.func.jvp(pool, (boxes,), (torch.ones_like(boxes),))
    assert torch.equal(output, pool(boxes)) and not tangent.any()
    with forward_ad.dual_level():
        dual = pool(forward_ad.make_dual(boxes, torch.ones_like(boxes)))
        tangent = forward_ad.unpack_dual(dual).tangent
        assert tangent is None or not tangent.any()

    def first(boxes, images):
        def loss(images):
            return row.forward(images, boxes, **rest, **others).sin().sum()

        return torch.func.grad(loss)(images)

    rest = {n: t for n, t in tensors.items() if n != "input"}
    given = (boxes, tensors["input"])
    _, still = torch.func.jvp(first, given, (torch.ones_like(boxes), torch.zeros_like(given[1])))
    assert not still.any()


def test_an_argmax_does_not_cut_a_gradient():
    """With it a gradient has been computed; what is differentiated again computes it itself."""
    row = next(row for row in OPERATORS if row.name == "roi_pool")
    tensors, others = asked(row)
    output, argmax = cudeform.roi_pool(**tensors, **others, return_argmax=True)
    grad_output = torch.ones_like(output).requires_grad_()

    def backward(grad_output, argmax):
        return cudeform.roi_pool_backward(grad_output, **tensors, **others, argmax=argmax).input

    expected = backward(grad_output.detach(), None)
    found = backward(grad_output, argmax)
    assert torch.equal(found, expected) and found.requires_grad
    assert torch.equal(compiled(backward)(grad_output, argmax), expected)
    with pytest.raises(TypeError, match="`argmax` to be a torch.Tensor like `grad_output`"):
        backward(grad_output, argmax.numpy())
    with pytest.raises(TypeError, match="^roi_pool_backward: expected `argmax` of dtype int32"):
        backward(grad_output, argmax.float())
    with pytest.raises(ValueError, match="^roi_pool_backward: expected `argmax` of shape"):
        backward(grad_output, argmax[1:])


@every_row
def test_the_function_of_gradients_compiles(row):
    tensors, others = asked(row)
    kept = {n: tensors.get(n) for n in BRIDGES[row.name].kept}
    options = {n: value for n, value in others.items() if n in BRIDGES[row.name].kinds}
    grad_output = row.forward(**tensors, **others).sin()
    needs = BRIDGES[row.name].differentiable[:1]

    def gradient(grad_output, **kept):
        return row.backward(grad_output, **kept, **options, needs=needs)

    expected = gradient(grad_output, **kept)
    found = compiled(gradient)(grad_output, **kept)
    assert type(found) is type(expected) and torch.equal(found[0], expected[0])
    assert all(one is None for one in found[1:])
