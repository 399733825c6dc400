"""Choice of kernel instance, tile and grid for each convolution size, by a cost model.

No device is queried or needed. The choice is made for one medium-sized GPU (`_MULTIPROCESSORS`), so the choice, the
order of summation and every bit of the results are the same on every GPU. The cost is the number of instructions that
the busiest scheduler issues, estimated from the source.
"""

import math
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import product
from typing import NamedTuple

from minicnn.kernels.cuda.sources import POLICY

WARP = 32
SHARED = 48 * 1024  # bytes of shared memory per block that every GPU supports
_MULTIPROCESSORS, _SCHEDULERS = 108, 4
_RESIDENT = 96 * 1024  # bytes of shared memory per multiprocessor, for all of its blocks
_ITEMSIZE = {"float32": 4, "float64": 8}
_C_TYPE = {"float32": "float", "float64": "double"}
_WIDEST = 40  # pixels across a tile
_USEFUL = 0.7  # share of useful multiply-adds; a tile below it is chosen only if there is no better one


class Loop(NamedTuple):
    """Loop of a kernel: mean number of iterations, and the loops inside it, in the order of the source."""

    trips: float
    inner: tuple["Loop", ...] = ()


class Tile(NamedTuple):
    """Configuration of one launch.

    Attributes
    ----------
    file, expression : source file and template instance
    grid : blocks along x, y, z
    block : threads of a block
    shared : bytes of dynamic shared memory
    geometry : the kernel's arguments after the sizes, in order
    loops : the main loop
    useful : estimated share of useful multiply-adds in all that the lanes issue in the main loop
    cost : estimated instructions; see `_cost`
    """

    file: str
    expression: str
    grid: tuple[int, int, int]
    block: int
    shared: int
    geometry: tuple[int, ...]
    loops: Loop
    useful: float
    cost: float


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _whole_vectors(count: int, itemsize: int) -> int:
    return _ceil(count * itemsize, 16) * (16 // itemsize)


def _loads(pixels: int, kernel_size: int, itemsize: int) -> int:
    """Return the loads for a segment of pixels and its kernel-size margin: vector loads if segments are aligned."""
    count = pixels + kernel_size - 1
    return _ceil(count * itemsize, 16) if pixels * itemsize % 16 == 0 else count


def chunk_of(kernel_size: int) -> int:
    """Return the number of channels in one pass of conv.cu's main loop."""
    return POLICY["CHUNK_OF_SMALL_WINDOW" if kernel_size <= POLICY["SMALL_WINDOW"] else "CHUNK_OF_LARGE_WINDOW"]


def filters_of_thread(out_channels: int, most: int = 10) -> int:
    """Return the output channels per thread: many, because they share loads, but few beyond the last channel."""
    if out_channels % 8 == 0 and most >= 8:
        return 8
    return min(range(min(out_channels, most), 0, -1), key=lambda ro: _ceil(out_channels, ro) * (ro + 2))


def _cost(blocks: int, threads: int, shared: int, instructions: float) -> float:
    """Return the cost of a launch: the geometric mean of its costs on a large and on a small GPU.

    On a large GPU it is the number of instructions that the busiest scheduler issues, more if few warps hide little
    latency; on a small GPU, the number of all instructions issued.
    """
    warps = _ceil(threads, WARP)
    load = max(blocks / _MULTIPROCESSORS, 1)
    at_once = min(load, max(1, _RESIDENT // shared), 384 // threads) * warps / _SCHEDULERS
    stalls = 1 + 0.6 / max(at_once, 1) ** 1.5
    busiest = load * max(warps / _SCHEDULERS, 1) * instructions * stalls
    return math.sqrt(busiest * blocks * warps * instructions)


def _best(tiles: Iterable[Tile], kernel_size: int, dtype: str) -> Tile:
    """Return the cheapest tile with `useful` of at least `_USEFUL`, or the most useful tile if none reaches that."""
    known = list(tiles)
    if not known:
        raise ValueError(f"a window of {kernel_size} x {kernel_size} in {dtype} does not fit the GPU's shared memory")
    most = max(tile.useful for tile in known)
    return min((tile for tile in known if tile.useful >= min(_USEFUL, most)), key=lambda tile: tile.cost)


def _rounds(count: int, threads: int) -> float:
    """Return a warp's mean number of iterations in a loop over `count` items, strided by the threads of the block."""
    rounds, rest = divmod(count, threads)
    return rounds + _ceil(rest, WARP) / (threads // WARP)


# ---- conv.cu

# Instructions of a warp, counted in machine code: for a place of the patch and each of its channels, for a filter's
# weights and each of a lane's taps, for a pass, for the loop over the window's rows (unrolled or not); at the end,
# for each sum and for the rest of the block's work.
_PLACE, _CHANNEL = 12, 5
_FILTER, _TAP = 12, 7
_PASS = 60
_ROW_UNROLLED, _ROW = 2, 6
_SUM, _BLOCK = 30, 300


@cache
def correlation_tile(
    images: int,
    channels: int,
    out_channels: int,
    height: int,
    width: int,
    kernel_size: int,
    dtype: str,
    backward: bool = False,
    pooled: bool = False,
) -> Tile:
    """Return the launch for a convolution, or (`backward`) for the gradient of its input.

    Parameters
    ----------
    images, height, width : int
        Sizes N, H and W of the input.
    channels, out_channels : int
        Input and output channels, C and O of the layer.
    kernel_size : int
        Kernel size, pixels.
    dtype : "float32" or "float64"
    pooled : bool
        Also write the maxima of 2 x 2 tiles.

    Raises
    ------
    ValueError
        If the kernel size is too large: no tile fits the shared memory.
    """
    if backward:
        channels, out_channels = out_channels, channels
    sizes = images, channels, out_channels, height, width, kernel_size
    return _best(correlation_tiles(sizes, dtype, backward, pooled), kernel_size, dtype)


def correlation_tiles(sizes: tuple[int, ...], dtype: str, backward: bool, pooled: bool) -> Iterator[Tile]:
    """Yield all valid launches; sizes: images, input channels, output channels, height, width, kernel size."""
    images, _, out_channels, height, width, _ = sizes
    most = filters_of_thread(out_channels)
    for ro, rp in product((4, 8) if most == 8 else (most,), _pixels_of_thread(width, dtype, pooled)):
        in_row = _ceil(width, rp)
        segments = _ceil(in_row, _ceil(in_row * rp, _WIDEST))
        for rows in (2, 4, 6, 8, 10, 12, 16, 20, 24, 32):  # even, for the fused 2 x 2 max pooling
            if rows > height + height % 2:
                break
            whole_plane = rows >= height and segments == in_row
            for tile_images in (1, 2, 3, 4, 6, 8, 12, 16) if whole_plane else (1,):
                for groups in range(1, min(8, _ceil(out_channels, ro)) + 1):
                    used = segments * rows * tile_images * groups
                    if used <= threads_of_correlation(ro, rp) and tile_images <= images:
                        shape = tile_images, rows, segments, groups
                        yield from _correlation(sizes, dtype, backward, ro, rp, shape)


def threads_of_correlation(ro: int, rp: int) -> int:
    """Return conv.cu's limit on the threads of a block: many accumulators leave registers for fewer threads."""
    return POLICY["THREADS_OF_SMALL_TILE" if ro * rp <= POLICY["SMALL_TILE"] else "THREADS_OF_LARGE_TILE"]


def _pixels_of_thread(width: int, dtype: str, pooled: bool) -> tuple[int, ...]:
    """Return the candidate segment lengths of a thread, in pixels; fused 2 x 2 pooling needs an even length."""
    if dtype == "float64":
        return (4,)
    if width % 5 == 0 and width % 4 and not pooled:
        return (5, 10)
    return (4, 8)


def _correlation(sizes, dtype: str, backward: bool, ro: int, rp: int, shape) -> Iterator[Tile]:
    images, channels, out_channels, height, width, k = sizes
    tile_images, rows, segments, groups = shape
    itemsize, chunk, small = _ITEMSIZE[dtype], chunk_of(k), ro * rp <= POLICY["SMALL_TILE"]
    padded = _whole_vectors(ro, itemsize)
    area = (rows + k - 1) * _whole_vectors(segments * rp + k - 1, itemsize)
    block = _ceil(segments * rows * tile_images * groups, WARP) * WARP
    taps = _ceil(chunk * k * k, WARP) * WARP
    staged = itemsize * (chunk * tile_images * area + (taps // k + 1) * groups * k * padded)
    staged += 8 * (tile_images * area + taps)  # the offset tables
    shared = max(staged, itemsize * rp * block)  # reused at the end for the sums of one output channel
    if shared > SHARED:
        return
    tiles = _ceil(width, segments * rp) * _ceil(height, rows) * _ceil(images, tile_images)
    grid = tiles, _ceil(out_channels, ro * groups), 1
    passes = _ceil(channels, chunk)
    loops = Loop(
        passes,
        (
            Loop(_rounds(tile_images * area, block)),
            Loop(min(ro * groups, out_channels) / (block // WARP)),
            Loop(channels / passes, () if small else (Loop(k),)),
        ),
    )
    a_line = k * (ro * rp + padded * itemsize / 16) + _loads(rp, k, itemsize) + (_ROW_UNROLLED if small else _ROW)
    patch, weights, _ = loops.inner
    staging = patch.trips * (_CHANNEL * chunk + _PLACE) + weights.trips * (_ceil(chunk * k * k, WARP) * _TAP + _FILTER)
    issued = passes * (channels / passes * k * a_line + staging + _PASS)
    warps = grid[0] * grid[1] * block // WARP
    useful = images * height * width * out_channels * channels * k * k / (WARP * warps * issued)
    name = f"correlate<{_C_TYPE[dtype]}, {k}, {ro}, {rp}, {'true' if backward else 'false'}>"
    cost = _cost(grid[0] * grid[1], block, shared, issued + _SUM * ro * rp + _BLOCK)
    yield Tile("conv.cu", name, grid, block, shared, shape, loops, useful, cost)


# ---- conv_weights.cu

# Instructions of a warp: for a place of x and each group of channels, for a pixel of dy and each of its filters, for a
# step along a row, for a row, for a tile; at the end, for each sum, for each that `sum_parts` adds, and for the rest.
_PLACE_OF_X, _GROUP = 28, 37
_PIXEL, _GRADIENT = 24, 5
_STEP, _TILE_ROW, _TILE = 6, 14, 100
_WEIGHT, _PART, _WEIGHTS_BLOCK = 4, 8, 200


@cache
def weight_gradient_tile(
    images: int, channels: int, out_channels: int, height: int, width: int, kernel_size: int, dtype: str
) -> Tile:
    """Return the launch for the partial weight gradients of a convolution; see `correlation_tile`.

    The x axis of `grid` is the number of partial bias gradients; `parts_of_weights` is that of the weights.
    """
    sizes = images, channels, out_channels, height, width, kernel_size
    return _best(weight_gradient_tiles(sizes, dtype), kernel_size, dtype)


def threads_of_weight_gradient(ro: int, kernel_size: int) -> int:
    """Return conv_weights.cu's limit on the threads of a block: many accumulators leave registers for fewer threads."""
    small = ro * kernel_size <= POLICY["SMALL_GRADIENT"]
    return POLICY["THREADS_OF_SMALL_GRADIENT" if small else "THREADS_OF_LARGE_GRADIENT"]


def parts_of_weights(tile: Tile) -> int:
    """Return the number of partial weight gradients that a launch leaves in the workspace."""
    return tile.grid[0] * tile.geometry[1]


def weight_gradient_tiles(sizes: tuple[int, ...], dtype: str) -> Iterator[Tile]:
    """Yield all valid launches; sizes: images, input channels, output channels, height, width, kernel size."""
    _, channels, out_channels, height, width, k = sizes
    rs = 5 if width % 5 == 0 and width % 4 else 4
    in_row = _ceil(width, rs)
    columns = _ceil(in_row, _ceil(in_row * rs, _WIDEST)) * rs
    if dtype == "float64":  # each value takes two 32-bit registers
        choices = {filters_of_thread(out_channels, max(1, 48 // k))}
    else:
        more = _ceil(out_channels, _ceil(out_channels, 16))
        choices = {filters_of_thread(out_channels), more} if more * k <= 80 else {filters_of_thread(out_channels)}
    for ro, rows in product(sorted(choices), (2, 4, 8, 10, 16, 20)):
        if rows > height + height % 2:
            continue
        most = threads_of_weight_gradient(ro, k)
        for chunk in range(1, min(channels, max(1, most // k)) + 1):
            if chunk < channels and _ceil(channels, chunk) == _ceil(channels, chunk + 1) and chunk % 4:
                continue  # needs as many passes as chunk + 1
            for parts in (1, 2, 4, 8):
                if parts <= rows and chunk * k * parts <= most:
                    yield from _weight_gradient(sizes, dtype, ro, rs, (chunk, parts, rows, columns))


def _weight_gradient(sizes, dtype: str, ro: int, rs: int, shape) -> Iterator[Tile]:
    images, channels, out_channels, height, width, k = sizes
    chunk, parts, rows, columns = shape
    itemsize, unroll = _ITEMSIZE[dtype], POLICY["UNROLL"]
    padded = _whole_vectors(ro, itemsize)
    area, pixels = (rows + k - 1) * _whole_vectors(columns + k - 1, itemsize), rows * columns
    block = _ceil(chunk * k * parts, WARP) * WARP
    staged = itemsize * (_ceil(chunk, unroll) * unroll * area + pixels * padded) + 4 * (area + pixels)
    shared = max(staged, itemsize * ro * block // WARP)  # reused at the end for each warp's bias sums
    if shared > SHARED:
        return
    tiles = images * _ceil(height, rows) * _ceil(width, columns)
    across = _ceil(channels, chunk) * _ceil(out_channels, ro)
    each = max(1, tiles * across // (2 * _MULTIPROCESSORS))
    grid = _ceil(tiles, each), _ceil(channels, chunk), _ceil(out_channels, ro)
    loops = Loop(
        tiles / grid[0],
        (
            Loop(_rounds(area, block), (Loop(_ceil(min(chunk, channels), unroll)),)),
            Loop(_rounds(pixels, block)),
            Loop(rows / parts, (Loop(columns / rs),)),
        ),
    )
    a_step = rs * (ro * k + padded * itemsize / 16) + _loads(rs, k, itemsize) + _STEP
    staging = _rounds(area, block) * (_PLACE_OF_X + _ceil(chunk, unroll) * _GROUP)
    staging += _rounds(pixels, block) * (_PIXEL + _GRADIENT * ro)
    issued = loops.trips * (rows / parts * (columns / rs * a_step + _TILE_ROW) + staging + _TILE)
    warps = grid[0] * across * block // WARP
    useful = images * height * width * out_channels * channels * k * k / (WARP * warps * issued)
    summing = parts * ro * k * _PART  # this block's share of the work of `sum_parts`
    cost = _cost(grid[0] * across, block, shared, issued + _WEIGHT * ro * k + summing + _WEIGHTS_BLOCK)
    name = f"weight_gradient<{_C_TYPE[dtype]}, {k}, {ro}, {rs}>"
    yield Tile("conv_weights.cu", name, grid, block, shared, (*shape, each), loops, useful, cost)
