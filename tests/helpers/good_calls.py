"""A call of every public function that is right in every way, and what kind each argument is of."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from backends import is_set

import cudeform
from cudeform import layers
from cudeform.registry import OPERATORS

__all__ = ["CALLS", "Call", "converter_calls", "kind_of", "operator_calls", "torch_calls"]


@dataclass(frozen=True)
class Call:
    """A function with arguments by name that it takes."""

    op: str  # what its messages begin with
    function: Callable[..., Any]
    given: dict[str, Any]
    kinds: dict[str, str]

    def __call__(self, **other: Any) -> Any:
        return self.function(**{**self.given, **other})


# Annotation of an argument -> its kind. None is right too where the annotation ends with "| None".
_KINDS = {
    "bool": "flag",
    "int": "integer",
    "float": "number",
    "str": "choice",
    **dict.fromkeys(("Any", "Array", "Boxes[Array]"), "array"),
    **dict.fromkeys(("Border", "Layout", "Precision", "_Convention", "_Mode"), "choice"),
    "Literal['bilinear', 'nearest']": "choice",
    "Sequence[int]": "integers",
    **dict.fromkeys(("Pair", "int | tuple[int, int]"), "pair"),
    "tuple[int, int]": "two",
    "Padding": "padding",
    "int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]": "padding",
    "Iterable[str]": "needs",
    "Iterable[tuple[int, int]]": "pixels",
}


def kind_of(annotation):
    """(kind, whether None is right too)."""
    text = annotation.removesuffix(" | None")
    return _KINDS[text], text != annotation


def _kinds(function, given, **known):
    """The kinds of the arguments of a function, by its annotations."""
    parameters = inspect.signature(function).parameters
    found = {}
    for name in given:
        kind, optional = known.get(name) or kind_of(parameters[name].annotation)
        if kind == "array" and name not in known:
            optional = parameters[name].default is None
        found[name] = kind + "?" * optional
    return found


def _call(function, given, construct=None, op=None, **known):
    """`construct` is what to do with what a class makes of the arguments."""
    kinds = _kinds(function, given, **known)
    if construct is None:
        return Call(op or function.__name__, function, given, kinds)
    return Call(op or function.__name__, lambda **a: construct(function(**a)), given, kinds)


def _fullest(row):
    """The case of an operator with the most arguments, of float32, with every option."""
    cases = [c for c in row.cases(np.random.default_rng(1)) if all(map(np.size, c.arrays.values()))]
    case = max(cases, key=lambda c: (len(c.arrays), -sum(map(np.size, c.arrays.values()))))
    return case.astype(np.float32).arrays, {**row.defaults, **case.options}


def operator_calls(convert=lambda array: array):
    """Forward and backward of every operator, on arrays that `convert` makes."""
    for row in OPERATORS:
        arrays, options = _fullest(row)
        output = row.forward(**arrays, **options)
        given = {**{k: convert(v) for k, v in arrays.items()}, **options}
        chooses = row.argmax and options["mode"] == "max"
        asked = {"return_argmax": True} if chooses else {}
        known = {a.name: ("array", a.optional) for a in row.arguments}
        known |= dict.fromkeys(row.static, ("sizes", False))
        yield _call(row.forward, {**given, **asked}, **known)
        taken = inspect.signature(row.backward).parameters
        given = {k: v for k, v in given.items() if k in taken}
        given["grad_output"] = convert(np.ones_like(output))
        given["needs"] = [row.images]
        if chooses:
            found = row.forward(**arrays, **options, return_argmax=True)
            given["argmax"] = convert(found[1])
        yield _call(row.backward, given, **known)


def converter_calls(convert=lambda array: array):
    def ones(*shape):
        return convert(np.ones(shape, np.float32))

    taps = dict(source="dcnv3", target="torchvision", kernel_size=3, remove_center=False)
    offset = dict(dilation=1, offset_scale=2.0)
    yield _call(
        cudeform.convert_offset, dict(offset=ones(1, 2, 3, 18), **taps, **offset, layout="NCHW")
    )
    yield _call(cudeform.convert_mask, dict(mask=ones(1, 2, 3, 9), **taps, layout="NCHW"))
    yield _call(cudeform.unpack_dcnv4, dict(offset_mask=ones(2, 32), groups=1, points=9))
    yield _call(cudeform.pack_dcnv4, dict(offset=ones(2, 18), mask=ones(2, 9), groups=1))
    sizes = [(2, 4), (3, 5)]
    known = {"spatial_shapes": ("sizes", False)}
    points = ones(1, 2, 3, 2)
    yield _call(cudeform.points_from_msda, dict(locations=points, spatial_shapes=sizes), **known)
    yield _call(cudeform.points_to_msda, dict(points=points, spatial_shapes=sizes), **known)
    factors = dict(spatial_scale=0.5, gamma=0.1, trans_std=0.2, classes=1)
    boxes = convert(np.array([[0, 1, 1, 8, 9], [0, 2, 0, 7, 5]], np.float32))
    units = dict(source="mmcv", target="mxnet", **factors)
    yield _call(cudeform.convert_roi_offset, dict(offset=ones(2, 2, 3, 3), boxes=boxes, **units))


def layer_calls():
    x = np.ones((1, 4, 6, 5), np.float32)
    boxes = np.array([[0, 1, 1, 5, 4]], np.float32)

    def run(*given):
        def made(layer):
            params = layer.init(np.random.default_rng(0))
            return layer.forward(params, *given)[0], list(layer.rate_factors.values())

        return made

    size = dict(in_channels=4, out_channels=2, kernel_size=3)
    conv = dict(stride=1, padding=1, dilation=1, groups=1, bias=True)
    more = dict(offset_groups=1, modulated=True, branch_rate=0.5)
    padding = {"padding": ("padding", False)}
    yield _call(layers.Conv2d, {**size, **conv}, run(x), **padding)
    yield _call(layers.DeformConv2d, {**size, **conv, **more}, run(x), **padding)
    features = np.ones((2, 3), np.float32)
    yield _call(layers.Linear, dict(in_features=3, out_features=2), run(features))
    options = dict(spatial_scale=0.5, gamma=0.2, branch_rate=0.5)
    pool = dict(channels=4, output_size=2, sampling_ratio=2, modulated=True, hidden=3)
    yield _call(layers.DeformRoiPool, {**pool, **options}, run(x, boxes))
    pool = dict(in_channels=4, classes=2, output_size=2, sample_per_part=2)
    yield _call(layers.DeformPSRoiPool, {**pool, **options}, run(x, boxes))
    query, middles = np.ones((1, 3, 4), np.float32), np.full((1, 3, 1, 2), 0.5, np.float32)
    pixels = np.ones((1, 30, 4), np.float32)
    heads = dict(channels=4, levels=1, heads=2, points=2, branch_rate=0.5)
    yield _call(layers.MSDeformAttn, heads, run(query, middles, pixels, ((6, 5),)))


def plot_calls():
    from matplotlib.figure import Figure

    from cudeform.plot import sampling_points

    def draw(**given):
        axes = sampling_points(Figure().add_subplot(), **given)
        return [np.asarray(c.get_offsets()) for c in axes.collections]

    given = dict(
        offset=np.ones((2, 36, 4, 5), np.float32),
        size=(6, 7),
        kernel=(3, 3),
        stride=1,
        padding=1,
        dilation=1,
        mask=np.ones((2, 18, 4, 5), np.float32),
        layout="NCHW",
        image=0,
        group=0,
        pixels=[(0, 1)],
        marker_size=9.0,
        origins=True,
    )
    kinds = _kinds(sampling_points, given, size=("pair", False), kernel=("pair", False))
    yield Call("sampling_points", draw, given, kinds)


def dask_calls():
    """None where there is no dask, but for CI, which has it."""
    if find_spec("dask") is None and not is_set("CI"):
        return
    from cudeform import dask

    offset = np.ones((1, 18, 4, 5), np.float32)
    yield _call(dask.halo, dict(offset=offset, kernel_size=3, dilation=1))
    given = dict(
        input=np.ones((1, 2, 4, 5), np.float32),
        offset=offset,
        weight=np.ones((2, 2, 3, 3), np.float32),
        bias=np.ones(2, np.float32),
        stride=1,
        padding=1,
        dilation=1,
        mask=np.ones((1, 9, 4, 5), np.float32),
        halo=(4, 4),
        border="zeros",
        precision="ieee",
    )
    kinds = _kinds(dask.deform_conv2d, given, halo=("pair", True))
    compute = lambda **given: np.asarray(dask.deform_conv2d(**given))  # noqa: E731
    yield Call("deform_conv2d", compute, given, kinds)


CALLS = [*operator_calls(), *converter_calls(), *layer_calls(), *plot_calls(), *dask_calls()]


def torch_calls():
    """The modules; operators and converters are other calls with tensors."""
    import torch

    from cudeform.torch import nn, onnx

    x = torch.ones(1, 4, 6, 5)
    boxes = torch.tensor([[0.0, 1, 1, 5, 4]])
    offset, mask = torch.zeros(1, 18, 6, 5), torch.ones(1, 9, 6, 5)

    def run(*given):
        def made(module):
            return str(module), {k: tuple(v.shape) for k, v in module.state_dict().items()}

        return made

    pair = ("pair", False)
    size = dict(in_channels=4, out_channels=2, kernel_size=3, stride=1, padding=1, dilation=1)
    kinds = dict.fromkeys(("kernel_size", "stride", "padding", "dilation"), pair)
    more = dict(groups=1, deform_groups=1, bias=True)
    yield _call(nn.DeformConv2d, {**size, "groups": 1, "bias": True}, run(x, offset, mask), **kinds)
    yield _call(nn.DeformConv2dPack, {**size, **more}, run(x), **kinds)
    packed = _kinds(nn.DeformConv2dPack, {**size, **more}, **kinds)
    yield Call(
        "ModulatedDeformConv2dPack",
        lambda **a: run(x)(nn.ModulatedDeformConv2dPack(**a)),
        {**size, **more},
        packed,
    )
    yield _call(nn.DCN, {**size, "deformable_groups": 1}, run(x), **kinds)
    pool = dict(output_size=2, output_channels=4, deform_fc_channels=3)
    options = dict(spatial_scale=0.5, sampling_ratio=2, gamma=0.2)
    pooled = dict(output_size=pair)
    yield _call(nn.DeformRoIPoolPack, {**pool, **options}, run(x, boxes), **pooled)
    kinds = _kinds(nn.DeformRoIPoolPack, {**pool, **options}, **pooled)
    yield Call(
        "ModulatedDeformRoIPoolPack",
        lambda **a: run(x, boxes)(nn.ModulatedDeformRoIPoolPack(**a)),
        {**pool, **options},
        kinds,
    )
    given = dict(spatial_scale=0.5, pooled_size=2, output_dim=1, no_trans=False, group_size=2)
    given |= dict(part_size=2, sample_per_part=2, trans_std=0.1, deform_fc_dim=3)
    yield _call(nn.DCNPooling, given, run(x, boxes), group_size=pair, part_size=("pair", True))
    yield _call(onnx.translations, dict(opset=19, decompose=True), len)
