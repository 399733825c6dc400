"""Convolution of the "numba" backend, on flat padded planes.

Rows of W pixels lie W + K // 2 apart, so that the zeros right of one row are
also the zeros left of the next, and a window's pixel (u, v) is at a constant
distance u * stride + v from the position of its output. One long loop over
flat positions then serves any plane size; what it computes between the rows is
dropped.

    0 0 0 0 0 0 0 0     K = 3, W = 3: stride 4
    0 x x x 0 x x x
    0 x x x 0 ...

The inner loops are the register tiles of `simd`. Planes, packed weights and
sums lie in scratch.
"""

import math
from functools import cache

from numba import njit, prange

from minicnn.kernels.jit import PARALLEL, SERIAL
from minicnn.kernels.simd import (
    TILE_REGISTERS,
    TILE_VECTORS,
    VECTOR_BYTES,
    correlate_tile,
    lanes,
    product_tile,
)

STRIP = 512  # flat positions that the weight gradient handles at a time: what it reads stays in the nearest cache


# ---- geometry of flat padded planes


@njit(**SERIAL)
def _row_stride(w, k):
    return w + k // 2


def _positions(h: int, w: int, k: int, itemsize: int) -> int:
    """Flat positions from the first output to the last, gaps included, rounded up to whole tiles."""
    tile = TILE_VECTORS * lanes(itemsize)
    exact = (h - 1) * (w + k // 2) + w
    return (exact + tile - 1) // tile * tile


def _plane_size(h: int, w: int, k: int, itemsize: int) -> int:
    """Elements of a padded plane, with the zeros behind it that the last tile and rounded-up taps read."""
    reach = (k - 1) * (w + k // 2) + 2 * k
    return _positions(h, w, k, itemsize) + reach


def _block(filters: int, most: int) -> int:
    """Filters of a tile, at most `most`: the fewest empty rows in the last tile, then the largest tile."""
    sizes = range(min(filters, (most + 1) // 2), min(filters, most) + 1)
    return min(sizes, key=lambda size: (-(-filters // size) * size, -size))


def _tile_filters(filters: int) -> int:
    """Filters of a correlation tile, each with TILE_VECTORS sums."""
    return _block(filters, TILE_REGISTERS // (TILE_VECTORS + 1))


def _tile_taps(k: int, filters: int) -> tuple[int, int]:
    """Window columns and filters of a weight-gradient tile: as many sums as registers."""
    taps = min(k, 9)
    return taps, _block(filters, max(1, TILE_REGISTERS // taps))


def convolution_scratch(kernel: str, **size: int) -> int:
    """Elements of scratch that a convolution kernel needs for the sizes given as shape letters."""
    n, c, o, h, w, k = (size[letter] for letter in "NCOHWK")
    planes = n * (c + o) * _plane_size(h, w, k, 4)
    if kernel == "conv2d_backward_weights":
        taps, block = _tile_taps(k, o)
        return planes + n * block * _plane_size(h, w, k, 4) + -(-o // block) * c * _sums_size(k, taps, block)
    filters = o if kernel == "conv2d_forward" else c
    padded = filters + 9
    return planes + padded * (c + o) * k * k + padded + n * padded * _positions(h, w, k, 4)


def _sums_size(k: int, taps: int, block: int) -> int:
    """Scratch of one weight-gradient task: a vector for every filter, window row and (rounded up) column."""
    return k * -(-k // taps) * block * taps * lanes(4)


def _split(s, *shape):
    """The first elements of scratch in the given shape, and the rest."""
    size = math.prod(shape)
    return s[:size].reshape(shape), s[size:]


@njit(**PARALLEL)
def _pad(planes, x, k, before):
    """Copy x (N, C, H, W) into zeroed flat planes (N, C or more, plane size), `before` rows and columns in."""
    n_images, channels, h, w = x.shape
    stride = _row_stride(w, k)
    for task in prange(n_images * planes.shape[1]):
        n, c = task // planes.shape[1], task % planes.shape[1]
        plane = planes[n, c]
        plane[:] = 0
        if c < channels:
            for i in range(h):
                start = (i + before) * stride + before
                row = x[n, c, i]
                target = plane[start : start + w]
                for j in range(w):
                    target[j] = row[j]


# ---- convolution, eq. (1)


@cache
def _correlate(filters: int):
    """Compile the correlation for tiles of so many filters."""

    @njit(**PARALLEL)
    def correlate(y, planes, packed, b, sums, k, add):
        """y = planes correlated with packed weights + b; one task for each image and block of filters."""
        n_images, real_filters, h, w = y.shape
        channels, plane_size = planes.shape[1:]
        stride, blocks, positions = _row_stride(w, k), packed.shape[0], sums.shape[2]
        tile = TILE_VECTORS * VECTOR_BYTES // planes.itemsize
        x_flat, w_flat, y_flat = planes.reshape(-1), packed.reshape(-1), sums.reshape(-1)
        for task in prange(n_images * blocks):
            n, block = task // blocks, task % blocks
            for p in range(0, positions, tile):
                correlate_tile(
                    filters,
                    y_flat,
                    task * filters * positions + p,
                    positions,
                    x_flat,
                    n * channels * plane_size + p,
                    plane_size,
                    stride,
                    channels,
                    k,
                    w_flat,
                    block * channels * k * k * filters,
                    b,
                    block * filters,
                )
            for f in range(min(filters, real_filters - block * filters)):
                o = block * filters + f
                for i in range(h):
                    row, target = sums[task, f, i * stride : i * stride + w], y[n, o, i]
                    for j in range(w):
                        target[j] = target[j] + row[j] if add else row[j]

    return correlate


@njit(**SERIAL)
def _pack(packed, w, transposed):
    """Weights (O, C, K, K) as [block][channel][u][v][filter], zeros where a block has no such filter.

    `transposed` swaps O and C and turns the window by 180°: a convolution's input gradient is the correlation of
    dy with those weights.
    """
    packed[...] = 0
    filters, channels, k, _ = w.shape
    size = packed.shape[4]
    for o in range(filters):
        for c in range(channels):
            for u in range(k):
                for v in range(k):
                    if transposed:
                        packed[c // size, o, k - 1 - u, k - 1 - v, c % size] = w[o, c, u, v]
                    else:
                        packed[o // size, c, u, v, o % size] = w[o, c, u, v]


def _convolve(y, x, w, b, s, before, transposed, add):
    """What the forward pass and the input gradient share; `b` is None for no bias."""
    n, filters, h, width = y.shape
    c, k, itemsize = x.shape[1], w.shape[2], y.itemsize
    size = _tile_filters(filters)
    blocks = -(-filters // size)
    planes, s = _split(s, n, c, _plane_size(h, width, k, itemsize))
    packed, s = _split(s, blocks, c, k, k, size)
    biases, s = _split(s, blocks * size)
    sums, _ = _split(s, n * blocks, size, _positions(h, width, k, itemsize))
    biases[:] = 0
    if b is not None:
        biases[:filters] = b
    _pad(planes, x, k, before)
    _pack(packed, w, transposed)
    _correlate(size)(y, planes, packed, biases, sums, k, add)


def conv2d_forward(y, x, w, b, s):
    """y = x correlated with w (zero padded, stride 1) + b."""
    _convolve(y, x, w, b, s, (w.shape[2] - 1) // 2, False, False)


def conv2d_backward_data(dx, dy, w, s, add):
    """dx = dy correlated with the weights turned by 180° and transposed."""
    k = w.shape[2]
    _convolve(dx, dy, w, None, s, k // 2, True, add)


@cache
def _weight_gradient(taps: int, size: int):
    """Compile the weight gradient for tiles of so many window columns and filters."""

    @njit(**PARALLEL)
    def weight_gradient(dw, gradients, planes, sums, positions, stride):
        """dw[o, c, u, v] = sum of dy[o] x[c], shifted; one task for each block of filters and channel."""
        filters, channels, k, _ = dw.shape
        n_images, padded_filters, plane_size = gradients.shape
        lane_count = VECTOR_BYTES // dw.itemsize
        groups = (k + taps - 1) // taps
        g_flat, x_flat = gradients.reshape(-1), planes.reshape(-1)
        for task in prange(sums.shape[0]):
            block, c = task // channels, task % channels
            mine = sums[task]
            mine[:] = 0
            for n in range(n_images):
                g_row = (n * padded_filters + block * size) * plane_size
                x_row = (n * channels + c) * plane_size
                for start in range(0, positions, STRIP):
                    count = min(STRIP, positions - start)
                    for u in range(k):
                        for group in range(groups):
                            product_tile(
                                size,
                                taps,
                                mine,
                                (u * groups + group) * size * taps * lane_count,
                                g_flat,
                                g_row + start,
                                plane_size,
                                x_flat,
                                x_row + start + u * stride + group * taps,
                                count,
                            )
            for f in range(min(size, filters - block * size)):
                for u in range(k):
                    for v in range(k):
                        place = ((u * groups + v // taps) * size + f) * taps + v % taps
                        total = dw.dtype.type(0)
                        for lane in range(lane_count):
                            total += mine[place * lane_count + lane]
                        dw[block * size + f, c, u, v] = total

    return weight_gradient


@njit(**PARALLEL)
def _bias_gradient(db, dy):
    n_images, filters, h, w = dy.shape
    for o in prange(filters):
        total = db.dtype.type(0)
        for n in range(n_images):
            for i in range(h):
                row = dy[n, o, i]
                for j in range(w):
                    total += row[j]
        db[o] = total


def conv2d_backward_weights(dw, db, dy, x, s):
    """dw = dy correlated with x over all images; db = dy summed over images and pixels."""
    n, c, h, width = x.shape
    o, k, itemsize = dw.shape[0], dw.shape[2], dw.itemsize
    taps, size = _tile_taps(k, o)
    blocks = -(-o // size)
    plane_size = _plane_size(h, width, k, itemsize)
    planes, s = _split(s, n, c, plane_size)
    gradients, s = _split(s, n, blocks * size, plane_size)
    sums, _ = _split(s, blocks * c, _sums_size(k, taps, size))
    _pad(planes, x, k, (k - 1) // 2)
    _pad(gradients, dy, k, 0)
    positions = _positions(h, width, k, itemsize)
    _weight_gradient(taps, size)(dw, gradients, planes, sums, positions, _row_stride.py_func(width, k))
    _bias_gradient(db, dy)
