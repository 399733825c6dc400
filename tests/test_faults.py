"""Has each thing that can go wrong around a training an outcome that was thought of, and is nothing lost by it?"""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import call, refused
from PIL import Image

import icnn.train.__main__
from icnn.data.folder import SmithFolder
from icnn.data.write_folder import write_face, write_split
from icnn.synthetic.faces import synthetic_faces
from icnn.train.batches import Batches
from icnn.train.run_folder import Run
from minicnn.checkpoint import load_tensors

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
resource = pytest.importorskip("resource")

TINY = [
    "--backend", "numba", "--threads", "1", "--set", "train.steps=2", "--set", "train.batch=2",
    "--set", "train.validate_every=1", "--set", "evaluate.split=tuning",
]  # fmt: skip


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of four faces to train on and two to validate on."""
    root = tmp_path_factory.mktemp("faces")
    for split, count in (("exemplars", 4), ("tuning", 2)):
        names = [f"{split}{number}" for number in range(count)]
        for name, face in zip(names, synthetic_faces(count, 3, split), strict=True):
            write_face(root, name, face.image, face.maps)
        write_split(root, split, names)
    return root


def states(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "state").iterdir())}


def test_a_full_disk_stops_with_one_line_and_the_training_goes_on_later(photographs, tmp_path, monkeypatch):
    """The system's own refusal, as of a disk without room: no file may grow beyond 100 kB."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert call("train", "--data", photographs, "--out", whole, *TINY)[0] == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    validate = icnn.train.trainer.Trainer._validate

    def filled_up(self, speed):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        return validate(self, speed)

    monkeypatch.setattr(icnn.train.trainer.Trainer, "_validate", filled_up)
    try:
        code, _, errors = call("train", "--data", photographs, "--out", broken, *TINY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        monkeypatch.undo()
    assert code == 2 and "File too large" in errors and errors.count("\n") == 1
    assert not list(broken.rglob("*.unfinished"))
    assert Run(broken).load_state("stage1")[1].step == 0
    assert call("train", "--resume", broken)[0] == 0
    for path in (whole / "weights").iterdir():
        tensors, again = (load_tensors(folder / "weights" / path.name)[0] for folder in (whole, broken))
        assert all((tensors[key] == again[key]).all() for key in tensors)


@pytest.mark.parametrize("place", ["file/run", "/proc/run"])
def test_a_folder_that_cannot_be_made_is_said_before_the_training(tmp_path, place):
    (tmp_path / "file").touch()
    refused("train", "--out", tmp_path / place, "--set", "synthetic.exemplars=2", *TINY, words="run")


def test_photographs_that_vanish_during_a_training_are_not_missed(photographs, tmp_path, monkeypatch):
    """They are read once, at the start."""
    copy = shutil.copytree(photographs, tmp_path / "copy")
    load_splits = icnn.train.__main__.load_splits

    def then_gone(*arguments):
        splits = load_splits(*arguments)
        shutil.rmtree(copy)
        return splits

    monkeypatch.setattr(icnn.train.__main__, "load_splits", then_gone)
    assert call("train", "--data", copy, "--out", tmp_path / "run", *TINY)[0] == 0
    monkeypatch.undo()
    refused("train", "--resume", tmp_path / "run", words=str(copy))


def test_a_training_does_not_go_on_with_other_faces(photographs, tmp_path):
    copy, folder = shutil.copytree(photographs, tmp_path / "copy"), tmp_path / "run"
    assert call("train", "--data", copy, "--out", folder, *TINY)[0] == 0
    before = states(folder)
    (label,) = (copy / "labels").glob("exemplars1/*_lbl06.png")
    pixels = np.array(Image.open(label))
    Image.fromarray(255 - pixels).save(label)
    refused("train", "--resume", folder, words="expected the exemplars and tuning images that this training began with")
    assert states(folder) == before
    assert call("train", "--resume", folder, "--data", photographs)[0] == 0  # the same faces, elsewhere


def test_a_photograph_that_changes_while_it_is_read_is_refused_or_whole(photographs, tmp_path):
    copy = shutil.copytree(photographs, tmp_path / "copy")
    image = copy / "images" / "exemplars0.jpg"
    data = image.read_bytes()
    image.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=re.escape(str(image))):
        SmithFolder(copy).load_split("exemplars")


def test_a_worker_that_dies_stops_the_training_and_leaves_a_state(photographs, tmp_path, monkeypatch):
    make = Batches.make

    def out_of_memory(self, step, part=None):
        if step == 1:
            raise MemoryError
        return make(self, step, part)

    monkeypatch.setattr(Batches, "make", out_of_memory)
    code, _, errors = call("train", "--data", photographs, "--out", tmp_path / "run", *TINY)
    assert (code, errors) == (2, "icnn.train: out of memory; try fewer faces, a smaller batch, or a larger --memory\n")
    assert Run(tmp_path / "run").load_state("stage1")[1].step == 1
    monkeypatch.undo()
    assert call("train", "--resume", tmp_path / "run")[0] == 0


def launched(*arguments):
    """A training in a process of its own: exit code, stderr, and its greatest resident size in bytes."""
    program = (
        "import re, sys; from icnn.cli import run; from icnn.train.__main__ import main\n"
        "try: run(main, 'icnn.train', sys.argv[1:])\n"
        "finally: print(re.search('VmHWM:\\\\s*(\\\\d+)', open('/proc/self/status').read())[1])"
    )
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr, 1024 * int(done.stdout.split()[-1])


def test_a_stated_limit_of_memory_is_kept(tmp_path):
    many = ["--set", "synthetic.exemplars=2000", "--set", "synthetic.tuning=2", *TINY, "--out", tmp_path / "run"]
    code, errors, resident = launched("--memory", "512M", *many)
    assert code == 2 and errors == "icnn.train: out of memory; try fewer faces, a smaller batch, or a larger --memory\n"
    # Code and files that are mapped are not the process's own; all the rest is within the limit.
    assert resident < 800 << 20
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", ["much", "", "G", "-1G", "4.5G", "100M", "4T"])
def test_sizes_that_are_none_are_refused(size):
    limit = resource.getrlimit(resource.RLIMIT_DATA)
    refused("train", f"--memory={size}", words="--memory")
    assert resource.getrlimit(resource.RLIMIT_DATA) == limit


@pytest.mark.parametrize("path", sorted((ROOT / "icnn").glob("*.py")) + sorted((ROOT / "minicnn").rglob("*.py")))
def test_durations_come_from_a_clock_that_never_jumps(path):
    """The wall clock may be set at any time: it names folders and says when something was, and measures nothing."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("time", "time"), ("time", "time_ns")}


def test_a_clock_that_jumps_back_changes_no_training(photographs, tmp_path, monkeypatch):
    assert call("train", "--data", photographs, "--out", tmp_path / "one", *TINY)[0] == 0
    hours = iter(range(10**9, 0, -3600))
    monkeypatch.setattr("time.time", lambda: float(next(hours)))
    assert call("train", "--data", photographs, "--out", tmp_path / "other", *TINY)[0] == 0
    one, other = (Run(tmp_path / name).read_log() for name in ("one", "other"))
    assert [{**entry, "images_per_second": 0} for entry in one] == [
        {**entry, "images_per_second": 0} for entry in other
    ]  # fmt: skip
