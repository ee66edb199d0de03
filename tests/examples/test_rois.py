"""The example on scenes: its boxes, its network's gradients, its bins, and the command."""

import re

import numpy as np
import pytest
from command_line import run
from networks import check_gradients

for name in ("matplotlib", "rich", "sklearn"):
    pytest.importorskip(name)

import digit_images  # noqa: E402
import rois  # noqa: E402
import scenes  # noqa: E402
import training  # noqa: E402

every_network = pytest.mark.parametrize("name", rois.NETWORKS)


@pytest.fixture(scope="module")
def scene():
    """Two scenes and their boxes."""
    scans, _ = digit_images.load()
    return scenes.compose(scans, np.arange(18), rois.WARPS, np.random.default_rng(2))


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
    check_gradients(net, net.init(rng, images), batch, rng)


def test_bins_that_stay_have_the_same_network_with_its_branch_at_rest(scene):
    scans, _ = digit_images.load()
    for name in rois.NETWORKS:
        trained, _ = rois.train(np, name, 0, scans, scene, 3)
        branch = [a for n, a in trained.params["pool"].items() if "offset" in n]
        moved = any(array.any() for array in branch)
        assert branch and moved == name.startswith("deformable")
        assert trained.learned == sum(
            array.size
            for own in trained.params.values()
            for n, array in own.items()
            if moved or "offset" not in n
        )


@pytest.mark.parametrize("name", ["deformable RoI", "deformable PS RoI"])
def test_bins_are_drawn_where_they_are(name, scene):
    """The offsets of a bias: all bins half a box to the right and a fifth down."""
    net = rois.build(name)
    params = net.init(np.random.default_rng(0), scene.images)
    (bias,) = (n for n in params["pool"] if "offset" in n and n.endswith("bias"))
    shape = (12, 2, 3, 3) if "PS" in name else (1, 2, 3, 3)
    offset = np.empty(shape, np.float32)
    offset[:, 0], offset[:, 1] = 5, 2
    params["pool"][bias] = offset.reshape(-1)
    box = scene.boxes[4, 1:]
    centres, size = net.bin_centres(params, scene.images[0], box, scene.labels[4])
    x1, y1, x2, y2 = box
    if "PS" in name:
        x1, y1, x2, y2 = np.floor((x1 + 0.5, y1 + 0.5, x2 + 1.5, y2 + 1.5))
    np.testing.assert_allclose(size, [(y2 - y1) / 3, (x2 - x1) / 3], rtol=1e-5)
    middle = [y1 + 0.7 * (y2 - y1), x1 + 1.0 * (x2 - x1)]
    np.testing.assert_allclose(centres[1, 1], middle, rtol=1e-5)
    np.testing.assert_allclose(centres[2, 0] - centres[1, 1], [size[0], -size[1]], rtol=1e-4)


def test_figure_shows_the_bins_of_the_best_training(scene):
    net = rois.build("deformable RoI")
    params = net.init(np.random.default_rng(0), scene.images)
    runs = {"deformable RoI": [training.Run([1.0], 0.5, params, 0)]}
    bins = rois.moved_bins(runs, scene)
    assert [len(own) for own in bins.values()] == [rois.SHOWN]
    assert len(rois.rois_figure.draw(runs, scene, bins).findobj(rois.rois_figure.Rectangle)) > 60


class TestCommand:
    def test_bad_input(self, tmp_path):
        done = run(tmp_path, "demo", "rois", "--seeds", "0")
        assert done.returncode == 2
        assert done.stderr == "cudeform demo: expected --seeds of at least 1, got 0\n"

    def test_writes_the_figure(self, tmp_path):
        arguments = ("--seeds", 1, "--steps", 2, "--device", "cpu", "--output", "figure")
        done = run(tmp_path, "demo", "rois", *arguments)
        assert done.returncode == 0, done.stderr
        for name in rois.NETWORKS:
            pattern = rf"^ *{name} +\d\d,\d\d\d +[\d.]+ % .* [\d.]+ px off *$"
            assert re.search(pattern, done.stdout, re.M), done.stdout
        assert [path.name for path in tmp_path.iterdir()] == ["figure"]
        assert (tmp_path / "figure").read_bytes().startswith(b"\x89PNG")
