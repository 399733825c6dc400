"""Does `python -m icnn.train.finder` learn, go on where it stopped, and refuse what it cannot use?"""

import json
import signal

import numpy as np
import pytest
from PIL import Image

import icnn.train.finder as trainer
from icnn.cli import run
from icnn.model.finder import ROLLS, finder_graph
from icnn.train.scenes import SIZE
from minicnn import SGD, Plan
from minicnn.checkpoint import load_tensors


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few scenes, many checkpoints."""
    for name, value in {"_BATCH": 4, "_POOL": 8, "_VALIDATION": 6, "_EVERY": 2}.items():
        monkeypatch.setattr(trainer, name, value)


def arguments(tmp_path, *more: str) -> list[str]:
    return ["--out", str(tmp_path / "finder.safetensors"), "--synthetic", "21", "--threads", "1", *more]


def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, capsys):
    negatives = tmp_path / "negatives"
    negatives.mkdir()
    Image.new("RGB", (50, 40), "red").save(negatives / "red.png")
    both = ("--steps", "6", "--negatives", str(negatives), "--card", '{"data": "drawn", "terms": "any"}')
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    assert trainer.main(arguments(whole, *both)) == 0
    expected, metadata = load_tensors(whole / "finder.safetensors")
    assert json.loads(metadata["card"]) == {"data": "drawn", "terms": "any"}
    assert capsys.readouterr().out.count("average precision") == 3

    step, steps = trainer.train_step, []

    def interrupted(*given):
        steps.append(1)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(*given)

    monkeypatch.setattr(trainer, "train_step", interrupted)
    with pytest.raises(SystemExit) as stop:
        run(trainer.main, "icnn.train.finder", arguments(parts, *both))
    assert stop.value.code == 143 and len(steps) == 3 and (parts / "finder.state").exists()
    assert trainer.main(arguments(parts, *both)) == 0
    assert len(steps) == 6 and not (parts / "finder.state").exists()
    resumed, _ = load_tensors(parts / "finder.safetensors")
    assert all((resumed[name] == expected[name]).all() for name in expected)


@pytest.mark.parametrize("more", [("--out", "missing/finder.safetensors"), ("--card", "[]"), ("--data", "missing")])
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, capsys, more):
    with pytest.raises(SystemExit) as stop:
        run(trainer.main, "icnn.train.finder", arguments(tmp_path, *more))
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_loss_falls_and_the_precision_rises():
    rng = np.random.default_rng(0)
    labels = np.zeros((4, SIZE // 4, SIZE // 4), np.int32)
    labels[:, 6:18:6, 6:18:6] = rng.integers(1, 1 + ROLLS, (4, 2, 2))
    images = np.repeat(np.repeat(labels[:, None] / ROLLS - 0.5, 4, 2), 4, 3) * np.ones((1, 3, 1, 1))
    batch = trainer.Batch(images.astype(np.float32), labels, np.ones(labels.shape, np.float32))
    plan = Plan(finder_graph(SIZE), 4, "numba", threads=1)
    before = trainer.precision(plan, batch)
    losses = [trainer.train_step(plan, batch, SGD(0.02, 0.9)) for _ in range(60)]
    assert losses[-1] < losses[0] / 3
    assert trainer.precision(plan, batch) > 5 * before
