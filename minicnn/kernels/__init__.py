"""Backends and their loader, `get_backend`.

A kernel is a free function, and a `Backend` collects the kernels of one or a
few modules as its attributes. Every kernel of `SIGNATURES` exists in every
backend under the same name with the same ordered arguments: outputs first,
then inputs, then workspace, then sizes. The caller owns every array;
a kernel allocates none, converts none and keeps no state.

Besides the kernels a backend has ``NAME`` and:

- ``empty(shape, dtype)``, ``zeros(shape, dtype)``: allocate an array;
- ``planes(shape, dtype, halo)``: zeros (N, C, H, W) in the backend's own memory
  layout, which may add zeros around each plane;
- ``upload(destination, source)``: copy from NumPy; ``download(array)``: to NumPy;
- ``workspace_size(kernel, **letters)``: least workspace size in elements;
- ``bind(kernel, *arguments)``: validate a call once, to be run many times;
- ``capture(run)``: record the bound calls that `run` makes, replayed as one if possible;
- ``Prefetcher(*destinations)``: copies batches, during computation if possible;
- ``all_reduce(comm)``: function that replaces an array by its sum over all
  processes of `minicnn.distributed`;
- ``memory_left()``: free bytes, or None; ``threads(count)``: context manager.
"""

import importlib
import inspect

from minicnn.kernels.backend import Backend
from minicnn.kernels.signatures import SIGNATURES

#: Backend name -> module with its `BACKEND`, fastest first. "cublas" is for comparison only; "auto" does not try it.
_MODULES = {"cupy": "cuda.backend", "numba": "cpu.backend", "numpy": "reference", "cublas": "cuda.cublas"}
_AUTOMATIC = ("cupy", "numba", "numpy")
_ADVICE = "; use numba or numpy"


class BackendError(RuntimeError):
    """Raised if a backend is unknown, cannot be used on this machine, or does not match the signature table."""


def check_backend(backend: Backend) -> None:
    """Check that a backend has every kernel of `SIGNATURES` with the same argument names in order.

    Raises
    ------
    BackendError
        If a kernel is missing or its arguments differ; the message names the first one.
    """
    for kernel, signature in SIGNATURES.items():
        function = getattr(backend, kernel, None)
        if function is None:
            raise BackendError(f"backend {backend.NAME!r} lacks the kernel {kernel}")
        expected = [argument.name for argument in signature.arguments]
        actual = list(inspect.signature(function).parameters)
        if actual != expected:
            raise BackendError(
                f"backend {backend.NAME!r}: {kernel} takes ({', '.join(actual)}), "
                f"the table says ({', '.join(expected)})"
            )


def get_backend(name: str) -> Backend:
    """Load the backend `name` and check it against the signature table.

    Raises
    ------
    BackendError
        If the name is unknown, or the backend cannot be used on this machine.
    """
    if name not in _MODULES:
        raise BackendError(f"unknown backend {name!r}: expected one of {', '.join(_MODULES)}")
    try:
        backend = importlib.import_module(f"minicnn.kernels.{_MODULES[name]}").BACKEND
    except ImportError as error:
        raise BackendError(f"backend {name!r} cannot be used here: {error}{_ADVICE}") from None
    check_backend(backend)
    return backend


def choose_backend(name: str) -> tuple[str, str]:
    """Resolve "auto" to the fastest backend that can be used on this machine.

    Parameters
    ----------
    name : str
        "auto" or the name of a backend.

    Returns
    -------
    name : str
        Name of the chosen backend.
    reason : str
        One line for the user: the chosen backend, and the reason why no faster one was chosen.

    Raises
    ------
    BackendError
        If a backend requested by name cannot be used, or "auto" finds none.
    """
    if name != "auto":
        get_backend(name)
        return name, f"backend {name}, as asked"
    reasons = []
    for candidate in _AUTOMATIC:
        try:
            get_backend(candidate)
        except BackendError as error:
            reasons.append(str(error).removesuffix(_ADVICE))
        else:
            return candidate, f"backend {candidate} ({'; '.join(reasons) or 'the fastest'})"
    raise BackendError("; ".join(reasons))
