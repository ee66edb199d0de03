"""What torch's counter of operations finds in the operators."""

import numpy as np
import pytest

import cudeform
from cudeform.registry import OPERATORS

torch = pytest.importorskip("torch")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402


def counted(function, *args):
    with FlopCounterMode(display=False) as counter:
        result = function(*args)
    return counter.get_total_flops(), result


def tensors(*shapes, needs=None):
    made = [torch.rand(shape) for shape in shapes]
    for at, tensor in enumerate(made):
        tensor.requires_grad_(needs is None or at in needs)
    return made


@pytest.mark.parametrize("needs", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_a_convolution_counts_as_that_of_torch(needs):
    # In groups torch counts too much for the gradient of the weight.
    groups = 1 if 1 in needs else 2
    given = tensors((2, 6, 9, 8), (4, 6 // groups, 3, 2), (4,), needs=needs)
    options = {"stride": (2, 1), "padding": (1, 2)}
    ours, y = counted(lambda *g: cudeform.conv2d(*g, **options), *given)
    theirs, z = counted(lambda *g: torch.conv2d(*g, groups=groups, **options), *given)
    assert ours == theirs > 0
    assert counted(y.sum().backward)[0] == counted(z.sum().backward)[0]


SAMPLES = 2 * 9 * 8 * 9 * 4  # taps of all pixels, of all channels
PRODUCTS = SAMPLES * 6


@pytest.mark.parametrize(
    "needs, blends, products",
    [((0,), 1, 1), ((1,), 1, 1), ((2,), 1, 1), ((3,), 0, 0), ((0, 1), 2, 1), ((0, 1, 2), 2, 2)],
)
def test_a_deformable_convolution_counts_samples_and_products(needs, blends, products):
    given = tensors((2, 4, 9, 8), (2, 18, 9, 8), (6, 4, 3, 3), (6,), needs=needs)
    forward, y = counted(lambda *g: cudeform.deform_conv2d(*g, padding=1), *given)
    assert forward == 2 * (4 * SAMPLES + PRODUCTS)
    assert counted(y.sum().backward)[0] == 2 * (4 * SAMPLES * blends + PRODUCTS * products)


def test_a_compiled_and_a_fake_call_count_the_same():
    given = tensors((2, 4, 9, 8), (2, 18, 9, 8), (6, 4, 3, 3))

    def call(*given):
        return cudeform.deform_conv2d(*given, padding=1)

    eager = counted(call, *given)[0]
    assert counted(torch.compile(call, backend="aot_eager"), *given)[0] == eager
    assert counted(call, *(tensor.to("meta") for tensor in given))[0] == eager


@pytest.mark.parametrize("row", OPERATORS, ids=lambda row: row.name)
def test_all_but_poolings_count(row):
    case = next(iter(row.cases(np.random.default_rng(0))))

    def convert(array):
        return torch.from_numpy(array).requires_grad_(array.dtype == np.float64)

    forward, y = counted(row.call, case, convert)
    backward = counted(y.sum().backward)[0]
    if row.family == "regions":
        assert forward == backward == 0
    else:
        assert backward == 2 * forward > 0  # both for all of what has a gradient
