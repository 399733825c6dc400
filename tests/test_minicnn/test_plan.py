"""Does a plan run its graph right: buffers, orders, shapes, seeds, both backends, and no allocation?"""

import tracemalloc
from collections.abc import Mapping

import numpy as np
import pytest

from icnn.model.network import icnn_graph
from minicnn import SGD, Graph, Plan
from minicnn.gradcheck import check_plan, relative_error
from minicnn.layers import Concat, Conv2D, Input, MaxPool2D, MeanPool2D, Tanh, UpsampleNearest2D
from minicnn.planner import Life, assign_buffers, dead_buffers

OPTIMISER = SGD(lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.001, shrink=0.999)


def small_plan(backend: str, preset: str = "paper", batch: int = 2, dtype: str = "float64", **options) -> Plan:
    graph = icnn_graph(labels=3, size=16, preset=preset)
    return Plan(graph, batch, backend, dtype, threads=1, **options)


def faces(rng: np.random.Generator, n: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (n, 3, 16, 16), labels (n, 16, 16) in 0..2 and weights (n, 16, 16)."""
    plane = (n, 16, 16)
    return rng.standard_normal((n, 3, 16, 16)), rng.integers(0, 3, plane), rng.uniform(0, 1, plane)


def train(plan: Plan, images, labels, weights, steps: int = 3) -> list[np.ndarray]:
    """Everything that a plan shows of some steps: logits, loss, gradients, and the parameters in the end."""
    shown = []
    for _ in range(steps):
        logits = plan.forward(images)
        shown += [plan.download(logits), plan.download(plan.loss(labels, weights))]
        plan.backward()
        np.testing.assert_array_equal(plan.download(logits), shown[-2], "logits must last until the next forward")
        shown += downloaded(plan, plan.gradients)
        if plan.has_input_gradient:
            shown.append(plan.download(plan.input_gradient))
        plan.update(OPTIMISER)
    return shown + downloaded(plan, plan.parameters)


def downloaded(plan: Plan, arrays: Mapping) -> list[np.ndarray]:
    """NumPy copies of the plan's arrays, wherever its backend keeps them."""
    return [plan.download(array) for array in arrays.values()]


def assert_same_bits(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    for ours, theirs in zip(first, second, strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_array_equal(ours, theirs)


def poison(plan: Plan) -> list[int]:
    """After each unit fill workspace and every buffer that nobody will read with NaN; count them in the list."""
    counts = []

    def hook(phase: str, node: str) -> None:
        schedule = plan.schedule
        time = (schedule.times if phase == "forward" else schedule.backward_times)[node]
        dead = list(dead_buffers(plan.arrays.lives, plan.arrays.assigned, time))
        for number in dead:
            plan.arrays.buffers[number][...] = np.nan
        plan.arrays.workspace[...] = np.nan
        counts.append(len(dead))

    plan.hook = hook
    return counts


# ---- buffers


@pytest.mark.parametrize("preset", ["paper", "released"])
@pytest.mark.parametrize("input_gradient", [False, True])
def test_sharing_and_poison_change_no_bit(backend, rng, preset, input_gradient):
    data = faces(rng)
    options = {"preset": preset, "input_gradient": input_gradient}
    apart = train(small_plan(backend, share=False, **options), *data)
    assert_same_bits(train(small_plan(backend, share=True, **options), *data), apart)
    poisoned = small_plan(backend, share=True, **options)
    counts = poison(poisoned)
    assert_same_bits(train(poisoned, *data), apart)
    assert len(counts) == 3 * (2 * len(poisoned.schedule.units) - 2 - (0 if input_gradient else 3))
    assert min(counts) > 0


def test_poison_in_a_live_buffer_is_noticed(backend, rng):
    """The test above can fail: what backward reads of a convolution is its input."""
    plan = small_plan(backend)
    live = plan.arrays.buffers[plan.arrays.assigned["activation/row1/round1/concat"]]
    images, labels, weights = faces(rng)
    plan.forward(images)
    live[0] = np.nan
    plan.loss(labels, weights)
    plan.backward()
    assert np.isnan(plan.download(plan.gradients["row1/round1/conv/weight"])).any()


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_sharing_saves_memory(preset):
    def size(share: bool) -> int:
        return sum(buffer.nbytes for buffer in small_plan("numpy", preset, share=share).arrays.buffers.values())

    assert size(share=True) < 0.75 * size(share=False)


def test_arrays_of_one_buffer_have_one_shape_and_disjoint_lives():
    plan = small_plan("numpy", input_gradient=True)
    for one, first in plan.arrays.lives.items():
        for other, second in plan.arrays.lives.items():
            if one < other and plan.arrays.assigned[one] == plan.arrays.assigned[other]:
                assert first.shape == second.shape
                assert first.death < second.birth or second.death < first.birth


def test_assignment_by_hand():
    lives = {
        "a": Life((1, 2, 2), 0, 3),
        "b": Life((1, 2, 2), 3, 5),  # read and written at one time: not a's buffer
        "c": Life((1, 2, 2), 4, 6),  # a is dead
        "d": Life((2, 2, 2), 7, 8),  # another shape
    }
    assert assign_buffers(lives) == {"a": 0, "b": 1, "c": 0, "d": 2}
    assert assign_buffers(lives, share=False) == {"a": 0, "b": 1, "c": 2, "d": 3}
    assert set(dead_buffers(lives, assign_buffers(lives), 3)) == {0, 2}


def test_what_is_left_from_another_batch_is_not_seen(backend, rng):
    """Results depend on the images and parameters, not on what buffers and workspace held."""
    data, fresh, used = faces(rng), small_plan(backend), small_plan(backend)
    for buffer in used.arrays.buffers.values():
        buffer[...] = np.nan
    used.arrays.workspace[...] = np.nan
    for gradient in used.gradients.values():
        gradient[...] = np.nan
    assert_same_bits(train(used, *data), train(fresh, *data))


# ---- passes


def test_fewer_images_than_the_batch(backend, rng):
    images, labels, weights = faces(rng, 3)
    large, small = small_plan(backend, batch=3), small_plan(backend, batch=2)
    large.step(images, labels, SGD(lr=0.0), weights)  # leaves three images' worth behind
    two = (images[:2], labels[:2], weights[:2])
    assert_same_bits(train(large, *two), train(small, *two))


def test_a_step_is_forward_loss_backward_update(backend, rng):
    images, labels, weights = faces(rng)
    at_once, apart = small_plan(backend), small_plan(backend)
    values = [float(at_once.step(images, labels, OPTIMISER, weights)) for _ in range(2)]
    train(apart, images, labels, weights, steps=2)
    assert values[1] < values[0] and at_once.step_count == apart.step_count == 2
    assert_same_bits(downloaded(at_once, at_once.parameters), downloaded(apart, apart.parameters))


def test_a_loss_without_weights_is_one_with_equal_weights(backend, rng):
    plan, (images, labels, _) = small_plan(backend), faces(rng)
    plan.forward(images)
    plain = float(plan.loss(labels))
    assert float(plan.loss(labels, np.full(labels.shape, 2.5))) == pytest.approx(plain, rel=1e-14)


def test_any_real_images_are_taken(backend, rng):
    """Other dtypes and strides than the plan's; the caller's array is not changed."""
    plan = small_plan(backend)
    images = rng.integers(0, 255, (2, 16, 16, 3)).astype(np.uint8)
    turned = images.transpose(0, 3, 1, 2)
    logits = plan.download(plan.forward(turned))
    again = plan.forward(np.ascontiguousarray(turned, np.float64))
    np.testing.assert_array_equal(plan.download(again), logits)


@pytest.mark.parametrize(
    ("shape", "came"),
    [
        ((3, 3, 16, 16), "3, 3, 16, 16"),
        ((0, 3, 16, 16), "0, 3, 16, 16"),
        ((2, 1, 16, 16), "2, 1, 16, 16"),
        ((2, 3, 16, 8), "2, 3, 16, 8"),
        ((3, 16, 16), "3, 16, 16"),
    ],
)
def test_images_of_another_shape_are_refused(shape, came):
    with pytest.raises(ValueError, match=rf"expected images \(n, 3, 16, 16\) with n from 1 to 2, got \({came}\)"):
        small_plan("numpy").forward(np.zeros(shape))


@pytest.mark.parametrize(
    ("labels", "weights", "message"),
    [
        (np.full((2, 16, 16), 3), None, "labels from 0 to 2, got 3 to 3"),
        (np.full((2, 16, 16), -1), None, "labels from 0 to 2, got -1 to -1"),
        (np.zeros((2, 16, 16)), None, "integer labels"),
        (np.zeros((1, 16, 16), int), None, "labels of shape"),
        (np.zeros((2, 16, 8), int), None, "labels of shape"),
        (np.zeros((2, 16, 16), int), np.zeros((2, 16, 16)), "sum is not 0"),
        (np.zeros((2, 16, 16), int), np.ones((2, 16, 8)), "weights of shape"),
        (np.zeros((2, 16, 16), int), np.full((2, 16, 16), -1.0), "at least 0"),
        (np.zeros((2, 16, 16), int), np.full((2, 16, 16), np.nan), "at least 0"),
    ],
)
def test_labels_and_weights_that_mean_nothing_are_refused(backend, rng, labels, weights, message):
    plan = small_plan(backend)
    plan.forward(faces(rng)[0])
    with pytest.raises(ValueError, match=message):
        plan.loss(labels, weights)


def test_weights_that_are_zero_in_the_plans_dtype_are_refused(backend, rng):
    """1e-60 is a number in float64 and 0 in float32."""
    plan = small_plan(backend, dtype="float32")
    images, labels, _ = faces(rng)
    plan.forward(images)
    with pytest.raises(ValueError, match="sum is not 0"):
        plan.loss(labels, np.full(labels.shape, 1e-60))


def test_passes_in_another_order_are_refused(rng):
    plan, (images, labels, _) = small_plan("numpy"), faces(rng)
    with pytest.raises(RuntimeError, match="forward before loss"):
        plan.loss(labels)
    with pytest.raises(RuntimeError, match="loss before backward"):
        plan.backward()
    plan.forward(images)
    with pytest.raises(RuntimeError, match="loss before backward"):
        plan.backward()
    plan.loss(labels)
    plan.backward()
    with pytest.raises(RuntimeError, match="loss before backward"):
        plan.backward()
    with pytest.raises(RuntimeError, match="forward before loss"):
        plan.loss(labels)


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"dtype": "float16"}, {"backend": "abacus"}])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises((ValueError, RuntimeError), match="expected"):
        Plan(icnn_graph(labels=2, size=8), **({"batch": 1} | wrong))


def test_the_hook_sees_every_unit_in_order(rng):
    """The image has no pass; the pyramid has no backward, since nobody needs the image's gradient.

    A convolution stands for its tanh and what interlinking makes of that, too.
    """
    seen: list[tuple[str, str]] = []
    plan = small_plan("numpy", hook=lambda phase, node: seen.append((phase, node)))
    images, labels, _ = faces(rng)
    plan.step(images, labels, OPTIMISER)
    nodes = [node for node in list(plan.graph.nodes)[1:] if not node.endswith(("tanh", "finer", "coarser"))]
    pyramid = ["row2/image", "row3/image", "row4/image"]
    backward = [node for node in reversed(nodes) if node not in pyramid]
    assert seen == [("forward", node) for node in nodes] + [("backward", node) for node in backward]


# ---- units, and arrays that lie in others


def test_every_array_of_a_concatenation_lies_in_it():
    """In the network of the paper nothing is concatenated: all is where it is needed when it is made."""
    plan = small_plan("numpy")
    for node in plan.graph.nodes.values():
        if isinstance(node.layer, Concat):
            for kind in ("activation", "gradient"):
                channel = 0
                for name in node.inputs:
                    assert plan.schedule.homes[f"{kind}/{name}"] == (f"{kind}/{node.name}", channel)
                    channel += plan.graph.nodes[name].shape[0]


def test_a_step_of_the_paper_calls_no_kernel_that_only_moves_numbers(rng, monkeypatch):
    plan, released = small_plan("numba"), small_plan("numba", "released")
    images, labels, weights = faces(rng)
    for kernel in ("concat", "upsample_nearest2d", "max_pool2d", "tanh"):
        for way in ("forward", "backward"):
            monkeypatch.delitem(plan._kernels._kernels, f"{kernel}_{way}")
    plan.step(images, labels, OPTIMISER, weights)
    with pytest.raises(KeyError, match="max_pool2d_forward"):
        released.step(images, labels, OPTIMISER, weights)


def late_reader(pooled_first: bool) -> Graph:
    """A node that a concatenation reads, and a pooling before or behind the concatenation's own reader."""
    graph = Graph()
    graph.add("image", Input(3, 4, 4))
    graph.add("x", Conv2D(3, 3), "image")
    graph.add("joined", Concat(), "x", "image")
    if pooled_first:
        graph.add("pooled", MaxPool2D(2, 2), "x")
    graph.add("z", Conv2D(3, 3), "joined")
    if not pooled_first:
        graph.add("pooled", MaxPool2D(2, 2), "x")
    graph.add("back", UpsampleNearest2D(2), "pooled")
    graph.add("all", Concat(), "z", "back")
    graph.add("y", Conv2D(2, 3), "all")
    return graph


@pytest.mark.parametrize("pooled_first", [False, True])
def test_a_gradient_moves_only_where_others_add_to_it_afterwards(backend, rng, pooled_first):
    plan = Plan(late_reader(pooled_first), 2, backend, "float64", threads=1, input_gradient=True)
    assert (plan.schedule.homes["gradient/x"] == ("gradient/joined", 0)) == pooled_first
    errors = check_plan(plan, rng.standard_normal((2, 3, 4, 4)), rng.integers(0, 2, (2, 4, 4)))
    assert max(errors.values()) < 1e-6, errors


def test_a_tanh_that_only_its_copies_are_read_of(backend, rng):
    """Its gradient is the sum of theirs; a tanh whose convolution others read is not computed in place."""
    graph = Graph()
    graph.add("image", Input(3, 4, 4))
    graph.add("a", Conv2D(3, 3), "image")
    graph.add("b", Tanh(), "a")
    graph.add("small", MaxPool2D(2, 2), "b")
    graph.add("large", UpsampleNearest2D(2), "b")
    graph.add("again", UpsampleNearest2D(2), "small")
    graph.add("c", Conv2D(2, 3), "again")
    graph.add("d", Tanh(), "c")
    graph.add("down", MeanPool2D(2), "large")
    graph.add("all", Concat(), "c", "d", "down")
    graph.add("y", Conv2D(2, 3), "all")
    plan = Plan(graph, 2, backend, "float64", threads=1, input_gradient=True)
    interlinked = {unit.node.name: [node.name for node in unit.nodes] for unit in plan.schedule.units if unit.tanh}
    assert interlinked == {"a": ["a", "b", "small", "large"]}
    errors = check_plan(plan, rng.standard_normal((2, 3, 4, 4)), rng.integers(0, 2, (2, 4, 4)))
    assert max(errors.values()) < 1e-6, errors


# ---- parameters


def test_written_parameters_count_from_the_next_forward(backend, rng):
    plan, (images, _, _) = small_plan(backend), faces(rng)
    bias, weight = plan.parameters["output/conv/bias"], plan.parameters["row4/round0/conv/weight"]
    first = plan.download(plan.forward(images))
    plan.upload(bias, plan.download(bias) + np.array([1, 2, 3]))
    second = plan.download(plan.forward(images))
    np.testing.assert_allclose(second - first, np.broadcast_to([[[1]], [[2]], [[3]]], first.shape), rtol=1e-12)
    weight[0, 0, 2, 2] = 1.0
    assert (plan.download(plan.forward(images)) != second).any()


def test_a_seed_fixes_the_first_parameters(backend):
    def flat(seed) -> np.ndarray:
        plan = small_plan(backend, seed=seed)
        return np.concatenate([array.ravel() for array in downloaded(plan, plan.parameters)])

    np.testing.assert_array_equal(flat(3), flat(3))
    assert (flat(3) != flat(4)).mean() > 0.9


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_first_parameters_are_uniform_within_their_limits(preset):
    """Glorot's in `paper`; within sqrt(0.5 / fan_in) in `released`; biases 0."""
    for name, array in small_plan("numpy", preset).parameters.items():
        if name.endswith("/bias"):
            assert not array.any()
        else:
            fan_in, fan_out = array[0].size, array[:, 0].size
            limit = np.sqrt(6 / (fan_in + fan_out) if preset == "paper" else 0.5 / fan_in)
            assert 0.95 * limit < np.abs(array).max() <= limit
            assert abs(array.std() - limit / np.sqrt(3)) < 0.1 * limit


def test_backends_start_from_the_same_parameters():
    ours, theirs = small_plan("numba", seed=1).parameters, small_plan("numpy", seed=1).parameters
    assert all((ours[name] == theirs[name]).all() for name in theirs)


# ---- backends


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_numba_agrees_with_numpy(rng, dtype, preset):
    data = faces(rng)
    results = []
    for name in ("numpy", "numba"):
        results.append(train(small_plan(name, preset, dtype=dtype, input_gradient=True), *data, steps=1))
    tolerance = 1e-4 if dtype == "float32" else 1e-12
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype == dtype
        assert relative_error(ours, theirs) < tolerance


def test_any_number_of_threads_gives_the_same_bits(rng):
    data = faces(rng)

    def run(threads: int) -> list[np.ndarray]:
        return train(Plan(icnn_graph(labels=3, size=16), 2, "numba", "float64", threads=threads), *data)

    assert_same_bits(run(2), run(2))
    assert_same_bits(run(2), run(1))


# ---- gradients with several writers, and branches


def diamond() -> Graph:
    """A convolution read by four nodes; a concatenation that reads one node twice and the convolution itself."""
    graph = Graph()
    graph.add("image", Input(3, 4, 4))
    graph.add("x", Conv2D(3, 5), "image")
    graph.add("a", Tanh(), "x")
    graph.add("b", MaxPool2D(2, 2), "x")
    graph.add("c", UpsampleNearest2D(2, parity=True), "b")
    graph.add("d", MeanPool2D(2), "x")
    graph.add("e", UpsampleNearest2D(2), "d")
    graph.add("joined", Concat(), "a", "c", "a", "x", "e")
    graph.add("y", Conv2D(3, 5), "joined")
    return graph


@pytest.mark.parametrize("share", [False, True])
def test_a_gradient_with_several_writers_is_their_sum(backend, rng, share):
    plan = Plan(diamond(), 2, backend, "float64", threads=1, share=share, input_gradient=True)
    errors = check_plan(plan, rng.standard_normal((2, 3, 4, 4)), rng.integers(0, 3, (2, 4, 4)))
    assert max(errors.values()) < 1e-6, errors


def test_a_branch_that_does_not_reach_the_output_changes_nothing(backend, rng):
    """It is computed forward, has gradient 0, and the network's results are those without it."""
    graph = Graph()
    graph.add("image", Input(3, 4, 4))
    graph.add("x", Conv2D(3, 5), "image")
    graph.add("y", Conv2D(3, 5), "x")
    branched = Graph()
    branched.add("image", Input(3, 4, 4))
    branched.add("x", Conv2D(3, 5), "image")
    branched.add("side", Conv2D(8, 5), "x")
    branched.add("end", Tanh(), "side")
    branched.add("y", Conv2D(3, 5), "x")
    plain, plan = (Plan(one, 2, backend, "float64", threads=1) for one in (graph, branched))
    for name, array in plain.parameters.items():
        plan.upload(plan.parameters[name], plain.download(array))
    images, labels = rng.standard_normal((2, 3, 4, 4)), rng.integers(0, 3, (2, 4, 4))
    poison(plan)
    for _ in range(2):
        losses = [float(one.step(images, labels, OPTIMISER)) for one in (plain, plan)]
        assert losses[0] == losses[1]
    for name, array in plain.parameters.items():
        np.testing.assert_array_equal(plan.download(plan.parameters[name]), plain.download(array))
    for name in ("side/weight", "side/bias"):
        assert not plan.download(plan.gradients[name]).any()


# ---- no allocation after construction


def every_layer(channels: int = 8, size: int = 96) -> Graph:
    """Each layer once, arrays of at least channels x (size / 2)^2."""
    graph = Graph()
    graph.add("image", Input(channels, size, size))
    graph.add("conv", Conv2D(channels, 5), "image")
    graph.add("tanh", Tanh(), "conv")
    graph.add("max", MaxPool2D(3, 2, 1), "tanh")
    graph.add("mean", MeanPool2D(2), "conv")
    graph.add("small", Concat(), "max", "mean")
    graph.add("up", UpsampleNearest2D(2, parity=True), "small")
    graph.add("joined", Concat(), "tanh", "up")
    graph.add("out", Conv2D(3, 5), "joined")
    return graph


def test_a_step_allocates_no_array(backend, rng):
    """At its peak a step has less new memory than a quarter of the smallest activation: NumPy's casting buffers."""
    plan = Plan(every_layer(), 8, backend, "float32", threads=1)
    smallest = min(buffer.nbytes for buffer in plan.arrays.buffers.values())
    assert smallest > 500_000
    images = rng.standard_normal((8, 8, 96, 96)).astype(np.float32)
    labels, weights = rng.integers(0, 3, (8, 96, 96), np.int32), np.ones((8, 96, 96), np.float32)
    plan.step(images, labels, OPTIMISER, weights)
    tracemalloc.start()
    try:
        plan.step(images, labels, OPTIMISER, weights)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < smallest / 4
