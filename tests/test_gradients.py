"""Are the gradients right? Every kernel alone, every layer in a plan, and the whole network, against differences."""

import numpy as np
import pytest

from icnn.network import icnn_graph
from minicnn import Graph, Plan
from minicnn.gradcheck import check_plan, numeric_gradient, relative_error, tie_free
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


def test_a_wrong_gradient_is_found(rng):
    """The input gradient of a concatenation that forgets one of its two writers, as an `add` layer elsewhere does."""
    graph = layer_graph(Concat(), "image", "image")
    plan = Plan(graph, batch=2, dtype="float64", input_gradient=True)
    images, labels = rng.standard_normal((2, 3, 4, 4)), rng.integers(0, 6, (2, 4, 4))
    assert check_plan(plan, images, labels)["images"] < TOLERANCE
    original = plan._kernels.concat_backward
    try:
        plan._kernels.concat_backward = lambda dx, dy, offset, add: original(dx, dy, offset, False)
        assert check_plan(plan, images, labels)["images"] > 0.01
    finally:
        plan._kernels.concat_backward = original


# ---- every kernel alone


def check_kernel(call, forward, backward, inputs, y_shape, rng, reads=(), scalars=None, dx_count=1):
    """Compare a backward kernel with differences of sum(y r), y from the forward kernel, r random.

    `inputs` are what forward reads; the gradients of the first `dx_count` of them are checked. `reads` says what
    backward takes behind dy: names "x", "w" or "y".
    """
    scalars = scalars or {}
    y, r = np.full(y_shape, np.nan), rng.standard_normal(y_shape)

    def f() -> float:
        call(forward, y, *inputs, **scalars)
        return float(np.sum(y * r))

    f()
    known = {"x": inputs[0], "y": y, "w": inputs[1] if len(inputs) > 1 else None}
    gradients = [np.full_like(x, np.nan) for x in inputs[:dx_count]]
    add = {} if "weights" in backward else {"add": False}
    call(backward, *gradients, r, *(known[name].copy() for name in reads), **scalars, **add)
    for x, gradient in zip(inputs, gradients, strict=False):
        assert relative_error(gradient, numeric_gradient(f, x)) < TOLERANCE


@pytest.mark.parametrize("k", [5, 9])
def test_convolution_input_gradient(call, rng, k):
    inputs = [rng.standard_normal(shape) for shape in ((2, 3, 4, 5), (3, 3, k, k), (3,))]
    check_kernel(call, "conv2d_forward", "conv2d_backward_data", inputs, (2, 3, 4, 5), rng, reads=("w",))


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


@pytest.mark.parametrize(("window", "stride", "border"), [(2, 2, 0), (3, 2, 1), (3, 1, 2)])
def test_max_pooling_gradient(call, rng, window, stride, border):
    """Inputs without ties: no difference of 1e-5 moves a maximum to another pixel."""
    x, y_shape = tie_free((2, 2, 6, 4), rng), (2, 2, 6 // stride, 4 // stride)
    settings = {"window": window, "stride": stride, "border": border}
    check_kernel(
        call, "max_pool2d_forward", "max_pool2d_backward", [x], y_shape, rng, reads=("x", "y"), scalars=settings
    )


@pytest.mark.parametrize("window", [2, 3])
def test_mean_pooling_gradient(call, rng, window):
    x, y_shape = rng.standard_normal((2, 2, 6, 6)), (2, 2, 6 // window, 6 // window)
    check_kernel(
        call, "mean_pool2d_forward", "mean_pool2d_backward", [x], y_shape, rng, scalars={"window": window}
    )


@pytest.mark.parametrize("factor", [2, 3])
def test_upsampling_gradient(call, rng, factor):
    x, y_shape = rng.standard_normal((2, 2, 3, 4)), (2, 2, 3 * factor, 4 * factor)
    scalars = {"factor": factor}
    check_kernel(
        call, "upsample_nearest2d_forward", "upsample_nearest2d_backward", [x], y_shape, rng, scalars=scalars
    )


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
    check_kernel(call, "tanh_forward", "tanh_backward", [x], x.shape, rng, reads=("y",))


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
    plan = Plan(
        icnn_graph(labels=3, size=16, preset=preset), batch=2, backend=backend, dtype="float64", input_gradient=True
    )
    images, labels = rng.standard_normal((2, 3, 16, 16)), rng.integers(0, 3, (2, 16, 16))
    errors = check_plan(plan, images, labels, weights=rng.uniform(0, 1, labels.shape))
    assert len(errors) == 2 * 20 + 1
    assert max(errors.values()) < TOLERANCE, sorted(errors.items(), key=lambda item: -item[1])[:3]
