"""Find the bug: one line of the program is changed, and a check of it fails.

The changed lines are entries of `tests/planted_bugs.py`, all in code that is written to be read. ``python -m
icnn.exercise.bugs NAME`` runs a round's check on the changed program and prints what it says.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path

from icnn.errors import InputError

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Round:
    """One bug.

    Attributes
    ----------
    what : str
        The bug, which is told once it is found.
    file : str
        The changed file, relative to the folder of the packages.
    right, wrong : str
        The text before and after the change; `right` stands in the file once.
    check : callable
        Yields the lines that the learner sees.
    """

    what: str
    file: str
    right: str
    wrong: str
    check: Callable[[], Iterator[str]]

    @property
    def module(self) -> str:
        """Full name of the changed module."""
        return self.file.removesuffix(".py").replace("/", ".")

    def planted(self) -> str:
        """Return the text of the file with the bug in it.

        Raises
        ------
        InputError
            If the file does not have the right text.
        """
        source = (ROOT / self.file).read_text(encoding="utf-8")
        if source.count(self.right) != 1:
            raise InputError(
                f"{ROOT / self.file}: expected {self.right!r} once, found it changed; try to restore the file"
            )
        return source.replace(self.right, self.wrong)

    def lines(self) -> list[int]:
        """Return the numbers of the changed lines in `planted`."""
        before = (ROOT / self.file).read_text(encoding="utf-8").splitlines()
        after = self.planted().splitlines()
        return [n for n, (old, new) in enumerate(zip(before, after, strict=True), 1) if old != new]


def _gradients(*names: str) -> Iterator[str]:
    """Check the gradients of a chain of layers between two convolutions; "concat" joins it with the first one."""
    import numpy as np

    from minicnn import Graph, Plan
    from minicnn.gradcheck import check_plan
    from minicnn.layers import Concat, Conv2D, Input, MaxPool2D, Tanh

    layers = {"tanh": Tanh(), "pool": MaxPool2D(3, 2, 1), "concat": Concat(), "output": Conv2D(2, 3)}
    graph = Graph()
    graph.add("image", Input(2, 8, 8))
    last = graph.add("conv", Conv2D(3, 5), "image")
    for name in (*names, "output"):
        last = graph.add(name, layers[name], last, *(["conv"] if name == "concat" else []))
    plan = Plan(graph, batch=2, dtype="float64", input_gradient=True)
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((2, 2, 8, 8)), rng.integers(0, 2, (2, *graph.output.shape[1:]))
    yield f"gradient check of {' -> '.join(('image', 'conv', *names, 'output'))}, numeric against analytic:"
    for name, error in check_plan(plan, images, labels).items():
        yield f"  {name:14} relative error {error:7.1e}{'' if error < 1e-6 else '  WRONG'}"


def _compared(what: str, expected, got) -> Iterator[str]:
    """Show what was expected and what the program computes."""
    yield what
    yield f"  expected {expected}"
    yield f"  got      {got}"


def _ties() -> Iterator[str]:
    import numpy as np

    from minicnn.kernels.reference import max_pool2d_backward

    dx, x, y, dy = np.zeros((1, 1, 2, 2)), np.ones((1, 1, 2, 2)), np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 1))
    max_pool2d_backward(dx, dy, x, y, np.zeros(2), 2, 2, 0, False)
    return _compared("the gradient of the maximum of 2 x 2 equal pixels:", [[1.0, 0.0], [0.0, 0.0]], dx[0, 0].tolist())


def _updates() -> Iterator[str]:
    import numpy as np

    from minicnn.kernels.reference import sgd_update

    values, velocity = np.array([1.0]), np.array([0.5])
    sgd_update(values, velocity, np.array([2.0]), np.array(0.1), np.zeros(1), 0.9, False, 0.0, 1.0)
    what = "w = 1, v = 0.5, gradient 2, lr 0.1, momentum 0.9: v <- 0.9 v - 0.1 g, w <- w + v:"
    return _compared(what, "w 1.25, v 0.25", f"w {values[0]:.4g}, v {velocity[0]:.4g}")


def _loss() -> Iterator[str]:
    import numpy as np

    from minicnn.kernels.reference import softmax_cross_entropy_forward

    loss, total, z = np.zeros(()), np.zeros(()), np.zeros((1, 2, 1, 4))
    labels, weights = np.zeros((1, 1, 4), np.int32), np.array([[[3.0, 3, 0, 0]]])
    softmax_cross_entropy_forward(loss, total, np.zeros_like(z), z, labels, weights, np.zeros(12))
    what = "two labels, all logits 0, pixel weights 3, 3, 0, 0; the weighted mean of -log(1/2):"
    return _compared(what, f"{np.log(2):.4f}", f"{loss:.4f}")


def _centre() -> Iterator[str]:
    import numpy as np

    from icnn.model.centres import part_centres

    labels = np.zeros((40, 40), int)
    labels[10:15, 10:15] = labels[39, 39] = 5
    what = "the nose is columns and rows 10 to 14, and one stray pixel at (39, 39); its centre:"
    return _compared(what, [12.0, 12.0], part_centres(labels)[4].round(2).tolist())


def _background() -> Iterator[str]:
    import numpy as np

    from icnn.model.modulation import modulate

    logits = np.array([2.0, 1.0]).reshape(1, 2, 1, 1)
    what = "background map B = 2, part 1; after beta B + beta0 with beta = 1.5 and beta0 = 0.5:"
    return _compared(what, [3.5, 1.0], modulate(logits, (1.5, 0.5)).ravel().tolist())


def _counts() -> Iterator[str]:
    import numpy as np

    from icnn.evaluate.metrics import confusion, region_counts

    truth, prediction = np.array([6, 6, 5, 5, 0, 0]), np.array([6, 0, 6, 5, 6, 0])
    what = f"upper lip is 6; truth {truth.tolist()}, prediction {prediction.tolist()}; TP, FP and FN:"
    return _compared(what, [1, 2, 1], region_counts(confusion(truth, prediction), (6,)).tolist())


def _overlap() -> Iterator[str]:
    import numpy as np

    from icnn.model.patches import joint_probabilities, most_probable
    from icnn.stages import PATCHES

    sure, unsure = (np.stack([np.full((64, 64), 1 - p), np.full((64, 64), p)]) for p in (0.9, 0.6))
    joint = joint_probabilities((64, 64), (PATCHES[0], PATCHES[4]), ((0, 0), (0, 0)), (sure, unsure))
    what = "an eyebrow patch (id 1) with p = 0.9 and a nose patch (id 5) with p = 0.6 on the same pixels; the label:"
    return _compared(what, 1, int(most_probable(joint)[0, 0]))


_REFERENCE, _PATCHES = "minicnn/kernels/reference.py", "icnn/model/patches.py"

ROUNDS = {
    "tanh": Round(
        "the gradient of tanh without the square",
        _REFERENCE,
        "np.multiply(y, y, out=product)",
        "np.multiply(y, 1, out=product)",
        lambda: _gradients("tanh"),
    ),
    "conv": Round(
        "a convolution with turned kernels instead of a correlation",
        _REFERENCE,
        "np.matmul(w.reshape(o, -1), col, out=y[n].reshape(o, -1))",
        "np.matmul(w[:, :, ::-1, ::-1].reshape(o, -1), col, out=y[n].reshape(o, -1))",
        lambda: _gradients("tanh"),
    ),
    "background": Round(
        "the sign of beta0",
        "icnn/model/modulation.py",
        "modulated[:, 0] = beta * modulated[:, 0] + beta0",
        "modulated[:, 0] = beta * modulated[:, 0] - beta0",
        _background,
    ),
    "centre": Round(
        "the mean in place of the median",
        "icnn/model/centres.py",
        "np.median(axis) if rule",
        "np.mean(axis) if rule",
        _centre,
    ),
    "updates": Round(
        "momentum applied after the step",
        _REFERENCE,
        "    velocity *= momentum\n    velocity += step\n",
        "    velocity += step\n    velocity *= momentum\n",
        _updates,
    ),
    "loss": Round(
        "the loss divided by the number of pixels, not by the sum of the weights",
        _REFERENCE,
        "total[...] = np.sum(weights, dtype=np.float64)",
        "total[...] = weights.size",
        _loss,
    ),
    "counts": Round(
        "a nose pixel called lip is not counted as a false positive",
        "icnn/evaluate/metrics.py",
        "columns.sum(both) - tp",
        "columns[..., 0, :].sum(-1)",
        _counts,
    ),
    "overlap": Round(
        "the last patch wins an overlap",
        _PATCHES,
        "joint[part][there] = np.minimum(values, most)",
        "joint[1:, *there], joint[part][there] = 0, np.minimum(values, most)",
        _overlap,
    ),
    "pool": Round(
        "max pooling with its padding at the bottom and right",
        _REFERENCE,
        "kernel_size, stride, padding):\n        np.maximum(",
        "kernel_size, stride, 0):\n        np.maximum(",
        lambda: _gradients("tanh", "pool"),
    ),
    "ties": Round(
        "the gradient goes to every maximum, not to the first one",
        _REFERENCE,
        "        np.copyto(left[out], 0, where=hit)\n",
        "        pass\n",
        _ties,
    ),
    "concat": Round(
        "gradients of maps that two layers read are not added",
        "minicnn/passes.py",
        "adds.append(name in written)",
        "adds.append(False)",
        lambda: _gradients("tanh", "concat"),
    ),
}


class _Planted(SourceFileLoader):
    """Loads a module from a changed text, which is never cached."""

    text = ""

    def get_code(self, fullname: str):
        return compile(self.text, self.path, "exec")


def plant(bug: Round) -> None:
    """Let this process import the changed module; it must not have been imported before."""
    assert bug.module not in sys.modules

    class Finder:
        @staticmethod
        def find_spec(name: str, path=None, target=None):
            spec = PathFinder.find_spec(name, path) if name == bug.module else None
            if spec and spec.origin:
                spec.loader = _Planted(name, spec.origin)
                spec.loader.text = bug.planted()
            return spec

    sys.meta_path.insert(0, Finder)  # pyright: ignore[reportArgumentType]: a finder needs no more than find_spec


if __name__ == "__main__":
    plant(ROUNDS[sys.argv[1]])
    print(*ROUNDS[sys.argv[1]].check(), sep="\n")
