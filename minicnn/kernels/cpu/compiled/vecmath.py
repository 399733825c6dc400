"""Arithmetic for loops that LLVM vectorises: functions without branches or calls."""

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from minicnn.kernels.cpu.compiled.options import SERIAL


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
