"""Compiled code in this process: read from disk in milliseconds, or compiled by another process (`processes`).

Compilation begins when a call is prepared; this process waits where it needs the result.
"""

import ctypes
import os
import sys
import threading
from concurrent.futures import Future

import llvmlite.binding as llvm

from minicnn.kernels.cpu.processes import compiled
from minicnn.kernels.cpu.store import Code, Machine, read

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()

# int status(result, error, arguments, first task, end, thread): how Numba's functions are called.
_Function = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_void_p] * 3, *[ctypes.c_ssize_t] * 3)
#: Where functions write a result and an error, of which there are none.
_IGNORED = ctypes.addressof(_memory := ctypes.create_string_buffer(64))


class Ordered:
    """Compiled code that may still be on its way."""

    def __init__(self, code: Code):
        self.name = code.source.partition(":")[2]
        self._code = code
        self._machine: Machine | Future[Machine] | None = None
        self._function = None
        self._address = 0

    def begin(self) -> "Machine | Future[Machine]":
        """Read the code from disk, or let it be compiled, at the first call."""
        with _lock:
            if self._machine is None:
                self._machine = read(self._code) or compiled(self._code)
            return self._machine

    @property
    def address(self) -> int:
        """Address of the function; waits until it is compiled."""
        if self._function is None:
            machine = self.begin()
            machine = machine if isinstance(machine, Machine) else machine.result()
            with _lock:
                if self._function is None:
                    self._address = _load(machine)
                    self._function = _Function(self._address)
        return self._address

    def call(self, arguments: int, first: int, end: int, thread: int) -> None:
        """Run tasks `first` to `end` - 1; `arguments` is the address of the packed arguments.

        Raises
        ------
        RuntimeError
            If the function raised an exception.
        """
        address = self.address  # loads the function
        assert address and self._function
        check(self._function(_IGNORED, _IGNORED, arguments, first, end, thread), self.name)

    def forget(self) -> None:
        """Begin anew if the code is not loaded: what is on its way does not reach a forked process."""
        if self._function is None:
            self._machine = None


def check(status: int, name: str) -> None:
    """Raise RuntimeError if a compiled function did not return normally."""
    if status:
        raise RuntimeError(f"kernel {name} failed with status {status}")


def order(code: Code) -> Ordered:
    """Return the code of a kernel: loaded before, read from disk, or being compiled from now on."""
    ordered = _ordered.setdefault(code, Ordered(code))
    ordered.begin()
    return ordered


_ordered: dict[Code, Ordered] = {}
#: Held while code is read, ordered or loaded, and while the process forks: a child would wait forever for a lock, ours
#: or LLVM's, of a thread that it lacks.
_lock = threading.RLock()


def _load(machine: Machine) -> int:
    """Load machine code and return the address of its function."""
    if sys.platform == "win32":
        import numba  # noqa: F401  # tells LLVM where the functions of the C library are
    target = llvm.Target.from_default_triple().create_target_machine(jit=True)
    module = llvm.parse_assembly("")
    module.triple = llvm.get_process_triple()
    engine = llvm.create_mcjit_compiler(module, target)
    engine.add_object_file(llvm.ObjectFileRef.from_data(machine.data))
    engine.finalize_object()
    address = engine.get_function_address(machine.symbol)
    engine.detach()  # threads may be inside until the process ends
    return address


def _forget_threads() -> None:
    """After a fork the child has none of the threads that compile."""
    for ordered in _ordered.values():
        ordered.forget()
    _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_forget_threads)
