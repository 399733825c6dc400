"""Compilation of kernels to machine code with Numba."""

import base64
import gc
import json
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import count

from llvmlite import ir
from numba import njit, types
from numba.core import config
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array
from numba.np.numpy_support import as_dtype

from minicnn.kernels.cpu.compiled.options import SERIAL, STRICT
from minicnn.kernels.cpu.store import Code, Machine
from minicnn.kernels.cpu.vectors import CPU_FEATURES

config.CPU_FEATURES = CPU_FEATURES  # pyright: ignore[reportAttributeAccessIssue]

_CALL = types.void(types.CPointer(types.int64), types.intp, types.intp, types.intp)


def compile_code(code: Code) -> Machine:
    """Compile a kernel."""
    module, _, name = code.source.partition(":")
    function = getattr(import_module(module), name)
    if code.constants:
        function = function(*code.constants)
    options = STRICT if code.strict else SERIAL
    # Inlined, or else Numba would optimise the function twice: by itself and as a part of `call`.
    body = njit(inline="always", **options)(function)
    unpack = _unpacking([_type(kind) for kind in code.kinds])
    arguments = ", ".join(f"given[{i}]" for i in range(len(code.kinds)))  # *given cannot be inlined
    names = {"unpack": unpack, "body": body}
    exec(
        f"def call(packed, first, end, thread):\n given = unpack(packed)\n body((first, end, thread), {arguments})",
        names,
    )
    dispatcher = njit(_CALL, **options)(names["call"])
    (result,) = dispatcher.overloads.values()
    _, _, (data, _) = result.library.serialize_using_object_code()
    return Machine(result.fndesc.llvm_func_name, data)


def _type(kind: str) -> types.Type:
    """Return the Numba type of a kind of argument."""
    dtype, _, form = kind.partition("[")
    scalar = getattr(types, "boolean" if dtype == "bool" else dtype)
    return types.Array(scalar, int(form[0]), form[1]) if form else scalar


def _unpacking(kinds: Sequence[types.Type]):
    """Return a function for kernels that makes a tuple of `kinds` from the integers at an address.

    They are those of `kernel.Kernel.bind`.
    """

    @intrinsic
    def unpack(typing_context, arguments):
        result = types.Tuple(kinds)

        def generate(context, builder, signature, values):
            places = count()

            def number():
                return builder.load(builder.gep(values[0], [ir.IntType(64)(next(places))]))

            parts = []
            for kind in kinds:
                if isinstance(kind, types.Array):
                    array = context.make_array(kind)(context, builder)
                    data = builder.inttoptr(number(), context.get_data_type(kind.dtype).as_pointer())
                    shape, strides = ([number() for _ in range(kind.ndim)] for _ in range(2))
                    size = context.get_constant(types.intp, as_dtype(kind.dtype).itemsize)
                    populate_array(array, data=data, shape=shape, strides=strides, itemsize=size, meminfo=None)
                    parts.append(array._getvalue())
                elif isinstance(kind, types.Float):
                    double = builder.bitcast(number(), ir.DoubleType())
                    parts.append(context.cast(builder, double, types.float64, kind))
                else:
                    parts.append(context.cast(builder, number(), types.int64, kind))
            return context.make_tuple(builder, result, parts)

        return result(arguments), generate

    return unpack


def serve() -> None:
    """Compile what is asked for, one line of JSON each, until the input ends; answer with [symbol, base64]."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    gc.disable()  # it would look through Numba's objects again and again, and this process soon ends
    for line in sys.stdin:
        source, constants, kinds, strict = json.loads(line)
        machine = compile_code(Code(source, tuple(constants), tuple(kinds), strict))
        print(json.dumps([machine.symbol, base64.b64encode(machine.data).decode()]), flush=True)
