"""Operators of torchvision, transformers and mmcv computed by cudeform, while one wants it."""

from __future__ import annotations

import copy
import copyreg
import gc
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakSet

from torch import nn

from cudeform import checks
from cudeform.torch.originals import loaded
from cudeform.torch.rebinding import rebound


class Patch(AbstractContextManager["Patch"]):
    """What `patch` returns: `undo` ends it, and so does the end of a ``with`` block.

    Attributes
    ----------
    replaced : tuple of str
        The functions that were replaced, or the modules of the model whose functions were.
    """

    def __init__(self, replaced: Iterable[str], undo: Callable[[], None]) -> None:
        self.replaced = tuple(replaced)
        self._undo: Callable[[], None] | None = undo

    def undo(self) -> None:
        """Put the others' functions back, also where they were imported from since.

        A second time does nothing.
        """
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()

    def __repr__(self) -> str:
        return f"Patch(replaced={self.replaced})"

    def __exit__(self, *raised: object) -> None:
        self.undo()


def patch(model: nn.Module | None = None) -> Patch:
    """Let operators of other libraries run on cudeform: an existing model is tried in one line.

    Replaces `deform_conv2d`, `roi_align`, `roi_pool`, `ps_roi_align` and `ps_roi_pool` of
    ``torchvision.ops``, the multi-scale deformable attention of all models of transformers that are
    loaded, and that of mmcv; and with them the modules and the models that call them by name. What
    is scripted or compiled already stays as it is, and what is scripted or exported to ONNX
    meanwhile gets the functions that were there.

    Parameters
    ----------
    model : torch.nn.Module, optional
        Only what its modules call is replaced; without it what any model calls.

    Returns
    -------
    Patch
        Its `replaced` names what was replaced. Call its `undo`, or use it in a ``with`` statement.
        Of several, one in the other, the first replaces and ends it.

    Raises
    ------
    RuntimeError
        There is nothing to replace: none of these libraries has been imported, or the model calls
        none of their functions. Or they have arguments that are not known here.
    """
    if model is None:
        return _for_all()
    if not isinstance(model, nn.Module):
        got = checks.type_name(model)
        checks.fail("patch", "model", "to be a torch.nn.Module or None", got, error=TypeError)
    return _for_one(model)


def _for_all() -> Patch:
    originals = list(loaded())
    if not originals:
        raise RuntimeError(
            "patch: expected torchvision, mmcv or a model of transformers with deformable "
            "attention to be imported before"
        )
    fresh = [original for original in originals if original.ours is not original.value]
    owned = [original for original in fresh if original.owner is not None]
    _replace({id(original.value): original.ours for original in fresh})
    for original in owned:
        original.owner.forward = original.ours  # type: ignore[union-attr]

    def undo() -> None:
        _replace({id(original.ours): original.value for original in fresh})
        for original in owned:
            if vars(original.owner).get("forward") is original.ours:  # not another's since
                original.owner.forward = original.value  # type: ignore[union-attr]

    return Patch((original.name for original in fresh), undo)


def _replace(others: Mapping[int, Any]) -> None:
    """Put others, by the id of those there, wherever one is found by a name."""
    for names in _namespaces():
        for name, value in list(names.items()):
            other = others.get(id(value))
            if other is not None:
                names[name] = other


def _namespaces() -> Iterator[dict[str, Any]]:
    """Loaded modules of Python, and those of torch, which may keep a function that they call."""
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", None)
        if isinstance(names, dict):
            yield names
    for thing in gc.get_objects():
        if issubclass(type(thing), nn.Module):
            yield vars(thing)


_CLASSES: WeakSet[type] = WeakSet()  # that modules of patched models have


class _Patched(type):
    """The classes of patched modules. A copy keeps one, a pickle has the class from before."""


def _reduced(kind: Any) -> Any:
    """How one is pickled by another's name, and a class made of it since by its own."""
    # A copy of a class is the class itself.
    return (copy.copy, (kind.__base__,)) if kind in _CLASSES else kind.__qualname__


copyreg.pickle(_Patched, _reduced)  # type: ignore[arg-type]


def _for_one(model: nn.Module) -> Patch:
    """By giving modules a class of their own, which has other methods."""
    others = {id(original.value): original.ours for original in loaded()}
    found = {
        path: (module, type(module), _members(module, others))
        for path, module in model.named_modules()
    }
    found = {path: entry for path, entry in found.items() if entry[2] or entry[1] in _CLASSES}
    if not found:
        raise RuntimeError(
            "patch: expected `model` to use operators of torchvision, mmcv or transformers that "
            f"cudeform has, got {checks.type_name(model)}, none of whose modules does"
        )
    fresh = {path: entry for path, entry in found.items() if entry[2]}
    patched = []
    for module, kind, members in fresh.values():
        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, **members}
        make = _Patched if type(kind) is type else type(kind)
        module.__class__ = make(kind.__name__, (kind,), names)
        _CLASSES.add(module.__class__)
        patched.append((module, module.__class__, dict(vars(module.__class__)), kind))

    def undo() -> None:
        for module, ours, before, kind in patched:
            for name, value in vars(ours).items():
                if before.get(name) is not value:  # given to the class since
                    setattr(kind, name, value)
            if type(module) is ours:
                module.__class__ = kind
            else:
                _rebase(type(module), ours, kind)

    return Patch(fresh, undo)


def _rebase(given: type, ours: type, kind: type) -> None:
    """Put a class back in place of ours in one that a module was given since.

    As `torch.nn.utils.parametrize` and `fully_shard` do it, which derive one from what is there.
    """
    for derived in given.__mro__:
        if ours in derived.__bases__:
            bases = (kind if base is ours else base for base in derived.__bases__)
            derived.__bases__ = tuple(dict.fromkeys(bases))


def _members(module: nn.Module, others: Mapping[int, Any]) -> dict[str, Any]:
    """Methods of a module, and functions that it keeps, with others in place of what they call."""
    found: dict[str, Any] = {}
    for name, method in inspect.getmembers(type(module), inspect.isfunction):
        if getattr(nn.Module, name, None) is not method:
            other = others.get(id(method)) or rebound(method, others)
            if other is not method:
                found[name] = other
    for name, value in vars(module).items():
        other = others.get(id(value))
        if other is not None:  # a property comes before what a module keeps by the same name
            found[name] = property(lambda self, other=other: other)
    return found
