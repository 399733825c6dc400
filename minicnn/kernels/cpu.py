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

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

NAME = "numba"

empty = np.empty
zeros = np.zeros
download = np.asarray

#: "contract" lets LLVM fuse a * b + c, "reassoc" vectorise sums; NaN and infinities keep their meaning.
_FAST = {"contract", "reassoc", "nsz", "arcp"}
_SERIAL = {"fastmath": _FAST, "error_model": "numpy", "cache": True, "nogil": True}
_PARALLEL = {**_SERIAL, "parallel": True}

TAPS = 5  # window columns that one pass of the inner loop handles
FILTERS = 4  # output channels that share what it loads
BAND = 1024  # flat positions of a tile: FILTERS * BAND sums stay in the first-level cache


def upload(destination: np.ndarray, source: np.ndarray) -> None:
    """Copy a NumPy array of the same shape into `destination`, converting the dtype."""
    np.copyto(destination, source, casting="unsafe")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Use `count` threads (at most those that Numba started with) inside a ``with`` block."""
    before = numba.get_num_threads()
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(before)


# ---- geometry of flat padded planes


@njit(**_SERIAL)
def _tap_groups(k):
    return (k + TAPS - 1) // TAPS


@njit(**_SERIAL)
def _row_stride(w, k):
    return w + k // 2


@njit(**_SERIAL)
def _positions(h, w, k):
    """Flat positions from the first output to the last, gaps included."""
    return (h - 1) * _row_stride(w, k) + w


@njit(**_SERIAL)
def _plane_size(h, w, k):
    """Elements of a padded plane, and of zeros behind it that windows rounded up to TAPS columns may read."""
    return (h + k - 1) * _row_stride(w, k) + k + TAPS


def scratch_size(kernel: str, **size: int) -> int:
    """Elements of scratch that `kernel` needs for the sizes given as shape letters."""
    if kernel == "softmax_cross_entropy_forward":
        return size["N"] * size["H"] * (2 * size["W"] + 1)
    if not kernel.startswith("conv2d"):
        return 0
    n, c, o, k = size["N"], size["C"], size["O"], size["K"]
    planes = n * (c + o) * _plane_size(size["H"], size["W"], k)
    blocks = max(_blocks(c), _blocks(o))
    packed = blocks * FILTERS * max(c, o) * k * _tap_groups(k) * TAPS
    tiles = n * blocks * FILTERS * BAND
    sums = blocks * max(c, o) * k * _tap_groups(k) * TAPS * FILTERS
    return planes + packed + max(tiles, sums)


@njit(**_SERIAL)
def _blocks(filters):
    return (filters + FILTERS - 1) // FILTERS


@njit(**_PARALLEL)
def _pad(planes, x, k, before):
    """Copy x (N, C, H, W) into zeroed flat planes (N C, plane size), `before` rows and columns in."""
    n_images, channels, h, w = x.shape
    stride = _row_stride(w, k)
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        plane = planes[task]
        plane[:] = 0
        for i in range(h):
            start = (i + before) * stride + before
            row = x[n, c, i]
            target = plane[start : start + w]
            for j in range(w):
                target[j] = row[j]


# ---- convolution, eq. (1)


@njit(**_SERIAL)
def _add_taps4(sums, x, weights, count):
    """sums[f, p] += sum over v of weights[f, v] x[p + v], for 4 filters and 5 taps."""
    a0, a1, a2, a3, a4 = weights[0, 0], weights[0, 1], weights[0, 2], weights[0, 3], weights[0, 4]
    b0, b1, b2, b3, b4 = weights[1, 0], weights[1, 1], weights[1, 2], weights[1, 3], weights[1, 4]
    c0, c1, c2, c3, c4 = weights[2, 0], weights[2, 1], weights[2, 2], weights[2, 3], weights[2, 4]
    d0, d1, d2, d3, d4 = weights[3, 0], weights[3, 1], weights[3, 2], weights[3, 3], weights[3, 4]
    for p in range(count):
        x0, x1, x2, x3, x4 = x[p], x[p + 1], x[p + 2], x[p + 3], x[p + 4]
        sums[p] += a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3 + a4 * x4
        sums[BAND + p] += b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3 + b4 * x4
        sums[2 * BAND + p] += c0 * x0 + c1 * x1 + c2 * x2 + c3 * x3 + c4 * x4
        sums[3 * BAND + p] += d0 * x0 + d1 * x1 + d2 * x2 + d3 * x3 + d4 * x4


@njit(**_SERIAL)
def _add_taps1(sums, x, weights, count):
    """The same for one filter."""
    a0, a1, a2, a3, a4 = weights[0, 0], weights[0, 1], weights[0, 2], weights[0, 3], weights[0, 4]
    for p in range(count):
        sums[p] += a0 * x[p] + a1 * x[p + 1] + a2 * x[p + 2] + a3 * x[p + 3] + a4 * x[p + 4]


@njit(**_PARALLEL)
def _correlate(y, planes, packed, b, tiles, k, add):
    """y = planes correlated with the packed weights + b; one task for each image and block of filters."""
    n_images, filters, h, w = y.shape
    channels = planes.shape[0] // n_images
    stride, positions, blocks = _row_stride(w, k), _positions(h, w, k), _blocks(filters)
    for task in prange(n_images * blocks):
        n, block = task // blocks, task % blocks
        first = block * FILTERS
        real = min(FILTERS, filters - first)
        sums = tiles[task]
        for start in range(0, positions, BAND):
            count = min(BAND, positions - start)
            for f in range(real):
                sums[f * BAND : f * BAND + count] = b[first + f]
            for c in range(channels):
                plane = planes[n * channels + c]
                for u in range(k):
                    for group in range(_tap_groups(k)):
                        x = plane[start + u * stride + group * TAPS :]
                        weights = packed[block, c, u, group]
                        if real == FILTERS:
                            _add_taps4(sums, x, weights, count)
                        else:
                            for f in range(real):
                                _add_taps1(sums[f * BAND :], x, weights[f:], count)
            _store_rows(y[n, first : first + real], sums, start, count, stride, add)


@njit(**_SERIAL)
def _store_rows(y, sums, start, count, stride, add):
    """Write the positions [start, start + count) that lie on pixels, and drop the gaps between rows."""
    _, h, w = y.shape
    for f in range(y.shape[0]):
        tile = sums[f * BAND : f * BAND + count]
        for i in range(start // stride, min(h, (start + count - 1) // stride + 1)):
            left = i * stride - start
            j0, j1 = max(0, -left), min(w, count - left)
            for j in range(j0, j1):
                if add:
                    y[f, i, j] += tile[left + j]
                else:
                    y[f, i, j] = tile[left + j]


@njit(**_SERIAL)
def _pack(packed, w, transposed):
    """Weights (O, C, K, K) as [block][channel][u][tap group][filter][tap], zeros where there is no filter or tap.

    `transposed` swaps O and C and turns the window by 180°: a convolution's input gradient is the correlation of
    dy with those weights.
    """
    packed[...] = 0
    filters, channels, k, _ = w.shape
    for o in range(filters):
        for c in range(channels):
            for u in range(k):
                for v in range(k):
                    if transposed:
                        block, f, source = c // FILTERS, c % FILTERS, o
                        i, j = k - 1 - u, k - 1 - v
                    else:
                        block, f, source = o // FILTERS, o % FILTERS, c
                        i, j = u, v
                    packed[block, source, i, j // TAPS, f, j % TAPS] = w[o, c, u, v]


def _packed_view(s, filters, channels, k):
    shape = (_blocks(filters), channels, k, _tap_groups(k), FILTERS, TAPS)
    return _split(s, shape)


def _split(s, shape):
    """The first elements of scratch in the given shape, and the rest."""
    size = math.prod(shape)
    return s[:size].reshape(shape), s[size:]


def conv2d_forward(y, x, w, b, s):
    """y = x correlated with w (zero padded, stride 1) + b."""
    n, c, h, width = x.shape
    o, k = w.shape[0], w.shape[2]
    planes, s = _split(s, (n * c, _plane_size(h, width, k)))
    packed, s = _packed_view(s, o, c, k)
    tiles, _ = _split(s, (n * _blocks(o), FILTERS * BAND))
    _pad(planes, x, k, k // 2)
    _pack(packed, w, False)
    _correlate(y, planes, packed, b, tiles, k, False)


def conv2d_backward_data(dx, dy, w, s, add):
    """dx = dy correlated with the weights turned by 180° and transposed."""
    n, o, h, width = dy.shape
    c, k = w.shape[1], w.shape[2]
    planes, s = _split(s, (n * o, _plane_size(h, width, k)))
    packed, s = _packed_view(s, c, o, k)
    no_bias, s = _split(s, (c,))
    tiles, _ = _split(s, (n * _blocks(c), FILTERS * BAND))
    no_bias[:] = 0
    _pad(planes, dy, k, k - 1 - k // 2)
    _pack(packed, w, True)
    _correlate(dx, planes, packed, no_bias, tiles, k, add)


@njit(**_SERIAL)
def _add_products4(sums, g0, g1, g2, g3, x, count):
    """sums[f, v] += sum over p of g_f[p] x[p + v], for 4 filters and 5 taps: 20 sums in registers."""
    zero = sums.dtype.type(0)
    a0 = a1 = a2 = a3 = a4 = zero
    b0 = b1 = b2 = b3 = b4 = zero
    c0 = c1 = c2 = c3 = c4 = zero
    d0 = d1 = d2 = d3 = d4 = zero
    for p in range(count):
        x0, x1, x2, x3, x4 = x[p], x[p + 1], x[p + 2], x[p + 3], x[p + 4]
        g = g0[p]
        a0, a1, a2, a3, a4 = a0 + g * x0, a1 + g * x1, a2 + g * x2, a3 + g * x3, a4 + g * x4
        g = g1[p]
        b0, b1, b2, b3, b4 = b0 + g * x0, b1 + g * x1, b2 + g * x2, b3 + g * x3, b4 + g * x4
        g = g2[p]
        c0, c1, c2, c3, c4 = c0 + g * x0, c1 + g * x1, c2 + g * x2, c3 + g * x3, c4 + g * x4
        g = g3[p]
        d0, d1, d2, d3, d4 = d0 + g * x0, d1 + g * x1, d2 + g * x2, d3 + g * x3, d4 + g * x4
    for f, row in enumerate(
        ((a0, a1, a2, a3, a4), (b0, b1, b2, b3, b4), (c0, c1, c2, c3, c4), (d0, d1, d2, d3, d4))
    ):
        for v in range(TAPS):
            sums[f, v] += row[v]


@njit(**_SERIAL)
def _add_products1(sums, g, x, count):
    """The same for one filter."""
    zero = sums.dtype.type(0)
    a0 = a1 = a2 = a3 = a4 = zero
    for p in range(count):
        t = g[p]
        a0, a1, a2 = a0 + t * x[p], a1 + t * x[p + 1], a2 + t * x[p + 2]
        a3, a4 = a3 + t * x[p + 3], a4 + t * x[p + 4]
    for v, a in enumerate((a0, a1, a2, a3, a4)):
        sums[v] += a


@njit(**_PARALLEL)
def _weight_gradient(dw, gradients, planes, sums, n_images, h, w):
    """dw[o, c, u, v] = sum over images and positions of dy[o] x[c] shifted; one task for each block and c."""
    filters, channels, k, _ = dw.shape
    stride, positions, blocks = _row_stride(w, k), _positions(h, w, k), _blocks(filters)
    for task in prange(blocks * channels):
        block, c = task // channels, task % channels
        first = block * FILTERS
        real = min(FILTERS, filters - first)
        mine = sums[task]
        mine[...] = 0
        for n in range(n_images):
            plane = planes[n * channels + c]
            row = n * filters + first
            for start in range(0, positions, BAND):
                count = min(BAND, positions - start)
                end = start + count
                for u in range(k):
                    for group in range(_tap_groups(k)):
                        x = plane[start + u * stride + group * TAPS :]
                        if real == FILTERS:
                            _add_products4(
                                mine[u, group],
                                gradients[row, start:end],
                                gradients[row + 1, start:end],
                                gradients[row + 2, start:end],
                                gradients[row + 3, start:end],
                                x,
                                count,
                            )
                        else:
                            for f in range(real):
                                _add_products1(mine[u, group, f], gradients[row + f, start:end], x, count)
        for f in range(real):
            for u in range(k):
                for v in range(k):
                    dw[first + f, c, u, v] = mine[u, v // TAPS, f, v % TAPS]


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
    o, k = dw.shape[0], dw.shape[2]
    planes, s = _split(s, (n * c, _plane_size(h, width, k)))
    gradients, s = _split(s, (n * o, _plane_size(h, width, k)))
    sums, _ = _split(s, (_blocks(o) * c, k, _tap_groups(k), FILTERS, TAPS))
    _pad(planes, x, k, k // 2)
    _pad(gradients, dy, k, 0)
    _weight_gradient(dw, gradients, planes, sums, n, h, width)
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
                y[n, c, i * factor + u] = target


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
