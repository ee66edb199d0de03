"""A small Deformable DETR: convolutions, one encoder layer, and a decoder that refines boxes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from cudeform.torch.nn import MSDeformAttn

WIDTH = 64  # channels C of queries and of all levels
HEADS, POINTS = 4, 4  # of each attention; points of a head on each level
STRIDES = (8, 16)  # pixels of the image between two of a level
ANCHORS = (16.0, 28.0)  # size in pixels of the box that a pixel of a level proposes at first
PRIOR = -4.0  # first logit of every class: most boxes hold nothing


class Answers(NamedTuple):
    """What the network says of N images, for Q boxes or for all S pixels of the levels."""

    logits: Tensor  # (N, Q, classes)
    boxes: Tensor  # (N, Q, 4): middle x, y, width, height, in parts of the image


class Reading(NamedTuple):
    """Where an attention reads."""

    locations: Tensor  # (N, Q, M, L, P, 2): x, y in parts of the image
    weights: Tensor  # (N, Q, M, L, P), of a head's points they sum to 1


def attention(learned: bool) -> MSDeformAttn:
    """One whose points move, or stay where they begin: each head in a direction of its own."""
    module = MSDeformAttn(WIDTH, len(STRIDES), HEADS, POINTS)
    module.sampling_offsets.requires_grad_(learned)
    return module


def mlp(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inner, WIDTH), nn.ReLU(), nn.Linear(WIDTH, outer))


def waves(numbers: Tensor) -> Tensor:
    """Sines and cosines of numbers in 0...1, (..., K) -> (..., 16 * K)"""
    angles = numbers[..., None] * (torch.pi * 2.0 ** torch.arange(8, device=numbers.device) / 2)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


def inverse_sigmoid(boxes: Tensor) -> Tensor:
    return torch.logit(boxes, eps=1e-4)


class Backbone(nn.Module):
    """Maps of the strides, each (N, C, H / stride, W / stride)."""

    def __init__(self) -> None:
        super().__init__()
        half = WIDTH // 2
        self.fine = nn.Sequential(
            nn.PixelUnshuffle(2), *_conv(4, half, 2), *_conv(half, WIDTH, 2), *_conv(WIDTH, WIDTH, 1)
        )
        self.coarse = nn.Sequential(*_conv(WIDTH, WIDTH, 2))

    def forward(self, images: Tensor) -> list[Tensor]:
        fine = self.fine(images)
        return [fine, self.coarse(fine)]


def _conv(inner: int, outer: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(inner, outer, 3, stride, padding=1, bias=False)
    return [conv, nn.GroupNorm(8, outer), nn.ReLU()]


class Layer(nn.Module):
    """Attention to the pixels of all levels, and a network for each query; a decoder's also
    has the queries look at one another first."""

    def __init__(self, learned: bool, among_queries: bool) -> None:
        super().__init__()
        self.among = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True) if among_queries else None
        self.attention = attention(learned)
        self.feed_forward = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))

    def forward(
        self, query: Tensor, place: Tensor, reference: Tensor, pixels: Tensor, shapes: list
    ) -> Tensor:
        """(N, Q, C) twice, (N, Q, 1, 2 or 4), (N, S, C) -> (N, Q, C)"""
        if self.among is not None:
            placed = query + place
            others, _ = self.among(placed, placed, query, need_weights=False)
            query = self.norms[0](query + others)
        read = self.attention(query + place, reference, pixels, shapes)
        query = self.norms[1](query + read)
        return self.norms[2](query + self.feed_forward(query))


class Detector(nn.Module):
    """Boxes of digits. With `learned=False` all points stay where they begin."""

    def __init__(self, classes: int, queries: int, layers: int, learned: bool = True) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.level = nn.Parameter(torch.zeros(len(STRIDES), WIDTH))
        self.pixel_place, self.box_place = nn.Linear(32, WIDTH), nn.Linear(64, WIDTH)
        self.encoder = Layer(learned, among_queries=False)
        self.decoder = nn.ModuleList(Layer(learned, among_queries=True) for _ in range(layers))
        self.content = nn.Parameter(torch.randn(queries, WIDTH))
        heads = layers + 1  # the first is the encoder's, which proposes
        self.classify = nn.ModuleList(nn.Linear(WIDTH, classes) for _ in range(heads))
        self.refine = nn.ModuleList(mlp(WIDTH, 4) for _ in range(heads))
        for classify, refine in zip(self.classify, self.refine, strict=True):
            nn.init.constant_(classify.bias, PRIOR)
            nn.init.zeros_(refine[-1].weight)
            nn.init.zeros_(refine[-1].bias)

    def forward(self, images: Tensor) -> list[Answers]:
        """The answers of the encoder, for every pixel, and of the layers of the decoder."""
        maps = self.backbone(images)
        shapes = [tuple(m.shape[-2:]) for m in maps]
        anchors = torch.cat([_anchors(m, size) for m, size in zip(maps, ANCHORS, strict=True)])
        anchors = anchors.expand(len(images), -1, -1)
        pixels = torch.cat([m.flatten(2).mT for m in maps], 1)
        level = torch.cat([e.expand(h * w, -1) for e, (h, w) in zip(self.level, shapes, strict=True)])
        place = self.pixel_place(waves(anchors[..., :2])) + level
        pixels = self.encoder(pixels, place, anchors[:, :, None, :2], pixels, shapes)
        answers = [self._answer(0, pixels, anchors)]
        best = answers[0].logits.amax(-1).topk(len(self.content)).indices
        boxes = answers[0].boxes.gather(1, best[..., None].expand(-1, -1, 4)).detach()
        query = self.content.expand(len(images), -1, -1)
        for number, layer in enumerate(self.decoder, start=1):
            place = self.box_place(waves(boxes))
            query = layer(query, place, boxes[:, :, None], pixels, shapes)
            answers.append(self._answer(number, query, boxes))
            boxes = answers[-1].boxes.detach()
        return answers

    def _answer(self, number: int, query: Tensor, boxes: Tensor) -> Answers:
        moved = (inverse_sigmoid(boxes) + self.refine[number](query)).sigmoid()
        return Answers(self.classify[number](query), moved)


def _anchors(maps: Tensor, size: float) -> Tensor:
    """A box (x, y, w, h) around each pixel of a level.  # (H * W, 4)"""
    height, width = maps.shape[-2:]
    y, x = torch.meshgrid(
        (torch.arange(height, device=maps.device) + 0.5) / height,
        (torch.arange(width, device=maps.device) + 0.5) / width,
        indexing="ij",
    )
    side = torch.full_like(x, size / 96)
    return torch.stack([x, y, side, side], -1).flatten(0, 1)
