"""Threads that share the tasks of a kernel.

`compiled.share` has the loop that they run: it needs neither Python nor its lock. A thread without work looks for some
to come for some microseconds, then sleeps, so that it does not slow down other processes.
"""

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from minicnn.kernels.cpu import loading
from minicnn.kernels.cpu.store import Code
from minicnn.kernels.host import cores

#: Most threads that a kernel may use.
MOST = cores()
_PORTIONS = 8  # portions per thread into which the tasks of a call are divided

#: Places of a pool's numbers. The caller writes a job at NEW; the threads copy it to JOB when they are locked.
CALLS, NEXT, LEFT, STATUS = range(0, 4)
NEW, JOB, FIELDS = 8, 16, 5
ADDRESS, ARGUMENTS, TASKS, PORTIONS, THREADS = range(FIELDS)
LOCK, UNLOCK, WAIT, WAKE, MUTEX, WORK, DONE = range(24, 31)
_SIZE = 32

_settings = threading.local()


def current() -> int:
    """Return the number of threads that kernels called from this thread use."""
    return getattr(_settings, "count", MOST)


@contextmanager
def limited(count: int) -> Iterator[None]:
    """Use `count` threads inside a ``with`` block, at most one for each core."""
    before = current()
    _settings.count = min(count, MOST)
    try:
        yield
    finally:
        _settings.count = before


def _system_functions(mutex: int, *conditions: int) -> list[int]:
    """Initialise a mutex and conditions in zeroed memory; return the addresses of LOCK, UNLOCK, WAIT and WAKE."""
    if sys.platform == "win32":  # where zeros are the initial values
        library = ctypes.windll.kernel32
        names = ("AcquireSRWLockExclusive", "ReleaseSRWLockExclusive", "SleepConditionVariableSRW",
                 "WakeAllConditionVariable")  # fmt: skip
    else:
        library = ctypes.CDLL(None)
        names = "pthread_mutex_lock", "pthread_mutex_unlock", "pthread_cond_wait", "pthread_cond_broadcast"
        library.pthread_mutex_init(ctypes.c_void_p(mutex), None)
        for condition in conditions:
            library.pthread_cond_init(ctypes.c_void_p(condition), None)
    return [ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in names]


def prepare() -> loading.Ordered:
    """Return the compiled loop of the threads, ordered before it is needed."""
    return loading.order(Code(f"{__package__}.compiled.share:share", (), ("int64[1C]",), False))


class _Pool:
    """The threads of this process, all but the one that calls."""

    def __init__(self) -> None:
        self.busy = threading.Lock()
        self._count = 1
        self._locks = np.zeros((3, 16), np.int64)  # memory of a mutex and two conditions
        self._numbers = np.zeros(_SIZE, np.int64)
        locks = [lock.ctypes.data for lock in self._locks]
        self._numbers[LOCK : WAKE + 1] = _system_functions(*locks)
        self._numbers[MUTEX : DONE + 1] = locks
        self._packed = np.array([self._numbers.ctypes.data, _SIZE, self._numbers.itemsize])

    def run(self, code: loading.Ordered, arguments: int, tasks: int, most: int) -> None:
        """Run all tasks on `most` threads; the caller holds `busy`."""
        for thread in range(self._count, most):
            self._count += 1  # first: Ctrl-C may interrupt `start`, and two threads of one number share workspace
            threading.Thread(target=self._join, args=(thread,), daemon=True).start()
        self._numbers[NEW : NEW + FIELDS] = code.address, arguments, tasks, min(tasks, _PORTIONS * most), most
        self._join(0)
        loading.check(self._numbers[STATUS].item(), code.name)

    def _join(self, thread: int) -> None:
        """Run the loop: one job as thread 0, or every job; this call keeps the numbers until the process ends."""
        prepare().call(self._packed.ctypes.data, 0, 0, thread)


def share(code: loading.Ordered, arguments: int, tasks: int, most: int) -> None:
    """Run a kernel's tasks on `most` threads; on this one alone while another thread's kernel has them.

    Parameters
    ----------
    code : Ordered
    arguments : int
        Address of the packed arguments.
    tasks, most : int
        Number of tasks, and of threads.
    """
    pool = _pool  # a signal handler may fork inside, and the child has another
    if not pool.busy.acquire(blocking=False):
        code.call(arguments, 0, tasks, 0)
        return
    try:
        pool.run(code, arguments, tasks, most)
    finally:
        pool.busy.release()


_pool = _Pool()


def _forget_threads() -> None:
    """After a fork the child has none of the threads."""
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
