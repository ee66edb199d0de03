"""Stand-ins of attention, DCNv3 and DCNv4, boxes and losses; what holds for all; mmcv itself."""

import importlib.util

import numpy as np
import pytest
import reference
from stand_ins import array, check, install_all, module, rubbish, tensors, wide

torch = pytest.importorskip("torch")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402


@pytest.fixture(autouse=True)
def installed():
    with install_all():
        yield


SHAPES = [(4, 6), (3, 2)]
STARTS = torch.tensor([0, 24])


def attention():
    return {
        "value": array(2, 30, 3, 5),
        "sampling_locations": array(2, 4, 3, 2, 3, 2, low=-0.2, high=1.2),
        "attention_weights": array(2, 4, 3, 2, 3),
    }


def of_attention(given, softmax=False):
    """The output, a gradient and what that makes of the arguments."""
    exact = wide(given) | dict(spatial_shapes=SHAPES, softmax=softmax)
    expected, grad = reference.ms_deform_attn(**exact), array(2, 4, 15)
    return expected, grad, reference.ms_deform_attn_backward(grad.astype(np.float64), **exact)


@pytest.mark.parametrize(
    "name", ["MultiScaleDeformableAttention", "groundingdino._C", "detrex._C", "mmcv._ext"]
)
def test_attention(name):
    found, given = module(name), attention()
    expected, grad, gradients = of_attention(given)
    value, locations, weights = tensors(given).values()
    grad = torch.from_numpy(grad)
    first = value, torch.tensor(SHAPES), STARTS, locations, weights
    output = found.ms_deform_attn_forward(*first, im2col_step=64)
    check(output, expected)
    if name == "mmcv._ext":
        grads = torch.ones_like(value), rubbish(locations), rubbish(weights)
        into = dict(zip(("value", "sampling_loc", "attn_weight"), grads, strict=True))
        into = {f"grad_{key}": grad for key, grad in into.items()}
        found.ms_deform_attn_backward(*first, grad, **into, im2col_step=64)
    else:
        grads = found.ms_deform_attn_backward(*first, grad, 64)
    check(grads[0], gradients["value"], int(name == "mmcv._ext"))
    check(grads[1], gradients["sampling_locations"])
    check(grads[2], gradients["attention_weights"])


def test_attention_without_starts_of_levels():
    found, given = module("MultiScaleDeformableAttention"), attention()
    expected, grad, gradients = of_attention(given)
    value, locations, weights = tensors(given).values()
    first = value, torch.tensor(SHAPES), locations, weights
    check(found.ms_deform_attn_forward(*first, 64), expected)
    grads = found.ms_deform_attn_backward(*first, torch.from_numpy(grad), 64)
    for result, name in zip(grads, given, strict=True):
        check(result, gradients[name])


def test_levels_that_lie_elsewhere_are_an_error():
    value, locations, weights = tensors(attention()).values()
    forward = module("MultiScaleDeformableAttention").ms_deform_attn_forward
    with pytest.raises(NotImplementedError, match=r"to be \[0, 24\], .*got \[6, 0\]"):
        forward(value, torch.tensor(SHAPES), torch.tensor([6, 0]), locations, weights, 64)


def test_flash_attention():
    found, given = module("DCNv4.ext"), attention()
    expected, grad, gradients = of_attention(given, softmax=True)
    value, locations, weights = tensors(given).values()
    together = torch.cat([locations.flatten(-3), weights.flatten(-2)], -1)
    first = value, torch.tensor(SHAPES), STARTS, together
    check(found.flash_deform_attn_forward(*first, 64, 3, 8, 512), expected)
    grads = found.flash_deform_attn_backward(*first, torch.from_numpy(grad), 64, 3, 1, 256)
    check(grads[0], gradients["value"])
    moved, logits = gradients["sampling_locations"], gradients["attention_weights"]
    flat = moved.reshape(2, 4, 3, -1), logits.reshape(2, 4, 3, -1)
    check(grads[1], np.concatenate(flat, -1))


KERNEL, STRIDE, PADDING, DILATION, SCALE = (3, 3), (2, 1), (1, 2), (1, 2), 1.5
GROUPS, CHANNELS = 2, 3
NUMBERS = (*KERNEL, *STRIDE, *PADDING, *DILATION, GROUPS, CHANNELS, SCALE)


def aggregated(input, offset, mask, remove_center):
    """DCNv3 from its equation, by torch's sampling.  # (N, H, W, C) -> (N, Ho, Wo, C)

    Taps go down the columns; the grid and the offsets are scaled about the kernel's centre.
    """
    batch, height, width, _ = input.shape
    out_h, out_w = offset.shape[1:3]
    taps = [(a, b) for b in range(KERNEL[1]) for a in range(KERNEL[0])]  # (y, x)
    if remove_center:
        del taps[len(taps) // 2]
    offset = offset.reshape(batch, out_h, out_w, GROUPS, len(taps), 2)
    mask = mask.reshape(batch, out_h, out_w, GROUPS, len(taps))
    cy, cx = (d * (k - 1) // 2 for d, k in zip(DILATION, KERNEL, strict=True))
    y0 = (torch.arange(out_h) * STRIDE[0] + cy - PADDING[0])[:, None, None]
    x0 = (torch.arange(out_w) * STRIDE[1] + cx - PADDING[1])[None, :, None]
    result = 0
    for tap, (a, b) in enumerate(taps):
        x = x0 + SCALE * (b * DILATION[1] - cx + offset[..., tap, 0])
        y = y0 + SCALE * (a * DILATION[0] - cy + offset[..., tap, 1])
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
        images = input.reshape(batch, height, width, GROUPS, CHANNELS).permute(0, 3, 4, 1, 2)
        seen = torch.nn.functional.grid_sample(
            images.flatten(0, 1),
            grid.permute(0, 3, 1, 2, 4).flatten(0, 1),
            align_corners=False,
        )
        seen = seen.reshape(batch, GROUPS, CHANNELS, out_h, out_w).permute(0, 3, 4, 1, 2)
        result = result + mask[..., tap, None] * seen
    return result.flatten(3)


def of_dcnv3(remove_center, softmax=False):
    points = GROUPS * (9 - remove_center)
    given = array(2, 7, 6, 6), array(2, 4, 6, 2 * points), array(2, 4, 6, points)
    exact = [torch.from_numpy(a).double().requires_grad_() for a in given]
    input, offset, mask = exact
    if softmax:
        mask = mask.unflatten(-1, (GROUPS, -1)).softmax(-1).flatten(-2)
    expected, grad = aggregated(input, offset, mask, remove_center), array(2, 4, 6, 6)
    gradients = torch.autograd.grad(expected, exact, torch.from_numpy(grad).double())
    return [torch.from_numpy(a) for a in (*given, grad)], expected.detach(), gradients


@pytest.mark.parametrize("more", [(), (0,), (1,)], ids=["1.0", "1.1", "1.1 without centre"])
@pytest.mark.parametrize("name", ["DCNv3", "detrex._C"])
def test_dcnv3(name, more):
    found = module(name)
    (*given, grad), expected, gradients = of_dcnv3(sum(more))
    check(found.dcnv3_forward(*given, *NUMBERS, 256, *more), expected)
    results = found.dcnv3_backward(*given, *NUMBERS, grad, 256, *more)
    for result, gradient in zip(results, gradients, strict=True):
        check(result, gradient)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("remove_center", [0, 1])
def test_dcnv4(remove_center, softmax):
    found, pack = module("DCNv4.ext"), packed_of
    (input, offset, mask, grad), expected, gradients = of_dcnv3(remove_center, softmax)
    packed = pack(offset, mask)
    last = (remove_center, 8, 512, softmax)
    check(found.dcnv4_forward(input, packed, *NUMBERS, 256, *last), expected)
    results = found.dcnv4_backward(input, packed, *NUMBERS, 256, grad, *last)
    check(results[0], gradients[0])
    check(results[1], pack(*gradients[1:]))
    if not softmax:
        package = module("DCNv4")
        moving = input.requires_grad_(), packed.requires_grad_()
        output = package.DCNv4Function.apply(*moving, *NUMBERS, 256, remove_center)
        for one, other in zip(torch.autograd.grad(output, moving, grad), results, strict=True):
            assert torch.equal(one, other)


def packed_of(offset, mask):
    by_group = [part.unflatten(-1, (GROUPS, -1)) for part in (offset, mask)]
    packed = torch.cat(by_group, -1).flatten(-2)
    return torch.nn.functional.pad(packed, (0, -packed.shape[-1] % 8))


def test_modules_of_dcnv4():
    """Keys of its checkpoints, and that both learn."""
    package = module("DCNv4")
    dcn = package.DCNv4(32, group=2, dw_kernel_size=3, center_feature_scale=True)
    assert {key.partition(".")[0] for key in dcn.state_dict()} == {
        "offset_mask_dw",
        "offset_mask",
        "value_proj",
        "output_proj",
        "center_feature_scale_proj_weight",
        "center_feature_scale_proj_bias",
    }
    assert dcn.offset_mask.weight.shape == (56, 32)  # 2 groups of 27, and up to a multiple of 8
    flash = package.FlashDeformAttn(16, 2, 2, 2)
    assert {key.partition(".")[0] for key in flash.state_dict()} == {
        "sampling_offsets",
        "attention_weights",
        "value_proj",
        "output_proj",
    }
    query = torch.from_numpy(array(2, 30, 16))
    points = torch.from_numpy(array(2, 30, 2, 2, low=0))
    boxes = torch.cat([points, points / 2], -1)
    padding = torch.zeros(2, 30, dtype=torch.bool)
    for output, learned in (
        (dcn(torch.from_numpy(array(2, 20, 32)), (4, 5)), dcn),
        (flash(query, points, query, torch.tensor(SHAPES), STARTS, padding), flash),
        (flash(query, boxes, query, torch.tensor(SHAPES), STARTS), flash),
    ):
        learned.zero_grad()
        output.square().sum().backward()
        assert all(p.grad.isfinite().all() for p in learned.parameters())
    with pytest.raises(ValueError, match="`group` to divide `channels` = 32, got 3"):
        package.DCNv4(32, group=3)


BOXES = torch.tensor(
    [[0.0, 0, 9, 9], [1, 1, 10, 10], [20, 20, 29, 29], [0, 0, 4, 9], [21, 20, 30, 29], [5, 5, 5, 5]]
)
SCORES = torch.tensor([0.5, 0.9, 0.3, 0.8, 0.7, 0.1])


def overlap(one, other, offset=0):
    sides = [min(one[2 + k], other[2 + k]) - max(one[k], other[k]) + offset for k in (0, 1)]
    common = max(sides[0], 0) * max(sides[1], 0)
    areas = [(b[2] - b[0] + offset) * (b[3] - b[1] + offset) for b in (one, other)]
    return common, areas[0], areas[1]


@pytest.mark.parametrize("offset", [0, 1])
def test_boxes_that_suppress_others(offset):
    found, boxes = module("mmcv._ext"), BOXES.tolist()
    order, kept, groups = SCORES.argsort(descending=True).tolist(), [], {}
    for row in order:
        for best in kept:
            common, one, other = overlap(boxes[best], boxes[row], offset)
            if common > 0.4 * (one + other - common):
                groups[best].append(row)
                break
        else:
            kept.append(row)
            groups[row] = [row]
    assert 1 < len(kept) < len(boxes)
    nms = found.nms(BOXES, SCORES, iou_threshold=0.4, offset=offset)
    assert nms.dtype == torch.int64 and nms.tolist() == kept
    assert found.nms(BOXES[:0], SCORES[:0], 0.4, 0).tolist() == []
    if not offset:
        dets = torch.cat([BOXES, SCORES[:, None]], 1)
        assert found.nms_match(dets, 0.4) == list(groups.values())
        hard = torch.empty(6, 5)
        assert found.softnms(BOXES, SCORES, hard, 0.4, 0.5, 1e-3, 0, 0).tolist() == kept
        assert torch.equal(hard[: len(kept)], dets[kept])


@pytest.mark.parametrize("method", [1, 2])
def test_soft_suppression(method):
    found, boxes = module("mmcv._ext"), BOXES.tolist()
    left, chosen, scores = list(range(6)), [], SCORES.tolist()
    while left:
        best = max(left, key=lambda row: scores[row])
        left.remove(best)
        chosen.append(best)
        for row in left:
            common, one, other = overlap(boxes[best], boxes[row])
            iou = common / (one + other - common)
            soft = 1 - iou if iou >= 0.3 else 1.0
            scores[row] *= soft if method == 1 else np.exp(-iou * iou / 0.5)
        left = [row for row in left if scores[row] >= 0.2]
    dets = torch.empty(6, 5)
    kept = found.softnms(BOXES, SCORES, dets, 0.3, 0.5, 0.2, method, 0)
    assert kept.tolist() == chosen
    check(dets[: len(kept), 4], np.array([scores[row] for row in chosen]))
    assert torch.equal(dets[: len(kept), :4], BOXES[kept])


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("offset", [0, 1])
def test_overlaps(mode, offset):
    found, others = module("mmcv._ext"), BOXES[:4] + 2
    expected = np.empty((5, 4))
    for r, s in np.ndindex(5, 4):
        common, one, other = overlap(BOXES[r].tolist(), others[s].tolist(), offset)
        expected[r, s] = common / (one + other - common if mode == 0 else one)
    ious = torch.empty(5, 4)
    found.bbox_overlaps(BOXES[:5], others, ious, mode=mode, aligned=False, offset=offset)
    check(ious, expected)
    ious = torch.empty(4)
    found.bbox_overlaps(BOXES[:4], others, ious, mode=mode, aligned=True, offset=offset)
    check(ious, expected.diagonal())


@pytest.mark.parametrize("weighted", [False, True])
def test_sigmoid_focal_loss(weighted):
    found, target = module("mmcv._ext"), torch.tensor([0, 2, 1, 2 if weighted else 3])
    logits = torch.from_numpy(array(4, 3, low=-3, high=3)).requires_grad_()
    weight = torch.tensor([0.5, 1.5, 2.0]) if weighted else torch.empty(0)
    p = logits.double().sigmoid()
    one_hot = torch.nn.functional.one_hot(target, 4)[:, :3].bool()
    loss = torch.where(one_hot, 0.25 * (1 - p) ** 2 * -p.log(), 0.75 * p**2 * -(1 - p).log())
    loss = loss * weight[target][:, None] if weighted else loss
    output, grad = rubbish(logits), rubbish(logits)
    found.sigmoid_focal_loss_forward(logits, target, weight, output, gamma=2.0, alpha=0.25)
    found.sigmoid_focal_loss_backward(logits, target, weight, grad, gamma=2.0, alpha=0.25)
    check(output, loss.detach())
    check(grad, torch.autograd.grad(loss.sum(), logits)[0])


@pytest.mark.parametrize("weighted", [False, True])
def test_softmax_focal_loss(weighted):
    found, target = module("mmcv._ext"), torch.tensor([0, 2, 1, -1])
    logits = torch.from_numpy(array(4, 3, low=-3, high=3)).double().requires_grad_()
    weight = torch.tensor([0.5, 1.5, 2.0]) if weighted else torch.empty(0)
    p = logits.softmax(1)
    of_target = p.gather(1, target.clamp(min=0)[:, None])[:, 0]
    loss = 0.25 * (1 - of_target) ** 2 * -of_target.log() * (target >= 0)
    loss = loss * weight[target.clamp(min=0)] if weighted else loss
    output, buff, grad = torch.empty(4), rubbish(target), rubbish(logits)
    given = p.detach().float(), target, weight
    found.softmax_focal_loss_forward(*given, output, gamma=2.0, alpha=0.25)
    found.softmax_focal_loss_backward(*given, buff, grad, gamma=2.0, alpha=0.25)
    check(output, loss.detach())
    check(grad, torch.autograd.grad(loss.sum(), logits)[0])


class Calls(TorchDispatchMode):
    """What torch is asked to do."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        if "view" not in name:
            self.names.append(name)
        return function(*args, **(kwargs or {}))

    def __enter__(self):
        self.names = []
        return super().__enter__()


def test_nothing_is_copied_but_into_the_tensors_of_the_caller():
    found = module("mmcv._ext")
    input, weight, mask = torch.rand(2, 4, 7, 6), torch.rand(6, 4, 3, 3), torch.rand(2, 9, 7, 6)
    offset, output = torch.rand(2, 18, 7, 6), torch.empty(2, 6, 7, 6)
    none = torch.empty(0)
    with Calls() as calls:
        found.modulated_deform_conv_forward(
            input, weight, none, none, offset, mask, output, none,
            3, 3, 1, 1, 1, 1, 1, 1, 1, 1, False,
        )  # fmt: skip
    assert calls.names == ["cudeform::deform_conv2d", "aten::copy_"]
    grads = [torch.zeros_like(t) for t in (input, weight, none, offset, mask)]
    with Calls() as calls:
        found.modulated_deform_conv_backward(
            input, weight, none, none, offset, mask, none, *grads, output,
            3, 3, 1, 1, 1, 1, 1, 1, 1, 1, False,
        )  # fmt: skip
    expected = ["aten::add_.Tensor"] * 2 + ["aten::copy_"] * 2
    assert calls.names[0] == "cudeform::deform_conv2d_backward"
    assert sorted(calls.names[1:]) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_and_strides_and_autocast(dtype):
    """Transposed tensors, as callers of the originals make them; autocast changes nothing."""
    found, given = module("mmcv._ext"), tensors(attention())
    value, locations, weights = (t.to(dtype) for t in given.values())
    exact = [t.double().numpy() for t in (value, locations, weights)]
    expected = reference.ms_deform_attn(exact[0], SHAPES, *exact[1:])
    strided = value.transpose(1, 2).contiguous().transpose(1, 2)
    shapes = torch.tensor(SHAPES)
    output = found.ms_deform_attn_forward(strided, shapes, STARTS, locations, weights, 64)
    assert output.dtype == dtype
    check(output, expected, dtype=str(dtype).removeprefix("torch."))
    with torch.autocast("cpu", torch.bfloat16), Calls() as calls:
        again = found.ms_deform_attn_forward(value, shapes, STARTS, locations, weights, 64)
    assert again.dtype == dtype and torch.equal(again, output)
    assert "aten::_to_copy" not in calls.names  # nothing was made wider


@pytest.mark.skipif(importlib.util.find_spec("mmcv") is None, reason="mmcv-lite is not installed")
def test_mmcv_itself():
    """`pip install mmcv-lite`, whose operators are those of mmcv but for the compiled module."""
    from cudeform.torch import extensions

    with extensions.install("mmcv._ext"):
        from mmcv.ops import ModulatedDeformConv2dPack, RoIPool, nms

        torch.manual_seed(0)
        ours = pytest.importorskip("cudeform.torch.nn").ModulatedDeformConv2dPack(4, 6, 3)
        theirs = ModulatedDeformConv2dPack(4, 6, 3)
        torch.nn.init.normal_(theirs.conv_offset.weight)
        ours.load_state_dict(theirs.state_dict())
        images, results = torch.from_numpy(array(2, 4, 7, 6)), []
        for layer in (ours, theirs):
            output = layer(images)
            gradients = torch.autograd.grad(output.square().sum(), list(layer.parameters()))
            results.append([output, *gradients])
        names = [name for name, _ in ours.named_parameters()]
        assert names == [name for name, _ in theirs.named_parameters()]
        for one, other in zip(*results, strict=True):
            check(one, other.detach().double())
        assert nms(BOXES, SCORES, 0.4)[1].tolist()[0] == 1
        assert RoIPool((2, 2), 1.0)(images, torch.tensor([[0.0, 0, 0, 3, 3]])).shape[2:] == (2, 2)
