"""What all modules here are."""

from __future__ import annotations

from torch import nn

from cudeform.torch.scripting import refuse_script

__all__ = ["Module"]


class Module(nn.Module):
    """A module that says by its name that ``torch.jit.script`` does not take it."""

    def __prepare_scriptable__(self) -> nn.Module:
        refuse_script(type(self).__name__)
