"""Backend "numba": plain loops that LLVM turns into vector code, one prange over planes.

Convolution, which takes nearly all the time, is in `cpu_convolution`. Shapes
and roles: `minicnn.kernels`. float32 and float64 run through the same code.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numpy as np
from numba import njit, prange
from numba.core import config

from minicnn.kernels.cpu_convolution import (
    conv2d_backward_data,
    conv2d_backward_weights,
    conv2d_forward,
    convolution_scratch,
)
from minicnn.kernels.jit import PARALLEL, SERIAL, exp, like

__all__ = ["conv2d_backward_data", "conv2d_backward_weights", "conv2d_forward"]  # part of the backend

NAME = "numba"

empty = np.empty
zeros = np.zeros
download = np.asarray


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


def scratch_size(kernel: str, **size: int) -> int:
    """Elements of scratch that `kernel` needs for the sizes given as shape letters."""
    if kernel.startswith("conv2d"):
        return convolution_scratch(kernel, **size)
    if kernel == "softmax_cross_entropy_forward":
        return size["N"] * size["H"] * (2 * size["W"] + 1)
    return 0


# ---- pooling, upsampling, concatenation (Sec. 2.2)


@njit(**PARALLEL)
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


@njit(**PARALLEL)
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


@njit(**SERIAL)
def _first_equal(x, peak, top, left, window):
    for row in range(max(top, 0), top + window):
        for column in range(max(left, 0), left + window):
            if x[row, column] == peak:
                return row, column
    return max(top, 0), max(left, 0)  # the maximum is NaN


@njit(**PARALLEL)
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


@njit(**PARALLEL)
def mean_pool2d_backward(dx, dy, s, window, add):
    """Each pixel of a tile gets dy / window^2."""
    n_images, channels, h, w = dx.shape
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        for i in range(h):
            for j in range(w):
                share = dy[n, c, i // window, j // window] / (window * window)
                dx[n, c, i, j] = dx[n, c, i, j] + share if add else share


@njit(**PARALLEL)
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


@njit(**PARALLEL)
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


@njit(**SERIAL)
def parity_maps(y, offset):
    """Channel `offset` of y: 0 on even columns, 1 on odd ones; the next channel: likewise by row."""
    for n in range(y.shape[0]):
        for i in range(y.shape[2]):
            for j in range(y.shape[3]):
                y[n, offset, i, j] = j % 2
                y[n, offset + 1, i, j] = i % 2


@njit(**PARALLEL)
def concat_forward(y, x, offset):
    """Copy x into the channels of y that begin at `offset`."""
    n_images, channels = x.shape[:2]
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        y[n, offset + c] = x[n, c]


@njit(**PARALLEL)
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


@njit(**PARALLEL)
def tanh_forward(y, x):
    """y = tanh(x) = 1 - 2 / (e^2x + 1), the f of eq. (1); absolute error below 2e-7 in float32."""
    n_images, channels, h, w = y.shape
    for task in prange(n_images * channels):
        n, c = task // channels, task % channels
        for i in range(h):
            row, target = x[n, c, i], y[n, c, i]
            for j in range(w):
                e = exp(row[j] + row[j])
                target[j] = like(1.0, e) - like(2.0, e) / (e + like(1.0, e))


@njit(**PARALLEL)
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


@njit(**PARALLEL)
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
                target[j] = exp(row[j] - peak[j])
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


@njit(**PARALLEL)
def softmax_cross_entropy_backward(dz, p, t, weights, total, s):
    """dz = weights (p - onehot(t)) / total."""
    n_images, labels, h, w = p.shape
    scale = like(1.0, total[()]) / total[()]
    for task in prange(n_images * h):
        n, i = task // h, task % h
        for label in range(labels):
            row, target = p[n, label, i], dz[n, label, i]
            for j in range(w):
                hit = like(1.0 if t[n, i, j] == label else 0.0, scale)
                target[j] = (row[j] - hit) * weights[n, i, j] * scale


@njit(**PARALLEL)
def sgd_update(values, velocity, gradients, s, lr, momentum, nesterov, weight_decay, shrink):
    """One step of `minicnn.sgd.SGD` on the flat buffers."""
    for i in prange(values.size):
        step = -lr * (gradients[i] + weight_decay * values[i])
        velocity[i] = momentum * velocity[i] + step
        move = momentum * velocity[i] + step if nesterov else velocity[i]
        values[i] = shrink * values[i] + move
