"""The example that detects: its scenes, matching, precision, points, and that it learns."""

import re
from itertools import permutations

import numpy as np
import pytest
from command_line import run

for name in ("matplotlib", "rich", "scipy", "sklearn", "torch"):
    pytest.importorskip(name)

import detr  # noqa: E402
import digit_images  # noqa: E402
import scenes  # noqa: E402
import set_prediction  # noqa: E402
import torch  # noqa: E402
from detr_network import Detector, locations_and_weights  # noqa: E402
from set_prediction import Answers, Objects  # noqa: E402

from cudeform import ms_deform_attn  # noqa: E402


@pytest.fixture(scope="module")
def drawn():
    """Two scenes."""
    return scenes.scatter(digit_images.load()[0], detr.WARPS, np.random.default_rng(3), 2)


def test_boxes_hold_all_ink_and_share_none(drawn):
    covered = np.zeros((2, scenes.SIZE, scenes.SIZE), int)
    for image, (x1, y1, x2, y2) in zip(drawn.image, drawn.boxes.astype(int), strict=True):
        covered[image, y1:y2, x1:x2] += 1
        ink = drawn.images[image, 0, y1:y2, x1:x2] > scenes.INK
        for line in (ink[0], ink[-1], ink[:, 0], ink[:, -1]):  # it fits
            assert line.any()
    assert covered.max() == 1
    assert not drawn.images[:, 0][covered == 0].any()
    counts = np.bincount(drawn.image)
    assert len(counts) == 2 and counts.max() <= scenes.MOST


def test_matching_costs_least():
    """Against all ways to give each of three objects a prediction of its own."""
    rng = torch.Generator().manual_seed(0)
    answers = Answers(torch.randn(1, 5, 2, generator=rng), torch.rand(1, 5, 4, generator=rng))
    objects = Objects(
        torch.zeros(3, dtype=torch.int64), torch.rand(3, 4, generator=rng), torch.tensor([0, 1, 0])
    )

    def cost(of_object, query):
        one = objects.labels[of_object], objects.boxes[of_object]
        logit, box = answers.logits[0, query, one[0]], answers.boxes[0, query]
        p = logit.sigmoid()
        gain = 0.25 * (1 - p) ** 2 * -p.log() - 0.75 * p**2 * -(1 - p).log()
        generalised = set_prediction.overlap(box, one[1])[1]
        return float(2 * gain + 5 * (box - one[1]).abs().sum() - 2 * generalised)

    ways = list(permutations(range(5), 3))
    costs = [sum(cost(k, query) for k, query in enumerate(way)) for way in ways]
    assert tuple(set_prediction.match(answers, objects).tolist()) == ways[int(np.argmin(costs))]


def test_overlap_of_boxes():
    """Two squares of 2 x 2 that share 1 x 1, in a hull of 3 x 3; and two apart, in 1 x 3."""
    boxes = torch.tensor([[1.0, 1, 2, 2], [0.5, 0.5, 1, 1]])
    others = torch.tensor([[2.0, 2, 2, 2], [2.5, 0.5, 1, 1]])
    iou, generalised = set_prediction.overlap(boxes, others)
    torch.testing.assert_close(iou, torch.tensor([1 / 7, 0]))
    torch.testing.assert_close(generalised, torch.tensor([1 / 7 - 2 / 9, -1 / 3]))


def test_average_precision_by_hand():
    """Of two objects the first is found twice, and between the finds something else is taken."""
    boxes = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]])
    objects = Objects(torch.zeros(2, dtype=torch.int64), boxes, torch.zeros(2, dtype=torch.int64))
    found = torch.stack([boxes[0], boxes[0], boxes[1]])[None]
    scores = torch.tensor([[[3.0], [2.0], [1.0]]])
    expected = (1 + 2 / 3) / 2
    for measure in (set_prediction.average_precision, set_prediction.box_precision):
        assert measure(Answers(scores, found), objects) == pytest.approx(expected)
        assert measure(Answers(scores.flip(1), found), objects) == pytest.approx(1)
        assert measure(Answers(scores, found + 0.2), objects) == 0


def test_points_are_drawn_where_they_are():
    """The operator makes of the locations and weights what the module makes of the queries."""
    torch.manual_seed(0)
    module = Detector("learned offsets", 3).decoder[0].attention
    torch.nn.init.normal_(module.sampling_offsets.weight)
    torch.nn.init.normal_(module.attention_weights.weight)
    query, pixels, boxes = torch.randn(2, 5, 64), torch.randn(2, 60, 64), torch.rand(2, 5, 1, 4)
    shapes = [(6, 8), (3, 4)]
    locations, weights = locations_and_weights(module, query, boxes)
    values = module.value_proj(pixels).unflatten(-1, (4, -1))
    read = module.output_proj(ms_deform_attn(values, shapes, locations, weights))
    torch.testing.assert_close(read, module(query, boxes, pixels, shapes), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", detr.NETWORKS)
def test_only_learned_offsets_move(kind, drawn):
    torch.manual_seed(0)
    network = Detector(kind, 10)
    before = {name: p.clone() for name, p in network.named_parameters()}
    detr.train(network, digit_images.load()[0], 0, 2, kind)
    moved = {n for n, p in network.named_parameters() if not torch.equal(p, before[n])}
    offsets = {n for n in before if "sampling_offsets" in n}
    assert len(offsets) == 6
    assert moved >= before.keys() - offsets
    assert moved & offsets == (offsets if kind == "learned offsets" else set())
    assert before["encoder.attention.sampling_offsets.bias"].any() == (kind != "no offsets")


def test_learns_scenes_by_heart(drawn, monkeypatch):
    monkeypatch.setattr(scenes, "scatter", lambda *_: drawn)
    torch.manual_seed(0)
    network = Detector("learned offsets", 10)
    images, objects = detr.tensors(drawn, "cpu")
    before = set_prediction.average_precision(detr.detect(network, images), objects)
    losses = detr.train(network, None, 0, 100, "by heart")
    after = set_prediction.average_precision(detr.detect(network, images), objects)
    assert before < 0.1
    assert losses[-1] < losses[0] / 8
    assert after > 0.6


def test_command_writes_the_figure(tmp_path):
    done = run(tmp_path, "demo", "detr", "--seeds", 1, "--steps", 2, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "each network with seeds 0" in done.stdout
    for name in detr.NETWORKS:
        pattern = rf"^ *{name} +\d+,\d\d\d +[\d.]+ % .* [\d.]+ % *$"
        assert re.search(pattern, done.stdout, re.M), done.stdout
    assert (tmp_path / "cudeform-detr.png").read_bytes().startswith(b"\x89PNG")
