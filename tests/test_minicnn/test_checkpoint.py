"""Do weights and training states survive the disk, and do broken files break nothing?"""

import os

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from icnn.model.network import icnn_graph
from minicnn import SGD, Plan
from minicnn.checkpoint import CheckpointError, atomic_path, load_tensors, save_tensors


def small_plan(backend: str = "numpy", seed: int = 0, labels: int = 3, **options) -> Plan:
    return Plan(icnn_graph(labels, 16), batch=2, backend=backend, seed=seed, threads=1, **options)


def values(plan: Plan) -> np.ndarray:
    return plan.state()["values"]


# ---- weights


def test_what_is_loaded_is_what_was_saved(backend, tmp_path):
    saved, loaded = small_plan(backend, seed=1), small_plan(backend, seed=2)
    saved.save(tmp_path / "x.safetensors")
    assert (values(loaded) != values(saved)).any()
    loaded.load(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(values(loaded), values(saved))


def test_the_file_is_readable_without_minicnn(tmp_path):
    """Tensors by the names of the parameters, (O, C, K, K) and (O,), and text about them."""
    plan = small_plan()
    plan.save(tmp_path / "x.safetensors", beta=2.5, note="tired")
    with safe_open(tmp_path / "x.safetensors", framework="numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert set(tensors) == set(plan.parameters)
    for name, array in plan.parameters.items():
        np.testing.assert_array_equal(tensors[name], array)
        assert tensors[name].dtype == np.float32
    assert metadata.pop("version")
    assert metadata == {
        "preset": "paper",
        "labels": "3",
        "size": "16",
        "beta": "2.5",
        "note": "tired",
    }


def test_a_seal_is_of_all_that_a_file_says(tmp_path):
    """Read back, it is as if it had none; broken, the file is refused: a tensor, a text, a name, the seal itself."""
    path = tmp_path / "x.safetensors"
    tensors, about = {"b": np.arange(3.0), "a": np.ones((2, 2), np.float32)}, {"beta": 2.5, "note": "tired"}
    save_tensors(path, tensors, about, sealed=True)
    read, metadata = load_tensors(path)
    assert metadata == {"beta": "2.5", "note": "tired"}
    np.testing.assert_array_equal(read["a"], tensors["a"])
    data = path.read_bytes()
    digest = data.index(b'"sha256":"') + 10
    for place in (len(data) - 1, data.index(b"tired"), data.index(b'"b"') + 1, digest):
        broken = bytearray(data)
        broken[place] ^= 1
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"x\.safetensors: expected "):
            load_tensors(path)
    path.write_bytes(data.replace(b'"format":"1"', b'"format":"2"'))
    with pytest.raises(CheckpointError, match="expected format 1, got 2"):
        load_tensors(path)


def test_load_returns_the_metadata(tmp_path):
    plan = small_plan()
    plan.save(tmp_path / "x.safetensors")
    metadata = plan.load(tmp_path / "x.safetensors")
    assert set(metadata) == {"preset", "labels", "size", "version"}


def test_weights_pass_from_one_backend_and_dtype_to_another(tmp_path, rng):
    ours, theirs = small_plan("numba", seed=1), small_plan("numpy", seed=2, dtype="float64")
    ours.save(tmp_path / "x.safetensors")
    theirs.load(tmp_path / "x.safetensors")
    images = rng.standard_normal((2, 3, 16, 16))
    np.testing.assert_allclose(ours.forward(images), theirs.forward(images), atol=1e-5)


def truncated(path):
    small_plan().save(path)
    path.write_bytes(path.read_bytes()[:-100])


def beheaded(path):
    small_plan().save(path)
    path.write_bytes(path.read_bytes()[:5])


def text(path):
    path.write_text("These are not the weights you are looking for.\n" * 10, encoding="utf-8")


def empty(path):
    path.touch()


def missing(path):
    pass


def folder(path):
    path.mkdir()


def other_labels(path):
    small_plan(labels=4).save(path)


def other_preset(path):
    Plan(icnn_graph(3, 16, "released"), 1).save(path)


def one_tensor_less(path):
    save_file({name: array for name, array in small_plan().parameters.items() if "row3" not in name}, path)


def one_tensor_more(path):
    save_file({**small_plan(seed=7).parameters, "row5/round0/conv/bias": np.zeros(3, np.float32)}, path)


@pytest.mark.parametrize(
    "broken",
    [
        truncated,
        beheaded,
        text,
        empty,
        missing,
        folder,
        other_labels,
        other_preset,
        one_tensor_less,
        one_tensor_more,
    ],
)
def test_a_file_that_does_not_fit_is_named_and_changes_nothing(broken, tmp_path):
    path = tmp_path / "mouth.safetensors"
    broken(path)
    plan = small_plan(seed=3)
    before = values(plan)
    with pytest.raises(CheckpointError, match=r"mouth\.safetensors") as caught:
        plan.load(path)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(values(plan), before)


def test_weights_of_a_dtype_that_numpy_lacks_are_named(tmp_path):
    """bfloat16, as other frameworks write it: one tensor of two bytes a number, by hand."""
    header = b'{"output/conv/bias":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]}}'
    path = tmp_path / "half.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(6))
    with pytest.raises(CheckpointError, match=r"half\.safetensors"):
        small_plan().load(path)


# ---- written whole or not at all


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path, plan = tmp_path / "x.safetensors", small_plan()
    plan.save(path)
    before = path.read_bytes()
    plan.parameters["output/conv/bias"][...] = 5

    def full_disk(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        plan.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "x.json") as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "x.json"
    with atomic_path(path) as temporary:
        temporary.write_text("whole", encoding="utf-8")
        assert not path.exists() and temporary.parent == tmp_path
    assert path.read_text(encoding="utf-8") == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_who_reads_the_old_file_reads_it_to_its_end(tmp_path):
    """The new file takes the old one's name, not its place on the disk."""
    path, plan = tmp_path / "x.safetensors", small_plan()
    plan.save(path)
    before = path.read_bytes()
    plan.parameters["output/conv/bias"][...] = 5
    with path.open("rb") as reader:
        start = reader.read(100)
        plan.save(path)
        assert start + reader.read() == before
    assert path.read_bytes() != before


def test_tensors_that_are_not_contiguous_keep_their_order(tmp_path):
    turned = np.arange(12.0).reshape(3, 4).T
    save_tensors(tmp_path / "x.safetensors", {"turned": turned}, {"step": 7})
    tensors, metadata = load_tensors(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(tensors["turned"], turned)
    assert metadata == {"step": "7"}


# ---- training states


def train(plan: Plan, batches, optimiser: SGD) -> None:
    for images, labels in batches:
        plan.step(images, labels, optimiser)


def test_a_training_goes_on_bit_for_bit(backend, rng, tmp_path):
    """N steps, to disk, another plan, N steps: the same as 2 N steps. The rate falls, so the count matters too."""
    optimiser = SGD(lr=lambda step: 0.1 / (step + 1), momentum=0.8, nesterov=True, weight_decay=0.001, shrink=0.999)
    batches = [(rng.standard_normal((2, 3, 16, 16)), rng.integers(0, 3, (2, 16, 16))) for _ in range(6)]
    whole, first, second = small_plan(backend), small_plan(backend), small_plan(backend, seed=9)
    train(whole, batches, optimiser)
    train(first, batches[:3], optimiser)
    save_tensors(tmp_path / "state.safetensors", first.state(), {"step_count": first.step_count})
    state, metadata = load_tensors(tmp_path / "state.safetensors")
    second.restore(state, int(metadata["step_count"]))
    train(second, batches[3:], optimiser)
    assert second.step_count == whole.step_count == 6
    for name in ("values", "velocity"):
        np.testing.assert_array_equal(second.state()[name], whole.state()[name])
        assert whole.state()[name].any()


def test_a_state_is_a_copy(backend, rng):
    plan = small_plan(backend)
    state = plan.state()
    kept = {name: array.copy() for name, array in state.items()}
    train(plan, [(rng.standard_normal((2, 3, 16, 16)), rng.integers(0, 3, (2, 16, 16)))], SGD(lr=0.1, momentum=0.8))
    for name, array in state.items():
        np.testing.assert_array_equal(array, kept[name])
    plan.restore(state, 0)
    np.testing.assert_array_equal(plan.state()["values"], kept["values"])


@pytest.mark.parametrize("name", ["values", "velocity"])
def test_the_state_of_another_network_is_refused(name):
    """Also one number, which NumPy would copy to every parameter."""
    plan = small_plan()
    before, state = plan.state(), plan.state()
    state[name] = state[name][:1]
    with pytest.raises(ValueError, match=r"expected|shape"):
        plan.restore(state, 5)
    assert plan.step_count == 0
    for key, array in plan.state().items():
        np.testing.assert_array_equal(array, before[key])
