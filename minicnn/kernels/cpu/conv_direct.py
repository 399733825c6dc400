"""Forward pass and input gradient of convolution in the "numba" backend, eq. (1).

Both correlate planes with a K x K kernel. The input gradient rotates the
kernel by 180° and swaps input and output channels. The input planes have a halo
of zeros, so the pixel under weight (u, v) is at the constant offset
u * row + v from the output position, where `row` is the distance of two rows.
The inner loop is a register tile, `compiled.tiles.outer_tile`. There are two ways to
map the work to vectors:

positions
    A vector holds consecutive pixels of one channel. This is optimal if rows
    fill whole vectors.
channels
    A vector holds the output channels of one pixel. This suits small planes
    and odd widths.

The way with the larger estimated fraction of the peak multiply-add rate is
chosen. Kernel rows in the halo above or below the plane are skipped.

Functions named `prepare` assign workspace and compute tables once, and return
a function that does the work of each call.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from minicnn.kernels.cpu.kernel import Kernel
from minicnn.kernels.cpu.layout import Arena, layout, with_halo
from minicnn.kernels.cpu.vectors import VECTOR_REGISTERS, block_of, lanes, vector_places

MOST_SCALARS = 9 if VECTOR_REGISTERS == 32 else 6  # output channels of a position tile with two vectors
MOST_PIXELS = 12 if VECTOR_REGISTERS == 32 else 6  # pixels of a channel tile with two vectors
MOST_VECTORS = 4 if VECTOR_REGISTERS == 32 else 3  # vectors of a position tile with up to three output channels
MOST_CLIPPED = 5  # largest kernel size whose columns a tile unrolls
PARTS = 16  # minimum number of tasks of one call, so that several threads have work even for one image


# ---- tile selection


class _Tile(NamedTuple):
    """Mapping of a correlation to vectors.

    Attributes
    ----------
    share : float
        Estimated fraction of the peak multiply-add rate.
    channels : bool
        True if vectors hold channels, False if they hold positions.
    out_channels, pixels : int
        Output channels that a tile computes at a time, and pixels if vectors hold channels (else 0).
    """

    share: float
    channels: bool
    out_channels: int
    pixels: int


@cache
def _tile_for(out_channels: int, channels: int, k: int, h: int, w: int, itemsize: int) -> _Tile:
    """Choose the faster mapping for a correlation from `channels` input to `out_channels` output channels.

    The constants are fits to measured rates; they describe the losses other than idle vector lanes.
    """
    lane_count, depth = lanes(itemsize), channels * k * k
    tiles = []
    if cuts := _cuts(w, lane_count):
        size = block_of(out_channels, MOST_SCALARS)
        vectors = sum(
            _SEGMENT_COST[cut.segments] * -(-h * -(-(cut.last - cut.first) // cut.run) // cut.segments) for cut in cuts
        )
        share = 0.96 * h * w / (vectors * lane_count) * out_channels / (-(-out_channels // size) * size)
        tiles.append(_Tile(share * depth / (depth + 5), False, size, 0))
    pixels = min(range(1, min(w, MOST_PIXELS) + 1), key=lambda size: (-(-w // size) * size, -size))
    for vectors in (1, 2):
        size = vectors * lane_count
        busy = min(1.0, vectors * pixels / 8)  # fewer than 8 independent sums do not hide the latency of a multiply-add
        share = busy * w / (-(-w // pixels) * pixels) * out_channels / (-(-out_channels // size) * size)
        if _is_clipped(k, w, pixels):
            share *= k * w / sum(max(0, w - abs(v - (k - 1) // 2)) for v in range(k))
        tiles.append(_Tile((0.89 + 0.025 * vectors) * share * depth / (depth + 50), True, size, pixels))
    return max(tiles)


def _is_clipped(k: int, w: int, pixels: int) -> bool:
    """Return True if a tile is a whole row and unrolls the kernel columns, to skip those outside the plane."""
    return pixels == w and k <= MOST_CLIPPED


#: Number of segments in which a vector is loaded -> its cost relative to a vector loaded whole.
_SEGMENT_COST = {1: 1.0, 2: 1.1, 4: 1.25}


class _Cut(NamedTuple):
    """Columns first .. last - 1 of a plane, covered by runs of `run` elements; `segments` runs fill a vector."""

    first: int
    last: int
    segments: int
    run: int


@cache
def _cuts(w: int, lane_count: int) -> tuple[_Cut, ...]:
    """Cut columns into whole vectors and a rest in the cheapest segments; return () if w is below the shortest run."""
    whole = w - w % lane_count
    cuts = [_Cut(0, whole, 1, lane_count)] if whole else []
    if rest := w - whole:
        runs = {parts: lane_count // parts for parts in _SEGMENT_COST if 1 <= lane_count // parts <= w}
        if not runs:
            return ()
        best = min(runs, key=lambda parts: -(-rest // runs[parts]) * runs[parts] * _SEGMENT_COST[parts])
        cuts.append(_Cut(whole, w, best, runs[best]))
    return tuple(cuts)


# ---- tables


@cache
def _runs(h: int, w: int, cut: _Cut, multiple: int, *rows: int) -> tuple[np.ndarray, ...]:
    """Return the element offsets of a cut's runs, row by row, one array per row distance in `rows`; then their rows.

    The last run of a row begins earlier if it would not fit. The very last run is repeated until the number of runs is
    a multiple of `multiple`.
    """
    starts = [min(start, w - cut.run) for start in range(cut.first, cut.last, cut.run)]
    i, j = (array.ravel() for array in np.meshgrid(np.arange(h), starts, indexing="ij"))
    i, j = (np.pad(array, (0, -array.size % multiple), "edge") for array in (i, j))
    return *(i * distance + j for distance in rows), i


@cache
def _spans(h: int, w: int, cut: _Cut, multiple: int, k: int, before: int) -> np.ndarray:
    """Return, for each tile of `multiple` runs, the first kernel row inside the plane and the end (last + 1)."""
    (i,) = _runs(h, w, cut, multiple)
    i = i.reshape(-1, multiple)
    return np.stack([np.maximum(0, before - i[:, -1]), np.minimum(k, h + before - i[:, 0])], 1)


# ---- prepared calls


def prepare_correlation(y, x, w, b, arena: Arena, transposed: bool) -> list[Callable]:
    """Return the steps of y = x correlated with w + b, to be called in order.

    Parameters
    ----------
    y, x : (N, O, H, W) and (N, C, H, W) arrays
    w : (O, C, K, K) array
        `transposed`: (C, O, K, K), rotated by 180° first, for the input gradient.
    b : (O,) array, or None for no bias
    """
    n, out_channels, h, width = y.shape
    channels, k, itemsize = x.shape[1], w.shape[2], y.itemsize
    before = k // 2 if transposed else (k - 1) // 2
    tile = _tile_for(out_channels, channels, k, h, width, itemsize)
    blocks = -(-out_channels // tile.out_channels)
    x, steps = with_halo(x, k // 2, arena)
    packed = arena.take(blocks, channels, k, k, tile.out_channels)
    steps.append(_PACK.bind(packed, w, transposed))
    bias = arena.take(blocks * tile.out_channels)
    steps.append(partial(bias.fill, 0))
    if b is not None:
        steps.append(partial(np.copyto, bias[:out_channels], b))
    if tile.channels:
        sums = arena.take(n * blocks * h, tile.pixels * tile.out_channels)
        zeros = arena.take(tile.pixels)
        steps.append(partial(zeros.fill, 0))
        known = (k, before) if _is_clipped(k, width, tile.pixels) else (0, 0)
        correlate = _correlate_channels(tile.out_channels // lanes(itemsize), tile.pixels, *known)
        steps.append(correlate.bind(y, x, packed, bias, zeros, sums, vector_places(itemsize), before, out_channels))
        return steps
    parts = -(-PARTS // (n * blocks))
    vectors = 2 if tile.out_channels > 3 else MOST_VECTORS
    for cut in _cuts(width, lanes(itemsize)):
        multiple = vectors * cut.segments
        y_places, x_places, _ = _runs(h, width, cut, multiple, y.strides[2] // itemsize, x.strides[2] // itemsize)
        spans = _spans(h, width, cut, multiple, k, before)
        correlate = _correlate_positions(tile.out_channels, vectors, cut.segments)
        steps.append(correlate.bind(y, x, packed, bias, y_places, x_places, spans, before, parts))
    return steps


def correlation_workspace(n: int, c: int, out_channels: int, h: int, w: int, k: int, itemsize: int) -> int:
    """Return the number of workspace elements of a correlation.

    Parameters
    ----------
    n, c, out_channels, h, w, k, itemsize : int
        Batch size, channels of x, channels of y, rows, columns, kernel size, and bytes of an element.
    """
    tile = _tile_for(out_channels, c, k, h, w, itemsize)
    blocks = -(-out_channels // tile.out_channels)
    planes = n * c * layout(h, w, k // 2)[2]
    sums = n * blocks * h * tile.pixels * tile.out_channels + tile.pixels
    return planes + blocks * tile.out_channels * (c * k * k + 1) + sums


# ---- kernels

_LOOPS = f"{__package__}.compiled.conv_direct"
_PACK = Kernel(f"{_LOOPS}:pack", "packed weights bool")


def _parts_of_planes(y, x, packed, *rest) -> int:
    return y.shape[0] * packed.shape[0] * rest[-1]


def _correlate_positions(scalars: int, vectors: int, segments: int) -> Kernel:
    signature = "planes planes packed flat places places table int int"
    return Kernel(f"{_LOOPS}:correlate_positions", signature, _parts_of_planes, (scalars, vectors, segments))


def _correlate_channels(vectors: int, scalars: int, kernel_size: int, left: int) -> Kernel:
    signature = "planes planes packed flat flat flat2 places int int"
    constants = vectors, scalars, kernel_size, left
    return Kernel(f"{_LOOPS}:correlate_channels", signature, lambda *given: given[5].shape[0], constants)
