"""What a tensor is: for converters, which are no operators, and for checks. No backend has it."""

from __future__ import annotations

import torch

from cudeform import arrays

KIND = arrays.Kind(
    name="torch",
    backend=None,
    device=lambda tensor: tensor.device,
    dtype_name=lambda dtype: str(dtype).removeprefix("torch."),
    cast=lambda tensor, dtype: tensor.to(dtype),
    constant=lambda values, like: torch.as_tensor(values, dtype=like.dtype, device=like.device),
    contiguous=lambda tensor: tensor.contiguous(),
)
arrays.register(torch.Tensor, KIND)
arrays.register(torch.nn.Parameter, KIND)
