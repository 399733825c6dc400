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

    def __init__(self, name: str, machine: "Machine | Future[Machine]"):
        self.name = name
        self._machine = machine
        self._loading = threading.Lock()
        self._function = None
        self._address = 0

    @property
    def address(self) -> int:
        """Address of the function; waits until it is compiled."""
        if self._function is None:
            with self._loading:
                if self._function is None:
                    machine = self._machine if isinstance(self._machine, Machine) else self._machine.result()
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

    def is_here(self) -> bool:
        """Return True if the code is compiled."""
        return isinstance(self._machine, Machine) or self._machine.done()


def check(status: int, name: str) -> None:
    """Raise RuntimeError if a compiled function did not return normally."""
    if status:
        raise RuntimeError(f"kernel {name} failed with status {status}")


def order(code: Code) -> Ordered:
    """Return the code of a kernel: loaded before, read from disk, or being compiled from now on."""
    with _ordering:
        if code not in _ordered:
            _ordered[code] = Ordered(code.source.partition(":")[2], read(code) or compiled(code))
        return _ordered[code]


_ordering = threading.Lock()
_ordered: dict[Code, Ordered] = {}


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
    """After a fork the child has none of the threads that compile, and maybe a lock that nobody opens."""
    global _ordering
    _ordering = threading.Lock()
    for code in [code for code, ordered in _ordered.items() if not ordered.is_here()]:
        del _ordered[code]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
