"""Logits: an operator that takes their softmax, in terms of itself without one."""

from __future__ import annotations

from typing import Any

from cudeform.derivatives.calls import Call, Namespace
from cudeform.registry import Operator


def of_shares(row: Operator, call: Call, tangents: dict[str, Any]) -> tuple[Call, dict[str, Any]]:
    """The call and the tangents with factors in place of logits."""
    name = next(argument.name for argument in row.arguments if argument.role == "shares")
    xp, logits = call.xp, call.primals[name]
    shape, axes = tuple(logits.shape), call.plan.shares
    shares = _softmax(xp, xp.reshape(logits, axes))
    if name in tangents:
        moved = xp.reshape(tangents[name], axes)
        moved = shares * (moved - (shares * moved).sum(-1)[..., None])
        tangents = {**tangents, name: xp.reshape(moved, shape)}
    primals = {**call.primals, name: xp.reshape(shares, shape)}
    return call._replace(primals=primals, options={**call.options, "softmax": False}), tangents


def _softmax(xp: Namespace, logits: Any) -> Any:
    powers = xp.exp(logits - xp.still(xp.amax(logits, -1))[..., None])
    return powers / powers.sum(-1)[..., None]
