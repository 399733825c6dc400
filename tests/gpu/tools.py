"""Parts of the report that other programs make: nvidia-smi, conv_bench, Nsight Compute, compute-sanitizer, pytest."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree

from checks import is_simulated
from measure import machine
from part import Part

from minicnn.kernels import BackendError, get_backend

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KEPT = 4000  # characters of a program's output
_PACKAGES = ("numpy", "scipy", "numba", "cupy-cuda12x", "cupy-cuda13x", "cupy", "torch", "triton", "safetensors")


def run(*command: object, seconds: float) -> dict:
    """Start a program of this checkout; its exit code (None: stopped), seconds and the end of its output."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [str(part) for part in command], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", timeout=max(seconds, 1), check=False,
        )  # fmt: skip
        code, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        code, output = None, f"stopped after {error.timeout:.0f} s"
    except OSError as error:
        code, output = 127, str(error)
    return {"exit": code, "seconds": round(time.perf_counter() - start, 1), "output": anonymous(output)}


def anonymous(text: str) -> str:
    """A program's output without the folders of this machine."""
    return text.replace(str(ROOT), ".").replace(str(Path.home()), "~")


# ---- the machine


def about_machine(part: Part) -> None:
    """Card, driver, versions, commit; and why the card cannot be used, if so."""
    packages = {}
    for package in _PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = run("git", "describe", "--always", "--dirty", "--abbrev=12", seconds=10)
    part.put(
        versions=packages,
        host=machine(),
        commit=commit["output"].strip() if commit["exit"] == 0 else "unknown",
        tools={name: bool(shutil.which(name)) for name in ("nvidia-smi", "ncu", "compute-sanitizer", "nvcc")},
        card=_query("name,driver_version,memory.total,memory.used,power.limit,mig.mode.current"),
        others=_query("pid,used_memory", "compute-apps"),
    )
    clocks(part)
    try:
        cupy = get_backend("cupy").cupy
    except BackendError as error:
        part.put(unusable=str(error))
        return
    device = cupy.cuda.Device()
    properties = cupy.cuda.runtime.getDeviceProperties(device.id)
    part.put(
        device=properties["name"].decode(),
        compute_capability=device.compute_capability,
        multiprocessors=properties["multiProcessorCount"],
        memory_gib=device.mem_info[1] / 2**30,
        free_gib=device.mem_info[0] / 2**30,
        driver=cupy.cuda.runtime.driverGetVersion(),
        cuda_runtime=cupy.cuda.runtime.runtimeGetVersion(),
        cupy=cupy.__version__,
        simulated=is_simulated(),
    )


def clocks(part: Part) -> None:
    """Clocks, temperature, power, and what holds the clocks back: before and after all measurements."""
    found = _query("clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,temperature.gpu,power.draw,utilization.gpu")
    for reasons in ("clocks_event_reasons.active", "clocks_throttle_reasons.active"):
        if held := _query(reasons):
            found |= {"reasons": held[reasons]}
            break
    part.put(clocks=found)
    if not found:
        part.lack("clocks and throttling: nvidia-smi is not there or does not say")


def _query(fields: str, what: str = "gpu") -> dict[str, str]:
    """What nvidia-smi says of the first card (or its first process), by field; empty if it cannot say."""
    if shutil.which("nvidia-smi") is None or is_simulated():
        return {}
    done = run("nvidia-smi", f"--query-{what}={fields}", "--format=csv,noheader", seconds=20)
    line = (done["output"].splitlines() or [""])[0]
    values = [value.strip() for value in line.split(",")]
    names = fields.split(",")
    return dict(zip(names, values, strict=True)) if done["exit"] == 0 and len(values) == len(names) else {}


# ---- benchmarks


def convolutions(part: Part) -> None:
    """Every convolution in each direction, and PyTorch's with TF32 off and on: conv_bench."""
    if is_simulated():
        part.lack("conv_bench: the stand-in takes minutes for a convolution")
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "figures.json")
        bench = ROOT / "benchmarks" / "conv_bench.py"
        done = run(
            sys.executable, bench, "--backend", "cupy", "--rounds", 3, "--json", file, seconds=part.left()
        )  # fmt: skip
        if file.exists():
            part.put(figures=json.loads(file.read_text()))
        elif done["exit"] is None:
            part.lack(f"conv_bench: {done['output']}")
        else:
            part.require(False, f"conv_bench: exit {done['exit']}: {done['output'][-KEPT:]}")


# ---- Nsight Compute

_SECTIONS = ("SpeedOfLight", "SchedulerStats", "WarpStateStats", "Occupancy", "ComputeWorkloadAnalysis",
             "MemoryWorkloadAnalysis", "MemoryWorkloadAnalysis_Tables")  # fmt: skip
_KERNELS = "regex:correlate|weight_gradient|sum_parts"
#: What is kept of Nsight Compute's columns, by the beginnings of their names, which differ from version to version.
COUNTERS = {
    "us": ("gpu__time_duration.sum",),
    "sm %": ("sm__throughput.avg.pct_of_peak_sustained_elapsed",),
    "memory %": ("gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed",),
    "issue active": ("sm__inst_issued.avg.pct_of_peak_sustained_active", "smsp__issue_active.avg.per_cycle_active"),
    "FMA pipe %": ("sm__pipe_fma_cycles_active.avg.pct", "sm__inst_executed_pipe_fma.avg.pct", "sm__pipe_fma"),
    "occupancy %": ("sm__warps_active.avg.pct_of_peak_sustained_active",),
    "bank conflicts": ("l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum", "l1tex__data_bank_conflicts_pipe_lsu"),
    "L2 bytes": ("lts__t_bytes.sum", "lts__t_bytes"),
    "DRAM bytes": ("dram__bytes.sum", "dram__bytes_read.sum"),
}
_STALL = re.compile(r"smsp__average_warps?_(?:latency_)?issue_stalled_(\w+?)(?:_per_.*)?(?:\.ratio)?")


def counters(part: Part) -> None:
    """Hardware counters of one eager step's convolutions: Nsight Compute."""
    program = shutil.which("ncu")
    if program is None or is_simulated():
        part.lack("hardware counters: ncu is not on PATH")
        return
    sections = [word for section in _SECTIONS for word in ("--section", section)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "counters.csv")
        done = run(
            program, "--clock-control", "none", *sections, "-k", _KERNELS, "--csv", "--page", "raw", "--log-file", file,
            sys.executable, HERE / "eager_step.py", seconds=part.left(),
        )  # fmt: skip
        text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    rows = read_counters(text)
    if rows:
        part.put(rows=rows)
    elif reason := _refusal(text + done["output"]):
        part.lack(f"hardware counters: {reason}")
    elif done["exit"] is None:
        part.lack(f"hardware counters: ncu was {done['output']}")
    else:
        part.require(False, f"ncu: exit {done['exit']}: {anonymous(text + done['output'])[-KEPT:]}")


def _refusal(text: str) -> str:
    """Why Nsight Compute may not read the counters, if it says so."""
    if "ERR_NVGPUCTRPERM" in text:
        return "this user may not read them (ERR_NVGPUCTRPERM); try as root, or NVreg_RestrictProfilingToAdminUsers=0"
    found = re.search(r"==ERROR==.*(?:driver|not supported|LibraryNotLoaded|profiler).*", text)
    return anonymous(found[0]) if found else ""


def read_counters(text: str) -> list[dict]:
    """Of Nsight Compute's raw page as CSV: each kernel's name, grid, block, `COUNTERS` and three worst stalls."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    table = list(csv.DictReader(lines))
    rows = []
    for line in table[1:]:  # the first has the units
        row: dict[str, object] = {
            "kernel": line.get("Kernel Name", "")[:120],
            "grid": line.get("Grid Size", ""),
            "block": line.get("Block Size", ""),
        }
        for name, beginnings in COUNTERS.items():
            columns = (column for start in beginnings for column in line if column and column.startswith(start))
            row[name] = _number(line.get(next(columns, "")))
        stalls = {}
        for column, value in line.items():
            match, number = _STALL.fullmatch(column or ""), _number(value)
            if match and number is not None and not match[1].endswith("_not_issued"):
                stalls[match[1]] = max(number, stalls.get(match[1], 0.0))
        row["stalls"] = dict(sorted(stalls.items(), key=lambda item: -item[1])[:3])
        rows.append(row)
    return rows


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None


# ---- compute-sanitizer, pytest


def memcheck(part: Part) -> None:
    """compute-sanitizer's memcheck of a small program, with memory that is not CuPy's pool's."""
    _sanitize(part, ["memcheck"])


def more_sanitizers(part: Part) -> None:
    """The other checks of compute-sanitizer."""
    _sanitize(part, ["racecheck", "synccheck", "initcheck"])


def _sanitize(part: Part, checks: Sequence[str]) -> None:
    program = shutil.which("compute-sanitizer")
    if program is None or is_simulated():
        part.lack("compute-sanitizer is not on PATH")
        return
    for number, check in enumerate(checks):
        share = part.left() / (len(checks) - number)
        done = run(
            program, "--tool", check, "--error-exitcode", 9, sys.executable, HERE / "small.py", seconds=share
        )  # fmt: skip
        part.put(**{check: {**done, "output": done["output"][-KEPT:]}})
        if done["exit"] is None or "Device not supported" in done["output"]:
            part.lack(f"{check}: {done['output'].splitlines()[-1] if done['output'] else 'it says nothing'}")
        else:
            part.require(done["exit"] == 0, f"{check}: exit {done['exit']}")


def library_tests(part: Part) -> None:
    """The tests of this folder."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "results.xml")
        chosen = ["-k", "parity_maps"] if is_simulated() else []
        done = run(
            sys.executable, "-m", "pytest", HERE, "-q", "-p", "no:cacheprovider", f"--junitxml={file}", *chosen,
            seconds=part.left(),
        )  # fmt: skip
        counts, failures = read_results(file) if file.exists() else ({}, [])
    part.put(**counts, failures=failures, exit=done["exit"], output=done["output"][-KEPT:])
    if done["exit"] is None:
        part.lack(f"the tests: {done['output']}")
    else:
        part.require(done["exit"] == 0 and counts.get("passed", 0) > 0, f"pytest: exit {done['exit']}")


def read_results(file: Path) -> tuple[dict[str, int], list[dict[str, str]]]:
    """Numbers of tests by outcome, and those that failed, from pytest's XML file."""
    counts, failures = {"passed": 0, "failed": 0, "skipped": 0}, []
    for test in ElementTree.parse(file).iter("testcase"):
        wrong = [child for child in test if child.tag in ("failure", "error")]
        outcome = "failed" if wrong else "skipped" if test.find("skipped") is not None else "passed"
        counts[outcome] += 1
        for child in wrong:
            failures.append(
                {"test": f"{test.get('classname')}::{test.get('name')}", "text": anonymous(child.text or "")[-KEPT:]}
            )
    return counts, failures
