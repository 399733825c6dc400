"""Do the commands do what --help says, and answer every mistake with one line and exit code 2?"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from commands import call, refused
from PIL import Image

import icnn.__main__
from icnn.evaluate.metrics import MEASURES
from icnn.stages import NETWORKS
from minicnn.checkpoint import load_tensors

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]

#: A training of seconds.
TINY = [
    "--backend", "numba", "--set", "train.steps=2", "--set", "train.batch=2", "--set", "train.validate_every=1",
    "--set", "synthetic.exemplars=4", "--set", "synthetic.tuning=2", "--set", "synthetic.testing=3",
    "--set", "train.lr=0.01",
]  # fmt: skip


@pytest.fixture(scope="module")
def helen(tmp_path_factory):
    """A small folder in the layout of Smith et al."""
    folder = tmp_path_factory.mktemp("faces") / "helen"
    assert call("synthetic", "--out", folder, "--count", 20, "--seed", 1)[0] == 0
    return folder


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """A tiny training on synthetic faces as a user starts it: its folder, stdout and stderr."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    arguments = [sys.executable, "-m", "icnn.train", "--out", str(folder), *TINY]
    process = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr
    return folder, process.stdout, process.stderr


@pytest.fixture(scope="module")
def trained(printed):
    """Its RUN folder."""
    return printed[0]


def check_schema(evaluation, split, images):
    assert set(evaluation) == {"split", "images", "crops"}
    assert (evaluation["split"], evaluation["images"]) == (split, images)
    assert set(evaluation["crops"]) == {"predicted", "ground_truth"}
    for crops in evaluation["crops"].values():
        assert tuple(crops) == MEASURES
        assert all(f is None or 0 <= f <= 1 for f in crops.values())


def test_a_training_writes_every_file_of_the_contract(trained):
    names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    weights = {f"weights/{name}.safetensors" for name in NETWORKS}
    assert names >= {"config.toml", "log.jsonl", "evaluation.json", "report.html", *weights}
    assert not [name for name in names - {".lock"} if "/." in name or name.startswith(".")], "temporary files left"
    assert "state/faces.safetensors" not in names, "synthetic faces are kept only while there is something to resume"
    check_schema(json.loads((trained / "evaluation.json").read_text()), "testing", 3)
    entries = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [(entry["network"], entry["step"]) for entry in entries] == [
        (name, step) for name in NETWORKS for step in (1, 2)
    ]
    for name, network in NETWORKS.items():
        metadata = load_tensors(trained / "weights" / f"{name}.safetensors")[1]
        assert set(metadata) >= {"preset", "labels", "size", "beta", "beta0", "version"}
        assert (int(metadata["labels"]), int(metadata["size"])) == (network.labels, network.size)
        card = json.loads(metadata["card"])
        assert card["scores"] == json.loads((trained / "evaluation.json").read_text())
        assert "synthetic faces" in card["data"] and "train.steps" not in card["config"]
        assert tomllib.loads(card["config"])["train"]["steps"] == 2


def test_training_prints_the_table_and_says_which_backend_and_why(printed):
    _, out, err = printed
    assert "backend numba" in out.splitlines()[0]
    for words in (
        "this run, end to end",
        "constant prior",
        "colour classifier",
        "synthetic faces",
        "the paper",
    ):
        assert words in out
    said = [line for line in err.splitlines() if not line.startswith(("compiling kernels", "compiled "))]
    assert said == [], "no bars where stderr is not a terminal"


def test_training_and_evaluation_on_a_folder_give_the_same_figures(tmp_path, helen):
    folder, file = tmp_path / "run", tmp_path / "figures.json"
    assert call("train", "--data", helen, "--out", folder, *TINY, "--set", "evaluate.split=tuning")[0] == 0
    check_schema(json.loads((folder / "evaluation.json").read_text()), "tuning", 2)
    code, _, _ = call("train", "--resume", folder, "--final", "--backend", "numba")
    assert code == 0
    final = json.loads((folder / "evaluation.json").read_text())
    check_schema(final, "testing", 2)
    for weights in (folder, folder / "weights"):
        arguments = ["--data", helen, "--weights", weights, "--backend", "numba", "--json", file]
        code, out, _ = call("evaluate", *arguments)
        assert code == 0 and "ground-truth centres" in out
        assert json.loads(file.read_text()) == final


def test_another_seed_gives_other_weights(tmp_path, trained):
    call("train", "--out", tmp_path / "other", *TINY, "--set", "seed=1")
    files = [folder / "weights" / "nose.safetensors" for folder in (trained, tmp_path / "other")]
    first, other = (load_tensors(file)[0]["output/conv/weight"] for file in files)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops_and_resume_reaches_the_same_weights(tmp_path, number):
    settings = [*TINY, "--set", "train.steps=12", "--set", "train.validate_every=3"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert call("train", "--out", whole, *settings)[0] == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "icnn.train", "--out", str(broken), *settings],
        cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (broken / "log.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert err == f"icnn.train: stopped by {signal.Signals(number).name}\n"
    assert not (broken / "evaluation.json").exists()
    assert call("train", "--resume", broken, "--backend", "numba")[0] == 0
    for name in NETWORKS:
        expected, actual = (load_tensors(folder / "weights" / f"{name}.safetensors") for folder in (whole, broken))
        assert expected[1] == actual[1]
        for key, tensor in expected[0].items():
            np.testing.assert_array_equal(tensor, actual[0][key])
    assert (whole / "evaluation.json").read_text() == (broken / "evaluation.json").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_does_not_wait_for_kernels_to_compile(tmp_path, number):
    """With one photograph there is no other point at which the command would stop: it would end as if nothing was."""
    Image.new("RGB", (64, 64), "grey").save(tmp_path / "one.png")
    process = subprocess.Popen(
        [sys.executable, "-m", "icnn.parse", tmp_path / "one.png", "--out", tmp_path / "out", "--backend", "numba"],
        cwd=ROOT, env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr and process.stderr.readline() == "compiling kernels, only at their first use\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert err.splitlines()[-1] == f"icnn.parse: stopped by {signal.Signals(number).name}"
    assert not list((tmp_path / "out").iterdir())


def test_a_loss_that_becomes_nan_exits_with_3_and_keeps_the_state(tmp_path):
    with np.errstate(all="ignore"):
        code, _, err = call(
            "train", "--out", tmp_path / "run", *TINY, "--set", "train.lr=1e38", "--set", "train.steps=20"
        )
    assert code == 3
    assert err.count("\n") == 1 and "train.lr" in err and "--resume" in err
    assert (tmp_path / "run" / "state" / "stage1.safetensors").exists()


def test_a_run_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep")
    refused("train", "--out", tmp_path / "run", *TINY, words=[tmp_path / "run", "--resume"])
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "train.stps=3"], ["train.stps", "train.steps"]),
        (["--set", "train.steps=0"], ["train.steps"]),
        (["--config", "absent.toml"], ["absent.toml"]),
        (["--data", "absent"], ["absent"]),
        (["--resume", "absent"], ["absent"]),
        (["--resume", "tests"], ["tests", "config.toml"]),
        (["--resume", "tests", "--out", "x"], ["--resume", "--out"]),
        (["--backend", "fortran"], ["fortran", "numba"]),
        (["--backend", "cupy"], ["cupy", "numba"]),
        (["--threads", "0"], ["--threads", "at least 1"]),
        (["--threads", "two"], ["--threads", "two"]),
        (["--bogus"], ["--bogus", "--help"]),
        (["--data", "tests"], ["images"]),
    ],
)
def test_mistakes_in_training_are_refused(arguments, words, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    out = [] if "--resume" in arguments else ["--out", tmp_path / "run"]
    refused("train", *arguments, *out, words=words)


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda path: path.unlink(), "stage1.safetensors"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "stage1.safetensors"),
        (lambda path: path.write_text("not weights"), "stage1.safetensors"),
        (
            lambda path: path.write_bytes((path.parent / "mouth.safetensors").read_bytes()),
            "stage1.safetensors",
        ),
    ],
)
def test_damaged_weights_are_named(tmp_path, trained, helen, damage, word):
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in NETWORKS:
        (weights / f"{name}.safetensors").write_bytes((trained / "weights" / f"{name}.safetensors").read_bytes())
    damage(weights / "stage1.safetensors")
    refused("evaluate", "--data", helen, "--weights", weights, "--backend", "numba", words=word)


def test_mistakes_in_evaluation_are_refused(tmp_path, trained, helen):
    refused("evaluate", "--weights", trained, words="--data")
    refused("evaluate", "--data", helen, "--weights", tmp_path / "none", words=tmp_path / "none")
    refused("evaluate", "--data", helen, "--weights", trained, "--split", "test", words="testing")
    target = tmp_path / "absent" / "figures.json"
    evaluation = ["--data", helen, "--weights", trained, "--backend", "numba"]
    refused("evaluate", *evaluation, "--json", target, words="absent")


def test_a_bad_photograph_stops_a_training_before_it_starts_and_is_named(tmp_path, helen):
    folder = tmp_path / "bad"
    shutil.copytree(helen, folder)
    name = (folder / "exemplars.txt").read_text().split(",")[1].split()[0]
    photograph = folder / "images" / f"{name}.jpg"
    photograph.write_bytes(photograph.read_bytes()[:500])
    refused("train", "--data", folder, "--out", tmp_path / "run", *TINY, words=photograph)
    assert not (tmp_path / "run").exists(), "the same command must work once the photograph is mended"


@pytest.mark.filterwarnings("default")
def test_a_part_absent_from_all_faces_is_refused_before_training_and_a_warning_names_it(tmp_path, helen):
    folder = tmp_path / "noseless"
    shutil.copytree(helen, folder)
    for path in folder.glob("labels/*/*_lbl06.png"):
        with Image.open(path) as image:
            blank = Image.new("L", image.size)
        blank.save(path)
    code, _, err = call("train", "--data", folder, "--out", tmp_path / "run", *TINY)
    lines = err.splitlines()
    assert code == 2
    assert "nose" in lines[-1] and not lines[-1].startswith("Traceback")
    assert any("warning" in line and "nose" in line for line in lines[:-1])
    assert not (tmp_path / "run").exists(), "nothing was trained"


@pytest.mark.parametrize("command", ["train", "evaluate", "synthetic", "convert", "exercise"])
def test_help_names_every_option(command):
    code, out, _ = call(command, "--help")
    assert code == 0
    source = (ROOT / "icnn" / command / "__main__.py").read_text()
    for option in set(re.findall(r'"(--[a-z]+)"', source)):
        assert option in out


def test_a_command_whose_reader_goes_away_ends_quietly(helen, trained):
    arguments = [
        sys.executable,
        "-m",
        "icnn.evaluate",
        "--data",
        helen,
        "--weights",
        trained,
        "--backend",
        "numba",
    ]
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(arguments, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert process.stderr == ""
    assert process.returncode == 1


# ---------------------------------------------------------------- icnn COMMAND


def entry(*arguments, **options):
    command = [sys.executable, "-m", "icnn", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False, **options)


def test_the_entry_point_lists_its_commands_and_knows_its_version():
    for arguments in ((), ("--help",)):
        process = entry(*arguments)
        assert process.returncode == 0 and all(f"  {name} " in process.stdout for name in icnn.__main__.COMMANDS)
    pattern = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert entry("--version").stdout == f"icnn {pattern}\n"


def test_the_entry_point_runs_commands_and_refuses_others(tmp_path):
    assert entry("synthetic", "--out", tmp_path / "faces", "--count", 10).returncode == 0
    assert (tmp_path / "faces" / "exemplars.txt").is_file()
    process = entry("synthetic", "--out", tmp_path / "faces", "--count", 10)
    assert process.returncode == 2 and process.stderr.startswith("icnn.synthetic: ")
    process = entry("pares")
    assert process.returncode == 2 and process.stderr.count("\n") == 1 and "parse" in process.stderr


@pytest.mark.parametrize("name", icnn.__main__.COMMANDS)
def test_every_command_has_help(name):
    process = entry(name, "--help")
    assert process.returncode == 0 and process.stdout.startswith("usage: ")


def test_importing_the_package_loads_no_compiler():
    program = "import sys, icnn; print('numba' in sys.modules or 'numpy' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout == "False\n"
