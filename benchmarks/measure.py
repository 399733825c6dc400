"""Shared code of the benchmarks: the CPU's multiply-add peak, machine description, timing, results, options."""

import importlib
import json
import platform
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # import this checkout's packages, installed or not

from icnn.cli import Parser, existing_folder, positive, text_table
from minicnn.checkpoint import atomic_path
from minicnn.graph import Graph
from minicnn.kernels import get_backend
from minicnn.kernels.cpu.vectors import VECTOR_BYTES, lanes
from minicnn.kernels.host import cores
from minicnn.layers import Conv2D
from minicnn.planner import needs_gradient

_LANES = lanes(4)
#: Numbers of independent accumulators: enough to hide the latency of a multiply-add (two per cycle, 4 cycles each),
#: and few enough for 16 registers.
_SUMS = (8, 10, 12)
_TASKS, _LOOPS = 16, 100_000  # about 4 ms; tasks small enough for even load on the threads


@intrinsic(prefer_literal=True)
def _multiply_add(typing_context, sums, values, loops):
    """Compute s = s a + b `loops` times for `sums` (a literal) float32 vectors in registers; return one lane."""
    signature = types.float32(sums, values, types.intp)
    count = sums.literal_value

    def generate(context, builder, signature, arguments):
        vector = ir.VectorType(ir.FloatType(), _LANES)
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{_LANES}f32"
        )
        data = context.make_array(values)(context, builder, arguments[1]).data
        pointer = builder.bitcast(data, vector.as_pointer())

        def load(row):
            loaded = builder.load(builder.gep(pointer, [ir.IntType(64)(row)]))
            loaded.align = 4
            return loaded

        a, b = load(0), load(1)
        # Start each accumulator with different numbers: LLVM would compute equal ones only once.
        slots = [cgutils.alloca_once_value(builder, load(2 + i)) for i in range(count)]
        with cgutils.for_range(builder, arguments[2]):
            for slot in slots:
                builder.store(builder.call(fma, [builder.load(slot), a, b]), slot)
        total = builder.load(slots[0])
        for slot in slots[1:]:
            total = builder.fadd(total, builder.load(slot))
        return builder.extract_element(total, ir.IntType(32)(0))

    return signature, generate


def _compile(sums: int):
    @njit(parallel=True)
    def loop(results, values, loops):
        for task in prange(results.size):
            results[task] = _multiply_add(sums, values, loops)  # pyright: ignore[reportCallIssue]

    return loop


class Peak:
    """Measured float32 peak of the CPU's vector units: multiply-adds in registers, without memory access."""

    def __init__(self) -> None:
        self._threads = get_backend("numba").threads
        self._loops = {sums: _compile(sums) for sums in _SUMS}
        self._results = np.zeros(_TASKS, np.float32)
        # a < 1 keeps the accumulators finite and away from denormals
        self._values = np.linspace(0.5, 0.9, (2 + max(_SUMS)) * _LANES).astype(np.float32)
        for loop in self._loops.values():
            loop(self._results, self._values, 1)

    def gflops(self, threads: int) -> float:
        """Measure the peak in GFLOP/s: the best over the numbers of accumulators, one run each.

        Parameters
        ----------
        threads : int
            Number of CPU threads.
        """
        rates = []
        with self._threads(threads):
            for sums, loop in self._loops.items():
                loop(self._results, self._values, _LOOPS)  # wake the threads, which takes milliseconds
                start = time.perf_counter()
                loop(self._results, self._values, _LOOPS)
                seconds = time.perf_counter() - start
                rates.append(2e-9 * _LANES * sums * _LOOPS * _TASKS / seconds)
        return max(rates)


def machine() -> str:
    """Describe cores, vector width, system and package versions, without the host name."""
    packages = []
    for package in ("numpy", "numba", "torch"):
        try:
            packages.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            packages.append(f"no {package}")
    return (
        f"{cores()} cores, {8 * VECTOR_BYTES}-bit vectors, {platform.machine()}, {sys.platform}; "
        f"Python {platform.python_version()}, {', '.join(packages)}"
    )


def find_torch() -> ModuleType | None:
    """Return PyTorch, or None if it is not installed or cannot be loaded."""
    try:
        return importlib.import_module("torch")
    except (ImportError, OSError):  # OSError: a shared library of PyTorch does not load
        return None


def convolution_flops(batch: int, channels: int, out_channels: int, kernel_size: int, size: int) -> float:
    """Return the FLOP (multiplications and additions) of one pass of a convolution, including zero padding."""
    return 2.0 * batch * channels * out_channels * kernel_size**2 * size**2


def step_flops(graph: Graph, batch: int) -> float:
    """Return the FLOP of all convolutions in a training step; the gradient of the image is not computed."""
    needed, total = needs_gradient(graph), 0.0
    for node in graph.nodes.values():
        if isinstance(node.layer, Conv2D):
            channels, size, _ = graph.input_shapes(node)[0]
            one = convolution_flops(batch, channels, node.layer.out_channels, node.layer.kernel_size, size)
            total += one * (3 if node.inputs[0] in needed else 2)
    return total


# ---- timing

#: PyTorch's memory layouts.
LAYOUTS = ("default", "channels_last")
ROUNDS, TURN = 11, 0.15  # rounds, and minimum seconds of one measurement: shorter calls are repeated
PAUSE = 0.01  # s; threads of other libraries spin for a while after a call


def time_turn(call: Callable[[], object], least: float) -> float:
    """Return the seconds per call, after one warm-up call that fills the caches and wakes the threads.

    Parameters
    ----------
    call : callable
        Repeated until `least` seconds have passed, at least once.
    least : float
        Minimum seconds of the measurement.
    """
    time.sleep(PAUSE)
    call()
    start, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - start < least:
        call()
        count += 1
    return (time.perf_counter() - start) / count


# ---- results


class Goal(NamedTuple):
    """A measured value with its required bound `least` and its target `aim`; `at_most` if smaller is better."""

    what: str
    value: float
    least: float
    aim: float
    unit: str = "x"
    at_most: bool = False

    def line(self) -> tuple[str, ...]:
        def met(bound: float) -> bool:
            return self.value <= bound if self.at_most else self.value >= bound

        verdict = "aim" if met(self.aim) else "least" if met(self.least) else "missed"
        return (self.what, *(f"{number:.2f}{self.unit}" for number in (self.value, self.least, self.aim)), verdict)


def format_goals(goals: Sequence[Goal]) -> str:
    """Format a table of measured values, bounds and targets."""
    return text_table([("", "measured", "least", "aim", "reached"), *(goal.line() for goal in goals)], 1)


def number_or_dash(value: float | None, form: str) -> str:
    """Format a value; return "-" if it was not measured (None)."""
    return "-" if value is None else format(value, form)


def write_figures(path: Path, machine: str, **figures: object) -> None:
    """Write results and the machine's description as JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"machine": machine, **figures}, indent=1) + "\n")


# ---- options


def add_cases(parser: Parser, batches: list[int], on_gpu: str = "") -> None:
    """Add the options of comparisons with PyTorch: ``--threads``, ``--batch``, ``--no-compile``."""
    parser.add_argument(
        "--threads", type=thread_counts, default=sorted({1, cores()}), metavar="N,N", help="(default: 1 and all cores)"
    )
    usual = ",".join(map(str, batches)) + on_gpu
    parser.add_argument("--batch", type=counts_of, default=batches, metavar="N,N", help=f"(default: {usual})")
    parser.add_argument("--no-compile", action="store_true", help="PyTorch eager only: spares minutes of torch.compile")


def result_file(text: str) -> Path:
    """Argument type: an output file, checked before the measurements, which take minutes."""
    path = Path(text)
    if path.is_dir():
        raise ArgumentTypeError(f"{text}: expected a file to write, found a folder")
    existing_folder(str(path.parent))
    return path


def thread_counts(text: str) -> list[int]:
    """Argument type: comma-separated integers from 1 to the number of cores."""
    counts = counts_of(text)
    if max(counts) > cores():
        raise ArgumentTypeError(f"expected at most {cores()} threads, as many as cores, got {text!r}")
    return counts


def counts_of(text: str) -> list[int]:
    """Argument type: comma-separated integers of at least 1; return them sorted, without duplicates."""
    return sorted({positive(part) for part in text.split(",")})
