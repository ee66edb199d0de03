"""Programs of torch with every operator, and with modules: for the tests that compile and save."""

import os

import numpy as np
import torch
from cases import problem, problems

from cudeform.registry import OPERATORS
from cudeform.torch import nn
from cudeform.torch.signatures import BRIDGES

__all__ = ["FULL", "FULLEST", "Functions", "Modules"]

FULL = os.environ.get("CUDEFORM_MODES") == "full"  # all that takes too long to be run each time


def _fullest(name):
    """The case of an operator with the most arrays, and of these the smallest."""
    found = [problem(name, case, "float32") for n, case in problems() if n == name]
    found = [asked for asked in found if asked.output.size]
    return max(found, key=lambda asked: (len(asked.case.arrays), -asked.output.size))


FULLEST = {row.name: _fullest(row.name) for row in OPERATORS}
# Without the arrays, which a compiler would look into: the function, the arrays given to it, and
# all other arguments.
PROGRAM = [
    (
        row.forward,
        tuple(n for n in BRIDGES[row.name].names if n in FULLEST[row.name].case.arrays),
        {a.name: None for a in row.arguments if a.name not in FULLEST[row.name].case.arrays}
        | FULLEST[row.name].case.options,
    )
    for row in OPERATORS
]


class Functions(torch.nn.Module):
    """Every operator, with images of 16 bits under autocast, and all else of 32."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def given(self):
        return [
            tensor.to(self.dtype) if name in ("input", "value") else tensor
            for function, names, _ in PROGRAM
            for name in names
            for tensor in [torch.tensor(FULLEST[function.__name__].case.arrays[name])]
        ]

    def forward(self, *tensors):
        tensors, results = list(tensors), ()
        for function, names, others in PROGRAM:
            given = {name: tensors.pop(0) for name in names}
            results += (function(**given, **others),)
        return results


class Modules(torch.nn.Module):
    """A network, whose own convolutions give 16 bits under autocast."""

    def __init__(self, dtype):
        super().__init__()
        torch.manual_seed(4)
        self.first = nn.ModulatedDeformConv2dPack(3, 4, 3, padding=1)
        self.second = nn.DeformConv2dPack(4, 4, 3, padding=1)
        self.pool = nn.ModulatedDeformRoIPoolPack(2, 4, 8, sampling_ratio=2)
        for branch in (self.first.conv_offset, self.second.conv_offset, self.pool.offset_fc[-1]):
            torch.nn.init.normal_(branch.weight, std=0.1)

    def given(self):
        rng = np.random.default_rng(5)
        images = torch.tensor(rng.standard_normal((2, 3, 8, 9)), dtype=torch.float32)
        boxes = torch.tensor([[0.0, 1, 1, 6, 7], [1, 0, 2, 5, 5], [1, 3.5, 1, 8, 6]])
        return [images, boxes]

    def forward(self, images, boxes):
        return (self.pool(self.second(self.first(images).relu()), boxes),)
