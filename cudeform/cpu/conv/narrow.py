"""Convolutions whose groups are narrow, depthwise ones above all: sums over taps, not products.

Groups of one channel make columns of one channel; so the channels of all groups are taken side by
side instead. Output channel j of each group belongs to *sum* j: a row with an entry for every input
channel, its samples times its weights, summed over taps; the entries of a group are added up last.
Weights, biases and gradients of outputs are laid out in such rows.
"""

from __future__ import annotations

import numpy as np

from cudeform.cpu.language.bare import bare, cleared, give_back
from cudeform.cpu.language.compiler import inlined
from cudeform.cpu.language.dtypes import sum_first
from cudeform.cpu.language.transpose import copy_plain, transpose
from cudeform.cpu.sampler import locate
from cudeform.cpu.taps import grad_samples, grad_weights, sum_taps
from cudeform.plans.convolution import ConvPlan

__all__ = [
    "add_rows",
    "add_samples",
    "bias_of_rows",
    "bias_rows",
    "count_rows",
    "find_samples",
    "sum_rows",
    "weight_of_rows",
    "weight_rows",
]


def weight_rows(plan: ConvPlan, weight: np.ndarray) -> np.ndarray:
    """The weights by sum, tap and input channel."""  # (O/groups, taps, C)
    each = plan.out_channels // plan.groups
    split = weight.reshape(plan.groups, each, plan.in_channels, plan.points.taps)
    return np.ascontiguousarray(split.transpose(1, 3, 0, 2)).reshape(-1)


def weight_of_rows(plan: ConvPlan, rows: np.ndarray, weight: np.ndarray) -> None:
    """From gradients in the layout of `weight_rows`, one after the other, to their sum."""
    each = plan.out_channels // plan.groups
    rows = rows.reshape(-1, each, plan.points.taps, plan.groups, plan.in_channels)
    weight[...] = sum_first(rows).transpose(2, 0, 3, 1).reshape(weight.shape)


def bias_rows(plan: ConvPlan, bias: np.ndarray) -> np.ndarray:
    """The bias by sum and input channel: once in a group."""  # (O/groups, C)
    rows = np.zeros((plan.out_channels // plan.groups, plan.groups, plan.in_channels), bias.dtype)
    rows[:, :, 0] = bias.reshape(plan.groups, -1).T
    return rows.reshape(-1)


def bias_of_rows(plan: ConvPlan, rows: np.ndarray) -> np.ndarray:
    """From gradients in the layout of `bias_rows`, one after the other, to their sum."""
    each = plan.out_channels // plan.groups
    rows = rows.reshape(-1, each, plan.groups, plan.in_channels)
    return sum_first(rows)[:, :, 0].T.reshape(-1)


@inlined
def sum_rows(grid, job, points, image, memory, place, first, rows):
    """Fill the output of a tile from a slice of the channels, the `first` one and those behind."""
    source, _, _, weights, bias, output = memory
    all_channels, channels = job.groups * job.in_channels, image.channels
    _, _, count = place
    for j in range(job.out_channels):
        for p in range(count):
            at = p * job.out_pitch + j * channels
            copy_plain(bias, j * all_channels + first, rows, at, channels)
        own = bare(rows, j * channels)
        layout = (j * job.taps * all_channels + first, all_channels)
        sum_taps(grid, points, count, source, image, weights, layout, own, job.out_pitch)
        if job.in_channels > 1:
            _add_channels(job, own, count, channels // job.in_channels)
    _write(grid, job, rows, place, first, channels, output)


@inlined
def _add_channels(job, rows, count, groups):
    """Add up the entries of each group, side by side from the beginning of a row."""
    for p in range(count):
        row = bare(rows, p * job.out_pitch)
        for g in range(groups):
            total = row[g * job.in_channels]
            for i in range(1, job.in_channels):
                total += row[g * job.in_channels + i]
            row[g] = total


@inlined
def _write(grid, job, rows, place, first, channels, output):
    image, pixel, count = place
    outputs, each = job.groups * job.out_channels, job.out_channels
    for j in range(each):
        o = first // job.in_channels * each + j
        if job.channels_last:
            for p in range(count):
                row = bare(rows, p * job.out_pitch + j * channels)
                target = bare(output, (image * grid.pixels + pixel + p) * outputs + o)
                for g in range(channels // job.in_channels):
                    target[g * each] = row[g]
        else:
            to = (image * outputs + o) * grid.pixels + pixel
            groups, step = channels // job.in_channels, each * grid.pixels
            transpose(rows, j * channels, job.out_pitch, count, groups, output, to, step)


@inlined
def find_samples(work, points, place, s, columns, rows):
    """As `tiles.find_tile`, with gradients of outputs in rows."""
    grid, job, wanted, _, slices, given, _ = work
    first, channels = slices.first[s], slices.first[s + 1] - slices.first[s]
    _read(grid, job, given.grad_output, place, first, channels, rows)
    if not (wanted.input or wanted.points or wanted.weight):
        return
    locate(grid, given.offset, given.mask, place, slices.offset_group[s], points)
    if wanted.input or wanted.points:
        size = (place[2], job.taps, channels, job.out_channels)
        layout = (first, job.groups * job.in_channels)
        grad_samples(size, rows, job.out_pitch, given.packed, layout, columns, job.pitch)


@inlined
def count_rows(work, s):
    """Rows of the gradient of the weights of a slice."""
    return work.job.out_channels * work.job.taps


@inlined
def add_samples(work, place, s, columns, rows, begin, end):
    """As `tiles.add_tile`, of rows `begin` to `end`."""
    _, job, wanted, part, slices, _, sums = work
    image, count = place[0] - part.first_image, place[2]
    first, all_channels = slices.first[s], job.groups * job.in_channels
    channels = slices.first[s + 1] - first
    if wanted.bias and begin == 0:
        for j in range(job.out_channels):
            at = (image * job.out_channels + j) * all_channels + first
            own, bias = bare(rows, j * channels), bare(sums.bias, at)
            add_rows(own, job.out_pitch, count, channels, bias)
    if wanted.weight:
        layout = (image * job.out_channels * job.taps * all_channels + first, all_channels)
        size = (count, job.taps, channels, (begin, end))
        grad_weights(size, columns, job.pitch, rows, job.out_pitch, sums.weight, layout)


@inlined
def _read(grid, job, grad_output, place, first, channels, rows):
    """A tile of grad_output: for every sum and input channel that of the output it belongs to."""
    image, pixel, count = place
    outputs, each = job.groups * job.out_channels, job.out_channels
    groups = channels // job.in_channels
    for j in range(each):
        o = first // job.in_channels * each + j
        if not job.channels_last:
            start, step = (image * outputs + o) * grid.pixels + pixel, each * grid.pixels
            transpose(grad_output, start, step, groups, count, rows, j * channels, job.out_pitch)
        for p in range(count):
            row = bare(rows, p * job.out_pitch + j * channels)
            if job.channels_last:
                given = bare(grad_output, (image * grid.pixels + pixel + p) * outputs + o)
                for g in range(groups):
                    row[g] = given[g * each]
            if job.in_channels > 1:
                for g in range(groups - 1, -1, -1):  # none is overwritten before it is read
                    value = row[g]
                    for i in range(job.in_channels):
                        row[g * job.in_channels + i] = value


@inlined
def add_rows(rows, pitch, count, channels, target):
    """Add the sums over a tile's pixels: summing tile by tile keeps the rounding error small."""
    subtotal = cleared(channels, rows.dtype)
    for p in range(count):
        row = bare(rows, p * pitch)
        for c in range(channels):
            subtotal[c] += row[c]
    for c in range(channels):
        target[c] += subtotal[c]
    give_back(subtotal)
