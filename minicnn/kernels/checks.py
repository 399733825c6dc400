"""What every call of a compiled kernel is held to: compiled code that is given a wrong array crashes or lies."""

from collections.abc import Callable
from functools import cache, wraps

import numpy as np

from minicnn.kernels import SIGNATURES, Argument


def checked(scratch_size: Callable[..., int]) -> Callable[[Callable], Callable]:
    """Decorator for a backend's kernels: before each call compare the arguments with the table.

    The function's name says which kernel it is; `scratch_size` is the backend's. The kernel then raises

    ValueError
        For other numbers, shapes or dtypes of arguments, rows (or whole parameters) that are not contiguous, read-only
        or unaligned memory, too little scratch, labels out of range, or scalars that lead out of an array.
    """

    def decorate(function: Callable) -> Callable:
        name = getattr(function, "__name__", "")
        table = SIGNATURES[name]

        @cache
        def least_scratch(*letters: tuple[str, int]) -> int:
            return scratch_size(name, **dict(letters))

        @wraps(function)
        def call(*given) -> None:
            if len(given) != len(table):
                raise ValueError(f"{name}: expected {len(table)} arguments, got {len(given)}")
            float_type = getattr(given[0], "dtype", None)
            letters: dict[str, int] = {}
            scalars: dict[str, float] = {}
            scratch = None
            for argument, value in zip(table, given, strict=True):
                if argument.role == "scalar":
                    scalars[argument.name] = value
                    continue
                if problem := _problem(argument, value, float_type):
                    raise ValueError(f"{name}: {argument.name}: {problem}")
                if argument.role == "scratch":
                    scratch = value
                    continue
                for letter, length in zip(argument.shape, value.shape, strict=True):
                    if letters.setdefault(letter, length) != length:
                        expected = ", ".join(f"{letter}={letters[letter]}" for letter in argument.shape)
                        raise ValueError(f"{name}: {argument.name}: expected shape ({expected}), got {value.shape}")
            if problem := _mismatch(name, letters, scalars):
                raise ValueError(f"{name}: {problem}")
            if name.startswith("softmax"):
                labels = given[[argument.name for argument in table].index("t")]
                if labels.min() < 0 or labels.max() >= letters["L"]:
                    raise ValueError(f"{name}: t: expected labels from 0 to {letters['L'] - 1}")
            if scratch is not None and scratch.size < (least := least_scratch(*letters.items())):
                raise ValueError(f"{name}: expected at least {least} elements of scratch, got {scratch.size}")
            function(*given)

        return call

    return decorate


#: Letters of channels that may be 0.
_MAY_BE_NONE = {"E", "F", "G"}


def _problem(argument: Argument, value, float_type) -> str:
    """What is wrong with one array by itself; nothing: ""."""
    if not isinstance(value, np.ndarray):
        return f"expected a NumPy array, got {type(value).__name__}"
    kind = float_type if argument.dtype == "float" else np.dtype(argument.dtype)
    if value.dtype != kind or float_type.char not in "fd":
        return f"expected float32 or float64, one for all (labels int32), got {value.dtype}"
    dimensions = 1 if argument.role == "scratch" else len(argument.shape)
    if value.ndim != dimensions:
        return f"expected {dimensions} dimensions, got shape {value.shape}"
    planes = dimensions == 4 and "K" not in argument.shape
    if planes and value.strides[3] != value.itemsize and value.shape[3] > 1:
        return "expected rows of contiguous numbers"
    if not planes and not value.flags.c_contiguous:
        return "expected a C-contiguous array"
    if 0 in value.shape and not _MAY_BE_NONE.intersection(argument.shape) and argument.role != "scratch":
        return f"expected no empty dimension, got shape {value.shape}"
    if not value.flags.behaved:
        return "expected an aligned, writable array in the machine's byte order"
    return ""


def _mismatch(name: str, size: dict[str, int], scalar: dict[str, float]) -> str:
    """What is wrong with sizes and scalars together; nothing: ""."""
    window, stride = scalar.get("window", 1), scalar.get("stride", scalar.get("window", 1))
    border, factor, offset = scalar.get("border", 0), scalar.get("factor", 1), scalar.get("offset", 0)
    if "pool2d" in name:
        if not (0 <= border < window and 1 <= stride and window - border <= stride):
            return f"expected 0 <= border < window <= stride + border, got {window=}, {stride=}, {border=}"
        if (size["H"], size["W"]) != (size["P"] * stride, size["Q"] * stride):
            return f"expected planes {stride} times smaller, got {size}"
    if name.startswith("upsample"):
        if (size["P"], size["Q"]) != (size["H"] * factor, size["W"] * factor) or size["D"] < size["C"]:
            return f"expected planes {factor} times larger and D >= C, got {size}"
    if name == "parity_maps" and not 0 <= offset <= size["D"] - 2:
        return f"expected an offset from 0 to D - 2, got {offset} of {size}"
    if name.startswith("concat") and not 0 <= offset <= size["D"] - size["C"]:
        return f"expected an offset from 0 to D - C, got {offset} of {size}"
    if name.startswith("interlink"):
        counts = [size[letter] for letter in "EFG" if letter in size]
        if any(count not in (0, size["C"]) for count in counts):
            return f"expected as many channels as y or none, got {size}"
        if size["E"] and (size["H"], size["W"]) != (2 * size["P"], 2 * size["Q"]):
            return f"expected pooled planes of half the size, got {size}"
        if size["F"] and (size["R"], size["S"]) != (2 * size["H"], 2 * size["W"]):
            return f"expected upsampled planes of twice the size, got {size}"
    return ""
