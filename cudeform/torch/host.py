"""Calls on the host: what was checked of one is not checked again of another like it."""

from __future__ import annotations

from typing import Any, NamedTuple

from cudeform.ops.call import Call, implementation
from cudeform.torch.asked import Asked

_MOST = 1024
_known: dict[Any, _Known] = {}


class _Known(NamedTuple):
    """A call that has passed the checks, and of what type a result of several arrays is."""

    call: Call
    module: Any  # that computes it
    several: type | None


def answer(asked: Asked) -> Any:
    """What a function makes of arrays: one, or several."""
    function, _, _, key, arguments = asked
    known = None if key is None else _known.get(key)
    if known is None:
        result = function(**arguments)
        if key is not None:
            call, _, several = asked.checked(arguments, result)
            if len(_known) >= _MOST:
                _known.clear()
            _known[key] = _Known(call, implementation(call.kind, call.plan.family), several)
        return result
    call, module, several = known
    given = {name: arguments.get(name) for name in call.arrays}
    call.lay_out(function.__name__, given)
    if several is None:
        return module.forward(call.plan, **given)[0]
    if several is tuple:
        return module.forward(call.plan, **given)
    return several(**call.gradients(module, given))
