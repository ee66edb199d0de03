"""Weighted sums over patches of planes as they lie, a strip of pixels at a time.

What `patches` sums up of frames that were laid out with their channels last, to the same bytes:
here the pixels of a row of a patch are gathered in a strip, and what a bin has summed up so far
waits in memory. A pixel takes longer, but none is touched that no bin reads, a patch may be as
large as it likes, and planes may have any strides and 16 bits.
"""

from __future__ import annotations

import numpy as np

from cudeform.cpu.language.bare import bare, cleared, give_back, seen_as
from cudeform.cpu.language.compiler import inlined, inner, kernel, unrolled
from cudeform.cpu.language.halves import element
from cudeform.cpu.language.simd import fma, load, splat, store, total, zeros
from cudeform.cpu.regions.blocking import unpacked
from cudeform.cpu.regions.patches import ELSEWHERE, patch_of, put_found, vectors_of
from cudeform.cpu.regions.results import write_results
from cudeform.cpu.regions.slices import measure_regions, visit_slices

_STRIP = 64  # pixels


@inlined
def in_planes(work, planes, t, c, s):
    """`find` of `slices` for planes as they lie."""
    job, (starts, view, _) = work.job, planes
    first = s * job.slice_channels
    at = starts[work.regions.place[t]] + c * view.of_class + first * view.channel
    return at, view.group, min(job.slice_channels, job.channels - first)


@kernel
def pool(given, starts, view, source, output, split, first, last):
    """As `average_slices`."""
    planes = bare(starts, 0), view, bare(source, 0)
    strip = cleared((_STRIP + 1) * unpacked(given).job.pitch, output.dtype)
    results = bare(output, 0), bare(strip, 0)
    visit_slices(given, planes, in_planes, results, (split, first, last), _blend)
    give_back(strip)


@kernel
def choose(given, starts, view, source, output, argmax, split, first, last):
    """As `choose_slices`."""
    planes, job = (bare(starts, 0), view, bare(source, 0)), unpacked(given).job
    pixels = cleared(job.tile * job.pitch, np.int32)
    results = bare(output, 0), bare(argmax, 0), bare(pixels, 0)
    visit_slices(given, planes, in_planes, results, (split, first, last), _largest)
    give_back(pixels)


@inlined
def _blend(job, tile, place, planes, values, results):
    strip, subtotals = results[1], bare(results[1], _STRIP * job.pitch)
    blend_bins(job, tile, place[0], planes, place[1], strip, subtotals, values)


@inlined
def _largest(job, tile, place, planes, values, results):
    count, channels, s, to = place
    _largest_of_bins(job, tile, count, planes, channels, values, results[2])
    pixels, argmax = seen_as(results[2], values), seen_as(results[1], values)
    write_results(job, tile, count, s, pixels, argmax, to)


@kernel
def measure(given, starts, view, source, grad, grad_offset, grad_mask, first, last):
    """As `measure_slices`."""
    planes, sums = (bare(starts, 0), view, bare(source, 0)), (grad_offset, grad_mask)
    room = cleared((_STRIP + 5) * unpacked(given).job.pitch, grad.dtype)
    measure_regions(given, planes, in_planes, grad, sums, room, (first, last), _measure)
    give_back(room)


@inlined
def _measure(job, tile, place, planes, strip, values, found):
    summed = bare(strip, _STRIP * job.pitch)
    measure_bins(job, tile, place[0], planes, place[1], strip, summed, values, found)


@inlined
def value_at(planes, at, y, x):
    """A pixel of the plane that begins at `at`."""
    _, view, source = planes
    return element(source, at + y * view.row + x * view.column)


@inlined
def _gather(planes, start, channels, y, pixel, span, strip, pitch, whole):
    """Put the pixels of some entries of a row into a strip: `whole` channels, 0 what is none."""
    for k in range(min(channels, whole)):
        plane = start + k * planes[1].channel
        for b in range(span[0], span[1]):
            strip[(b - span[0]) * pitch + k] = value_at(planes, plane, y, pixel[b])
    for k in range(channels, whole):
        for b in range(span[1] - span[0]):
            strip[b * pitch + k] = 0


@unrolled
def blend_bins(job, tile, count, planes, channels, strip, subtotals, target):
    """As `blend_tile`."""
    pixel, weight = tile.pixel, tile.weight
    pitch = job.pitch
    step, whole, tail = vectors_of(pitch, strip)
    zero = zeros(strip)
    for n in range(count):
        at, start = n * pitch, tile.start[n]
        if start == ELSEWHERE:
            continue
        y0, y1, x0, x1 = patch_of(tile, n)
        for c in range(0, whole, step):
            store(target, at + c, zero)
        for a in range(y0, y1 if whole else y0):
            for c in range(0, whole, step):
                store(subtotals, c, zero)
            for b0 in range(x0, x1, _STRIP):
                b1 = min(b0 + _STRIP, x1)
                span = b0, b1
                _gather(planes, start, channels, pixel[a], pixel, span, strip, pitch, whole)
                for c in range(0, whole, step):
                    subtotal = load(subtotals, c)
                    for b in range(b0, b1):
                        w = splat(strip, weight[2 * b])
                        subtotal = fma(w, load(strip, (b - b0) * pitch + c), subtotal)
                    store(subtotals, c, subtotal)
            w = splat(strip, weight[2 * a])
            for c in range(0, whole, step):
                store(target, at + c, fma(w, load(subtotals, c), load(target, at + c)))
        s = splat(strip, tile.share[n] * tile.factor[n])
        for c in range(0, whole, step):
            store(target, at + c, fma(s, load(target, at + c), zero))
        for c in range(whole, min(channels, whole + tail)):
            plane, value = start + c * planes[1].channel, strip.dtype.type(0)
            for a in range(y0, y1):
                subtotal = strip.dtype.type(0)
                for b in range(x0, x1):
                    subtotal += weight[2 * b] * value_at(planes, plane, pixel[a], pixel[b])
                value += weight[2 * a] * subtotal
            target[at + c] = tile.share[n] * tile.factor[n] * value


@inner
def _largest_of_bins(job, tile, count, planes, channels, best, chosen):
    """As `slices` find them."""
    pixel = tile.pixel
    for n in range(count):
        at, start = n * job.pitch, tile.start[n]
        y0, y1, x0, x1 = patch_of(tile, n)
        for k in range(channels):
            best[at + k], chosen[at + k] = 0, -1
            if start == ELSEWHERE or y0 == y1 or x0 == x1:
                continue
            plane = start + k * planes[1].channel
            largest, y, x = value_at(planes, plane, pixel[y0], pixel[x0]), pixel[y0], pixel[x0]
            for a in range(y0, y1):
                for b in range(x0, x1):
                    value = value_at(planes, plane, pixel[a], pixel[b])
                    if value > largest or (value != value and largest == largest):
                        largest, y, x = value, pixel[a], pixel[b]
            best[at + k], chosen[at + k] = largest, y * job.width + x


@inlined
def _add_plane(planes, start, tile, patch, g, sums):
    """Add what one channel with gradient `g`, whose plane begins at `start`, says of a bin."""
    pixel, weight = tile.pixel, tile.weight
    y0, y1, x0, x1 = patch
    value, down, across = sums
    for a in range(y0, y1):
        subtotal, slope = weight.dtype.type(0), weight.dtype.type(0)
        for b in range(x0, x1):
            v = value_at(planes, start, pixel[a], pixel[b])
            subtotal += weight[2 * b] * v
            slope += weight[2 * b + 1] * v
        value += g * weight[2 * a] * subtotal
        down += g * weight[2 * a + 1] * subtotal
        across += g * weight[2 * a] * slope
    return value, down, across


@unrolled
def measure_bins(job, tile, count, planes, channels, strip, sums, grad, found):
    """As `measure_tile`."""
    pixel, weight = tile.pixel, tile.weight
    pitch = job.pitch
    step, whole, tail = vectors_of(pitch, strip)
    value_of, down_of, across_of, subtotal_of, slope_of = 0, pitch, 2 * pitch, 3 * pitch, 4 * pitch
    zero = strip.dtype.type(0)
    for n in range(count):
        at, start = n * pitch, tile.start[n]
        put_found(found, n, zero, zero, zero)
        if start == ELSEWHERE:
            continue
        y0, y1, x0, x1 = patch_of(tile, n)
        for c in range(3 * pitch):
            sums[c] = zero
        for a in range(y0, y1 if whole else y0):
            for c in range(3 * pitch, 5 * pitch):
                sums[c] = zero
            for b0 in range(x0, x1, _STRIP):
                b1 = min(b0 + _STRIP, x1)
                span = b0, b1
                _gather(planes, start, channels, pixel[a], pixel, span, strip, pitch, whole)
                for c in range(0, whole, step):
                    subtotal, slope = load(sums, subtotal_of + c), load(sums, slope_of + c)
                    for b in range(b0, b1):
                        v = load(strip, (b - b0) * pitch + c)
                        subtotal = fma(splat(strip, weight[2 * b]), v, subtotal)
                        slope = fma(splat(strip, weight[2 * b + 1]), v, slope)
                    store(sums, subtotal_of + c, subtotal)
                    store(sums, slope_of + c, slope)
            w, dw = splat(strip, weight[2 * a]), splat(strip, weight[2 * a + 1])
            for c in range(0, whole, step):
                subtotal, slope = load(sums, subtotal_of + c), load(sums, slope_of + c)
                store(sums, value_of + c, fma(w, subtotal, load(sums, value_of + c)))
                store(sums, across_of + c, fma(w, slope, load(sums, across_of + c)))
                store(sums, down_of + c, fma(dw, subtotal, load(sums, down_of + c)))
        values, downs, acrosses = zeros(strip), zeros(strip), zeros(strip)
        for c in range(0, whole, step):
            g = load(grad, at + c)
            values = fma(g, load(sums, value_of + c), values)
            downs = fma(g, load(sums, down_of + c), downs)
            acrosses = fma(g, load(sums, across_of + c), acrosses)
        measured = total(values), total(downs), total(acrosses)
        for c in range(whole, min(channels, whole + tail)):
            plane = start + c * planes[1].channel
            measured = _add_plane(planes, plane, tile, (y0, y1, x0, x1), grad[at + c], measured)
        value, down, across = measured
        share = tile.share[n]
        put_found(found, n, share * value, share * down, share * across)
