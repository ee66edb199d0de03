"""The networks of examples/, as far as all of them are held to the same."""

import numpy as np
import training

__all__ = ["check_gradients"]


def check_gradients(net, params, batch, rng):
    """All gradients of a model's loss against differences along random directions."""
    params = training.to(lambda a: a + 0.02 * rng.standard_normal(a.shape), params)
    _, grads = net.loss_and_gradients(params, *batch)
    assert grads.keys() == params.keys() == net.rate_factors.keys()
    for layer, own in params.items():
        assert grads[layer].keys() == own.keys() == net.rate_factors[layer].keys()
        for name, array in own.items():
            direction = rng.standard_normal(array.shape)
            ahead, behind = (
                net.loss_and_gradients(
                    {**params, layer: {**own, name: array + step * direction}}, *batch
                )[0]
                for step in (1e-7, -1e-7)
            )
            expected = np.sum(direction * grads[layer][name])
            np.testing.assert_allclose((ahead - behind) / 2e-7, expected, rtol=1e-4, atol=1e-5)
