"""What the tests of the stand-in for CuPy share: a fresh machine, and kernels that need no compiler."""

import gc
from functools import cache

import hostcompile
import numpy as np
import pytest
import standin
from standin import STATS, cupy

ONES = np.ones((2, 3), np.float32)


class Functions:
    """In the place of compiled kernels: functions on the NumPy views of their arguments."""

    def __init__(self, code, names, checked=True):
        if "error" in code:
            raise hostcompile.CompileError("an error")

    def launch(self, name, grid, block, args, shared=0, order=0, seed=0, max_blocks=None):
        {"add": self._add, "copy": self._copy, "spoil": self._spoil}[name](*args)

    def _add(self, y, x, number):
        y += x * number

    def _copy(self, y, x):
        y[...] = x

    def _spoil(self, y):
        np.lib.stride_tricks.as_strided(y, (y.size + 1,), y.strides[-1:])[-1] = 0


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """The usual machine, with functions for kernels; what a test leaves behind has to run."""
    monkeypatch.setattr(standin, "COMPILER", Functions)
    for name in ("add", "copy", "spoil"):
        kernel(name)  # which could not be compiled in the middle of a capture
    standin.finish()
    gc.collect()
    standin.configure()
    standin.schedule()
    STATS.reset()
    yield
    standin.schedule()
    standin.configure()
    standin.finish()


@cache
def kernel(name: str, code: str = ""):
    return cupy.RawModule(code=code, name_expressions=("add", "copy", "spoil")).get_function(name)


def add(y, x, number: float = 1) -> None:
    """y += x number, on the current stream."""
    kernel("add")((1,), (32,), (y, x, np.float32(number)))


def copy(y, x) -> None:
    kernel("copy")((1,), (32,), (y, x))


def array(values: np.ndarray = ONES):
    """An array on the device whose numbers have arrived."""
    result = cupy.empty(values.shape, values.dtype)
    result.set(values)
    cupy.cuda.Device().synchronize()
    return result


def pinned(values: np.ndarray) -> np.ndarray:
    memory = cupy.cuda.alloc_pinned_memory(values.nbytes)
    result = np.frombuffer(memory, values.dtype, values.size).reshape(values.shape)
    result[...] = values
    return result


def streams(count: int = 2, non_blocking: bool = True) -> list:
    return [cupy.cuda.Stream(non_blocking=non_blocking) for _ in range(count)]


def now(array) -> np.ndarray:
    """What lies in the device's memory at this moment; no program can know."""
    return array._view.copy()
