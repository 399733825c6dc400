"""Processes that draw faces side by side: drawing holds the interpreter's lock, so threads would not help."""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from icnn.cli import Signals
from icnn.errors import InputError

_WORTH = 25  # faces that take as long to draw as a process to start
_CHUNK = 4  # faces that a process is given at a time

Map = Callable[..., Iterator[Any]]  #: the built-in `map`, or what does the same


def process_count(faces: int, threads: int) -> int:
    """Return the number of processes to draw so many faces in; 1 means no further process."""
    return max(1, min(threads, faces // _WORTH))


@contextmanager
def process_map(processes: int, signals: Signals) -> Iterator[Map]:
    """Context manager: yield a `map` that runs in this many new processes, in order; for one, the built-in `map`.

    The function and its arguments must be picklable. The processes have ended when the block ends, also by an
    exception; if this process is killed, they end by themselves, since their pipes do.

    Raises
    ------
    InputError
        If a process dies.
    """
    if processes == 1:
        yield map
        return
    with ExitStack() as started:

        def spread(function: Callable[..., Any], *arguments: Iterable[Any]) -> Iterator[Any]:
            return _in_order([_start(function, started) for _ in range(processes)], list(zip(*arguments, strict=True)))

        try:
            yield spread
        except (EOFError, ConnectionError):
            signals.check()
            text = "a process that draws faces was killed, by lack of memory perhaps; try --threads 1"
            raise InputError(text) from None


def _start(function: Callable[..., Any], started: ExitStack) -> Connection:
    """Start a process and return the pipe to it; `started` closes the pipe, which ends the process, and waits."""
    context = get_context("spawn")  # not a fork: this process may have threads, MPI and a GPU
    ours, theirs = context.Pipe()
    worker = context.Process(target=_work, args=(theirs, function))
    resource_tracker.ensure_running()  # now, since its start ends any mask
    # The mask is inherited: signals may reach all processes of a terminal or a job, but this one alone decides.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        worker.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    started.callback(worker.join)
    started.callback(ours.close)  # first, since callbacks run in reverse order
    theirs.close()
    return ours


def _work(pipe: Connection, function: Callable[..., Any]) -> None:
    """Answer each list of arguments with the list of results, or with the error, until the pipe ends."""
    with suppress(EOFError, ConnectionError):
        while True:
            arguments = pipe.recv()
            try:
                answer = [function(*each) for each in arguments]
            except Exception as error:
                answer = error
            pipe.send(answer)


def _in_order(pipes: list[Connection], arguments: list[tuple[Any, ...]]) -> Iterator[Any]:
    """Yield the results for all arguments; whichever process is free gets the next of them."""
    starts = iter(range(0, len(arguments), _CHUNK))
    at_work: dict[Connection, int] = {}  # pipe -> start of the arguments that its process has
    done: dict[int, list[Any]] = {}  # start -> results

    def give(pipe: Connection) -> None:
        if (start := next(starts, None)) is not None:
            pipe.send(arguments[start : start + _CHUNK])
            at_work[pipe] = start

    for pipe in pipes:
        give(pipe)
    for start in range(0, len(arguments), _CHUNK):
        while start not in done:
            for pipe in at_work.keys() & set(wait(list(at_work))):
                answer = pipe.recv()
                if isinstance(answer, Exception):
                    raise answer
                done[at_work.pop(pipe)] = answer
                give(pipe)
        yield from done.pop(start)
