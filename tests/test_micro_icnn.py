"""Is the network in one file the same as the library's: its logits, its gradients, its training?"""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from icnn.model.network import icnn_graph
from icnn.model.weights import SHIPPED, read_network
from icnn.stages import NETWORKS
from minicnn import Plan

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture
def micro(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    import micro_icnn

    with threadpool_limits(1, "blas"):
        yield micro_icnn


def maps(micro, arrays, dtype="float32"):
    return {name: micro.Maps(np.array(array, dtype)) for name, array in arrays.items()}


def plan_of(stored, dtype):
    plan = Plan(stored.graph, batch=1, backend="numpy", dtype=dtype)
    for name, array in stored.parameters.items():
        plan.parameters[name][...] = array
    return plan


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_of_the_shipped_weights_are_those_of_a_plan(micro, rng, name):
    network, stored = NETWORKS[name], read_network(SHIPPED, name)
    image = rng.standard_normal((3, network.size, network.size)).astype(np.float32)
    logits = micro.icnn(image, network.labels, maps(micro, stored.parameters)).y
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, plan_of(stored, "float32").forward(image[None])[0], rtol=0, atol=2e-5)


def test_loss_and_gradients_are_those_of_a_plan(micro, rng):
    """In float64: rounding decides which of two almost equal pixels takes a gradient."""
    stored = read_network(SHIPPED, "mouth")
    image, labels = rng.standard_normal((3, 80, 80)), rng.integers(0, 4, (80, 80))
    plan, parameters = plan_of(stored, "float64"), maps(micro, stored.parameters, "float64")
    plan.forward(image[None])
    loss = micro.icnn(image, 4, parameters).loss(labels)
    assert loss.y == pytest.approx(float(plan.loss(labels[None])), rel=1e-12)
    loss.backward(1)
    plan.backward()
    assert set(parameters) == set(plan.gradients)
    for key, gradient in plan.gradients.items():
        np.testing.assert_allclose(parameters[key].dy, gradient, rtol=0, atol=1e-11 * np.abs(gradient).max())


def test_gradients_are_the_numeric_ones(micro, rng):
    image, labels = rng.standard_normal((3, 16, 16)), rng.integers(0, 3, (16, 16))
    drawn = {}
    micro.icnn(image, 3, drawn, rng)
    values = {name: parameter.y for name, parameter in drawn.items()}

    def loss(values):
        parameters = maps(micro, values, "float64")
        return micro.icnn(image, 3, parameters).loss(labels), parameters

    last, parameters = loss(values)
    last.backward(1)
    for name, value in values.items():
        direction = rng.standard_normal(value.shape)
        above, below = (loss(values | {name: value + eps * direction})[0].y for eps in (1e-5, -1e-5))
        gradient = parameters[name].dy
        error = (above - below) / 2e-5 - np.sum(gradient * direction)
        assert abs(error) < 1e-6 * np.linalg.norm(gradient) * np.linalg.norm(direction), name


def test_parameters_are_drawn_with_the_shapes_of_the_graph(micro, rng):
    parameters = {}
    micro.icnn(np.zeros((3, 8, 8), np.float32), 9, parameters, rng)
    shapes = {name: parameter.y.shape for name, parameter in parameters.items()}
    assert shapes == icnn_graph(labels=9, size=64).parameter_shapes
    assert {parameter.y.dtype for parameter in parameters.values()} == {np.dtype("float32")}


def test_it_trains_and_prints_loss_and_f(micro, capsys):
    parameters = maps(micro, read_network(SHIPPED, "eye").parameters)
    before = {name: parameter.y for name, parameter in parameters.items()}
    micro.train(parameters, np.random.default_rng(0), faces=32, steps=1, batch=1)
    assert float(re.fullmatch(r"step   0  loss 0\.7000  F (0\.\d{3})\n", capsys.readouterr().out)[1]) > 0.8
    assert all((parameters[name].y == array).all() for name, array in before.items()), "the rate is 0 at first and last"
    micro.train(parameters, np.random.default_rng(0), faces=32, steps=2, batch=1)
    assert not any((parameters[name].y == array).all() for name, array in before.items())


def test_it_is_one_short_file_on_numpy_alone(micro):
    source = (ROOT / "examples" / "micro_icnn.py").read_text()
    assert source.count("\n") <= 120
    assert "minicnn" not in source and "micro_icnn" in sys.modules
