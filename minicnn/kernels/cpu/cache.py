"""On-disk cache of compiled functions that stays correct if several processes compile at once."""

import logging
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature

try:
    from filelock import FileLock
except ImportError:  # missing only in a manual installation
    FileLock = None

logger = logging.getLogger("minicnn.kernels")


class _InTurn:
    """Wrapper around Numba's cache of one function that lets one process at a time read or write it.

    Numba stores each specialisation of a function (argument types, constants of a closure) under the first free index.
    Two processes that compile at once can pick the same index. One specialisation is then loaded in place of the
    other: it computes something else or writes out of bounds.
    """

    def __init__(self, numbas):
        self._numbas = numbas

    def _lock(self):
        """Return a new lock for each use: a lock made before a fork is not valid in the child process."""
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
    """Log a warning once per reason (hence the cache), since dozens of functions are compiled."""
    logger.warning("compiled functions cannot be kept (%s); %s", reason, advice)


def cached(**options: Any) -> Callable[[Callable], Any]:
    """Compile like ``numba.njit(cache=True, **options)``, safe for several processes and a full disk (decorator).

    Without a writable folder, free disk space or the package filelock, a warning is logged and the function is
    compiled but not cached.
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


class _OfCall(_InTurn):
    """Cache of a function that its name alone identifies.

    Numba's own key includes the functions of a closure, by identifiers that differ in each process: it would never find
    such a function again.
    """

    def __init__(self, numbas):
        super().__init__(numbas)
        numbas._index_key = lambda signature, codegen: (signature, codegen.magic_tuple())


def compile_call(function: Callable, signature: Any, options: dict[str, Any], name: str) -> int:
    """Compile a function to a C function, or load it, and return its address.

    Parameters
    ----------
    function : callable
        Its qualified name identifies it in the cache.
    signature : numba signature
    options : dict
        Options of ``numba.njit``.
    name : str
        What the log says is compiled; loading from the cache logs nothing.
    """
    call: Any = CFunc(function, normalize_signature(signature), {}, options)
    if FileLock is None:
        _warn("two processes could mix them up without filelock", "pip install filelock")
    else:
        try:
            call._cache = _OfCall(FunctionCache(function))
        except RuntimeError:  # "cannot cache function ...: no locator available for file ..."
            _warn("no folder can be written to")
    uncached = call._compile_uncached

    def compile_uncached():
        logger.info("compiling %s", name)
        start = time.perf_counter()
        result = uncached()
        logger.info("compiled %s in %.1f s", name, time.perf_counter() - start)
        return result

    call._compile_uncached = compile_uncached
    call.compile()
    _KEPT.append(call)
    return call.address


#: Compiled functions live as long as the process: their addresses are in use.
_KEPT: list[Any] = []
