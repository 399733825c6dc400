"""``python benchmarks/conv_bench.py``: time every distinct convolution of the five networks, forward and backward.

The kernels are called as a plan calls them. The contenders are timed alternately in each round,
so that other load on the machine affects all of them equally. GPU calls are timed with CUDA events.
"""

import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import product
from statistics import median
from typing import NamedTuple

from contenders import (
    GPU_BACKENDS,
    Case,
    Contender,
    DevicePeak,
    backend_contender,
    captured_clock,
    cuda_torch,
    distinct_convolutions,
    torch_contender,
)
from gpu_model import DEVICES, LAUNCH
from machine_code import ToolMissing
from measure import LAYOUTS, Peak, find_torch, machine, result_file, thread_counts, write_figures
from model_table import NOTE, format_model, format_steps, model_rows

from icnn.cli import Parser, positive, progress, run, text_table
from icnn.errors import InputError
from minicnn.kernels import choose_backend, get_backend
from minicnn.kernels.host import cores

ROUNDS, PAUSE = 15, 0.01  # pause in s: threads of other libraries spin for a while after a call
SCALING = 0.8  # a lower share of the ideal multi-thread speed-up of the peak prints a warning
WARM = 0.01  # s of warm-up calls before timing: a sleeping thread may wake up milliseconds late
AIM = 0.9  # target: minimum speed of each convolution relative to PyTorch's faster layout


class Samples:
    """Measured seconds per call by case, contender and threads, and peak GFLOP/s by threads."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[Case, str, int], list[float]] = defaultdict(list)
        self.peaks: dict[int, list[float]] = defaultdict(list)

    def ms(self, case: Case, contender: str, threads: int) -> float | None:
        """Return the median time in ms, or None if it was not measured."""
        seconds = self.seconds.get((case, contender, threads))
        return 1e3 * median(seconds) if seconds else None

    def peak(self, threads: int) -> float:
        """Return the median peak in GFLOP/s."""
        return median(self.peaks[threads])


def time_call(contender: Contender, case: Case, batch: int, pause: float) -> float:
    """Return the seconds per call, after warm-up calls that fill the caches and wake the threads.

    `pause` is the sleep before the warm-up, in seconds.
    """
    call = contender.calls[case]
    time.sleep(pause)
    awake = time.perf_counter() + WARM
    call()
    while time.perf_counter() < awake:
        call()
    return contender.clock(call, contender.repeats(case, batch))


def measure(
    peak: Peak | DevicePeak,
    cases: Sequence[Case],
    contenders: Sequence[Contender],
    threads: Sequence[int],
    batch: int,
    rounds: int,
    pause: float,
) -> Samples:
    """Time all contenders alternately in `rounds` rounds, and the peak before each case.

    Parameters
    ----------
    peak : Peak or DevicePeak
    cases : sequence of Case
    contenders : sequence of Contender
    threads : sequence of int
        Numbers of CPU threads.
    batch, rounds : int
    pause : float
        Seconds of sleep before each measurement.
    """
    samples = Samples()
    for contender in contenders:  # triggers compilation on first use
        with contender.threads(max(threads)):
            for case in cases:
                contender.calls[case]()
    for number in progress(range(rounds * len(cases)), "cases"):
        case = cases[number % len(cases)]
        for count in threads:
            time.sleep(pause)
            samples.peaks[count].append(peak.gflops(count))
            for contender in contenders:
                with contender.threads(count):
                    seconds = time_call(contender, case, batch, pause)
                samples.seconds[case, contender.name, count].append(seconds)
    return samples


def make_rows(
    samples: Samples, cases: Sequence[Case], backends: Sequence[str], threads: Sequence[int], batch: int
) -> list[dict]:
    """Return the table rows in the form written to the JSON file; times in ms, rates in GFLOP/s."""
    rows = []
    for case in cases:
        for backend in backends:
            for count in threads:
                ms = samples.ms(case, backend, count)
                assert ms is not None
                gflops = case.convolution.flops(batch) / ms * 1e-6
                row = {
                    "layer": case.convolution.layer,
                    "direction": case.direction,
                    "backend": backend,
                    "threads": count,
                    "ms": ms,
                    "gflops": gflops,
                    "share_of_peak": gflops / samples.peak(count),
                }
                for name in ("torch_default", "torch_channels_last"):
                    row[f"{name}_ms"] = samples.ms(case, name, count)
                rows.append(row)
    return rows


def make_totals(rows: Iterable[dict], samples: Samples) -> list[dict]:
    """Sum over all layers, for each backend, direction and number of threads; return them as rows."""
    groups: dict[tuple[str, str, int], list[dict]] = defaultdict(list)
    for row in rows:
        groups[row["backend"], row["direction"], row["threads"]].append(row)
    totals = []
    for (backend, direction, threads), members in groups.items():
        total = {"layer": "all", "direction": direction, "backend": backend, "threads": threads}
        for key in ("ms", "torch_default_ms", "torch_channels_last_ms"):
            values = [member[key] for member in members]
            total[key] = None if None in values else sum(values)
        total["gflops"] = sum(member["gflops"] * member["ms"] for member in members) / total["ms"]
        total["share_of_peak"] = total["gflops"] / samples.peak(threads)
        totals.append(total)
    return totals


def format_rows(rows: Iterable[dict]) -> str:
    """Format the rows as a table; PyTorch's columns also show its time relative to ours."""

    def torch_text(row: dict, name: str) -> str:
        ms = row[f"{name}_ms"]
        return "-" if ms is None else f"{ms:.2f} ({ms / row['ms']:.2f}x)"

    lines = [("layer", "direction", "backend", "threads", "ms", "GFLOP/s", "of peak", "torch ms", "channels_last")]
    for row in rows:
        name = row["layer"], row["direction"], row["backend"], str(row["threads"])
        figures = f"{row['ms']:.2f}", f"{row['gflops']:.0f}", f"{row['share_of_peak']:.0%}"
        lines.append((*name, *figures, torch_text(row, "torch_default"), torch_text(row, "torch_channels_last")))
    return text_table(lines, 3)


def format_worst(rows: Iterable[dict]) -> str:
    """For each number of threads, name the convolution that is slowest relative to PyTorch's faster layout."""
    texts = []
    compared = [row for row in rows if row["torch_default_ms"] and row["torch_channels_last_ms"]]
    for threads in sorted({row["threads"] for row in compared}):
        ratios = {
            min(row["torch_default_ms"], row["torch_channels_last_ms"]) / row["ms"]: row
            for row in compared
            if row["threads"] == threads
        }
        below = sum(ratio < AIM for ratio in ratios)
        worst = ratios[min(ratios)]
        texts.append(
            f"threads {threads}: least against torch's better layout {min(ratios):.2f}x, {worst['layer']} "
            f"{worst['direction']}; {below} of {len(ratios)} below {AIM}x"
        )
    return "\n".join(texts)


def format_peaks(samples: Samples, threads: Sequence[int]) -> str:
    """List the peaks, with a warning if the threads evidently did not get one core each."""
    lines = [f"peak of multiply-adds, threads {count}: {samples.peak(count):.0f} GFLOP/s" for count in threads]
    least, most = min(threads), max(threads)
    gain = samples.peak(most) / samples.peak(least)
    if gain < SCALING * most / least:
        lines.append(
            f"note: the peak of {most} threads is {gain:.2f} times that of {least}: the threads had no core each, "
            f"so the rows of {most} threads say little"
        )
    return "\n".join(lines)


class Figures(NamedTuple):
    """Results of the CPU or the GPU: the text to print, and the machine, peak (GFLOP/s) and rows for the JSON file."""

    text: str
    machine: str
    peak: float
    rows: list[dict]


def on_cpu(backends: Sequence[str], cases: Sequence[Case], threads: Sequence[int], batch: int, rounds: int) -> Figures:
    """Measure CPU backends, and PyTorch if it is installed."""
    convolutions = list(dict.fromkeys(case.convolution for case in cases))
    contenders = [backend_contender(name, convolutions, batch) for name in backends]
    if torch := find_torch():
        contenders += [torch_contender(torch, layout, convolutions, batch) for layout in LAYOUTS]
    samples = measure(Peak(), cases, contenders, threads, batch, rounds, PAUSE)
    rows = make_rows(samples, cases, backends, threads, batch)
    table = format_rows(rows + make_totals(rows, samples))
    text = "\n".join([machine(), format_peaks(samples, threads), table, format_worst(rows)])
    return Figures(text, machine(), samples.peak(max(threads)), rows)


def on_gpu(backends: Sequence[str], cases: Sequence[Case], batch: int, rounds: int) -> Figures:
    """Measure GPU backends, and PyTorch on the GPU if it is installed.

    PyTorch runs with TF32 off, like ours, and on, its default. Calls of "cupy" are also replayed as a CUDA graph.
    """
    convolutions = list(dict.fromkeys(case.convolution for case in cases))
    contenders = [backend_contender(name, convolutions, batch) for name in backends]
    kernels = get_backend("cupy")
    ours = [contender for contender in contenders if contender.name == "cupy"]
    contenders += [one._replace(name="captured", clock=captured_clock(kernels)) for one in ours]
    if torch := cuda_torch(find_torch()):
        contenders += [
            torch_contender(torch, layout, convolutions, batch, "cuda", tf32)
            for layout, tf32 in product(LAYOUTS, (False, True))
        ]
    peak = DevicePeak(kernels.cupy)
    samples = measure(peak, cases, contenders, [1], batch, rounds, 0.0)
    rows = make_rows(samples, cases, backends, [1], batch)
    table = format_rows(rows + make_totals(rows, samples))
    for row, case in zip(rows, (case for case in cases for _ in backends), strict=True):
        row["threads"] = None
        row["captured_ms"] = samples.ms(case, "captured", 1) if row["backend"] == "cupy" else None
        for layout in LAYOUTS:
            row[f"torch_{layout}_tf32_ms"] = samples.ms(case, f"torch_{layout}_tf32", 1)
    about = f"{peak.name}; {machine()}"
    total = sum(row["captured_ms"] or 0 for row in rows)
    steps = format_steps([row for row in rows if row["backend"] == "cupy"])
    notes = f"peak of multiply-adds {samples.peak(1):.0f} GFLOP/s; calls of cupy as one graph: {total:.3f} ms in all"
    return Figures("\n".join([about, notes, table, steps]), about, samples.peak(1), rows)


def modelled(device: str, cases: Sequence[Case], batch: int) -> Figures:
    """Return the model's lower bounds for a GPU of `DEVICES`; no GPU is needed."""
    rows = model_rows(cases, device, batch)
    about = f"{device}: {NOTE}"
    peak = f"peak of multiply-adds {DEVICES[device].peak:.0f} GFLOP/s; a launch {1e6 * LAUNCH:.0f} us, assumed"
    return Figures("\n".join([about, peak, format_model(rows), format_steps(rows)]), about, DEVICES[device].peak, rows)


def chosen_figures(options: Namespace, cases: Sequence[Case]) -> list[Figures]:
    """Return the results selected by the options, GPU first.

    Raises
    ------
    InputError
        If ``--model`` is given with another backend than cupy, or without NVIDIA's compiler wheels.
    """
    names = options.backend.split(",")
    if options.model:
        if names != ["cupy"]:
            raise InputError("--model: expected --backend cupy beside it, for which there is a model")
        try:
            return [modelled(options.model, cases, options.batch)]
        except ToolMissing as error:
            raise InputError(f"--model: {error}") from None
    backends = list(dict.fromkeys(choose_backend(name)[0] for name in names))
    gpu, cpu = ([name for name in backends if (name in GPU_BACKENDS) == wanted] for wanted in (True, False))
    found = []
    if gpu:
        found.append(on_gpu(gpu, cases, options.batch, options.rounds))
    if cpu:
        found.append(on_cpu(cpu, cases, options.threads, options.batch, options.rounds))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    parser = Parser(
        prog="python benchmarks/conv_bench.py",
        description="Time every distinct convolution of the five networks, forward and both gradients, "
        "beside the processor's peak of multiply-adds and, if it is installed, PyTorch.",
    )
    parser.add_argument("--backend", default="numba", help="auto, numpy, numba, cupy or cublas, or several with commas")
    parser.add_argument(
        "--threads",
        type=thread_counts,
        default=sorted({1, cores()}),
        metavar="N,N",
        help="numbers of CPU threads (default: 1 and all cores)",
    )
    parser.add_argument("--batch", type=positive, default=10, metavar="N", help="images (default: 10)")
    parser.add_argument(
        "--model",
        choices=sorted(DEVICES),
        help="with --backend cupy: measure nothing, tell from the machine code what this GPU takes at the least",
    )
    parser.add_argument("--json", type=result_file, metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--rounds", type=positive, metavar="N", help=f"turns of each contender (default: {ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="one layer and two rounds: does it run?")
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (2 if options.quick else ROUNDS)
    convolutions = distinct_convolutions()
    if options.quick:
        convolutions = [c for c in convolutions if c.input_gradient][-1:]
    cases = [Case(c, direction) for c in convolutions for direction in c.directions]
    found = chosen_figures(options, cases)
    print(*(figures.text for figures in found), sep="\n\n")
    if options.json:
        rows = [row for figures in found for row in figures.rows]
        write_figures(options.json, found[0].machine, peak_gflops=found[0].peak, rows=rows)
    return 0


if __name__ == "__main__":
    run(main, "conv_bench")
