"""Loops of pooling, upsampling, concatenation and activation: plain ones, which LLVM vectorises."""

from numba import njit

from minicnn.kernels.cpu.compiled.options import SERIAL
from minicnn.kernels.cpu.compiled.tiles import row
from minicnn.kernels.cpu.compiled.vecmath import like, tanh

# ---- pooling, upsampling, concatenation (Sec. 2.2)


def max_pool2d_forward(tasks, y, x, kernel_size, stride, padding):
    _, channels, h, w = y.shape
    for task in range(tasks[0], tasks[1]):
        n, c = task // channels, task % channels
        for i in range(h):
            top = i * stride - padding
            target = row(y, n, c, i)
            for j in range(w):
                left = j * stride - padding
                peak = row(x, n, c, max(top, 0))[max(left, 0)]
                for u in range(max(top, 0), top + kernel_size):
                    source = row(x, n, c, u)
                    for v in range(max(left, 0), left + kernel_size):
                        value = source[v]
                        if value > peak or value != value:  # propagate NaN
                            peak = value
                target[j] = peak


def max_pool2d_backward(tasks, dx, dy, x, y, s, kernel_size, stride, padding, add):
    _, channels, h, w = dy.shape
    for task in range(tasks[0], tasks[1]):
        n, c = task // channels, task % channels
        if not add:
            for i in range(dx.shape[2]):
                clear(row(dx, n, c, i))
        for i in range(h):
            gradient, peaks = row(dy, n, c, i), row(y, n, c, i)
            for j in range(w):
                u, v = _first_equal(x, n, c, peaks[j], i * stride - padding, j * stride - padding, kernel_size)
                target = row(dx, n, c, u)
                target[v] = target[v] + gradient[j]


@njit(**SERIAL)
def _first_equal(x, n, c, peak, top, left, kernel_size):
    for u in range(max(top, 0), top + kernel_size):
        source = row(x, n, c, u)
        for v in range(max(left, 0), left + kernel_size):
            if source[v] == peak:
                return u, v
    return max(top, 0), max(left, 0)  # the maximum is NaN


def mean_pool2d_forward(tasks, y, x, kernel_size):
    _, channels, h, w = y.shape
    for task in range(tasks[0], tasks[1]):
        n, c = task // channels, task % channels
        for i in range(h):
            target = row(y, n, c, i)
            clear(target)
            for u in range(kernel_size):
                source = row(x, n, c, i * kernel_size + u)
                for j in range(w):
                    for v in range(kernel_size):
                        target[j] += source[j * kernel_size + v]
            for j in range(w):
                target[j] /= kernel_size * kernel_size


def mean_pool2d_backward(tasks, dx, dy, s, kernel_size, add):
    _, channels, h, w = dx.shape
    for task in range(tasks[0], tasks[1]):
        n, c = task // channels, task % channels
        for i in range(h):
            target, gradient = row(dx, n, c, i), row(dy, n, c, i // kernel_size)
            for j in range(w):
                share = gradient[j // kernel_size] / (kernel_size * kernel_size)
                target[j] = target[j] + share if add else share


def upsample_nearest2d_forward(tasks, y, x, factor):
    _, channels, h, w = x.shape
    for task in range(tasks[0], tasks[1]):
        n, c = task // channels, task % channels
        for i in range(h):
            source = row(x, n, c, i)
            for u in range(factor):
                target = row(y, n, c, i * factor + u)
                for j in range(w):
                    for v in range(factor):
                        target[j * factor + v] = source[j]


def upsample_nearest2d_backward(tasks, dx, dy, factor, add):
    _, channels, h, w = dx.shape
    for task in range(tasks[0], tasks[1]):
        n, c = task // channels, task % channels
        for i in range(h):
            target = row(dx, n, c, i)
            if not add:
                clear(target)
            for u in range(factor):
                gradient = row(dy, n, c, i * factor + u)
                for j in range(w):
                    for v in range(factor):
                        target[j] += gradient[j * factor + v]


def parity_maps(tasks, y, offset):
    for n in range(y.shape[0]):
        for i in range(y.shape[2]):
            by_column, by_row = row(y, n, offset, i), row(y, n, offset + 1, i)
            for j in range(y.shape[3]):
                by_column[j] = j % 2
                by_row[j] = i % 2


def concat_forward(tasks, y, x, offset):
    _, channels = x.shape[:2]
    for task in range(tasks[0], tasks[1]):
        n, c = task // channels, task % channels
        for i in range(x.shape[2]):
            copy(row(y, n, offset + c, i), row(x, n, c, i))


def concat_backward(tasks, dx, dy, offset, add):
    _, channels = dx.shape[:2]
    for task in range(tasks[0], tasks[1]):
        n, c = task // channels, task % channels
        for i in range(dx.shape[2]):
            target, gradient = row(dx, n, c, i), row(dy, n, offset + c, i)
            for j in range(dx.shape[3]):
                target[j] = target[j] + gradient[j] if add else gradient[j]


@njit(**SERIAL)
def clear(x):
    """Set a row to zero."""
    for j in range(x.size):  # a slice assignment would add seconds to compilation
        x[j] = 0


@njit(**SERIAL)
def copy(y, x):
    """Copy row x to row y."""
    for j in range(y.size):
        y[j] = x[j]


# ---- activation, alone or fused with pooling and upsampling for interlinking layers


def tanh_forward(tasks, y, x):
    _, channels, h, _ = y.shape
    for task in range(tasks[0], tasks[1]):
        n, c = task // channels, task % channels
        for i in range(h):
            _tanh(row(y, n, c, i), row(x, n, c, i))


@njit(**SERIAL)
def _tanh(y, x):
    """y = tanh(x); y may be x. Copying first keeps the loop on one array: with aliased arrays it is not vectorised."""
    if y.ctypes.data != x.ctypes.data:
        copy(y, x)
    for j in range(y.size):
        y[j] = tanh(y[j])


def tanh_backward(tasks, dx, dy, y, s, add):
    _, channels, h, w = y.shape
    for task in range(tasks[0], tasks[1]):
        n, c = task // channels, task % channels
        for i in range(h):
            gradient, value, target = row(dy, n, c, i), row(y, n, c, i), row(dx, n, c, i)
            for j in range(w):
                t = gradient[j] - gradient[j] * value[j] * value[j]
                target[j] = target[j] + t if add else t


def interlink_forward(tasks, y, pooled, up, x):
    _, channels, h, w = y.shape
    for task in range(tasks[0], tasks[1]):
        n, c = task // channels, task % channels
        for i in range(h):
            value = row(y, n, c, i)
            _tanh(value, row(x, n, c, i))
            if up.shape[1] > 0:
                above, below = row(up, n, c, 2 * i), row(up, n, c, 2 * i + 1)
                for j in range(w):
                    above[2 * j] = above[2 * j + 1] = value[j]
                for j in range(w):
                    below[2 * j] = below[2 * j + 1] = value[j]
            if pooled.shape[1] > 0 and i % 2 == 1:
                before, peak = row(y, n, c, i - 1), row(pooled, n, c, i // 2)
                for j in range(w // 2):
                    peak[j] = _largest(
                        _largest(before[2 * j], before[2 * j + 1]), _largest(value[2 * j], value[2 * j + 1])
                    )


@njit(**SERIAL)
def _largest(a, b):
    return b if b > a or b != b else a  # propagate NaN


def interlink_backward(tasks, dx, dy, dpooled, dup, y, s):
    _, channels, h, w = y.shape
    in_place = dx.ctypes.data == dy.ctypes.data
    for task in range(tasks[0], tasks[1]):
        n, c = task // channels, task % channels
        for i in range(h):
            target = row(dx, n, c, i)
            if dy.shape[1] == 0:
                clear(target)
            elif not in_place:
                copy(target, row(dy, n, c, i))
            if dup.shape[1] > 0:
                above, below = row(dup, n, c, 2 * i), row(dup, n, c, 2 * i + 1)
                for j in range(w):
                    target[j] += above[2 * j] + above[2 * j + 1] + below[2 * j] + below[2 * j + 1]
            if dpooled.shape[1] > 0 and i % 2 == 1:
                before, old = row(dx, n, c, i - 1), row(y, n, c, i - 1)
                _scatter(before, target, row(dpooled, n, c, i // 2), old, row(y, n, c, i))
        for i in range(h):
            target, value = row(dx, n, c, i), row(y, n, c, i)
            for j in range(w):
                target[j] -= target[j] * value[j] * value[j]


@njit(**SERIAL)
def _scatter(top, bottom, gradient, above, below):
    """Add each gradient to the first maximum of its 2 x 2 tile, without branches so that LLVM vectorises the loop."""
    for j in range(gradient.size):
        a, b, c, d = above[2 * j], above[2 * j + 1], below[2 * j], below[2 * j + 1]
        peak = max(max(a, b), max(c, d))
        second = b == peak and a != peak
        third = c == peak and a != peak and b != peak
        fourth = d == peak and a != peak and b != peak and c != peak
        none = like(0.0, a)
        top[2 * j] += none if second or third or fourth else gradient[j]  # NaN equals nothing: the first pixel gets it
        top[2 * j + 1] += gradient[j] if second else none
        bottom[2 * j] += gradient[j] if third else none
        bottom[2 * j + 1] += gradient[j] if fourth else none
