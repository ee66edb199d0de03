"""What all modules here are, and how their layers begin."""

from __future__ import annotations

import inspect

from torch import nn

from cudeform.torch.scripting import refuse_script


class Module(nn.Module):
    """A module that says by its name that ``torch.jit.script`` does not take it."""

    def __prepare_scriptable__(self) -> nn.Module:
        refuse_script(type(self).__name__)

    def extra_repr(self) -> str:
        """The arguments that are kept; of parameters, whether they are there."""
        own = vars(self) | {name: p is not None for name, p in self._parameters.items()}
        names = inspect.signature(type(self)).parameters
        return ", ".join(f"{name}={own[name]!r}" for name in names if name in own)


def begin_with_zeros(*layers: nn.Module) -> None:
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


def begin_as_projections(*layers: nn.Linear | None) -> None:
    """As attentions begin theirs."""
    for layer in layers:
        if layer is not None:
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
