"""Backends, and `get_backend`.

A backend is a module of free functions. Every kernel of `SIGNATURES` exists in
every backend under the same name with the same ordered arguments: outputs
first, then inputs, then scratch, then sizes. The caller owns every array; a
kernel allocates none, converts none and keeps no state.

Besides the kernels a backend has ``NAME``, ``empty(shape, dtype)``,
``zeros(shape, dtype)``, ``planes(shape, dtype, halo)`` (zeros (N, C, H, W) in
the backend's own layout, with zeros around each plane if it likes them),
``upload(destination, source)`` (from NumPy), ``download(array)`` (to NumPy),
``scratch_size(kernel, **letters)``, ``bind(kernel, *arguments)`` (a call that
is looked at once and made many times), ``record(run)`` (a function that makes
all bound calls that `run` makes, as one if it can), ``Feed(*destinations)``
(brings batches, while others are computed if it can), ``all_reduce(comm)`` (a
function that replaces an array, in every process of `minicnn.distributed`, by the
sum of all), ``memory_left()`` (bytes, or None) and ``threads(count)``, a context
manager.
"""

import importlib
import inspect
from types import ModuleType

from minicnn.kernels.signatures import SIGNATURES

#: Fastest first, and one to compare with that "auto" does not try.
_MODULES = {"cupy": "cuda.backend", "numba": "cpu.backend", "numpy": "reference", "cublas": "cuda.cublas"}
_AUTOMATIC = ("cupy", "numba", "numpy")
_ADVICE = "; use numba or numpy"


class BackendError(RuntimeError):
    """A backend is unknown, cannot be used on this machine, or breaks the signature table."""


def check_backend(module: ModuleType) -> None:
    """Compare a backend with `SIGNATURES`.

    Raises
    ------
    BackendError
        Naming the first kernel that is missing or whose arguments differ.
    """
    for kernel, arguments in SIGNATURES.items():
        function = getattr(module, kernel, None)
        if function is None:
            raise BackendError(f"backend {module.NAME!r} lacks the kernel {kernel}")
        expected = [argument.name for argument in arguments]
        actual = list(inspect.signature(getattr(function, "py_func", function)).parameters)
        if actual != expected:
            raise BackendError(
                f"backend {module.NAME!r}: {kernel} takes ({', '.join(actual)}), the table says ({', '.join(expected)})"
            )


def get_backend(name: str) -> ModuleType:
    """Load the backend `name` and check it against the table.

    Raises
    ------
    BackendError
        If the name is unknown or the backend cannot be used here.
    """
    if name not in _MODULES:
        raise BackendError(f"unknown backend {name!r}: expected one of {', '.join(_MODULES)}")
    try:
        module = importlib.import_module(f"minicnn.kernels.{_MODULES[name]}")
    except ImportError as error:
        raise BackendError(f"backend {name!r} cannot be used here: {error}{_ADVICE}") from None
    check_backend(module)
    return module


def choose_backend(name: str) -> tuple[str, str]:
    """Resolve "auto" to the fastest backend that can be used here.

    Returns
    -------
    name : str
    reason : str
        One line for the user: which backend, and why not a faster one.

    Raises
    ------
    BackendError
        If a backend asked for by name cannot be used.
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
