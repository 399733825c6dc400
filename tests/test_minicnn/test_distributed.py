"""Do processes that train together compute what one does, to the bit, and end together, whatever happens to one?"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from launching import finished, launched, workers
from PIL import Image

from icnn.config import Augment, Train
from icnn.data.write_folder import write_face, write_split
from icnn.model.network import icnn_graph
from icnn.stages import NETWORKS
from icnn.synthetic.faces import synthetic_faces
from icnn.train.batches import Batches, own_shards, samples_of
from icnn.train.run_folder import Run
from minicnn import SGD, Plan
from minicnn.checkpoint import load_tensors
from minicnn.distributed import SINGLE, Communicator, sharded_step, shards_of
from minicnn.sgd import Constant

pytestmark = pytest.mark.slow

SETTINGS = [
    "synthetic.exemplars=6", "synthetic.tuning=3", "synthetic.testing=1", "train.batch=5", "train.steps=4",
    "train.validate_every=2", "train.ema=0.9", "augment.noise=9", "augment.occlusion=0.5",
]  # fmt: skip


def arguments(*more, settings=SETTINGS):
    given = [text for setting in settings for text in ("--set", setting)]
    return [sys.executable, "-m", "icnn.train", "--backend", "numba", *given, *more]


# ---------------------------------------------------------------- the mathematics


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_a_batch_in_shards_gives_the_gradient_of_the_whole(shards, backend):
    rng = np.random.default_rng(3)
    graph, batch = icnn_graph(2, 16), 3
    images = rng.normal(size=(batch, 3, 16, 16))
    labels = rng.integers(0, 2, (batch, 16, 16))
    weights = rng.uniform(0, 2, (batch, 16, 16))
    weights[0] = 0  # a shard of its own where there are three: it has no say
    whole, cut = (Plan(graph, batch, backend, "float64", seed=1) for _ in range(2))
    optimiser = SGD(Constant(0.1), momentum=0.9)
    for _ in range(2):
        expected = float(whole.step(images, labels, optimiser, weights))
        parts = [[array[place] for array in (images, labels, weights)] for place in shards_of(batch, shards)]
        assert float(sharded_step(cut, parts, optimiser, SINGLE)) == pytest.approx(expected, rel=1e-12)
        for name, values in whole.parameters.items():
            np.testing.assert_allclose(cut.parameters[name], values, rtol=1e-9, atol=1e-12)
    assert cut.step_count == 2


def test_weights_that_are_all_zero_are_refused():
    plan = Plan(icnn_graph(2, 64), 1)
    blank = np.zeros((1, 3, 64, 64)), np.zeros((1, 64, 64), int), np.zeros((1, 64, 64))
    with pytest.raises(ValueError, match="weights"):
        sharded_step(plan, [blank], SGD(Constant(0.1)), SINGLE)


def test_shards_cover_the_batch_and_differ_by_one_at_most():
    for count in range(1, 12):
        for shards in range(1, count + 1):
            cut = shards_of(count, shards)
            assert [place for part in cut for place in range(count)[part]] == list(range(count))
            sizes = {part.stop - part.start for part in cut}
            assert max(sizes) - min(sizes) <= 1


class Member(Communicator):
    def __init__(self, rank, size):
        self.rank, self.size = rank, size


@pytest.mark.parametrize(("shards", "size"), [(1, 2), (4, 2), (6, 3)])
def test_processes_take_equally_many_shards_and_all_of_the_batch(shards, size):
    train = Train(batch=9, shards=shards)
    taken = [own_shards(train, Member(rank, size)) for rank in range(size)]
    assert len({len(parts) for parts in taken}) == 1
    assert [part for parts in taken for part in parts] == own_shards(Train(batch=9, shards=max(shards, size)), SINGLE)


@pytest.mark.parametrize("draw", ["image", "batch"])
def test_a_part_of_a_batch_is_what_it_is_in_the_whole(draw):
    faces = synthetic_faces(3, 0, "exemplars")
    augment = Augment(draw=draw, noise=9, jpeg=0.3, occlusion=0.3, blur=1)
    batches = Batches("eye", samples_of("eye", faces), Train(batch=5, part_weight=2), augment, 7)
    whole = batches.make(4)
    for place in shards_of(5, 2):
        for part, array in zip(batches.make(4, place), whole, strict=True):
            np.testing.assert_array_equal(part, array[place])
    (ahead,) = batches.ahead(4, 5, part=slice(3, 5))
    np.testing.assert_array_equal(ahead.images, whole.images[3:])


# ---------------------------------------------------------------- processes


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder of a training by two processes."""
    folder = tmp_path_factory.mktemp("processes") / "run"
    code, output, errors = finished(launched(*[arguments("--out", folder)] * 2))
    assert code == 0, errors
    assert output.count("stage1: 4 steps") == 1, "only the first process speaks"
    return folder


def log_of(folder):
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{**entry, "images_per_second": 0} for entry in entries]


def weights_of(folder):
    return {name: load_tensors(folder / "weights" / f"{name}.safetensors")[0] for name in NETWORKS}


def test_two_processes_equal_one_that_sums_in_the_same_shards_bit_for_bit(tmp_path, together):
    alone = tmp_path / "run"
    command = arguments("--out", alone, "--set", "train.shards=2", "--threads", "1")
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert log_of(alone) == log_of(together)
    for name, tensors in weights_of(together).items():
        for key, tensor in weights_of(alone)[name].items():
            np.testing.assert_array_equal(tensor, tensors[key])
    assert (alone / "evaluation.json").read_bytes() == (together / "evaluation.json").read_bytes()


def test_two_processes_equal_one_plain_one_to_rounding(tmp_path, together):
    alone = tmp_path / "run"
    subprocess.run(arguments("--out", alone), check=True, capture_output=True, timeout=300)
    for one, other in zip(log_of(alone), log_of(together), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["validation_loss"] == pytest.approx(other["validation_loss"], rel=1e-5)


LONG = [*SETTINGS, "train.steps=100000", "train.validate_every=5"]


def at_work(folder, process):
    """Wait until a training has validated twice."""
    until = time.monotonic() + 200
    while not (folder / "log.jsonl").exists() or len((folder / "log.jsonl").read_text().splitlines()) < 2:
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.2)


def test_a_process_that_dies_ends_the_others_and_leaves_a_state(tmp_path):
    folder = tmp_path / "run"
    process = launched(*[arguments("--out", folder, settings=LONG)] * 2)
    at_work(folder, process)
    members = workers(process)
    assert len(members) == 2
    os.kill(members[1], signal.SIGKILL)
    code, output, errors = finished(process)
    assert code != 0 and "Killed" in output + errors  # the launcher's own words
    assert not [number for number in members if Path(f"/proc/{number}").exists()]
    tensors, progress = Run(folder).load_state("stage1")
    assert progress.step >= 5 and np.isfinite(tensors["values"]).all()


def test_a_signal_stops_all_at_one_step(tmp_path):
    folder = tmp_path / "run"
    process = launched(*[arguments("--out", folder, settings=LONG)] * 2)
    at_work(folder, process)
    process.send_signal(signal.SIGTERM)
    code, _, errors = finished(process)
    assert code == 143
    assert errors.count("icnn.train: stopped by SIGTERM") == 1
    stopped = Run(folder).load_state("stage1")[1].step
    more = ["--resume", folder, "--set", f"train.steps={stopped + 2}", "--set", "train.validate_every=1"]
    code, output, errors = finished(launched(*[[sys.executable, "-m", "icnn.train", *more]] * 2))
    assert code == 0 and f"stage1: {stopped + 2} steps" in output, errors


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (["--set", "train.lerning=3"], ["--set", "train.lerning=3"], "unknown setting"),
        (["--set", "train.batch=1"], ["--set", "train.batch=1"], "expected a batch of at least one image a shard"),
        (["--set", "train.shards=3"], ["--set", "train.shards=3"], "multiple of the 2 processes"),
        (["--set", "seed=1"], ["--set", "seed=2"], "expected the same settings in all 2 processes"),
        ([], ["--resume", "nowhere"], "process 1: argument --resume: nowhere: expected a folder"),
    ],
)
def test_mistakes_end_all_with_one_line(tmp_path, first, second, words):
    folder = tmp_path / "run"
    code, _, errors = finished(launched(arguments("--out", folder, *first), arguments("--out", folder, *second)))
    assert code == 2
    said = [line for line in errors.splitlines() if line.startswith("icnn.train: ")]
    assert len(said) == 1 and words in said[0]
    assert not folder.exists() or not (folder / "config.toml").exists()


def test_other_faces_are_noticed(tmp_path):
    for folder, seed in (("one", 0), ("other", 1)):
        for split in ("exemplars", "tuning"):
            for face in synthetic_faces(2, seed, split):
                write_face(tmp_path / folder, f"{split}-{face.name[-1]}", face.image, face.maps)
            write_split(tmp_path / folder, split, [f"{split}-0", f"{split}-1"])
    more = ["--out", tmp_path / "run", "--set", "evaluate.split=tuning"]
    commands = [arguments("--data", tmp_path / folder, *more) for folder in ("one", "other")]
    code, _, errors = finished(launched(*commands))
    assert code == 2 and "icnn.train: expected the same faces in all 2 processes" in errors
    assert not (tmp_path / "run").exists()


def test_a_folder_is_parsed_by_two_as_by_one(tmp_path):
    for number, face in enumerate(synthetic_faces(5, 0, "testing")):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(np.ascontiguousarray(face.image)).save(tmp_path / "in" / f"{number}.png")
    for name in ("bad.png", "worse.png"):
        (tmp_path / "in" / name).write_text("no photograph")
    command = [sys.executable, "-m", "icnn.parse", str(tmp_path / "in"), "--backend", "numba", "--out"]
    alone = subprocess.run([*command, str(tmp_path / "one")], capture_output=True, text=True, timeout=300)
    code, _, errors = finished(launched(*[[*command, str(tmp_path / "two")]] * 2))
    assert code == alone.returncode == 2
    for text in (errors, alone.stderr):
        assert "2 of 7 photographs could not be parsed" in text
        assert all(f"{name}: expected an image" in text for name in ("bad.png", "worse.png"))
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir()) and len(files) == 15
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("variable", ["PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK"])
@pytest.mark.parametrize(
    ("blocked", "words"),
    [
        ("sys.modules['mpi4py'] = None", "mpi4py"),
        ("os.environ['MPI4PY_LIBMPI'] = '/nowhere'", "cannot load MPI library"),
    ],
)
def test_an_mpi_that_is_missing_is_said(tmp_path, variable, blocked, words):
    if "LIBMPI" in blocked:
        pytest.importorskip("mpi4py")
    program = f"import os, sys; {blocked}; from icnn.train.__main__ import main, run; run(main, 'icnn.train', [])"
    environment = {**os.environ, variable: "0"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("icnn.train: expected mpi4py and an MPI library") and words in line
    assert "pip install 'icnn[mpi]'" in line and not list(tmp_path.iterdir())
