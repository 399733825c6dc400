"""How Numba compiles and runs the kernels: options, threads, and arithmetic that becomes vector code."""

import ctypes
import math
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

#: "contract" lets LLVM fuse a * b + c, "reassoc" vectorise sums; NaN and infinities keep their meaning.
_FAST = {"contract", "reassoc", "nsz", "arcp"}
SERIAL = {"fastmath": _FAST, "error_model": "numpy", "cache": True, "nogil": True}
PARALLEL = {**SERIAL, "parallel": True}


def _load_tbb() -> None:
    """Make the tbb package's library visible to Numba, which then picks it as its threading layer.

    pip puts it where the dynamic linker does not look. Without it Numba takes OpenMP, whose waiting threads spin:
    beside a busy process each parallel loop then costs a time slice of the scheduler.
    """
    with suppress(OSError):
        ctypes.CDLL(str(Path(sys.prefix, "lib", "libtbb.so.12")), mode=ctypes.RTLD_GLOBAL)


_load_tbb()


@intrinsic
def like(typing_context, value, example):
    """`value` in the type of `example`: a Python constant would turn float32 arithmetic into float64."""

    def generate(context, builder, signature, arguments):
        return context.cast(builder, arguments[0], signature.args[0], signature.return_type)

    return example(value, example), generate


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

    x = n ln 2 + r; e^r by its Taylor series to r^12, whose error for |r| <= ln(2) / 2 is below 2^-52.
    """
    x = min(max(x, like(-87.0, x)), like(87.0, x))
    n = np.floor(x * like(_LOG2_E, x) + like(0.5, x))
    r = x - n * like(_LN2_HIGH, x) - n * like(_LN2_LOW, x)
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
