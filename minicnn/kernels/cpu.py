"""Backend "numba": plain loops that LLVM turns into vector code, one prange over planes or tiles.

Convolution works on *flat padded planes*: rows of W pixels lie W + K // 2
apart, so that the zeros right of one row are also the zeros left of the next,
and a window's pixel (u, v) is at a constant distance u * stride + v from the
position of its output. One long loop over flat positions then serves any
plane size; what it computes between the rows is dropped.

    0 0 0 0 0 0 0 0     K = 3, W = 3: stride 4
    0 x x x 0 x x x
    0 x x x 0 ...

Shapes and roles: `minicnn.kernels`. float32 and float64 run through the same code.
"""

import ctypes
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numba
import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import config
from numba.extending import intrinsic

from minicnn.kernels.simd import (
    TILE_REGISTERS,
    TILE_VECTORS,
    VECTOR_BYTES,
    correlate_tile,
    lanes,
    product_tile,
)

NAME = "numba"

empty = np.empty
zeros = np.zeros
download = np.asarray

#: "contract" lets LLVM fuse a * b + c, "reassoc" vectorise sums; NaN and infinities keep their meaning.
_FAST = {"contract", "reassoc", "nsz", "arcp"}
_SERIAL = {"fastmath": _FAST, "error_model": "numpy", "cache": True, "nogil": True}
_PARALLEL = {**_SERIAL, "parallel": True}

STRIP = 512  # flat positions that the weight gradient handles at a time: what it reads stays in the nearest cache


def _load_tbb() -> None:
    """Make the tbb package's library visible to Numba, which then picks it as its threading layer.

    pip puts it where the dynamic linker does not look. Without it Numba takes OpenMP, whose waiting threads spin:
    beside a busy process each parallel loop then costs a time slice of the scheduler.
    """
    with suppress(OSError):
        ctypes.CDLL(str(Path(sys.prefix, "lib", "libtbb.so.12")), mode=ctypes.RTLD_GLOBAL)


_load_tbb()


def upload(destination: np.ndarray, source: np.ndarray) -> None:
    """Copy a NumPy array of the same shape into `destination`, converting the dtype."""
    np.copyto(destination, source, casting="unsafe")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Use `count` threads (at most those that Numba started with) inside a ``with`` block."""
    before = numba.get_num_threads()
    most = config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue]
    numba.set_num_threads(min(count, most))
    try:
        yield
    finally:
        numba.set_num_threads(before)


# ---- geometry of flat padded planes


@njit(**_SERIAL)
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


def _tile_filters(filters: int) -> int:
    """Filters of a tile: the fewest empty rows in the last one, then the largest tile."""
    most = TILE_REGISTERS // (TILE_VECTORS + 1)
    sizes = range(min(filters, most, 4), min(filters, most) + 1)
    return min(sizes, key=lambda size: (-(-filters // size) * size, -size))


def _tile_taps(k: int) -> tuple[int, int]:
    """Window columns and filters of a weight-gradient tile: as many sums as registers."""
    taps = min(k, 9)
    return taps, max(1, TILE_REGISTERS // taps)


def scratch_size(kernel: str, **size: int) -> int:
    """Elements of scratch that `kernel` needs for the sizes given as shape letters."""
    if kernel == "softmax_cross_entropy_forward":
        return size["N"] * size["H"] * (2 * size["W"] + 1)
    if not kernel.startswith("conv2d"):
        return 0
    n, c, o, h, w, k = (size[letter] for letter in "NCOHWK")
    planes = n * (c + o) * _plane_size(h, w, k, 4)
    if kernel == "conv2d_backward_weights":
        taps, block = _tile_taps(k)
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


@njit(**_PARALLEL)
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

    @njit(**_PARALLEL)
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


@njit(**_SERIAL)
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

    @njit(**_PARALLEL)
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


@njit(**_PARALLEL)
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
    taps, size = _tile_taps(k)
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


# ---- pooling, upsampling, concatenation (Sec. 2.2)


@njit(**_PARALLEL)
def max_pool2d_forward(y, x, window, stride, border):
    """y[i, j] = max of x[stride i - border + u, stride j - border + v], u, v < window; outside counts as -inf."""
    n_images, channels, h, w = y.shape
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        for i in range(h):
            for j in range(w):
                top, left = i * stride - border, j * stride - border
                peak = x[n, c, max(top, 0), max(left, 0)]
                for row in range(max(top, 0), top + window):
                    for column in range(max(left, 0), left + window):
                        value = x[n, c, row, column]
                        if value > peak or value != value:  # NaN must not be lost
                            peak = value
                y[n, c, i, j] = peak


@njit(**_PARALLEL)
def max_pool2d_backward(dx, dy, x, y, s, window, stride, border, add):
    """Each dy goes to the first maximum of its window in row-major order."""
    n_images, channels, h, w = dy.shape
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        if not add:
            dx[n, c] = 0
        for i in range(h):
            for j in range(w):
                top, left = i * stride - border, j * stride - border
                row, column = _first_equal(x[n, c], y[n, c, i, j], top, left, window)
                dx[n, c, row, column] += dy[n, c, i, j]


@njit(**_SERIAL)
def _first_equal(x, peak, top, left, window):
    for row in range(max(top, 0), top + window):
        for column in range(max(left, 0), left + window):
            if x[row, column] == peak:
                return row, column
    return max(top, 0), max(left, 0)  # the maximum is NaN


@njit(**_PARALLEL)
def mean_pool2d_forward(y, x, window):
    """y = mean of the window x window tiles of x."""
    n_images, channels, h, w = y.shape
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        for i in range(h):
            for j in range(w):
                total = y.dtype.type(0)
                for u in range(window):
                    for v in range(window):
                        total += x[n, c, i * window + u, j * window + v]
                y[n, c, i, j] = total / (window * window)


@njit(**_PARALLEL)
def mean_pool2d_backward(dx, dy, s, window, add):
    """Each pixel of a tile gets dy / window^2."""
    n_images, channels, h, w = dx.shape
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        for i in range(h):
            for j in range(w):
                share = dy[n, c, i // window, j // window] / (window * window)
                dx[n, c, i, j] = dx[n, c, i, j] + share if add else share


@njit(**_PARALLEL)
def upsample_nearest2d_forward(y, x, factor):
    """y[i, j] = x[i // factor, j // factor], into the first C channels of y."""
    n_images, channels, h, w = x.shape
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        for i in range(h):
            row = x[n, c, i]
            target = y[n, c, i * factor]
            for j in range(w):
                for v in range(factor):
                    target[j * factor + v] = row[j]
            for u in range(1, factor):
                below = y[n, c, i * factor + u]
                for j in range(w * factor):  # a slice assignment would allocate: Numba guards against overlap
                    below[j] = target[j]


@njit(**_PARALLEL)
def upsample_nearest2d_backward(dx, dy, factor, add):
    """dx[i, j] = sum of dy over the factor x factor copies of pixel (i, j)."""
    n_images, channels, h, w = dx.shape
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        for i in range(h):
            target = dx[n, c, i]
            if not add:
                target[:] = 0
            for u in range(factor):
                row = dy[n, c, i * factor + u]
                for j in range(w):
                    for v in range(factor):
                        target[j] += row[j * factor + v]


@njit(**_SERIAL)
def parity_maps(y, offset):
    """Channel `offset` of y: 0 on even columns, 1 on odd ones; the next channel: likewise by row."""
    for n in range(y.shape[0]):
        for i in range(y.shape[2]):
            for j in range(y.shape[3]):
                y[n, offset, i, j] = j % 2
                y[n, offset + 1, i, j] = i % 2


@njit(**_PARALLEL)
def concat_forward(y, x, offset):
    """Copy x into the channels of y that begin at `offset`."""
    n_images, channels = x.shape[:2]
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        y[n, offset + c] = x[n, c]


@njit(**_PARALLEL)
def concat_backward(dx, dy, offset, add):
    """dx = the channels of dy that begin at `offset`."""
    n_images, channels = dx.shape[:2]
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        if add:
            dx[n, c] += dy[n, offset + c]
        else:
            dx[n, c] = dy[n, offset + c]


# ---- activation, loss, update


@intrinsic
def _like(typing_context, value, example):
    """`value` in the type of `example`: a Python constant would turn float32 arithmetic into float64."""

    def generate(context, builder, signature, arguments):
        return context.cast(builder, arguments[0], signature.args[0], signature.return_type)

    return example(value, example), generate


@intrinsic
def _power_of_two(typing_context, exponent):
    """2^exponent (a whole float within the normal range), from its bit pattern."""
    bits, bias, mantissa = (32, 127, 23) if exponent is types.float32 else (64, 1023, 52)

    def generate(context, builder, signature, arguments):
        integer = ir.IntType(bits)
        value = builder.fptosi(arguments[0], integer)
        value = builder.shl(builder.add(value, integer(bias)), integer(mantissa))
        return builder.bitcast(value, ir.FloatType() if bits == 32 else ir.DoubleType())

    return exponent(exponent), generate


_LOG2_E = 1 / math.log(2)
_LN2_HIGH = 0.693145751953125  # so few digits that n * _LN2_HIGH is exact in float32 for small whole n
_LN2_LOW = math.log(2) - _LN2_HIGH


@njit(inline="always", **_SERIAL)
def _exp(x):
    """e^x for |x| <= 87 (clipped there), without branches or calls, so that loops over it become vector code.

    x = n ln 2 + r; e^r by its Taylor series to r^12, whose error for |r| <= ln(2) / 2 is below 2^-52.
    """
    x = min(max(x, _like(-87.0, x)), _like(87.0, x))
    n = np.floor(x * _like(_LOG2_E, x) + _like(0.5, x))
    r = x - n * _like(_LN2_HIGH, x) - n * _like(_LN2_LOW, x)
    y = r * _like(1 / 479001600, x) + _like(1 / 39916800, x)
    y = y * r + _like(1 / 3628800, x)
    y = y * r + _like(1 / 362880, x)
    y = y * r + _like(1 / 40320, x)
    y = y * r + _like(1 / 5040, x)
    y = y * r + _like(1 / 720, x)
    y = y * r + _like(1 / 120, x)
    y = y * r + _like(1 / 24, x)
    y = y * r + _like(1 / 6, x)
    y = y * r + _like(0.5, x)
    y = y * r + _like(1.0, x)
    y = y * r + _like(1.0, x)
    return y * _power_of_two(n)


@njit(**_PARALLEL)
def tanh_forward(y, x):
    """y = tanh(x) = 1 - 2 / (e^2x + 1), the f of eq. (1); absolute error below 2e-7 in float32."""
    n_images, channels, h, w = y.shape
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        for i in range(h):
            row, target = x[n, c, i], y[n, c, i]
            for j in range(w):
                e = _exp(row[j] + row[j])
                target[j] = _like(1.0, e) - _like(2.0, e) / (e + _like(1.0, e))


@njit(**_PARALLEL)
def tanh_backward(dx, dy, y, s, add):
    """dx = dy (1 - y^2)."""
    n_images, channels, h, w = y.shape
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        for i in range(h):
            gradient, value, target = dy[n, c, i], y[n, c, i], dx[n, c, i]
            for j in range(w):
                t = gradient[j] - gradient[j] * value[j] * value[j]
                target[j] = target[j] + t if add else t


@njit(**_PARALLEL)
def softmax_cross_entropy_forward(loss, total, p, z, t, weights, s):
    """p = softmax of z over the labels; total = sum of weights; loss = sum of -weights log p[t] / total."""
    n_images, labels, h, w = z.shape
    for task in prange(n_images * h):
        n, i = task // h, task % h
        own = s[task * (2 * w + 1) : (task + 1) * (2 * w + 1)]
        peak, norm = own[:w], own[w : 2 * w]
        peak[:] = z[n, 0, i]
        for label in range(1, labels):
            row = z[n, label, i]
            for j in range(w):
                peak[j] = max(peak[j], row[j])
        norm[:] = 0
        for label in range(labels):
            row, target = z[n, label, i], p[n, label, i]
            for j in range(w):
                target[j] = _exp(row[j] - peak[j])
                norm[j] += target[j]
        row_loss = s.dtype.type(0)
        for j in range(w):  # -log p[t], which stays finite where p[t] underflows
            row_loss += weights[n, i, j] * (math.log(norm[j]) + peak[j] - z[n, t[n, i, j], i, j])
        own[2 * w] = row_loss
        for label in range(labels):
            target = p[n, label, i]
            for j in range(w):
                target[j] /= norm[j]
    loss_sum, weight_sum = 0.0, 0.0
    for task in range(n_images * h):
        loss_sum += s[task * (2 * w + 1) + 2 * w]
    for n in range(n_images):
        for i in range(h):
            for j in range(w):
                weight_sum += weights[n, i, j]
    total[()] = weight_sum
    loss[()] = loss_sum / weight_sum


@njit(**_PARALLEL)
def softmax_cross_entropy_backward(dz, p, t, weights, total, s):
    """dz = weights (p - onehot(t)) / total."""
    n_images, labels, h, w = p.shape
    scale = _like(1.0, total[()]) / total[()]
    for task in prange(n_images * h):
        n, i = task // h, task % h
        for label in range(labels):
            row, target = p[n, label, i], dz[n, label, i]
            for j in range(w):
                hit = _like(1.0 if t[n, i, j] == label else 0.0, scale)
                target[j] = (row[j] - hit) * weights[n, i, j] * scale


@njit(**_PARALLEL)
def sgd_update(values, velocity, gradients, s, lr, momentum, nesterov, weight_decay, shrink):
    """One step of `minicnn.sgd.SGD` on the flat buffers."""
    for i in prange(values.size):
        step = -lr * (gradients[i] + weight_decay * values[i])
        velocity[i] = momentum * velocity[i] + step
        move = momentum * velocity[i] + step if nesterov else velocity[i]
        values[i] = shrink * values[i] + move
