"""Does training go on bit for bit, keep what it should, and stop when it should?"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from icnn.cli import NotFiniteError, StopError
from icnn.config import Train, load_config
from icnn.data.overlay import label_picture
from icnn.errors import InputError
from icnn.model.network import icnn_graph
from icnn.stages import NETWORKS
from icnn.synthetic.faces import synthetic_faces
from icnn.train.batches import Batch, samples_of, validation_batch
from icnn.train.live import shown_crops
from icnn.train.run_folder import Progress, Run
from icnn.train.trainer import Trainer, schedule_of, train_network, validation_scores
from minicnn import Plan
from minicnn.checkpoint import load_tensors

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
SETTINGS = ["train.batch=2", "train.steps=6", "train.validate_every=2", "train.lr=0.01"]
BLANK = Batch(np.zeros((1, 3, 64, 64), np.float32), np.zeros((1, 64, 64), np.uint8), np.ones((1, 64, 64), np.float32))


class SignalAfter:
    """Stands for `icnn.cli.Signals`: a SIGTERM comes when the loop has looked `looks` times."""

    def __init__(self, looks=10**9):
        self.looks = looks

    @property
    def number(self):
        self.looks -= 1
        return 15 if self.looks < 0 else 0

    def check(self):
        raise StopError(15)


@pytest.fixture(scope="module")
def faces():
    return synthetic_faces(5, 0, "exemplars"), synthetic_faces(3, 0, "tuning")


def start(folder, *settings):
    config = load_config(None, [*SETTINGS, *settings])
    run = Run.new(folder)
    run.open(config)
    return run, config


def resume(folder, *settings):
    run = Run(folder)
    return run, load_config(run.config_path, list(settings))


def train(run, config, faces, backend="numba", signals=None, network="eye"):
    train_network(network, *faces, config, run, backend, signals or SignalAfter())


def weights(run, network="eye"):
    return load_tensors(run.weights_path(network))[0]


@pytest.mark.parametrize(
    ("backend", "looks", "settings"),
    [
        ("numba", 1, []),
        ("numba", 3, []),
        ("numba", 4, []),
        ("numpy", 3, []),
        ("numba", 9, ["train.ema=0.9", "train.steps=18", "augment.noise=9", "augment.jpeg=0.5"]),
    ],
)
def test_stopped_and_resumed_equals_undisturbed_bit_for_bit(tmp_path, faces, backend, looks, settings):
    whole, config = start(tmp_path / "whole", *settings)
    train(whole, config, faces, backend)
    broken, config = start(tmp_path / "broken", *settings)
    with pytest.raises(StopError):
        train(broken, config, faces, backend, SignalAfter(looks))
    assert broken.load_state("eye")[1].step == looks
    resumed, config = resume(broken.folder)
    train(resumed, config, faces, backend)
    for name, tensor in weights(whole).items():
        np.testing.assert_array_equal(tensor, weights(resumed)[name])
    for key in ("step", "loss", "lr", "validation_loss", "validation_f"):
        assert [entry[key] for entry in whole.read_log()] == [entry[key] for entry in resumed.read_log()]


def test_a_state_older_than_the_log_does_not_leave_lines_twice(tmp_path, faces):
    run, config = start(tmp_path / "run", "train.steps=4")
    kept = []
    save = run.save_state
    run.save_state = lambda *arguments: kept.append(arguments[2].step) or (save(*arguments) if len(kept) < 3 else None)
    train(run, config, faces)  # a kill after the last log line: the state on disk is that of step 2
    again, config = resume(run.folder)
    assert again.load_state("eye")[1].step == 2
    train(again, config, faces)
    assert [entry["step"] for entry in again.read_log()] == [2, 4]


def test_a_training_can_be_watched_and_its_crops_are_of_the_weights_that_would_be_kept(tmp_path, faces):
    run, config = start(tmp_path / "run", "train.steps=4", "train.ema=0.9")
    train(run, config, faces)
    assert "Training, as of" in (run.folder / "report.html").read_text("utf-8")
    sheets = sorted(path.name for path in (run.folder / "validation").iterdir())
    assert sheets == ["eye-000002.png", "eye-000004.png"]
    trainer_batch = validation_batch(samples_of("eye", faces[1], "median"), config.train)
    plan = Plan(icnn_graph(2, 64), 6, "numba")
    tensors, _ = run.load_state("eye")
    plan.restore({**plan.state(), "values": tensors["average"].astype(np.float32)}, 0)
    chosen = shown_crops(trainer_batch, 2)
    labels = plan.forward(trainer_batch.images[chosen]).argmax(1)
    with Image.open(run.folder / "validation" / sheets[-1]) as sheet:
        shown = np.asarray(sheet.convert("RGB"))[64:128]
    np.testing.assert_array_equal(shown, np.hstack(list(label_picture(np.array((0, 2), np.uint8)[labels]))))


def test_crops_are_shown_after_every_epoch_in_which_losses_were_read(tmp_path, faces):
    run, config = start(tmp_path / "run", "train.steps=34", "train.validate_every=34")
    train(run, config, [faces[0][:4], faces[1][:1]], network="stage1")  # an epoch is two steps, a reading each 16
    assert sorted(path.stem for path in (run.folder / "validation").iterdir()) == [
        "stage1-000016", "stage1-000032", "stage1-000034",
    ]  # fmt: skip
    slow, config = start(tmp_path / "slow", "train.steps=34", "train.validate_every=34", "train.batch=1")
    train(slow, config, [faces[0] * 4, faces[1][:1]], network="stage1")  # an epoch is 20 steps
    assert sorted(path.stem for path in (slow.folder / "validation").iterdir()) == ["stage1-000032", "stage1-000034"]


def test_a_finished_network_is_not_trained_again(tmp_path, faces):
    run, config = start(tmp_path / "run", "train.steps=2")
    train(run, config, faces)
    before = run.weights_path("eye").stat().st_mtime_ns
    train(run, config, faces)
    assert run.weights_path("eye").stat().st_mtime_ns == before


def test_nan_stops_keeps_the_last_good_state_and_says_what_to_try(tmp_path, faces):
    run, config = start(tmp_path / "run", "train.lr=1e38", "train.steps=30", "train.warmup=0")
    with np.errstate(all="ignore"), pytest.raises(NotFiniteError) as error:
        train(run, config, faces)
    text = str(error.value)
    assert "eye" in text
    assert "--resume" in text
    assert "eye.train.lr=" in text
    assert not run.weights_path("eye").exists()
    tensors, progress = run.load_state("eye")
    assert np.isfinite(tensors["values"]).all()
    resumed, config = resume(run.folder, "train.lr=0.01", "train.steps=4")
    train(resumed, config, faces)
    assert np.isfinite(weights(resumed)["output/conv/bias"]).all()
    assert progress.step < 30


def test_best_and_last_weights_are_kept_as_configured(tmp_path, faces, monkeypatch):
    scores = iter([0.5, 0.9, 0.1] * 2)
    monkeypatch.setattr("icnn.train.trainer.validation_scores", lambda *_: (1.0, next(scores)))
    seen = {}
    for keep in ("best", "last"):
        run, config = start(tmp_path / keep, f"train.keep={keep}")
        states = []
        save = run.save_state

        def record(name, tensors, progress, save=save, states=states):
            states.append((progress.step, tensors["values"].copy()))
            save(name, tensors, progress)

        run.save_state = record
        train(run, config, faces)
        flat = np.concatenate([tensor.ravel() for tensor in in_graph_order(run)])
        seen[keep] = next(step for step, values in states if np.array_equal(values, flat))
    assert seen == {"best": 4, "last": 6}


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_average_of_the_weights_is_what_counts(tmp_path, faces, monkeypatch, keep):
    """Validated and kept is the average, by hand from the weights at every eighth step; the steps do not see it."""
    run, config = start(tmp_path / "run", "train.ema=0.6", "train.steps=32", f"train.keep={keep}")
    weights_at, seen = {}, {}
    step, scores = Trainer._step, iter([0.5, 0.6, 0.7, 0.8] + [0.1] * 12)

    def scored(plan, *_):
        seen[plan.step_count] = plan.state()["values"]
        return 1.0, next(scores)

    def stepped(self, batch):
        step(self, batch)
        weights_at[self.plan.step_count] = self.plan.state()["values"].astype(np.float64)

    monkeypatch.setattr("icnn.train.trainer.validation_scores", scored)
    monkeypatch.setattr(Trainer, "_step", stepped)
    first = Trainer("eye", config.train, config, run, "numba", BLANK)
    average = first.plan.state()["values"].astype(np.float64)
    train(run, config, faces)
    averages = {}
    for number in sorted(weights_at):
        if number % 8 == 0:
            decay = min(0.6, 1 - 10 / (10 + number)) ** 8
            average = decay * average + (1 - decay) * weights_at[number]
        averages[number] = average
    for number, values in seen.items():
        np.testing.assert_allclose(values, averages[number], rtol=1e-6, atol=1e-7)
    kept = np.concatenate([tensor.ravel() for tensor in in_graph_order(run)])
    np.testing.assert_array_equal(kept, seen[8 if keep == "best" else 32])
    plain, config = start(tmp_path / "plain", "train.steps=32")
    monkeypatch.undo()
    train(plain, config, faces)
    losses = [[entry["loss"] for entry in one.read_log()] for one in (run, plain)]
    assert losses[0] == losses[1]


def in_graph_order(run):
    from icnn.model.network import icnn_graph

    network, loaded = NETWORKS["eye"], weights(run)
    return [loaded[name] for name in icnn_graph(network.labels, network.size).parameter_shapes]


@pytest.mark.parametrize(
    ("settings", "results", "stopped_at"),
    [
        (["train.patience=2"], [(1, 0.5), (1, 0.4), (1, 0.3), (1, 0.9)], 6),
        (["train.stop_after_rises=2"], [(1, 0.5), (2, 0.6), (3, 0.7), (1, 0.8)], 6),
        (["train.stop_after_rises=2"], [(1, 0.5), (2, 0.6), (1, 0.7), (2, 0.8)], 8),
        ([], [(1, 0.5), (2, 0.4), (3, 0.3), (4, 0.2)], 8),
    ],
)
def test_training_stops_when_configured(tmp_path, faces, monkeypatch, settings, results, stopped_at):
    results = iter(results)
    monkeypatch.setattr("icnn.train.trainer.validation_scores", lambda *_: next(results))
    run, config = start(tmp_path / "run", "train.steps=8", *settings)
    train(run, config, faces)
    assert run.load_state("eye")[1].step == stopped_at


def test_a_kill_after_a_stopping_rule_applied_does_not_train_on(tmp_path, faces, monkeypatch):
    results = iter([(1, 0.5), (1, 0.4), (1, 0.9)])
    monkeypatch.setattr("icnn.train.trainer.validation_scores", lambda *_: next(results))
    run, config = start(tmp_path / "run", "train.steps=8", "train.patience=1")
    monkeypatch.setattr(Trainer, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        train(run, config, faces)
    kept = weights(run)
    monkeypatch.undo()
    run.weights_path("eye").unlink()  # a kill a little earlier: the weights were not yet written
    train(run, config, faces)
    assert run.load_state("eye")[1].step == 4 and run.load_state("eye")[1].finished
    for name, tensor in kept.items():
        np.testing.assert_array_equal(tensor, weights(run)[name])


def killed(*_):
    raise KeyboardInterrupt


def test_a_line_that_a_kill_cut_off_is_gone_after_the_resume(tmp_path, faces):
    run, config = start(tmp_path / "run")
    with pytest.raises(StopError):
        train(run, config, faces, signals=SignalAfter(3))
    with (run.folder / "log.jsonl").open("a") as file:
        file.write('{"network": "eye", "step": 4, "lo')
    train(*resume(run.folder), faces)
    lines = (run.folder / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6]


def test_one_process_holds_a_run(tmp_path):
    run, config = start(tmp_path / "run")
    with run.locked():
        other = subprocess.run(
            [sys.executable, "-m", "icnn.train", "--resume", str(run.folder)],
            cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert other.returncode == 2
    assert other.stderr == f"icnn.train: {run.folder}: another process trains in this folder; wait for it to end\n"
    with run.locked():
        run.open(config)


def test_what_a_kill_leaves_of_a_new_run_does_not_stand_in_its_way(tmp_path):
    folder = tmp_path / "run"
    with Run.new(folder).locked():
        (folder / ".config.toml.x1.unfinished").touch()
    the_run = Run.new(folder)
    the_run.open(load_config())
    assert not list(folder.rglob("*.unfinished"))
    with pytest.raises(InputError, match="--resume"):
        Run.new(folder)


def test_stage_1_weights_carry_the_layout_of_the_training_faces(tmp_path, faces):
    run, config = start(tmp_path / "run", "train.steps=1")
    train(run, config, faces, network="stage1")
    metadata = load_tensors(run.weights_path("stage1"))[1]
    layout = np.array(json.loads(metadata["layout"]))
    assert layout.shape == (6, 2)
    assert float(metadata["side"]) == max(faces[0][0].pixels.shape[:2])
    assert layout[0, 0] < layout[2, 0]  # left eyebrow left of the right one
    assert layout[0, 1] < layout[5, 1]  # above the mouth
    assert (metadata["preset"], metadata["labels"], metadata["size"]) == ("paper", "9", "64")


def test_schedules_follow_their_settings():
    cosine = schedule_of(Train(steps=100, lr=0.1, warmup=0.1))
    assert [cosine(0), cosine(9), cosine(10)] == pytest.approx([0.01, 0.1, 0.1])
    assert cosine(55) == pytest.approx(0.05)
    assert cosine(100) == pytest.approx(0, abs=1e-12)
    assert schedule_of(Train(schedule="constant", lr=0.3))(10**6) == 0.3


def test_validation_scores_equal_a_count_by_hand(tmp_path, faces, monkeypatch):
    """F of a constant prediction, and the weighted mean loss over chunks of different size."""
    run, config = start(tmp_path / "run")
    train_settings = config.train
    batch = validation_batch(samples_of("nose", faces[1]), train_settings)
    trainer = Trainer("nose", train_settings, config, run, "numba", batch)
    for array in trainer.plan.parameters.values():
        array[...] = 0
    trainer.plan.parameters["output/conv/bias"][...] = (0, math.log(3))  # softmax (1/4, 3/4): all nose
    loss, f = validation_scores(trainer.plan, "nose", batch)
    inside = batch.weights > 0
    nose = (batch.labels[inside] == 1).mean()
    assert f == pytest.approx(2 * nose / (1 + nose))
    assert loss == pytest.approx(-nose * math.log(3 / 4) - (1 - nose) * math.log(1 / 4), rel=1e-5)


def test_progress_survives_the_disk(tmp_path):
    run, _ = start(tmp_path / "run")
    progress = Progress(step=5, best_f=0.1 + 0.2, validation_loss=float("inf"), loss_sum=1 / 3, loss_count=2)
    run.save_state("nose", {"values": np.arange(3, dtype=np.float32)}, progress)
    tensors, loaded = run.load_state("nose")
    assert loaded == progress
    np.testing.assert_array_equal(tensors["values"], [0, 1, 2])


def test_a_log_line_cut_off_by_a_kill_is_dropped(tmp_path):
    run, _ = start(tmp_path / "run")
    run.log({"network": "eye", "step": 1})
    with (run.folder / "log.jsonl").open("a") as file:
        file.write('{"network": "ey')
    assert run.read_log() == [{"network": "eye", "step": 1}]


ONE_STEP = """
import hashlib, sys
import numpy as np
from icnn.train.batches import Batches, samples_of
from icnn.config import Augment, Train
from icnn.model.network import icnn_graph
from icnn.synthetic.faces import synthetic_faces
from minicnn import SGD, Plan

train = Train(batch=2)
batch = Batches("eye", samples_of("eye", synthetic_faces(2, 0, "exemplars")), train, Augment(), 0).make(0)
plan = Plan(icnn_graph(2, 64), 2, "numba", seed=0)
plan.step(batch.images, batch.labels, SGD(0.01, 0.9, True, 1e-5), batch.weights)
print(hashlib.sha256(np.concatenate([batch.images.ravel(), plan.state()["values"]]).tobytes()).hexdigest())
"""


def test_freshly_compiled_code_and_code_from_the_cache_give_the_same_bits(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", ONE_STEP]
    cold, warm = (
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        for _ in range(2)
    )
    assert cold.returncode == 0, cold.stderr
    assert any((tmp_path / "cache").glob("convolution-*.o"))
    assert warm.stdout == cold.stdout
