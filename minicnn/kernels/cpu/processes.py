"""Processes that compile kernels beside this one, as many at once as there are cores.

Compiling needs Numba, whose import takes half a second, and about a second for each kernel; a process that finds all
its kernels on disk does neither.
"""

import base64
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress

from minicnn.kernels.cpu.store import Code, Machine, keep
from minicnn.kernels.host import cores

logger = logging.getLogger("minicnn.kernels")

_IDLE = 2.0  # seconds after which a process without work ends
#: Imports nothing from the current folder, where Python starts to look: `sys` is a part of the interpreter.
_SERVE = "import sys; sys.path[:] = sys.argv[1:]; from minicnn.kernels.cpu.compiled.compiler import serve; serve()"


class _Processes:
    """Processes that compile, one for each thread of this class; they are started when there is work."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Code, Future[Machine]]] = deque()
        self._idle = 0
        self._threads = 0

    def submit(self, code: Code) -> "Future[Machine]":
        machine: Future[Machine] = Future()
        with self._changed:
            if self._idle <= len(self._waiting) and self._threads < cores():
                threading.Thread(target=self._work, daemon=True).start()  # may fail, and then nothing has changed
                self._threads += 1
            self._waiting.append((code, machine))
            self._changed.notify()
        return machine

    def _next(self) -> "tuple[Code, Future[Machine]] | None":
        """Wait for work; None, and one thread less, if there is none for some time."""
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._waiting, _IDLE)
            self._idle -= 1
            if self._waiting:
                return self._waiting.popleft()
            self._threads -= 1
            return None

    def _work(self) -> None:
        process = _start()
        while work := self._next():
            code, machine = work
            name = f"{code.source.partition(':')[2]} for {code.kinds[0].partition('[')[0]}"
            start = time.perf_counter()
            try:
                result = _answer(process, code)
                if result is None:
                    _end(process)  # or else it might answer late, when asked for another kernel
                    process = None
                    result = _compile_here(code)
                keep(code, result)
            except BaseException as error:  # whoever waits must get it
                machine.set_exception(error)
                continue
            logger.info("compiled %s in %.1f s", name, time.perf_counter() - start)
            machine.set_result(result)
        _end(process)


def _start() -> subprocess.Popen | None:
    """Start a process that compiles; None if that is impossible."""
    if getattr(sys, "frozen", False):  # the executable is the whole program, which would start again
        return None
    with suppress(OSError, TypeError, ValueError):  # TypeError: an interpreter inside a program has no executable
        return subprocess.Popen(
            [sys.executable, "-c", _SERVE, *sys.path], text=True,
            env=os.environ | {"NUMBA_DISABLE_INTEL_SVML": "1"},  # a library that only Numba loads
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    return None


def _answer(process: subprocess.Popen | None, code: Code) -> Machine | None:
    """Let a process compile; None if it does not answer."""
    if process is None or process.stdin is None or process.stdout is None:
        return None
    with suppress(OSError, ValueError):
        print(json.dumps(code), file=process.stdin, flush=True)
        symbol, data = json.loads(process.stdout.readline())
        return Machine(symbol, base64.b64decode(data))
    return None


def _end(process: subprocess.Popen | None) -> None:
    """End a process."""
    if process:
        process.kill()
        process.communicate()


def _compile_here(code: Code) -> Machine:
    """Compile in this process, which shows what is wrong with a kernel that the others cannot compile."""
    from minicnn.kernels.cpu.compiled.compiler import compile_code

    return compile_code(code)


_processes = _Processes()


def compiled(code: Code) -> "Future[Machine]":
    """Let a process compile a kernel and keep the result; the log tells when it begins and ends."""
    logger.info("compiling %s", code.source)
    return _processes.submit(code)


def _forget_threads() -> None:
    """After a fork the child has none of the threads."""
    global _processes
    _processes = _Processes()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
