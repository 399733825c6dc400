"""Are synthetic faces drawn once a run, and again where what is stored of them cannot be taken?"""

import signal

import pytest
from commands import call

import icnn.train.__main__
from icnn.cli import Signals, StopError
from icnn.config import load_config
from icnn.synthetic.faces import synthetic_face
from icnn.train import splits
from icnn.train.run_folder import ReadOnlyRun, Run

pytestmark = pytest.mark.slow

FEW = ["synthetic.exemplars=3", "synthetic.tuning=2", "synthetic.testing=1", "evaluate.split=testing"]


@pytest.fixture
def stored(tmp_path):
    """A run folder with the faces of `FEW`, its settings, and what `load_splits` gave."""
    the_run, config = Run(tmp_path / "run"), load_config(None, FEW)
    drawn = splits.load_splits(config, the_run, Signals())
    the_run.open(config)
    the_run.save_faces(drawn.drawn, config.synthetic)
    return the_run, config, drawn


def all_of(drawn):
    return splits.digest_of([*drawn.exemplars, *drawn.tuning, *drawn.evaluated])


@pytest.fixture
def calls(monkeypatch):
    """The (seed, split, index) of each face that is drawn."""
    calls = []
    monkeypatch.setattr(splits, "synthetic_face", lambda *place: calls.append(place) or synthetic_face(*place))
    return calls


@pytest.mark.parametrize("kind", [Run, ReadOnlyRun])
def test_stored_faces_are_not_drawn_again(stored, calls, capsys, kind):
    the_run, config, drawn = stored
    again = splits.load_splits(config, kind(the_run.folder), Signals())
    assert calls == [] and again.drawn == {} and capsys.readouterr().out == ""
    assert all_of(again) == all_of(drawn) and again.source == drawn.source


def test_only_a_split_that_is_not_stored_is_drawn(stored, calls):
    the_run, config, drawn = stored
    the_run.save_faces({"exemplars": drawn.exemplars, "tuning": drawn.tuning}, config.synthetic)
    again = splits.load_splits(config, the_run, Signals())
    assert calls == [(0, "testing", 0)] and all_of(again) == all_of(drawn)
    the_run.save_faces(again.drawn, config.synthetic)
    assert splits.load_splits(config, the_run, Signals()).drawn == {}


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"no faces", lambda data: data[:-9] + 9 * b"x"]
)
def test_damaged_faces_are_drawn_again_with_one_line(stored, calls, capsys, damage):
    the_run, config, drawn = stored
    path = the_run.folder / "state" / "faces.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    capsys.readouterr()
    again = splits.load_splits(config, the_run, Signals())
    assert len(calls) == 6 and all_of(again) == all_of(drawn)
    damaged, drawing = capsys.readouterr().out.splitlines()
    assert damaged == f"{path}: damaged, so the faces are drawn again"
    assert drawing == "drawing 6 synthetic faces on 1 core, then training five networks"


def test_faces_of_other_settings_are_not_taken(stored, calls):
    the_run, _, drawn = stored
    other = splits.load_splits(load_config(None, [*FEW, "synthetic.seed=1"]), the_run, Signals())
    assert len(calls) == 6 and all_of(other) != all_of(drawn)


def test_a_process_that_does_not_write_stores_no_faces(stored):
    the_run, config, drawn = stored
    the_run.drop_faces()
    ReadOnlyRun(the_run.folder).save_faces({"tuning": drawn.tuning}, config.synthetic)
    assert the_run.load_faces(config.synthetic) == {}


def test_a_training_stores_its_faces_at_the_start_and_a_resumed_one_takes_them(tmp_path, monkeypatch):
    def stopped(*_):
        raise StopError(signal.SIGTERM)

    monkeypatch.setattr(icnn.train.__main__, "train_network", stopped)
    settings = [word for setting in FEW for word in ("--set", setting)]
    assert call("train", "--out", tmp_path / "run", "--backend", "numpy", *settings)[0] == 143
    monkeypatch.setattr(splits, "synthetic_face", None)  # nobody may call it
    assert call("train", "--resume", tmp_path / "run", "--backend", "numpy")[0] == 143
