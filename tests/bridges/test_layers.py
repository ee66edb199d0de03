"""The papers' blocks: equal to their plain counterparts at first, and the gradients are theirs."""

import dataclasses
import inspect

import numpy as np
import pytest
from cases import operator

import cudeform
from cudeform import layers
from cudeform.layers import Conv2d, DeformConv2d, DeformPSRoiPool, DeformRoiPool, Linear

BOXES = np.array(
    [[0, 1.3, 2.1, 14.2, 9.7], [1, 0.4, 0.2, 7.9, 12.3], [1, 5.2, 3.3, 11.1, 6.4]], np.float64
)
SCALE = 0.5  # boxes are on an image of 16 x 18, the maps 8 x 9
OPTIONS = dict(kernel_size=(3, 2), stride=(1, 2), padding=(1, 1), dilation=(1, 2))

BLOCKS = {
    "conv": Conv2d(4, 6, groups=2, **OPTIONS),
    "conv-no-bias": Conv2d(4, 6, bias=False, **OPTIONS),
    "linear": Linear(7, 5),
    "v1": DeformConv2d(4, 6, groups=2, **OPTIONS),
    "v1-groups": DeformConv2d(4, 6, offset_groups=2, **OPTIONS),
    "v2": DeformConv2d(4, 6, modulated=True, **OPTIONS),
    "v2-groups": DeformConv2d(4, 6, 3, offset_groups=2, modulated=True, bias=False),
    "roi-v1": DeformRoiPool(4, (2, 3), SCALE, sampling_ratio=2),
    "roi-v2": DeformRoiPool(4, (2, 3), SCALE, modulated=True, hidden=8),
    "ps-roi": DeformPSRoiPool(4, 3, 2, SCALE, sample_per_part=3),
}
every_block = pytest.mark.parametrize("name", BLOCKS)


def arguments(name, rng):
    """x, and boxes where the block wants them."""
    if name == "linear":
        return (rng.standard_normal((3, 7)),)
    x = rng.standard_normal((2, 4, 8, 9))
    return (x, BOXES) if "roi" in name else (x,)


def trained(block, rng):
    """Parameters as they may be after some training: no branch is zero any more."""
    return {
        name: array + 0.1 * rng.standard_normal(array.shape)
        for name, array in block.init(rng, np.float64).items()
    }


@every_block
def test_gradients_are_those_of_the_whole_block(name, rng):
    """Along random directions in all parameters and the input at once, and in each alone."""
    block = BLOCKS[name]
    params, (x, *boxes) = trained(block, rng), arguments(name, rng)
    y, saved = block.forward(params, x, *boxes)
    grad_y = rng.standard_normal(y.shape)
    grad_x, grads = block.backward(params, saved, grad_y)
    assert grads.keys() == params.keys()
    assert all(grads[n].shape == params[n].shape for n in params)

    def value(moved):
        moved = dict(moved)
        return np.sum(block.forward(moved, moved.pop("x"), *boxes)[0] * grad_y)

    given, gradients = {**params, "x": x}, {**grads, "x": grad_x}
    for moving in ([*given], *([n] for n in given)):
        direction = {n: rng.standard_normal(given[n].shape) for n in moving}
        ahead, behind = (
            value({n: a + step * direction[n] if n in moving else a for n, a in given.items()})
            for step in (1e-6, -1e-6)
        )
        expected = sum(np.sum(direction[n] * gradients[n]) for n in moving)
        np.testing.assert_allclose((ahead - behind) / 2e-6, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["v1", "v1-groups", "v2", "v2-groups"])
def test_convolution_starts_as_its_plain_counterpart(name, rng):
    block = BLOCKS[name]
    params = block.init(rng, np.float64)
    (x,) = arguments(name, rng)
    y, _ = block.forward(params, x)
    # Halving is exact: the masks of version 2 might as well be in the weights.
    factor = 0.5 if block.modulated else 1.0
    plain = {"weight": factor * params["weight"]} | {n: params[n] for n in params if n == "bias"}
    expected, _ = block.plain.forward(plain, x)
    # Offset groups may change the order in which channels are summed, and with it the last bit.
    bound = 0 if block.offset_groups == 1 else 1e-14
    np.testing.assert_allclose(y, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("name", ["roi-v1", "roi-v2"])
def test_pooling_starts_as_roi_align(name, rng):
    block = BLOCKS[name]
    x, boxes = arguments(name, rng)
    y, _ = block.forward(block.init(rng, np.float64), x, boxes)
    plain = cudeform.roi_align(x, boxes, (2, 3), SCALE, block.sampling_ratio, aligned=True)
    np.testing.assert_array_equal(y, 0.5 * plain if block.modulated else plain)


def test_position_sensitive_pooling_starts_unmoved(rng):
    block = BLOCKS["ps-roi"]
    x, boxes = arguments("ps-roi", rng)
    params = block.init(rng, np.float64)
    scores = cudeform.conv2d(x, params["conv.weight"], params["conv.bias"])
    plain = cudeform.deform_ps_roi_pool(scores, boxes, None, 2, SCALE, 3, 2, 2, 3)
    np.testing.assert_array_equal(block.forward(params, x, boxes)[0], plain)


@pytest.mark.parametrize("name", ["v1", "v2-groups", "roi-v1", "roi-v2", "ps-roi"])
def test_branch_learns_from_the_start(name, rng):
    """A branch of zeros has a gradient, and one step along it deforms."""
    block = BLOCKS[name]
    params, (x, *boxes) = block.init(rng, np.float64), arguments(name, rng)
    y, saved = block.forward(params, x, *boxes)
    _, grads = block.backward(params, saved, rng.standard_normal(y.shape))
    stepped = {n: params[n] - 0.1 * grads[n] for n in params}
    before, after = (block.deformation(p, x, *boxes) for p in (params, stepped))
    if not isinstance(before, tuple):
        before, after = (before, None), (after, None)  # position-sensitive pooling has no masks
    for start, end in zip(before, after, strict=True):
        if start is not None:
            assert (start == start.flat[0]).all() and (end != start).any()


@every_block
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_stays(name, dtype, rng):
    block = BLOCKS[name]
    params = block.init(rng, dtype)
    y, saved = block.forward(params, *(a.astype(dtype) for a in arguments(name, rng)))
    grad_x, grads = block.backward(params, saved, np.ones_like(y))
    assert {a.dtype.name for a in (y, grad_x, *params.values(), *grads.values())} == {dtype}


@pytest.mark.parametrize("name", ["v2-groups", "roi-v2", "ps-roi"])
def test_backends_agree(name, backend, rng):
    block = BLOCKS[name]
    params = {n: a.astype(np.float32) for n, a in trained(block, rng).items()}
    given = [a.astype(np.float32) for a in arguments(name, rng)]
    expected, saved = block.forward(params, *given)
    grad_y = rng.standard_normal(expected.shape).astype(np.float32)
    expected_grads = block.backward(params, saved, grad_y)

    there = {n: backend.to_device(a) for n, a in params.items()}
    y, saved = block.forward(there, *map(backend.to_device, given))
    assert type(y) is type(backend.to_device(expected))
    np.testing.assert_allclose(backend.to_host(y), expected, rtol=1e-4, atol=1e-4)
    grads = block.backward(there, saved, backend.to_device(grad_y))
    for got, want in [
        (grads[0], expected_grads[0]),
        *((grads[1][n], expected_grads[1][n]) for n in params),
    ]:
        np.testing.assert_allclose(backend.to_host(got), want, rtol=1e-3, atol=1e-3)


@every_block
def test_rate_factors_name_every_parameter(name, rng):
    block = BLOCKS[name]
    factors = block.rate_factors
    assert factors.keys() == block.init(rng).keys()
    for parameter, factor in factors.items():
        in_branch = parameter.startswith(("conv_offset", "offset_fc", "offset_mask_fc"))
        assert factor == (block.branch_rate if in_branch else 1.0)


@every_block
def test_init_depends_on_the_generator_alone(name):
    first, second, other = (
        BLOCKS[name].init(np.random.default_rng(seed), np.float64) for seed in (1, 1, 2)
    )
    assert all(np.array_equal(first[n], second[n]) for n in first)
    drawn = [n for n in first if first[n].any()]
    assert all(not np.array_equal(first[n], other[n]) for n in drawn)
    assert name == "roi-v1" or drawn


@pytest.mark.parametrize(
    "layer, inputs", [(Conv2d(6, 64, (3, 5), groups=2), 3 * 3 * 5), (Linear(45, 64), 45)]
)
def test_initial_weights_keep_the_variance(layer, inputs):
    """He et al. 2015: 2 over the number of values that an output is made of."""
    params = layer.init(np.random.default_rng(0), np.float64)
    assert params["weight"].var() == pytest.approx(2 / inputs, rel=0.1)
    assert abs(params["weight"].mean()) < 0.05 * (2 / inputs) ** 0.5
    assert not params["bias"].any() and params["bias"].shape == (64,)


@every_block
def test_only_the_branches_that_shift_begin_with_zeros(name):
    params = BLOCKS[name].init(np.random.default_rng(0), np.float64)
    for parameter, array in params.items():
        layer, _, kind = parameter.rpartition(".")
        last = {"conv_offset", "offset_fc", "offset_mask_fc.4"}
        assert array.any() == (kind == "weight" and layer not in last), parameter


@pytest.mark.parametrize(
    ("block", "op"),
    [
        (Conv2d, "conv2d"),
        (DeformConv2d, "deform_conv2d"),
        (DeformRoiPool, "deform_roi_pool"),
        (DeformPSRoiPool, "deform_ps_roi_pool"),
    ],
)
def test_options_begin_as_those_of_the_operator(block, op):
    begin = {f.name: f.default for f in dataclasses.fields(block)}
    defaults = {
        name: default
        for name, default in operator(op).defaults.items()
        if name in begin and default not in (None, inspect.Parameter.empty)
    }
    assert defaults
    assert {name: begin[name] for name in defaults} == defaults


def test_blocks_are_frozen_and_begin_with_the_papers_options():
    assert DeformRoiPool(4, 3).hidden == 1024
    assert DeformConv2d(4, 6, 3).bias and not DeformConv2d(4, 6, 3).modulated
    assert DeformPSRoiPool(4, 3, 2).sample_per_part == 4
    for block in BLOCKS.values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            block.bias = False


def test_no_masks_before_the_sigmoid_saturates():
    x = np.array([-1e4, 0, 1e4], np.float32)
    with np.errstate(all="raise"):
        assert layers.plain.sigmoid(x).tolist() == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Conv2d(4, 6, 3, groups=4), "Conv2d: expected `out_channels` divisible by groups"),
        (lambda: DeformConv2d(3, 6, 3, offset_groups=2), "DeformConv2d: expected `in_channels`"),
        (lambda: DeformConv2d(0, 6, 3), "DeformConv2d: expected `in_channels` to be at least 1"),
        (lambda: Linear(3, 0), "Linear: expected `out_features` to be at least 1"),
        (lambda: DeformRoiPool(3, 0), "DeformRoiPool: expected `output_size` to be at least 1"),
        (lambda: DeformPSRoiPool(3, 0, 2), "DeformPSRoiPool: expected `classes` to be at least 1"),
    ],
)
def test_sizes_that_do_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@every_block
def test_what_is_no_array_is_refused_by_name(name, rng):
    block = BLOCKS[name]
    x, *boxes = arguments(name, rng)
    params = block.init(rng, np.float64)
    with pytest.raises(TypeError, match=rf"{type(block).__name__}: expected `x` to be an array"):
        block.forward(params, x.tolist(), *boxes)
    with pytest.raises(ValueError, match="expected `x` to have . axes"):
        block.forward(params, x[0], *boxes)


def test_least_sizes_are_sizes():
    assert DeformPSRoiPool(1, 1, 1, sample_per_part=1).sample_per_part == 1
    assert DeformRoiPool(1, 1, sampling_ratio=0, hidden=1).sampling_ratio == 0
    assert Conv2d(1, 1, 1, padding=0).out_channels == Linear(1, 1).out_features == 1
    assert DeformConv2d(1, 1, 1, groups=1, offset_groups=1).taps == 1


@pytest.mark.parametrize("name", layers.__all__)
def test_docstring_describes_every_field(name):
    block = getattr(layers, name)
    doc = pytest.importorskip("numpydoc.docscrape").ClassDoc(block)
    described = [part for p in doc["Parameters"] for part in p.name.split(", ")]
    assert sorted(described) == sorted(field.name for field in dataclasses.fields(block))
    assert doc["Examples"]
    for method in ("init", "forward", "backward"):
        assert inspect.getdoc(getattr(block, method))
