"""Does the update follow its equations, and the schedules their formulas?"""

import math

import numpy as np
import pytest

from minicnn import SGD, Graph, Plan
from minicnn.layers import Conv2D, Input
from minicnn.sgd import Constant, Cosine, Exponential

SETTINGS = [
    {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "shrink": 1.0},
    {"momentum": 0.8, "nesterov": False, "weight_decay": 0.0, "shrink": 1.0},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.0, "shrink": 1.0},
    {"momentum": 0.8, "nesterov": False, "weight_decay": 0.03, "shrink": 0.99},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.03, "shrink": 0.99},
]


def updates_by_hand(values, gradients, rates, momentum, nesterov, weight_decay, shrink):
    """Values and velocity after one update for each row of gradients, number by number."""
    values, velocity = [float(value) for value in values], [0.0] * len(values)
    for row, lr in zip(gradients, rates, strict=True):
        for i, gradient in enumerate(row):
            g = float(gradient) + weight_decay * values[i]
            velocity[i] = momentum * velocity[i] - lr * g
            move = momentum * velocity[i] - lr * g if nesterov else velocity[i]
            values[i] = shrink * values[i] + move
    return values, velocity


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_updates_are_those_by_hand(call, rng, dtype, settings):
    values, gradients = rng.standard_normal(37).astype(dtype), rng.standard_normal((5, 37)).astype(dtype)
    velocity, rates = np.zeros_like(values), [0.1, 0.2, 0.1, 0.05, 0.3]
    expected = updates_by_hand(values, gradients, rates, **settings)
    for row, lr in zip(gradients, rates, strict=True):
        call("sgd_update", values, velocity, row, np.array(lr, dtype), **settings)
    tolerance = 1e-6 if dtype == "float32" else 1e-14
    np.testing.assert_allclose(values, expected[0], rtol=0, atol=5 * tolerance)
    np.testing.assert_allclose(velocity, expected[1], rtol=0, atol=5 * tolerance)


@pytest.mark.parametrize("settings", SETTINGS[:3], ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.03])
def test_updates_are_torchs_at_a_constant_rate(call, rng, settings, weight_decay):
    """torch multiplies its velocity by the rate later: the same as long as the rate stays."""
    torch = pytest.importorskip("torch")
    settings = settings | {"weight_decay": weight_decay}
    values, gradients = rng.standard_normal(37), rng.standard_normal((5, 37))
    parameter = torch.nn.Parameter(torch.tensor(values))
    chosen = {name: settings[name] for name in ("momentum", "nesterov", "weight_decay")}
    theirs = torch.optim.SGD([parameter], lr=0.1, **chosen)
    velocity = np.zeros_like(values)
    for row in gradients:
        parameter.grad = torch.tensor(row)
        theirs.step()
        call("sgd_update", values, velocity, row, np.array(0.1), **settings)
    np.testing.assert_allclose(values, parameter.detach().numpy(), rtol=0, atol=1e-14)


def one_convolution(backend: str) -> Plan:
    graph = Graph()
    graph.add("image", Input(3, 4, 4))
    graph.add("y", Conv2D(3, 5), "image")
    return Plan(graph, batch=1, backend=backend, dtype="float64", threads=1)


def test_a_plan_asks_the_schedule_for_the_rate_of_each_step(backend, rng):
    """Weights and biases alike; steps are counted from 0, one for each update."""
    plan, asked = one_convolution(backend), []

    def schedule(step: int) -> float:
        asked.append(step)
        return 0.1 / (step + 1)

    settings = SETTINGS[-1]
    first = np.concatenate([array.ravel() for array in plan.parameters.values()])
    gradients = []
    images, labels = rng.standard_normal((1, 3, 4, 4)), rng.integers(0, 3, (1, 4, 4))
    for _ in range(3):
        plan.step(images, labels, SGD(lr=schedule, **settings))
        gradients.append(np.concatenate([array.ravel() for array in plan.gradients.values()]))
    expected, _ = updates_by_hand(first, gradients, [0.1, 0.05, 0.1 / 3], **settings)
    last = np.concatenate([array.ravel() for array in plan.parameters.values()])
    np.testing.assert_allclose(last, expected, rtol=0, atol=1e-14)
    assert asked == [0, 1, 2] and plan.step_count == 3


def test_a_rate_of_zero_changes_nothing(backend, rng):
    plan = one_convolution(backend)
    before = plan.state()["values"]
    plan.step(rng.standard_normal((1, 3, 4, 4)), rng.integers(0, 3, (1, 4, 4)), SGD(lr=0.0))
    np.testing.assert_array_equal(plan.state()["values"], before)


def test_steps_reduce_the_loss(backend, rng):
    plan = one_convolution(backend)
    images, labels = rng.standard_normal((1, 3, 4, 4)), rng.integers(0, 3, (1, 4, 4))
    losses = [float(plan.step(images, labels, SGD(lr=0.1, momentum=0.8))) for _ in range(30)]
    assert losses[-1] < 0.2 * losses[0]


# ---- schedules


def test_constant():
    assert [Constant(0.3)(step) for step in (0, 7, 10**6)] == [0.3] * 3
    assert SGD(lr=0.3).rate(5) == 0.3


def test_exponential():
    schedule = Exponential(lr=0.8, factor=0.5, every=10)
    assert [schedule(step) for step in (0, 9, 10, 19, 20)] == [0.8, 0.8, 0.4, 0.4, 0.2]


def test_cosine_warms_up_and_ends_at_zero():
    schedule = Cosine(lr=0.8, steps=24, warmup=4)
    assert [schedule(step) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert schedule(4) == 0.8
    assert schedule(14) == pytest.approx(0.4)
    assert schedule(9) == pytest.approx(0.4 * (1 + math.cos(math.pi / 4)))
    assert schedule(24) == pytest.approx(0) and schedule(99) == pytest.approx(0)


def test_cosine_without_warm_up_begins_at_its_rate():
    assert Cosine(lr=0.8, steps=10)(0) == 0.8


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": -0.1}, "learning rate of at least 0, got -0.1"),
        ({"lr": math.nan}, "learning rate of at least 0, got nan"),
        ({"lr": 0.1, "momentum": 1.0}, r"momentum in \[0, 1\), got 1.0"),
        ({"lr": 0.1, "momentum": -0.5}, r"momentum in \[0, 1\), got -0.5"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        SGD(**wrong)
