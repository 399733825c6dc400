"""Utilities shared by all commands: one-line errors, exit codes, signals, progress bars, options, text tables."""

import argparse
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn, TypeVar

import numpy as np

from icnn.errors import InputError
from minicnn.checkpoint import CheckpointError
from minicnn.distributed import DistributedError, end_all, launched_rank
from minicnn.kernels import BackendError

Item = TypeVar("Item")

MISTAKE, NOT_FINITE = 2, 3


class NotFiniteError(RuntimeError):
    """A loss became NaN or infinite; the message suggests what to try."""


class StopError(Exception):
    """Stop after Ctrl-C or SIGTERM, raised once all state worth keeping has been saved.

    Attributes
    ----------
    number : int
        The signal's number.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class Parser(argparse.ArgumentParser):
    """Argument parser that reports errors in one line, as `InputError`."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")

    def add_backend(self) -> None:
        """Add ``--backend NAME``."""
        self.add_argument(
            "--backend", default="auto", help="auto, numpy, numba, cupy or cublas (default: auto, the fastest)"
        )

    def add_weights(self, shipped: Path) -> None:
        """Add ``--weights DIR``."""
        self.add_argument(
            "--weights",
            type=Path,
            default=shipped,
            metavar="DIR",
            help="RUN or RUN/weights (default: the shipped ones)",
        )

    def add_threads(self) -> None:
        """Add ``--threads N``."""
        self.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")

    def add_memory(self) -> None:
        """Add ``--memory SIZE``, in bytes once parsed; `limit_memory` applies it."""
        self.add_argument(
            "--memory",
            type=memory_size,
            metavar="SIZE",
            help="what the process may allocate at most, for example 4G (default: no limit)",
        )


_LEAST_MEMORY = 512 << 20  # bytes, for the interpreter, the compiled kernels and BLAS


def memory_size(text: str) -> int:
    """Parse a size in M or G (2^20 or 2^30 bytes), at least 512M, to bytes; an argparse type."""
    number, unit = text[:-1], text[-1:].upper()
    if not number.isdecimal() or unit not in ("M", "G"):
        raise argparse.ArgumentTypeError(f"expected a size such as 4G or 800M, got {text!r}")
    size = int(number) << (20 if unit == "M" else 30)
    if size < _LEAST_MEMORY:
        raise argparse.ArgumentTypeError(
            f"expected at least {_LEAST_MEMORY >> 20}M for the program itself, got {text!r}"
        )
    return size


def limit_memory(size: int | None) -> None:
    """Cap this process's memory at `size` bytes; None does nothing.

    Raises
    ------
    InputError
        If the system cannot limit memory.
    """
    if size is None:
        return
    try:
        import resource
    except ImportError:
        raise InputError("--memory: expected a system that can limit a process's memory, got none") from None
    # NumPy's BLAS allocates its workspace on first use, and aborts the process if that fails.
    np.dot(np.ones((64, 64)), np.ones((64, 64)))
    most = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (size if most < 0 else min(size, most), most))


def positive(text: str) -> int:
    """Parse a whole number of at least 1; an argparse type."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def natural(text: str) -> int:
    """Parse a whole number of at least 0; an argparse type."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return int(text)


class Signals:
    """Context manager that records Ctrl-C and SIGTERM, so that work stops at a point from which it can be resumed.

    A second signal raises StopError immediately, and so does one while kernels are compiled, which may take long.
    """

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> "Signals":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number or any(one.pending for one in _announced):
            raise StopError(number)
        self.number = number

    def check(self) -> None:
        """Raise StopError if a signal has been received."""
        if self.number:
            raise StopError(self.number)

    def tracked(self, description: str) -> Callable[[Iterable[Item]], Iterator[Item]]:
        """Return a function that wraps an iterable: with a progress bar, and `check` before each item."""

        def track(items: Iterable[Item]) -> Iterator[Item]:
            for item in progress(items, description):
                self.check()
                yield item

        return track


def progress(items: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
    """Iterate over `items` with a progress bar on stderr; no bar if stderr is not a terminal."""
    from tqdm import tqdm  # imported here: a library user of `icnn` has no progress bar

    return tqdm(items, description, total, leave=False, disable=None, dynamic_ncols=True)


def text_table(lines: Sequence[Sequence[str]], left: int) -> str:
    """Format rows of cells as aligned columns; the first `left` columns are left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def run(main: Callable[[list[str] | None], int], name: str, argv: list[str] | None = None) -> NoReturn:
    """Run a command and exit with its code.

    Codes: 0 success, 1 closed pipe or internal error, 2 user error, 3 loss not finite, 130 / 143 stopped by a signal.
    Under an MPI launcher the first process that fails ends all processes, because the others wait for it.
    """

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        print(f"{name}: warning: {message}", file=sys.stderr)

    warnings.showwarning = show
    text = ""
    try:
        code = main(argv)
    except (InputError, CheckpointError, BackendError, DistributedError) as error:
        code, text = MISTAKE, str(error)
    except NotFiniteError as error:
        code, text = NOT_FINITE, str(error)
    except StopError as stop:
        code, text = 128 + stop.number, f"stopped by {stop}"
    except KeyboardInterrupt:
        code, text = 128 + signal.SIGINT, "stopped by SIGINT"
    except BrokenPipeError:  # `command | head`: the reader has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        code, text = MISTAKE, f"{where}{error.strerror or error}"
    except MemoryError:
        code, text = MISTAKE, "out of memory; try fewer faces, a smaller batch, or a larger --memory"
    except Exception:
        if launched_rank() is None:
            raise
        code, text = 1, traceback.format_exc()  # end the other processes, which would wait for this one
    if code:
        sys.stdout.flush()
        end_all(code, lambda: _complain(name, text), _PRECEDENCE)
    raise SystemExit(code)


class _Compilations(logging.Handler):
    """Log handler that prints warnings, announces compilation once when it begins, and counts the kernels.

    `pending` of them are being compiled, `count` are done.
    """

    def __init__(self) -> None:
        super().__init__()
        self.started = self.ended = 0.0
        self.pending = self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            print(f"warning: {record.getMessage()}", file=sys.stderr)
            return
        if not self.started:
            self.started = time.perf_counter()
            print("compiling kernels, only at their first use", file=sys.stderr, flush=True)
        if record.getMessage().startswith("compiled"):
            self.count += 1
            self.pending = max(0, self.pending - 1)  # some may have begun before
            self.ended = time.perf_counter()
        else:
            self.pending += 1


#: Those that listen.
_announced: list[_Compilations] = []


@contextmanager
def compilation_announced() -> Iterator[None]:
    """Context manager: report on stderr when a backend compiles kernels and, at the end, how long that took."""
    logger, handler = logging.getLogger("minicnn.kernels"), _Compilations()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    _announced.append(handler)
    try:
        yield
    finally:
        _announced.remove(handler)
        logger.removeHandler(handler)
        logger.setLevel(level)
        if handler.count:
            seconds = handler.ended - handler.started
            print(f"compiled {handler.count} kernels in {seconds:.0f} s", file=sys.stderr)


#: Grace period (s) before other ranks report: usually all fail with the same error.
_PRECEDENCE = 5.0


def _complain(name: str, text: str) -> None:
    if not text:
        return
    if rank := launched_rank():
        name = f"{name}: process {rank}"
    print(f"{name}: {' '.join(text.split())}", file=sys.stderr, flush=True)


def existing_folder(text: str) -> Path:
    """Parse the path of an existing folder; an argparse type."""
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: expected a folder, found none")
    return path
