"""What the benchmarks share: this CPU's peak of fused multiply-adds, what machine it is, turns, figures, options."""

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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's packages, installed or not

from icnn.cli import Parser, existing_folder, positive, text_table
from minicnn.checkpoint import atomic_path
from minicnn.graph import Graph
from minicnn.kernels import get_backend
from minicnn.kernels.cpu.compile import VECTOR_BYTES
from minicnn.kernels.cpu.tiles import lanes
from minicnn.kernels.host import cores
from minicnn.layers import Conv2D
from minicnn.memory import needs_gradient

_LANES = lanes(4)
#: Independent sums: enough to hide a multiply-add's latency (two a cycle, 4 cycles each), and few enough for
#: 16 registers.
_SUMS = (8, 10, 12)
_TASKS, _LOOPS = 16, 100_000  # some 4 ms; tasks so small that threads can share them evenly


@intrinsic(prefer_literal=True)
def _multiply_add(typing_context, sums, values, loops):
    """`sums` (a literal) vectors of float32, `loops` times s = s a + b, all in registers; returns a lane."""
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
        # Every sum begins with other numbers: LLVM would compute equal ones only once.
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
    """Rates of multiply-adds that touch no memory: what the vector units can do, in GFLOP/s of float32."""

    def __init__(self) -> None:
        self._threads = get_backend("numba").threads
        self._loops = {sums: _compile(sums) for sums in _SUMS}
        self._results = np.zeros(_TASKS, np.float32)
        # a < 1, so that the sums stay finite and away from denormals
        self._values = np.linspace(0.5, 0.9, (2 + max(_SUMS)) * _LANES).astype(np.float32)
        for loop in self._loops.values():
            loop(self._results, self._values, 1)

    def gflops(self, threads: int) -> float:
        """The best of several numbers of sums, each run once."""
        rates = []
        with self._threads(threads):
            for sums, loop in self._loops.items():
                loop(self._results, self._values, _LOOPS)  # wakes the threads, which takes milliseconds
                start = time.perf_counter()
                loop(self._results, self._values, _LOOPS)
                seconds = time.perf_counter() - start
                rates.append(2e-9 * _LANES * sums * _LOOPS * _TASKS / seconds)
        return max(rates)


def machine() -> str:
    """Cores, vectors, system and versions; nothing that names the machine."""
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
    """PyTorch, None where it is not installed or cannot be loaded."""
    try:
        return importlib.import_module("torch")
    except (ImportError, OSError):  # OSError: one of its libraries does not load
        return None


def convolution_flops(batch: int, channels: int, filters: int, window: int, size: int) -> float:
    """Multiplications and additions of one direction of a convolution; a padding's zeros count as pixels."""
    return 2.0 * batch * channels * filters * window**2 * size**2


def step_flops(graph: Graph, batch: int) -> float:
    """Multiplications and additions of a step's convolutions; nobody needs the gradient of the image."""
    needed, total = needs_gradient(graph), 0.0
    for node in graph.nodes.values():
        if isinstance(node.layer, Conv2D):
            channels, size, _ = graph.input_shapes(node)[0]
            one = convolution_flops(batch, channels, node.layer.filters, node.layer.window, size)
            total += one * (3 if node.inputs[0] in needed else 2)
    return total


# ---- turns

#: PyTorch's memory layouts.
LAYOUTS = ("default", "channels_last")
ROUNDS, TURN = 11, 0.15  # rounds, and least seconds of a turn: shorter calls are repeated
PAUSE = 0.01  # s; other libraries' threads spin for a while after a call


def time_turn(call: Callable[[], object], least: float) -> float:
    """Seconds of a call, after one that warms the caches and wakes the threads."""
    time.sleep(PAUSE)
    call()
    start, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - start < least:
        call()
        count += 1
    return (time.perf_counter() - start) / count


# ---- figures


class Goal(NamedTuple):
    """A figure, what it must reach, and what it aims at; `at_most` for those that should be small."""

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
    """The table of what was reached."""
    return text_table([("", "measured", "least", "aim", "reached"), *(goal.line() for goal in goals)], 1)


def number_or_dash(value: float | None, form: str) -> str:
    """A figure as text; one that was not measured is a dash."""
    return "-" if value is None else format(value, form)


def write_figures(path: Path, machine: str, **figures: object) -> None:
    """Write what was measured, and on what machine, as JSON."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"machine": machine, **figures}, indent=1) + "\n")


# ---- options


def add_cases(parser: Parser, batches: list[int], on_gpu: str = "") -> None:
    """Options of who lets ours and PyTorch take turns: ``--threads``, ``--batch``, ``--no-compile``."""
    parser.add_argument(
        "--threads", type=thread_counts, default=sorted({1, cores()}), metavar="N,N", help="(default: 1 and all cores)"
    )
    usual = ",".join(map(str, batches)) + on_gpu
    parser.add_argument("--batch", type=counts_of, default=batches, metavar="N,N", help=f"(default: {usual})")
    parser.add_argument("--no-compile", action="store_true", help="PyTorch eager only: spares minutes of torch.compile")


def result_file(text: str) -> Path:
    """Argument type: a file to write, checked now and not after minutes of measuring."""
    path = Path(text)
    if path.is_dir():
        raise ArgumentTypeError(f"{text}: expected a file to write, found a folder")
    existing_folder(str(path.parent))
    return path


def thread_counts(text: str) -> list[int]:
    """Argument type: whole numbers from 1 to the number of cores, with commas."""
    counts = counts_of(text)
    if max(counts) > cores():
        raise ArgumentTypeError(f"expected at most {cores()} threads, as many as cores, got {text!r}")
    return counts


def counts_of(text: str) -> list[int]:
    """Argument type: whole numbers of at least 1, with commas."""
    return sorted({positive(part) for part in text.split(",")})
