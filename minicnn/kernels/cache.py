"""Keeps what Numba has compiled, where that can be done, safely also when several processes compile at once."""

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock
from numba import njit

logger = logging.getLogger("minicnn.kernels")


class _InTurn:
    """Numba's cache of a function, which one process at a time reads or writes.

    Numba files each version of a function (types, constants of a closure) under the first number that is free. Two
    processes that look at once find the same one free; whoever asks for one version is then handed the other, which
    computes something else or writes where it should not.
    """

    def __init__(self, numbas):
        self._numbas = numbas

    def _lock(self) -> FileLock:
        """A new one each time: one that was made before a fork is nobody's."""
        return FileLock(Path(self._numbas.cache_path, "in-turn.lock"))

    def load_overload(self, *arguments):
        try:
            with self._lock():
                return self._numbas.load_overload(*arguments)
        except OSError as error:
            _warn(str(error))
            return None

    def save_overload(self, *arguments):
        try:
            with self._lock():
                self._numbas.save_overload(*arguments)
        except OSError as error:
            _warn(str(error))

    def __getattr__(self, name: str):
        return getattr(self._numbas, name)


@cache
def _warn(reason: str) -> None:
    """Once for each reason: dozens of functions are compiled."""
    logger.warning("compiled functions cannot be kept (%s); set NUMBA_CACHE_DIR to a folder with room", reason)


def cached(**options: Any) -> Callable[[Callable], Any]:
    """Decorator: ``numba.njit(cache=True, **options)``, but for several processes at a time, and for a full disk.

    Where there is no folder to keep results in, or no room, the function works all the same, after a warning.
    """

    def decorate(function: Callable):
        dispatcher: Any = njit(**options)(function)
        try:
            dispatcher.enable_caching()
        except RuntimeError:  # "cannot cache function ...: no locator available for file ..."
            _warn("no folder can be written to")
        else:
            dispatcher._cache = _InTurn(dispatcher._cache)
        return dispatcher

    return decorate
