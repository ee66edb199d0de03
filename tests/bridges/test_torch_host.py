"""Tensors on the host: what was checked of a call is not checked again of one like it."""

import numpy as np
import pytest

import cudeform

torch = pytest.importorskip("torch")

from cudeform.ops import call  # noqa: E402
from cudeform.torch import host, route  # noqa: E402


@pytest.fixture
def checks(monkeypatch):
    """The functions whose arguments are looked at."""
    looked, known_as = [], call._known_as

    def count(op, *given):
        looked.append(op)
        return known_as(op, *given)

    monkeypatch.setattr(call, "_known_as", count)
    monkeypatch.setattr(host, "_known", {})
    return looked


@pytest.fixture
def layer(rng):
    shapes = [(2, 4, 5, 6), (2, 18, 5, 6), (3, 4, 3, 3)]
    return [torch.tensor(rng.standard_normal(shape), dtype=torch.float32) for shape in shapes]


def boxes_of(*images):
    return torch.tensor([[image, 0.5, 1, 4, 3] for image in images])


def again(checks, function):
    """What a function returns, the first time and the second, when nothing is checked."""
    first = function()
    assert checks
    checks.clear()
    second = function()
    assert not checks
    return first, second


def equal(first, second):
    both = [found if isinstance(found, tuple) else (found,) for found in (first, second)]
    assert type(first) is type(second)
    for a, b in zip(*both, strict=True):
        assert a is b is None or torch.equal(a, b)


def test_calls_and_their_gradients(checks, layer):
    for tensor in layer:
        tensor.requires_grad_()

    def run():
        output = cudeform.deform_conv2d(*layer, padding=1)
        return output, *torch.autograd.grad(output, layer, torch.ones_like(output))

    equal(*again(checks, run))
    grad, given = torch.ones(2, 3, 5, 6), [tensor.detach() for tensor in layer]
    for needs in (["input"], ("weight", "input")):

        def run(needs=needs):
            return cudeform.deform_conv2d_backward(grad, *given, padding=1, needs=needs)

        equal(*again(checks, run))


def test_other_memory_of_the_same_shape(checks, layer):
    """Strides are no part of what a call is known by."""
    again(checks, lambda: cudeform.deform_conv2d(*layer, padding=1))
    strided = [tensor.transpose(0, 1).contiguous().transpose(0, 1) + 1 for tensor in layer]
    found = cudeform.deform_conv2d(*strided, padding=1)
    assert not checks
    expected = cudeform.deform_conv2d(*(t.contiguous().numpy() for t in strided), padding=1)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["roi_pool", "roi_align"])
def test_two_results(checks, layer, name):
    pool = getattr(cudeform, name)
    options = {"mode": "max", "return_argmax": True}
    equal(*again(checks, lambda: pool(layer[0], boxes_of(0, 1), 2, **options)))


def test_boxes_are_looked_at_every_time(checks, layer):
    again(checks, lambda: cudeform.roi_align(layer[0], boxes_of(0, 1), 2))
    with pytest.raises(ValueError, match="whole image indices from 0 to 1.*got 2 in row 1"):
        cudeform.roi_align(layer[0], boxes_of(0, 2), 2)
    assert not checks


def test_boxes_image_by_image_are_not_joined_before(checks, layer, monkeypatch):
    monkeypatch.setattr(route, "rows_of", None)
    images, rows = layer[0], boxes_of(0, 0, 1)
    lists = [rows[:2, 1:], rows[2:, 1:]]
    expected = cudeform.roi_align(images, rows, 2)
    equal(expected, again(checks, lambda: cudeform.roi_align(images, lists, 2))[1])
    equal(expected, again(checks, lambda: cudeform.roi_align(images, tuple(lists), 2))[0])
    with pytest.raises(ValueError, match=r"`boxes\[0\]` of shape \(L, 4\), got \(2, 5\)"):
        cudeform.roi_align(images, [rows[:2], lists[1]], 2)


def test_what_is_wrong_is_refused_beside_what_is_right(checks, layer):
    again(checks, lambda: cudeform.deform_conv2d(*layer, padding=1))
    for bad in (True, 1.0):
        with pytest.raises(TypeError, match="deform_conv2d: expected `padding`"):
            cudeform.deform_conv2d(*layer, padding=bad)
    with pytest.raises(TypeError, match="deform_conv2d: expected `stride`"):
        cudeform.deform_conv2d(*layer, padding=1, stride=torch.ones(()))
    with pytest.raises(TypeError, match="`offset` to be a torch.Tensor like `input`"):
        cudeform.deform_conv2d(layer[0], layer[1].numpy(), layer[2], padding=1)
    with pytest.raises(TypeError, match="`input` to be a torch.Tensor like `offset`"):
        cudeform.deform_conv2d(None, *layer[1:], padding=1)
    images, boxes, grad = layer[0], boxes_of(0), torch.ones(1, 4, 2, 2)
    with pytest.raises(TypeError, match="`input` to be a torch.Tensor like `grad_output`"):
        cudeform.roi_pool_backward(grad, images.numpy(), boxes, 2)
    with pytest.raises(TypeError, match="`grad_output` to be a torch.Tensor like `input`"):
        cudeform.roi_pool_backward(grad.numpy(), images, boxes, 2)
    argmax = np.zeros((1, 4, 2, 2), np.int32)
    with pytest.raises(TypeError, match="`argmax` to be a torch.Tensor like `grad_output`"):
        cudeform.roi_pool_backward(grad, images, boxes, 2, argmax=argmax)


def test_values_of_sizes_matter(checks, rng):
    value = torch.tensor(rng.standard_normal((1, 12, 1, 4)))
    points, weights = torch.rand(1, 5, 1, 1, 3, 2).double(), torch.rand(1, 5, 1, 1, 3).double()

    def attend(shapes):
        return cudeform.ms_deform_attn(value, shapes, points, weights)

    found = [attend(torch.tensor([size])) for size in ([3, 4], [4, 3], [3, 4])]
    assert torch.equal(found[0], found[2]) and not torch.equal(*found[:2])
    assert len(checks) == 3
    equal(found[0], again(checks, lambda: attend([(3, 4)]))[1])
    assert torch.equal(attend([(4, 3)]), found[1])


def test_what_is_remembered_has_an_end(checks, monkeypatch, layer):
    monkeypatch.setattr(host, "_MOST", 2)
    for size in (1, 2, 3):
        cudeform.roi_align(layer[0], boxes_of(0), size)
    assert len(host._known) == 1
