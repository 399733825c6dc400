"""Compilation and execution of the kernels with Numba: vector width, threads, types, vectorisable arithmetic."""

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

from minicnn.kernels import signatures
from minicnn.kernels.cpu.cache import cached

#: "contract" lets LLVM fuse a * b + c, "reassoc" lets it vectorise sums. NaN and infinities stay correct.
_FAST = {"contract", "reassoc", "nsz", "arcp"}
SERIAL: dict[str, Any] = {"fastmath": _FAST, "error_model": "numpy", "nogil": True}

logger = logging.getLogger("minicnn.kernels")

# ---- vectors

#: Values of MINICNN_VECTORS: bytes of a vector, number of vector registers, required CPU feature.
_VECTORS = {"avx512": (64, 32, "avx512f"), "avx2": (32, 16, "avx2"), "portable": (16, 16, "")}
#: Prefixes of the CPU features to switch off for each of those values.
_BEYOND = {
    "avx512": (),
    "avx2": ("avx512", "avx10", "evex"),
    "portable": ("avx", "evex", "fma", "f16c", "vaes", "vpcl"),
}


def _choose_vectors() -> tuple[str, int, int]:
    """Choose the widest vectors of this CPU, or those requested by the environment variable MINICNN_VECTORS.

    Returns
    -------
    tuple of (str, int, int)
        Name, bytes of a vector, and number of vector registers.

    Raises
    ------
    ImportError
        If the requested vectors are unknown or not available on this CPU; the backend is then unusable.
    """
    features = dict(llvm.get_host_cpu_features())
    user_features = getattr(config, "CPU_FEATURES", None)
    if user_features is not None:  # set by NUMBA_CPU_FEATURES or NUMBA_CPU_NAME=generic
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


#: Name of the vectors in use, bytes of one vector, and number of vector registers.
VECTORS, VECTOR_BYTES, VECTOR_REGISTERS = _choose_vectors()


# ---- threads


def _load_tbb() -> None:
    """Load the tbb package's library so that Numba finds it and uses it as its threading layer.

    pip installs it in a folder that the dynamic linker does not search. Without it Numba uses OpenMP, whose idle
    threads busy-wait by default. If another process is busy, each parallel loop then costs a time slice of the
    scheduler, so the fallback sets OMP_WAIT_POLICY=PASSIVE.
    """
    try:
        ctypes.CDLL(str(Path(sys.prefix, "lib", "libtbb.so.12")), mode=ctypes.RTLD_GLOBAL)
    except OSError:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


_load_tbb()

# ---- kernels

#: Hash of all sources in this folder. Numba's cache checks only the file of a function, not those of its callees.
_FINGERPRINT = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))))

_PORTIONS = 8  # chunks per thread into which the tasks of a loop are divided

#: Words in `kernel` signatures whose type does not depend on the float type.
_TYPES = {
    "int": types.intp,
    "bool": types.boolean,
    "triple": types.UniTuple(types.intp, 3),
    "places": types.Array(types.intp, 1, "C"),
    "table": types.Array(types.intp, 2, "C"),
    "labels": types.Array(types.int32, 3, "C"),
}


class Kernel:
    """Kernel function, compiled or loaded from Numba's cache at its first call with each float type.

    The signature names the type of each argument: "planes" for float arrays (N, C, H, W) of any strides; "flat" (1-d),
    "flat2" (2-d), "pixels" (3-d), "weights" (4-d), "packed" (5-d) and "number" (0-d) for C-contiguous float arrays;
    "float" for a scalar; and the words in `_TYPES`. Contiguous arrays and planes with a halo have the same type, so
    that one compilation serves both.

    Threads take the tasks of the function's prange loop in small chunks, so that a thread delayed by another process
    does not delay all. `tasks` returns the number of tasks for given arguments; None means there is no parallel loop.
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
    """Listener that logs the compilation of one kernel, callees included; loading from the cache logs nothing."""

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
    """Return N * C, the number of planes of the first argument: one task per plane."""
    return x.shape[0] * x.shape[1]


def kernel(
    signature: str, tasks: Callable[..., int] | None = one_a_plane, workspace: Callable[..., int] | None = None
) -> Callable[[Callable], Kernel]:
    """Make a `Kernel` of a function (decorator); one of the signature table gets its docstring from there.

    Parameters
    ----------
    signature : str
        Types of the arguments, separated by spaces; see `Kernel`.
    tasks : callable or None
        Return the number of tasks of the prange loop for given arguments; None if there is no such loop.
    workspace : callable or None
        Workspace rule, as in `minicnn.kernels.signatures.kernel`.
    """

    def make(function: Callable) -> Kernel:
        if function.__name__ in signatures.SIGNATURES:
            function = signatures.kernel(workspace)(function)
        return Kernel(function, signature, tasks)

    return make


# ---- arithmetic


@intrinsic
def like(typing_context, value, example):
    """Cast `value` to the type of `example`: a plain Python constant would promote float32 arithmetic to float64."""

    def generate(context, builder, signature, arguments):
        return context.cast(builder, arguments[0], signature.args[0], signature.return_type)

    return example(value, example), generate


@intrinsic
def is_single(typing_context, x):
    """Return True if x is a float32; a constant at compile time."""

    def generate(context, builder, signature, arguments):
        return context.get_constant(types.boolean, x is types.float32)

    return types.boolean(x), generate


@intrinsic
def power_of_two(typing_context, exponent):
    """Return 2^exponent, built from its bit pattern; `exponent` is an integer-valued float in the normal range."""
    bits, bias, mantissa = (32, 127, 23) if exponent is types.float32 else (64, 1023, 52)

    def generate(context, builder, signature, arguments):
        integer = ir.IntType(bits)
        value = builder.fptosi(arguments[0], integer)
        value = builder.shl(builder.add(value, integer(bias)), integer(mantissa))
        return builder.bitcast(value, ir.FloatType() if bits == 32 else ir.DoubleType())

    return exponent(exponent), generate


_LOG2_E = 1 / math.log(2)
_LN2_HIGH = 0.693145751953125  # few enough bits that n * _LN2_HIGH is exact in float32 for small integers n
_LN2_LOW = math.log(2) - _LN2_HIGH


@njit(inline="always", **SERIAL)
def exp(x):
    """Return e^x, with x clipped to -87 .. 87, without branches or calls, so that LLVM vectorises loops over it.

    x = n ln 2 + r with an integer n. e^r is a Taylor series, to r^7 in float32 and to r^12 in float64; its error for
    |r| <= ln(2) / 2 is below half a unit in the last place.
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
    """Return tanh(x) = 1 - 2 / (e^2x + 1); absolute error below 2e-7 in float32."""
    e = exp(x + x)
    return like(1.0, e) - like(2.0, e) / (e + like(1.0, e))
