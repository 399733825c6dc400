"""Backend "numba": plain loops that LLVM vectorises, with one prange over planes.

Convolution, which takes nearly all the time, is in `conv_direct` and
`conv_weights`. float32 and float64 use the same code. Shapes and roles of the
arguments: `minicnn.kernels.signatures`.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps

import numba
from numba import njit, prange
from numba.core import config

from minicnn.kernels.cpu.compile import SERIAL, exp, kernel, like, tanh
from minicnn.kernels.cpu.conv_direct import correlation_scratch, prepare_backward_data, prepare_forward
from minicnn.kernels.cpu.conv_weights import prepare_backward_weights, weight_gradient_scratch
from minicnn.kernels.cpu.layout import in_turn, planes
from minicnn.kernels.cpu.tiles import row
from minicnn.kernels.host import Feed, all_reduce, download, empty, memory_left, record, upload, zeros
from minicnn.kernels.signatures import SIGNATURES
from minicnn.kernels.validation import Check

# Functions of the backend besides its kernels.
__all__ = ["Feed", "all_reduce", "download", "empty", "memory_left", "planes", "record", "upload", "zeros"]

NAME = "numba"
_BLOCK = 1 << 14  # parameters updated by one task


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Use `count` threads inside a ``with`` block, at most the number that Numba was started with."""
    before = numba.get_num_threads()
    most = config.NUMBA_NUM_THREADS  # pyright: ignore[reportAttributeAccessIssue]
    numba.set_num_threads(min(count, most))
    try:
        yield
    finally:
        numba.set_num_threads(before)


def scratch_size(kernel: str, **size: int) -> int:
    """Return the number of workspace elements that `kernel` needs, sufficient for float32 and float64.

    Parameters
    ----------
    kernel : str
        Name of the kernel.
    **size : int
        Sizes by shape letter, such as ``N=16``; see `minicnn.kernels.signatures`.
    """
    if kernel.startswith("conv2d"):
        n, c, o, h, w, k = (size[letter] for letter in "NCOHWK")
        if kernel in ("conv2d_forward", "conv2d_tanh_forward"):
            return max(correlation_scratch(n, c, o, h, w, k, itemsize) for itemsize in (4, 8))
        if kernel == "conv2d_backward_data":
            return max(correlation_scratch(n, o, c, h, w, k, itemsize) for itemsize in (4, 8))
        return max(weight_gradient_scratch(n, c, o, h, w, k, itemsize) for itemsize in (4, 8))
    if kernel == "softmax_cross_entropy_forward":
        return size["N"] * size["H"] * (2 * size["W"] + 2)
    return 0


def bind(kernel: str, *arguments) -> Callable[[], None]:
    """Return a call of a kernel without arguments, validated and prepared once, to be run many times.

    Parameters
    ----------
    kernel : str
        Name of the kernel.
    *arguments : arrays and numbers
        All arguments of the kernel, in the order of its signature.

    Raises
    ------
    ValueError
        If the arguments do not match the signature table.
    """
    _CHECKS[kernel](arguments)
    if kernel in _PREPARE:
        return _PREPARE[kernel](*arguments)
    return partial(globals()[kernel].__wrapped__, *arguments)


def _prepare_tanh_forward(y, pooled, up, x, w, b, s) -> Callable[[], None]:
    return in_turn([prepare_forward(y, x, w, b, s), bind("interlink_forward", y, pooled, up, y)])


#: Kernels that consist of several calls and need offsets computed in advance.
_PREPARE = {
    "conv2d_forward": prepare_forward,
    "conv2d_tanh_forward": _prepare_tanh_forward,
    "conv2d_backward_data": prepare_backward_data,
    "conv2d_backward_weights": prepare_backward_weights,
}
_CHECKS = {name: Check(name, scratch_size) for name in SIGNATURES}


def _checked(function: Callable) -> Callable:
    """Validate the arguments before each call (decorator)."""
    check = _CHECKS[function.__name__]

    @wraps(function)
    def call(*arguments) -> None:
        check(arguments)
        function(*arguments)

    return call


@_checked
def conv2d_forward(y, x, w, b, s):
    """y = x correlated with w (zero padded, stride 1) + b; eq. (1) of the paper without f."""
    prepare_forward(y, x, w, b, s)()


@_checked
def conv2d_tanh_forward(y, pooled, up, x, w, b, s):
    """y = tanh(x correlated with w + b), all of eq. (1); pooled and up as in `interlink_forward`."""
    _prepare_tanh_forward(y, pooled, up, x, w, b, s)()


@_checked
def conv2d_backward_data(dx, dy, w, s, add):
    """dx = dy correlated with w rotated by 180°, input and output channels swapped."""
    prepare_backward_data(dx, dy, w, s, add)()


@_checked
def conv2d_backward_weights(dw, db, dy, x, s):
    """dw = dy correlated with x over all images; db = dy summed over images and pixels."""
    prepare_backward_weights(dw, db, dy, x, s)()


# ---- pooling, upsampling, concatenation (Sec. 2.2)


@_checked
@kernel("planes planes int int int")
def max_pool2d_forward(y, x, window, stride, border):
    """y[i, j] = max of x[stride i - border + u, stride j - border + v], u, v < window; pixels outside count as -inf."""
    n_images, channels, h, w = y.shape
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        for i in range(h):
            top = i * stride - border
            target = row(y, n, c, i)
            for j in range(w):
                left = j * stride - border
                peak = row(x, n, c, max(top, 0))[max(left, 0)]
                for u in range(max(top, 0), top + window):
                    source = row(x, n, c, u)
                    for v in range(max(left, 0), left + window):
                        value = source[v]
                        if value > peak or value != value:  # propagate NaN
                            peak = value
                target[j] = peak


@_checked
@kernel("planes planes planes planes flat int int int bool")
def max_pool2d_backward(dx, dy, x, y, s, window, stride, border, add):
    """dx = dy added at the first maximum, in row-major order, of each window."""
    n_images, channels, h, w = dy.shape
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        if not add:
            for i in range(dx.shape[2]):
                _clear(row(dx, n, c, i))
        for i in range(h):
            gradient, peaks = row(dy, n, c, i), row(y, n, c, i)
            for j in range(w):
                u, v = _first_equal(x, n, c, peaks[j], i * stride - border, j * stride - border, window)
                target = row(dx, n, c, u)
                target[v] = target[v] + gradient[j]


@njit(**SERIAL)
def _first_equal(x, n, c, peak, top, left, window):
    for u in range(max(top, 0), top + window):
        source = row(x, n, c, u)
        for v in range(max(left, 0), left + window):
            if source[v] == peak:
                return u, v
    return max(top, 0), max(left, 0)  # the maximum is NaN


@_checked
@kernel("planes planes int")
def mean_pool2d_forward(y, x, window):
    """y = mean of the non-overlapping window x window tiles of x."""
    n_images, channels, h, w = y.shape
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        for i in range(h):
            target = row(y, n, c, i)
            _clear(target)
            for u in range(window):
                source = row(x, n, c, i * window + u)
                for j in range(w):
                    for v in range(window):
                        target[j] += source[j * window + v]
            for j in range(w):
                target[j] /= window * window


@_checked
@kernel("planes planes flat int bool")
def mean_pool2d_backward(dx, dy, s, window, add):
    """dx = dy / window^2 at each pixel of a tile."""
    n_images, channels, h, w = dx.shape
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        for i in range(h):
            target, gradient = row(dx, n, c, i), row(dy, n, c, i // window)
            for j in range(w):
                share = gradient[j // window] / (window * window)
                target[j] = target[j] + share if add else share


@_checked
@kernel("planes planes int")
def upsample_nearest2d_forward(y, x, factor):
    """y[i, j] = x[i // factor, j // factor], written to the first C channels of y."""
    n_images, channels, h, w = x.shape
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        for i in range(h):
            source = row(x, n, c, i)
            for u in range(factor):
                target = row(y, n, c, i * factor + u)
                for j in range(w):
                    for v in range(factor):
                        target[j * factor + v] = source[j]


@_checked
@kernel("planes planes int bool")
def upsample_nearest2d_backward(dx, dy, factor, add):
    """dx[i, j] = sum of dy over the factor x factor copies of pixel (i, j)."""
    n_images, channels, h, w = dx.shape
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        for i in range(h):
            target = row(dx, n, c, i)
            if not add:
                _clear(target)
            for u in range(factor):
                gradient = row(dy, n, c, i * factor + u)
                for j in range(w):
                    for v in range(factor):
                        target[j] += gradient[j * factor + v]


@_checked
@kernel("planes int", tasks=None)
def parity_maps(y, offset):
    """y[:, offset] = column index mod 2; y[:, offset + 1] = row index mod 2."""
    for n in range(y.shape[0]):
        for i in range(y.shape[2]):
            by_column, by_row = row(y, n, offset, i), row(y, n, offset + 1, i)
            for j in range(y.shape[3]):
                by_column[j] = j % 2
                by_row[j] = i % 2


@_checked
@kernel("planes planes int")
def concat_forward(y, x, offset):
    """Copy x (C channels) to channels offset .. offset + C - 1 of y."""
    n_images, channels = x.shape[:2]
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        for i in range(x.shape[2]):
            _copy(row(y, n, offset + c, i), row(x, n, c, i))


@_checked
@kernel("planes planes int bool")
def concat_backward(dx, dy, offset, add):
    """dx = channels offset .. offset + C - 1 of dy."""
    n_images, channels = dx.shape[:2]
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        for i in range(dx.shape[2]):
            target, gradient = row(dx, n, c, i), row(dy, n, offset + c, i)
            for j in range(dx.shape[3]):
                target[j] = target[j] + gradient[j] if add else gradient[j]


@njit(**SERIAL)
def _clear(x):
    for j in range(x.size):  # a slice assignment would add seconds to compilation
        x[j] = 0


@njit(**SERIAL)
def _copy(y, x):
    for j in range(y.size):
        y[j] = x[j]


# ---- activation, alone or fused with pooling and upsampling for interlinking layers


@_checked
@kernel("planes planes")
def tanh_forward(y, x):
    """y = tanh(x), the activation f of eq. (1)."""
    n_images, channels, h, _ = y.shape
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        for i in range(h):
            _tanh(row(y, n, c, i), row(x, n, c, i))


@njit(**SERIAL)
def _tanh(y, x):
    """y = tanh(x); y may be x. Copying first keeps the loop on one array: with aliased arrays it is not vectorised."""
    if y.ctypes.data != x.ctypes.data:
        _copy(y, x)
    for j in range(y.size):
        y[j] = tanh(y[j])


@_checked
@kernel("planes planes planes flat bool")
def tanh_backward(dx, dy, y, s, add):
    """dx = dy (1 - y^2)."""
    n_images, channels, h, w = y.shape
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        for i in range(h):
            gradient, value, target = row(dy, n, c, i), row(y, n, c, i), row(dx, n, c, i)
            for j in range(w):
                t = gradient[j] - gradient[j] * value[j] * value[j]
                target[j] = target[j] + t if add else t


@_checked
@kernel("planes planes planes planes")
def interlink_forward(y, pooled, up, x):
    """y = tanh(x); pooled = y max-pooled 2 x 2; up = y upsampled by 2; pooled or up without channels is skipped."""
    n_images, channels, h, w = y.shape
    for task in prange(n_images * channels):
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


@_checked
@kernel("planes planes planes planes planes flat")
def interlink_backward(dx, dy, dpooled, dup, y, s):
    """dx = (dy + gradients through pooled and up) (1 - y^2); inputs without channels count as 0; dx may be dy."""
    n_images, channels, h, w = y.shape
    in_place = dx.ctypes.data == dy.ctypes.data
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        for i in range(h):
            target = row(dx, n, c, i)
            if dy.shape[1] == 0:
                _clear(target)
            elif not in_place:
                _copy(target, row(dy, n, c, i))
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


# ---- loss, update


@_checked
@kernel("number number planes planes labels pixels flat", lambda loss, total, p, z, *_: z.shape[0] * z.shape[2])
def softmax_cross_entropy_forward(loss, total, p, z, t, weights, s):
    """p = softmax of z over the classes; total = sum of weights; loss = sum of -weights log p[t] / total."""
    n_images, labels, h, w = z.shape
    for task in prange(n_images * h):
        n, i = task // h, task % h
        own = s[task * (2 * w + 2) : (task + 1) * (2 * w + 2)]
        peak, norm = own[:w], own[w : 2 * w]
        _copy(peak, row(z, n, 0, i))
        for label in range(1, labels):
            source = row(z, n, label, i)
            for j in range(w):
                peak[j] = max(peak[j], source[j])
        _clear(norm)
        for label in range(labels):
            source, target = row(z, n, label, i), row(p, n, label, i)
            for j in range(w):
                target[j] = exp(source[j] - peak[j])
                norm[j] += target[j]
        row_loss, row_weight = s.dtype.type(0), s.dtype.type(0)
        for j in range(w):  # -log p[t], which stays finite if p[t] underflows
            row_loss += weights[n, i, j] * (math.log(norm[j]) + peak[j] - row(z, n, t[n, i, j], i)[j])
            row_weight += weights[n, i, j]
        own[2 * w], own[2 * w + 1] = row_loss, row_weight
        for label in range(labels):
            target = row(p, n, label, i)
            for j in range(w):
                target[j] /= norm[j]
    loss_sum, weight_sum = 0.0, 0.0
    for task in range(n_images * h):
        loss_sum += s[task * (2 * w + 2) + 2 * w]
        weight_sum += s[task * (2 * w + 2) + 2 * w + 1]
    total[()] = weight_sum
    loss[()] = loss_sum / weight_sum


@_checked
@kernel("planes planes labels pixels number flat", lambda dz, *_: dz.shape[0] * dz.shape[2])
def softmax_cross_entropy_backward(dz, p, t, weights, total, s):
    """dz = weights (p - onehot(t)) / total."""
    n_images, labels, h, w = p.shape
    scale = like(1.0, total[()]) / total[()]
    for task in prange(n_images * h):
        n, i = task // h, task % h
        for label in range(labels):
            source, target = row(p, n, label, i), row(dz, n, label, i)
            for j in range(w):
                hit = like(1.0 if t[n, i, j] == label else 0.0, scale)
                target[j] = (source[j] - hit) * weights[n, i, j] * scale


@_checked
@kernel("flat flat flat number flat float bool float float", lambda values, *_: values.size // _BLOCK)
def sgd_update(values, velocity, gradients, lr, s, momentum, nesterov, weight_decay, shrink):
    """Apply one step of `minicnn.sgd.SGD` to the flat parameter and velocity buffers, in place."""
    rate = lr[()]
    for task in prange((values.size + _BLOCK - 1) // _BLOCK):
        for i in range(task * _BLOCK, min(values.size, (task + 1) * _BLOCK)):
            step = -rate * (gradients[i] + weight_decay * values[i])
            velocity[i] = momentum * velocity[i] + step
            move = momentum * velocity[i] + step if nesterov else velocity[i]
            values[i] = shrink * values[i] + move
