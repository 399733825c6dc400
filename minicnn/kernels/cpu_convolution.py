"""Convolution of the "numba" backend: which register tile computes what, and where it finds it.

Inputs lie in planes with a halo of zeros (`planes`), so a window's pixel
(u, v) is at a constant distance u * row + v from the position of its output;
arrays without a halo are first copied into scratch. The inner loops are the
two register tiles of `simd`. There are two ways to lay work on vectors:

positions
    A vector holds consecutive pixels of one channel: as good as possible where
    rows fill vectors.
channels
    A vector holds the channels of one pixel: for small or odd planes.

The larger share of lanes with real work decides (`_Tile`, `_ProductTile`).
Rows of a window that lie in the halo above or below the plane are skipped.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import njit, prange

from minicnn.kernels.jit import SERIAL, VECTOR_REGISTERS, kernel
from minicnn.kernels.planes import halo_of, layout, view
from minicnn.kernels.simd import inner_tile, lane_sum, lanes, outer_tile, row

MOST_SCALARS = 9 if VECTOR_REGISTERS == 32 else 6  # filters of a tile of positions, beside two vectors
MOST_PIXELS = 12 if VECTOR_REGISTERS == 32 else 6  # pixels of a tile of channels, beside two vectors
MOST_VECTORS = 4 if VECTOR_REGISTERS == 32 else 3  # of positions, beside up to three filters
PARTS = 16  # tasks that one call should give at least, so that several threads have work even for one image
STRIP = 1024  # positions that the weight gradient handles at a time: what it reads stays in the nearest cache


# ---- scratch


class _Arena:
    """Hands out parts of scratch one after the other; without memory it only counts."""

    def __init__(self, memory: np.ndarray | None = None):
        self._memory = memory
        self.used = 0

    def take(self, *shape: int):
        start, self.used = self.used, self.used + math.prod(shape)
        if self._memory is not None:
            return self._memory[start : self.used].reshape(shape)


def _with_halo(x: np.ndarray, halo: int, arena: _Arena) -> np.ndarray:
    """x itself if it has that halo of zeros, else a copy in scratch that has."""
    if halo_of(x) >= halo:
        return x
    n, c, h, w = x.shape
    memory = arena.take(n * c * layout(h, w, halo)[2])
    memory.fill(0)
    copy = view(memory, x.shape, halo)
    np.copyto(copy, x)
    return copy


# ---- forward pass and input gradient, eq. (1)


class _Tile(NamedTuple):
    """How to lay a correlation on vectors.

    Attributes
    ----------
    share : float
        Estimated share of the multiply-adds' peak.
    channels : bool
        Vectors hold channels, not positions.
    filters, pixels : int
        Filters that a tile computes at a time, and pixels if vectors hold channels.
    """

    share: float
    channels: bool
    filters: int
    pixels: int


@cache
def _tile_for(filters: int, depth: int, h: int, w: int, itemsize: int) -> _Tile:
    """The faster of both ways for `filters` sums of `depth` products for each pixel of a plane.

    The constants are fits to measured rates: what is lost besides lanes without work.
    """
    lane_count = lanes(itemsize)
    tiles = []
    if cuts := _cuts(w, lane_count):
        size = _block(filters, MOST_SCALARS)
        vectors = sum(
            _SEGMENT_COST[cut.segments] * -(-h * -(-(cut.last - cut.first) // cut.run) // cut.segments) for cut in cuts
        )
        share = 0.96 * h * w / (vectors * lane_count) * filters / (-(-filters // size) * size)
        tiles.append(_Tile(share * depth / (depth + 5), False, size, 0))
    pixels = min(range(1, min(w, MOST_PIXELS) + 1), key=lambda size: (-(-w // size) * size, -size))
    for vectors in (1, 2):
        size = vectors * lane_count
        busy = min(1.0, vectors * pixels / 8)  # fewer sums do not hide the latency of a multiply-add
        share = busy * w / (-(-w // pixels) * pixels) * filters / (-(-filters // size) * size)
        tiles.append(_Tile((0.89 + 0.025 * vectors) * share * depth / (depth + 50), True, size, pixels))
    return max(tiles)


#: What a vector that is loaded in so many segments costs, relative to one that is loaded whole.
_SEGMENT_COST = {1: 1.0, 2: 1.1, 4: 1.25}


class _Cut(NamedTuple):
    """Columns first .. last - 1 of a plane, covered by runs of `run` numbers; `segments` runs fill a vector."""

    first: int
    last: int
    segments: int
    run: int


@cache
def _cuts(w: int, lane_count: int) -> tuple[_Cut, ...]:
    """Columns in whole vectors, and what is left in the cheapest parts of vectors; none for the narrowest planes."""
    whole = w - w % lane_count
    cuts = [_Cut(0, whole, 1, lane_count)] if whole else []
    if rest := w - whole:
        runs = {parts: lane_count // parts for parts in _SEGMENT_COST if 1 <= lane_count // parts <= w}
        if not runs:
            return ()
        best = min(runs, key=lambda parts: -(-rest // runs[parts]) * runs[parts] * _SEGMENT_COST[parts])
        cuts.append(_Cut(whole, w, best, runs[best]))
    return tuple(cuts)


def _block(filters: int, most: int) -> int:
    """Filters of a tile, at most `most`: the fewest empty rows in the last tile, then 8, then the largest tile."""
    sizes = range(min(filters, (most + 1) // 2), min(filters, most) + 1)
    return min(sizes, key=lambda size: (-(-filters // size) * size, size != 8, -size))


@cache
def _runs(h: int, w: int, cut: _Cut, multiple: int, *rows: int) -> tuple[np.ndarray, ...]:
    """Places of the runs of a cut, row after row, once for each distance of `rows`; the last array: their rows.

    The last run of a row begins early where it would not fit; the last run of all is repeated until their number is a
    multiple of `multiple`.
    """
    starts = [min(start, w - cut.run) for start in range(cut.first, cut.last, cut.run)]
    i, j = (array.ravel() for array in np.meshgrid(np.arange(h), starts, indexing="ij"))
    i, j = (np.pad(array, (0, -array.size % multiple), "edge") for array in (i, j))
    return *(i * distance + j for distance in rows), i


@cache
def _spans(h: int, w: int, cut: _Cut, multiple: int, k: int, before: int) -> np.ndarray:
    """For each tile of `multiple` runs the window's first row inside the plane, and the one behind its last."""
    (i,) = _runs(h, w, cut, multiple)
    i = i.reshape(-1, multiple)
    return np.stack([np.maximum(0, before - i[:, -1]), np.minimum(k, h + before - i[:, 0])], 1)


def _correlate(y, x, w, b, s, transposed: bool) -> None:
    """What the forward pass and the input gradient share; `b` is None for no bias."""
    n, filters, h, width = y.shape
    channels, k, itemsize = x.shape[1], w.shape[2], y.itemsize
    before = k // 2 if transposed else (k - 1) // 2
    tile = _tile_for(filters, channels * k * k, h, width, itemsize)
    arena = _Arena(s)
    x = _with_halo(x, k // 2, arena)
    blocks = -(-filters // tile.filters)
    packed = arena.take(blocks, channels, k, k, tile.filters)
    bias = arena.take(blocks * tile.filters)
    bias.fill(0)
    if b is not None:
        bias[:filters] = b
    _pack(packed, w, transposed)
    if tile.channels:
        sums = arena.take(n * blocks * h, tile.pixels * tile.filters)
        zeros = arena.take(tile.pixels)
        zeros.fill(0)
        vectors = tile.filters // lanes(itemsize)
        _correlate_channels(vectors, tile.pixels)(y, x, packed, bias, zeros, sums, _vectors(itemsize), before, filters)
        return
    parts = -(-PARTS // (n * blocks))
    vectors = 2 if tile.filters > 3 else MOST_VECTORS
    for cut in _cuts(width, lanes(itemsize)):
        multiple = vectors * cut.segments
        y_places, x_places, _ = _runs(h, width, cut, multiple, y.strides[2] // itemsize, x.strides[2] // itemsize)
        spans = _spans(h, width, cut, multiple, k, before)
        correlate = _correlate_positions(tile.filters, vectors, cut.segments)
        correlate(y, x, packed, bias, y_places, x_places, spans, before, parts)


@cache
def _vectors(itemsize: int) -> np.ndarray:
    """Places of vectors that follow each other."""
    return np.arange(4) * lanes(itemsize)


def _correlation_scratch(n: int, c: int, filters: int, h: int, w: int, k: int, itemsize: int) -> int:
    """Elements of scratch that `_correlate` takes, from x with C channels to y with so many filters."""
    tile = _tile_for(filters, c * k * k, h, w, itemsize)
    blocks = -(-filters // tile.filters)
    planes = n * c * layout(h, w, k // 2)[2]
    sums = n * blocks * h * tile.pixels * tile.filters + tile.pixels
    return planes + blocks * tile.filters * (c * k * k + 1) + sums


@kernel("packed weights bool")
def _pack(packed, w, transposed):
    """Weights (O, C, K, K) as [block][channel][u][v][filter], zeros where a block has no such filter.

    `transposed` swaps O and C and turns the window by 180°: a convolution's input gradient is the correlation of
    dy with those weights.
    """
    blocks, channels, k, _, size = packed.shape
    filters = w.shape[1] if transposed else w.shape[0]
    for task in prange(blocks * channels):
        block, c = task // channels, task % channels
        for u in range(k):
            for v in range(k):
                for f in range(size):
                    o = block * size + f
                    value = w.dtype.type(0)
                    if o < filters:
                        value = w[c, o, k - 1 - u, k - 1 - v] if transposed else w[o, c, u, v]
                    packed[block, c, u, v, f] = value


@cache
def _correlate_positions(scalars: int, vectors: int, segments: int):
    """The correlation with a tile of so many filters and vectors of positions."""

    @kernel("planes planes packed flat places places table int int")
    def correlate(y, x, packed, bias, y_places, x_places, spans, before, parts):
        """One task for each image, block of filters and part of the plane."""
        n_images, filters = y.shape[:2]
        blocks, channels, k = packed.shape[:3]
        y_image, y_channel = y.strides[0] // y.itemsize, y.strides[1] // y.itemsize
        x_image, x_channel, x_row = x.strides[0] // y.itemsize, x.strides[1] // y.itemsize, x.strides[2] // y.itemsize
        tiles = spans.shape[0]
        for task in prange(n_images * blocks * parts):
            part, block, n = task % parts, task // parts % blocks, task // (parts * blocks)
            for t in range(tiles * part // parts, tiles * (part + 1) // parts):
                top, bottom = spans[t, 0], spans[t, 1]
                outer_tile(
                    vectors, scalars, segments,
                    y, n * y_image + block * scalars * y_channel, y_channel, y_places,
                    x, n * x_image + (top - before) * x_row - before, (x_channel, x_row, 1), x_places,
                    packed, (block * channels * k + top) * k * scalars, (k * k * scalars, k * scalars, scalars),
                    t * vectors * segments, (channels, bottom - top, k),
                    bias, block * scalars, min(scalars, filters - block * scalars),
                )  # fmt: skip

    return correlate


@cache
def _correlate_channels(vectors: int, scalars: int):
    """The correlation with a tile of so many vectors of channels, for so many pixels of a row."""

    @kernel("planes planes packed flat flat flat2 places int int")
    def correlate(y, x, packed, bias, zeros, sums, places, before, filters):
        """One task for each image, block of filters and row; its sums are (pixel, filter)."""
        h, w = y.shape[2:]
        blocks, channels, k, _, size = packed.shape
        x_image, x_channel, x_row = x.strides[0] // y.itemsize, x.strides[1] // y.itemsize, x.strides[2] // y.itemsize
        for task in prange(sums.shape[0]):
            i, block, n = task % h, task // h % blocks, task // (h * blocks)
            top, bottom = max(0, before - i), min(k, h + before - i)
            own = sums[task]
            for first in range(0, w, scalars):
                start = min(first, w - scalars)
                outer_tile(
                    vectors, scalars, 1,
                    own, 0, size, places,
                    packed, (block * channels * k + top) * k * size, (k * k * size, k * size, size), places,
                    x, n * x_image + (i + top - before) * x_row + start - before, (x_channel, x_row, 1),
                    0, (channels, bottom - top, k),
                    zeros, 0, scalars,
                )  # fmt: skip
                for f in range(min(size, filters - block * size)):
                    target, shift = row(y, n, block * size + f, i), bias[block * size + f]
                    for q in range(scalars):
                        target[start + q] = own[q * size + f] + shift

    return correlate


def conv2d_forward(y, x, w, b, s):
    """y = x correlated with w (zero padded, stride 1) + b."""
    _correlate(y, x, w, b, s, transposed=False)


def conv2d_backward_data(dx, dy, w, s, add):
    """dx = dy correlated with the weights turned by 180° and transposed."""
    if not add:
        _correlate(dx, dy, w, None, s, transposed=True)
        return
    arena = _Arena(s)
    fresh = arena.take(*dx.shape)
    _correlate(fresh, dy, w, None, s[arena.used :], transposed=True)
    np.add(dx, fresh, out=dx)


# ---- weight gradient


class _ProductTile(NamedTuple):
    """How to lay a weight gradient on vectors.

    Attributes
    ----------
    share : float
        Estimated share of the multiply-adds' peak.
    channels : bool
        Vectors hold the filters of one pixel of dy (`outer_tile`), not positions (`inner_tile`).
    taps, filters : int
        Columns of the window, and filters, that a tile computes at a time.
    """

    share: float
    channels: bool
    taps: int
    filters: int


@cache
def _product_tile_for(filters: int, c: int, k: int, h: int, w: int, itemsize: int) -> _ProductTile:
    """The faster of both ways; the constants are fits to measured rates."""
    lane_count = lanes(itemsize)
    taps = min(range(1, min(k, 9) + 1), key=lambda taps: _product_cost(k, taps))
    size = _block(filters, _product_filters(taps))
    places, _ = _strips(h, w, k, w + k // 2, itemsize)
    share = 0.92 * h * w / (places.size * lane_count) * filters / (-(-filters // size) * size)
    tiles = [_ProductTile(share, False, taps, size)]
    for vectors in (1, 2):
        size, depth = vectors * lane_count, c * k * k
        share = 0.88 * min(1.0, vectors * taps / 5) * filters / (-(-filters // size) * size) * depth / (depth + 35)
        tiles.append(_ProductTile(share, True, taps, size))
    return max(tiles)


def _product_filters(taps: int) -> int:
    """Most filters beside so many taps: a sum for each pair, a vector of each filter, and one of x."""
    return (VECTOR_REGISTERS - 2) // (taps + 1)


def _product_cost(k: int, taps: int) -> float:
    """Columns computed for each of the window's, and half a multiply-add's time for each vector loaded."""
    filters = _product_filters(taps)
    return -(-k // taps) * taps / k * (1 + (filters + taps) / (filters * taps) / 2)


@cache
def _strips(h: int, w: int, k: int, distance: int, itemsize: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of vectors in planes whose rows are `distance` apart, and which of them each strip visits.

    Where whole vectors fill a row, rows begin with one. Elsewhere vectors run on through the zeros between rows.

    Returns
    -------
    places : (V,) int64
    ranges : (strips K, 2) int64
        First vector, and the one behind the last, of strip t and window row u in row t K + u: vectors of dy that meet
        only zeros of x are left out.
    """
    lane_count = lanes(itemsize)
    if w % lane_count == 0:
        places = np.add.outer(np.arange(h) * distance, np.arange(0, w, lane_count)).ravel()
    else:
        places = np.arange(0, (h - 1) * distance + w, lane_count)
    bounds = np.linspace(0, places.size, 1 + max(1, h * w // STRIP)).astype(int)
    before = (k - 1) // 2
    ranges = []
    for begin, end in zip(bounds, bounds[1:], strict=False):
        for u in range(k):
            top, bottom = max(0, before - u) * distance, min(h, h + before - u) * distance
            first, last = np.searchsorted(places, top - lane_count, side="right"), np.searchsorted(places, bottom)
            ranges.append((max(begin, first), max(begin, first, min(end, last))))
    return places, np.array(ranges)


def conv2d_backward_weights(dw, db, dy, x, s):
    """dw = dy correlated with x over all images; db = dy summed over images and pixels."""
    n, filters, h, w = dy.shape
    channels, k, itemsize = x.shape[1], dw.shape[2], dw.itemsize
    tile = _product_tile_for(filters, channels, k, h, w, itemsize)
    arena = _Arena(s)
    x = _with_halo(x, k // 2, arena)
    blocks, groups = -(-filters // tile.filters), -(-k // tile.taps)
    if tile.channels:
        turned = arena.take(n * h, w, blocks * tile.filters)
        sums = arena.take(blocks * channels, tile.taps * tile.filters)
        zeros = arena.take(tile.taps)
        zeros.fill(0)
        _turn(turned, dy)
        vectors = tile.filters // lanes(itemsize)
        _multiply_channels(vectors, tile.taps)(dw, db, turned, x, zeros, sums, _vectors(itemsize))
        return
    distance = x.strides[2] // itemsize
    if halo_of(dy) < k // 2 or dy.strides[2] != x.strides[2]:  # one table of places serves both
        memory = arena.take(n * filters * layout(h, w, distance - w)[2])
        memory.fill(0)
        own = view(memory, dy.shape, distance - w)
        np.copyto(own, dy)
        dy = own
    places, ranges = _strips(h, w, k, distance, itemsize)
    sums = arena.take(blocks * channels, k * groups * tile.filters * tile.taps * lanes(itemsize))
    images = max(1, STRIP // (h * w))
    _multiply_positions(tile.taps, tile.filters)(dw, db, dy, x, sums, places, ranges, images)


def _weight_gradient_scratch(n: int, c: int, o: int, h: int, w: int, k: int, itemsize: int) -> int:
    """Elements of scratch that `conv2d_backward_weights` takes; planes in a halo may be up to 4 apart."""
    tile = _product_tile_for(o, c, k, h, w, itemsize)
    blocks, groups = -(-o // tile.filters), -(-k // tile.taps)
    if tile.channels:
        own = n * h * w * blocks * tile.filters + blocks * c * tile.taps * tile.filters + tile.taps
    else:
        sums = k * groups * tile.filters * tile.taps * lanes(itemsize)
        own = blocks * c * sums + n * o * layout(h, w, max(4, k // 2))[2]
    return own + n * c * layout(h, w, k // 2)[2]


@cache
def _multiply_positions(taps: int, filters: int):
    """The weight gradient with a tile of so many window columns and filters, over vectors of positions."""

    @kernel("weights flat planes planes flat2 places table int")
    def multiply(dw, db, dy, x, sums, places, ranges, images):
        """dw[o, c, u, v] = sum of dy[o] x[c], shifted; one task for each block of filters and channel.

        `images` at a time, so that what a strip reads of dy is read for all window rows from the nearest cache.
        """
        n_filters, channels, k, _ = dw.shape
        n_images, _, h, w = dy.shape
        before, groups, item = (k - 1) // 2, (k + taps - 1) // taps, dw.itemsize
        g_image, g_channel = dy.strides[0] // item, dy.strides[1] // item
        x_image, x_channel, x_row = x.strides[0] // item, x.strides[1] // item, x.strides[2] // item
        size, strips = sums.shape[1] // (k * groups), ranges.shape[0] // k
        lane_count, n_rows = size // (taps * filters), (h + strips - 1) // strips
        for task in prange(sums.shape[0]):
            block, c = task // channels, task % channels
            o = min(block * filters, n_filters - filters)
            new = block * filters - o  # the last block may begin early: its first filters belong to the one before
            own = sums[task]
            for j in range(own.size):
                own[j] = 0
            if c == 0:
                for f in range(new, filters):
                    db[o + f] = 0
            for n in range(0, n_images, images):
                for strip in range(strips):
                    for u in range(k):
                        for group in range(groups):
                            inner_tile(
                                filters, taps,
                                own, (u * groups + group) * size, min(images, n_images - n),
                                dy, n * g_image + o * g_channel, g_image, g_channel,
                                x, n * x_image + c * x_channel + (u - before) * x_row - before + group * taps, x_image,
                                places, ranges[strip * k + u, 0], ranges[strip * k + u, 1],
                            )  # fmt: skip
                    if c == 0:
                        for image in range(n, min(n + images, n_images)):
                            for f in range(new, filters):
                                for i in range(strip * n_rows, min(h, strip * n_rows + n_rows)):
                                    db[o + f] += _sum(row(dy, image, o + f, i))
            for f in range(new, filters):
                for u in range(k):
                    for v in range(k):
                        place = (u * groups + v // taps) * size
                        dw[o + f, c, u, v] = lane_sum(own, place + (f * taps + v % taps) * lane_count)

    return multiply


@njit(**SERIAL)
def _sum(x):
    total = x.dtype.type(0)
    for j in range(x.size):
        total += x[j]
    return total


@cache
def _multiply_channels(vectors: int, taps: int):
    """The weight gradient with a tile of so many window columns, and vectors of the filters of one pixel."""

    @kernel("weights flat pixels planes flat flat2 places")
    def multiply(dw, db, turned, x, zeros, sums, places):
        """One task for each block of filters and channel; `turned` is dy as (image and row, column, filter)."""
        n_filters, channels, k, _ = dw.shape
        n_images, _, h, w = x.shape
        before, item = (k - 1) // 2, dw.itemsize
        x_image, x_channel, x_row = x.strides[0] // item, x.strides[1] // item, x.strides[2] // item
        padded = turned.shape[2]
        size = sums.shape[1] // taps
        for task in prange(sums.shape[0]):
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
                    outer_tile(
                        vectors, taps, 1,
                        own, 0, size, places,
                        turned, top * w * padded + block * size, (h * w * padded, w * padded, padded), places,
                        x, c * x_channel + (top + u - before) * x_row - before + first, (x_image, x_row, 1),
                        0, (n_images, max(0, bottom - top), w),
                        zeros, 0, taps,
                    )  # fmt: skip
                    for v in range(first, min(k, first + taps)):
                        for f in range(min(size, n_filters - block * size)):
                            dw[block * size + f, c, u, v] = own[(v - first) * size + f]

    return multiply


@kernel("pixels planes")
def _turn(turned, dy):
    """dy (N, O, H, W) as (N H, W, O), zeros behind the last filter."""
    n_images, filters, h, w = dy.shape
    for task in prange(n_images * h):
        n, i = task // h, task % h
        for o in range(turned.shape[2]):
            if o < filters:
                source = row(dy, n, o, i)
                for j in range(w):
                    turned[task, j, o] = source[j]
            else:
                for j in range(w):
                    turned[task, j, o] = 0


def convolution_scratch(kernel: str, **size: int) -> int:
    """Elements of scratch that a convolution kernel needs for the sizes given as shape letters, in any float type."""
    n, c, o, h, w, k = (size[letter] for letter in "NCOHWK")
    wishes = {
        "conv2d_forward": lambda itemsize: _correlation_scratch(n, c, o, h, w, k, itemsize),
        "conv2d_backward_data": lambda itemsize: _correlation_scratch(n, o, c, h, w, k, itemsize) + n * c * h * w,
        "conv2d_backward_weights": lambda itemsize: _weight_gradient_scratch(n, c, o, h, w, k, itemsize),
    }
    return max(wishes[kernel](itemsize) for itemsize in (4, 8))
