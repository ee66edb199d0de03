"""DTensor: which operators may compute on a part of the batch each, and what is a sum then."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

from cudeform.torch.signatures import BRIDGES, Bridge


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
        register_sharding(forward)(_rule(bridge, False))
        register_sharding(backward)(_rule(bridge, True))


def _rule(bridge: Bridge, backward: bool) -> Callable[..., Any]:
    from torch.distributed.tensor import Partial, Replicate, Shard

    names = ("grad_output", *bridge.kept) if backward else bridge.names
    batched = ("grad_output", *bridge.batched)

    def rule(*values: Any) -> Any:
        given = values[: len(names)]
        options = [None] * (len(values) - len(names))
        whole = [None if value is None else Replicate() for value in given]
        results: list[Any] = [Replicate()] * (len(bridge.differentiable) if backward else 1)
        rules = [(results, [*whole, *options])]
        if bridge.batched:
            parts = [
                Shard(0) if placement and name in batched else placement
                for name, placement in zip(names, whole, strict=True)
            ]
            results = [Shard(0)]
            if backward:
                needs = values[len(names) + len(bridge.kinds)]
                results = [
                    Replicate() if not need else Shard(0) if name in batched else Partial()
                    for name, need in zip(bridge.differentiable, needs, strict=True)
                ]
            rules.append((results, [*parts, *options]))
        return rules

    return rule
