"""How Numba compiles and runs the kernels: vectors, types, threads, and arithmetic that becomes vector code."""

import ctypes
import hashlib
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from functools import update_wrapper
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import get_num_threads, njit, set_parallel_chunksize, types
from numba.core import config, event
from numba.extending import intrinsic

from minicnn.kernels.cpu.cache import cached

#: "contract" lets LLVM fuse a * b + c, "reassoc" vectorise sums; NaN and infinities keep their meaning.
_FAST = {"contract", "reassoc", "nsz", "arcp"}
SERIAL: dict[str, Any] = {"fastmath": _FAST, "error_model": "numpy", "nogil": True}

logger = logging.getLogger("minicnn.kernels")

# ---- vectors

#: What MINICNN_VECTORS may ask for: bytes of a vector, registers, and the CPU feature that it needs.
_VECTORS = {"avx512": (64, 32, "avx512f"), "avx2": (32, 16, "avx2"), "portable": (16, 16, "")}
#: Beginnings of the names of features that "avx2" and "portable" must not use.
_BEYOND = {
    "avx512": (),
    "avx2": ("avx512", "avx10", "evex"),
    "portable": ("avx", "evex", "fma", "f16c", "vaes", "vpcl"),
}


def _choose_vectors() -> tuple[str, int, int]:
    """The widest vectors of this CPU, or those that the environment variable MINICNN_VECTORS asks for.

    Raises
    ------
    ImportError
        If they are unknown or this CPU lacks them: the backend then counts as unusable.
    """
    features = dict(llvm.get_host_cpu_features())
    user_features = getattr(config, "CPU_FEATURES", None)
    if user_features is not None:  # the user's NUMBA_CPU_FEATURES or NUMBA_CPU_NAME=generic
        features = {name[1:]: name[0] == "+" for name in user_features.split(",") if name}
    usable = [name for name, (_, _, feature) in _VECTORS.items() if not feature or features.get(feature)]
    wanted = os.environ.get("MINICNN_VECTORS") or usable[0]
    if wanted not in usable:
        raise ImportError(f"MINICNN_VECTORS={wanted}: expected one that this CPU has, {', '.join(usable)}")
    if wanted != usable[0]:
        kept = {name: on and not name.startswith(_BEYOND[wanted]) for name, on in features.items()}
        text = ",".join(("+" if on else "-") + name for name, on in sorted(kept.items()))
        config.CPU_FEATURES = text  # pyright: ignore[reportAttributeAccessIssue]
    return wanted, *_VECTORS[wanted][:2]


#: Name of the vectors in use, bytes of one, and how many of them the CPU has registers for.
VECTORS, VECTOR_BYTES, VECTOR_REGISTERS = _choose_vectors()


# ---- threads


def _load_tbb() -> None:
    """Make the tbb package's library visible to Numba, which then picks it as its threading layer.

    pip puts it where the dynamic linker does not look. Without it Numba takes OpenMP, whose waiting threads spin
    unless told otherwise: beside a busy process each parallel loop then costs a time slice of the scheduler.
    """
    try:
        ctypes.CDLL(str(Path(sys.prefix, "lib", "libtbb.so.12")), mode=ctypes.RTLD_GLOBAL)
    except OSError:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


_load_tbb()

# ---- kernels

#: Of all sources here. Numba's cache looks at the file of a function only, not at what the function calls.
_FINGERPRINT = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))))

_PORTIONS = 8  # of a loop's tasks for each thread

#: Letters of `kernel`'s signatures for what does not depend on the float type.
_TYPES = {
    "int": types.intp,
    "bool": types.boolean,
    "triple": types.UniTuple(types.intp, 3),
    "places": types.Array(types.intp, 1, "C"),
    "table": types.Array(types.intp, 2, "C"),
    "labels": types.Array(types.int32, 3, "C"),
}


class Kernel:
    """A function that is compiled, or read from Numba's cache, when a float type first needs it.

    The signature names the type of each argument: float arrays of so many dimensions ("planes" (N, C, H, W) of any
    strides, "flat" 1-d, "weights" 4-d, "pixels" 3-d, "number" 0-d, all contiguous), "float" and what `_TYPES` lists.
    One type for contiguous arrays and for planes in a halo means one compilation for both.

    Threads take the tasks of the function's prange loop in portions, so that one that is held up by another process
    does not hold up all; `tasks` says how many there are.
    """

    def __init__(self, function: Callable, signature: str, tasks: Callable[..., int] | None):
        update_wrapper(self, function)
        function.__qualname__ += f"-{_FINGERPRINT.hexdigest()[:12]}"  # becomes a part of the cache's file name
        self._function = function
        self._signature = signature.split()
        self._options: dict[str, Any] = {**SERIAL, "parallel": tasks is not None}
        self._tasks = tasks
        self._compiled: dict[str, Callable] = {}

    def __call__(self, first: np.ndarray, *arguments) -> None:
        compiled = self._compiled.get(first.dtype.char) or self._compile(first.dtype.char)
        if self._tasks is None:
            compiled(first, *arguments)
            return
        portions = _PORTIONS * get_num_threads()
        before = set_parallel_chunksize(max(1, self._tasks(first, *arguments) // portions))
        try:
            compiled(first, *arguments)
        finally:
            set_parallel_chunksize(before)

    def _compile(self, char: str) -> Callable:
        real = {"f": types.float32, "d": types.float64}[char]
        kinds = _TYPES | {
            "float": real,
            "planes": types.Array(real, 4, "A"),
            "weights": types.Array(real, 4, "C"),
            "packed": types.Array(real, 5, "C"),
            "pixels": types.Array(real, 3, "C"),
            "flat": types.Array(real, 1, "C"),
            "flat2": types.Array(real, 2, "C"),
            "number": types.Array(real, 0, "C"),
        }
        signature = types.void(*(kinds[kind] for kind in self._signature))
        with event.install_listener("numba:compile", _Notice(self._function.__name__, str(real))):
            compiled = cached(**self._options)(self._function)
            compiled.compile(signature)
            compiled.disable_compile()
        self._compiled[char] = compiled
        return compiled


class _Notice(event.Listener):
    """Logs the compilation of one kernel; reading it from the cache is none. What it calls is compiled within."""

    def __init__(self, name: str, dtype: str):
        self._what = f"{name} for {dtype}"
        self._starts: list[float] = []

    def on_start(self, event) -> None:
        if not self._starts:
            logger.info("compiling %s", self._what)
        self._starts.append(time.perf_counter())

    def on_end(self, event) -> None:
        start = self._starts.pop()
        if not self._starts:
            logger.info("compiled %s in %.1f s", self._what, time.perf_counter() - start)


def one_a_plane(x: np.ndarray, *_) -> int:
    """As many tasks as the first argument has planes."""
    return x.shape[0] * x.shape[1]


def kernel(signature: str, tasks: Callable[..., int] | None = one_a_plane) -> Callable[[Callable], Kernel]:
    """Decorator: make a `Kernel`. `tasks` counts its prange loop's tasks from its arguments; None: it has no loop."""
    return lambda function: Kernel(function, signature, tasks)


# ---- arithmetic


@intrinsic
def like(typing_context, value, example):
    """`value` in the type of `example`: a Python constant would turn float32 arithmetic into float64."""

    def generate(context, builder, signature, arguments):
        return context.cast(builder, arguments[0], signature.args[0], signature.return_type)

    return example(value, example), generate


@intrinsic
def is_single(typing_context, x):
    """Whether x is a float32; known when the code is compiled."""

    def generate(context, builder, signature, arguments):
        return context.get_constant(types.boolean, x is types.float32)

    return types.boolean(x), generate


@intrinsic
def power_of_two(typing_context, exponent):
    """2^exponent (a whole float within the normal range), from its bit pattern."""
    bits, bias, mantissa = (32, 127, 23) if exponent is types.float32 else (64, 1023, 52)

    def generate(context, builder, signature, arguments):
        integer = ir.IntType(bits)
        value = builder.fptosi(arguments[0], integer)
        value = builder.shl(builder.add(value, integer(bias)), integer(mantissa))
        return builder.bitcast(value, ir.FloatType() if bits == 32 else ir.DoubleType())

    return exponent(exponent), generate


_LOG2_E = 1 / math.log(2)
_LN2_HIGH = 0.693145751953125  # so few digits that n * _LN2_HIGH is exact in float32 for small whole n
_LN2_LOW = math.log(2) - _LN2_HIGH


@njit(inline="always", **SERIAL)
def exp(x):
    """e^x for |x| <= 87 (clipped there), without branches or calls, so that loops over it become vector code.

    x = n ln 2 + r; e^r by its Taylor series, whose error for |r| <= ln(2) / 2 is below half a unit in the last place:
    to r^7 in float32, to r^12 in float64.
    """
    x = min(max(x, like(-87.0, x)), like(87.0, x))
    n = np.floor(x * like(_LOG2_E, x) + like(0.5, x))
    r = x - n * like(_LN2_HIGH, x) - n * like(_LN2_LOW, x)
    y = like(1 / 5040, x)
    if not is_single(x):
        y = r * like(1 / 479001600, x) + like(1 / 39916800, x)
        y = y * r + like(1 / 3628800, x)
        y = y * r + like(1 / 362880, x)
        y = y * r + like(1 / 40320, x)
        y = y * r + like(1 / 5040, x)
    y = y * r + like(1 / 720, x)
    y = y * r + like(1 / 120, x)
    y = y * r + like(1 / 24, x)
    y = y * r + like(1 / 6, x)
    y = y * r + like(0.5, x)
    y = y * r + like(1.0, x)
    y = y * r + like(1.0, x)
    return y * power_of_two(n)


@njit(inline="always", **SERIAL)
def tanh(x):
    """1 - 2 / (e^2x + 1); absolute error below 2e-7 in float32."""
    e = exp(x + x)
    return like(1.0, e) - like(2.0, e) / (e + like(1.0, e))
