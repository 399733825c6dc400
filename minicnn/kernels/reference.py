"""Backend "numpy": the reference implementation, written next to the equations.

It works for any float dtype. Convolution is plain im2col followed by a matrix
multiplication; every other kernel consists of a few strided slices. Shapes and
roles of the arguments: `minicnn.kernels.signatures`.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from numpy.lib.stride_tricks import as_strided

try:
    from threadpoolctl import ThreadpoolController
except ImportError:  # missing only in a manual installation: BLAS then chooses its number of threads
    ThreadpoolController = None

from minicnn.kernels import host
from minicnn.kernels.backend import Backend
from minicnn.kernels.signatures import kernel

_BLAS = ThreadpoolController and ThreadpoolController()


def planes(shape: tuple[int, ...], dtype: str, halo: int) -> np.ndarray:
    """Return zeros (N, C, H, W); `halo` is ignored, this backend does not need one."""
    return np.zeros(shape, dtype)


def threads(count: int) -> AbstractContextManager:
    """Limit the BLAS behind NumPy to `count` threads inside a ``with`` block."""
    return _BLAS.limit(limits=count, user_api="blas") if _BLAS else nullcontext()


# ---- convolution, eq. (1): y[o, i, j] = b[o] + sum over c, u, v of w[o, c, u, v] x[c, i + u - before, j + v - before]


def _padding(k: int) -> int:
    """Return the rows of zeros above a plane, and columns to its left, that keep the output size.

    An even kernel size needs one more row or column after the plane than before it, as in
    `scipy.signal.correlate2d(mode="same")`.
    """
    return (k - 1) // 2


def _im2col(x: np.ndarray, k: int, before: int, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unfold one image (C, H, W) into columns (C K K, H W) in the workspace; return them and the unused workspace."""
    c, h, w = x.shape
    rows, columns = h + k - 1, w + k - 1
    padded, s = s[: c * rows * columns].reshape(c, rows, columns), s[c * rows * columns :]
    padded[...] = 0
    padded[:, before : before + h, before : before + w] = x
    along_c, along_h, along_w = padded.strides
    windows = as_strided(padded, (c, k, k, h, w), (along_c, along_h, along_w, along_h, along_w))
    col = s[: c * k * k * h * w]
    np.copyto(col.reshape(c, k, k, h, w), windows)
    return col.reshape(c * k * k, h * w), s[col.size :]


def _columns_and_weights(C, O, K, H, W, **_) -> int:  # noqa: E741
    return C * (H + K - 1) * (W + K - 1) + C * K * K * H * W + O * C * K * K


@kernel(_columns_and_weights)
def conv2d_forward(y, x, w, b, s):
    o, k = w.shape[0], w.shape[2]
    for n in range(x.shape[0]):
        col, _ = _im2col(x[n], k, _padding(k), s)
        np.matmul(w.reshape(o, -1), col, out=y[n].reshape(o, -1))
    y += b[:, None, None]


@kernel(_columns_and_weights)
def conv2d_tanh_forward(y, pooled, up, x, w, b, s):
    conv2d_forward(y, x, w, b, s)
    interlink_forward(y, pooled, up, y)


@kernel(_columns_and_weights)
def conv2d_backward_data(dx, dy, w, s, add):
    # w^T dy, the gradient of the im2col columns, is summed for each pixel over the windows that contain it
    n_images, c, h, width = dx.shape
    o, k = w.shape[0], w.shape[2]
    before, rows, columns = _padding(k), h + k - 1, width + k - 1
    padded = s[: c * rows * columns].reshape(c, rows, columns)
    dcol = s[padded.size : padded.size + c * k * k * h * width].reshape(c * k * k, h * width)
    for n in range(n_images):
        np.matmul(w.reshape(o, -1).T, dy[n].reshape(o, -1), out=dcol)
        windows = dcol.reshape(c, k, k, h, width)
        padded[...] = 0
        for u in range(k):
            for v in range(k):
                padded[:, u : u + h, v : v + width] += windows[:, u, v]
        _store(dx[n], padded[:, before : before + h, before : before + width], add)


@kernel(_columns_and_weights)
def conv2d_backward_weights(dw, db, dy, x, s):
    # dw = sum over images of dy col^T
    o, k = dw.shape[0], dw.shape[2]
    dw[...] = 0
    for n in range(x.shape[0]):
        col, rest = _im2col(x[n], k, _padding(k), s)
        product = rest[: dw.size].reshape(o, -1)
        np.matmul(dy[n].reshape(o, -1), col.T, out=product)
        dw += product.reshape(dw.shape)
    np.sum(dy, axis=(0, 2, 3), out=db)


def _store(destination: np.ndarray, value: np.ndarray, add: bool) -> None:
    if add:
        destination += value
    else:
        destination[...] = value


# ---- pooling, upsampling, concatenation (Sec. 2.2)


def _window_slices(
    shape: tuple[int, ...], pooled: tuple[int, ...], kernel_size: int, stride: int, padding: int
) -> Iterator[tuple[tuple, tuple]]:
    """Yield, per window position (row-major), the indices of the outputs with a pixel there and of those pixels."""

    def one_axis(offset: int, size: int, out: int) -> tuple[slice, slice]:
        first = max(0, -((offset - padding) // stride))
        stop = min(out, (size - 1 - offset + padding) // stride + 1)
        count = max(0, stop - first)  # 0 if the plane is smaller than the window
        start = first * stride + offset - padding
        return slice(first, first + count), slice(start, start + count * stride, stride)

    for u in range(kernel_size):
        rows_out, rows_in = one_axis(u, shape[2], pooled[2])
        for v in range(kernel_size):
            columns_out, columns_in = one_axis(v, shape[3], pooled[3])
            yield (..., rows_out, columns_out), (..., rows_in, columns_in)


@kernel()
def max_pool2d_forward(y, x, kernel_size, stride, padding):
    y[...] = -np.inf
    for out, pixel in _window_slices(x.shape, y.shape, kernel_size, stride, padding):
        np.maximum(y[out], x[pixel], out=y[out])


@kernel(lambda N, C, P, Q, **_: 2 * N * C * P * Q)
def max_pool2d_backward(dx, dy, x, y, s, kernel_size, stride, padding, add):
    if not add:
        dx[...] = 0
    left = s[: dy.size].reshape(dy.shape)  # gradient not yet assigned to a pixel
    hits = s[dy.size : 2 * dy.size].view(np.bool_)[: dy.size].reshape(dy.shape)
    left[...] = dy
    for out, pixel in _window_slices(x.shape, y.shape, kernel_size, stride, padding):
        hit, gradient = hits[out], dx[pixel]
        np.equal(x[pixel], y[out], out=hit)
        np.add(gradient, left[out], out=gradient, where=hit)
        np.copyto(left[out], 0, where=hit)


@kernel()
def mean_pool2d_forward(y, x, kernel_size):
    y[...] = 0
    for out, pixel in _window_slices(x.shape, y.shape, kernel_size, kernel_size, 0):
        y[out] += x[pixel]
    y *= 1 / kernel_size**2


@kernel(lambda N, C, P, Q, **_: N * C * P * Q)
def mean_pool2d_backward(dx, dy, s, kernel_size, add):
    if not add:
        dx[...] = 0
    share = s[: dy.size].reshape(dy.shape)
    np.multiply(dy, 1 / kernel_size**2, out=share)
    for out, pixel in _window_slices(dx.shape, dy.shape, kernel_size, kernel_size, 0):
        dx[pixel] += share[out]


@kernel()
def upsample_nearest2d_forward(y, x, factor):
    for u in range(factor):
        for v in range(factor):
            y[:, : x.shape[1], u::factor, v::factor] = x


@kernel()
def upsample_nearest2d_backward(dx, dy, factor, add):
    if not add:
        dx[...] = 0
    for u in range(factor):
        for v in range(factor):
            dx += dy[:, : dx.shape[1], u::factor, v::factor]


@kernel()
def parity_maps(y, offset):
    y[:, offset, :, 0::2] = 0
    y[:, offset, :, 1::2] = 1
    y[:, offset + 1, 0::2] = 0
    y[:, offset + 1, 1::2] = 1


@kernel()
def concat_forward(y, x, offset):
    y[:, offset : offset + x.shape[1]] = x


@kernel()
def concat_backward(dx, dy, offset, add):
    _store(dx, dy[:, offset : offset + dx.shape[1]], add)


# ---- activation, loss, update


@kernel()
def tanh_forward(y, x):
    np.tanh(x, out=y)


@kernel(lambda N, C, H, W, **_: N * C * H * W)
def tanh_backward(dx, dy, y, s, add):
    product = s[: y.size].reshape(y.shape)
    np.multiply(y, y, out=product)
    np.subtract(1, product, out=product)
    product *= dy
    _store(dx, product, add)


@kernel()
def interlink_forward(y, pooled, up, x):
    tanh_forward(y, x)
    if pooled.shape[1]:
        max_pool2d_forward(pooled, y, 2, 2, 0)
    if up.shape[1]:
        upsample_nearest2d_forward(up, y, 2)


@kernel(lambda N, C, H, W, **_: N * C * H * W)
def interlink_backward(dx, dy, dpooled, dup, y, s):
    dx[...] = dy if dy.shape[1] else 0
    if dup.shape[1]:
        upsample_nearest2d_backward(dx, dup, 2, True)
    if dpooled.shape[1]:
        pooled = s[: dpooled.size].reshape(dpooled.shape)
        max_pool2d_forward(pooled, y, 2, 2, 0)
        max_pool2d_backward(dx, dpooled, y, pooled, s[dpooled.size :], 2, 2, 0, True)
    tanh_backward(dx, dx, y, s, False)


def _labelled(t: np.ndarray, labels: int, s: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each class index `label` with the mask t == label, stored in the workspace."""
    hit = s[: t.size].view(np.bool_)[: t.size].reshape(t.shape)
    for label in range(labels):
        np.equal(t, label, out=hit)
        yield label, hit


@kernel(lambda N, H, W, **_: 3 * N * H * W)
def softmax_cross_entropy_forward(loss, total, p, z, t, weights, s):
    pixels = weights.size
    peak = s[:pixels].reshape(weights.shape)
    norm = s[pixels : 2 * pixels].reshape(weights.shape)
    np.max(z, axis=1, out=peak)
    np.subtract(z, peak[:, None], out=p)
    np.exp(p, out=p)
    np.sum(p, axis=1, out=norm)
    p /= norm[:, None]
    # -log p[t] = log(norm) + peak - z[t], which stays finite if p[t] underflows
    np.log(norm, out=norm)
    norm += peak
    for label, hit in _labelled(t, z.shape[1], s[2 * pixels :]):
        np.subtract(norm, z[:, label], out=norm, where=hit)
    norm *= weights
    total[...] = np.sum(weights, dtype=np.float64)
    loss[...] = np.sum(norm, dtype=np.float64) / total


@kernel(lambda N, H, W, **_: 3 * N * H * W)
def softmax_cross_entropy_backward(dz, p, t, weights, total, s):
    for label, hit in _labelled(t, p.shape[1], s):
        np.subtract(p[:, label], hit, out=dz[:, label])
    dz *= weights[:, None]
    dz /= total


@kernel(lambda V, **_: V)
def sgd_update(values, velocity, gradients, lr, s, momentum, nesterov, weight_decay, shrink):
    step = s[: values.size]
    np.multiply(values, weight_decay, out=step)
    step += gradients
    step *= -lr
    velocity *= momentum
    velocity += step
    values *= shrink
    if nesterov:
        values += step
        np.multiply(velocity, momentum, out=step)
        values += step
    else:
        values += velocity


BACKEND = Backend("numpy", vars(host) | globals())
