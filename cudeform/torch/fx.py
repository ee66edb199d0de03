"""Calls that ``torch.fx`` traces: a node of the graph each, which calls the function again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import Proxy

import cudeform


def call(name: str, function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """Note down a call of a public function of cudeform that has a proxy among its arguments."""
    proxy = next(value for value in given.values() if isinstance(value, Proxy))
    return proxy.tracer.create_proxy("call_function", getattr(cudeform, name), (), given)
