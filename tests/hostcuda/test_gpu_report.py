"""Does the script for people with a GPU keep its deadline and write what it found, whatever happens on the way?"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import standin

from minicnn import Graph
from minicnn.layers import Conv2D, Input, Tanh

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "gpu"
OPTIONAL = ("tomli_w", "filelock", "threadpoolctl")


def small_graph(labels: int, size: int) -> Graph:
    """In the place of a network, whose kernels would take too long."""
    graph = Graph(preset="test", labels=labels, size=size)
    graph.add("image", Input(3, size, size))
    graph.add("conv", Conv2D(8, 5), "image")
    graph.add("tanh", Tanh(), "conv")
    graph.add("y", Conv2D(labels, 5), "tanh")
    return graph


@pytest.fixture
def module(device, monkeypatch):
    """The script as a module, on the stand-in; what it imports of its folder is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    for path in FOLDER.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    specification = importlib.util.spec_from_file_location("gpu_report", FOLDER / "run.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(sys.modules["checks"], "icnn_graph", small_graph)
    monkeypatch.setattr("step_cases.icnn_graph", small_graph)
    yield module
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def do(module, tmp_path):
    """Does a part of the report in this process: its figures."""

    def do(name: str, seconds: float = 600) -> dict:
        file = tmp_path / "part.json"
        module._do(name, module.Part(file, time.monotonic() + seconds))
        found = json.loads(file.read_text())
        assert found.pop("finished")
        return found

    return do


# ---- as its user starts it


def start(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(FOLDER / "run.py"), *map(str, arguments)]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=900, check=False
    )


def test_without_a_gpu_it_says_so_in_one_line_and_writes_what_it_knows(tmp_path):
    done = start("--out", tmp_path / "report", CUDA_VISIBLE_DEVICES="-1")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("run.py: backend 'cupy' cannot be used here: ")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["machine"]["versions"]["numpy"] and report["machine"]["unusable"] in line
    assert {part["status"] for name, part in report.items() if name != "machine"} == {"left out"}
    assert "no card that can be used" in (tmp_path / "report.md").read_text()


def test_a_smoke_test_needs_nothing_but_what_computes(tmp_path):
    """Where the packages that only a full installation has are missing."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({OPTIONAL}))\n")
    places = os.pathsep.join([str(tmp_path), str(FOLDER.parent / "hostcuda" / "in_place")])
    done = start("--smoke", "--minutes", 10, "--out", tmp_path / "report", PYTHONPATH=places, ICNN_HOSTCUDA_CHECKED="0")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report) == ["machine", "compile", "kernels", "graphs", "one step", "clocks after"]
    assert {part["status"] for part in report.values()} == {"good"}
    assert report["machine"]["simulated"] and report["machine"]["device"] == "Stand-in GPU"
    assert report["kernels"]["passed"] == report["kernels"]["cases"] > 150
    assert report["one step"]["rows"][0]["variants"]["captured"]["median"] > 0
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# Stand-in GPU\n") and "no time in this file means anything" in text
    assert all(f"## {name}\n" in text for name in ("compile", "kernels", "graphs", "one step"))


@pytest.mark.parametrize("script", ["conv_bench", "step_bench"])
def test_the_benchmarks_start_without_them_too(script, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({OPTIONAL}))\n")
    command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), "--help"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "--backend" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--minutes", "0"), "number of minutes above 0"),
        (("--minutes", "soon"), "number of minutes above 0"),
        (("--only", "abacus"), "abacus"),
        (("--smoke", "--tests"), "not allowed with"),
        (("--out", "no/folder/x"), "folder that exists"),
    ],
)
def test_mistakes(arguments, words):
    done = start(*arguments)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1


# ---- parts and their processes

_SCRIPT = """
import json, os, subprocess, sys, time
_, name, end, file = sys.argv[1:]
def put(**figures):
    with open(file, "w") as out:
        json.dump({"wrong": [], "lacking": [], **figures}, out)
if name == "good":
    put(finished=True, left=float(end) - time.monotonic())
elif name == "wrong":
    put(finished=True, wrong=["a number is wrong"])
elif name == "raises":
    put(first=1)
    raise RuntimeError("no luck")
elif name == "dies":
    os.abort()
elif name == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    put(first=1, child=child.pid)
    time.sleep(600)
"""


@pytest.fixture
def parts(module, monkeypatch, tmp_path):
    """The script, whose parts' processes run another one."""
    (tmp_path / "run.py").write_text(_SCRIPT)
    monkeypatch.setattr(module, "HERE", tmp_path)
    return module


def test_a_part_has_its_time_and_its_result(parts):
    result = parts.start_part("good", 30)
    assert result["status"] == "good" and 25 < result["left"] < 30 - parts.WRITING


@pytest.mark.parametrize("name", ["wrong", "raises", "dies"])
def test_what_went_wrong_in_a_part_is_kept(parts, name, capsys):
    result = parts.start_part(name, 30)
    parts._print_line(name, result)
    printed = capsys.readouterr().out
    if name == "wrong":
        assert result["status"] == "wrong" and "a number is wrong" in printed
        return
    assert result["status"] == "failed" and result["exit"]
    if name == "raises":
        assert result["first"] == 1 and printed.endswith("RuntimeError: no luck\n")


def test_a_part_that_hangs_is_cut_off_with_all_that_it_started(parts):
    result = parts.start_part("hangs", 3)
    assert result["status"] == "cut off" and result["first"] == 1
    for _ in range(100):
        state = Path(f"/proc/{result['child']}/stat")
        if not state.exists() or state.read_text().split(")")[1].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("what it started is still running")


@pytest.fixture
def report(module, monkeypatch, tmp_path):
    """Makes a report of parts whose results are given; the seconds that each was given, the exit code and the file."""

    def make(seconds: float, results: dict[str, dict], names=None) -> SimpleNamespace:
        given, clock = {}, SimpleNamespace(now=100.0)
        monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)

        def start_part(name: str, seconds: float) -> dict:
            given[name] = seconds
            clock.now += results.get(name, {}).get("seconds", seconds)
            return {"status": "good", "wrong": [], "lacking": [], "seconds": 1.0, **results.get(name, {})}

        monkeypatch.setattr(module, "start_part", start_part)
        code = module.Report(tmp_path / "report", seconds).make(names or list(module.TASKS))
        return SimpleNamespace(
            given=given, code=code, spent=clock.now - 100, parts=json.loads((tmp_path / "report.json").read_text()),
            text=(tmp_path / "report.md").read_text(),
        )  # fmt: skip

    return make


@pytest.mark.parametrize("minutes", [0.1, 0.5, 2, 10, 60])
def test_the_deadline_is_kept_if_every_part_takes_all_it_may(report, module, minutes):
    """What is left out then is worth least."""
    made = report(60 * minutes, {})
    assert made.code == 0 and made.spent <= 60 * minutes - module.WRITING
    *done, last = made.given
    assert done == list(module.TASKS)[: len(done)] and last == "clocks after"
    assert all(seconds >= module.STARTED for seconds in made.given.values())
    left_out = [name for name, part in made.parts.items() if part["status"] == "left out"]
    assert ({*made.given, *left_out} == set(module.TASKS) and not left_out) or minutes < 60


def test_what_a_quick_part_leaves_others_have(report, module):
    names = ["machine", *module._FULL, "clocks after"]
    quick = {name: {"seconds": 0.1} for name in names[:6]}
    slow, fast = (report(600, results, names).given["torch steps"] for results in ({}, quick))
    assert fast > 1.2 * slow


def test_ten_minutes_are_enough_for_what_they_are_said_to_be(module):
    for names, minutes in ((module._FULL, 10), (module._SMOKE, 2.5), (module._LONG, 10)):
        ends = sum(module.TASKS[name].seconds for name in module._ENDS)
        assert ends + sum(module.TASKS[name].seconds for name in names) <= 60 * minutes


def test_a_deadline_too_short_for_anything_is_one_line(report, module, capsys):
    made = report(1.5, {})
    assert made.code == 2 and not made.given
    assert capsys.readouterr().err == "run.py: --minutes: too short for any part; try 2 or more\n"
    assert {part["status"] for part in made.parts.values()} == {"left out"}


def test_a_part_that_is_wrong_or_fails_spoils_no_other(report):
    kernels, graphs = {"status": "wrong", "wrong": ["y: 3 is not 4"]}, {"status": "failed", "output": "no"}
    made = report(600, {"kernels": kernels, "graphs": graphs})
    assert made.code == 1 and made.parts["accuracy"]["status"] == "good"
    assert "| kernels | wrong | 1 | y: 3 is not 4 |" in made.text and "```\nno\n```" in made.text


@pytest.mark.parametrize("status", ["cut off", "good"])
def test_what_is_lacking_is_no_failure(report, status):
    made = report(600, {"counters": {"status": status, "lacking": ["ncu is not on PATH"]}})
    assert made.code == 0 and "ncu is not on PATH" in made.text


# ---- the machine


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"compute_capability": "61"}, "the GPU is too old: compute capability 6.1, expected 7.0 or newer"),
        ({"memory": 100 << 20}, "too little memory is free on the GPU: 100 MiB"),
        ({"driver": 11080}, "the NVIDIA driver is too old: expected one for CUDA 12.9"),
    ],
)
def test_a_card_that_cannot_be_used_is_named_with_the_reason(do, facts, words):
    standin.configure(**facts)
    found = do("machine")
    assert words in found["unusable"] and "\n" not in found["unusable"]
    assert found["versions"]["numpy"] and "device" not in found


def test_what_nvidia_smi_says(module, do, monkeypatch):
    """With newer names of fields and with older ones."""
    tools, asked = sys.modules["tools"], []

    def run(program, query, *rest, seconds):
        asked.append(query)
        if "event_reasons" in query:
            return {"exit": 2, "output": 'Field "clocks_event_reasons.active" is not a valid field to query.\n'}
        values = {"clocks_throttle_reasons.active": "0x4", "pid,used_memory": "12, 3000 MiB"}
        fields = query.partition("=")[2]
        return {"exit": 0, "output": values.get(fields, ", ".join(f"a {name}" for name in fields.split(",")))}

    monkeypatch.setattr(tools, "run", run)
    monkeypatch.setattr(tools, "is_simulated", lambda: False)
    monkeypatch.setattr(tools.shutil, "which", lambda name: name)
    found = do("clocks after")
    assert found["clocks"]["clocks.sm"] == "a clocks.sm" and found["clocks"]["reasons"] == "0x4"
    assert do("machine")["others"] == {"pid": "12", "used_memory": "3000 MiB"}
    assert any("clocks_event_reasons" in query for query in asked)


# ---- what is checked


def test_every_instance_of_the_steps_is_compiled(do, module, monkeypatch):
    from minicnn.kernels import get_backend

    found = do("compile")
    assert found["instances"] >= 6 and len(found["slowest"]) == 5
    gpu = get_backend("cupy")
    compiled = gpu.module_of.cache_info().currsize
    sys.modules["checks"].trained(1, *sys.modules["checks"].extent().kinds[0], 1, captured=True)
    assert gpu.module_of.cache_info().currsize == compiled


def test_kernels_that_are_wrong_are_named(do, module, monkeypatch):
    correctness = sys.modules["correctness"]
    monkeypatch.setattr(correctness, "CASES", correctness.CASES[:4])
    assert do("kernels")["passed"] == 4

    def run_case(case):
        if case is correctness.CASES[1]:
            raise AssertionError("3 is\nnot 4")

    monkeypatch.setattr(correctness, "run_case", run_case)
    found = do("kernels")
    assert (found["passed"], found["cases"]) == (3, 4)
    assert found["wrong"] == [f"{correctness.CASES[1]}: 3 is not 4"]
    assert do("kernels", seconds=-1)["lacking"] == ["4 of 4 cases: no time was left"]


def test_graphs_that_compute_something_else_are_noticed(do, monkeypatch):
    found = do("graphs")
    assert found["wrong"] == [] and found["batches"] == [{"batch": 2, "captured_is_eager": True, "same_twice": True}]
    numbers = iter(range(10))
    monkeypatch.setattr(
        sys.modules["correctness"], "trained", lambda *sizes, captured: [np.full(2, next(numbers) if captured else 0)]
    )
    assert do("graphs")["wrong"] == ["batch 2: same twice: no"]


def test_gradients_that_are_wrong_are_noticed(do, monkeypatch):
    found = do("accuracy")
    assert found["wrong"] == [] and found["exact"] == "the reference in float64"
    assert found["rows"][0]["what"] == "ours" and 0 < found["rows"][0]["largest_gradient"] < 1e-5
    assert found["lacking"] == ["PyTorch's errors: there is no PyTorch with CUDA"]
    correctness = sys.modules["correctness"]
    right = correctness._results

    def results(case, backend, *rest):
        found = right(case, backend, *rest)
        if backend == "cupy":
            found["conv/weight"] = 1.01 * found["conv/weight"]
        return found

    monkeypatch.setattr(correctness, "_results", results)
    assert do("accuracy")["wrong"] == ["conv/weight: error 1.0e-02, limit 1.0e-04"]


def test_curves_that_part_are_noticed(do, monkeypatch):
    found = do("curves")
    assert found["wrong"] == [] and list(found["losses"]) == ["cupy", "numba"]
    lesson = sys.modules["checks"].Lesson
    monkeypatch.setattr(lesson, "curve", lambda self, backend: [2.0, 1.0 if backend == "cupy" else 1.1])
    assert do("curves")["wrong"] == ["the curve is 9.1e-02 away from numba's"]


# ---- what is measured


def test_own_steps_are_measured_in_every_way(do, module):
    (row,) = do("own steps")["rows"]
    assert set(row["variants"]) == {"captured", "eager", "resident"} and row["lacking"] == {}
    assert all(0 < spread["p10"] <= spread["median"] <= spread["p90"] for spread in row["variants"].values())
    text = module.as_markdown({"own steps": {"status": "good", "seconds": 1.0, "rows": [row]}})
    assert "2 labels, 8 px, batch 1" in text and "| captured |" in text


def test_a_batch_that_does_not_fit_is_left_out(do, monkeypatch):
    monkeypatch.setattr("minicnn.kernels.cuda.backend.BACKEND.memory_left", lambda: 1000)
    (row,) = do("own steps")["rows"]
    assert row["variants"] == {} and "not even one image would fit" in row["lacking"]["ours"]
    for part in ("graphs", "accuracy", "curves"):
        found = do(part)
        assert found["wrong"] == [] and "not even one image would fit" in found["lacking"][-1]


def test_ceilings(do):
    found = do("ceilings")
    assert found["gflops"] > 0 and found["copied_gb_a_second"] > 0 and found["us_a_node"] > 0


def test_a_trace_is_summed_up(module):
    def event(ts, dur, name="correlate", grid=(1, 2, 3)):
        return {"ts": ts, "dur": dur, "name": name, "args": {"grid": list(grid), "block": [32, 1, 1]}}

    events = [event(0, 4), event(6, 2, "sum_parts"), event(8, 4), event(13, 2, "sum_parts")]
    found = sys.modules["speed"].summary_of_trace(events, steps=2)
    assert found["kernels_a_step"] == 2 and found["us_in_kernels_a_step"] == 6
    assert found["us_between_kernels_a_step"] == 1.5 and found["median_gap_us"] == 1
    first = {"kernel": "correlate", "grid": "[1, 2, 3]", "block": "[32, 1, 1]", "times": 1, "us": 4}
    assert found["longest"][0] == first
    text = module.as_markdown({"trace": {"status": "good", "case": "a case", "steps": {"ours": found}}})
    assert "| correlate | [1, 2, 3] | [32, 1, 1] |" in text
    with pytest.raises(ValueError, match="saw no kernel"):
        sys.modules["speed"].summary_of_trace([], 2)


# ---- other programs


@pytest.fixture
def program(module, monkeypatch):
    """Lets every program be there and say what is given; how it was started."""

    def program(output: str, code: int | None = 0, files: str = "") -> list:
        tools, calls = sys.modules["tools"], []

        def run(*command, seconds):
            words = list(map(str, command))
            calls.append(words)
            for option, file in pairwise(words):
                if option in ("--log-file", "--json"):
                    Path(file).write_text(files)
            for word in words:
                if word.startswith("--junitxml="):
                    Path(word.partition("=")[2]).write_text(files)
            return {"exit": code, "seconds": 1.0, "output": output}

        monkeypatch.setattr(tools, "run", run)
        monkeypatch.setattr(tools, "is_simulated", lambda: False)
        monkeypatch.setattr(tools.shutil, "which", lambda name: f"/bin/{name}")
        return calls

    return program


_COUNTERS = """==PROF== Connected to process 12
"ID","Kernel Name","Block Size","Grid Size","gpu__time_duration.sum",\
"sm__warps_active.avg.pct_of_peak_sustained_active",\
"smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_barrier_not_issued_per_issue_active.ratio"
"","","","","us","%","inst","inst","inst"
"0","correlate<float, 5, 8, 8, 0>(float *)","(256, 1, 1)","(10, 1, 1)","1,234.5","24.5","1.5","3.25","9"
"1","sum_parts<float>(float *)","(256, 1, 1)","(20, 1, 1)","4.5","n/a","1.5","0.25","9"
"""


def test_counters_are_read(do, program, module):
    calls = program("", files=_COUNTERS)
    found = do("counters")
    first, second = found["rows"]
    assert first["kernel"].startswith("correlate") and first["grid"] == "(10, 1, 1)" and first["us"] == 1234.5
    assert first["occupancy %"] == 24.5 and second["occupancy %"] is None and first["L2 bytes"] is None
    assert first["stalls"] == {"barrier": 3.25, "long_scoreboard": 1.5}
    assert "--clock-control" in calls[0] and calls[0][-1].endswith("eager_step.py")
    text = module.as_markdown({"counters": {"status": "good", **found}})
    assert "| barrier 3.2, long_scoreboard 1.5 |" in text


@pytest.mark.parametrize(
    ("output", "code", "lacking"),
    [
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission", 1, "this user may not read them"),
        ("==ERROR== Failed to initialize the profiler: LibraryNotLoaded", 1, "LibraryNotLoaded"),
        ("stopped after 60 s", None, "ncu was stopped after 60 s"),
    ],
)
def test_counters_that_may_not_be_read_are_said_in_a_line(do, program, output, code, lacking):
    program(output, code)
    found = do("counters")
    assert found["wrong"] == [] and lacking in found["lacking"][0] and "\n" not in found["lacking"][0]


def test_a_profiler_that_fails_otherwise_is_wrong(do, program):
    program("Segmentation fault", 139)
    assert do("counters")["wrong"] == ["ncu: exit 139: Segmentation fault"]


def test_one_eager_step_for_the_profiler(module, monkeypatch):
    monkeypatch.setitem(sys.modules, "eager_step", None)
    monkeypatch.delitem(sys.modules, "eager_step")
    standin.STATS.reset()
    importlib.import_module("eager_step")
    assert standin.STATS.launches > 5 and standin.STATS.graph_launches == 0


def test_memcheck_runs_without_the_pool(do, program):
    calls = program("ERROR SUMMARY: 0 errors")
    assert do("memcheck")["wrong"] == [] and calls[0][-1].endswith("small.py")
    text = (FOLDER / "small.py").read_text()
    assert text.index("set_allocator(None)") < text.index("run_case(case)")
    program("Invalid __global__ write", 9)
    assert do("memcheck")["wrong"] == ["memcheck: exit 9"]
    program("Error: Device not supported", 1)
    assert do("memcheck")["lacking"] == ["memcheck: Error: Device not supported"]


def test_the_other_sanitizers(do, program):
    calls = program("")
    assert do("sanitizers")["wrong"] == []
    assert [words[2] for words in calls] == ["racecheck", "synccheck", "initcheck"]


def test_convolutions(do, program, module):
    row = {"layer": "a", "direction": "forward", "ms": 1.0, "share_of_peak": 0.5, "torch_default_tf32_ms": None}
    calls = program("", files=json.dumps({"rows": [row]}))
    found = do("convolutions")
    assert found["figures"]["rows"] == [row] and "--rounds" in calls[0]
    text = module.as_markdown({"convolutions": {"status": "good", **found}})
    assert "| a | forward | 0.5 | 1 | - |" in text


def test_missing_tools_are_said(do, module, monkeypatch):
    monkeypatch.setattr(sys.modules["tools"], "is_simulated", lambda: False)
    monkeypatch.setattr(sys.modules["tools"].shutil, "which", lambda name: None)
    for part, tool in (("counters", "ncu"), ("memcheck", "compute-sanitizer"), ("clocks after", "nvidia-smi")):
        found = do(part)
        assert found["wrong"] == [] and tool in found["lacking"][0]
    assert "PyTorch" in do("torch steps")["lacking"][0] and "PyTorch" in do("trace")["lacking"][0]


def test_tests_that_fail_are_listed(do, program, module):
    results = (
        '<testsuites><testsuite><testcase classname="test_it" name="test_right"/>'
        '<testcase classname="test_it" name="test_wrong"><failure>assert 1 == 2</failure></testcase>'
        '<testcase classname="test_it" name="test_left_out"><skipped/></testcase></testsuite></testsuites>'
    )
    program("", 1, files=results)
    found = do("tests")
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    assert found["failures"] == [{"test": "test_it::test_wrong", "text": "assert 1 == 2"}]
    assert found["wrong"] == ["pytest: exit 1"]
    assert "test_it::test_wrong" in module.as_markdown({"tests": {"status": "wrong", **found}})


def test_results_of_pytest_are_read(module, tmp_path):
    test, file = tmp_path / "test_it.py", tmp_path / "results.xml"
    test.write_text("import pytest\ndef test_right(): pass\ndef test_wrong(): assert 1 == 2\n")
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={file}", "-p", "no:cacheprovider", test]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 1
    counts, failures = sys.modules["tools"].read_results(file)
    assert counts == {"passed": 1, "failed": 1, "skipped": 0}
    assert failures[0]["test"] == "test_it::test_wrong" and "assert 1 == 2" in failures[0]["text"]


def test_paths_of_the_machine_stay_out_of_the_report(module):
    tools = sys.modules["tools"]
    program = f"print({str(tools.ROOT / 'x')!r}, {str(Path.home() / 'y')!r})"
    done = tools.run(sys.executable, "-c", program, seconds=30)
    assert (done["exit"], done["output"]) == (0, "./x ~/y\n")
    assert tools.run(sys.executable, "-c", "raise SystemExit(3)", seconds=30)["exit"] == 3
    assert tools.run("no-such-program", seconds=30)["exit"] == 127
    assert tools.run(sys.executable, "-c", "import time; time.sleep(60)", seconds=1)["exit"] is None
