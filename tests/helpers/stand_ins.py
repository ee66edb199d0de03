"""Stand-ins for compiled modules under test: tensors to call them with, a look at results."""

import importlib

import numpy as np
from tolerances import assert_close

__all__ = ["array", "check", "install_all", "module", "rubbish", "tensors", "wide"]


def _alias(name):
    """A name of our own for a module that lies in a package which is not installed."""
    below = "." in name and not name.startswith("DCNv4")
    return f"stand_in_of_{name.replace('.', '_')}" if below else name


def install_all():
    """Those of whole packages by their names, others where `module` finds them."""
    from cudeform.torch import extensions

    names = [row.name for row in extensions.available()]
    return extensions.install(*(f"{_alias(n)}={n}" if "." in n else n for n in names))


def module(name):
    """A stand-in."""
    return importlib.import_module(_alias(name))


def array(*shape, low=-1.0, high=1.0):
    """Numbers of float32, the same for the same shape."""
    rng = np.random.default_rng(sum(shape) + len(shape))
    return rng.uniform(low, high, shape).astype(np.float32)


def tensors(arrays):
    import torch

    return {name: torch.from_numpy(value) for name, value in arrays.items()}


def wide(arrays):
    """For the reference."""
    return {name: value.astype(np.float64) for name, value in arrays.items()}


def rubbish(like):
    """What a tensor holds that is to be filled."""
    import torch

    return torch.full(like.shape, torch.nan)


def check(found, expected, before=0.0, dtype="float32"):
    """A tensor, which held `before` if it was to be added to."""
    assert_close(found.detach().double().numpy(), np.asarray(expected) + before, dtype)
