"""Class `Kernel`: a compiled function that the backend calls with arrays."""

from collections.abc import Callable, Sequence
from inspect import Parameter, Signature

import numpy as np

from minicnn.kernels import signatures
from minicnn.kernels.cpu import loading, threads
from minicnn.kernels.cpu.store import Code

#: Words of signatures -> kinds of arguments, as in `Code`. {} stands for the float type; "any" for the argument's own
#: type and layout.
_KINDS = {
    "int": "int64",
    "bool": "bool",
    "float": "{}",
    "places": "int64[1C]",
    "table": "int64[2C]",
    "labels": "int32[3C]",
    "number": "{}[0C]",
    "flat": "{}[1C]",
    "flat2": "{}[2C]",
    "pixels": "{}[3C]",
    "weights": "{}[4C]",
    "planes": "{}[4A]",
    "packed": "{}[5C]",
    "mask": "bool[2C]",
    "ids": "uint8[2C]",
    "matrix": "float64[2C]",
    "numbers": "float64[1C]",
    "image": "any[3]",
}

#: Names of the types of arrays; looking one up here is faster than dtype.name.
_NAMES = {np.dtype(name): name for name in ("float32", "float64", "int32", "int64", "uint8", "bool")}


def one(*_) -> int:
    """Return 1: the kernel does all in one task."""
    return 1


def one_a_plane(x: np.ndarray, *_) -> int:
    """Return N * C, the number of planes of the first argument: one task per plane."""
    return x.shape[0] * x.shape[1]


def one_a_plane_of_second(_, x: np.ndarray, *rest) -> int:
    """Return the number of planes of the second argument, if the first has more."""
    return one_a_plane(x)


class Kernel:
    """A function of numbered tasks, compiled or loaded at its first use, that threads share.

    The function takes (first task, end of the tasks, number of the thread), then its arguments. It works with any
    memory: the signature says which type, dimensions and layout each argument has, so that one compilation serves
    contiguous arrays and planes with a halo.

    Parameters
    ----------
    source : str
        "module:name" of the function, or of a function that makes it from `constants`.
    signature : str
        A word for each argument, separated by spaces. "planes" are float arrays (N, C, H, W) of any strides; "flat"
        (1-d), "flat2" (2-d), "pixels" (3-d), "weights" (4-d), "packed" (5-d) and "number" (0-d) are C-contiguous float
        arrays, "float" a number; "places" (1-d) and "table" (2-d) int64; "labels" (3-d) int32; "mask" (2-d) bool; "ids"
        (2-d) uint8; "numbers" (1-d) and "matrix" (2-d) float64; "image" (3-d) of any type and layout. "flat" and so on
        of one call have the type of its first float array.
    tasks : callable
        Return the number of tasks for given arguments.
    constants : tuple of int
        What `source` makes the function from; () if it is the function itself.
    strict : bool
        True to compile floating-point operations as they are written. False lets the compiler fuse multiplications and
        additions and reorder sums; NaN and infinities stay correct.
    """

    workspace: Callable[..., int] | None  # only of those in the signature table

    def __init__(
        self,
        source: str,
        signature: str,
        tasks: Callable[..., int] = one_a_plane,
        constants: tuple[int, ...] = (),
        strict: bool = False,
    ):
        self.source = source
        self.constants = constants
        self.strict = strict
        self.__name__ = source.partition(":")[2]
        self._words = signature.split()
        self._tasks = tasks

    def __call__(self, *arguments) -> None:
        self.bind(*arguments)()

    def bind(self, *arguments) -> Callable[[], None]:
        """Return the call with these arguments, whose addresses and sizes are packed once.

        Raises
        ------
        TypeError
            If an argument is of another kind than the signature says: compiled code would read and write anywhere.
        """
        kinds = self._kinds(arguments)
        numbers = [number for given in zip(arguments, kinds, strict=True) for number in _numbers(*given)]
        packed = np.array(numbers, np.int64)
        place, count = packed.ctypes.data, self._tasks(*arguments)
        code = loading.order(Code(self.source, self.constants, kinds, self.strict))
        if count > 1:
            threads.prepare()

        def run(_kept=(arguments, packed)) -> None:  # they must live as long as their addresses are used
            most = threads.current()
            if most == 1 or count < 2:
                code.call(place, 0, count, 0)
            else:
                threads.share(code, place, count, most)

        return run

    def _kinds(self, arguments: Sequence) -> tuple[str, ...]:
        """Return the kind of each argument; the float type is that of the first float array."""
        arrays = (argument for argument in arguments if isinstance(argument, np.ndarray))
        real = next((_NAMES.get(array.dtype, "float32") for array in arrays if array.dtype.char in "fd"), "float32")
        kinds = []
        for word, argument in zip(self._words, arguments, strict=True):
            kind = _KINDS[word].format(real)
            if kind.startswith("any"):
                kind = f"{_NAMES.get(argument.dtype, 'uint8')}[{kind[4]}{'C' if argument.flags.c_contiguous else 'A'}]"
            kinds.append(kind)
        return tuple(kinds)


def _numbers(argument, kind: str) -> list[int]:
    """Return an argument as integers: address, shape and strides of an array, the bits of a float."""
    dtype, _, form = kind.partition("[")
    if form:
        is_array = isinstance(argument, np.ndarray)
        right = is_array and (_NAMES.get(argument.dtype), argument.ndim) == (dtype, int(form[0]))
        if not (right and (form[1] == "A" or argument.flags.c_contiguous)):
            got = f"{getattr(argument, 'dtype', type(argument))} of shape {getattr(argument, 'shape', None)}"
            raise TypeError(f"expected a {form[0]}-d array of {dtype}{', contiguous' * (form[1] == 'C')}; got {got}")
        return [argument.ctypes.data, *argument.shape, *argument.strides]
    if dtype.startswith("float"):
        return [np.float64(argument).view(np.int64).item()]
    return [int(argument)]


def table_kernel(
    module: str,
    name: str,
    signature: str,
    tasks: Callable[..., int] = one_a_plane,
    workspace: Callable[..., int] | None = None,
) -> Kernel:
    """Make a kernel of the signature table, whose function is in `module`; the docstring comes from the table."""
    made = Kernel(f"{module}:{name}", signature, tasks)
    names = [argument.name for argument in signatures.SIGNATURES[name].arguments]
    made.__signature__ = Signature([Parameter(one, Parameter.POSITIONAL_OR_KEYWORD) for one in names])  # pyright: ignore[reportAttributeAccessIssue]
    return signatures.kernel(workspace)(made)
