"""However little memory the CPU backend takes at a time, the results are the same.

The shapes of the other tests fit the workspace at once; here it is made so small that images are
taken one by one, channels slice by slice and pixels in parts.
"""

import backends
import pytest
from cases import problem
from test_inputs import batch_of
from tolerances import assert_close

from cudeform.cpu import blocking, convolution, gradients, precision

CPU = backends.BACKENDS["cpu"]


@pytest.fixture(params=[1, 40_000, 400_000])
def small_workspace(monkeypatch, request):
    """Bytes for copies of images and for sums that are still to be added up."""
    for module in (blocking, convolution, precision):
        monkeypatch.setattr(module, "SCRATCH_BYTES", request.param)
    monkeypatch.setattr(blocking, "_PARTIAL_BYTES", request.param)
    prepared = convolution._prepared, gradients._prepared
    for remembered in prepared:
        remembered.cache_clear()
    yield
    for remembered in prepared:
        assert remembered.cache_info().misses  # it was asked for under these limits
        remembered.cache_clear()


def asked_of(name):
    if name == "batch":
        asked, _ = batch_of("deform_conv2d", 37)
        return asked
    return problem("deform_conv2d", name, "float32")


@pytest.mark.parametrize("name", ["wide", "wide-channels-last", "groups", "batch"])
def test_small_workspace_gives_the_same_results(small_workspace, name):
    asked = asked_of(name)
    assert_close(asked.forward(CPU), asked.output, what="output")
    expected = asked.gradients
    for argument, gradient in asked.backward(CPU).items():
        if gradient is not None:
            assert_close(gradient, expected[argument], what=f"gradient of {argument}")


@pytest.mark.parametrize("name", ["wide", "batch"])
def test_small_workspace_in_half_precision(small_workspace, name):
    """Images are widened a few at a time; sums over the batch are rounded once at the end."""
    asked = asked_of(name) if name == "batch" else problem("deform_conv2d", name, "float16")
    if name == "batch":
        asked = type(asked)(asked.row, asked.case, "float16")
    assert_close(asked.forward(CPU), asked.output, what="output")
    expected = asked.gradients
    for argument, gradient in asked.backward(CPU).items():
        if gradient is not None:
            assert_close(gradient, expected[argument], what=f"gradient of {argument}")
