"""Calls whose tensors are memory of one device: what others like them are known by."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.dlpack import to_dlpack

from cudeform.cuda.lanes import VECTOR_BYTES
from cudeform.ops.call import Call, checked
from cudeform.plans import ARGUMENTS, TYPES, known_options
from cudeform.plans.arguments import Arguments
from cudeform.torch.autocast import wide
from cudeform.torch.state import PLAIN, place_of

_NO_OPERATOR = Arguments(())
_OF_BACKWARDS = "grad_output", "argmax"  # arrays besides those of the operator
_MANY = list, tuple


class Asked(NamedTuple):
    """A call of a function of arrays."""

    function: Callable[..., Any]
    place: int  # of its tensors, see `place_of`
    differentiated: bool  # whether one of them has a gradient
    key: Any  # what calls like it are known by, whatever is in its tensors; None if there is none
    arguments: dict[str, Any]  # of an operator on a GPU tensors without gaps, on the host arrays

    def checked(
        self, arrays: Mapping[str, Any], result: Any
    ) -> tuple[Call, dict[str, Any], type | None]:
        """What the operator found, and the arrays that it computed on; of what type a result of
        several arrays is, and None for one.
        """
        parameters = inspect.signature(self.function).parameters
        arguments = {name: arrays.get(name, p.default) for name, p in parameters.items()}
        several = type(result) if isinstance(result, tuple) else None
        fields = getattr(several, "_fields", ())
        return *checked(self.function.__name__, arguments, fields), several


def asked(
    function: Callable[..., Any], given: Mapping[str, Any], required: Container[str] = ()
) -> Asked | None:
    """A call, if all its arrays are tensors of one place, and the required ones are there.

    Pairs of sizes may be on the host, and boxes there one tensor for each image.
    """
    roles = ARGUMENTS.get(function.__name__, _NO_OPERATOR)
    where, differentiated, known = None, False, roles is not _NO_OPERATOR
    key: list[Any] = [function, *given]
    arguments = dict(given)
    for name, value in given.items():
        of = type(value)
        if of in PLAIN:
            place = place_of(value)
            if where is None:
                where = place
            if place is None or place != where and (place >= 0 or name not in roles.static):
                return None
            differentiated = differentiated or value.requires_grad
            if place < 0:
                try:
                    arguments[name] = array = host_array(value)
                except (BufferError, RuntimeError, TypeError):  # of a dtype that NumPy lacks
                    return None
                key += array.shape, array.dtype
                known = known and name not in roles.static  # of which the values matter
            elif known:
                if name == roles.boxes and value.dtype == given[roles.images].dtype:
                    value = wide(value)  # as the operator would; others are refused
                if not value.is_contiguous():
                    value = value.contiguous()
                arguments[name] = value
                key += value.shape, value.dtype, value.data_ptr() % VECTOR_BYTES
        elif of in TYPES:
            if value is None and name in required:
                return None
            key += of, value
        elif name == roles.boxes and of in _MANY and where == -1:
            rows = _of_images(value)
            if rows is None:
                return None
            arguments[name] = rows
            key += of, *[(array.shape, array.dtype) for array in rows]
        elif name in (*roles.names, *_OF_BACKWARDS) and not (name in roles.static and of in _MANY):
            return None
        else:
            options = known_options((tuple(value) if of is list else value,))
            known = known and options is not None
            key += of, options
    if where is None:
        return None
    known_as = tuple(key) if known else None
    return Asked(function, where, differentiated, known_as, arguments)


def _of_images(boxes: Sequence[Any]) -> tuple[np.ndarray, ...] | None:
    """Boxes of images as arrays; None if they are not all on the host, or need a gradient."""
    for box in boxes:
        if type(box) not in PLAIN or place_of(box) != -1 or box.requires_grad:
            return None
    try:
        return tuple([host_array(box) for box in boxes])
    except (BufferError, RuntimeError, TypeError):
        return None


class _Host:
    """A tensor for `numpy.from_dlpack`, at a third of the time of the tensor's own method.

    Not ``tensor.numpy()``, which would forbid that the storage is ever resized: FSDP does that.
    """

    __slots__ = ("tensor",)

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    # What it is asked by name; a dictionary of that would take as long as all else here.
    def __dlpack__(self, dl_device: Any = None, copy: Any = None, max_version: Any = None) -> Any:
        return to_dlpack(self.tensor)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


@functools.lru_cache(maxsize=64)
def numpy_dtype(dtype: torch.dtype) -> np.dtype:
    """The NumPy dtype that stands for a torch one."""
    name = str(dtype).removeprefix("torch.")
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def host_array(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a tensor on the host, see `place_of`, as a read-only array."""
    if tensor.dtype is torch.bfloat16:  # which NumPy's DLPack does not know
        words = tensor.detach().view(torch.uint16)
        return np.from_dlpack(_Host(words)).view(numpy_dtype(torch.bfloat16))
    return np.from_dlpack(_Host(tensor))
