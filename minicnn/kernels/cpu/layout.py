"""Memory layout of the "numba" backend's activations: planes in a halo of zeros.

A convolution that finds zeros around each plane need neither test for borders
nor copy its input. Rows of W numbers lie W + halo apart, so that the zeros
right of one row are also the zeros left of the next::

    0 0 0 0 0 0        halo 1, H = 2, W = 3: rows 4 apart
    0 x x x 0
      x x x 0 0
    0 0 0 0 ...

Everybody sees the plain (N, C, H, W) view of the x; nobody writes past it, so
the zeros stay zeros.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np

#: Numbers behind each plane that a vector may read past the last zero.
_SLACK = 16


class HaloMemory(np.ndarray):
    """Flat memory of planes. To find it as an array's owner is to know that there are zeros around the planes."""

    halo: int
    plane: tuple[int, ...]  # H, W, and the strides of both in bytes


def layout(h: int, w: int, halo: int) -> tuple[int, int, int]:
    """Offset of a plane's first number, distance of its rows, and size of the whole, zeros included."""
    stride = w + halo
    first = halo * stride + halo
    return first, stride, -(-(first + (h + halo) * stride + halo + _SLACK) // _SLACK) * _SLACK


def view(memory: np.ndarray, shape: tuple[int, ...], halo: int) -> np.ndarray:
    """The planes (N, C, H, W) in flat memory that begins with the first plane's halo."""
    _, c, h, w = shape
    first, stride, size = layout(h, w, halo)
    itemsize = memory.itemsize
    strides = (c * size * itemsize, size * itemsize, stride * itemsize, itemsize)
    return np.ndarray(shape, memory.dtype, memory, first * itemsize, strides)


def planes(shape: tuple[int, ...], dtype: str, halo: int) -> np.ndarray:
    """Zeros (N, C, H, W), a view of memory that has `halo` zeros on each side of every plane."""
    n, c, h, w = shape
    # Zeros that the system makes when they are first touched: gradients take no memory where nobody needs them. Twice a
    # HaloMemory, since an array of NumPy's own type takes for its owner the last of that type, past a single other one.
    zeros = np.zeros(n * c * layout(h, w, halo)[2], dtype).view(HaloMemory)
    memory = HaloMemory(zeros.shape, dtype, zeros)
    array = view(memory, shape, halo)
    memory.halo, memory.plane = halo, (h, w, *array.strides[2:])
    return array


def halo_of(x: np.ndarray) -> int:
    """Zeros on each side of x's planes; -1 for arrays that `planes` did not make, and for parts of planes."""
    owner = x.base
    while isinstance(owner, np.ndarray):
        if isinstance(owner, HaloMemory):
            return owner.halo if (*x.shape[2:], *x.strides[2:]) == owner.plane else -1
        owner = owner.base
    return -1


class Arena:
    """Hands out parts of flat scratch, one after the other."""

    def __init__(self, memory: np.ndarray):
        self._memory = memory
        self._used = 0

    def take(self, *shape: int) -> np.ndarray:
        """The next part, in that shape; what it holds means nothing."""
        start, self._used = self._used, self._used + math.prod(shape)
        return self._memory[start : self._used].reshape(shape)


def with_halo(x: np.ndarray, halo: int, arena: Arena) -> tuple[np.ndarray, list[Callable]]:
    """x itself if it has that halo of zeros, else a copy in scratch that has; and the steps that make the copy."""
    if halo_of(x) >= halo:
        return x, []
    n, c, h, w = x.shape
    memory = arena.take(n * c * layout(h, w, halo)[2])
    copy = view(memory, x.shape, halo)
    return copy, [partial(memory.fill, 0), partial(np.copyto, copy, x)]


def in_turn(steps: list[Callable]) -> Callable[[], None]:
    """One call that makes all of them, in order."""

    def run() -> None:
        for step in steps:
            step()

    return run
