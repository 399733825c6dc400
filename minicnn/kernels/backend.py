"""Class `Backend`: the kernels and array functions of one backend as attributes of one object."""

from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from minicnn.kernels.signatures import SIGNATURES
from minicnn.kernels.validation import Check

#: Functions of a backend besides its kernels; `minicnn.kernels` says what each does.
_FUNCTIONS = (
    "Prefetcher", "all_reduce", "capture", "download", "empty", "memory_left", "planes", "threads", "upload", "zeros",
)  # fmt: skip


class Backend:
    """Kernels and array functions of one backend, as attributes.

    Parameters
    ----------
    name : str
    functions : mapping of str to callable
        Kernels, and the functions besides them, by name; other entries are ignored.
    prepare : callable
        Takes a kernel of `functions` and all its arguments; returns a function that runs the kernel on them.
    check : type of Check or None
        Validator of calls; None if they are not validated.
    **more
        Further attributes.
    """

    def __init__(
        self,
        name: str,
        functions: Mapping[str, Any],
        prepare: Callable[..., Callable[[], None]] = partial,
        check: type[Check] | None = None,
        **more,
    ):
        self.NAME = name
        self._kernels = {kernel: functions[kernel] for kernel in SIGNATURES if kernel in functions}
        self._prepare = prepare
        self._checks = {kernel: check(kernel, self.workspace_size) for kernel in SIGNATURES} if check else {}
        vars(self).update({one: functions[one] for one in _FUNCTIONS}, **more)
        vars(self).update({kernel: self._checked(kernel) for kernel in self._kernels})

    def _checked(self, kernel: str) -> Callable[..., None]:
        @wraps(self._kernels[kernel])
        def call(*arguments) -> None:
            self.bind(kernel, *arguments)()

        return call

    def bind(self, kernel: str, *arguments) -> Callable[[], None]:
        """Return a call of a kernel without arguments, validated and prepared once, to be run many times.

        Parameters
        ----------
        kernel : str
            Name of the kernel.
        *arguments : arrays and numbers
            All arguments of the kernel, in the order of its signature.

        Raises
        ------
        ValueError
            If the backend validates calls and the arguments do not match the signature table.
        """
        if kernel in self._checks:
            self._checks[kernel](arguments)
        return self._prepare(self._kernels[kernel], *arguments)

    def workspace_size(self, kernel: str, **size: int) -> int:
        """Return the number of workspace elements that `kernel` needs, sufficient for float32 and float64.

        Parameters
        ----------
        kernel : str
            Name of the kernel.
        **size : int
            Sizes by shape letter, such as ``N=16``; see `minicnn.kernels.signatures`.
        """
        rule = self._kernels[kernel].workspace
        return rule(**size) if rule else 0

    if TYPE_CHECKING:  # the kernels and functions

        def __getattr__(self, name: str) -> Any: ...
