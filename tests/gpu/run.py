"""``python tests/gpu/run.py``: test and measure this project on an NVIDIA GPU, and write one file to send back.

Needs an NVIDIA driver and ``pip install -e '.[test,cuda12]'`` (or cuda13); PyTorch and compute-sanitizer are used if
they are there. Takes some minutes. The file holds no name of the machine or of its user.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from checks import captured_and_eager, largest_difference, step_milliseconds, training_curve  # noqa: E402
from measure import machine  # noqa: E402

from minicnn.kernels import BackendError, get_backend  # noqa: E402

TOOLS = ("memcheck", "racecheck", "initcheck")
LIMIT = 1e-3  # by which curves may differ
KEPT = 4000  # characters of a program's output
HOUR = 3600


def run(*command: object) -> dict:
    """Start a program of this checkout; its exit code, seconds and the end of its output."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [str(part) for part in command], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", timeout=HOUR, check=False,
        )  # fmt: skip
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        code, output = None, f"not done after {error.timeout:.0f} s"
    output = output.replace(str(ROOT), ".").replace(str(Path.home()), "~")
    return {"exit": code, "seconds": round(time.perf_counter() - start, 1), "output": output[-KEPT:]}


# ---- parts of the report; each returns what is written and whether it is as it should be


def about_machine() -> tuple[dict, bool]:
    """Device, driver, versions, commit."""
    cupy = get_backend("cupy").cupy
    device = cupy.cuda.Device()
    properties = cupy.cuda.runtime.getDeviceProperties(device.id)
    commit = run("git", "describe", "--always", "--dirty", "--abbrev=12")
    return {
        "device": properties["name"].decode(),
        "compute_capability": device.compute_capability,
        "multiprocessors": properties["multiProcessorCount"],
        "memory_gib": round(device.mem_info[1] / 2**30, 1),
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "cuda_runtime": cupy.cuda.runtime.runtimeGetVersion(),
        "cupy": cupy.__version__,
        "rest": machine(),
        "commit": commit["output"].strip() if commit["exit"] == 0 else "unknown",
    }, True


def library_tests(quick: bool) -> tuple[dict, bool]:
    """The tests of this folder."""
    chosen = ["-k", "parity_maps or capture"] if quick else []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "results.xml")
        done = run(sys.executable, "-m", "pytest", HERE, "-q", "-p", "no:cacheprovider", f"--junitxml={file}", *chosen)
        counts, failures = read_results(file) if file.exists() else ({}, [])
    result = {**done, **counts, "failures": failures}
    return result, done["exit"] == 0 and counts.get("passed", 0) > 0


def read_results(file: Path) -> tuple[dict[str, int], list[dict[str, str]]]:
    """Numbers of tests by outcome, and those that failed, from pytest's XML file."""
    counts, failures = {"passed": 0, "failed": 0, "skipped": 0}, []
    for test in ElementTree.parse(file).iter("testcase"):
        wrong = [child for child in test if child.tag in ("failure", "error")]
        outcome = "failed" if wrong else "skipped" if test.find("skipped") is not None else "passed"
        counts[outcome] += 1
        for child in wrong:
            failures.append(
                {"test": f"{test.get('classname')}::{test.get('name')}", "text": (child.text or "")[-KEPT:]}
            )
    return counts, failures


def capture(quick: bool) -> tuple[dict, bool]:
    """A captured step against an eager one."""
    pairs = zip(*captured_and_eager(steps=3 if quick else 10, size=16 if quick else 64), strict=True)
    same = all((captured == eager).all() for captured, eager in pairs)
    return {"same_bits": same}, same


def training(quick: bool) -> tuple[dict, bool]:
    """Float32 training curves of the GPU's backends and of numba."""
    steps, size = (3, 16) if quick else (200, 32)
    curves = {backend: training_curve(backend, steps, size) for backend in ("numba", "cupy", "cublas")}
    differences = {backend: largest_difference(curves[backend], curves["numba"]) for backend in ("cupy", "cublas")}
    good = all(difference < LIMIT for difference in differences.values())
    return {"largest_difference_from_numba": differences, "limit": LIMIT, "losses": curves}, good


def sanitizer(quick: bool) -> tuple[dict, bool]:
    """compute-sanitizer's checks of a small program."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return {"skipped": "compute-sanitizer is not on PATH"}, True
    tools = TOOLS[:1] if quick else TOOLS
    results = {
        tool: run(program, "--tool", tool, "--error-exitcode", 9, sys.executable, HERE / "small.py") for tool in tools
    }
    return results, all(result["exit"] == 0 for result in results.values())


def steps(quick: bool) -> tuple[dict, bool]:
    """Times of captured steps, by labels, side and batch."""
    kinds = [(9, 64, 10), (9, 64, 64), (9, 64, 256), (2, 64, 10), (4, 80, 10)]
    if quick:
        return {"ms": {"2x16x2": step_milliseconds(2, 16, 2, steps=2)}}, True
    return {"ms": {"x".join(map(str, kind)): step_milliseconds(*kind) for kind in kinds}}, True


def benchmarks(quick: bool) -> tuple[dict, bool]:
    """What the benchmarks write and print."""
    results = {}
    for script in ("conv_bench.py", "step_bench.py"):
        path = ROOT / "benchmarks" / script
        if "--backend" not in run(sys.executable, path, "--help")["output"]:
            results[script] = {"skipped": "knows no --backend"}
            continue
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "figures.json")
            options = ["--backend", "cupy", "--json", file, *(["--quick", "--batch", 2] if quick else [])]
            results[script] = run(sys.executable, path, *options)
            if file.exists():
                results[script]["figures"] = json.loads(file.read_text())
    return results, all(result.get("exit", 0) == 0 for result in results.values())


PARTS: dict[str, Callable[[bool], tuple[dict, bool]]] = {
    "machine": lambda quick: about_machine(),
    "tests": library_tests,
    "capture": capture,
    "training": training,
    "sanitizer": sanitizer,
    "steps": steps,
    "benchmarks": benchmarks,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all is as it should be, 1 if not, 2 if there is no GPU that can be used."""
    parser = argparse.ArgumentParser(prog="python tests/gpu/run.py", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path("gpu-report.json"), metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="parts of the report")
    parser.add_argument("--quick", action="store_true", help="a little of each part: does it run?")
    options = parser.parse_args(argv)
    try:
        get_backend("cupy")
    except BackendError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    report: dict[str, dict] = {}
    for name in options.only:
        print(f"{name} ...", flush=True)
        start = time.perf_counter()
        try:
            result, good = PARTS[name](options.quick)
        except Exception as error:  # the other parts may still tell something
            result, good = {"error": f"{type(error).__name__}: {error}"}, False
        report[name] = {"good": good, "took_seconds": round(time.perf_counter() - start, 1), **result}
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {'good' if good else 'NOT as it should be'} {summary(result)}", flush=True)
    print(f"{options.out} is the file to send back")
    return 0 if all(part["good"] for part in report.values()) else 1


def summary(result: dict) -> str:
    """What is short enough for a line."""
    return json.dumps({key: value for key, value in result.items() if len(json.dumps(value)) < 200})


if __name__ == "__main__":
    sys.exit(main())
