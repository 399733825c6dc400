"""``python benchmarks/conv_bench.py``: every distinct convolution of the five networks, in each direction.

The kernels are called as a plan calls them. All contenders take turns, round after round,
so that whatever else the machine does meets them alike.
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from types import ModuleType
from typing import NamedTuple

import numpy as np
from measure import (
    Peak,
    convolution_flops,
    cores,
    find_torch,
    format_table,
    machine,
    result_file,
    thread_counts,
)

from icnn.command import Parser, positive, progress, run
from icnn.network import icnn_graph
from icnn.parts import NETWORKS
from minicnn.checkpoint import atomic_path
from minicnn.kernels import choose_backend, get_backend
from minicnn.layers import Conv2D
from minicnn.memory import needs_gradient

KERNELS = {
    "forward": "conv2d_forward",
    "input_gradient": "conv2d_backward_data",
    "weight_gradient": "conv2d_backward_weights",
}
ROUNDS, PAUSE = 15, 0.01  # s; other libraries' threads spin for a while after a call
SCALING = 0.8  # least share of the ideal gain by more threads at which their rows are taken at face value
WARM = 0.01  # s of calls before the clock starts: a thread that slept may be milliseconds late
AIM = 0.9  # least speed against torch's better layout that every convolution should have
SHORT = 2e8  # FLOP; shorter calls are repeated, so that the clock's steps do not matter


@dataclass(frozen=True)
class Convolution:
    """The first convolution of a geometry: where it is, and its C, O, K and S x S plane."""

    name: str
    channels: int
    filters: int
    window: int
    size: int
    input_gradient: bool

    @property
    def layer(self) -> str:
        k, s = self.window, self.size
        return f"{self.name} {self.channels}->{self.filters} {k}x{k} at {s}x{s}"

    @property
    def directions(self) -> list[str]:
        """What a training step computes: nobody needs the gradient of the image."""
        return [direction for direction in KERNELS if direction != "input_gradient" or self.input_gradient]

    def flops(self, batch: int) -> float:
        """Multiplications and additions, the same in each direction."""
        return convolution_flops(batch, self.channels, self.filters, self.window, self.size)


class Case(NamedTuple):
    convolution: Convolution
    direction: str


Calls = dict[Case, Callable[[], object]]


class Contender(NamedTuple):
    """A backend, or torch in one memory layout; `finish` waits until the work of its calls is done."""

    name: str
    threads: Callable[[int], AbstractContextManager]
    calls: Calls
    finish: Callable[[], object]


def distinct_convolutions() -> list[Convolution]:
    """The convolutions of the five networks, one for each geometry."""
    found: dict[tuple[int, ...], Convolution] = {}
    for network in NETWORKS.values():
        graph = icnn_graph(network.labels, network.size)
        needed = needs_gradient(graph)
        for node in graph.nodes.values():
            if isinstance(node.layer, Conv2D):
                channels, size, _ = graph.input_shapes(node)[0]
                key = (channels, node.layer.filters, node.layer.window, size)
                found.setdefault(key, Convolution(node.name, *key, node.inputs[0] in needed))
    return list(found.values())


def example(convolution: Convolution, batch: int) -> tuple[np.ndarray, ...]:
    """x, w, b and dy: float32, of the size that activations and first weights have."""
    rng = np.random.default_rng(0)
    c, o, k, s = convolution.channels, convolution.filters, convolution.window, convolution.size
    shapes = ((batch, c, s, s), (o, c, k, k), (o,), (batch, o, s, s))
    x, w, b, dy = (rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes)
    return x, w / k**2, b, dy


def make(kernels: ModuleType, array: np.ndarray, halo: int):
    """An array like this one, as a plan would ask the backend for it."""
    if array.ndim == 4 and array.shape[2] > 2 * halo + 1:
        return kernels.planes(array.shape, array.dtype, halo)
    return kernels.empty(array.shape, array.dtype)


def backend_contender(name: str, convolutions: Sequence[Convolution], batch: int) -> Contender:
    """The kernels of a backend, bound as a plan does it to arrays and scratch made beforehand."""
    kernels = get_backend(name)
    wishes = [
        kernels.scratch_size(kernel, N=batch, C=c.channels, O=c.filters, K=c.window, H=c.size, W=c.size)
        for c in convolutions
        for kernel in KERNELS.values()
    ]
    s = kernels.zeros((max(wishes),), "float32")
    signal = kernels.zeros((1,), "float32")
    calls: Calls = {}

    def add(case: Case, *arguments) -> None:
        calls[case] = kernels.bind(KERNELS[case.direction], *arguments)

    for convolution in convolutions:
        given = example(convolution, batch)
        halo = convolution.window // 2
        x, w, b, dy = (make(kernels, array, halo) for array in given)
        dx, dw, db, y = (make(kernels, array, halo) for array in given)
        for target, array in zip((x, w, b, dy), given, strict=True):
            kernels.upload(target, array)
        add(Case(convolution, "forward"), y, x, w, b, s)
        add(Case(convolution, "weight_gradient"), dw, db, dy, x, s)
        if convolution.input_gradient:
            add(Case(convolution, "input_gradient"), dx, dy, w, s, False)
    return Contender(name, kernels.threads, calls, lambda: kernels.download(signal))


def torch_contender(torch: ModuleType, layout: str, convolutions: Sequence[Convolution], batch: int) -> Contender:
    """PyTorch's own kernels without autograd; `layout` is "default" or "channels_last"."""
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    backward = torch.ops.aten.convolution_backward
    calls: Calls = {}

    def add(convolution: Convolution) -> None:
        x, w, b, dy = (torch.from_numpy(array) for array in example(convolution, batch))
        x, w, dy = (tensor.contiguous(memory_format=memory_format) for tensor in (x, w, dy))
        pad = convolution.window // 2
        geometry = (w.shape[0],), (1, 1), (pad, pad), (1, 1), False, (0, 0), 1

        def gradient(*wanted: bool) -> Callable[[], object]:
            return lambda: backward(dy, x, w, *geometry, wanted)

        calls[Case(convolution, "forward")] = lambda: torch.nn.functional.conv2d(x, w, b, padding=pad)
        calls[Case(convolution, "input_gradient")] = gradient(True, False, False)
        calls[Case(convolution, "weight_gradient")] = gradient(False, True, True)

    for convolution in convolutions:
        add(convolution)

    def threads(count: int) -> AbstractContextManager:
        torch.set_num_threads(count)
        return nullcontext()

    return Contender(f"torch_{layout}", threads, calls, lambda: None)


class Samples:
    """Seconds a call, by case, contender and threads; and the peak's GFLOP/s, by threads."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[Case, str, int], list[float]] = defaultdict(list)
        self.peaks: dict[int, list[float]] = defaultdict(list)

    def ms(self, case: Case, contender: str, threads: int) -> float | None:
        """The median, None if there is none."""
        seconds = self.seconds.get((case, contender, threads))
        return 1e3 * median(seconds) if seconds else None

    def peak(self, threads: int) -> float:
        """The median."""
        return median(self.peaks[threads])


def time_call(contender: Contender, case: Case, batch: int, pause: float) -> float:
    """Seconds of one call, after others that warm the caches and wake the threads."""
    call, repeats = contender.calls[case], max(1, round(SHORT / case.convolution.flops(batch)))
    time.sleep(pause)
    awake = time.perf_counter() + WARM
    call()
    while time.perf_counter() < awake:
        call()
    contender.finish()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    contender.finish()
    return (time.perf_counter() - start) / repeats


def measure(
    cases: Sequence[Case],
    contenders: Sequence[Contender],
    threads: Sequence[int],
    batch: int,
    rounds: int,
    pause: float,
) -> Samples:
    """Everybody's turn, `rounds` times; the peak's before each case."""
    peak, samples = Peak(), Samples()
    for contender in contenders:  # compiles what is compiled on first use
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
    """The table as it goes into the JSON file."""
    rows = []
    for case in cases:
        for backend in backends:
            for count in threads:
                ms = samples.ms(case, backend, count)
                assert ms is not None
                gflops = case.convolution.flops(batch) / ms * 1e-6
                on_cpu = backend != "cupy"  # else the peak of the CPU, and torch on it, say nothing
                row = {
                    "layer": case.convolution.layer,
                    "direction": case.direction,
                    "backend": backend,
                    "threads": count,
                    "ms": ms,
                    "gflops": gflops,
                    "share_of_peak": gflops / samples.peak(count) if on_cpu else None,
                }
                for name in ("torch_default", "torch_channels_last"):
                    row[f"{name}_ms"] = samples.ms(case, name, count) if on_cpu else None
                rows.append(row)
    return rows


def make_totals(rows: Iterable[dict], samples: Samples) -> list[dict]:
    """The sums over all layers, in the form of rows."""
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
        known = members[0]["share_of_peak"] is not None
        total["share_of_peak"] = total["gflops"] / samples.peak(threads) if known else None
        totals.append(total)
    return totals


def format_rows(rows: Iterable[dict]) -> str:
    """A table; torch's columns also say how many times as long it takes."""

    def torch_text(row: dict, name: str) -> str:
        ms = row[f"{name}_ms"]
        return "-" if ms is None else f"{ms:.2f} ({ms / row['ms']:.2f}x)"

    def share_text(row: dict) -> str:
        return "-" if row["share_of_peak"] is None else f"{row['share_of_peak']:.0%}"

    lines = [("layer", "direction", "backend", "threads", "ms", "GFLOP/s", "of peak", "torch ms", "channels_last")]
    for row in rows:
        name = row["layer"], row["direction"], row["backend"], str(row["threads"])
        figures = f"{row['ms']:.2f}", f"{row['gflops']:.0f}", share_text(row)
        lines.append((*name, *figures, torch_text(row, "torch_default"), torch_text(row, "torch_channels_last")))
    return format_table(lines, 3)


def format_worst(rows: Iterable[dict]) -> str:
    """For each number of threads the convolution that is slowest beside the better layout of torch."""
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
    """The peaks, and a note where more threads did not get more cores."""
    lines = [f"peak of multiply-adds, threads {count}: {samples.peak(count):.0f} GFLOP/s" for count in threads]
    least, most = min(threads), max(threads)
    gain = samples.peak(most) / samples.peak(least)
    if gain < SCALING * most / least:
        lines.append(
            f"note: the peak of {most} threads is {gain:.2f} times that of {least}: the threads had no core each, "
            f"so the rows of {most} threads say little"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    parser = Parser(
        prog="python benchmarks/conv_bench.py",
        description="Time every distinct convolution of the five networks, forward and both gradients, "
        "beside the CPU's peak of multiply-adds and, if it is installed, PyTorch.",
    )
    parser.add_argument("--backend", default="numba", help="auto, numpy, numba or cupy, or several with commas")
    parser.add_argument(
        "--threads",
        type=thread_counts,
        default=sorted({1, cores()}),
        metavar="N,N",
        help="numbers of CPU threads (default: 1 and all cores)",
    )
    parser.add_argument("--batch", type=positive, default=10, metavar="N", help="images (default: 10)")
    parser.add_argument("--json", type=result_file, metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--quick", action="store_true", help="one layer and two rounds: does it run?")
    options = parser.parse_args(argv)
    backends = list(dict.fromkeys(choose_backend(name)[0] for name in options.backend.split(",")))
    convolutions = distinct_convolutions()
    if options.quick:
        convolutions = [c for c in convolutions if c.input_gradient][-1:]
    cases = [Case(c, direction) for c in convolutions for direction in c.directions]
    contenders = [backend_contender(name, convolutions, options.batch) for name in backends]
    if torch := find_torch():
        layouts = "default", "channels_last"
        contenders += [torch_contender(torch, layout, convolutions, options.batch) for layout in layouts]
    rounds, pause = (2, 0.0) if options.quick else (ROUNDS, PAUSE)
    samples = measure(cases, contenders, options.threads, options.batch, rounds, pause)
    rows = make_rows(samples, cases, backends, options.threads, options.batch)
    peak = samples.peak(max(options.threads))
    print(machine())
    print(format_peaks(samples, options.threads))
    print(format_rows(rows + make_totals(rows, samples)))
    print(format_worst(rows))
    if options.json:
        figures = {"machine": machine(), "peak_gflops": peak, "rows": rows}
        with atomic_path(options.json) as path:
            path.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run(main, "conv_bench")
