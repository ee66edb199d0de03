"""What tests of kernels run them on."""

import backends
import pytest
from emulator.device import EmulatorDevice, install


@pytest.fixture
def device():
    """The emulator, which operators and the test itself launch on."""
    backends.require(backends.BACKENDS["emulator"])
    with install(EmulatorDevice()) as emulated:
        yield emulated
