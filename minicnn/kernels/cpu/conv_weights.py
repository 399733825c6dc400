"""Weight gradient of convolution in the "numba" backend: products of dy and the shifted x, summed over all pixels.

There are two ways to map the work to vectors, as in `conv_direct`:

positions
    A vector holds consecutive pixels of one channel of dy and one channel of x.
    Each sum is a vector whose lanes are added at the end (`compiled.tiles.inner_tile`).
channels
    A vector holds the output channels of one pixel of dy, which is first copied
    to a channels-last layout (`compiled.tiles.outer_tile`). This suits small planes and
    odd widths.
"""

from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from minicnn.kernels.cpu.kernel import Kernel
from minicnn.kernels.cpu.layout import Arena, halo_of, layout, view, with_halo
from minicnn.kernels.cpu.vectors import VECTOR_REGISTERS, block_of, lanes, vector_places

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
        steps += [_TURN.bind(turned, dy), partial(zeros.fill, 0)]
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


# ---- kernels

_LOOPS = f"{__package__}.compiled.conv_weights"
_TURN = Kernel(f"{_LOOPS}:turn", "pixels planes", lambda turned, _: turned.shape[0])


def _multiply_positions(taps: int, out_channels: int) -> Kernel:
    signature = "weights flat planes planes flat2 places table int"
    return Kernel(f"{_LOOPS}:multiply_positions", signature, lambda *given: given[4].shape[0], (taps, out_channels))


def _multiply_channels(vectors: int, taps: int) -> Kernel:
    signature = "weights flat pixels planes flat flat2 places"
    return Kernel(f"{_LOOPS}:multiply_channels", signature, lambda *given: given[5].shape[0], (vectors, taps))
