"""Multi-scale deformable attention on plain arrays: torch's module, and its gradients."""

import numpy as np
import pytest

from cudeform.layers import MSDeformAttn

SHAPES = [(5, 6), (3, 2)]
LAYER = MSDeformAttn(8, levels=2, heads=4, points=3)


def arrays(rng):
    query, features = rng.standard_normal((2, 5, 8)), rng.standard_normal((2, 36, 8))
    return query, rng.random((2, 5, 2, 2)), features


def trained(rng):
    params = LAYER.init(rng, np.float64)
    return {n: array + 0.1 * rng.standard_normal(array.shape) for n, array in params.items()}


def test_gradients_are_those_of_the_whole_block(rng):
    """Along random directions in each array and parameter."""
    params, given = trained(rng), arrays(rng)
    y, saved = LAYER.forward(params, *given, SHAPES)
    grad_y = rng.standard_normal(y.shape)
    grad_given, grads = LAYER.backward(params, saved, grad_y)
    names = ("query", "reference", "features")
    everything = {**params, **dict(zip(names, given, strict=True))}
    gradients = {**grads, **dict(zip(names, grad_given, strict=True))}
    assert gradients.keys() == everything.keys()

    def value(moved):
        moved = dict(moved)
        taken = [moved.pop(name) for name in names]
        return np.sum(LAYER.forward(moved, *taken, SHAPES)[0] * grad_y)

    for name, array in everything.items():
        direction = rng.standard_normal(array.shape)
        ahead, behind = (
            value({**everything, name: array + step * direction}) for step in (1e-7, -1e-7)
        )
        expected = np.sum(direction * gradients[name])
        np.testing.assert_allclose((ahead - behind) / 2e-7, expected, rtol=1e-5, atol=1e-6)


def test_it_is_torchs_module(rng):
    torch = pytest.importorskip("torch")
    from cudeform.torch import nn

    module = nn.MSDeformAttn(8, 2, 4, 3).double()
    begins = LAYER.init(rng, np.float64)
    for name in ("sampling_offsets.bias", "sampling_offsets.weight", "attention_weights.weight"):
        found = module.state_dict()[name].numpy()
        np.testing.assert_allclose(begins[name], found, rtol=1e-6, atol=1e-6)
    params, given = trained(rng), arrays(rng)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in params.items()})
    found = module(*map(torch.from_numpy, given), SHAPES).detach().numpy()
    y, _ = LAYER.forward(params, *given, SHAPES)
    np.testing.assert_allclose(y, found, rtol=1e-12, atol=1e-12)


def test_rates_sizes_and_dtypes(rng):
    params = LAYER.init(rng)
    factors = LAYER.rate_factors
    assert factors.keys() == params.keys()
    for name, factor in factors.items():
        assert factor == (0.1 if name.startswith("sampling_offsets") else 1.0)
    y, saved = LAYER.forward(params, *(a.astype(np.float32) for a in arrays(rng)), SHAPES)
    given, grads = LAYER.backward(params, saved, np.ones_like(y))
    assert {a.dtype.name for a in (y, *given, *grads.values(), *params.values())} == {"float32"}
    wide = MSDeformAttn(64).init(rng, np.float64)["value_proj.weight"]
    assert wide.var() == pytest.approx(1 / 64, rel=0.1)
    with pytest.raises(ValueError, match="expected `channels` divisible by heads = 8"):
        MSDeformAttn(12)
    query, reference, features = arrays(rng)
    with pytest.raises(ValueError, match="MSDeformAttn: expected `reference` of shape"):
        LAYER.forward(params, query, reference[:, :, :1], features, SHAPES)
    with pytest.raises(ValueError, match="MSDeformAttn: expected `query` of shape"):
        LAYER.forward(params, query[..., :4], reference, features, SHAPES)
    with pytest.raises(TypeError, match="MSDeformAttn: expected `features` to be an array"):
        LAYER.forward(params, query, reference, features.tolist(), SHAPES)
