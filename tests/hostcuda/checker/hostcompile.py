"""Compile unmodified CUDA C++ for the CPU with g++, and launch it under the checker of runtime.cpp.

Arrays are NumPy's and stand for device memory. What CUDA would do silently wrong is an error here.
"""

import ctypes
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

_HERE = Path(__file__).parent
_FLAGS = (
    "-std=c++17",
    "-fPIC",
    "-g1",
    "-w",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fno-gnu-unique",  # two libraries with a kernel of the same name have one each
    "-U_FORTIFY_SOURCE",
)
_CHECKS = (
    "-O1",
    "-fno-tree-sra",  # a vector stays one access
    "-fsanitize=thread",
    "--param=tsan-instrument-func-entry-exit=0",
    "-fsanitize=signed-integer-overflow,integer-divide-by-zero,bounds,shift",
)
_FAST = ("-O2",)
_MOST_GRID, _MOST_BLOCK = (2**31 - 1, 65535, 65535), (1024, 1024, 64)
_MOST_THREADS, _MOST_SHARED = 1024, 48 * 1024
_SECONDS = float(os.environ.get("ICNN_HOSTCUDA_SECONDS", 60))  # of one launch


class CompileError(Exception):
    """g++ refused the source, or there is no kernel of that name."""


class LaunchError(Exception):
    """A launch that CUDA would refuse, or whose arguments are not what the kernel takes."""


class KernelFault(Exception):
    """The checker's reports of one launch."""


# ---- which bytes of an allocation were ever written

_tracked: dict[int, np.ndarray] = {}  # address of an allocation -> a byte for each of its bytes: is it known?


def track(array: np.ndarray) -> None:
    """Say that a contiguous allocation holds nothing yet: kernels may not read what nobody has written."""
    address = array.ctypes.data
    _tracked[address] = np.zeros(array.nbytes, np.uint8)
    weakref.finalize(array, _tracked.pop, address, None).atexit = False


def _known(view: np.ndarray) -> np.ndarray | None:
    """The part of an allocation's bytes that begins with a view's first; None if it is not tracked."""
    address = view.ctypes.data
    for start, known in _tracked.items():
        if start <= address < start + known.size:
            return known[address - start :]
    return None


def mark_initialised(view: np.ndarray) -> None:
    """Say that the host has written all of a view."""
    known = _known(view) if view.size else None
    if known is not None:
        shape, strides = (*view.shape, view.itemsize), (*view.strides, 1)
        np.lib.stride_tricks.as_strided(known, shape, strides)[...] = 1


# ---- compilation


def _cache_folder() -> Path:
    folder = os.environ.get("ICNN_HOSTCUDA_CACHE")
    path = Path(folder) if folder else Path(tempfile.gettempdir()) / f"icnn-hostcuda-{os.getuid()}"
    path.mkdir(parents=True, exist_ok=True)
    return path


def _run(*arguments: object) -> None:
    environment = os.environ | {"LC_ALL": "C"}  # messages that can be compared
    done = subprocess.run(["g++", *map(str, arguments)], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise CompileError(lines[0] if lines else "g++ failed")


@cache
def _foundation() -> tuple[str, Path]:
    """A name for this compiler and these sources, and the folder with the compiled runtime and header."""
    try:
        version = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout
    except OSError:
        raise CompileError("g++ is needed to run CUDA kernels on the CPU") from None
    header, runtime = (_HERE / name for name in ("cuda_host.h", "runtime.cpp"))
    key = hashlib.sha256(repr((version, _FLAGS, _CHECKS, header.read_text(), runtime.read_text())).encode())
    name = key.hexdigest()[:16]
    folder = _cache_folder() / name
    if not folder.exists():
        # Made elsewhere and renamed: another process may be doing the same.
        with tempfile.TemporaryDirectory(dir=_cache_folder()) as made:
            _run("-c", *_FLAGS, "-O2", runtime, "-o", f"{made}/runtime.o")
            for kind, flags in (("checked", _CHECKS), ("fast", _FAST)):
                Path(made, kind).mkdir()
                Path(made, kind, "cuda_host.h").write_bytes(header.read_bytes())
                _run("-x", "c++-header", *_FLAGS, *flags, header, "-o", f"{made}/{kind}/cuda_host.h.gch")
            try:
                Path(made, "foundation").mkdir()
                for part in ("runtime.o", "checked", "fast"):
                    Path(made, part).rename(Path(made, "foundation", part))
                Path(made, "foundation").rename(folder)
            except OSError:
                if not folder.exists():
                    raise
    return name, folder


_SHARED = re.compile(r"extern\s+__shared__\s+(?:__align__\(\d+\)\s+)?([\w ]+?)\s+(\w+)\s*\[\s*\]\s*;")
_KERNEL = re.compile(r"(template\s*<[^>]*>\s*)?__global__\s+void\s*")


def _bounds(code: str) -> str:
    """For every kernel a constant: the first argument of its __launch_bounds__, which may depend on the template's."""
    found = []
    for match in _KERNEL.finditer(code):
        rest, most = code[match.end() :], str(_MOST_THREADS)
        if rest.startswith("__launch_bounds__"):
            depth, start = 0, rest.index("(")
            for end in range(start, len(rest)):
                depth += {"(": 1, ")": -1}.get(rest[end], 0)
                if not depth:
                    break
            most, rest = f"cu_first({rest[start + 1 : end]})", rest[end + 1 :]
        name = rest.lstrip().partition("(")[0].strip()
        found.append(f"{match[1] or ''}constexpr int cu_bound_{name} = {most};")
    return "\n".join(found)


def _translate(code: str, names: Sequence[str]) -> str:
    """The source as g++ takes it: dynamic shared memory has an address, and kernels introduce themselves."""
    if re.search(r"__shared__", _SHARED.sub("", code)):
        raise CompileError("static __shared__ memory: kernels use dynamic shared memory")
    code = _SHARED.sub(r"\1* const \2 = reinterpret_cast<\1*>(cu_thread.shared);", code)
    entries = "".join(f'CuEntry<&{name}>::enter("{name}", cu_bound_{name});\n' for name in names)
    return (
        f'#include "cuda_host.h"\n#line 1 "kernels.cu"\n{code}\n#line 1 "registration"\n{_bounds(code)}\n'
        f"static const bool cu_entered = [] {{\n{entries}return true;\n}}();\n"
    )


def build(code: str, names: Sequence[str], checked: bool = True) -> Path:
    """Compile a source with some of its kernels, unless that is in the cache; returns the shared library."""
    name, foundation = _foundation()
    text = _translate(code, names)
    library = _cache_folder() / (hashlib.sha256(repr((name, text, checked)).encode()).hexdigest()[:20] + ".so")
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=_cache_folder()) as made:
            source, target = Path(made, "kernels.cpp"), Path(made, "kernels.so")
            source.write_text(text, encoding="utf-8")
            flags, folder = (_CHECKS, "checked") if checked else (_FAST, "fast")
            _run("-c", f"-I{foundation / folder}", *_FLAGS, *flags, source, "-o", f"{made}/kernels.o")
            _run("-shared", "-Wl,-Bsymbolic", f"{made}/kernels.o", foundation / "runtime.o", "-o", target)
            target.rename(library)
    return library


# ---- launches


class _Array(ctypes.Structure):
    """`CuArray` of runtime.cpp."""

    _fields_ = (
        ("begin", ctypes.c_size_t),
        ("end", ctypes.c_size_t),
        ("period", ctypes.c_size_t),
        ("length", ctypes.c_size_t),
        ("known", ctypes.c_void_p),
        ("read_only", ctypes.c_int),
    )


def _described(view: np.ndarray, read_only: bool) -> _Array:
    """The bytes that a kernel may touch: a view's own, whose images may lie apart."""
    begin = view.ctypes.data
    if not view.size:
        return _Array(begin, begin, 1, 0, None, read_only)
    known = _known(view)
    end = begin + sum((n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True)) + view.itemsize
    period = length = end - begin
    if view.ndim > 1 and not view.flags.c_contiguous and view[0].flags.c_contiguous:
        period, length = view.strides[0], view[0].nbytes
    return _Array(begin, end, period, length, None if known is None else known.ctypes.data, read_only)


class Module:
    """Kernels of one source.

    Parameters
    ----------
    code : str
        CUDA C++ without includes.
    names : sequence of str
        Kernels, also template instances such as "copy<float, 4>".
    checked : bool
        Look at every access; otherwise compile for speed.

    Raises
    ------
    CompileError
    """

    def __init__(self, code: str, names: Sequence[str], checked: bool = True):
        self._checked = checked
        self._library = library = ctypes.CDLL(str(build(code, names, checked)))
        library.cu_name.restype = library.cu_signature.restype = library.cu_report.restype = ctypes.c_char_p
        library.cu_bytes_read.restype = ctypes.c_long
        self._kernels = {library.cu_name(i).decode(): i for i in range(library.cu_count())}

    def bytes_read(self) -> tuple[int, int]:
        """What the last launch read from global and from shared memory, as checked code counts it."""
        return self._library.cu_bytes_read(0), self._library.cu_bytes_read(1)

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence,
        shared: int = 0,
        order: int = 0,
        seed: int = 0,
        max_blocks: int | None = None,
    ) -> None:
        """Run a kernel to its end.

        Parameters
        ----------
        args : sequence of NumPy arrays and scalars
            A plain int goes as int64 and a float as float64, as with CuPy.
        order : int
            Of threads and blocks: 0 ascending, 1 descending, 2 shuffled by `seed`.
        max_blocks : int, optional
            Run only the first so many of them.

        Raises
        ------
        LaunchError, KernelFault
        """
        number = self._kernels[name]
        sizes = [_checked_size(name, "grid", grid, _MOST_GRID), _checked_size(name, "block", block, _MOST_BLOCK)]
        most = min(self._library.cu_most_threads(number), _MOST_THREADS)
        if int(np.prod(sizes[1])) > most:
            raise LaunchError(f"{name}: expected at most {most} threads in a block, got {sizes[1]}")
        if not 0 <= shared <= _MOST_SHARED:
            raise LaunchError(f"{name}: expected at most {_MOST_SHARED} bytes of shared memory, got {shared}")
        kinds = self._library.cu_signature(number).decode().split()
        if len(args) != len(kinds):
            raise LaunchError(f"{name}: expected {len(kinds)} arguments, got {len(args)}")
        kept, arrays = [], []
        for position, (given, kind) in enumerate(zip(args, kinds, strict=True)):
            value = _argument(f"{name}: argument {position}", given, kind)
            kept.append(value)
            if kind[0] != "S":
                arrays.append(_described(given, kind[0] == "R"))
        pointers = (ctypes.c_void_p * len(kept))(*(ctypes.addressof(value) for value in kept))
        count = self._library.cu_launch(
            number, *((ctypes.c_uint * 3)(*size) for size in sizes), ctypes.c_long(shared), pointers, len(arrays),
            (_Array * max(len(arrays), 1))(*arrays), order, ctypes.c_uint(seed & 0xFFFFFFFF), int(self._checked),
            ctypes.c_long(sys.maxsize if max_blocks is None else max_blocks), ctypes.c_double(_SECONDS),
        )  # fmt: skip
        if count:
            reports = [self._library.cu_report(i).decode() for i in range(min(count, 4))]
            raise KernelFault("\n  ".join([f"{name}: {count} reports", *reports]))
        if not self._checked:  # nobody has looked at which bytes were written
            for given, kind in zip(args, kinds, strict=True):
                if kind[0] == "W":
                    mark_initialised(given)


def _checked_size(name: str, what: str, size: Sequence[int], most: Sequence[int]) -> tuple[int, ...]:
    padded = (*map(int, size), *(1,) * (3 - len(size)))
    if len(padded) != 3 or not all(1 <= count <= limit for count, limit in zip(padded, most, strict=True)):
        raise LaunchError(f"{name}: expected a {what} from 1 to {most}, got {tuple(size)}")
    return padded


_SCALARS = {bool: "b1", int: "i8", float: "f8"}


def _argument(where: str, given, kind: str):
    """What a pointer to which is passed: the array's address, or the number."""
    expected = kind[1:]
    if kind[0] != "S":
        if not isinstance(given, np.ndarray):
            raise LaunchError(f"{where}: expected an array, got {type(given).__name__}")
        if expected != "??" and given.dtype.str[1:] != expected:
            raise LaunchError(f"{where}: expected a pointer to {expected}, got an array of {given.dtype}")
        return ctypes.c_void_p(given.ctypes.data)
    if isinstance(given, np.ndarray):
        raise LaunchError(f"{where}: expected a number, got an array")
    dtype = given.dtype.str[1:] if isinstance(given, np.generic) else _SCALARS.get(type(given), "?")
    if dtype != expected:
        raise LaunchError(f"{where}: expected {expected}, got {type(given).__name__} {given!r}")
    value = np.array(given, dtype)
    return (ctypes.c_char * value.nbytes).from_buffer_copy(value.tobytes())
