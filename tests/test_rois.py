"""The demo on scenes of digits: its boxes, its network's gradients, its bins, and the command."""

import re

import numpy as np
import pytest
from test_commands import run

from cudeform import __main__ as command_line
from cudeform.commands import digit_images, rois, scenes

every_network = pytest.mark.parametrize("name", rois.NETWORKS)


@pytest.fixture(scope="module", autouse=True)
def extras():
    for name in ("matplotlib", "rich", "sklearn"):
        pytest.importorskip(name)


@pytest.fixture(scope="module")
def scene():
    """Two scenes and their boxes."""
    training, _ = digit_images.load()
    return scenes.compose(training, np.arange(18), rois.WARPS, np.random.default_rng(2))


def test_boxes_hold_their_digits(scene):
    size = 32 + 2 * scenes.PITCH
    assert scene.images.shape == (2, 1, size, size)
    assert scene.boxes[:, 0].tolist() == [0] * 9 + [1] * 9
    x1, y1, x2, y2 = scene.boxes[:, 1:].T
    assert (x2 > x1).all() and (y2 > y1).all()
    for (image, *box), shift in zip(scene.boxes, scene.shifts, strict=True):
        left, top, right, bottom = box
        y = (top + bottom) / 2 + shift[0] * (bottom - top)
        x = (left + right) / 2 + shift[1] * (right - left)
        around = scene.images[int(image), 0, int(y) - 5 : int(y) + 6, int(x) - 5 : int(x) + 6]
        assert around.max() > scenes.INK
    assert 0.05 < np.abs(scene.shifts).max() < 0.4


def test_middle_error_is_in_pixels(scene):
    x1, y1, x2, y2 = scene.boxes[:, 1:].T
    assert rois.middle_error(scene, scene.shifts) == 0
    off = scene.shifts + np.stack([3 / (y2 - y1), 4 / (x2 - x1)], -1)
    assert rois.middle_error(scene, off) == pytest.approx(5, rel=1e-5)


@every_network
def test_gradients_of_the_whole_network(name, scene):
    rng = np.random.default_rng(5)
    net = rois.build(name)
    images, boxes = scene.images.astype(np.float64), scene.boxes.astype(np.float64)
    batch = (images, boxes, digit_images.one_hot(scene.labels), scene.shifts.astype(np.float64))
    params = net.init(rng, images)
    params = {n: a + 0.02 * rng.standard_normal(a.shape) for n, a in params.items()}
    _, grads = net.loss_and_gradients(params, *batch)
    assert grads.keys() == params.keys() == net.rate_factors.keys()
    for moving in params:
        direction = rng.standard_normal(params[moving].shape)
        ahead, behind = (
            net.loss_and_gradients({**params, moving: params[moving] + step * direction}, *batch)[0]
            for step in (1e-7, -1e-7)
        )
        expected = np.sum(direction * grads[moving])
        np.testing.assert_allclose((ahead - behind) / 2e-7, expected, rtol=1e-4, atol=1e-5)


def test_bins_that_stay_have_the_same_network_with_its_branch_at_rest(scene):
    training, test = digit_images.load()
    few = digit_images.Digits(test.images[:18], test.labels[:18])
    result = rois.compare(np, training, few, range(1), 3)
    assert result.networks == list(rois.NETWORKS)
    for name in rois.NETWORKS:
        (trained,) = result.of(name)
        branch = [a for n, a in trained.params.items() if "offset" in n]
        moved = any(array.any() for array in branch)
        assert branch and moved == name.startswith("deformable")
        assert trained.learned == sum(
            a.size for n, a in trained.params.items() if moved or "offset" not in n
        )


@pytest.mark.parametrize("name", ["deformable RoI", "deformable PS RoI"])
def test_bins_are_drawn_where_they_are(name, scene):
    """The offsets of a bias: all bins half a box to the right and a fifth down."""
    from cudeform.commands import rois_figure
    from cudeform.commands.comparison import Run

    net = rois.build(name)
    params = net.init(np.random.default_rng(0), scene.images)
    (bias,) = (n for n in params if "offset" in n and n.endswith("bias"))
    shape = (12, 2, 3, 3) if "PS" in name else (1, 2, 3, 3)
    offset = np.empty(shape, np.float32)
    offset[:, 0], offset[:, 1] = 5, 2
    params[bias] = offset.reshape(-1)
    result = rois.RoiComparison([], scene, {})
    centres, size = rois_figure.bin_centres(result, Run(name, 0, [], 0.0, params, 0, 0.0), region=4)
    x1, y1, x2, y2 = scene.boxes[4, 1:]
    if "PS" in name:
        x1, y1, x2, y2 = np.floor((x1 + 0.5, y1 + 0.5, x2 + 1.5, y2 + 1.5))
    np.testing.assert_allclose(size, [(y2 - y1) / 3, (x2 - x1) / 3], rtol=1e-5)
    middle = [y1 + 0.7 * (y2 - y1), x1 + 1.0 * (x2 - x1)]
    np.testing.assert_allclose(centres[1, 1], middle, rtol=1e-5)
    np.testing.assert_allclose(centres[2, 0] - centres[1, 1], [size[0], -size[1]], rtol=1e-4)


class TestCommand:
    def test_bad_input(self, tmp_path):
        done = run(tmp_path, "demo", "rois", "--seeds", "0")
        assert done.returncode == 2
        assert "cudeform demo: expected --seeds of at least 1" in done.stderr

    def test_writes_the_figure(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(rois, "QUICK_STEPS", 2)
        monkeypatch.chdir(tmp_path)
        assert command_line.main(["demo", "rois", "--seeds", "1", "--device", "cpu"]) == 0
        printed = capsys.readouterr().out
        for name in rois.NETWORKS:
            pattern = rf"^{name} +\d\d,\d\d\d +[\d.]+ % .* [\d.]+ px off$"
            assert re.search(pattern, printed, re.M), printed
        assert (tmp_path / "cudeform-rois.png").read_bytes().startswith(b"\x89PNG")
