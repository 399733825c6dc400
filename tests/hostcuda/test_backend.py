"""Does the GPU backend train as the reference does: eagerly, as a recorded graph, and with batches that travel late?"""

import gc

import numpy as np
import pytest
import standin

from icnn.model.network import icnn_graph
from minicnn import SGD, Graph, Plan
from minicnn.gradcheck import check_plan
from minicnn.kernels import BackendError, choose_backend, get_backend
from minicnn.layers import Concat, Conv2D, Input, MaxPool2D, MeanPool2D, Tanh, UpsampleNearest2D

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("device")]

OPTIMISER = SGD(lr=lambda step: 0.1 / (step + 1), momentum=0.8, nesterov=True, weight_decay=0.001, shrink=0.999)
LAUNCHES = 120  # most of an uncaptured step of the paper's network


def batches(count: int, size: int = 16, labels: int = 3, n: int = 2) -> list[tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(3)
    return [
        (
            rng.standard_normal((n, 3, size, size)).astype(np.float32),
            rng.integers(0, labels, (n, size, size)),
            rng.uniform(0.1, 1, (n, size, size)),
        )
        for _ in range(count)
    ]


def small_graph() -> Graph:
    """One of every layer, few channels."""
    graph = Graph(preset="test", labels=2, size=8)
    graph.add("image", Input(2, 8, 8))
    graph.add("half", MeanPool2D(2), "image")
    graph.add("fine/conv", Conv2D(3, 3), "image")
    graph.add("fine", Tanh(), "fine/conv")
    graph.add("coarse/conv", Conv2D(2, 3), "half")
    graph.add("coarse", Tanh(), "coarse/conv")
    graph.add("down", MaxPool2D(2, 2), "fine")
    graph.add("up", UpsampleNearest2D(2), "coarse")
    graph.add("coarse/all", Concat(), "coarse", "down")
    graph.add("coarse/again", Conv2D(2, 3), "coarse/all")
    graph.add("again", UpsampleNearest2D(2), "coarse/again")
    graph.add("all", Concat(), "fine", "up", "again")
    graph.add("y", Conv2D(2, 3), "all")
    return graph


def small_batches(count: int) -> list[tuple[np.ndarray, ...]]:
    rng = np.random.default_rng(4)
    return [
        (rng.standard_normal((2, 2, 8, 8)), rng.integers(0, 2, (2, 8, 8)), rng.uniform(0.1, 1, (2, 8, 8)))
        for _ in range(count)
    ]


def train(plan: Plan, data, optimiser: SGD = OPTIMISER) -> tuple[list, np.ndarray]:
    """Losses, read when all is over, and parameters."""
    losses = [plan.step(images, labels, optimiser, weights).copy() for images, labels, weights in data]
    return [float(loss) for loss in losses], plan.state()["values"]


# ---- training


@pytest.mark.parametrize("backend", ["cupy", "cublas"])
@pytest.mark.parametrize("schedule", ["lazy", "eager", "random"])
def test_training_equals_the_reference(backend, schedule):
    """Whatever runs when: a batch that is overwritten before it was read would give other numbers."""
    standin.schedule(schedule, seed=1)
    data = small_batches(9)
    losses, values = train(Plan(small_graph(), 2, backend, "float64", seed=1), data)
    expected = train(Plan(small_graph(), 2, "numpy", "float64", seed=1, threads=1), data)
    np.testing.assert_allclose(losses, expected[0], rtol=1e-12)
    np.testing.assert_allclose(values, expected[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["cupy", "cublas"])
def test_gradients(backend):
    plan = Plan(small_graph(), 2, backend, "float64", seed=1, input_gradient=True)
    errors = check_plan(plan, *small_batches(1)[0])
    assert max(errors.values()) < 1e-6, errors


def test_the_papers_network(monkeypatch):
    """One step of float32 in each backend, its launches counted; the next ones are a graph, and one launch each."""
    data, graph = batches(3), icnn_graph(3, 16)
    plan, reference = Plan(graph, 2, "cupy", seed=1), Plan(graph, 2, "numpy", seed=1, threads=1)
    counted = []
    for images, labels, weights in data:
        standin.STATS.reset()
        loss = float(plan.step(images, labels, OPTIMISER, weights))
        assert loss == pytest.approx(float(reference.step(images, labels, OPTIMISER, weights)), rel=1e-5)
        counted.append((standin.STATS.launches, standin.STATS.graph_launches))
    np.testing.assert_allclose(plan.state()["values"], reference.state()["values"], rtol=0, atol=1e-5)
    assert 90 < counted[0][0] <= LAUNCHES and counted[0][1] == 0
    assert counted[1:] == [(0, 1), (0, 1)]


def test_recorded_and_eager_steps_give_the_same_bits():
    data = small_batches(4)
    recorded = train(Plan(small_graph(), 2, "cupy", seed=1), data)
    eager = train(Plan(small_graph(), 2, "cupy", seed=1, hook=lambda phase, node: None), data)
    assert recorded[0] == eager[0]
    np.testing.assert_array_equal(recorded[1], eager[1])


def test_a_step_that_is_interrupted_while_it_is_captured_leaves_no_graph(monkeypatch):
    """Half a step's launches, replayed as if they were all, would train on old gradients."""
    data, kernels = small_batches(4), get_backend("cupy")
    plan, undisturbed = (Plan(small_graph(), 2, "cupy", seed=1) for _ in range(2))
    launch, count = standin.RawKernel.__call__, 0

    def interrupted(kernel, *arguments, **options):
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        launch(kernel, *arguments, **options)

    losses, values = train(undisturbed, data)
    plan.step(*data[0][:2], OPTIMISER, data[0][2])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(standin.RawKernel, "__call__", interrupted)
        plan.step(*data[1][:2], OPTIMISER, data[1][2])
    assert not kernels.threads(1).is_capturing()
    again, parameters = train(plan, data[1:])
    assert again == losses[1:]
    np.testing.assert_array_equal(parameters, values)


def test_a_batch_does_not_arrive_where_older_kernels_still_write():
    """The memory that it arrives in may have been another plan's, whose last step is still running."""
    kernels = get_backend("cupy")
    older, destination = (kernels.zeros((2, 3), "float32") for _ in range(2))
    feed = kernels.Prefetcher(destination)
    with kernels.threads(1):
        older.fill(1)
    asked = [operation for operation in kernels.threads(1)._queue.waiting if "fill" in operation.note]
    later = kernels.Prefetcher(destination)
    for one in (feed, later):
        one(np.ones((2, 3), np.float32))
    assert not any(operation.done for operation in asked)
    feed._slots[1].sent.synchronize()  # made before the older kernel was asked for: need not wait for it
    assert not any(operation.done for operation in asked)
    later._slots[1].sent.synchronize()
    assert asked and all(operation.done for operation in asked)


def test_other_batch_sizes_and_settings_are_recorded_apart():
    data = small_batches(3)
    data += [(images[:1], labels[:1], weights[:1]) for images, labels, weights in data]
    plans = [Plan(small_graph(), 2, backend, "float64", seed=1, threads=1) for backend in ("cupy", "numpy")]
    for optimiser in (OPTIMISER, SGD(lr=0.1, momentum=0.5)):
        (losses, values), expected = (train(plan, data, optimiser) for plan in plans)
        np.testing.assert_allclose(losses, expected[0], rtol=1e-12)
        np.testing.assert_allclose(values, expected[1], rtol=0, atol=1e-12)


def test_reading_no_loss_waits_for_nothing():
    plan = Plan(small_graph(), 2, "cupy", seed=1)
    data = small_batches(6)
    train(plan, data[:3])
    standin.STATS.reset()
    for images, labels, weights in data[3:5]:
        plan.step(images, labels, OPTIMISER, weights)
    assert standin.STATS.allocations == 0
    assert standin.STATS.syncs <= 2  # of events two steps back: is the pinned memory free again?


def test_sharing_and_rerunning_change_no_bit():
    data = small_batches(3)
    results = [train(Plan(small_graph(), 2, "cupy", seed=1, share=share), data) for share in (True, False, True)]
    for losses, values in results[1:]:
        assert losses == results[0][0]
        np.testing.assert_array_equal(values, results[0][1])


def test_weights_go_to_disk_and_back(tmp_path):
    plan, again = (Plan(small_graph(), 2, "cupy", seed=seed) for seed in (1, 2))
    plan.save(tmp_path / "x.safetensors")
    again.load(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(again.state()["values"], plan.state()["values"])
    state = plan.state()
    train(plan, small_batches(2))
    plan.restore(state, 0)
    np.testing.assert_array_equal(plan.state()["values"], state["values"])


# ---- what a user can get wrong


def test_arrays_of_the_wrong_kind_are_refused():
    kernels = get_backend("cupy")
    x = kernels.zeros((1, 2, 3, 4), "float32")
    for wrong, words in (
        (np.zeros((1, 2, 3, 4), np.float32), "y: expected a CuPy array, got ndarray"),
        (kernels.zeros((1, 2, 3, 4), "float64"), "x: expected float32 or float64 for all"),
        (kernels.zeros((1, 2, 3, 5), "float32"), "x: expected shape"),
        (kernels.zeros((1, 2, 3, 8), "float32")[..., ::2], "y: expected contiguous images"),
    ):
        with pytest.raises(ValueError, match=words):
            kernels.tanh_forward(wrong, x)


def test_numbers_may_be_pythons():
    """They become what the kernel takes."""
    kernels = get_backend("cupy")
    values, velocity, gradients = (kernels.zeros((3,), "float32") for _ in range(3))
    kernels.upload(values, np.ones(3))
    lr, s = kernels.zeros((), "float32"), kernels.zeros((0,), "float32")
    kernels.sgd_update(values, velocity, gradients, lr, s, 0, False, 0.5, 1)
    np.testing.assert_array_equal(kernels.download(values), np.ones(3, np.float32))


def test_a_batch_that_does_not_fit_is_refused_with_one_that_would():
    def refused(batch: int) -> int:
        """The batch that is said to fit. What other tests and other plans have left behind is not in the way."""
        gc.collect()
        words = rf"MiB .* for a batch of {batch}, found .* a batch of \d+ would fit"
        with pytest.raises(BackendError, match=words) as caught:
            Plan(icnn_graph(9, 64), batch, "cupy")
        return int(str(caught.value).split("a batch of ")[2].split()[0])

    standin.configure(memory=600 << 20, fill=False)
    fits = refused(256)
    gc.collect()
    Plan(icnn_graph(9, 64), fits, "cupy")
    refused(fits + 2)


def test_memory_that_runs_out_all_the_same_is_one_line():
    kernels = get_backend("cupy")
    with pytest.raises(BackendError, match=r"out of memory: an array of .* MiB was wanted"):
        kernels.zeros((1 << 40,), "float32")


def test_a_large_batch_needs_less_than_two_gigabytes():
    standin.configure(memory=16 << 30, fill=False)
    standin.STATS.reset()
    Plan(icnn_graph(9, 64), 256, "cupy")
    assert standin.STATS.peak < 2 << 30


def test_more_than_two_to_the_31_elements():
    """Offsets are 64-bit: an image behind 2^31 elements is read and written where it is."""
    kernels = get_backend("cupy")
    standin.configure(memory=1 << 40, fill=False)
    n, c, h, w = 3, 70000, 128, 128
    x, y = (kernels.empty((n, c, h, w), "float32")[:, -1:] for _ in range(2))
    for image in range(n):
        kernels.upload(x[image], np.full((1, h, w), image, np.float32))
    kernels.concat_forward(y, x, 0)
    np.testing.assert_array_equal(kernels.download(y)[:, 0, 0, 0], range(n))


def test_planes_that_are_too_large_are_refused():
    standin.configure(memory=1 << 40, fill=False)
    kernels = get_backend("cupy")
    x = kernels.empty((1, 1, 1 << 16, 1 << 15), "float32")
    with pytest.raises(ValueError, match="at most 2\\^30 pixels"):
        kernels.tanh_forward(x, x)


def test_a_window_that_fits_no_shared_memory_is_refused():
    kernels = get_backend("cupy")
    x, y, w, b = (kernels.zeros(shape, "float32") for shape in ((1, 1, 4, 4), (1, 8, 4, 4), (8, 1, 99, 99), (8,)))
    with pytest.raises(ValueError, match="a window of 99 x 99 in float32 does not fit"):
        kernels.conv2d_forward(y, x, w, b, kernels.zeros((0,), "float32"))


# ---- which machine


def test_auto_takes_a_gpu():
    assert choose_backend("auto") == ("cupy", "backend cupy (the fastest)")
