"""Sums of samples at located points: attention, and whatever else weighs samples and adds them up.

A row is what is summed up to one result: a head of a query. A block is as many rows as have
`PLANE` points together, or a part of one row. A point of a block has its place in an image of its
own, a level, and a share of the row's sum. All that is known of it stands in planes: at distances
that are known when a kernel is compiled, so that LLVM makes vectors of points. Samples are read
with vectors along the channels, which lie side by side in memory.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cudeform.cpu.language.bare import bare, cleared, give_back
from cudeform.cpu.language.compiler import apart, inlined, inner
from cudeform.cpu.language.halves import element, load_wide, load_wide_some, put
from cudeform.cpu.language.simd import (
    fma,
    lanes,
    load,
    load_some,
    select,
    splat,
    store,
    store_some,
    totals,
    zeros,
)
from cudeform.cpu.sampler import add_dots, filled, load_corners, weights_along

PLANE = 128  # points of a block, at most
# Planes of real numbers: first coordinates in pixels, then distances from the first corner; the
# share; the weights of the four corners, times the share; of a grid: the tap, from the base.
X, Y, SHARE, W00, W01, W10, W11, TAP_Y, TAP_X = (PLANE * i for i in range(9))
_REALS = 9 * PLANE
# Planes of integers: the pixel of the first corner that is in the level, -1 where nothing is read;
# how many pixels the corner beside it and the one below are away, and which are there; the level.
PIXEL, RIGHT, DOWN, SIDES, HEIGHT, WIDTH, START = (PLANE * i for i in range(7))
_INTEGERS = 7 * PLANE
# Until corners are known: whole coordinates that X and Y are from, and whether anything is read.
BASE_Y, BASE_X, _INSIDE = PIXEL, SIDES, DOWN
_TOP, _BOTTOM, _LEFT, _RIGHT = 1, 2, 4, 8


class Rows(NamedTuple):
    """The rows of a block."""

    count: int
    each: int  # points


class View(NamedTuple):
    """Where the channels that a block reads lie in a flat array of pixels."""

    start: int  # of the first pixel
    pitch: int  # from one pixel to the next
    channels: int


@inlined
def block_memory(like, more):
    """Room for what is known of a block, and for so many numbers behind it; to be returned."""
    return cleared(_REALS + more, like.dtype), cleared(_INTEGERS, np.int32)


@inlined
def block_in(memory):
    """The block itself."""
    reals, whole = memory
    return bare(reals, 0), bare(whole, 0)


@inlined
def numbers_behind(memory, first):
    """The numbers behind a block, from the first on."""
    return bare(memory[0], _REALS + first)


@inlined
def return_memory(memory):
    """The end of a block."""
    give_back(memory[0])
    give_back(memory[1])


@inlined
def fill_levels(levels, points, first, rows, block):
    """The levels of the points of a block, from point `first` of each row on."""
    _, whole = block
    for r in range(rows.count):
        at = r * rows.each
        for k in range(rows.each):
            whole[HEIGHT + at + k] = levels[first + k]
            whole[WIDTH + at + k] = levels[points + first + k]
            whole[START + at + k] = levels[2 * points + first + k]


@inlined
def fill_taps(levels, taps, first, rows, block):
    """The same of a grid, whose level is one; and where taps are, which count down columns."""
    reals, whole = block
    real = reals.dtype.type
    column, removed = taps[0], taps[1]
    height, width, start = np.int32(levels[0]), np.int32(levels[1]), np.int32(levels[2])
    for p in range(filled(rows.count * rows.each)):
        whole[HEIGHT + p], whole[WIDTH + p], whole[START + p] = height, width, start
    for k in range(rows.each):
        tap = first + k
        if tap >= removed:
            tap += 1
        a = tap // column
        y = real((tap - a * column) * taps[2] - taps[4])
        x = real(a * taps[3] - taps[5])
        for r in range(rows.count):
            at = r * rows.each + k
            reals[TAP_Y + at], reals[TAP_X + at] = y, x


@apart
def locate_points(block, count):
    """From parts of levels and shares to corners and weights; no branch, for LLVM's vectors."""
    reals, whole = block
    real = reals.dtype.type
    zero, one, half = real(0), real(1), real(-0.5)
    for p in range(filled(count)):
        height, width = real(whole[HEIGHT + p]), real(whole[WIDTH + p])
        x, y = reals[X + p] * width + half, reals[Y + p] * height + half
        inside = (y > -one) & (y < height) & (x > -one) & (x < width)  # NaN fails
        x, y = select(inside, x, zero), select(inside, y, zero)
        row, column = np.floor(y), np.floor(x)
        reals[X + p], reals[Y + p] = x - column, y - row
        whole[BASE_Y + p], whole[BASE_X + p] = np.int32(row), np.int32(column)
        whole[_INSIDE + p] = inside
    _find_corners(block, count)
    _weigh_corners(block, count)


@apart
def locate_beside(block, count, factor):
    """The same for taps with their offsets, times a factor, from whole bases; no bit of them is
    lost, wherever that is.
    """
    reals, whole = block
    zero = reals.dtype.type(0)
    for p in range(filled(count)):
        x = (reals[TAP_X + p] + reals[X + p]) * factor
        y = (reals[TAP_Y + p] + reals[Y + p]) * factor
        below, before = np.floor(y), np.floor(x)
        ly, lx = y - below, x - before
        row = np.float64(below) + np.float64(whole[BASE_Y + p])
        column = np.float64(before) + np.float64(whole[BASE_X + p])
        inside = (row >= 0) | ((row == -1) & (ly > zero))  # NaN fails
        inside &= (column >= 0) | ((column == -1) & (lx > zero))
        inside &= (row < whole[HEIGHT + p]) & (column < whole[WIDTH + p])
        whole[_INSIDE + p] = inside
        reals[X + p], reals[Y + p] = select(inside, lx, zero), select(inside, ly, zero)
        row, column = select(inside, row, 0.0), select(inside, column, 0.0)
        whole[BASE_Y + p], whole[BASE_X + p] = np.int32(row), np.int32(column)
    _find_corners(block, count)
    _weigh_corners(block, count)


# Each of the two has a loop of its own, for which 16 registers suffice, and reads before it
# chooses: what is read for one choice alone keeps LLVM from making vectors.
@apart
def _find_corners(block, count):
    """From whole coordinates to corners; one outside stands for its neighbour in the level."""
    _, whole = block
    zero = np.int32(0)  # Numba would compare with 64 bits
    for p in range(filled(count)):
        row, column, inside = whole[BASE_Y + p], whole[BASE_X + p], whole[_INSIDE + p] != zero
        height, width, start = whole[HEIGHT + p], whole[WIDTH + p], whole[START + p]
        top, left = row >= zero, column >= zero
        bottom, right = row < np.int32(height - 1), column < np.int32(width - 1)
        pixel = start + select(top, row, zero) * width + select(left, column, zero)
        sides = select(top, _TOP, 0) | select(bottom, _BOTTOM, 0)
        whole[SIDES + p] = sides | select(left, _LEFT, 0) | select(right, _RIGHT, 0)
        whole[PIXEL + p] = select(inside, pixel, -1)
        whole[RIGHT + p] = select(left & right, 1, 0)
        whole[DOWN + p] = select(top & bottom, width, 0)


@apart
def _weigh_corners(block, count):
    """The weights of corners; X and Y are the distances of points from whole coordinates."""
    reals, whole = block
    one = reals.dtype.type(1)
    for p in range(filled(count)):
        ly, lx, share, sides = reals[Y + p], reals[X + p], reals[SHARE + p], whole[SIDES + p]
        top, bottom = (sides & _TOP) != 0, (sides & _BOTTOM) != 0
        left, right = (sides & _LEFT) != 0, (sides & _RIGHT) != 0
        wt, wb = weights_along(top, bottom, ly, one)
        wl, wr = weights_along(left, right, lx, one)
        reals[W00 + p] = share * (wt * wl)
        reals[W01 + p] = share * (wt * wr)
        reals[W10 + p] = share * (wb * wl)
        reals[W11 + p] = share * (wb * wr)


@apart
def locate_nearest(block, count):
    """The same for one pixel each, at whole coordinates that are clamped to the level."""
    reals, whole = block
    real = reals.dtype.type
    zero, half = real(0), real(0.5)
    for p in range(filled(count)):
        x = reals[X + p] * real(whole[WIDTH + p]) + half
        y = reals[Y + p] * real(whole[HEIGHT + p]) + half
        # In float64: the last pixel of a long axis is no number of float32.
        bottom, right = np.float64(whole[HEIGHT + p] - 1), np.float64(whole[WIDTH + p] - 1)
        reads = (x == x) & (y == y)
        x, y = select(reads, x, zero), select(reads, y, zero)
        row = min(max(np.float64(np.floor(y)), 0.0), bottom)
        column = min(max(np.float64(np.floor(x)), 0.0), right)
        pixel = whole[START + p] + np.int32(row) * whole[WIDTH + p] + np.int32(column)
        whole[PIXEL + p] = select(reads, pixel, -1)
        reals[W00 + p] = reals[SHARE + p]


@inlined
def _corners(whole, view, p):
    """Where the channels of the four corners of a point lie."""
    at = view.start + element(whole, PIXEL + p) * view.pitch
    right, down = element(whole, RIGHT + p) * view.pitch, element(whole, DOWN + p) * view.pitch
    return at, at + right, at + down, at + right + down


@inlined
def _weights(reals, like, p):
    """The weights of the four corners in all lanes."""
    top = splat(like, element(reals, W00 + p)), splat(like, element(reals, W01 + p))
    return *top, splat(like, element(reals, W10 + p)), splat(like, element(reals, W11 + p))


@inner
def sum_points(block, rows, source, view, target, nearest):
    """target[r*channels + c] += sum over the points of row r of weighted values of channel c.

    With `nearest` not None a point reads one pixel.
    """
    step = lanes(target)
    tail = view.channels & (step - 1)
    whole = view.channels - tail
    blocks = whole - whole % (4 * step)
    for c in range(0, blocks, 4 * step):
        _sum_four(block, rows, source, view, target, nearest, c)
    pairs = blocks + (whole - blocks) // (2 * step) * (2 * step)
    for c in range(blocks, pairs, 2 * step):
        _sum_two(block, rows, source, view, target, nearest, c)
    for c in range(pairs, whole, step):
        _sum_one(block, rows, source, view, target, nearest, c, step)
    if tail:
        _sum_one(block, rows, source, view, target, nearest, whole, tail)


@inlined
def _blend(source, at, w, c, sums):
    sums = fma(w[0], load_wide(source, at[0] + c), sums)
    sums = fma(w[1], load_wide(source, at[1] + c), sums)
    sums = fma(w[2], load_wide(source, at[2] + c), sums)
    return fma(w[3], load_wide(source, at[3] + c), sums)


@inlined
def _sum_four(block, rows, source, view, target, nearest, c):
    reals, whole = block
    step = lanes(target)
    c1, c2, c3 = c + step, c + 2 * step, c + 3 * step
    for r in range(rows.count):
        to = r * view.channels
        s0, s1 = load(target, to + c), load(target, to + c1)
        s2, s3 = load(target, to + c2), load(target, to + c3)
        for p in range(r * rows.each, (r + 1) * rows.each):
            if element(whole, PIXEL + p) < 0:
                continue
            at, w = _corners(whole, view, p), _weights(reals, target, p)
            if nearest is not None:
                s0 = fma(w[0], load_wide(source, at[0] + c), s0)
                s1 = fma(w[0], load_wide(source, at[0] + c1), s1)
                s2 = fma(w[0], load_wide(source, at[0] + c2), s2)
                s3 = fma(w[0], load_wide(source, at[0] + c3), s3)
            else:
                s0, s1 = _blend(source, at, w, c, s0), _blend(source, at, w, c1, s1)
                s2, s3 = _blend(source, at, w, c2, s2), _blend(source, at, w, c3, s3)
        store(target, to + c, s0)
        store(target, to + c1, s1)
        store(target, to + c2, s2)
        store(target, to + c3, s3)


@inlined
def _sum_two(block, rows, source, view, target, nearest, c):
    reals, whole = block
    c1 = c + lanes(target)
    for r in range(rows.count):
        to = r * view.channels
        s0, s1 = load(target, to + c), load(target, to + c1)
        for p in range(r * rows.each, (r + 1) * rows.each):
            if element(whole, PIXEL + p) < 0:
                continue
            at, w = _corners(whole, view, p), _weights(reals, target, p)
            if nearest is not None:
                s0 = fma(w[0], load_wide(source, at[0] + c), s0)
                s1 = fma(w[0], load_wide(source, at[0] + c1), s1)
            else:
                s0, s1 = _blend(source, at, w, c, s0), _blend(source, at, w, c1, s1)
        store(target, to + c, s0)
        store(target, to + c1, s1)


@inlined
def _sum_one(block, rows, source, view, target, nearest, c, count):
    """One vector of `count` channels."""
    reals, whole = block
    for r in range(rows.count):
        to = r * view.channels + c
        sums = load_some(target, to, count)
        for p in range(r * rows.each, (r + 1) * rows.each):
            if element(whole, PIXEL + p) < 0:
                continue
            at, w = _corners(whole, view, p), _weights(reals, target, p)
            sums = fma(w[0], load_wide_some(source, at[0] + c, count), sums)
            if nearest is None:
                sums = fma(w[1], load_wide_some(source, at[1] + c, count), sums)
                sums = fma(w[2], load_wide_some(source, at[2] + c, count), sums)
                sums = fma(w[3], load_wide_some(source, at[3] + c, count), sums)
        store_some(target, to, sums, count)


@inner
def dot_points(block, rows, source, view, grad, dots, nearest):
    """The products of a row's gradient with each corner of its points, into four planes."""
    _, whole = block
    step = lanes(grad)
    tail = view.channels & (step - 1)
    end = view.channels - tail
    for r in range(rows.count):
        row = r * view.channels
        for p in range(r * rows.each, (r + 1) * rows.each):
            at = _corners(whole, view, p)
            dot = zeros(grad), zeros(grad), zeros(grad), zeros(grad)
            if element(whole, PIXEL + p) < 0:
                pass
            elif nearest is not None:
                only = dot[0]
                for c in range(0, end, step):
                    only = fma(load(grad, row + c), load_wide(source, at[0] + c), only)
                if tail:
                    value = load_wide_some(source, at[0] + end, tail)
                    only = fma(load_some(grad, row + end, tail), value, only)
                dot = only, dot[1], dot[2], dot[3]
            else:
                for c in range(0, end, step):
                    values = load_corners(source, at, c, step)
                    dot = add_dots(load(grad, row + c), values, dot)
                if tail:
                    values = load_corners(source, at, end, tail)
                    dot = add_dots(load_some(grad, row + end, tail), values, dot)
            t00, t01, t10, t11 = totals(dot[0], dot[1], dot[2], dot[3])
            put(dots, p, t00)
            put(dots, PLANE + p, t01)
            put(dots, 2 * PLANE + p, t10)
            put(dots, 3 * PLANE + p, t11)


@apart
def slopes(block, count, dots, factor):
    """From what `dot_points` found to the gradients of share, x and y, in its first planes: of
    offsets times a factor, or where that is None of parts of levels.
    """
    reals, whole = block
    real = reals.dtype.type
    zero, one = real(0), real(1)
    for p in range(filled(count)):
        t00, t01 = dots[p], dots[PLANE + p]
        t10, t11 = dots[2 * PLANE + p], dots[3 * PLANE + p]
        sides, share = whole[SIDES + p], reals[SHARE + p]
        top, bottom = (sides & _TOP) != 0, (sides & _BOTTOM) != 0
        left, right = (sides & _LEFT) != 0, (sides & _RIGHT) != 0
        t00, t01 = select(top & left, t00, zero), select(top & right, t01, zero)
        t10, t11 = select(bottom & left, t10, zero), select(bottom & right, t11, zero)
        lx, ly = reals[X + p], reals[Y + p]
        upper, lower = (one - lx) * t00 + lx * t01, (one - lx) * t10 + lx * t11
        across = down = factor
        if factor is None:
            across, down = real(whole[WIDTH + p]), real(whole[HEIGHT + p])
        dots[p] = (one - ly) * upper + ly * lower
        dots[PLANE + p] = share * ((one - ly) * (t01 - t00) + ly * (t11 - t10)) * across
        dots[2 * PLANE + p] = share * (lower - upper) * down
