"""An exercise: a function to write, ours, and its typical mistakes, each of which is recognised by its results."""

import ast
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

#: Results that differ by more than this, relative to the largest number, are wrong.
TOLERANCE = 1e-8

OPEN, WRONG, UNUSABLE = "open", "wrong", "unusable"


class Finding(NamedTuple):
    """Why a function does not pass: OPEN, WRONG or UNUSABLE (not a result of the right form), and one line of text."""

    kind: str
    text: str


@dataclass(frozen=True)
class Exercise:
    """A function to write.

    Attributes
    ----------
    solution : callable
        Our function; its name, arguments and docstring are those of the learner's.
    results : tuple of str
        Names of what it returns.
    inputs : callable
        numpy.random.Generator -> list of argument tuples.
    mistakes : dict of str to callable
        What a typical mistake is called -> the function that makes it, with None for results that it leaves right.
    hint : str
        One sentence that helps to begin.
    """

    solution: Callable[..., Any]
    results: tuple[str, ...]
    inputs: Callable[[np.random.Generator], list[tuple]]
    mistakes: dict[str, Callable[..., Any]]
    hint: str

    @property
    def name(self) -> str:
        """Name of the function."""
        return self.solution.__name__

    @property
    def about(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.solution) or "").partition("\n")[0]

    @property
    def source(self) -> str:
        """Source of our function."""
        return inspect.getsource(self.solution)

    def template(self, number: int) -> str:
        """Return the file that the learner begins with: our function without its body."""
        (function,) = ast.parse(self.source).body
        assert isinstance(function, ast.FunctionDef)
        head = "\n".join(self.source.splitlines()[: function.body[0].end_lineno])
        command = f"python -m icnn.exercise check {number}"
        return (
            f'"""Exercise {number}, {self.name}. Write the function, then: {command}"""\n\n'
            f"import numpy as np\n\n\n{head}\n    raise NotImplementedError\n"
        )

    def judge(self, function: Callable[..., Any]) -> Finding | None:
        """Compare a function with ours; None if all of its results are right."""
        cases = self.inputs(np.random.default_rng(0))
        named = list(inspect.signature(self.solution).parameters)
        given = []
        for arguments in cases:
            own = [_copy(argument) for argument in arguments]
            given.append(self._tuple(function(*own)))
            for name, before, after in zip(named, arguments, own, strict=True):
                if not _same(_flat(before), _flat(after)):
                    return Finding(UNUSABLE, f"argument {name} was changed; try {name}.copy(), or a new array")
        expected = [self._tuple(self.solution(*arguments)) for arguments in cases]
        for arguments, ours, theirs in zip(cases, expected, given, strict=True):
            if len(theirs) != len(self.results):
                return Finding(UNUSABLE, f"expected {_listed(self.results)}, got {len(theirs)} results")
            for k, name in enumerate(self.results):
                if finding := compare(name, ours[k], theirs[k]):
                    hint = self._mistake(cases, k, given)
                    shown = [f"{n} {_kind(a)}" for n, a in zip(named, arguments, strict=True)]
                    text = f"{finding.text} with {', '.join(shown)}"
                    return finding._replace(text=f"{text}; hint: {hint}" if hint else text)
        return None

    def _tuple(self, result: Any) -> tuple:
        if len(self.results) == 1:
            return (result,)
        return tuple(result) if isinstance(result, tuple | list) else (result,)

    def _mistake(self, cases: list[tuple], k: int, given: Sequence[tuple]) -> str:
        """Return the name of the mistake whose result `k` equals the given one in all cases, or ""."""
        for hint, mistaken in self.mistakes.items():
            with np.errstate(all="ignore"):
                wrong = [self._tuple(mistaken(*map(_copy, arguments)))[k] for arguments in cases]
            if all(len(r) > k and _same(_flat(w), _flat(r[k])) for w, r in zip(wrong, given, strict=True)):
                return hint
        return ""


def compare(name: str, expected: Any, got: Any) -> Finding | None:
    """Compare one result with the expected one: its form, then its numbers; None if it is right."""
    expected, kind = np.asarray(expected), f"dtype {got.dtype}" if isinstance(got, np.ndarray) else _kind(got)
    try:
        got = np.asarray(got)
    except (ValueError, TypeError):
        return Finding(UNUSABLE, f"{name}: expected an array of shape {expected.shape}, got {kind}")
    if got.dtype.kind not in "biuf":
        return Finding(UNUSABLE, f"{name}: expected numbers of shape {expected.shape}, got {kind}")
    if got.shape != expected.shape:
        return Finding(UNUSABLE, f"{name}: expected shape {expected.shape}, got {got.shape}")
    if got.dtype.kind != expected.dtype.kind and expected.ndim:
        return Finding(UNUSABLE, f"{name}: expected dtype {expected.dtype}, got {got.dtype}")
    wrong = ~_close(expected, got)
    if not wrong.any():
        return None
    place = tuple(int(i) for i in np.argwhere(wrong)[0]) if expected.ndim else ()
    where = f"[{', '.join(map(str, place))}]" if place else ""
    count = f" ({wrong.sum()} of {wrong.size} numbers are wrong)" if place else ""
    return Finding(WRONG, f"{name}{where}: expected {expected[place]:.6g}, got {got[place]:.6g}{count}")


def _close(expected: np.ndarray, got: np.ndarray) -> np.ndarray:
    finite = np.abs(expected[np.isfinite(expected)])
    return np.isclose(got, expected, rtol=0, atol=TOLERANCE * max(1.0, finite.max(initial=0)), equal_nan=True)


def _same(expected: list, got: list) -> bool:
    """Say whether two lists of arrays have the same shapes and numbers."""
    return len(expected) == len(got) and all(
        a.shape == b.shape and a.dtype.kind in "biuf" and b.dtype.kind in "biuf" and bool(_close(a, b).all())
        for a, b in zip(expected, got, strict=True)
    )


def _flat(value: Any) -> list[np.ndarray]:
    """Return the arrays of an argument, which may be a list of arrays."""
    try:
        return [np.asarray(item) for item in value] if isinstance(value, list | tuple) else [np.asarray(value)]
    except ValueError:
        return []


def _copy(value: Any) -> Any:
    if isinstance(value, list):
        return [item.copy() for item in value]
    return value.copy() if isinstance(value, np.ndarray) else value


def _kind(value: Any) -> str:
    """Return the shape of an array, a number itself, the type of anything else."""
    if isinstance(value, tuple):
        return str(value)
    if isinstance(value, np.ndarray):
        return str(value.shape)
    return str(value) if value is None or isinstance(value, float | int) else type(value).__name__


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
