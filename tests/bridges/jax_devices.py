"""Operators on four devices of one program: a program of its own, for JAX counts devices once."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import cudeform

RNG = np.random.default_rng(0)
SPLIT, SHARED = PartitionSpec("batch"), PartitionSpec()
NAMES = ("input", "offset", "weight", "bias", "mask")
SPECS = (SPLIT, SPLIT, SHARED, SHARED, SPLIT)
SHAPES = ((8, 4, 5, 6), (8, 18, 5, 6), (3, 4, 3, 3), (3,), (8, 9, 5, 6))


def operator(*arrays):
    return cudeform.deform_conv2d(**dict(zip(NAMES, arrays, strict=True)), padding=1)


def close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))


def main():
    assert jax.device_count() == 4
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.shard_map(operator, mesh=mesh, in_specs=SPECS, out_specs=SPLIT)
    arrays = [jnp.asarray(RNG.standard_normal(shape), jnp.float32) for shape in SHAPES]
    placed = [
        jax.device_put(array, NamedSharding(mesh, spec))
        for array, spec in zip(arrays, SPECS, strict=True)
    ]
    expected = operator(*arrays)
    for call in (sharded, jax.jit(sharded)):
        result = call(*placed)
        assert result.sharding.spec == SPLIT
        np.testing.assert_array_equal(result, expected)

    def gradient(function):
        every = tuple(range(len(NAMES)))
        return jax.grad(lambda *given: jnp.sum(jnp.sin(function(*given))), argnums=every)

    close(jax.jit(gradient(sharded))(*placed), gradient(operator)(*arrays))
    # Taken inside, the gradient of what the devices share is summed over them.
    inside = jax.shard_map(gradient(operator), mesh=mesh, in_specs=SPECS, out_specs=SPECS)
    close(jax.jit(inside)(*placed), gradient(operator)(*arrays))

    def second(function):
        weight_of = lambda given: gradient(function)(*given)[1]  # noqa: E731
        return jax.grad(lambda given: jnp.sum(weight_of(given) ** 2))

    close(jax.jit(second(sharded))(tuple(placed)), second(operator)(tuple(arrays)))
    moved = jax.jvp(sharded, placed, placed)[1]
    close(moved, jax.jvp(operator, arrays, arrays)[1])

    # Without shard_map JAX gathers all images on every device: documented, and no business of ours.
    assert "all-gather" in jax.jit(operator).lower(*placed).compile().as_text()
    assert "all-gather" not in jax.jit(sharded).lower(*placed).compile().as_text()
    print("ok")


if __name__ == "__main__":
    main()
