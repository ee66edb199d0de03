"""The functions of other libraries that ours can stand for, as far as they are loaded."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch

import cudeform


class _Original(NamedTuple):
    """Something of another library, and what can stand for it."""

    name: str  # where it is from
    value: Any  # a function, or a class of which a function is called
    ours: Any
    owner: type | None = None  # a class whose `forward` it is


# torchvision's have the same names and arguments here and there.
_TORCHVISION = ("deform_conv2d", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool")


def _flat(
    value: Any, value_spatial_shapes: Any, sampling_locations: Any, attention_weights: Any
) -> Any:
    """As Mask2Former and OneFormer call it, and mmcv without a kernel."""
    return cudeform.ms_deform_attn(
        value, value_spatial_shapes, sampling_locations, attention_weights
    )


def _ragged(
    value: Any,
    value_spatial_shapes: Any,
    sampling_locations: Any,
    attention_weights: Any,
    num_points_list: Any,
    method: str = "default",
) -> Any:
    """As RT-DETRv2, D-FINE and DEIMv2 call it."""
    return cudeform.ms_deform_attn(
        value,
        value_spatial_shapes,
        sampling_locations,
        attention_weights,
        points_per_level=tuple(num_points_list),
        method="nearest" if method == "discrete" else "bilinear",
    )


def _forward(
    self: Any,
    value: Any,
    value_spatial_shapes: Any,
    value_spatial_shapes_list: Any,
    level_start_index: Any,
    sampling_locations: Any,
    attention_weights: Any,
    im2col_step: Any,
) -> Any:
    """As the other models of transformers do, by a module without parameters."""
    return _flat(value, value_spatial_shapes_list, sampling_locations, attention_weights)


def _apply(
    value: Any,
    value_spatial_shapes: Any,
    value_level_start_index: Any,
    sampling_locations: Any,
    attention_weights: Any,
    im2col_step: Any = 64,
) -> Any:
    """As mmcv does, with a kernel."""
    return _flat(value, value_spatial_shapes, sampling_locations, attention_weights)


def loaded() -> Iterator[_Original]:
    """All that are loaded; where one is replaced already, it is its own replacement."""
    for module in list(sys.modules.values()):
        name = getattr(module, "__name__", None)
        if not isinstance(module, ModuleType) or not isinstance(name, str):
            continue
        if name == "torchvision.ops":
            for operator in _TORCHVISION:
                original = getattr(module, operator)
                ours = _replacement(original, getattr(cudeform, operator))
                yield _Original(f"{name}.{operator}", original, ours)
        elif name.startswith("transformers.models."):
            yield from _of_transformers(name, vars(module))
        elif name == "mmcv.ops.multi_scale_deform_attn":
            yield from _of_mmcv(name, vars(module))


def _of_transformers(module: str, names: dict[str, Any]) -> Iterator[_Original]:
    for name, ours in (
        ("multi_scale_deformable_attention", _flat),
        ("multi_scale_deformable_attention_v2", _ragged),
    ):
        if getattr(names.get(name), "__module__", None) == module:
            yield _original(f"{module}.{name}", names[name], ours)
    owner = names.get("MultiScaleDeformableAttention")
    if isinstance(owner, type) and owner.__module__ == module:
        yield _original(f"{module}.{owner.__name__}.forward", owner.forward, _forward, owner)


def _of_mmcv(module: str, names: dict[str, Any]) -> Iterator[_Original]:
    name = "multi_scale_deformable_attn_pytorch"
    if name in names:
        yield _original(f"{module}.{name}", names[name], _flat)
    name = "MultiScaleDeformableAttnFunction"  # by a kernel; of the class `apply` alone is used
    if name in names:
        apply = names[name].apply
        ours = _replacement(apply, _apply)
        ours = names[name] if ours is apply else SimpleNamespace(apply=ours)
        yield _Original(f"{module}.{name}", names[name], ours)


def _original(
    name: str, function: Any, ours: Callable[..., Any], owner: type | None = None
) -> _Original:
    """With the check that what will be called has the arguments that we know."""
    given, known = (list(inspect.signature(f).parameters) for f in (function, ours))
    if given != known:
        raise RuntimeError(
            f"patch: expected `{name}` to have the arguments {', '.join(known)}, "
            f"got {', '.join(given)} (of a version that this one of cudeform does not know)"
        )
    return _Original(name, function, _replacement(function, ours), owner)


def _replacement(original: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """A function of its own, by which `undo` knows what it may put back."""
    if hasattr(original, "__prepare_scriptable__"):  # one that was made here
        return original

    @functools.wraps(original)
    def function(*given: Any, **options: Any) -> Any:
        if torch.onnx.is_in_onnx_export():  # which knows what the original is made of
            return original(*given, **options)
        return ours(*given, **options)

    # torch.jit.script compiles a function's text, and asks by this name for another function.
    function.__prepare_scriptable__ = lambda: original  # type: ignore[attr-defined]
    return function
