"""``python benchmarks/step_bench.py``: time training steps, data loading, a busy neighbour process and start-up.

A step is forward, loss, backward and update. Ours and PyTorch's are timed
alternately in each round, so that other load on the machine affects both
equally. GPU steps (`gpu_steps.py`) are timed with CUDA events.
"""

import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from statistics import median

from contenders import GPU_BACKENDS, DevicePeak, cuda_torch
from gpu_steps import ROUNDS as GPU_ROUNDS
from gpu_steps import Spread, format_spreads, gpu_row
from measure import (
    LAYOUTS,
    ROUNDS,
    TURN,
    Goal,
    Peak,
    add_cases,
    find_torch,
    format_goals,
    machine,
    number_or_dash,
    result_file,
    step_flops,
    time_turn,
    write_figures,
)
from step_cases import CPU_BATCHES, GPU_BATCHES, KINDS, OPTIMISER, StepCase

from icnn.cli import Parser, existing_folder, progress, run, text_table
from icnn.config import load_config
from icnn.data.folder import SmithFolder
from icnn.errors import InputError
from icnn.model.network import icnn_graph
from icnn.stages import NETWORKS
from icnn.synthetic.faces import synthetic_faces
from icnn.train.batches import Batches, samples_of
from minicnn import Plan
from minicnn.kernels import choose_backend, get_backend

ROOT = Path(__file__).resolve().parents[1]
ENOUGH = 40  # time limit of a case in seconds, after at least three rounds
FACES = 100  # number of synthetic faces for the steps with data unless --data is given

#: (bound, target) of the step at batch 10 and the most threads, by (classes, side): speed relative to PyTorch's
#: default and channels_last layouts, and share of the peak.
GOALS = {
    (9, 64): ((2.8, 3.5), (2.8, 3.5), (1.40, 1.90)),
    (2, 64): ((2.5, 3.2), (2.5, 3.2), (1.00, 1.40)),
    (4, 80): ((2.5, 3.2), (2.5, 3.2), (1.20, 1.60)),
}


# ---- steps


def torch_steps(torch, case: StepCase, values, compiled: bool) -> dict[str, Callable[[], object]]:
    """Build PyTorch's steps, by name: both layouts, eager and, if requested and possible, compiled.

    Parameters
    ----------
    values : mapping of "node/array" to NumPy arrays
        Initial parameters.
    """
    from torch_twin import TorchStep

    graph, (images, labels) = case.graph(), case.inputs()
    steps: dict[str, Callable[[], object]] = {}
    for layout, is_compiled in product(LAYOUTS, (False, True) if compiled else (False,)):
        if is_compiled:
            torch.compiler.reset()
        step = TorchStep(graph, values, images, labels, layout, is_compiled)
        try:
            step()
        except Exception as error:  # no compiler, or it does not support this network
            print(f"step_bench: no compiled {layout}: {str(error).splitlines()[0]}", file=sys.stderr)
        else:
            steps[f"{layout} {'compiled' if is_compiled else 'eager'}"] = step
    return steps


def measure_case(
    case: StepCase, backend: str, threads: Sequence[int], peak: Peak, torch, compiled: bool, rounds: int, least: float
) -> list[dict]:
    """Time one network and batch size; return one row per number of threads.

    Parameters
    ----------
    rounds : int
        Maximum number of rounds; see `ENOUGH`.
    least : float
        Minimum seconds of one measurement.
    """
    graph, (images, labels) = case.graph(), case.inputs()
    plans = {count: Plan(graph, case.batch, backend, threads=count) for count in threads}
    others = torch_steps(torch, case, plans[threads[0]].parameters, compiled) if torch else {}
    seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
    peaks: dict[int, list[float]] = defaultdict(list)
    start = time.perf_counter()
    for number in range(rounds):
        if number >= 3 and time.perf_counter() - start > ENOUGH:
            break
        for count in threads:
            peaks[count].append(peak.gflops(count))
            own = plans[count]
            seconds["ours", count].append(time_turn(lambda own=own: own.step(images, labels, OPTIMISER), least))
            if torch:
                torch.set_num_threads(count)
            for name, step in others.items():
                seconds[name, count].append(time_turn(step, least))
    rows = []
    for count in threads:
        ms = 1e3 * median(seconds["ours", count])
        best = {layout: _best(seconds, layout, count) for layout in LAYOUTS}
        rows.append(
            {
                "labels": case.labels,
                "size": case.size,
                "batch": case.batch,
                "threads": count,
                "ms": ms,
                "share_of_peak": step_flops(graph, case.batch) / ms * 1e-6 / median(peaks[count]),
                "torch_default_ms": best["default"],
                "torch_channels_last_ms": best["channels_last"],
                "ratio_default": best["default"] and best["default"] / ms,
                "ratio_channels_last": best["channels_last"] and best["channels_last"] / ms,
            }
        )
    return rows


def _best(seconds: dict[tuple[str, int], list[float]], layout: str, threads: int) -> float | None:
    """Return the ms of the faster of eager and compiled, or None without PyTorch."""
    times = [
        median(values) for (name, count), values in seconds.items() if name.startswith(layout) and count == threads
    ]
    return 1e3 * min(times) if times else None


# ---- data loading, busy neighbours, start-up


def data_rates(folder: Path | None, threads: int, rounds: int, steps: int) -> dict[str, tuple[float, float]]:
    """Return the images per second of each network: with data loading, and of steps on one fixed batch."""
    config = load_config(None, [])
    faces = SmithFolder(str(folder)).load_split("exemplars") if folder else synthetic_faces(FACES, 0, "exemplars")
    rates = {}
    for name, network in NETWORKS.items():
        train, augment = config.for_network(name)
        batches = Batches(name, samples_of(name, faces, train.centre), train, augment, config.seed)
        plan = Plan(icnn_graph(network.labels, network.size), train.batch, "numba", threads=threads)
        fixed = batches.make(0)
        plan.step(fixed.images, fixed.labels, OPTIMISER, fixed.weights)
        seconds: dict[str, list[float]] = {"data": [], "bare": []}
        for number in range(rounds):
            start = time.perf_counter()
            for batch in batches.ahead(number * steps, (number + 1) * steps):
                plan.step(batch.images, batch.labels, OPTIMISER, batch.weights)
            middle = time.perf_counter()
            for _ in range(steps):
                plan.step(fixed.images, fixed.labels, OPTIMISER, fixed.weights)
            seconds["data"].append(middle - start)
            seconds["bare"].append(time.perf_counter() - middle)
        images = steps * train.batch
        rates[name] = images / median(seconds["data"]), images / median(seconds["bare"])
    return rates


def busy_ratio(rounds: int) -> float:
    """Return the time of a single-thread step next to a busy process, relative to its time without."""
    case = StepCase(9, 64, 10)
    plan, (images, labels) = Plan(case.graph(), case.batch, "numba", threads=1), case.inputs()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _, busy in product(range(rounds), (False, True)):
        neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
        with neighbour or nullcontext():
            seconds[busy].append(time_turn(lambda: plan.step(images, labels, OPTIMISER), TURN))
            if neighbour:
                neighbour.kill()
    return median(seconds[True]) / median(seconds[False])


_FIRST_STEP = """
import numpy as np
from icnn.model.network import icnn_graph
from minicnn import SGD, Plan
plan = Plan(icnn_graph(9, 64), 10, "numba")
plan.step(np.zeros((10, 3, 64, 64), np.float32), np.zeros((10, 64, 64), int), SGD(lr=0.01, momentum=0.9))
with open("/proc/self/status") as status:
    print(*(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


def starts(rounds: int) -> tuple[float, float, float]:
    """Measure new processes up to the end of their first step.

    Returns
    -------
    cold, cached : float
        Seconds without and with cached compiled kernels.
    resident : float
        Peak resident memory in MiB (Linux only).
    """
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"NUMBA_CACHE_DIR": cache, "PYTHONPATH": str(ROOT)}
        seconds, resident = [], 0.0
        for _ in range(1 + rounds):
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", _FIRST_STEP], env=environment, capture_output=True, text=True, check=True
            )
            seconds.append(time.perf_counter() - start)
            resident = float(done.stdout or 0) / 1024
    return seconds[0], median(seconds[1:]), resident


# ---- tables


def format_rows(rows: Sequence[dict]) -> str:
    """Format the steps' rows as a table."""
    lines: list[tuple[str, ...]] = [
        ("labels", "size", "batch", "threads", "ms", "of peak", "torch ms", "ratio", "channels_last ms", "ratio")
    ]
    for row in rows:
        lines.append(
            (
                *(str(row[key]) for key in ("labels", "size", "batch", "threads")),
                f"{row['ms']:.1f}",
                f"{row['share_of_peak']:.0%}",
                number_or_dash(row["torch_default_ms"], ".1f"),
                number_or_dash(row["ratio_default"], ".2f"),
                number_or_dash(row["torch_channels_last_ms"], ".1f"),
                number_or_dash(row["ratio_channels_last"], ".2f"),
            )
        )
    return text_table(lines, 0)


def step_goals(rows: Sequence[dict]) -> list[Goal]:
    """Compare the steps at batch 10 with `GOALS`."""
    goals, found = [], {(row["labels"], row["size"], row["threads"]): row for row in rows if row["batch"] == 10}
    most = max(threads for _, _, threads in found) if found else 0
    for (labels, size), bounds in GOALS.items():
        row = found.get((labels, size, most))
        if row is None:
            continue
        text = f"step, L = {labels} at {size} px, {most} threads"
        ratios = (("torch default", "ratio_default"), ("torch channels_last", "ratio_channels_last"))
        for (what, key), (least, aim) in zip(ratios, bounds, strict=False):
            if row[key]:
                goals.append(Goal(f"{text}, against {what}", row[key], least, aim))
        goals.append(Goal(f"{text}, share of the peak", row["share_of_peak"], *bounds[2], unit=""))
        if most > 1 and (single := found.get((labels, size, 1))):
            goals.append(Goal(f"{text}, against 1 thread", single["ms"] / row["ms"], 0.925 * most, 0.975 * most))
    return goals


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    parser = Parser(
        prog="python benchmarks/step_bench.py",
        description="Time training steps beside the processor's peak of multiply-adds and, if it is installed, "
        "PyTorch; on a CPU then training with data, beside a busy process, and from a cold start.",
    )
    parser.add_argument("--backend", default="numba", help="auto, numpy, numba or cupy (default: %(default)s)")
    parser.add_argument("--json", type=result_file, metavar="FILE", help="also write the steps' figures as JSON")
    add_cases(parser, CPU_BATCHES, f"; on a GPU {','.join(map(str, GPU_BATCHES))}")
    parser.set_defaults(batch=None)  # None: the default depends on the backend
    parser.add_argument("--data", type=existing_folder, metavar="DIR", help="faces for training with data")
    parser.add_argument("--steps-only", action="store_true", help="leave out data, busy neighbours and starts")
    parser.add_argument("--quick", action="store_true", help="one network and two rounds: does it run?")
    options = parser.parse_args(argv)
    backend, _ = choose_backend(options.backend)
    kinds = KINDS[1:2] if options.quick else KINDS
    batches = options.batch or (GPU_BATCHES if backend in GPU_BACKENDS else CPU_BATCHES)
    cases = [StepCase(labels, size, batch) for labels, size in kinds for batch in batches]
    if backend in GPU_BACKENDS:
        _on_gpu(backend, cases, options)
    else:
        _on_cpu(backend, cases, options)
    return 0


def _on_gpu(backend: str, cases: Sequence[StepCase], options: Namespace) -> None:
    """Measure and print the steps alone, with every way of launching on a GPU."""
    if backend != "cupy":
        raise InputError("--backend: expected cupy for a GPU: the steps of cublas cannot be captured")
    peak, torch = DevicePeak(get_backend("cupy").cupy), cuda_torch(find_torch())
    compiled = not (options.no_compile or options.quick)
    rows = []
    for case in progress(cases, "steps"):
        rows.append(gpu_row(case, peak, torch, compiled, 2 if options.quick else GPU_ROUNDS))
    about = f"{peak.name}; {machine()}"
    print(f"{about}\npeak of multiply-adds {peak.gflops(1):.0f} GFLOP/s")
    for case, row in zip(cases, rows, strict=True):
        spreads = {name: Spread(**values) for name, values in row["variants"].items()}
        print("\n" + format_spreads(case, spreads, row["lacking"]))
    if options.json:
        write_figures(options.json, about, peak_gflops=peak.gflops(1), rows=rows)


def _on_cpu(backend: str, cases: Sequence[StepCase], options: Namespace) -> None:
    """Measure and print the steps, the CPU's peak and PyTorch; for numba also data loading, neighbours, start-up."""
    rounds, least = (2, 0.0) if options.quick else (ROUNDS, TURN)
    torch, peak, rows = find_torch(), Peak(), []
    compiled = not (options.no_compile or options.quick)
    for case in progress(cases, "steps"):
        rows += measure_case(case, backend, options.threads, peak, torch, compiled, rounds, least)
    print(machine())
    print(format_rows(rows))
    goals = step_goals(rows)
    if backend == "numba" and not options.steps_only:
        rates = data_rates(options.data, max(options.threads), 1 if options.quick else 5, 3 if options.quick else 20)
        for name, (with_data, bare) in rates.items():
            print(f"{name}: {with_data:.0f} images/s with data, {bare:.0f} bare")
        all_data, all_bare = (sum(1 / rate[k] for rate in rates.values()) for k in (0, 1))
        goals.append(Goal("five networks with data, against bare steps", all_bare / all_data, 0.9, 0.95))
        goals.append(Goal("one thread beside a busy process", busy_ratio(rounds), 1.15, 1.05, at_most=True))
        cold, cached, resident = starts(1 if options.quick else 5)
        goals.append(Goal("first step of a process, kernels not compiled", cold, 14, 8, " s", at_most=True))
        goals.append(Goal("first step of a process, kernels compiled", cached, 0.9, 0.6, " s", at_most=True))
        goals.append(Goal("resident memory at batch 10", resident, 300, 250, " MiB", at_most=True))
    if goals:
        print(format_goals(goals))
    if options.json:
        gflops = median(peak.gflops(max(options.threads)) for _ in range(5))
        write_figures(options.json, machine(), peak_gflops=gflops, rows=rows)


if __name__ == "__main__":
    run(main, "step_bench")
