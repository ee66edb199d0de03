"""Functions of stand-ins, called as the field's repositories call them, against the reference.

Numbers along y and x differ everywhere: the compiled modules do not agree on which comes first.
Outputs hold rubbish before a call and gradients something to be added to, where the originals
fill the ones and add to the others.
"""

import numpy as np
import pytest
import reference
from stand_ins import array, check, install_all, module, rubbish, tensors, wide

torch = pytest.importorskip("torch")

STRIDE, PADDING, DILATION = (2, 1), (1, 2), (1, 2)  # (y, x)


@pytest.fixture(autouse=True)
def installed():
    with install_all():
        yield


def convolution(mask=False, groups=2):
    """Images, offsets, weights and so on, and their options as the reference has them."""
    given = {
        "input": array(2, 4, 7, 6),
        "offset": array(2, 2 * 2 * 6, 4, 8, low=-2, high=2),
        "weight": array(6, 4 // groups, 3, 2),
    }
    if mask:
        given["mask"] = array(2, 2 * 6, 4, 8, low=0)
    return given, dict(stride=STRIDE, padding=PADDING, dilation=DILATION)


# x before y in version 1: kernel, stride, padding, dilation, then both groups and im2col_step
X_FIRST = (2, 3, 1, 2, 2, 1, 2, 1, 2, 2)
Y_FIRST = (3, 2, 2, 1, 1, 2, 1, 2, 2, 2)


@pytest.mark.parametrize(
    ("name", "forward", "backward", "filters"),
    [
        (
            "mmcv._ext",
            "deform_conv_forward",
            "deform_conv_backward_input",
            "deform_conv_backward_parameters",
        ),
        (
            "detectron2._C",
            "deform_conv_forward",
            "deform_conv_backward_input",
            "deform_conv_backward_filter",
        ),
        (
            "mmdet.ops.dcn.deform_conv_cuda",
            "deform_conv_forward_cuda",
            "deform_conv_backward_input_cuda",
            "deform_conv_backward_parameters_cuda",
        ),
    ],
)
def test_version_1_in_place(name, forward, backward, filters):
    found, (given, options) = module(name), convolution()
    t, scratch = tensors(given), (torch.empty(0), torch.empty(0))
    expected = reference.deform_conv2d(**wide(given), **options)
    output = rubbish(expected)
    getattr(found, forward)(t["input"], t["weight"], t["offset"], output, *scratch, *X_FIRST, 64)
    check(output, expected)

    grad = array(*expected.shape)
    gradients = reference.deform_conv2d_backward(grad.astype(np.float64), **wide(given), **options)
    grad_input, grad_offset = torch.ones_like(t["input"]), rubbish(t["offset"])
    grad_output = torch.from_numpy(grad)
    getattr(found, backward)(
        t["input"], t["offset"], grad_output, grad_input, grad_offset, t["weight"], scratch[0],
        *X_FIRST, 64,
    )  # fmt: skip
    check(grad_input, gradients["input"], 1)
    check(grad_offset, gradients["offset"])
    grad_weight = torch.ones_like(t["weight"])
    getattr(found, filters)(
        t["input"], t["offset"], grad_output, grad_weight, *scratch, *X_FIRST, 0.5, 64
    )
    check(grad_weight, 0.5 * gradients["weight"], 1)


@pytest.mark.parametrize("with_bias", [True, False])
def test_version_2_in_place_by_keyword(with_bias):
    """With the keywords that mmcv's own callers use."""
    found, (given, options) = module("mmcv._ext"), convolution(mask=True)
    t, bias = tensors(given), array(6) if with_bias else np.empty(0, np.float32)
    scratch = dict(ones=torch.empty(0), columns=torch.empty(0), bias=torch.from_numpy(bias))
    names = ("kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w")
    names += ("dilation_h", "dilation_w", "group", "deformable_group")
    numbers = dict(zip(names, Y_FIRST, strict=True), with_bias=with_bias)
    added = bias.astype(np.float64) if with_bias else None
    expected = reference.deform_conv2d(**wide(given), bias=added, **options)
    output = rubbish(expected)
    found.modulated_deform_conv_forward(**t, **scratch, output=output, **numbers)
    check(output, expected)

    grad = array(*expected.shape)
    gradients = reference.deform_conv2d_backward(grad.astype(np.float64), **wide(given), **options)
    grads = {f"grad_{n}": torch.ones_like(t[n]) for n in ("input", "weight")}
    grads |= {f"grad_{n}": rubbish(t[n]) for n in ("offset", "mask")}
    grads["grad_bias"] = torch.ones(len(bias))
    found.modulated_deform_conv_backward(
        **t, **scratch, **grads, grad_output=torch.from_numpy(grad), **numbers
    )
    for name in ("input", "weight"):
        check(grads[f"grad_{name}"], gradients[name], 1)
    for name in ("offset", "mask"):
        check(grads[f"grad_{name}"], gradients[name])
    if with_bias:
        check(grads["grad_bias"], gradients["bias"], 1)


@pytest.mark.parametrize("name", ["_ext", "DCN"])
def test_version_2_of_dcnv2(name):
    groups, found = (1, module(name)) if name == "_ext" else (2, module(name))
    given, options = convolution(mask=True, groups=groups)
    t, bias = tensors(given), array(6)
    given["bias"] = bias
    arguments = t["input"], t["weight"], torch.from_numpy(bias), t["offset"], t["mask"]
    if name == "_ext":
        forward, backward = found.dcn_v2_forward, found.dcn_v2_backward
        numbers = (*Y_FIRST[:8], 2)
    else:
        forward = found.modulated_deform_conv_forward
        backward, numbers = found.modulated_deform_conv_backward, (*Y_FIRST, 64)
    expected = reference.deform_conv2d(**wide(given), **options)
    check(forward(*arguments, *numbers), expected)
    grad = array(*expected.shape)
    del given["bias"]
    gradients = reference.deform_conv2d_backward(grad.astype(np.float64), **wide(given), **options)
    results = backward(*arguments, torch.from_numpy(grad), *numbers)
    for key, result in zip(("input", "offset", "mask", "weight", "bias"), results, strict=True):
        check(result, gradients[key])


def test_version_1_of_dcn():
    found, (given, options) = module("DCN"), convolution()
    t, bias = tensors(given), array(6)
    arguments = t["input"], t["weight"], torch.from_numpy(bias), t["offset"]
    expected = reference.deform_conv2d(**wide(given), bias=bias.astype(np.float64), **options)
    check(found.deform_conv_forward(*arguments, *Y_FIRST, 64), expected)
    grad = array(*expected.shape)
    gradients = reference.deform_conv2d_backward(grad.astype(np.float64), **wide(given), **options)
    results = found.deform_conv_backward(*arguments, torch.from_numpy(grad), *Y_FIRST, 64)
    for key, result in zip(("input", "offset", "weight", "bias"), results, strict=True):
        check(result, gradients[key])


def test_numbers_that_contradict_the_tensors():
    found, (given, _) = module("mmcv._ext"), convolution()
    t, scratch = tensors(given), (torch.empty(0), torch.empty(0))
    y_first = (3, 2, *X_FIRST[2:])
    with pytest.raises(ValueError, match=r"`kernel_size` to be \(3, 2\), .*got \(2, 3\)"):
        found.deform_conv_forward(
            t["input"], t["weight"], t["offset"], torch.empty(2, 6, 4, 8), *scratch, *y_first, 64
        )


ROIS = np.array([[0, 1.2, 0.4, 9.3, 6.1], [1, 3.0, 2.0, 14.4, 11.0], [1, 9.0, 8.0, 7.0, 3.0]])
ROIS = ROIS.astype(np.float32)


@pytest.mark.parametrize("pool_mode", [0, 1])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_by_keyword(pool_mode, aligned):
    found, images = module("mmcv._ext"), array(2, 3, 9, 8)
    size, sampling, scale, mode = (2, 3), 2, 0.5, ("max", "avg")[pool_mode]
    outside = np.concatenate([ROIS, [[0, -40, -40, -20, -20]]]).astype(np.float32)
    options = dict(
        aligned_height=2,
        aligned_width=3,
        spatial_scale=scale,
        sampling_ratio=sampling,
        pool_mode=pool_mode,
        aligned=aligned,
    )
    theirs = (images.astype(np.float64), outside.astype(np.float64))
    theirs += (size, scale, sampling, aligned)
    expected = reference.roi_align(*theirs, mode=mode)
    output = rubbish(expected)
    at = [rubbish(expected) if pool_mode == 0 else torch.empty(0) for _ in "yx"]
    rois = torch.from_numpy(outside)
    found.roi_align_forward(torch.from_numpy(images), rois, output, *at, **options)
    check(output, expected)
    assert pool_mode == 1 or (at[0][3] == -1).all() and (at[1][3] == -1).all()
    grad, grad_input = array(*expected.shape), torch.ones(images.shape)
    found.roi_align_backward(torch.from_numpy(grad), rois, *at, grad_input, **options)
    gradients = reference.roi_align_backward(grad.astype(np.float64), *theirs, mode=mode)
    check(grad_input, gradients["input"], 1)


def test_gradients_of_the_largest_samples_under_torch_compile():
    """The images are no argument of the backward: nothing may look for the largest ones again."""
    found, rois = module("mmcv._ext"), torch.from_numpy(ROIS)

    class Largest(torch.autograd.Function):
        @staticmethod
        def forward(ctx, images):
            output, *at = (images.new_empty(3, 3, 2, 3) for _ in range(3))
            found.roi_align_forward(images, rois, output, *at, 2, 3, 0.5, 2, 0, True)
            ctx.save_for_backward(*at)
            return output

        @staticmethod
        def backward(ctx, grad):
            result = grad.new_zeros(2, 3, 9, 8)
            found.roi_align_backward(grad, rois, *ctx.saved_tensors, result, 2, 3, 0.5, 2, 0, True)
            return result

    images = torch.from_numpy(array(2, 3, 9, 8)).requires_grad_()
    expected, got = (
        torch.autograd.grad(function(images).square().sum(), images)[0]
        for function in (Largest.apply, torch.compile(Largest.apply, backend="aot_eager"))
    )
    assert expected.abs().sum() > 1 and torch.equal(got, expected)


def roi_pool_of_mmcv(images, rois, size, scale):
    """Its rule in loops: the region from x1*s to (x2 + 1)*s, nothing rounded before the bins."""
    output = np.zeros((len(rois), images.shape[1], *size))
    at = np.full(output.shape, -1)
    for r, (image, x1, y1, x2, y2) in enumerate(rois.astype(np.float32)):
        low = np.float32([y1, x1]) * np.float32(scale)
        sides = (np.float32([y2, x2]) + 1) * np.float32(scale) - low
        if (sides <= 0).any():
            continue
        for bin_at in np.ndindex(*size):
            edges = []
            for axis in (0, 1):
                step = sides[axis] / np.float32(size[axis])
                first = np.floor(np.float32(bin_at[axis]) * step + low[axis])
                end = np.ceil(np.float32(bin_at[axis] + 1) * step + low[axis])
                edges.append(slice(*np.clip([first, end], 0, images.shape[2 + axis]).astype(int)))
            pixels = images[int(image)][:, edges[0], edges[1]]
            if pixels.size:
                flat = pixels.reshape(len(pixels), -1).argmax(1)
                rows, columns = np.unravel_index(flat, pixels.shape[1:])
                at[(r, slice(None), *bin_at)] = (edges[0].start + rows) * images.shape[3]
                at[(r, slice(None), *bin_at)] += edges[1].start + columns
                output[(r, slice(None), *bin_at)] = pixels.reshape(len(pixels), -1).max(1)
    return output, at


def test_roi_pool_has_the_regions_of_mmcv():
    found, images = module("mmcv._ext"), array(2, 3, 9, 8)
    inverted, across, outside = [1, 9, 2, 7.8, 9], [0, 11, 12, 40, 40], [0, -9, -9, -7, -7]
    rois = np.concatenate([ROIS, [inverted, across, outside]])
    rois = rois.astype(np.float32)
    expected, at = roi_pool_of_mmcv(images, rois, (2, 3), 0.5)
    assert (at[[2, 3, 5]] == -1).all() and (at[4] >= 0).any()
    output, argmax = rubbish(expected), torch.full(at.shape, 99, dtype=torch.int32)
    arguments = torch.from_numpy(images), torch.from_numpy(rois)
    found.roi_pool_forward(*arguments, output, argmax, 2, 3, 0.5)
    check(output, expected)
    assert argmax.tolist() == at.tolist()

    grad, grad_input = array(*expected.shape), torch.ones(images.shape)
    gradient = np.zeros((2, 3, 72))
    for r, c, i, j in np.ndindex(*at.shape):
        if at[r, c, i, j] >= 0:
            gradient[int(rois[r, 0]), c, at[r, c, i, j]] += grad[r, c, i, j]
    found.roi_pool_backward(
        grad_output=torch.from_numpy(grad),
        rois=arguments[1],
        argmax=argmax,
        grad_input=grad_input,
        pooled_height=2,
        pooled_width=3,
        spatial_scale=0.5,
    )
    check(grad_input, gradient.reshape(images.shape), 1)


@pytest.mark.parametrize("moved", [True, False])
def test_deform_roi_pool(moved):
    found, images = module("mmcv._ext"), array(2, 3, 9, 8)
    offset = array(3, 2, 2, 3, low=-2, high=2) if moved else np.empty(0, np.float32)
    theirs = [a.astype(np.float64) for a in (images, ROIS)]
    theirs += [offset.astype(np.float64) if moved else None, (2, 3), 0.5, 2, 0.2]
    expected = reference.deform_roi_pool(*theirs)
    given = torch.from_numpy(images), torch.from_numpy(ROIS), torch.from_numpy(offset)
    options = dict(pooled_height=2, pooled_width=3, spatial_scale=0.5, sampling_ratio=2, gamma=0.2)
    output = rubbish(expected)
    found.deform_roi_pool_forward(*given, output, **options)
    check(output, expected)
    grad = array(*expected.shape)
    grads = torch.ones(images.shape), torch.ones(offset.shape)
    found.deform_roi_pool_backward(torch.from_numpy(grad), *given, *grads, **options)
    gradients = reference.deform_roi_pool_backward(grad.astype(np.float64), *theirs)
    check(grads[0], gradients["input"], 1)
    if moved:
        check(grads[1], gradients["offset"], 1)


# (no_trans, spatial_scale, output_dim, group_size, pooled_size, part_size, sample_per_part,
# trans_std)
PSROI = (0.5, 4, 2, 3, 2, 3, 0.2)


def counts_of_psroi(images, rois, trans):
    """In loops."""
    scale, output_dim, _, bins, part, samples, std = PSROI
    counts = np.zeros((len(rois), output_dim, bins, bins))
    for r, c, i, j in np.ndindex(*counts.shape):
        corners = np.sign(rois[r, 1:]) * np.floor(np.abs(rois[r, 1:]) + 0.5)
        low, high = corners[:2] * scale - 0.5, (corners[2:] + 1) * scale - 0.5
        size = np.maximum(high - low, 0.1)
        moved = np.zeros(2)
        if trans is not None:
            kind = c // (output_dim // (trans.shape[1] // 2))
            cell = int(i / bins * part), int(j / bins * part)
            moved = trans[(r, slice(2 * kind, 2 * kind + 2), *cell)] * std * size
        for a, b in np.ndindex(samples, samples):
            x, y = low + moved + np.array([j + b / samples, i + a / samples]) * size / bins
            inside = -0.5 <= x <= images.shape[3] - 0.5 and -0.5 <= y <= images.shape[2] - 0.5
            counts[r, c, i, j] += inside
    return counts


MMDET_POOLS = {"mmdet.ops.dcn.deform_pool_cuda": "_cuda", "mmdet.ops.dcn.deform_pool_ext": ""}


@pytest.mark.parametrize("no_trans", [0, 1])
@pytest.mark.parametrize("name", ["_ext", "DCN", *MMDET_POOLS])
def test_position_sensitive_pooling(name, no_trans):
    found, images = module(name), array(2, 16, 6, 5)
    trans = array(4, 4, 2, 2, low=-2, high=2)  # a row more than there are regions
    scale, dim, group, bins, part, samples, std = PSROI
    theirs = (
        images.astype(np.float64),
        ROIS.astype(np.float64),
        None if no_trans else trans[:3].astype(np.float64),
        *(bins, scale, dim, group, part, samples, std),
    )
    expected = reference.deform_ps_roi_pool(*theirs)
    counts = counts_of_psroi(images, ROIS.astype(np.float64), theirs[2])
    assert 0 < counts.min() or (counts == 0).any()
    given = torch.from_numpy(images), torch.from_numpy(ROIS), torch.from_numpy(trans)
    grad = array(*expected.shape)
    gradients = reference.deform_ps_roi_pool_backward(grad.astype(np.float64), *theirs)
    moved = np.zeros(trans.shape)
    if not no_trans:
        moved[:3] = gradients["offset"]
    numbers, grad = (no_trans, *PSROI), torch.from_numpy(grad)
    if name in MMDET_POOLS:
        prefix = f"deform_psroi_pooling{MMDET_POOLS[name]}"
        output, count = rubbish(expected), rubbish(expected)
        getattr(found, f"{prefix}_forward")(*given, output, count, *numbers)
        grads = torch.ones(images.shape), torch.ones(trans.shape)
        getattr(found, f"{prefix}_backward")(grad, *given, count, *grads, *numbers)
        before = 1
    else:
        prefix = "dcn_v2" if name == "_ext" else "deform"
        output, count = getattr(found, f"{prefix}_psroi_pooling_forward")(*given, *numbers)
        backward = getattr(found, f"{prefix}_psroi_pooling_backward")
        grads, before = backward(grad, *given, count, *numbers), 0
    check(output, expected)
    assert count.tolist() == counts.tolist()
    check(grads[0], gradients["input"], before)
    check(grads[1], moved, before)


def test_numbers_that_are_missing_are_named():
    found, t = module("_ext"), torch.zeros(1, 1, 2, 2)
    message = r"deform_psroi_pooling_forward\(\) missing a required argument: 'spatial_scale'"
    with pytest.raises(TypeError, match=message):
        found.dcn_v2_psroi_pooling_forward(t, t, t, 1)
    message = r"deform_conv_forward\(\) missing a required argument: 'stride_h'"
    with pytest.raises(TypeError, match=message):
        module("DCN").deform_conv_forward(t, t, t, t, 3, 3)
