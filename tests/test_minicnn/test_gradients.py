"""Are the gradients right? Every kernel alone, every layer in a plan and the whole network, by differences."""

import numpy as np
import pytest

from icnn.model.network import icnn_graph
from minicnn import Graph, Plan
from minicnn.gradcheck import check_plan, numeric_gradient, relative_error, tie_free
from minicnn.kernels import get_backend
from minicnn.layers import Concat, Conv2D, Input, MaxPool2D, MeanPool2D, Tanh, UpsampleNearest2D

TOLERANCE = 1e-6


# ---- the checks themselves


def test_numeric_gradient_of_a_known_function(rng):
    x = rng.standard_normal((2, 3))
    kept = x.copy()
    assert relative_error(numeric_gradient(lambda: float(np.sum(x**3)), x), 3 * x**2) < 1e-8
    np.testing.assert_array_equal(x, kept)


def test_relative_error_is_over_the_largest_magnitude():
    assert relative_error(np.array([1.0, 100]), np.array([2.0, 100])) == 0.01
    assert relative_error(np.zeros(3), np.zeros(3)) == 0


def test_tie_free_values_are_apart(rng):
    values = np.sort(tie_free((3, 4, 5), rng), axis=None)
    assert np.diff(values).min() > 1.99 / 60 and np.abs(values).max() < 1


def test_a_wrong_gradient_is_found(monkeypatch, rng):
    """That of a concatenation which forgets the first of its two writers."""

    def error() -> float:
        plan = Plan(layer_graph(Concat(), "image", "image"), batch=2, dtype="float64", input_gradient=True)
        return check_plan(plan, images, labels)["images"]

    images, labels = rng.standard_normal((2, 3, 4, 4)), rng.integers(0, 6, (2, 4, 4))
    assert error() < TOLERANCE
    kernels = get_backend("numpy")._kernels
    right = kernels["concat_backward"]
    monkeypatch.setitem(kernels, "concat_backward", lambda dx, dy, offset, add: right(dx, dy, offset, False))
    assert error() > 0.01


# ---- every kernel alone


def check_kernel(call, pair, inputs, y_shape, rng, reads="", **scalars):
    """Compare a backward kernel with differences of sum(y r), y from the forward kernel, r random.

    `pair` is the part of both names before "_forward" and "_backward..."; the gradient of the first of `inputs`,
    which forward reads, is checked. `reads` says what backward takes behind dy, letters of x, w and y.
    """
    forward, backward = (f"{pair}_forward", f"{pair}_backward{'_data' if pair == 'conv2d' else ''}")
    y, r = np.full(y_shape, np.nan), rng.standard_normal(y_shape)

    def f() -> float:
        call(forward, y, *inputs, **scalars)
        return float(np.sum(y * r))

    f()
    known = {"x": inputs[0], "y": y, "w": inputs[-2:][0]}
    gradient = np.full_like(inputs[0], np.nan)
    call(backward, gradient, r, *(known[letter].copy() for letter in reads), **scalars, add=False)
    assert relative_error(gradient, numeric_gradient(f, inputs[0])) < TOLERANCE


@pytest.mark.parametrize("k", [5, 9])
def test_convolution_input_gradient(call, rng, k):
    inputs = [rng.standard_normal(shape) for shape in ((2, 3, 4, 5), (3, 3, k, k), (3,))]
    check_kernel(call, "conv2d", inputs, (2, 3, 4, 5), rng, reads="w")


@pytest.mark.parametrize("k", [5, 9])
def test_convolution_parameter_gradients(call, rng, k):
    x, w, b = (rng.standard_normal(shape) for shape in ((2, 2, 4, 5), (3, 2, k, k), (3,)))
    y, r = np.empty((2, 3, 4, 5)), rng.standard_normal((2, 3, 4, 5))
    dw, db = np.full_like(w, np.nan), np.full_like(b, np.nan)
    call("conv2d_backward_weights", dw, db, r, x)

    def f() -> float:
        call("conv2d_forward", y, x, w, b)
        return float(np.sum(y * r))

    assert relative_error(dw, numeric_gradient(f, w)) < TOLERANCE
    assert relative_error(db, numeric_gradient(f, b)) < TOLERANCE


@pytest.mark.parametrize(("kernel_size", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 2)])
def test_max_pooling_gradient(call, rng, kernel_size, stride, padding):
    """Inputs without ties: no difference of 1e-5 moves a maximum to another pixel."""
    x, y_shape = tie_free((2, 2, 6, 4), rng), (2, 2, 6 // stride, 4 // stride)
    settings = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
    check_kernel(call, "max_pool2d", [x], y_shape, rng, reads="xy", **settings)


@pytest.mark.parametrize("kernel_size", [2, 3])
def test_mean_pooling_gradient(call, rng, kernel_size):
    x, y_shape = rng.standard_normal((2, 2, 6, 6)), (2, 2, 6 // kernel_size, 6 // kernel_size)
    check_kernel(call, "mean_pool2d", [x], y_shape, rng, kernel_size=kernel_size)


@pytest.mark.parametrize(("own", "pooled", "up"), [(2, 2, 2), (2, 0, 2), (2, 2, 0), (0, 2, 2), (2, 0, 0)])
def test_interlinking_gradient(call, rng, own, pooled, up):
    """Of the tanh and both of its copies; those that have no channels are not there."""
    x = tie_free((2, 2, 6, 4), rng)
    y, planes, doubled = np.empty_like(x), np.empty((2, pooled, 3, 2)), np.empty((2, up, 12, 8))
    dy, dpooled, dup = (rng.standard_normal(shape) for shape in ((2, own, 6, 4), planes.shape, doubled.shape))

    def f() -> float:
        call("interlink_forward", y, planes, doubled, x)
        return float(np.sum(y[:, :own] * dy) + np.sum(planes * dpooled) + np.sum(doubled * dup))

    f()
    gradient = np.full_like(x, np.nan)
    call("interlink_backward", gradient, dy, dpooled, dup, y.copy())
    assert relative_error(gradient, numeric_gradient(f, x)) < TOLERANCE


@pytest.mark.parametrize("factor", [2, 3])
def test_upsampling_gradient(call, rng, factor):
    x, y_shape = rng.standard_normal((2, 2, 3, 4)), (2, 2, 3 * factor, 4 * factor)
    check_kernel(call, "upsample_nearest2d", [x], y_shape, rng, factor=factor)


def test_concatenation_gradient(call, rng):
    """The channels around x's own are not written: 0 for both values of a difference."""
    x, y, r = rng.standard_normal((2, 2, 3, 4)), np.zeros((2, 5, 3, 4)), rng.standard_normal((2, 5, 3, 4))
    dx = np.full_like(x, np.nan)
    call("concat_backward", dx, r, offset=2, add=False)

    def f() -> float:
        call("concat_forward", y, x, offset=2)
        return float(np.sum(y * r))

    assert relative_error(dx, numeric_gradient(f, x)) < TOLERANCE


def test_tanh_gradient(call, rng):
    x = 2 * rng.standard_normal((2, 2, 3, 4))
    check_kernel(call, "tanh", [x], x.shape, rng, reads="y")


@pytest.mark.parametrize("labels", [2, 9])
def test_cross_entropy_gradient(call, rng, labels):
    z, t = 2 * rng.standard_normal((2, labels, 3, 4)), rng.integers(0, labels, (2, 3, 4), dtype=np.int32)
    weights = rng.uniform(0, 1, t.shape) * rng.integers(0, 2, t.shape)
    loss, total, p, dz = np.empty(()), np.empty(()), np.empty_like(z), np.full_like(z, np.nan)

    def f() -> float:
        call("softmax_cross_entropy_forward", loss, total, p, z, t, weights)
        return float(loss)

    f()
    call("softmax_cross_entropy_backward", dz, p.copy(), t, weights, total.copy())
    assert relative_error(dz, numeric_gradient(f, z)) < TOLERANCE


# ---- every layer in a plan of its own


def layer_graph(layer, *inputs) -> Graph:
    graph = Graph()
    graph.add("image", Input(3, 4, 4))
    graph.add("layer", layer, *inputs)
    return graph


@pytest.mark.parametrize(
    "layer",
    [
        Conv2D(3, 5),
        MaxPool2D(),
        MaxPool2D(3, 2, 1),
        MaxPool2D(3, 1, 2),
        MeanPool2D(),
        UpsampleNearest2D(),
        UpsampleNearest2D(3, parity=True),
        Concat(),
        Tanh(),
    ],
    ids=str,
)
def test_layer(backend, rng, layer):
    inputs = ("image", "image") if layer == Concat() else ("image",)
    plan = Plan(layer_graph(layer, *inputs), batch=2, backend=backend, dtype="float64", input_gradient=True)
    labels, height, width = plan.graph.output.shape
    errors = check_plan(plan, tie_free((2, 3, 4, 4), rng), rng.integers(0, labels, (2, height, width)))
    assert set(errors) == {*plan.parameters, "images"}
    assert max(errors.values()) < TOLERANCE


# ---- the whole network


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_network(backend, rng, preset):
    """With Glorot weights in both presets.

    The released program's are so small that the loss's rounding (1e-16), divided by eps and by the gradients of
    row 4 (4e-5), is 1e-5 of the comparison. From eps 1e-4 on maxima change places; at 1e-5 none does here.
    """
    graph = icnn_graph(labels=3, size=16, preset=preset)
    plan = Plan(graph, batch=2, backend=backend, dtype="float64", threads=1, input_gradient=True)
    for name, array in plan.parameters.items():
        values = rng.uniform(-0.1, 0.1, array.shape)
        if name.endswith("/weight"):
            values *= 10 * np.sqrt(6 / (array[0].size + array[:, 0].size))
        plan.upload(array, values)
    images, labels = rng.standard_normal((2, 3, 16, 16)), rng.integers(0, 3, (2, 16, 16))
    errors = check_plan(plan, images, labels, weights=rng.uniform(0, 1, labels.shape), eps=1e-5)
    assert set(errors) == {*plan.parameters, "images"}
    assert max(errors.values()) < TOLERANCE, sorted(errors.items(), key=lambda item: -item[1])[:3]
