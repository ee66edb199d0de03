"""What compiled modules say of how they were made."""

from __future__ import annotations

import torch

import cudeform


def get_compiler_version() -> str:
    return f"cudeform {cudeform.__version__}"


def get_compiling_cuda_version() -> str:
    return torch.version.cuda or "not available"


def get_cuda_version() -> str:
    return f"CUDA {torch.version.cuda}" if has_cuda() else "not available"


def has_cuda() -> bool:
    return torch.version.cuda is not None
