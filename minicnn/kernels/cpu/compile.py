"""Compilation and execution of the kernels with Numba: vector width, threads, types."""

import ctypes
import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from functools import cache, update_wrapper
from itertools import count
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import get_num_threads, njit, prange, set_parallel_chunksize, types
from numba.core import config
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array
from numba.np.numpy_support import as_dtype
from numba.np.ufunc import get_thread_id

from minicnn.kernels import signatures
from minicnn.kernels.cpu.cache import cached, compile_call

#: "contract" lets LLVM fuse a * b + c, "reassoc" lets it vectorise sums. NaN and infinities stay correct.
_FAST = {"contract", "reassoc", "nsz", "arcp"}
SERIAL: dict[str, Any] = {"fastmath": _FAST, "error_model": "numpy", "nogil": True}

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

_PORTIONS = 8  # portions per thread into which the tasks of a call are divided

#: Words in `kernel` signatures whose type does not depend on the float type.
_TYPES = {
    "int": types.intp,
    "bool": types.boolean,
    "places": types.Array(types.intp, 1, "C"),
    "table": types.Array(types.intp, 2, "C"),
    "labels": types.Array(types.int32, 3, "C"),
}
#: Words for arrays of the float type: dimensions, and "C" for contiguous ones or "A" for any.
_FLOATS = {
    "number": (0, "C"),
    "flat": (1, "C"),
    "flat2": (2, "C"),
    "pixels": (3, "C"),
    "weights": (4, "C"),
    "planes": (4, "A"),
    "packed": (5, "C"),
}

#: Float types by NumPy's character.
_REALS = {"f": types.float32, "d": types.float64}

_Call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_ssize_t] * 3)


class Kernel:
    """Kernel function, compiled or loaded from the cache at its first call with each float type.

    The function takes (first task, end of the tasks, number of the thread) before its arguments; `tasks` returns the
    number of tasks for given arguments. Threads take the tasks in small portions, so that a thread delayed by another
    process does not delay all. The functions themselves are serial: Numba needs three times as long to compile one
    with a prange loop, so there is only one such loop, in `_sharing`.

    The signature names the type of each argument: "planes" for float arrays (N, C, H, W) of any strides; "flat" (1-d),
    "flat2" (2-d), "pixels" (3-d), "weights" (4-d), "packed" (5-d) and "number" (0-d) for C-contiguous float arrays;
    "float" for a scalar; and the words in `_TYPES`. Contiguous arrays and planes with a halo have the same type, so
    that one compilation serves both.
    """

    def __init__(self, function: Callable, signature: str, tasks: Callable[..., int]):
        update_wrapper(self, function)
        parameters = list(inspect.signature(function).parameters.values())
        self.__signature__ = inspect.Signature(parameters[1:])  # what callers give
        self._function = function
        self._signature = signature.split()
        self._tasks = tasks
        self._compiled: dict[str, Any] = {}

    def __call__(self, *arguments) -> None:
        self.bind(*arguments)()

    def bind(self, *arguments) -> Callable[[], None]:
        """Return the call with these arguments, whose addresses and sizes are packed once."""
        char, count = arguments[0].dtype.char, self._tasks(*arguments)
        pairs = zip(arguments, self._kinds(char), strict=True)
        packed = np.array([number for argument, kind in pairs for number in _numbers(argument, kind)], np.int64)

        def run(_arguments=arguments) -> None:  # the arrays must live as long as their addresses are used
            call = self._compiled.get(char) or self._compile(char)
            threads = get_num_threads()
            if threads == 1 or count < 2:
                call.function(packed.ctypes.data, 0, count, 0)
                return
            before = set_parallel_chunksize(1)
            try:
                _sharing()(call.address, packed.ctypes.data, count, min(count, _PORTIONS * threads))
            finally:
                set_parallel_chunksize(before)

        return run

    def _kinds(self, char: str) -> list[types.Type]:
        """Return the type of each argument for a float type."""
        real = _REALS[char]
        kinds = _TYPES | {"float": real} | {word: types.Array(real, *kind) for word, kind in _FLOATS.items()}
        return [kinds[word] for word in self._signature]

    def _compile(self, char: str) -> "_Compiled":
        # Symbols of compiled code are global to the process, and those loaded from the cache keep the name they were
        # compiled with: functions that differ only in constants of a closure or in types need names of their own.
        constants = [cell.cell_contents for cell in self._function.__closure__ or ()]
        known = f"{_FINGERPRINT.hexdigest()} {char} {constants}"
        name = f"{self._function.__qualname__}-{hashlib.sha256(known.encode()).hexdigest()[:12]}"
        body = njit(**SERIAL)(_renamed(self._function, name))
        unpack = _unpacking(self._kinds(char))

        def call(arguments, first, end, thread):
            body((first, end, thread), *unpack(arguments))

        call.__qualname__ = f"{self._function.__module__.rpartition('.')[2]}.{name}"
        address = compile_call(call, _CALL, SERIAL, f"{self._function.__name__} for {_REALS[char]}")
        self._compiled[char] = _Compiled(address, _Call(address))
        return self._compiled[char]


def _renamed(function: Callable, name: str) -> Callable:
    """Return a copy of a function with another qualified name."""
    copy = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__module__, copy.__qualname__ = function.__module__, name
    return copy


class _Compiled(NamedTuple):
    address: int
    function: Callable


_ARGUMENTS = types.CPointer(types.int64)
_CALL = types.void(_ARGUMENTS, types.intp, types.intp, types.intp)


def _numbers(argument, kind: types.Type) -> list[int]:
    """Return an argument as integers: address, shape and strides of an array, the bits of a float.

    Raises
    ------
    TypeError
        If it is not of this kind: compiled code would read and write anywhere.
    """
    if isinstance(kind, types.Array):
        dtype, shape = as_dtype(kind.dtype), getattr(argument, "shape", None)
        right = isinstance(argument, np.ndarray) and (argument.dtype, argument.ndim) == (dtype, kind.ndim)
        if not (right and (kind.layout == "A" or argument.flags.c_contiguous)):
            raise TypeError(f"expected {kind}, got {getattr(argument, 'dtype', type(argument))} of shape {shape}")
        return [argument.ctypes.data, *argument.shape, *argument.strides]
    if isinstance(kind, types.Float):
        return [np.float64(argument).view(np.int64).item()]
    return [int(argument)]


def _unpacking(kinds: Sequence[types.Type]):
    """Return a function for kernels that makes a tuple of `kinds` from the integers of `_numbers`."""

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
                    data = builder.inttoptr(number(), context.get_value_type(kind.dtype).as_pointer())
                    shape, strides = ([number() for _ in range(kind.ndim)] for _ in range(2))
                    size = context.get_constant(types.intp, kind.dtype.bitwidth // 8)
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


@intrinsic
def _invoke(typing_context, address, arguments, first, end, thread):
    """Call a compiled `Kernel` at an address."""

    def generate(context, builder, signature, values):
        word, text = ir.IntType(64), ir.IntType(64).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [text, word, word, word]).as_pointer()
        function = builder.inttoptr(values[0], kind)
        builder.call(function, [builder.inttoptr(values[1], text), *values[2:]])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), generate


@cache
def _sharing() -> Callable[[int, int, int, int], None]:
    """Make the function that runs a kernel's tasks on all threads, which take one portion after the other."""

    @cached(nogil=True, parallel=True)
    def share(address, arguments, tasks, portions):
        for portion in prange(portions):
            first, end = tasks * portion // portions, tasks * (portion + 1) // portions
            _invoke(address, arguments, first, end, get_thread_id())

    return share


def one(*_) -> int:
    """Return 1: the kernel does all in one task."""
    return 1


def one_a_plane(x: np.ndarray, *_) -> int:
    """Return N * C, the number of planes of the first argument: one task per plane."""
    return x.shape[0] * x.shape[1]


def one_a_plane_of_second(_, x: np.ndarray, *rest) -> int:
    """Return the number of planes of the second argument, if the first has more."""
    return one_a_plane(x)


def kernel(
    signature: str, tasks: Callable[..., int] = one_a_plane, workspace: Callable[..., int] | None = None
) -> Callable[[Callable], Kernel]:
    """Make a `Kernel` of a function (decorator); one of the signature table gets its docstring from there.

    Parameters
    ----------
    signature : str
        Types of the arguments, separated by spaces; see `Kernel`.
    tasks : callable
        Return the number of tasks for given arguments.
    workspace : callable or None
        Workspace rule, as in `minicnn.kernels.signatures.kernel`.
    """

    def make(function: Callable) -> Kernel:
        if function.__name__ in signatures.SIGNATURES:
            function = signatures.kernel(workspace)(function)
        return Kernel(function, signature, tasks)

    return make
