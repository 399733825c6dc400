"""Does the reference compute what the equations say? Each kernel against an oracle that shares no code."""

import math
from itertools import product

import numpy as np
import pytest
from scipy.signal import correlate2d
from scipy.special import log_softmax

# ---- oracles: slow, obvious, and written without minicnn


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal to a few units in the last place of the largest number."""
    tolerance = 1e-5 if actual.dtype == np.float32 else 1e-13
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()))


def correlate_by_scipy(x, w, b):
    """y (N, O, H, W) of x (N, C, H, W), w (O, C, K, K), b (O,)."""
    y = np.zeros((x.shape[0], w.shape[0], *x.shape[2:]))
    for n, o, c in np.ndindex(x.shape[0], *w.shape[:2]):
        y[n, o] += correlate2d(x[n, c].astype(float), w[o, c].astype(float), mode="same", fillvalue=0)
    return y + b[:, None, None]


def windows(height: int, width: int, k: int):
    """For each output pixel (i, j): what of the plane is under its window, and what of the window is in the plane."""
    before = (k - 1) // 2  # an even window looks one further ahead
    for i, j in product(range(height), range(width)):
        top, bottom = max(0, i - before), min(height, i - before + k)
        left, right = max(0, j - before), min(width, j - before + k)
        inside = (..., slice(top, bottom), slice(left, right))
        u, v = before - i, before - j
        yield i, j, inside, (..., slice(top + u, bottom + u), slice(left + v, right + v))


def gradients_by_loops(x, w, dy):
    """dx, dw, db of a correlation: every output pixel sends its gradient to what it was computed from."""
    x, w, dy = x.astype(np.float64), w.astype(np.float64), dy.astype(np.float64)
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for n in range(x.shape[0]):
        for i, j, inside, part in windows(*x.shape[2:], w.shape[2]):
            gradient = dy[n, :, i, j]
            dx[n][inside] += np.tensordot(gradient, w[part], 1)
            dw[part] += np.multiply.outer(gradient, x[n][inside])
    return dx, dw, dy.sum((0, 2, 3))


def pool_by_loops(x, dy, kernel_size, stride, padding):
    """Maxima y (N, C, P, Q), and dx, which gives each dy to the first maximum in row-major order."""
    (height, width), y, dx = x.shape[2:], np.empty(dy.shape), np.zeros(x.shape)
    for n, c, i, j in np.ndindex(dy.shape):
        top, left = i * stride - padding, j * stride - padding
        rows = range(max(0, top), min(height, top + kernel_size))
        columns = range(max(0, left), min(width, left + kernel_size))
        first = max(product(rows, columns), key=lambda place: x[n, c, *place])  # the first of equals
        y[n, c, i, j] = x[n, c, *first]
        dx[n, c, *first] += dy[n, c, i, j]
    return y, dx


def cross_entropy_by_loops(z, t, weights):
    """sum(w l) / sum(w), pixel by pixel."""
    total = 0.0
    for n, i, j in np.ndindex(t.shape):
        total -= weights[n, i, j] * log_softmax(z[n, :, i, j].astype(float))[t[n, i, j]]
    return total / math.fsum(weights.flat)


# ---- convolution


def test_convolution_is_scipys_correlation_summed_over_channels(reference, convolution, dtype):
    x, w, b, dy = (array.astype(dtype) for array in convolution)
    y = np.full_like(dy, np.nan)
    reference("conv2d_forward", y, x, w, b)
    assert_close(y, correlate_by_scipy(x, w, b))


@pytest.mark.parametrize("add", [False, True])
def test_convolution_gradients_are_those_of_nested_loops(reference, convolution, dtype, add):
    x, w, b, dy = (array.astype(dtype) for array in convolution)
    before = np.ones_like(x)
    dx, dw, db = before.copy(), np.full_like(w, np.nan), np.full_like(b, np.nan)
    reference("conv2d_backward_data", dx, dy, w, add=add)
    reference("conv2d_backward_weights", dw, db, dy, x)
    expected_dx, expected_dw, expected_db = gradients_by_loops(x, w, dy)
    assert_close(dx, before + expected_dx if add else expected_dx)
    assert_close(dw, expected_dw)
    assert_close(db, expected_db)


def test_weights_are_not_flipped(reference):
    """A single 1 in the window's top left corner moves the image one down and one to the right."""
    x = np.arange(1.0, 13).reshape(1, 1, 3, 4)
    w = np.zeros((1, 1, 3, 3))
    w[0, 0, 0, 0] = 1
    y, dx = np.empty_like(x), np.empty_like(x)
    reference("conv2d_forward", y, x, w, np.zeros(1))
    np.testing.assert_array_equal(y[0, 0], [[0, 0, 0, 0], [0, 1, 2, 3], [0, 5, 6, 7]])
    reference("conv2d_backward_data", dx, y, w, add=False)
    np.testing.assert_array_equal(dx[0, 0], [[1, 2, 3, 0], [5, 6, 7, 0], [0, 0, 0, 0]])


# ---- pooling, upsampling, concatenation


@pytest.mark.parametrize("plane", [(2, 2), (6, 8), (16, 12)])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (2, 1, 1), (3, 1, 2), (1, 2, 0), (4, 2, 3)]
)
def test_max_pooling_and_its_gradient(reference, rng, dtype, plane, kernel_size, stride, padding):
    """Integers from 0 to 3, so that most windows hold ties."""
    x = rng.integers(0, 4, (2, 3, *plane)).astype(dtype)
    dy = rng.standard_normal((2, 3, plane[0] // stride, plane[1] // stride)).astype(dtype)
    y, dx, added = np.full_like(dy, np.nan), np.full_like(x, np.nan), np.ones_like(x)
    settings = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
    reference("max_pool2d_forward", y, x, **settings)
    reference("max_pool2d_backward", dx, dy, x, y, **settings, add=False)
    reference("max_pool2d_backward", added, dy, x, y, **settings, add=True)
    expected_y, expected_dx = pool_by_loops(x, dy, kernel_size, stride, padding)
    np.testing.assert_array_equal(y, expected_y)
    assert_close(dx, expected_dx)
    assert_close(added, 1 + expected_dx)


def test_border_is_never_the_maximum(reference):
    x = np.full((1, 1, 4, 4), -1e20)
    y = np.empty((1, 1, 2, 2))
    reference("max_pool2d_forward", y, x, kernel_size=3, stride=2, padding=1)
    np.testing.assert_array_equal(y, -1e20)


@pytest.mark.parametrize("kernel_size", [2, 3])
def test_mean_pooling_and_its_gradient(reference, rng, dtype, kernel_size):
    x = rng.standard_normal((2, 3, 6, 12)).astype(dtype)
    dy = rng.standard_normal((2, 3, 6 // kernel_size, 12 // kernel_size)).astype(dtype)
    y, dx, added = np.full_like(dy, np.nan), np.full_like(x, np.nan), np.ones_like(x)
    reference("mean_pool2d_forward", y, x, kernel_size=kernel_size)
    reference("mean_pool2d_backward", dx, dy, kernel_size=kernel_size, add=False)
    reference("mean_pool2d_backward", added, dy, kernel_size=kernel_size, add=True)
    for n, c, i, j in np.ndindex(y.shape):
        tile = (n, c, slice(i * kernel_size, (i + 1) * kernel_size), slice(j * kernel_size, (j + 1) * kernel_size))
        assert y[n, c, i, j] == pytest.approx(x[tile].mean(), abs=1e-6)
        np.testing.assert_allclose(dx[tile], dy[n, c, i, j] / kernel_size**2, rtol=1e-6)
    assert_close(added, 1 + dx)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_upsampling_and_its_gradient(reference, rng, dtype, factor):
    """The output has two channels more, which belong to the parity maps: upsampling leaves them alone."""
    x = rng.standard_normal((2, 3, 4, 5)).astype(dtype)
    dy = rng.standard_normal((2, 5, 4 * factor, 5 * factor)).astype(dtype)
    y, dx, added = np.full_like(dy, 7), np.full_like(x, np.nan), np.ones_like(x)
    reference("upsample_nearest2d_forward", y, x, factor=factor)
    reference("upsample_nearest2d_backward", dx, dy, factor=factor, add=False)
    reference("upsample_nearest2d_backward", added, dy, factor=factor, add=True)
    np.testing.assert_array_equal(y[:, :3], np.kron(x, np.ones((factor, factor))))
    np.testing.assert_array_equal(y[:, 3:], 7)
    expected = np.zeros(x.shape)
    for n, c, i, j in np.ndindex(2, 3, *dy.shape[2:]):
        expected[n, c, i // factor, j // factor] += dy[n, c, i, j]
    assert_close(dx, expected)
    assert_close(added, 1 + expected)


def test_parity_maps_are_columns_then_rows(reference, dtype):
    y = np.full((2, 4, 3, 5), 7, dtype)
    reference("parity_maps", y, offset=1)
    columns, rows = [[0, 1, 0, 1, 0]] * 3, [[0] * 5, [1] * 5, [0] * 5]
    for image in y:
        np.testing.assert_array_equal(image[1], columns)
        np.testing.assert_array_equal(image[2], rows)
    np.testing.assert_array_equal(y[:, [0, 3]], 7)


def test_concatenation_and_its_gradient(reference, rng, dtype):
    x, dy = rng.standard_normal((2, 3, 4, 5)).astype(dtype), rng.standard_normal((2, 6, 4, 5)).astype(dtype)
    y, dx, added = np.full_like(dy, 7), np.full_like(x, np.nan), np.ones_like(x)
    reference("concat_forward", y, x, offset=2)
    reference("concat_backward", dx, dy, offset=2, add=False)
    reference("concat_backward", added, dy, offset=2, add=True)
    np.testing.assert_array_equal(y[:, 2:5], x)
    np.testing.assert_array_equal(y[:, [0, 1, 5]], 7)
    np.testing.assert_array_equal(dx, dy[:, 2:5])
    np.testing.assert_array_equal(added, 1 + dy[:, 2:5])


# ---- activation, loss, update


def test_tanh_and_its_gradient(reference, rng, dtype):
    x = [*(3 * rng.standard_normal(20)), 0, -0.0, 1e-6, 30, -30, 1e4, -1e4, np.inf]
    x, dy = np.reshape(x, (1, 2, 2, 7)).astype(dtype), rng.standard_normal((1, 2, 2, 7)).astype(dtype)
    y, dx, added = np.full_like(x, np.nan), np.full_like(x, np.nan), np.ones_like(x)
    reference("tanh_forward", y, x)
    reference("tanh_backward", dx, dy, y, add=False)
    reference("tanh_backward", added, dy, y, add=True)
    assert_close(y, np.vectorize(math.tanh)(x.astype(np.float64)))
    assert_close(dx, dy * (1 - y.astype(np.float64) ** 2))
    assert_close(added, 1 + dx)


@pytest.mark.parametrize("labels", range(2, 10))
def test_cross_entropy_and_its_gradient(reference, rng, dtype, labels):
    z = 3 * rng.standard_normal((2, labels, 3, 4)).astype(dtype)
    t = rng.integers(0, labels, (2, 3, 4), dtype=np.int32)
    weights = (rng.uniform(0, 2, t.shape) * rng.integers(0, 2, t.shape)).astype(dtype)  # about half are 0
    loss, total, p, dz = np.empty((), dtype), np.empty((), dtype), np.empty_like(z), np.empty_like(z)
    reference("softmax_cross_entropy_forward", loss, total, p, z, t, weights)
    reference("softmax_cross_entropy_backward", dz, p, t, weights, total)
    assert_close(loss, cross_entropy_by_loops(z, t, weights))
    assert_close(total, weights.sum())
    softmax = np.exp(log_softmax(z.astype(np.float64), axis=1))
    assert_close(p, softmax)
    onehot = np.moveaxis(np.eye(labels)[t], 3, 1)
    assert_close(dz, (softmax - onehot) * (weights / weights.sum())[:, None])


def test_convolution_is_torchs(reference, convolution):
    """A second opinion, where torch is installed."""
    torch = pytest.importorskip("torch")
    x, w, b, dy = convolution
    y, dx, dw, db = (np.full_like(array, np.nan) for array in (dy, x, w, b))
    reference("conv2d_forward", y, x, w, b)
    reference("conv2d_backward_data", dx, dy, w, add=False)
    reference("conv2d_backward_weights", dw, db, dy, x)
    leaves = [torch.tensor(array, requires_grad=True) for array in (x, w, b)]
    before, after = (w.shape[2] - 1) // 2, w.shape[2] // 2
    padded = torch.nn.functional.pad(leaves[0], (before, after, before, after))
    result = torch.nn.functional.conv2d(padded, *leaves[1:])
    result.backward(torch.tensor(dy))
    for ours, theirs in zip((y, dx, dw, db), (result.detach(), *(leaf.grad for leaf in leaves)), strict=True):
        assert_close(ours, theirs.numpy())
