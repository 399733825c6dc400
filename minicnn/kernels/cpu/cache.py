"""Keeps what Numba has compiled, where that can be done, safely also when several processes compile at once."""

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit

try:
    from filelock import FileLock
except ImportError:  # only a machine that was set up by hand lacks it
    FileLock = None

logger = logging.getLogger("minicnn.kernels")


class _InTurn:
    """Numba's cache of a function, which one process at a time reads or writes.

    Numba files each version of a function (types, constants of a closure) under the first number that is free. Two
    processes that look at once find the same one free; whoever asks for one version is then handed the other, which
    computes something else or writes where it should not.
    """

    def __init__(self, numbas):
        self._numbas = numbas

    def _lock(self):
        """A new one each time: one that was made before a fork is nobody's."""
        assert FileLock is not None
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
def _warn(reason: str, advice: str = "set NUMBA_CACHE_DIR to a folder with room") -> None:
    """Once for each reason: dozens of functions are compiled."""
    logger.warning("compiled functions cannot be kept (%s); %s", reason, advice)


def cached(**options: Any) -> Callable[[Callable], Any]:
    """Decorator: ``numba.njit(cache=True, **options)``, but for several processes at a time, and for a full disk.

    Where there is no folder to keep results in, no room, or no filelock, the function works all the same, after a
    warning.
    """

    def decorate(function: Callable):
        dispatcher: Any = njit(**options)(function)
        if FileLock is None:
            _warn("two processes could mix them up without filelock", "pip install filelock")
            return dispatcher
        try:
            dispatcher.enable_caching()
        except RuntimeError:  # "cannot cache function ...: no locator available for file ..."
            _warn("no folder can be written to")
        else:
            dispatcher._cache = _InTurn(dispatcher._cache)
        return dispatcher

    return decorate
