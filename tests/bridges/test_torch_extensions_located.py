"""mmcv's poolings that are sums of samples: PrRoIPool and RoIAlign of rotated regions."""

import numpy as np
import pytest
import reference
from stand_ins import array, check, install_all, module, rubbish

torch = pytest.importorskip("torch")

SIZE, SCALE = (2, 3), 0.5


@pytest.fixture(autouse=True)
def mmcv():
    with install_all():
        yield module("mmcv._ext")


# Inside; on pixels, where the derivative is of the side that moves; across the border; within a
# pixel; inverted; outside; far larger than the image.
BOXES = [
    [0, 1.2, 0.4, 9.3, 6.1],
    [1, 2, 4, 8, 8],
    [1, -4, -3, 5.3, 22.5],
    [0, 1.1, 1.2, 1.9, 1.7],
    [1, 9, 8, 7, 3],
    [0, -40, -40, -20, -20],
    [1, -1e6, -9e5, 8e5, 1e6],
]
KEYWORDS = dict(pooled_height=SIZE[0], pooled_width=SIZE[1], spatial_scale=SCALE)


def integrals(low, high, pixels):
    """Of each pixel's hat function."""

    def below(at):
        t = np.clip(at - np.arange(pixels), -1, 1)
        return np.where(t < 0, (1 + t) ** 2 / 2, 1 - (1 - t) ** 2 / 2)

    return below(high) - below(low)


def precise_shares(box, pixels):
    """Of each pixel in each bin.  # (ph, pw, H, W)"""
    shares = np.zeros((*SIZE, *pixels))
    low, high = np.array(box[[2, 1]]) * SCALE, np.array(box[[4, 3]]) * SCALE
    step = (high - low) / SIZE
    if (step <= 0).any():
        return shares
    for bin_at in np.ndindex(*SIZE):
        begin = low + step * bin_at
        y, x = (integrals(begin[k], begin[k] + step[k], pixels[k]) for k in (0, 1))
        shares[bin_at] = np.outer(y, x) / step.prod()
    return shares


def precise_pool(images, boxes):
    shares = [precise_shares(box, images.shape[2:]) for box in boxes]
    pairs = zip(boxes[:, 0].astype(int), shares, strict=True)
    return np.stack([np.einsum("chw,ijhw->cij", images[k], s) for k, s in pairs])


def test_prroi_pool(mmcv):
    images, boxes = array(2, 3, 7, 6), np.array(BOXES, np.float32)
    exact, wide = images.astype(np.float64), boxes.astype(np.float64)
    expected = precise_pool(exact, wide)
    assert (expected[4:6] == 0).all()
    grad = array(*expected.shape)
    gradient, moved = np.zeros(images.shape), np.zeros(boxes.shape)
    for r, box in enumerate(wide):
        gradient[int(box[0])] += np.einsum("cij,ijhw->chw", grad[r], precise_shares(box, (7, 6)))
        for k in range(1, 5):
            step = np.zeros(5)
            step[k] = 1e-6
            sides = [precise_pool(exact, (box + s)[None])[0] for s in (step, -step)]
            moved[r, k] = np.sum(grad[r] * (sides[0] - sides[1])) / 2e-6

    images, boxes, grad = (torch.from_numpy(a) for a in (images, boxes, grad))
    output, grad_input, grad_rois = rubbish(expected), torch.ones(images.shape), torch.ones(7, 5)
    mmcv.prroi_pool_forward(images, boxes, output, **KEYWORDS)
    check(output, expected)
    mmcv.prroi_pool_backward(grad, boxes, grad_input, **KEYWORDS)
    check(grad_input, gradient, 1)
    mmcv.prroi_pool_coor_backward(output, grad, images, boxes, grad_rois, **KEYWORDS)
    check(grad_rois, moved, 1)


# (image, x, y, width, height, angle)
ROTATED = [
    [0, 6.1, 5.3, 9.2, 4.1, 0.7],
    [1, 3, 7, 8.4, 5.9, -2.1],
    [1, 11.2, 1.3, 18.3, 21.4, 0.2],
    [0, 4.4, 4.2, 0.3, 0.5, 1.5],
    [1, 4, 5, 0, 3, 0.4],
]


def rotated_samples(region, sampling_ratio, aligned, clockwise):
    """Points (y, x) of each bin, in loops, and what their sum is divided by."""
    _, x, y, width, height, angle = region
    angle = -angle if clockwise else angle
    sides = np.array([height, width]) * SCALE
    sides = sides if aligned else np.maximum(sides, 1)
    step = sides / SIZE
    grid = np.full(2, sampling_ratio) if sampling_ratio > 0 else np.ceil(step).astype(int)
    centre = np.array([y, x]) * SCALE - (0.5 if aligned else 0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = np.empty((*SIZE, *grid, 2))
    for i, j, a, b in np.ndindex(*SIZE, *grid):
        within = (np.array([a, b]) + 0.5) / grid
        points[i, j, a, b] = centre + turn @ ((within + (i, j)) * step - sides / 2)
    return points.reshape(*SIZE, -1, 2), max(grid.prod(), 1)


@pytest.mark.parametrize("clockwise", [False, True])
@pytest.mark.parametrize(("sampling_ratio", "aligned"), [(2, True), (0, True), (0, False)])
def test_roi_align_of_rotated_regions(mmcv, sampling_ratio, aligned, clockwise):
    images, rois = array(2, 3, 7, 6), np.array(ROTATED, np.float32)
    exact, grad = images.astype(np.float64), array(5, 3, *SIZE)
    expected, gradient = np.zeros(grad.shape), np.zeros(images.shape)
    for r, region in enumerate(rois.astype(np.float64)):
        image = int(region[0])
        points, count = rotated_samples(region, sampling_ratio, aligned, clockwise)
        reads = ((points >= -1) & (points <= (7, 6))).all(-1)
        y, x = np.clip(points, 0, (6, 5)).transpose(3, 0, 1, 2)
        seen = reference.sample(exact[image], y, x, "zeros")[0]
        expected[r] = (seen * reads).sum(-1) / count
        share = grad[r][..., None] * reads / count
        reference.scatter(gradient[image], share, y, x, "zeros")
    options = dict(sampling_ratio=sampling_ratio, aligned=aligned, clockwise=clockwise)
    images, rois, output = torch.from_numpy(images), torch.from_numpy(rois), rubbish(expected)
    mmcv.roi_align_rotated_forward(images, rois, output, **KEYWORDS, **options)
    check(output, expected)
    grad_input = torch.ones(images.shape)
    mmcv.roi_align_rotated_backward(torch.from_numpy(grad), rois, grad_input, **KEYWORDS, **options)
    check(grad_input, gradient, 1)


def test_regions_of_one_image_go_together(mmcv, monkeypatch):
    from cudeform.torch.extensions import located

    calls, pool = [], located.cudeform.ms_deform_attn
    monkeypatch.setattr(
        located.cudeform, "ms_deform_attn", lambda *a, **k: calls.append(1) or pool(*a, **k)
    )
    images, rois = torch.from_numpy(array(2, 3, 7, 6)), torch.from_numpy(array(40, 6, low=0))
    rois[:, 0] = torch.arange(40) % 2
    one, many = torch.empty(40, 3, *SIZE), torch.empty(40, 3, *SIZE)
    options = dict(sampling_ratio=2, aligned=True, clockwise=False)
    mmcv.roi_align_rotated_forward(images, rois, one, **KEYWORDS, **options)
    assert len(calls) == 2
    monkeypatch.setattr(located, "_MOST_SAMPLES", 4 * 6 * 7)
    mmcv.roi_align_rotated_forward(images, rois, many, **KEYWORDS, **options)
    assert len(calls) == 2 + 2 * 3 and torch.equal(one, many)
    rois[3, 0] = 2
    with pytest.raises(ValueError, match="`rois` with image indices from 0 to 1 .* got 2"):
        mmcv.roi_align_rotated_forward(images, rois, one, **KEYWORDS, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_located_in_other_dtypes(mmcv, dtype):
    images, boxes = torch.from_numpy(array(2, 3, 7, 6)).to(dtype), torch.tensor(BOXES[:6]).to(dtype)
    expected = precise_pool(images.double().numpy(), boxes.double().numpy())
    output = torch.empty(expected.shape, dtype=dtype)
    mmcv.prroi_pool_forward(images, boxes, output, **KEYWORDS)
    check(output, expected, dtype=str(dtype).removeprefix("torch."))
    none = torch.empty(0, 3, *SIZE, dtype=dtype)
    mmcv.prroi_pool_forward(images, boxes[:0], none, **KEYWORDS)
