"""What the backends on the CPU share: their arrays are NumPy's, and a call is over when it returns."""

import os
from collections.abc import Callable

import numpy as np

empty = np.empty
zeros = np.zeros
download = np.asarray


def cores() -> int:
    """CPU cores that this process may use; not every system can tell them from those that there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def upload(destination: np.ndarray, values: np.ndarray) -> None:
    """Copy a NumPy array of the same shape into `destination`, converting the dtype."""
    np.copyto(destination, values, casting="unsafe")


class Feed:
    """Brings batches to where a step reads them.

    Parameters
    ----------
    *destinations : arrays
        Of a whole batch, or without dimensions.
    """

    def __init__(self, *destinations: np.ndarray):
        self._destinations = destinations

    def __call__(self, *values: np.ndarray | float) -> None:
        """Put the first n of each destination in order; n is the length of the values."""
        for destination, value in zip(self._destinations, values, strict=True):
            part = destination[: np.shape(value)[0]] if destination.ndim else destination
            np.copyto(part, value, casting="unsafe")


def record(run: Callable[[], None]) -> Callable[[], None]:
    """A function that does what `run` does: `run` itself."""
    return run


def all_reduce(comm) -> Callable[[np.ndarray], None]:
    """A function that replaces an array, in every process, by the sum of all."""
    return comm.all_reduce


def memory_left() -> None:
    """Not known: the system lends more memory than there is."""
    return None
