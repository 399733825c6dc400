"""Does the script for people with a GPU write its file, as far as that can be seen without one?"""

import importlib.util
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from minicnn import Graph
from minicnn.layers import Conv2D, Input, Tanh

SCRIPT = Path(__file__).parents[1] / "gpu" / "run.py"


def small_graph(labels: int, size: int) -> Graph:
    """In the place of a network, whose kernels would take too long to compile."""
    graph = Graph(preset="test", labels=labels, size=size)
    graph.add("image", Input(3, size, size))
    graph.add("conv", Conv2D(8, 5), "image")
    graph.add("tanh", Tanh(), "conv")
    graph.add("y", Conv2D(labels, 5), "tanh")
    return graph


def started(*command: object) -> dict:
    """In the place of a program that was started: all is well, and it has written what it was asked for."""
    words = [str(part) for part in command]
    for word, file in pairwise(words):
        if word == "--json":
            Path(file).write_text('{"rows": []}')
    for word in words:
        if word.startswith("--junitxml="):
            Path(word.partition("=")[2]).write_text(
                '<testsuites><testsuite><testcase name="x"/></testsuite></testsuites>'
            )
    return {"exit": 0, "seconds": 1.0, "output": "usage: --backend"}


@pytest.fixture
def module(device, monkeypatch):
    """The script as a module, on the stand-in."""
    monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])
    specification = importlib.util.spec_from_file_location("gpu_report", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def script(module, monkeypatch):
    """The same without what takes long."""
    monkeypatch.setattr(sys.modules["checks"], "icnn_graph", small_graph)
    monkeypatch.setattr(module, "run", started)
    monkeypatch.setattr(module.shutil, "which", lambda name: name)
    return module


def test_without_a_gpu_it_ends_with_one_line(tmp_path):
    file = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--out", file], env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and done.stdout == "" and not file.exists()
    assert line.startswith("run.py: backend 'cupy' cannot be used here: ")


def test_the_report_has_all_its_parts(script, tmp_path):
    file = tmp_path / "report.json"
    assert script.main(["--quick", "--out", str(file)]) == 0
    report = json.loads(file.read_text())
    assert list(report) == ["machine", "tests", "capture", "training", "sanitizer", "steps", "benchmarks"]
    assert all(part["good"] for part in report.values())
    assert report["machine"]["device"] == "Stand-in GPU" and report["machine"]["compute_capability"] == "80"
    assert report["tests"]["passed"] == 1 and report["capture"]["same_bits"]
    assert len(report["training"]["losses"]["cupy"]) == 3
    assert report["training"]["largest_difference_from_numba"]["cupy"] < 1e-5
    assert report["sanitizer"]["memcheck"]["exit"] == 0
    assert report["benchmarks"]["conv_bench.py"]["figures"] == {"rows": []}


def test_a_part_that_fails_spoils_no_other(script, tmp_path, monkeypatch):
    def broken(quick):
        raise RuntimeError("no luck")

    def wrong(*command):
        return {**started(*command), "exit": 9}

    monkeypatch.setitem(script.PARTS, "steps", broken)
    monkeypatch.setattr(script, "run", wrong)
    file = tmp_path / "report.json"
    parts = ["machine", "sanitizer", "steps", "tests", "benchmarks"]
    assert script.main(["--quick", "--out", str(file), "--only", *parts]) == 1
    report = json.loads(file.read_text())
    assert [part["good"] for part in report.values()] == [True, False, False, False, False]
    assert report["steps"]["error"] == "RuntimeError: no luck"


def test_results_of_pytest_are_read(script, tmp_path):
    test, file = tmp_path / "test_it.py", tmp_path / "results.xml"
    test.write_text(
        "import pytest\n"
        "def test_right(): pass\n"
        "def test_wrong(): assert 1 == 2\n"
        "def test_left_out(): pytest.skip('no reason')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={file}", "-p", "no:cacheprovider", test]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 1
    counts, failures = script.read_results(file)
    assert counts == {"passed": 1, "failed": 1, "skipped": 1}
    ((name, text),) = (failure.values() for failure in failures)
    assert name == "test_it::test_wrong" and "assert 1 == 2" in text


def test_paths_of_the_machine_stay_out_of_the_report(module):
    done = module.run(sys.executable, "-c", f"print({str(module.ROOT / 'x')!r}, {str(Path.home() / 'y')!r})")
    assert (done["exit"], done["output"]) == (0, "./x ~/y\n")
    assert module.run(sys.executable, "-c", "raise SystemExit(3)")["exit"] == 3
