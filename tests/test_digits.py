"""The demo on digits: its images, its network's gradients, its figure, and the command."""

import re

import numpy as np
import pytest
from test_commands import broken_module, run

from cudeform.commands import digit_images, digits, reading

EVERY = sorted({*digits.NETWORKS, *digits.LONG_NETWORKS})


@pytest.fixture(scope="module", autouse=True)
def extras():
    for name in ("matplotlib", "rich", "sklearn"):
        pytest.importorskip(name)


@pytest.fixture(scope="module")
def tiny():
    """Every network after a few steps."""
    training, test = digit_images.load()
    return digits.compare(
        np, training, digit_images.Digits(test.images[:60], test.labels[:60]), EVERY, range(1), 3
    )


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
    params = {n: a.astype(np.float64) for n, a in net.init(rng, images).items()}
    params = {n: a + 0.02 * rng.standard_normal(a.shape) for n, a in params.items()}

    def loss(moved):
        return net.loss_and_gradients(moved, images, wanted)[0]

    _, grads = net.loss_and_gradients(params, images, wanted)
    assert grads.keys() == params.keys() == net.rate_factors.keys()
    for moving in params:
        direction = rng.standard_normal(params[moving].shape)
        ahead, behind = (
            loss({**params, moving: params[moving] + step * direction}) for step in (1e-7, -1e-7)
        )
        expected = np.sum(direction * grads[moving])
        np.testing.assert_allclose((ahead - behind) / 2e-7, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_network_starts_with_standardised_maps(name):
    rng = np.random.default_rng(5)
    net, images = digits.build(name), rng.standard_normal((8, 1, 32, 32)).astype(np.float32)
    maps, _ = net.backbone.forward(net.init(rng, images), images)
    np.testing.assert_allclose((maps**2).mean(axis=(0, 2, 3)).mean(), 0.5, atol=0.1)


def test_wider_plain_network_has_the_parameters_of_the_largest(tiny):
    counts = {name: tiny.of(name)[0].learned for name in EVERY}
    largest = max(counts[name] for name in digits.NETWORKS)
    assert largest <= counts["plain, wider"] < 1.03 * largest


def test_a_few_dozen_steps_learn():
    training, test = digit_images.load()
    result = digits.compare(np, training, test, ("modulated v2",), range(1), 60)
    losses = result.runs[0].losses
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.3
    assert result.runs[0].accuracy > 0.25


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
    for n in params:
        if "conv_offset.bias" in n:  # whole offsets, where nothing is interpolated
            params[n] = rng.integers(-1, 2, params[n].shape).astype(np.float64)
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


def test_figure_shows_every_network(tiny):
    from cudeform.commands import digits_figure

    figure = digits_figure.draw(tiny)
    texts = [text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text"))]
    for name in EVERY:
        assert f"{name}\n{tiny.of(name)[0].learned:,} parameters" in texts
    assert tiny.table("layers", {"training": tiny.seconds}).count("\n") == 1 + len(EVERY)


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--device", "cuda"), "no GPU to compute on"),
            (("--seeds", "0"), "expected --seeds of at least 1"),
            (("--size", "64"), "--size is no option of the example digits"),
            (("--output", "no/where.png"), "cannot write the figure: no folder no"),
        ],
    )
    def test_bad_input(self, tmp_path, arguments, message):
        done = run(tmp_path, "demo", "digits", *arguments)
        assert done.returncode == 2
        assert f"cudeform demo: {message}" in done.stderr
        assert "Traceback" not in done.stderr

    def test_options_of_digits_are_none_of_the_photograph(self, tmp_path):
        done = run(tmp_path, "demo", "--long")
        assert done.returncode == 2
        assert "--long is no option of the example photograph" in done.stderr

    def test_missing_extra(self, tmp_path):
        broken_module(tmp_path, "sklearn")
        done = run(tmp_path, "demo", "digits", path=[tmp_path])
        assert done.returncode == 2
        assert "pip install 'cudeform[demo]'" in done.stderr

    def test_writes_the_figure(self, tmp_path, monkeypatch, capsys):
        from cudeform import __main__ as command_line

        monkeypatch.setattr(digits, "QUICK_STEPS", 2)
        monkeypatch.chdir(tmp_path)
        assert command_line.main(["demo", "digits", "--seeds", "1", "--device", "cpu"]) == 0
        printed = capsys.readouterr().out
        for name in digits.NETWORKS:
            assert re.search(rf"^{name} +\d\d,\d\d\d +[\d.]+ % ", printed, re.M), printed
        assert (tmp_path / "cudeform-digits.png").read_bytes().startswith(b"\x89PNG")

    def test_help_tells_the_examples(self, tmp_path):
        done = run(tmp_path, "demo", "--help")
        for text in ("photograph", "digits", "--long", "Compare plain and deformable"):
            assert text in done.stdout
