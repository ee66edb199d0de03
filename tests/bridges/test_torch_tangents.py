"""Tangents of tangents: torch itself takes them for zero, of functions with a rule of their own."""

import pytest

import cudeform

torch = pytest.importorskip("torch")

from torch.func import grad, jacfwd, jacrev, jvp, vmap  # noqa: E402

SHAPES = {"input": (2, 2, 4, 4), "offset": (2, 18, 4, 4), "weight": (2, 2, 3, 3)}


def forward(*tensors):
    return cudeform.deform_conv2d(*tensors, padding=1)


def backward(*tensors):
    grad_output = tensors[0].roll(1, -1)
    return cudeform.deform_conv2d_backward(grad_output, *tensors, padding=1).offset


def along(function, directions):
    return lambda *tensors: jvp(function, tensors, directions)[1]


@pytest.fixture
def drawn(rng):
    """Arrays, and three directions of them."""
    return [
        tuple(torch.tensor(rng.uniform(-0.9, 0.9, shape)) for shape in SHAPES.values())
        for _ in range(4)
    ]


@pytest.mark.parametrize("function", [forward, backward])
def test_tangents_have_tangents(drawn, function):
    tensors, first, second, third = drawn
    twice = along(along(function, first), second)
    found = twice(*tensors)
    factors = torch.arange(found.numel(), dtype=found.dtype).reshape(found.shape)

    def slope(*tensors):  # reverse mode of the first tangent
        every = tuple(range(len(tensors)))
        gradients = grad(lambda *t: (factors * along(function, first)(*t)).sum(), every)(*tensors)
        return sum((g * d).sum() for g, d in zip(gradients, second, strict=True))

    torch.testing.assert_close((factors * found).sum(), slope(*tensors))
    assert found.abs().max() > 0.1
    if function is forward:
        found = (factors * along(twice, third)(*tensors)).sum()
        torch.testing.assert_close(found, along(slope, third)(*tensors))


def test_matrices_of_second_derivatives_are_the_same_in_either_mode(drawn):
    (images, offset, weight), *_ = drawn

    def loss(part):
        moved = torch.cat([part.reshape(1, 2, 1, 1), offset[:1, 2:, 1:2, 1:2]], dim=1)
        return forward(images[:1], moved.expand(1, 18, 4, 4), weight).square().sum()

    expected = jacrev(jacrev(loss))(offset[0, :2, 0, 0])
    torch.testing.assert_close(jacfwd(jacfwd(loss))(offset[0, :2, 0, 0]), expected)


def test_a_loop_around_is_the_loop(drawn):
    tensors, first, second, _ = drawn
    twice = along(along(forward, first), second)
    stacked = [torch.stack([t, 0.9 * t]) for t in tensors]
    found = vmap(twice)(*stacked)
    assert found.abs().max() > 0.1
    for index in range(2):
        torch.testing.assert_close(found[index], twice(*(t[index] for t in stacked)))


def test_a_loop_around_nothing_has_empty_results(drawn):
    """Where the axis goes into the batch, and where it has to stay a loop, as along filters."""
    (images, offset, weight), *_ = drawn
    shape = forward(images, offset, weight).shape
    nothing = images.new_zeros(0, *images.shape), offset.new_zeros(0, *offset.shape)
    assert vmap(forward, (0, 0, None))(*nothing, weight).shape == (0, *shape)
    filters = weight.movedim(0, 1)[..., None][..., :0]
    looped = vmap(lambda weight: forward(images, offset, weight.movedim(0, 1)), -1)
    assert looped(filters).shape == (0, *shape)
    gradients = vmap(grad(lambda *t: forward(*t).sum(), (0, 2)), (0, 0, None))(*nothing, weight)
    assert [g.shape for g in gradients] == [(0, *images.shape), (0, *weight.shape)]
