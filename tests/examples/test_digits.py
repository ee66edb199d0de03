"""The example on digits: its images, its network's gradients, its figure, and the command."""

import re
import shutil

import numpy as np
import pytest
from checkout import ROOT
from command_line import broken_module, run
from networks import check_gradients

for name in ("matplotlib", "rich", "sklearn"):
    pytest.importorskip(name)

import digit_images  # noqa: E402
import digits  # noqa: E402
import digits_figure  # noqa: E402
import reading  # noqa: E402
import training  # noqa: E402

EVERY = sorted({*digits.NETWORKS, *digits.LONG_NETWORKS})


@pytest.fixture(scope="module")
def scans():
    """To train with and, enlarged, to test with."""
    scans, test = digit_images.load()
    images = digit_images.enlarge(np, test.images, digits.WARPS, np.random.default_rng(1000))
    return scans, (images, test.labels)


@pytest.fixture(scope="module")
def tiny(scans):
    """Every network after a few steps."""
    images, labels = scans[1]
    few = images[:60], labels[:60]
    return {name: [digits.train(np, name, 0, scans[0], few, 3)] for name in EVERY}


def test_images_stay_on_their_canvas():
    _, test = digit_images.load()
    warps = digit_images.Warps()
    images = digit_images.enlarge(np, test.images, warps, np.random.default_rng(0))
    assert images.shape == (597, 1, 32, 32) and images.dtype == np.float32
    ink = images.sum(axis=(1, 2, 3))
    frame = ink - images[:, 0, 1:-1, 1:-1].sum(axis=(1, 2))
    assert (frame < 0.05 * ink).mean() > 0.95
    assert ink.max() > 3 * ink.min()


def test_warp_without_a_warp_is_an_enlargement():
    warps = digit_images.Warps(canvas=16, scale=(2.0, 2.0), rotation=0, shear=0, stretch=1)
    scan = np.random.default_rng(0).random((1, 8, 8)).astype(np.float32)
    rng = np.random.default_rng(0)
    middle = warps.draw(rng, 1)
    np.testing.assert_allclose(middle[0], [[[0.5, 0], [0, 0.5]]], atol=1e-12)
    np.testing.assert_allclose(middle[1], [[-0.25, -0.25]], atol=0.3)  # a pixel of room
    image = digit_images.enlarge(np, scan, warps, rng)
    assert scan.min() < image.max() <= scan.max()


def test_seed_draws_the_same_images_for_every_network():
    training, _ = digit_images.load()
    warps = digit_images.Warps()
    first, second = (
        list(digit_images.batches(np, training, warps, np.random.default_rng(3), 8, 2))
        for _ in range(2)
    )
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_every_round_shows_every_scan_once():
    training = digit_images.Digits(np.zeros((10, 8, 8), np.float32), np.arange(10))
    rng = np.random.default_rng(0)
    shown = [w for _, w in digit_images.batches(np, training, digit_images.Warps(), rng, 5, 4)]
    for part in (shown[:2], shown[2:]):
        np.testing.assert_array_equal(np.concatenate(part).sum(axis=0), np.ones(10))


@pytest.mark.parametrize("name", EVERY)
def test_gradients_of_the_whole_network(name):
    rng = np.random.default_rng(5)
    net = digits.build(name)
    images = rng.standard_normal((3, 1, 32, 32))
    wanted = digit_images.one_hot(np.array([1, 7, 4])).astype(np.float64)
    check_gradients(net, net.init(rng, images), (images, wanted), rng)


@pytest.mark.parametrize("name", EVERY)
def test_network_starts_with_standardised_maps(name):
    rng = np.random.default_rng(5)
    net, images = digits.build(name), rng.standard_normal((8, 1, 32, 32)).astype(np.float32)
    maps, _ = net.backbone.forward(net.init(rng, images), images)
    np.testing.assert_allclose((maps**2).mean(axis=(0, 2, 3)).mean(), 0.5, atol=0.1)


def test_wider_plain_network_has_the_parameters_of_the_largest(tiny):
    counts = {name: runs[0].learned for name, runs in tiny.items()}
    largest = max(counts[name] for name in digits.NETWORKS)
    assert largest <= counts["plain, wider"] < 1.03 * largest


def test_a_few_dozen_steps_learn(scans):
    run = digits.train(np, "modulated v2", 0, *scans, 60)
    assert np.mean(run.losses[-10:]) < np.mean(run.losses[:10]) - 0.3
    assert run.accuracy > 0.25


def test_plain_units_read_a_grid():
    net = digits.build("plain")
    rng = np.random.default_rng(0)
    image = rng.random((1, 32, 32)).astype(np.float32)
    points, weights = reading.reading_points(net, net.init(rng, image[None]), image, (2, 1))
    rows, columns = (np.unique(points[:, axis]) for axis in (0, 1))
    assert rows.tolist() == [8.5, 12.5, 16.5, 20.5, 24.5]
    assert columns.tolist() == [0.5, 4.5, 8.5, 12.5, 16.5]
    np.testing.assert_allclose(weights, 1)
    assert reading.unit_centre((2, 1)).tolist() == [16.5, 8.5]
    assert reading.unit_at((15, 9), units=4) == (2, 1)


@pytest.mark.parametrize("name", ["plain", "deformable v1", "modulated v2"])
def test_units_read_at_their_points(name):
    """What a unit returns depends on the 6 x 6 pixels around its points, and on no others."""
    rng = np.random.default_rng(1)
    net = digits.build(name)
    image = rng.standard_normal((1, 32, 32))
    params = net.init(rng, image[None])
    for own in params.values():
        for n in own:
            if n.endswith("conv_offset.bias"):  # whole offsets, where nothing is interpolated
                own[n] = rng.integers(-1, 2, own[n].shape).astype(np.float64)
    unit = (1, 2)
    points, _ = reading.reading_points(net, params, image, unit)
    moved = image + 5 * np.eye(32 * 32).reshape(32 * 32, 1, 32, 32)  # one pixel in each
    before, after = (
        net.backbone.forward(params, x)[0][:, :, unit[0], unit[1]] for x in (image[None], moved)
    )
    changed = np.abs(after - before).max(axis=1) > 1e-9
    pixels = np.argwhere(np.ones((32, 32)))
    near = (np.abs(points - pixels[:, None]) < 3).all(axis=2).any(axis=1)
    assert not (changed & ~near).any()
    assert changed.sum() > 0.95 * near.sum()  # all channels of a pixel may be zero behind a ReLU


def test_figure_shows_every_network(tiny, scans):
    images, labels = scans[1]
    figure = digits_figure.draw(tiny, images, digits.views(tiny, images, labels))
    texts = [text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text"))]
    for name, runs in tiny.items():
        assert f"{name}\n{runs[0].learned:,} parameters" in texts
    titles = {text.split("  ")[1].partition(":")[0] for text in texts if "where a unit" in text}
    assert titles == set(digits.NETWORKS)


def test_adam_starts_with_steps_of_the_rate():
    update = training.Adam().update(np.array([3.0, -1e-4]), 0.1)
    np.testing.assert_allclose(update, [-0.1, 0.1])


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        {
            "--device cuda": "no GPU to compute on",
            "--seeds 0": "expected --seeds of at least 1, got 0",
            "--size 64": "--size is no option of the example digits",
            "--output no/where.png": "cannot write --output no/where.png: no folder no",
            "--output figure.txt": "expected the suffix of --output to be png, pdf, svg or",
        }.items(),
    )
    def test_bad_input(self, tmp_path, arguments, message):
        done = run(tmp_path, "demo", "digits", *arguments.split())
        assert done.returncode == 2
        assert done.stderr.startswith(f"cudeform demo: {message}")
        assert done.stderr.count("\n") == 1

    def test_options_of_digits_are_none_of_the_photograph(self, tmp_path):
        done = run(tmp_path, "demo", "--long")
        assert done.returncode == 2
        assert "--long is no option of the example photograph" in done.stderr

    @pytest.mark.parametrize(
        ("example", "module", "extra"),
        [("digits", "sklearn", "demo"), ("detr", "torch", "demo,torch")],
    )
    def test_missing_extra(self, tmp_path, example, module, extra):
        broken_module(tmp_path, module)
        done = run(tmp_path, "demo", example, path=[tmp_path])
        assert done.returncode == 2
        assert f"pip install 'cudeform[{extra}]'" in done.stderr

    def test_without_the_checkout_one_line_says_where_it_is(self, tmp_path):
        shutil.copytree(ROOT / "cudeform", tmp_path / "cudeform", ignore=lambda *_: {"__pycache__"})
        done = run(tmp_path, "demo", "digits", path=[tmp_path])
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "run examples/digits.py there" in done.stderr

    def test_writes_the_figure(self, tmp_path):
        arguments = ("--seeds", 1, "--steps", 2, "--device", "cpu")
        done = run(tmp_path, "demo", "digits", *arguments)
        assert done.returncode == 0, done.stderr
        for name in digits.NETWORKS:
            assert re.search(rf"^ *{name} +\d\d,\d\d\d +[\d.]+ % ", done.stdout, re.M), done.stdout
        assert (tmp_path / "cudeform-digits.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        {
            "--steps 0": "expected a whole number of at least 1, got 0",
            "--output figure.txt": "expected a suffix of ",
            "--output no/where.png": "No such file or directory",
        }.items(),
    )
    def test_script_refuses(self, tmp_path, arguments, message):
        done = run(tmp_path, *arguments.split(), program=[ROOT / "examples" / "digits.py"])
        assert done.returncode == 2
        assert message in done.stderr.splitlines()[-1]

    def test_help_tells_the_examples(self, tmp_path):
        done = run(tmp_path, "demo", "--help")
        for text in ("photograph", "digits", "--long", "Compare plain and deformable"):
            assert text in done.stdout
