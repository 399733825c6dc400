"""Does every kernel of every backend keep the promises of the table, and agree with the reference?"""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest

from minicnn.kernels import BackendError, check_backend, get_backend
from minicnn.kernels.cpu import threads
from minicnn.kernels.signatures import SIGNATURES

POOLINGS = [(2, 2, 0), (3, 2, 1), (3, 1, 2)]  # kernel_size, stride, padding


def assert_close(actual: np.ndarray, expected: np.ndarray, scale: float = 1) -> None:
    tolerance = 1e-5 if actual.dtype == np.float32 else 1e-12
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(scale, np.abs(expected).max()))


def outputs(kernel: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {a.name: arrays[a.name] for a in SIGNATURES[kernel].arguments if a.role in ("out", "accumulate")}


def copies(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in arrays.items()}


# ---- the table


def stand_in(**functions):
    """A backend of functions with the right arguments, except those given."""
    kernels = {
        name: eval(f"lambda {', '.join(argument.name for argument in signature.arguments)}: None")
        for name, signature in SIGNATURES.items()
    }
    return SimpleNamespace(NAME="stand-in", **(kernels | functions))


def test_a_backend_as_the_table_says_is_accepted():
    check_backend(stand_in())


def test_a_missing_kernel_is_named():
    with pytest.raises(BackendError, match=r"stand-in.*tanh_forward"):
        check_backend(stand_in(tanh_forward=None))


def test_arguments_in_another_order_are_named():
    with pytest.raises(BackendError, match=r"tanh_forward takes \(x, y\), the table says \(y, x\)"):
        check_backend(stand_in(tanh_forward=lambda x, y: None))


def test_an_unknown_backend_is_named_with_the_known_ones():
    with pytest.raises(BackendError, match=r"'abacus'.*numba.*numpy"):
        get_backend("abacus")


@pytest.mark.parametrize("name", SIGNATURES)
def test_every_kernel_has_an_example(example, name, rng):
    """The fixture `kernel` runs through the examples: without one a kernel would not be tested."""
    arrays, scalars = example(name, "float32", rng)
    assert [*arrays, *scalars] == [a.name for a in SIGNATURES[name].arguments if a.role != "workspace"]


# ---- every kernel (the `call` fixture also checks shapes, inputs and workspace)


def test_kernel_agrees_with_the_reference(call, reference, example, kernel, dtype, rng):
    ours, scalars = example(kernel, dtype, rng)
    theirs = copies(ours)
    call(kernel, *ours.values(), **scalars)
    reference(kernel, *theirs.values(), **scalars)
    scale = 10 if kernel == "conv2d_tanh_forward" else 1  # the sums, whose rounding counts, are larger than their tanh
    for name, result in outputs(kernel, ours).items():
        assert np.isfinite(result).all(), f"{name} was not written everywhere"
        assert_close(result, theirs[name], scale)


def test_kernel_gives_the_same_bits_again(call, example, kernel, rng):
    first, scalars = example(kernel, "float32", rng)
    second = copies(first)
    call(kernel, *first.values(), **scalars)
    call(kernel, *second.values(), **scalars)
    for name, result in outputs(kernel, first).items():
        np.testing.assert_array_equal(result, second[name])


@pytest.mark.parametrize(
    "kernel", [name for name, signature in SIGNATURES.items() if signature.arguments[-1].name == "add"]
)
def test_add_adds_to_what_was_there(call, example, kernel, dtype, rng):
    stored, scalars = example(kernel, dtype, rng)
    added = copies(stored)
    there = rng.standard_normal(stored["dx"].shape).astype(dtype)
    added["dx"][...] = there
    call(kernel, *stored.values(), **scalars)
    call(kernel, *added.values(), **(scalars | {"add": True}))
    assert_close(added["dx"], there + stored["dx"])


@pytest.mark.parametrize(
    ("kernel", "source"),
    [
        (kernel, argument.name)
        for kernel, signature in SIGNATURES.items()
        for argument in signature.arguments
        if argument.role == "in"
        and argument.dtype == "float"
        # the backward pass of a maximum only compares x and y: their NaN is in dy already
        and (kernel, argument.name) not in {("max_pool2d_backward", "x"), ("max_pool2d_backward", "y")}
    ],
)
def test_nan_of_an_input_reaches_an_output(call, example, kernel, source, rng):
    arrays, scalars = example(kernel, "float32", rng)
    place = (-1, 2, -1, -1) if arrays[source].ndim == 4 else -1 if arrays[source].ndim == 1 else ...
    arrays[source][place] = np.nan  # in channel 2, which every example reads
    for name, output in outputs(kernel, arrays).items():
        if kernel != "sgd_update":
            output[...] = 0
        assert np.isfinite(output).all(), name
    call(kernel, *arrays.values(), **scalars)
    assert any(np.isnan(output).any() for output in outputs(kernel, arrays).values())


# ---- convolution


def convolve_everything(one, x, w, b, dy):
    """y, dx (added to ones), dw and db by one backend."""
    dx = np.ones_like(x)
    y, dw, db = (np.full_like(array, np.nan) for array in (dy, w, b))
    one("conv2d_forward", y, x, w, b)
    one("conv2d_backward_data", dx, dy, w, add=True)
    one("conv2d_backward_weights", dw, db, dy, x)
    return y, dx, dw, db


def test_convolution_agrees_with_the_reference(call, reference, convolution):
    """float64 with the network's windows only: every tile size and dtype costs a second of compilation."""
    for dtype in ("float32", "float64") if convolution[1].shape[2] in (5, 9) else ("float32",):
        arrays = [array.astype(dtype) for array in convolution]
        ours, theirs = convolve_everything(call, *arrays), convolve_everything(reference, *arrays)
        for our, their in zip(ours, theirs, strict=True):
            assert_close(our, their)


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("out_channels", [2, 4, 5, 6, 16, 17, 32])
def test_filters_that_do_not_fill_a_tile(call, reference, out_channels, kernel_size, rng):
    """Counts for which the tiles differ in number and in empty rows, in the input gradient as well."""
    for o, c in ((out_channels, 3), (3, out_channels)):
        shapes = ((2, c, 5, 6), (o, c, kernel_size, kernel_size), (o,), (2, o, 5, 6))
        arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
        ours, theirs = convolve_everything(call, *arrays), convolve_everything(reference, *arrays)
        for our, their in zip(ours, theirs, strict=True):
            assert_close(our, their)


@pytest.mark.parametrize("kernel_size", [5, 9])
def test_nan_spreads_no_further_than_a_tile(call, rng, kernel_size):
    """Winograd's method computes tiles of 4 x 4 pixels from all numbers that any of these pixels needs."""
    x, w = rng.standard_normal((1, 3, 32, 32)), rng.standard_normal((8, 3, kernel_size, kernel_size))
    x[0, 1, 13, 18] = np.nan
    y = np.empty((1, 8, 32, 32))
    call("conv2d_forward", y, x, w, np.zeros(8))
    i, j = np.mgrid[:32, :32]
    distance = np.maximum(abs(i - 13), abs(j - 18))
    assert np.isnan(y[..., distance <= kernel_size // 2]).all()
    assert np.isfinite(y[..., distance > kernel_size // 2 + 4]).all()


def test_one_image_does_not_touch_another(call, rng):
    """NaN in the first image stays there, whatever tiles and padding lie between the two."""
    x, w = rng.standard_normal((2, 3, 5, 6)), rng.standard_normal((8, 3, 5, 5))
    x[0] = np.nan
    y, dx = np.empty((2, 8, 5, 6)), np.empty_like(x)
    call("conv2d_forward", y, x, w, np.zeros(8))
    assert np.isnan(y[0]).all() and np.isfinite(y[1]).all()
    call("conv2d_backward_data", dx, y, w, add=False)
    assert np.isnan(dx[0]).all() and np.isfinite(dx[1]).all()


def test_threads_are_put_back(backend):
    """A plan's thread count holds inside its passes only."""
    before = threads.current()
    with get_backend(backend).threads(1):
        assert threads.current() == (1 if backend == "numba" else before)
    assert threads.current() == before


# ---- max pooling: the gradient goes to the first maximum in row-major order


@pytest.mark.parametrize(("kernel_size", "stride", "padding"), POOLINGS)
def test_a_constant_plane_gives_to_the_first_pixel_of_each_window(call, kernel_size, stride, padding):
    x, y = np.ones((1, 1, 6, 8)), np.ones((1, 1, 6 // stride, 8 // stride))
    dy, dx, expected = np.arange(1.0, y.size + 1).reshape(y.shape), np.empty_like(x), np.zeros_like(x)
    call("max_pool2d_backward", dx, dy, x, y, kernel_size=kernel_size, stride=stride, padding=padding, add=False)
    for _, _, i, j in np.ndindex(y.shape):
        expected[0, 0, max(0, i * stride - padding), max(0, j * stride - padding)] += dy[0, 0, i, j]
    np.testing.assert_array_equal(dx, expected)


def test_ties_in_each_order(call):
    """All 16 patterns of 0 and 1 in a 2 x 2 window, one a channel: upper row first, left before right."""
    patterns = np.array(list(product([0.0, 1.0], repeat=4)))
    x, dx = patterns.reshape(1, 16, 2, 2), np.empty((1, 16, 2, 2))
    y, dy = np.empty((1, 16, 1, 1)), np.full((1, 16, 1, 1), 5.0)
    call("max_pool2d_forward", y, x, kernel_size=2, stride=2, padding=0)
    call("max_pool2d_backward", dx, dy, x, y, kernel_size=2, stride=2, padding=0, add=False)
    expected = 5 * np.eye(4)[[list(pattern).index(max(pattern)) for pattern in patterns]]
    np.testing.assert_array_equal(dx.reshape(16, 4), expected)


def test_ties_in_an_interlinking_layer(call):
    """The same patterns, pooled with their tanh; the gradient of the tanh at 0 is 1."""
    patterns = np.array(list(product([-1.0, 0.0], repeat=4)))
    y, dx, none = np.tanh(patterns).reshape(1, 16, 2, 2), np.empty((1, 16, 2, 2)), np.empty((1, 0, 4, 4))
    dpooled = np.full((1, 16, 1, 1), 5.0)
    call("interlink_backward", dx, np.zeros_like(y), dpooled, none, y)
    slopes = 1 - np.tanh(patterns) ** 2
    expected = 5 * slopes * np.eye(4)[[list(pattern).index(max(pattern)) for pattern in patterns]]
    np.testing.assert_allclose(dx.reshape(16, 4), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("kernel_size", "stride", "padding"), POOLINGS)
def test_ties_in_overlapping_windows(call, kernel_size, stride, padding, rng):
    """Whole numbers throughout, so that sums are exact in any order."""
    x = rng.integers(0, 3, (2, 5, 12, 8)).astype(float)
    y = np.empty((2, 5, 12 // stride, 8 // stride))
    dy, dx, expected = rng.integers(1, 99, y.shape).astype(float), np.empty_like(x), np.zeros_like(x)
    call("max_pool2d_forward", y, x, kernel_size=kernel_size, stride=stride, padding=padding)
    call("max_pool2d_backward", dx, dy, x, y, kernel_size=kernel_size, stride=stride, padding=padding, add=False)
    for n, c, i, j in np.ndindex(y.shape):
        rows = range(max(0, i * stride - padding), i * stride - padding + kernel_size)
        columns = range(max(0, j * stride - padding), j * stride - padding + kernel_size)
        places = list(product(rows, columns))
        first = places[np.argmax([x[n, c, *place] for place in places])]
        expected[n, c, *first] += dy[n, c, i, j]
    np.testing.assert_array_equal(dx, expected)


def test_a_plane_of_minus_infinity_is_its_maximum(call):
    x, y = np.full((1, 1, 4, 4), -np.inf), np.zeros((1, 1, 2, 2))
    call("max_pool2d_forward", y, x, kernel_size=3, stride=2, padding=1)
    np.testing.assert_array_equal(y, -np.inf)


@pytest.mark.parametrize("place", range(4))
def test_maximum_of_a_window_with_nan_is_nan(call, place):
    """Wherever in the window it stands, before or after the largest number."""
    x, y = np.array([3.0, 1, 2, 4]).reshape(1, 1, 2, 2), np.zeros((1, 1, 1, 1))
    x.flat[place] = np.nan
    call("max_pool2d_forward", y, x, kernel_size=2, stride=2, padding=0)
    assert np.isnan(y).all()


# ---- tanh, loss


def test_tanh_at_the_ends_and_near_zero(call, dtype):
    x = np.array([0, 1e-30, 1e-4, 0.5, 5, 20, 88, 89, 710, 1e4, np.inf]).astype(dtype)
    x = np.concatenate([x, -x]).reshape(1, 1, 2, 11)
    y = np.full_like(x, np.nan)
    call("tanh_forward", y, x)
    tolerance = 2e-7 if dtype == "float32" else 1e-15
    np.testing.assert_allclose(y, np.tanh(x.astype(float)), rtol=0, atol=tolerance)


def cross_entropy(call, z, t, weights):
    """Loss and dz of logits z (N, L, H, W)."""
    loss, total, p, dz = np.empty((), z.dtype), np.empty((), z.dtype), np.empty_like(z), np.empty_like(z)
    t = np.asarray(t, np.int32)
    call("softmax_cross_entropy_forward", loss, total, p, z, t, weights)
    call("softmax_cross_entropy_backward", dz, p, t, weights, total)
    return float(loss), p, dz


def test_huge_logits_stay_finite(call, dtype):
    """One pixel is right by 20,000 nats, the other wrong by as much: the loss is the mean of 0 and 20,000."""
    z = np.array([[1e4, 1e4], [-1e4, -1e4]], dtype).reshape(1, 2, 1, 2)
    loss, p, dz = cross_entropy(call, z, [[[0, 1]]], np.ones((1, 1, 2), dtype))
    assert loss == 10_000
    np.testing.assert_allclose(p, [[[[1, 1]], [[0, 0]]]], atol=1e-37)
    np.testing.assert_allclose(dz, [[[[0, 0.5]], [[0, -0.5]]]], atol=1e-37)


@pytest.mark.parametrize("labels", [2, 3, 4, 5, 6, 7, 8, 9])
def test_uniform_logits_lose_log_of_the_label_count(call, labels, rng):
    z, t = np.full((2, labels, 3, 4), 7.0), rng.integers(0, labels, (2, 3, 4))
    loss, p, dz = cross_entropy(call, z, t, np.ones((2, 3, 4)))
    assert loss == pytest.approx(np.log(labels), rel=1e-12)
    np.testing.assert_allclose(p, 1 / labels, rtol=1e-12)
    np.testing.assert_allclose(dz.sum(1), 0, atol=1e-15)


def test_loss_is_the_weighted_mean_of_its_pixels(call, dtype, rng):
    """sum(w l) / sum(w): from the losses of the pixels one by one; a pixel of weight 0 gets no gradient."""
    z, t = rng.standard_normal((2, 4, 3, 5)).astype(dtype), rng.integers(0, 4, (2, 3, 5))
    weights = rng.integers(0, 3, t.shape).astype(dtype)
    loss, _, dz = cross_entropy(call, z, t, weights)
    alone = np.empty(t.shape)
    for n, i, j in np.ndindex(t.shape):
        pixel = np.ascontiguousarray(z[n, :, i, j]).reshape(1, 4, 1, 1)
        label, one = t[n, i, j].reshape(1, 1, 1), np.ones((1, 1, 1), dtype)
        alone[n, i, j], _, _ = cross_entropy(call, pixel, label, one)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    assert loss == pytest.approx((weights * alone).sum() / weights.sum(), rel=tolerance)
    assert (dz[np.broadcast_to(weights[:, None], dz.shape) == 0] == 0).all()
    assert (dz[np.broadcast_to(weights[:, None], dz.shape) > 0] != 0).all()


def test_nan_in_any_logit_makes_the_loss_nan(call, rng):
    """Also in a label that is not the pixel's: the softmax has it in its denominator."""
    t = rng.integers(0, 3, (1, 2, 8), dtype=np.int32)
    for label in range(3):
        z = rng.standard_normal((1, 3, 2, 8))
        z[0, label, 1, 5] = np.nan
        loss, _, dz = cross_entropy(call, z, t, np.ones(t.shape))
        assert np.isnan(loss) and np.isnan(dz[0, :, 1, 5]).all()
