"""A small Deformable DETR: convolutions, an encoder's layer, and a decoder that refines boxes."""

from __future__ import annotations

import torch
from set_prediction import Answers
from torch import Tensor, nn

from cudeform.torch.nn import MSDeformAttn

WIDTH = 64  # channels C of the queries and of both levels
HEADS, POINTS = 4, 4  # M and P of each attention
SIDES = (1 / 6, 1 / 3)  # of the boxes that pixels of a level begin with, in parts of the image
RARE = -4.0  # the first logit of every class: most boxes hold nothing

Shapes = list[tuple[int, int]]  # height and width of each level


def attention(points: str) -> MSDeformAttn:
    """One that learns where it reads, or one with fixed offsets, which begin as a ring, or none."""
    module = MSDeformAttn(WIDTH, len(SIDES), HEADS, POINTS)
    module.sampling_offsets.requires_grad_(points == "learned offsets")
    if points == "no offsets":
        nn.init.zeros_(module.sampling_offsets.bias)
    return module


def locations_and_weights(
    module: MSDeformAttn, query: Tensor, boxes: Tensor
) -> tuple[Tensor, Tensor]:
    """Where a decoder's attention reads, and how much each point of a head counts.

    Of queries (N, Q, C) with boxes (N, Q, 1, 4): x and y (N, Q, M, L, P, 2) and (N, Q, M, L, P).
    """
    heads = (HEADS, len(SIDES), POINTS)
    offsets = module.sampling_offsets(query).unflatten(-1, (*heads, 2))
    weights = module.attention_weights(query).unflatten(-1, (HEADS, -1)).softmax(-1)
    middle, size = boxes[:, :, :, None, None].split(2, -1)
    places = middle + offsets * size * module.offset_scale / POINTS
    return places, weights.unflatten(-1, heads[1:])


class Backbone(nn.Module):
    """Maps of an eighth and a sixteenth of the image's size: (N, 1, H, W) -> two (N, C, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        folded = nn.PixelUnshuffle(2)  # blocks of 2 x 2 pixels as channels
        half = WIDTH // 2
        self.fine = nn.Sequential(folded, *_convolution(4, half), *_convolution(half, WIDTH))
        self.coarse = nn.Sequential(*_convolution(WIDTH, WIDTH))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(images)
        return fine, self.coarse(fine)


def _convolution(inner: int, outer: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inner, outer, 3, stride=2, padding=1, bias=False)
    return [convolution, nn.GroupNorm(8, outer), nn.ReLU()]


class Layer(nn.Module):
    """Queries read pixels of all levels; a decoder's have looked at one another before."""

    def __init__(self, points: str, decoder: bool) -> None:
        super().__init__()
        self.among = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True) if decoder else None
        self.attention = attention(points)
        wide = 2 * WIDTH
        self.transform = nn.Sequential(nn.Linear(WIDTH, wide), nn.ReLU(), nn.Linear(wide, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3 if decoder else 2))

    def forward(
        self, query: Tensor, place: Tensor, reference: Tensor, pixels: Tensor, shapes: Shapes
    ) -> Tensor:
        """(N, Q, C) twice, (N, Q, 1, 2 or 4), (N, S, C) -> (N, Q, C)"""
        if self.among is not None:
            key = query + place
            query = self.norms[2](query + self.among(key, key, query, need_weights=False)[0])
        read = self.attention(query + place, reference, pixels, shapes)
        query = self.norms[0](query + read)
        return self.norms[1](query + self.transform(query))


class Head(nn.Module):
    """Logits of the classes of queries (N, Q, C), and their boxes (N, Q, 4) moved and resized."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classify = nn.Linear(WIDTH, classes)
        self.move = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))
        nn.init.constant_(self.classify.bias, RARE)
        nn.init.zeros_(self.move[-1].weight)
        nn.init.zeros_(self.move[-1].bias)

    def forward(self, query: Tensor, boxes: Tensor) -> Answers:
        moved = torch.logit(boxes, eps=1e-4) + self.move(query)
        return Answers(self.classify(query), moved.sigmoid())


class Detector(nn.Module):
    """What is where in images. `points` is what `attention` knows."""

    def __init__(self, points: str, classes: int, queries: int = 16, layers: int = 2) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.level = nn.Parameter(torch.zeros(len(SIDES), WIDTH))
        self.place = nn.Linear(4 * 16, WIDTH)
        self.encoder, self.propose = Layer(points, decoder=False), Head(classes)
        self.query = nn.Parameter(torch.randn(queries, WIDTH))
        self.decoder = nn.ModuleList(Layer(points, decoder=True) for _ in range(layers))
        self.heads = nn.ModuleList(Head(classes) for _ in range(layers))

    def forward(self, images: Tensor) -> list[Answers]:
        """Of every pixel of the encoder, then of the queries behind each layer of the decoder.

        The pixels that are surest of a class say where the queries begin. Gradients do not go from
        one head to the box that another was given.
        """
        pixels, boxes, shapes = self.encode(images)
        answers = [self.propose(pixels, boxes)]
        surest = answers[0].logits.amax(-1).topk(len(self.query)).indices  # (N, Q)
        boxes = answers[0].boxes.gather(1, surest[..., None].expand(-1, -1, 4))
        query = self.query.expand(len(images), -1, -1)
        for layer, head in zip(self.decoder, self.heads, strict=True):
            boxes = boxes.detach()
            query = layer(query, self.place(waves(boxes)), boxes[:, :, None], pixels, shapes)
            answers.append(head(query, boxes))
            boxes = answers[-1].boxes
        return answers

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor, Shapes]:
        """Pixels of all levels (N, S, C) that have read around them, and a box for each."""
        maps = self.backbone(images)
        shapes = [tuple(level.shape[2:]) for level in maps]
        boxes = torch.cat([first_boxes(*of) for of in zip(shapes, SIDES, strict=True)])
        boxes = boxes.to(images).expand(len(images), -1, -1)
        levels = [level.expand(h * w, -1) for level, (h, w) in zip(self.level, shapes, strict=True)]
        place = self.place(waves(boxes)) + torch.cat(levels)
        pixels = torch.cat([level.flatten(2).mT for level in maps], 1)
        return self.encoder(pixels, place, boxes[:, :, None, :2], pixels, shapes), boxes, shapes


def first_boxes(shape: tuple[int, int], side: float) -> Tensor:
    """A square around the middle of each pixel.  # (H * W, 4)"""
    y, x = ((torch.arange(size) + 0.5) / size for size in shape)
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y, *torch.full((2, *shape), side)], -1).flatten(0, 1)


def waves(boxes: Tensor) -> Tensor:
    """Sines and cosines of eight frequencies of each number.  # (N, Q, 4) -> (N, Q, 64)"""
    frequencies = torch.pi / 2 * 2 ** torch.arange(8, device=boxes.device)
    angles = boxes[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)
