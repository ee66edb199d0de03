"""DTensor: which operators may compute on a part of the batch each, and what is a sum then."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

from cudeform.torch.signatures import BRIDGES, Bridge

__all__ = ["register"]


def register() -> None:
    """Tell DTensor, once it is imported."""
    if "torch.distributed.tensor" in sys.modules:
        _register_all()


@functools.cache
def _register_all() -> None:
    from torch.distributed.tensor.experimental import register_sharding

    for bridge in BRIDGES.values():
        forward = getattr(torch.ops.cudeform, bridge.name).default
        backward = getattr(torch.ops.cudeform, bridge.name + "_backward").default
        register_sharding(forward)(_forward_rule(bridge))
        register_sharding(backward)(_backward_rule(bridge))


def _forward_rule(bridge: Bridge) -> Callable[..., Any]:
    from torch.distributed.tensor import Replicate, Shard

    def rule(*values: Any) -> Any:
        count = len(bridge.names)
        given = [value is not None for value in values[:count]]
        options = [None] * (len(values) - count)
        whole = [Replicate() if g else None for g in given]
        rules = [([Replicate()], [*whole, *options])]
        if bridge.batched:
            parts = [
                None if not g else Shard(0) if name in bridge.batched else Replicate()
                for name, g in zip(bridge.names, given, strict=True)
            ]
            rules.append(([Shard(0)], [*parts, *options]))
        return rules

    return rule


def _backward_rule(bridge: Bridge) -> Callable[..., Any]:
    from torch.distributed.tensor import Partial, Replicate, Shard

    def rule(*values: Any) -> Any:
        count = len(bridge.kept)
        given = [value is not None for value in values[1 : 1 + count]]
        needs = values[1 + count + len(bridge.options)]
        options = [None] * (len(values) - 1 - count)
        whole = [Replicate() if g else None for g in given]
        many = len(bridge.differentiable)
        rules = [([Replicate()] * many, [Replicate(), *whole, *options])]
        if bridge.batched:
            parts = [
                None if not g else Shard(0) if name in bridge.batched else Replicate()
                for name, g in zip(bridge.kept, given, strict=True)
            ]
            results = [
                Replicate() if not need else Shard(0) if name in bridge.batched else Partial()
                for name, need in zip(bridge.differentiable, needs, strict=True)
            ]
            rules.append((results, [Shard(0), *parts, *options]))
        return rules

    return rule
