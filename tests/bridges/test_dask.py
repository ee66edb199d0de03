"""Deformable convolution in blocks: equal to the whole, or an error."""

import pickle

import numpy as np
import pytest
from cases import operator, problems
from tolerances import assert_close

import cudeform

da = pytest.importorskip("dask.array")
blocks = pytest.importorskip("cudeform.dask")

CASES = [case for name, case in problems() if name == "deform_conv2d"]


def case_of(name, rng):
    return next(case for case in operator("deform_conv2d").cases(rng) if case.name == name)


@pytest.mark.parametrize("case", [name for name in CASES if "last" not in name])
def test_blocks_give_what_the_whole_gives(case, rng):
    """Blocks of 4 x 3 output pixels, input in other blocks; far offsets reach the whole image."""
    case = case_of(case, rng)
    out = case.arrays["offset"].shape
    chunks = {"input": (1, 2, 3, 5), "offset": (1, out[1] // 2, 4, 3), "mask": (2, -1, 2, 4)}
    arrays = {
        name: da.from_array(array, chunks=chunks[name]) if name in chunks else array
        for name, array in case.arrays.items()
    }
    found = blocks.deform_conv2d(**arrays, **case.options)
    expected = cudeform.deform_conv2d(**case.arrays, **case.options)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert found.chunks[2:] == arrays["offset"].chunks[2:]
    assert_close(found.compute(), expected)


def test_a_graph_grows_by_a_few_tasks_for_each_block():
    """As that of `map_overlap` does: each block asks for the blocks around it, and for no more."""
    size, side = 8, 12
    shape, chunks = (1, 2, size * side, size * side), (1, 2, size, size)
    image = da.zeros(shape, chunks=chunks, dtype=np.float32)
    offset = da.zeros((1, 18, *shape[2:]), chunks=(1, 18, size, size), dtype=np.float32)
    weight = np.ones((2, 2, 3, 3), np.float32)
    output = blocks.deform_conv2d(image, offset, weight, padding=1, halo=(3, 3))
    own = dict(output.dask.layers[output.name])
    assert len(output.dask.layers) < 10
    # each of side**2 blocks: itself, and pieces of the eight around it, which it has not at borders
    assert len(own) == side**2 + (3 * side - 2) ** 2 - side**2
    again = pickle.loads(pickle.dumps(output[..., :9, :9]))  # as to a cluster
    np.testing.assert_array_equal(again, 0)


def test_unknown_chunks_are_the_reason(rng):
    arguments = image(rng, 0)
    for name in ("input", "offset"):
        array = arguments[name]
        unknown = array[array[:, 0, 0, 0] == array[:, 0, 0, 0]]
        message = f"expected `{name}` to be of a known shape, got .nan.*compute_chunk_sizes"
        with pytest.raises(ValueError, match=message):
            blocks.deform_conv2d(**{**arguments, name: unknown})
        unknown.compute_chunk_sizes()
        assert blocks.deform_conv2d(**{**arguments, name: unknown}).shape == (1, 3, 40, 40)
    with pytest.raises(ValueError, match="halo: expected `offset` to be of a known shape"):
        blocks.halo(array[array[:, 0, 0, 0] == 0], 3)


def image(rng, reach):
    """A wide image of which one pixel reads `reach` pixels away."""
    offset = np.zeros((1, 18, 40, 40), np.float32)
    offset[0, 2 * 4, 20, 20] = -reach
    arrays = {"input": rng.standard_normal((1, 2, 40, 40)), "offset": offset}
    arrays = {
        k: da.from_array(v.astype(np.float32), chunks=(1, -1, 8, 8)) for k, v in arrays.items()
    }
    return {**arrays, "weight": rng.standard_normal((3, 2, 3, 3)).astype(np.float32), "padding": 1}


def test_halo_too_small_is_an_error_and_not_zeros(rng):
    arguments = image(rng, 11.5)
    offset = arguments["offset"]
    assert blocks.halo(offset, 3) == (13, 1)
    assert blocks.halo(offset.compute(), (3, 5), dilation=2) == (14, 4)
    whole = cudeform.deform_conv2d(
        **{k: getattr(v, "compute", lambda v=v: v)() for k, v in arguments.items()}
    )
    np.testing.assert_array_equal(blocks.deform_conv2d(**arguments), whole)
    np.testing.assert_array_equal(blocks.deform_conv2d(**arguments, halo=(13, 1)), whole)
    message = "expected `halo` to be at least 13 along y, got 12 .an offset along y of 11.5 pixels"
    with pytest.raises(ValueError, match=message):
        blocks.deform_conv2d(**arguments, halo=(12, 1)).compute()
    with pytest.raises(ValueError, match=r"`halo` to be at least \(1, 1\), got \(13, 0\)"):
        blocks.deform_conv2d(**arguments, halo=(13, 0))


def test_a_block_reads_its_neighbourhood_alone(rng):
    """Not the whole image: the rest need not even exist."""
    arguments = image(rng, 3.0)

    def read(block, block_info=None):
        rows = block_info[0]["array-location"][2]
        assert rows[0] < 24, "a block far below was read"
        return block

    arguments["input"] = arguments["input"].map_blocks(read, dtype=np.float32)
    assert blocks.deform_conv2d(**arguments, halo=(4, 1))[0, :, 10, 10].compute().shape == (3,)


def test_offsets_that_are_not_numbers_reach_nowhere(rng):
    offset = np.full((1, 2, 4, 4), np.nan)
    offset[0, 0, 0, 0], offset[0, 1, 1, 1] = np.inf, -1.25
    assert blocks.halo(offset, 1) == (0, 2)
    assert blocks.halo(np.zeros((0, 2, 4, 4)), 1) == (0, 0)


def test_arguments_are_checked_before_anything_is_read(rng):
    arguments = image(rng, 1.0)
    arguments["offset"] = arguments["offset"][:, :17]
    with pytest.raises(ValueError, match="deform_conv2d: expected `offset` with channels"):
        blocks.deform_conv2d(**arguments)
