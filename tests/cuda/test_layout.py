"""Moving arrays between layouts and dtypes: in vectors where these fit, and at edges of tiles."""

from itertools import product
from types import SimpleNamespace

import backends
import numpy as np
import pytest
from cases import dtype_of
from emulator.device import EmulatorDevice, to_device, to_host

from cudeform.cuda import layout

PAIRS = [
    ("float16", "float16"),
    ("float16", "float32"),
    ("float32", "bfloat16"),
    ("float32", "float32"),
    ("float64", "float64"),
]
GAP = 77  # what is not written stays


@pytest.fixture
def device():
    backends.require(backends.BACKENDS["emulator"])
    return EmulatorDevice()


def placed(count, dtype, first, values=GAP):
    """An array of the device, from an element of a larger one on."""
    array = np.full(first + count, GAP, dtype_of(dtype))
    array[first:] = values
    return to_device(array)[first:]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_transposes_of_every_vector(device, pair):
    """Full tiles and others, rows that vectors divide and others, from any element on."""
    shapes = [(2, 64, 64), (1, 65, 130), (1, 68, 4), (2, 7, 49)]
    for (matrices, rows, columns), pads in product(shapes, [(0, 0), (4, 0), (0, 4), (1, 3)]):
        count = matrices * rows * (columns + pads[0])
        values = (np.arange(count) % 251).astype(np.float64)
        source = placed(count, pair[0], pads[0], values)
        target = placed(matrices * columns * (rows + pads[1]), pair[1], pads[1])
        layout.transpose(
            device,
            source,
            target,
            (matrices, rows, columns),
            of_source=layout.Strides(columns + pads[0], step=rows * (columns + pads[0])),
            of_target=layout.Strides(rows + pads[1], step=columns * (rows + pads[1])),
        )
        moved = to_host(target).reshape(matrices, columns, rows + pads[1]).astype(np.float64)
        given = values.reshape(matrices, rows, -1)[..., :columns]
        np.testing.assert_array_equal(moved[..., :rows], given.transpose(0, 2, 1))
        np.testing.assert_array_equal(moved[..., rows:], GAP)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_fills_of_every_vector(device, pair):
    """Copies and biases, whose period packs divide and not, with ends that are no pack."""
    for first, (images, channels, inner) in product(
        (0, 1), [(1, 1027, 1), (3, 16, 1), (2, 5, 16), (2, 5, 3), (1, 3, 1)]
    ):
        values = (np.arange(channels) % 251).astype(np.float64)
        target = placed(images * channels * inner + 1, pair[1], first)
        layout.fill(device, placed(channels, pair[0], first, values), target[:-1], inner)
        want = np.append(np.tile(np.repeat(values, inner), images), GAP)
        np.testing.assert_array_equal(to_host(target).astype(np.float64), want)


def test_vectors_are_taken_where_they_fit():
    """Otherwise they would not be, and nothing would show it but the time."""
    launched = []
    device = SimpleNamespace(launch=lambda *given: launched.append(given[-1]["jobs"][0][0]))
    for (rows, columns, first), wide in {
        (256, 15200, 0): (1, 1),
        (15200, 49, 0): (0, 1),
        (49, 256, 0): (1, 0),
        (256, 256, 1): (0, 0),
    }.items():
        source = SimpleNamespace(dtype=np.dtype("f2"), data=SimpleNamespace(ptr=512 + 2 * first))
        layout.transpose(device, source, source, (2, rows, columns))
        assert (launched[-1]["wide_source"], launched[-1]["wide_target"]) == wide
