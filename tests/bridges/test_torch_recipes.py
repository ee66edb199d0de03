"""The code that docs/coming_from.md has for operators of others."""

import doctest

import pytest
from checkout import ROOT

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def page():
    """The names that the examples for BEVFormer and Sparse4D leave behind."""
    text = (ROOT / "docs" / "coming_from.md").read_text()
    text = text.partition("## BEVFormer and Sparse4D")[2].partition("\n## ")[0]
    names = {}
    for example in doctest.DocTestParser().get_examples(text):
        exec(compile(example.source, "coming_from.md", "exec"), names)
    return names


def sampled(plane, x, y):
    """A bilinear sample of (H, W, C) at pixels (x, y); a pixel outside is 0."""
    result = torch.zeros(plane.shape[2], dtype=plane.dtype)
    for row in (int(y // 1), int(y // 1) + 1):
        for column in (int(x // 1), int(x // 1) + 1):
            if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
                result += (1 - abs(y - row)) * (1 - abs(x - column)) * plane[row, column]
    return result


def test_sparse4ds_aggregation(page):
    generator = torch.Generator().manual_seed(3)
    sizes, cameras, scales, groups = [(3, 4), (2, 2)] * 2, 2, 2, 4
    features = torch.rand(1, 32, 8, generator=generator, dtype=torch.float64)
    locations = (
        torch.rand(1, 2, 3, cameras, 2, generator=generator, dtype=torch.float64) * 1.2 - 0.1
    )
    weights = torch.rand(1, 2, 3, cameras, scales, groups, generator=generator, dtype=torch.float64)
    planes, start = [], 0
    for height, width in sizes:
        planes.append(features[0, start : start + height * width].reshape(height, width, 8))
        start += height * width
    expected = torch.zeros(1, 2, 8, dtype=torch.float64)
    for a, p, camera, scale in torch.cartesian_prod(*map(torch.arange, (2, 3, cameras, scales))):
        x, y = locations[0, a, p, camera].tolist()
        if 0 < x < 1 and 0 < y < 1:
            plane = planes[camera * scales + scale]
            value = sampled(plane, x * plane.shape[1] - 0.5, y * plane.shape[0] - 0.5)
            share = weights[0, a, p, camera, scale].repeat_interleave(8 // groups)
            expected[0, a] += share * value
    found = page["aggregate"](features, sizes, locations, weights)
    torch.testing.assert_close(found, expected)
