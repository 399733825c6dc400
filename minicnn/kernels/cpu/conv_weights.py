"""Weight gradient of convolution in the "numba" backend: products of dy and the shifted x, summed over all pixels.

There are two ways to map the work to vectors, as in `conv_direct`:

positions
    A vector holds consecutive pixels of one channel of dy and one channel of x.
    Each sum is a vector whose lanes are added at the end (`tiles.inner_tile`).
channels
    A vector holds the output channels of one pixel of dy, which is first copied
    to a channels-last layout (`tiles.outer_tile`). This suits small planes and
    odd widths.
"""

from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numba import njit

from minicnn.kernels.cpu.compile import SERIAL, VECTOR_REGISTERS, kernel
from minicnn.kernels.cpu.layout import Arena, halo_of, layout, view, with_halo
from minicnn.kernels.cpu.tiles import block_of, inner_tile, lane_sum, lanes, outer_tile, pointer, row, vector_places

STRIP = 1024  # positions processed at a time, few enough that their data stay in the L1 cache


# ---- tile selection


class _Tile(NamedTuple):
    """Mapping of a weight gradient to vectors.

    Attributes
    ----------
    share : float
        Estimated fraction of the peak multiply-add rate.
    channels : bool
        True if vectors hold the output channels of one pixel of dy (`outer_tile`), False if positions (`inner_tile`).
    taps, out_channels : int
        Kernel columns, and output channels, that a tile computes at a time.
    """

    share: float
    channels: bool
    taps: int
    out_channels: int


@cache
def _tile_for(out_channels: int, c: int, k: int, h: int, w: int, itemsize: int) -> _Tile:
    """Choose the faster mapping; the constants are fits to measured rates."""
    lane_count = lanes(itemsize)
    taps = min(range(1, min(k, 9) + 1), key=lambda taps: _cost_of(k, taps))
    size = block_of(out_channels, _most_filters(taps))
    places, _ = _strips(h, w, k, w + k // 2, itemsize)
    share = 0.92 * h * w / (places.size * lane_count) * out_channels / (-(-out_channels // size) * size)
    tiles = [_Tile(share, False, taps, size)]
    for vectors in (1, 2):
        size, depth = vectors * lane_count, c * k * k
        share = (
            0.88
            * min(1.0, vectors * taps / 5)
            * out_channels
            / (-(-out_channels // size) * size)
            * depth
            / (depth + 35)
        )
        tiles.append(_Tile(share, True, taps, size))
    return max(tiles)


def _most_filters(taps: int) -> int:
    """Return the most output channels for which registers suffice: a sum per channel and tap, one dy each, one x."""
    return (VECTOR_REGISTERS - 2) // (taps + 1)


def _cost_of(k: int, taps: int) -> float:
    """Return the relative cost of `taps`: computed per needed kernel columns, with a load as half a multiply-add."""
    out_channels = _most_filters(taps)
    return -(-k // taps) * taps / k * (1 + (out_channels + taps) / (out_channels * taps) / 2)


@cache
def _strips(h: int, w: int, k: int, distance: int, itemsize: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the offsets of vectors in planes whose rows are `distance` apart, and the vectors of each strip.

    If whole vectors fill a row, each row begins with one. Otherwise vectors continue through the zeros between rows.

    Returns
    -------
    places : (V,) int64
        Element offsets of the vectors.
    ranges : (strips K, 2) int64
        First vector and end (last + 1) of strip t and kernel row u in row t K + u. Vectors of dy that meet only zeros
        of x are left out.
    """
    lane_count = lanes(itemsize)
    if w % lane_count == 0:
        places = np.add.outer(np.arange(h) * distance, np.arange(0, w, lane_count)).ravel()
    else:
        places = np.arange(0, (h - 1) * distance + w, lane_count)
    bounds = np.linspace(0, places.size, 1 + max(1, h * w // STRIP)).astype(int)
    before = (k - 1) // 2
    ranges = []
    for begin, end in pairwise(bounds):
        for u in range(k):
            top, bottom = max(0, before - u) * distance, min(h, h + before - u) * distance
            first, last = np.searchsorted(places, top - lane_count, side="right"), np.searchsorted(places, bottom)
            ranges.append((max(begin, first), max(begin, first, min(end, last))))
    return places, np.array(ranges)


# ---- prepared call


def prepare_weight_gradient(dw, db, dy, x, arena: Arena) -> list[Callable]:
    """Return the steps of dw = dy correlated with x, db = sum of dy over images and pixels, to be called in order."""
    n, out_channels, h, w = dy.shape
    channels, k, itemsize = x.shape[1], dw.shape[2], dw.itemsize
    tile = _tile_for(out_channels, channels, k, h, w, itemsize)
    x, steps = with_halo(x, k // 2, arena)
    blocks, groups = -(-out_channels // tile.out_channels), -(-k // tile.taps)
    if tile.channels:
        turned = arena.take(n * h, w, blocks * tile.out_channels)
        sums = arena.take(blocks * channels, tile.taps * tile.out_channels)
        zeros = arena.take(tile.taps)
        multiply = _multiply_channels(tile.out_channels // lanes(itemsize), tile.taps)
        steps += [_turn.bind(turned, dy), partial(zeros.fill, 0)]
        steps.append(multiply.bind(dw, db, turned, x, zeros, sums, vector_places(itemsize)))
        return steps
    distance = x.strides[2] // itemsize
    if halo_of(dy) < k // 2 or dy.strides[2] != x.strides[2]:  # dy and x share one table of offsets
        memory = arena.take(n * out_channels * layout(h, w, distance - w)[2])
        own = view(memory, dy.shape, distance - w)
        steps += [partial(memory.fill, 0), partial(np.copyto, own, dy)]
        dy = own
    places, ranges = _strips(h, w, k, distance, itemsize)
    sums = arena.take(blocks * channels, k * groups * tile.out_channels * tile.taps * lanes(itemsize))
    multiply = _multiply_positions(tile.taps, tile.out_channels)
    steps.append(multiply.bind(dw, db, dy, x, sums, places, ranges, max(1, STRIP // (h * w))))
    return steps


def weight_gradient_workspace(n: int, c: int, o: int, h: int, w: int, k: int, itemsize: int) -> int:
    """Return the number of workspace elements of a weight gradient.

    Parameters
    ----------
    n, c, o, h, w, k, itemsize : int
        Batch size, input and output channels, rows, columns, kernel size, and bytes of an element. The result allows
        for halos of up to 4 zeros between rows.
    """
    tile = _tile_for(o, c, k, h, w, itemsize)
    blocks, groups = -(-o // tile.out_channels), -(-k // tile.taps)
    if tile.channels:
        own = n * h * w * blocks * tile.out_channels + blocks * c * tile.taps * tile.out_channels + tile.taps
    else:
        sums = k * groups * tile.out_channels * tile.taps * lanes(itemsize)
        own = blocks * c * sums + n * o * layout(h, w, max(4, k // 2))[2]
    return own + n * c * layout(h, w, k // 2)[2]


# ---- compiled kernels


@cache
def _multiply_positions(taps: int, out_channels: int):
    """Make the kernel for tiles of `taps` kernel columns and `out_channels` outputs, with vectors of positions."""

    @kernel("weights flat planes planes flat2 places table int", lambda *given: given[4].shape[0])
    def multiply(tasks, dw, db, dy, x, sums, places, ranges, images):
        """dw[o, c, u, v] = sum of dy[o] x[c] shifted by (u, v); one task per block of output channels and channel c.

        `images` images are processed at a time, so that a strip of dy stays in the L1 cache for all kernel rows.
        """
        n_filters, channels, k, _ = dw.shape
        n_images, _, h, _ = dy.shape
        before, groups, item = (k - 1) // 2, (k + taps - 1) // taps, dw.itemsize
        g_image, g_channel = dy.strides[0] // item, dy.strides[1] // item
        x_image, x_channel, x_row = x.strides[0] // item, x.strides[1] // item, x.strides[2] // item
        size, strips = sums.shape[1] // (k * groups), ranges.shape[0] // k
        lane_count, n_rows = size // (taps * out_channels), (h + strips - 1) // strips
        for task in range(tasks[0], tasks[1]):
            block, c = task // channels, task % channels
            o = min(block * out_channels, n_filters - out_channels)
            # the last block may begin early: it repeats `new` channels of the one before
            new = block * out_channels - o
            own = sums[task]
            for j in range(own.size):
                own[j] = 0
            if c == 0:
                for f in range(new, out_channels):
                    db[o + f] = 0
            for n in range(0, n_images, images):
                for strip in range(strips):
                    for u in range(k):
                        for group in range(groups):
                            shift = (u - before) * x_row - before + group * taps
                            begin, end = ranges[strip * k + u, 0], ranges[strip * k + u, 1]
                            inner_tile(
                                out_channels,
                                taps,
                                pointer(own, (u * groups + group) * size),
                                (pointer(dy, n * g_image + o * g_channel), g_image, g_channel),
                                (pointer(x, n * x_image + c * x_channel + shift), x_image),
                                min(images, n_images - n),
                                pointer(places, begin),
                                end - begin,
                            )
                    if c == 0:
                        for image in range(n, min(n + images, n_images)):
                            for f in range(new, out_channels):
                                for i in range(strip * n_rows, min(h, strip * n_rows + n_rows)):
                                    db[o + f] += _sum(row(dy, image, o + f, i))
            for f in range(new, out_channels):
                for u in range(k):
                    for v in range(k):
                        place = (u * groups + v // taps) * size
                        dw[o + f, c, u, v] = lane_sum(pointer(own, place + (f * taps + v % taps) * lane_count))

    return multiply


@njit(**SERIAL)
def _sum(x):
    total = x.dtype.type(0)
    for j in range(x.size):
        total += x[j]
    return total


@cache
def _multiply_channels(vectors: int, taps: int):
    """Make the kernel for tiles of `taps` kernel columns and `vectors` vectors of the output channels of a pixel."""

    @kernel("weights flat pixels planes flat flat2 places", lambda *given: given[5].shape[0])
    def multiply(tasks, dw, db, turned, x, zeros, sums, places):
        """Compute dw and db, one task per block of output channels and channel c; `turned` is dy as from `_turn`."""
        n_filters, channels, k, _ = dw.shape
        n_images, _, h, w = x.shape
        before, item = (k - 1) // 2, dw.itemsize
        x_image, x_channel, x_row = x.strides[0] // item, x.strides[1] // item, x.strides[2] // item
        padded = turned.shape[2]
        size = sums.shape[1] // taps
        for task in range(tasks[0], tasks[1]):
            block, c = task // channels, task % channels
            own = sums[task]
            if c == 0:
                for f in range(size):
                    own[f] = 0
                for line in range(turned.shape[0]):
                    for j in range(w):
                        for f in range(size):
                            own[f] += turned[line, j, block * size + f]
                for f in range(min(size, n_filters - block * size)):
                    db[block * size + f] = own[f]
            for u in range(k):
                top, bottom = max(0, before - u), min(h, h + before - u)
                for first in range(0, k, taps):
                    gradient = pointer(turned, top * w * padded + block * size)
                    source = pointer(x, c * x_channel + (top + u - before) * x_row - before + first)
                    outer_tile(
                        vectors, taps, 1, 0, 0,
                        (pointer(own, 0), size, pointer(places, 0), pointer(zeros, 0), taps),
                        (gradient, (h * w * padded, w * padded, padded), pointer(places, 0)),
                        (source, (x_image, x_row, 1)),
                        (n_images, max(0, bottom - top), w),
                    )  # fmt: skip
                    for v in range(first, min(k, first + taps)):
                        for f in range(min(size, n_filters - block * size)):
                            dw[block * size + f, c, u, v] = own[(v - first) * size + f]

    return multiply


@kernel("pixels planes", lambda turned, _: turned.shape[0])
def _turn(tasks, turned, dy):
    """Copy dy (N, O, H, W) to (N H, W, O), with zeros after the last output channel."""
    _, out_channels, h, w = dy.shape
    for task in range(tasks[0], tasks[1]):
        n, i = task // h, task % h
        for o in range(turned.shape[2]):
            if o < out_channels:
                source = row(dy, n, o, i)
                for j in range(w):
                    turned[task, j, o] = source[j]
            else:
                for j in range(w):
                    turned[task, j, o] = 0
