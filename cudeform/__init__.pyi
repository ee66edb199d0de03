# The public signatures for type checkers: arrays of one framework come in, and the same come out.
#
# tests/house/test_public_api.py compares names, order and defaults with those of the functions.

from collections.abc import Iterable, Sequence
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar, overload

class _HasShapeAndDtype(Protocol):
    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...

# All arrays of a call are of one framework: what those of two have in common is of no use.
_Array = TypeVar("_Array", bound=_HasShapeAndDtype)
_Boxes: TypeAlias = _Array | Sequence[_Array]
_Layout: TypeAlias = Literal["NCHW", "NHWC"]
_Border: TypeAlias = Literal["zeros", "clamp"]
_Precision: TypeAlias = Literal["ieee", "tf32"]

# A gradient is None where it was not needed, which the caller knows: no check is asked for.

class _Conv2dGradients(NamedTuple, Generic[_Array]):
    input: _Array | Any
    weight: _Array | Any
    bias: _Array | Any

class _DeformConv2dGradients(NamedTuple, Generic[_Array]):
    input: _Array | Any
    offset: _Array | Any
    weight: _Array | Any
    bias: _Array | Any
    mask: _Array | Any

class _BilinearSampleGradients(NamedTuple, Generic[_Array]):
    input: _Array | Any
    points: _Array | Any

class _DCNv3Gradients(NamedTuple, Generic[_Array]):
    input: _Array | Any
    offset: _Array | Any
    mask: _Array | Any

class _DCNv4Gradients(NamedTuple, Generic[_Array]):
    input: _Array | Any
    offset_mask: _Array | Any

class _MSDeformAttnGradients(NamedTuple, Generic[_Array]):
    value: _Array | Any
    sampling_locations: _Array | Any
    attention_weights: _Array | Any

class _RoiAlignGradients(NamedTuple, Generic[_Array]):
    input: _Array | Any

class _RoiPoolGradients(NamedTuple, Generic[_Array]):
    input: _Array | Any

class _DeformRoiPoolGradients(NamedTuple, Generic[_Array]):
    input: _Array | Any
    offset: _Array | Any
    mask: _Array | Any

__version__: str

def bilinear_sample(
    input: _Array,
    points: _Array,
    *,
    border: _Border = "zeros",
    layout: _Layout = "NCHW",
) -> _Array: ...
def bilinear_sample_backward(
    grad_output: _Array,
    input: _Array,
    points: _Array,
    *,
    needs: Iterable[str] | None = None,
    border: _Border = "zeros",
    layout: _Layout = "NCHW",
) -> _BilinearSampleGradients[_Array]: ...
def conv2d(
    input: _Array,
    weight: _Array,
    bias: _Array | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] = 0,
    dilation: int | tuple[int, int] = 1,
    *,
    layout: _Layout = "NCHW",
    precision: _Precision = "ieee",
) -> _Array: ...
def conv2d_backward(
    grad_output: _Array,
    input: _Array,
    weight: _Array,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] = 0,
    dilation: int | tuple[int, int] = 1,
    *,
    needs: Iterable[str] | None = None,
    layout: _Layout = "NCHW",
    precision: _Precision = "ieee",
) -> _Conv2dGradients[_Array]: ...
def convert_mask(
    mask: _Array,
    source: str,
    target: str,
    *,
    kernel_size: int | tuple[int, int],
    remove_center: bool = False,
    layout: _Layout = "NCHW",
) -> _Array: ...
def convert_offset(
    offset: _Array,
    source: str,
    target: str,
    *,
    kernel_size: int | tuple[int, int],
    dilation: int | tuple[int, int] = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    layout: _Layout = "NCHW",
) -> _Array: ...
def convert_roi_offset(
    offset: _Array,
    boxes: _Boxes[_Array],
    source: str,
    target: str,
    *,
    spatial_scale: float = 1.0,
    gamma: float = 0.1,
    trans_std: float = 0.1,
    classes: int = 1,
) -> _Array: ...
def dcnv3(
    input: _Array,
    offset: _Array,
    mask: _Array,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    softmax: bool = False,
) -> _Array: ...
def dcnv3_backward(
    grad_output: _Array,
    input: _Array,
    offset: _Array,
    mask: _Array,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    needs: Iterable[str] | None = None,
    offset_scale: float = 1.0,
    remove_center: bool = False,
    softmax: bool = False,
) -> _DCNv3Gradients[_Array]: ...
def dcnv4(
    input: _Array,
    offset_mask: _Array,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> _Array: ...
def dcnv4_backward(
    grad_output: _Array,
    input: _Array,
    offset_mask: _Array,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    needs: Iterable[str] | None = None,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> _DCNv4Gradients[_Array]: ...
def deform_conv2d(
    input: _Array,
    offset: _Array,
    weight: _Array,
    bias: _Array | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] = 0,
    dilation: int | tuple[int, int] = 1,
    mask: _Array | None = None,
    *,
    border: _Border = "zeros",
    layout: _Layout = "NCHW",
    precision: _Precision = "ieee",
) -> _Array: ...
def deform_conv2d_backward(
    grad_output: _Array,
    input: _Array,
    offset: _Array,
    weight: _Array,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] = 0,
    dilation: int | tuple[int, int] = 1,
    mask: _Array | None = None,
    *,
    needs: Iterable[str] | None = None,
    border: _Border = "zeros",
    layout: _Layout = "NCHW",
    precision: _Precision = "ieee",
) -> _DeformConv2dGradients[_Array]: ...
def deform_ps_roi_pool(
    input: _Array,
    boxes: _Boxes[_Array],
    offset: _Array | None,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    output_dim: int,
    group_size: int | tuple[int, int],
    part_size: int | tuple[int, int] | None = None,
    sample_per_part: int = 4,
    trans_std: float = 0.1,
    mask: _Array | None = None,
) -> _Array: ...
def deform_ps_roi_pool_backward(
    grad_output: _Array,
    input: _Array,
    boxes: _Boxes[_Array],
    offset: _Array | None,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    output_dim: int,
    group_size: int | tuple[int, int],
    part_size: int | tuple[int, int] | None = None,
    sample_per_part: int = 4,
    trans_std: float = 0.1,
    mask: _Array | None = None,
    *,
    needs: Iterable[str] | None = None,
) -> _DeformRoiPoolGradients[_Array]: ...
def deform_roi_pool(
    input: _Array,
    boxes: _Boxes[_Array],
    offset: _Array | None,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
    mask: _Array | None = None,
) -> _Array: ...
def deform_roi_pool_backward(
    grad_output: _Array,
    input: _Array,
    boxes: _Boxes[_Array],
    offset: _Array | None,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
    mask: _Array | None = None,
    *,
    needs: Iterable[str] | None = None,
) -> _DeformRoiPoolGradients[_Array]: ...
def ms_deform_attn(
    value: _Array,
    spatial_shapes: _Array | Sequence[tuple[int, int]],
    sampling_locations: _Array,
    attention_weights: _Array,
    *,
    points_per_level: Sequence[int] | None = None,
    method: Literal["bilinear", "nearest"] = "bilinear",
    softmax: bool = False,
) -> _Array: ...
def ms_deform_attn_backward(
    grad_output: _Array,
    value: _Array,
    spatial_shapes: _Array | Sequence[tuple[int, int]],
    sampling_locations: _Array,
    attention_weights: _Array,
    *,
    needs: Iterable[str] | None = None,
    points_per_level: Sequence[int] | None = None,
    method: Literal["bilinear", "nearest"] = "bilinear",
    softmax: bool = False,
) -> _MSDeformAttnGradients[_Array]: ...
def pack_dcnv4(
    offset: _Array,
    mask: _Array,
    groups: int,
) -> _Array: ...
def points_from_msda(
    locations: _Array,
    spatial_shapes: Any,
) -> _Array: ...
def points_to_msda(
    points: _Array,
    spatial_shapes: Any,
) -> _Array: ...
def ps_roi_align(
    input: _Array,
    boxes: _Boxes[_Array],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
) -> _Array: ...
def ps_roi_align_backward(
    grad_output: _Array,
    input: _Array,
    boxes: _Boxes[_Array],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    *,
    needs: Iterable[str] | None = None,
) -> _RoiAlignGradients[_Array]: ...
def ps_roi_pool(
    input: _Array,
    boxes: _Boxes[_Array],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    *,
    convention: Literal["torchvision", "rfcn", "msra"] = "torchvision",
) -> _Array: ...
def ps_roi_pool_backward(
    grad_output: _Array,
    input: _Array,
    boxes: _Boxes[_Array],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    *,
    convention: Literal["torchvision", "rfcn", "msra"] = "torchvision",
    needs: Iterable[str] | None = None,
) -> _RoiPoolGradients[_Array]: ...
@overload
def roi_align(
    input: _Array,
    boxes: _Boxes[_Array],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    mode: Literal["avg", "max"] = "avg",
    return_argmax: Literal[False] = False,
) -> _Array: ...
@overload
def roi_align(
    input: _Array,
    boxes: _Boxes[_Array],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    mode: Literal["avg", "max"] = "avg",
    return_argmax: Literal[True],
) -> tuple[_Array, _Array]: ...
@overload
def roi_align(
    input: _Array,
    boxes: _Boxes[_Array],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    mode: Literal["avg", "max"] = "avg",
    return_argmax: bool = False,
) -> _Array | tuple[_Array, _Array]: ...
def roi_align_backward(
    grad_output: _Array,
    input: _Array,
    boxes: _Boxes[_Array],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    *,
    mode: Literal["avg", "max"] = "avg",
    argmax: _Array | None = None,
    needs: Iterable[str] | None = None,
) -> _RoiAlignGradients[_Array]: ...
@overload
def roi_pool(
    input: _Array,
    boxes: _Boxes[_Array],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    *,
    mode: Literal["max", "avg"] = "max",
    return_argmax: Literal[False] = False,
) -> _Array: ...
@overload
def roi_pool(
    input: _Array,
    boxes: _Boxes[_Array],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    *,
    mode: Literal["max", "avg"] = "max",
    return_argmax: Literal[True],
) -> tuple[_Array, _Array]: ...
@overload
def roi_pool(
    input: _Array,
    boxes: _Boxes[_Array],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    *,
    mode: Literal["max", "avg"] = "max",
    return_argmax: bool = False,
) -> _Array | tuple[_Array, _Array]: ...
def roi_pool_backward(
    grad_output: _Array,
    input: _Array,
    boxes: _Boxes[_Array],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    *,
    mode: Literal["max", "avg"] = "max",
    argmax: _Array | None = None,
    needs: Iterable[str] | None = None,
) -> _RoiPoolGradients[_Array]: ...
def unpack_dcnv4(
    offset_mask: _Array,
    groups: int,
    points: int,
) -> tuple[_Array, _Array]: ...
