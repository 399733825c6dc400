"""A stand-in for CuPy that runs kernels on the CPU under a checker: `cupy` goes into ``sys.modules["cupy"]``.

It has what the backend "cupy", the tests and the benchmarks use and nothing more; all else raises, as CuPy would or
louder. `test_standin.py` compares its names, signatures and texts with the real CuPy.

Switches for tests: `configure` (what machine this is), `schedule` (which of the allowed orders operations run in),
`ORDER` (of a block's threads: 0, 1 or 2), `CHECKED` (the checker of `hostcompile`). `STATS` counts. A test must end
with `finish`: what nobody waited for has not run yet, nor been checked.
"""

import random
import re
from collections.abc import Callable
from types import ModuleType

import hostcompile
import numpy as np
from standin_arrays import ndarray
from standin_device import MACHINE, RUNTIME, SCHEDULES, STATS, CUDARuntimeError, Facts, Hazard, OutOfMemoryError, Stats
from standin_functions import asnumpy, empty, matmul, zeros
from standin_memory import POOL, MemoryPool, PinnedMemoryPointer, Use, alloc_pinned_memory
from standin_streams import Device, Event, Graph, Stream, get_current_stream, get_elapsed_time

__all__ = ["STATS", "Hazard", "Stats", "configure", "cupy", "finish", "schedule"]

ORDER = 0
CHECKED = True
COMPILER = hostcompile.Module

_STANDARD = re.compile(r"--?std=c\+\+17")
_MOST_BLOCKS, _MOST_THREADS = (2**31 - 1, 65535, 65535), (1024, 1024, 64)
_MOST_SHARED = 48 << 10  # bytes, without asking for more


# ---- for tests


def configure(**facts) -> None:
    """Say what machine this is; what is not given is as at first.

    Parameters
    ----------
    devices : int
        How many there are.
    compute_capability : str
        Such as "80".
    memory : int
        Bytes of the device.
    name : str
        Of the device.
    driver : int or None
        Its version; None: there is no driver.
    nvrtc, nccl : bool
        Whether CUDA's compiler and NVIDIA's library for sums over devices are installed.
    fill : bool
        Whether new arrays are filled with NaN and tracked; without it, arrays that nobody touches need no memory here.
    """
    MACHINE.facts = Facts(**facts)
    MACHINE.device = 0
    vars(_nccl)["available"] = MACHINE.facts.nccl
    POOL.free_all_blocks()


def schedule(mode: str = "lazy", seed: int = 0) -> None:
    """Choose one of `SCHEDULES`, and what "random" draws from."""
    if mode not in SCHEDULES:
        raise ValueError(f"expected one of {', '.join(SCHEDULES)}, got {mode!r}")
    MACHINE.schedule, MACHINE.random = mode, random.Random(seed)


def finish() -> None:
    """Do all that still waits, and look at the guard zones of arrays that are gone; then the schedule is lazy again.

    Raises
    ------
    Hazard
        If something wrote beside an array.
    Exception
        Whatever the operations raise.
    """
    try:
        MACHINE.drain()
        if MACHINE.broken:
            raise Hazard(f"something wrote beside an array, which shows in {MACHINE.broken} that are gone")
    finally:
        MACHINE.forget()
        schedule()


# ---- kernels


class CompileException(Exception):
    """What CuPy raises when NVRTC does not accept a source."""

    def __init__(self, msg, source, name, options, backend="nvrtc"):
        self._msg, self.source, self.name, self.options, self.backend = msg, source, name, options, backend
        super().__init__()

    def __str__(self):
        return self._msg


class CUDADriverError(RuntimeError):
    """An error of the CUDA driver, with its text."""

    def __init__(self, status):
        texts = {1: "CUDA_ERROR_INVALID_VALUE: invalid argument", 500: "CUDA_ERROR_NOT_FOUND: named symbol not found"}
        self.status = status
        super().__init__(texts[status])


class DynamicLibNotFoundError(RuntimeError):
    """What CuPy lets through when a library of CUDA is not installed."""


class RawModule:
    """A source, compiled when its first kernel is asked for."""

    def __init__(
        self,
        code=None,
        *,
        path=None,
        options=(),
        backend="nvrtc",
        translate_cucomplex=False,
        enable_cooperative_groups=False,
        name_expressions=None,
        jitify=None,
    ):
        if (code is None) == (path is None):
            raise TypeError("Exactly one of `code` and `path` keyword arguments must be given.")
        if path is not None or backend != "nvrtc" or translate_cucomplex or enable_cooperative_groups or jitify:
            raise NotImplementedError("outside of the stand-in: RawModule of other than code and options")
        _require_type("code", code, str)
        _require_type("options", options, tuple)
        self._code, self._options = code, options
        self._expressions = None if name_expressions is None else tuple(name_expressions)
        self._compiled: dict[tuple[str, ...], hostcompile.Module] = {}

    def get_function(self, name):
        """The kernel of a name expression, or of a name with C linkage."""
        _require_type("name", name, str)
        MACHINE.require()
        if not MACHINE.facts.nvrtc:
            missing = "libnvrtc.so.13 or libnvrtc.so.12"
            raise DynamicLibNotFoundError(
                f'Failure finding "{missing}": No such file: {missing}, No such file: {missing}'
            )
        for option in self._options:
            if not _STANDARD.fullmatch(option):
                text = f"nvrtc: error: invalid value for --gpu-architecture or unknown option: {option}"
                raise CompileException(text, self._code, "", self._options)
        if self._expressions:
            module = self._compile(self._expressions)
            if name not in self._expressions:
                raise CUDADriverError(500)
        else:
            if not re.search(rf'extern\s+"C"[^;]*\b{re.escape(name)}\s*\(', self._code):
                raise CUDADriverError(500)
            module = self._compile((name,))
        return RawKernel._make(module, name)

    def _compile(self, names: tuple[str, ...]):
        if names not in self._compiled:
            MACHINE.refuse_in_capture()  # to load a kernel may wait for the device
            try:
                self._compiled[names] = COMPILER(self._code, names, checked=CHECKED)
            except hostcompile.CompileError as error:
                raise CompileException(str(error), self._code, "", self._options) from error
        return self._compiled[names]


class RawKernel:
    """A kernel that can be launched."""

    _module: hostcompile.Module
    _name: str

    def __init__(self, *args, **kwargs):
        raise NotImplementedError("outside of the stand-in: kernels come from RawModule.get_function")

    @classmethod
    def _make(cls, module: hostcompile.Module, name: str) -> "RawKernel":
        kernel = object.__new__(cls)
        kernel._module, kernel._name = module, name
        return kernel

    def __call__(self, grid, block, args, *, shared_mem=0):
        """Ask for a launch on the current stream."""
        grid, block = _three("grid", grid, _MOST_BLOCKS), _three("block", block, _MOST_THREADS)
        if block[0] * block[1] * block[2] > _MOST_THREADS[0] or not 0 <= shared_mem <= _MOST_SHARED:
            raise CUDADriverError(1)
        given = [_argument(value) for value in args]
        uses = [Use(value._memory) for value in args if isinstance(value, ndarray)]
        seed = STATS.launches + STATS.captured

        def run() -> None:
            self._module.launch(self._name, grid, block, given, shared=shared_mem, order=ORDER, seed=seed)

        MACHINE.ask(get_current_stream()._queue, f"launch of {self._name}", run, uses, is_launch=True)


def _require_type(name: str, value: object, expected: type) -> None:
    if not isinstance(value, expected):
        got = type(value).__name__
        raise TypeError(f"Argument '{name}' has incorrect type (expected {expected.__name__}, got {got})")


def _three(name: str, sizes: tuple, most: tuple[int, int, int]) -> tuple[int, int, int]:
    """A grid or block of three dimensions; CuPy takes 0 for 1, which nobody means."""
    _require_type(name, sizes, tuple)
    x, y, z = (*sizes, 1, 1)[:3]
    if len(sizes) > 3 or not all(1 <= size <= limit for size, limit in zip((x, y, z), most, strict=True)):
        raise CUDADriverError(1)
    return int(x), int(y), int(z)


def _argument(value):
    """What a kernel gets for an argument: CuPy passes an array's address, and a Python number as 8 bytes."""
    if isinstance(value, ndarray):
        return value._view
    if isinstance(value, (np.bool_, np.integer, np.floating)):
        return value
    if isinstance(value, int):
        return np.int64(value)
    if isinstance(value, float):
        return np.float64(value)
    raise TypeError(f"Unsupported type {type(value)}")


# ---- the runtime


def get_default_memory_pool():
    """The pool that all arrays come from."""
    return POOL


def getDeviceCount():
    """GPUs that can be used, at least 1: without any it raises."""
    MACHINE.require()
    return MACHINE.facts.devices


def getDeviceProperties(device):
    """What is known of a GPU."""
    MACHINE.require()
    if device != 0:
        raise CUDARuntimeError(101)
    major, minor = divmod(int(MACHINE.facts.compute_capability), 10)
    return {
        "name": MACHINE.facts.name.encode(),
        "totalGlobalMem": MACHINE.facts.memory,
        "major": major,
        "minor": minor,
        "multiProcessorCount": 108,
        "clockRate": 1410000,
        "sharedMemPerBlock": _MOST_SHARED,
        "warpSize": 32,
    }


def driverGetVersion():
    """Such as 12090, and 0 without a driver."""
    return MACHINE.facts.driver or 0


def runtimeGetVersion():
    """Such as 12090."""
    return RUNTIME


def set_allocator(allocator=None):
    """Take memory from the device without a pool; here each array has memory of its own anyway."""
    if allocator is not None:
        raise NotImplementedError("outside of the stand-in: an allocator")


def _module(name: str, *members: type | Callable, **named: object) -> ModuleType:
    module = ModuleType(name)
    vars(module).update({member.__name__: member for member in members} | named)
    return module


_runtime = _module(
    "cupy.cuda.runtime", getDeviceCount, getDeviceProperties, driverGetVersion, runtimeGetVersion, CUDARuntimeError
)
_nccl = _module("cupy.cuda.nccl", available=False)
_cuda = _module(
    "cupy.cuda",
    *(
        Stream,
        Event,
        Device,
        Graph,
        MemoryPool,
        PinnedMemoryPointer,
        alloc_pinned_memory,
        get_current_stream,
        get_elapsed_time,
        set_allocator,
    ),
    runtime=_runtime,
    nccl=_nccl,
    driver=_module("cupy.cuda.driver", CUDADriverError),
    memory=_module("cupy.cuda.memory", OutOfMemoryError),
    compiler=_module("cupy.cuda.compiler", CompileException),
)

#: What stands for the module `cupy`.
cupy = _module(
    "cupy", ndarray, empty, zeros, asnumpy, matmul, RawModule, get_default_memory_pool, cuda=_cuda, __version__="14.2.0"
)
