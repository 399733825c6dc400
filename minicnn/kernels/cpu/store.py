"""Machine code of the kernels on disk, found again by all that determines it."""

import hashlib
import importlib.metadata
import logging
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import llvmlite.binding as llvm

from minicnn.kernels.cpu.vectors import CPU_FEATURES

logger = logging.getLogger("minicnn.kernels")

_FOLDER = "NUMBA_CACHE_DIR"  # Numba's other settings may change the code


class Code(NamedTuple):
    """What to compile.

    Attributes
    ----------
    source : str
        "module:name" of a function, or of one that makes it from `constants`; see `kernel.Kernel`.
    constants : tuple of int
    kinds : tuple of str
        Of each argument after the first: "int64", "bool", "float32", "float64", or for an array "dtype[ndim layout]",
        such as "float32[4A]": layout C for contiguous arrays, A for any strides.
    strict : bool
        True if floating-point operations must not be fused or reordered.
    """

    source: str
    constants: tuple[int, ...]
    kinds: tuple[str, ...]
    strict: bool


class Machine(NamedTuple):
    """Machine code: an object file, and the symbol of its function."""

    symbol: str
    data: bytes


@cache
def _fingerprint() -> bytes:
    """Return a hash of all that determines the machine code of any kernel: these sources, compiler and machine."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")))
    known = [llvm.llvm_version_info, importlib.metadata.version("numba"), platform.platform(), CPU_FEATURES]
    known += sorted(item for item in os.environ.items() if item[0].startswith("NUMBA_") and item[0] != _FOLDER)
    return hashlib.sha256(sources + repr((known, llvm.get_host_cpu_name())).encode()).digest()


@cache
def _source(module: str) -> bytes:
    spec = find_spec(module)
    return Path(spec.origin).read_bytes() if spec and spec.origin else b""


def _file_name(code: Code) -> str:
    module, _, name = code.source.partition(":")
    known = hashlib.sha256(_fingerprint() + _source(module) + repr(code).encode())
    return f"{name}-{known.hexdigest()[:24]}.o"


def _folders() -> Iterator[Path]:
    """Yield the folders for machine code, best first: NUMBA_CACHE_DIR, beside these sources, in the user's cache."""
    if given := os.environ.get(_FOLDER):
        yield Path(given)
        return
    yield Path(__file__).parent / "__pycache__"
    with suppress(RuntimeError):  # no home folder
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minicnn"


def read(code: Code) -> Machine | None:
    """Return the machine code from disk; None if it is not there, or damaged."""
    name = _file_name(code)
    for folder in _folders():
        with suppress(OSError, ValueError):
            check_sum, _, content = (folder / name).read_bytes().partition(b"\n")
            if check_sum == _check_sum(content):
                symbol, _, data = content.partition(b"\n")
                return Machine(symbol.decode(), data)
    return None


def _check_sum(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def keep(code: Code, machine: Machine) -> None:
    """Write machine code into the first folder that takes it; a warning if there is none."""
    reason = "no folder can be written to"
    content = machine.symbol.encode() + b"\n" + machine.data
    for folder in _folders():
        path = folder / _file_name(code)
        unique = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            unique.write_bytes(_check_sum(content) + b"\n" + content)
            unique.replace(path)  # readers and other writers never see a part
            return
        except OSError as error:
            reason = str(error)
            with suppress(OSError):
                unique.unlink()
    _warn(reason)


@cache
def _warn(reason: str) -> None:
    """Log a warning once per reason (hence the cache), since dozens of functions are compiled."""
    logger.warning("compiled functions cannot be kept (%s); set NUMBA_CACHE_DIR to a folder with room", reason)
