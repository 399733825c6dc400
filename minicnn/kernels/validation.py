"""Argument validation of kernel calls: compiled kernels given a wrong array crash or return garbage."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from minicnn.kernels.signatures import SIGNATURES, Argument


class Check:
    """Validator that compares the arguments of a kernel call with the signature table.

    Parameters
    ----------
    name : str
        Name of the kernel.
    workspace_size : callable
        The backend's `workspace_size`, which returns the minimum workspace length in elements.
    """

    array_type: type = np.ndarray
    array_name = "a NumPy array"

    def __init__(self, name: str, workspace_size: Callable[..., int]):
        self._name = name
        self._table, self._size_rule = SIGNATURES[name].arguments, SIGNATURES[name].size_rule
        self._least_workspace = cache(lambda *letters: workspace_size(name, **dict(letters)))

    def __call__(self, given: Sequence) -> None:
        """Validate the arguments of one call.

        Parameters
        ----------
        given : sequence
            All arguments of the kernel in the order of its signature.

        Raises
        ------
        ValueError
            If the number of arguments, a shape or a dtype is wrong; if rows (or whole parameters) are not contiguous;
            if memory is read-only or unaligned; if the workspace is too small; if labels are out of range; or if
            scalars would lead to accesses outside an array.
        """
        name, table = self._name, self._table
        if len(given) != len(table):
            raise ValueError(f"{name}: expected {len(table)} arguments, got {len(given)}")
        float_type = getattr(given[0], "dtype", None)
        letters: dict[str, int] = {}
        scalars: dict[str, float] = {}
        workspace = labels = None
        for argument, value in zip(table, given, strict=True):
            if argument.role == "scalar":
                scalars[argument.name] = value
                continue
            if problem := self._problem(argument, value, float_type):
                raise ValueError(f"{name}: {argument.name}: {problem}")
            if argument.role == "workspace":
                workspace = value
                continue
            if argument.dtype == "int32":
                labels = value
            for letter, length in zip(argument.shape, value.shape, strict=True):
                if letters.setdefault(letter, length) != length:
                    expected = ", ".join(f"{letter}={letters.get(letter, 'any')}" for letter in argument.shape)
                    raise ValueError(f"{name}: {argument.name}: expected shape ({expected}), got {value.shape}")
        if problem := self._size_rule(letters, **scalars):
            raise ValueError(f"{name}: {problem}")
        if labels is not None and (problem := self._labels_problem(labels, letters["L"])):
            raise ValueError(f"{name}: {problem}")
        if workspace is not None and workspace.size < (least := self._least_workspace(*letters.items())):
            raise ValueError(f"{name}: expected at least {least} elements of workspace, got {workspace.size}")

    def _problem(self, argument: Argument, value, float_type) -> str:
        """Return an error message for one array considered alone, or "" if it is valid."""
        if not isinstance(value, self.array_type):
            return f"expected {self.array_name}, got {type(value).__name__}"
        kind = float_type if argument.dtype == "float" else np.dtype(argument.dtype)
        if value.dtype != kind or not value.dtype.isnative or float_type.char not in "fd":
            return f"expected float32 or float64 for all (labels: int32) in the machine's byte order, got {value.dtype}"
        dimensions = 1 if argument.role == "workspace" else len(argument.shape)
        if value.ndim != dimensions:
            return f"expected {dimensions} dimensions, got shape {value.shape}"
        if 0 in value.shape and not _MAY_BE_NONE.intersection(argument.shape) and argument.role != "workspace":
            return f"expected no empty dimension, got shape {value.shape}"
        return self._layout_problem(value, dimensions == 4 and "K" not in argument.shape)

    def _layout_problem(self, value, is_planes: bool) -> str:
        """Return an error message for the memory layout of an array, or "" if it is valid."""
        if is_planes and value.strides[3] != value.itemsize and value.shape[3] > 1 and value.size:
            return "expected rows of contiguous numbers"
        if not is_planes and not value.flags.c_contiguous:
            return "expected a C-contiguous array"
        if not value.flags.behaved:
            return "expected an aligned, writable array"
        return ""

    def _labels_problem(self, labels, count: int) -> str:
        """Return an error message for label values outside 0 .. count - 1, or "" if there are none."""
        if labels.min() < 0 or labels.max() >= count:
            return f"expected labels from 0 to {count - 1}"
        return ""


#: Shape letters of channel counts that may be 0.
_MAY_BE_NONE = {"E", "F", "G"}
