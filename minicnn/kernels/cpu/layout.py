"""Memory layout of the "numba" backend's activations: planes surrounded by a halo of zeros.

With zeros around each plane a convolution needs neither bounds tests nor a copy
of its input. Rows of W elements are W + halo apart, so that the zeros to the
right of one row are also the zeros to the left of the next::

    0 0 0 0 0 0        halo 1, H = 2, W = 3: rows 4 apart
    0 x x x 0
      x x x 0 0
    0 0 0 0 ...

All other code gets the plain (N, C, H, W) view of the x and never writes
outside it, so the zeros stay zeros.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np

#: Elements after the last zero of each plane that a vector load may still read.
_SLACK = 16
_LINE = 64  # bytes of a cache line


class HaloMemory(np.ndarray):
    """Flat memory of planes. If an array's base has this type, zeros surround the array's planes."""

    halo: int
    plane: tuple[int, ...]  # H, W, and the strides of both in bytes


def layout(h: int, w: int, halo: int) -> tuple[int, int, int]:
    """Return, in elements, the offset of a plane's first pixel, the row distance, and the plane's size with zeros."""
    stride = w + halo
    first = halo * stride + halo
    return first, stride, -(-(first + (h + halo) * stride + halo + _SLACK) // _SLACK) * _SLACK


def view(memory: np.ndarray, shape: tuple[int, ...], halo: int) -> np.ndarray:
    """Return the view (N, C, H, W) of the planes in flat memory that begins with the first plane's halo."""
    _, c, h, w = shape
    first, stride, size = layout(h, w, halo)
    itemsize = memory.itemsize
    strides = (c * size * itemsize, size * itemsize, stride * itemsize, itemsize)
    return np.ndarray(shape, memory.dtype, memory, first * itemsize, strides)


def planes(shape: tuple[int, ...], dtype: str, halo: int) -> np.ndarray:
    """Return zeros (N, C, H, W), a view of memory with `halo` zeros on each side of every plane."""
    n, c, h, w = shape
    # The system allocates np.zeros when it is first touched, so unused gradients take no memory. HaloMemory is applied
    # twice: NumPy sets `base` of an ndarray to the last ndarray of the chain, and would skip a single HaloMemory.
    zeros = np.zeros(n * c * layout(h, w, halo)[2], dtype).view(HaloMemory)
    memory = HaloMemory(zeros.shape, dtype, zeros)
    array = view(memory, shape, halo)
    memory.halo, memory.plane = halo, (h, w, *array.strides[2:])
    return array


def halo_of(x: np.ndarray) -> int:
    """Return the zeros on each side of x's planes; -1 for arrays not made by `planes` and for parts of planes."""
    owner = x.base
    while isinstance(owner, np.ndarray):
        if isinstance(owner, HaloMemory):
            return owner.halo if (*x.shape[2:], *x.strides[2:]) == owner.plane else -1
        owner = owner.base
    return -1


class Arena:
    """Allocator of consecutive parts of a flat workspace."""

    def __init__(self, memory: np.ndarray):
        self._memory = memory
        self._used = 0

    def take(self, *shape: int) -> np.ndarray:
        """Return the next part in the given shape, aligned to a cache line; its content is undefined."""
        address = self._memory.ctypes.data + self._used * self._memory.itemsize
        start = self._used + -address % _LINE // self._memory.itemsize
        self._used = start + math.prod(shape)
        return self._memory[start : self._used].reshape(shape)


def with_halo(x: np.ndarray, halo: int, arena: Arena) -> tuple[np.ndarray, list[Callable]]:
    """Provide x with a halo of at least `halo` zeros.

    Returns
    -------
    array : (N, C, H, W)
        x itself if its halo suffices, else a view of workspace from `arena`.
    steps : list of callables
        Steps that copy x there; empty for x itself.
    """
    if halo_of(x) >= halo:
        return x, []
    n, c, h, w = x.shape
    memory = arena.take(n * c * layout(h, w, halo)[2])
    copy = view(memory, x.shape, halo)
    return copy, [partial(memory.fill, 0), partial(np.copyto, copy, x)]


def in_turn(steps: list[Callable]) -> Callable[[], None]:
    """Return a function that runs all steps in order."""

    def run() -> None:
        for step in steps:
            step()

    return run
