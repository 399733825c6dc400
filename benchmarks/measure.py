"""What the benchmarks share: this CPU's peak of fused multiply-adds, and what machine it is."""

import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's packages, installed or not

from minicnn.kernels import get_backend
from minicnn.kernels.simd import VECTOR_BYTES, lanes

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


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
