"""Modules of deformable attention for torch, and tensors to call them with."""

import torch

__all__ = ["PIXELS", "SHAPES", "given", "rand", "scattered"]

SHAPES = [(6, 8), (3, 4)]
PIXELS = sum(height * width for height, width in SHAPES)


def rand(*shape, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)


def scattered(module):
    """A module whose parameters are not those of the start, which are zeros and knots."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            wide = 2.0 if name == "sampling_offsets.bias" else 0.3
            parameter.copy_(wide * torch.randn(parameter.shape, generator=generator))
    return module


def given(dtype=torch.float64, numbers=2, width=32):
    """Queries, reference points or boxes, and features."""
    query, features = rand(2, 5, width, dtype=dtype), rand(2, PIXELS, width, dtype=dtype, seed=2)
    return query - 0.5, rand(2, 5, 2, numbers, dtype=dtype, seed=4), features - 0.5
