"""Functions shared by the CPU backends, which use NumPy arrays and run every call synchronously."""

import os
from collections.abc import Callable

import numpy as np

empty = np.empty
zeros = np.zeros
download = np.asarray


def cores() -> int:
    """Return the number of CPU cores this process may use; all cores if the system does not report an affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def upload(destination: np.ndarray, values: np.ndarray) -> None:
    """Copy a NumPy array of the same shape into `destination`, converting the dtype."""
    np.copyto(destination, values, casting="unsafe")


class Prefetcher:
    """Prefetcher interface that copies batches into the arrays a step reads; on the CPU it copies at once.

    Parameters
    ----------
    *destinations : ndarray
        Arrays with the batch as first axis, or 0-d arrays; values are converted to their dtypes.
    """

    def __init__(self, *destinations: np.ndarray):
        self._destinations = destinations

    def __call__(self, *values: np.ndarray | float) -> None:
        """Copy one value to each destination, in order: n samples fill the first n entries."""
        for destination, value in zip(self._destinations, values, strict=True):
            part = destination[: np.shape(value)[0]] if destination.ndim else destination
            np.copyto(part, value, casting="unsafe")


def capture(run: Callable[[], None]) -> Callable[[], None]:
    """Return `run` itself: the CPU backends have nothing to capture."""
    return run


def all_reduce(comm) -> Callable[[np.ndarray], None]:
    """Return a function that replaces an array, in every process, by its sum over all processes."""
    return comm.all_reduce


def memory_left() -> None:
    """Return None: free memory is unknown, because the operating system overcommits it."""
    return None
