"""What a GPU must agree with, measured: for the tests of this folder and for the report."""

import sys
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from icnn.model.network import icnn_graph
from icnn.synthetic.faces import draw_face
from minicnn import SGD, Plan
from minicnn.kernels import BackendError, get_backend

LR = 0.01
OPTIMISER = SGD(lr=LR, momentum=0.8, nesterov=True, weight_decay=1e-4)
LABELS = 9


def is_simulated() -> bool:
    """Whether CuPy is this project's stand-in, on which a step takes seconds: its times mean nothing."""
    with suppress(BackendError):
        get_backend("cupy")
    return "standin" in sys.modules


class Extent(NamedTuple):
    """How much is checked and measured.

    Attributes
    ----------
    kinds : (labels, side) of networks, the most important first
    batches : batch sizes of the steps that are timed
    exact : batch sizes at which captured and eager steps are compared
    curve : steps, side and batch of the training curves
    rounds : turns of each contender
    loops, megabytes, nodes : of the ceilings' kernels, copies and graphs
    """

    kinds: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    exact: tuple[int, ...]
    curve: tuple[int, int, int]
    rounds: int
    loops: int
    megabytes: int
    nodes: int


def extent() -> Extent:
    """All of it on a GPU; on the stand-in as much as shows that it runs."""
    if is_simulated():
        return Extent(((2, 8),), (1,), (2,), (2, 8, 2), 1, 2, 1, 3)
    return Extent(((9, 64), (2, 64), (4, 80)), (10, 256, 64, 1), (10, 256), (200, 32, 4), 25, 20_000, 1024, 1000)


# ---- training curves


def faces(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Drawn faces (count, 3, size, size) float32, each of mean 0 and deviation 1, and their labels."""
    drawn = [draw_face(np.random.default_rng(number), size) for number in range(count)]
    images = np.stack([image for image, _ in drawn]).transpose(0, 3, 1, 2).astype(np.float32)
    images -= images.mean((2, 3), keepdims=True)
    images /= images.std((2, 3), keepdims=True)
    return images, np.stack([maps.argmax(-1) for _, maps in drawn])


class Lesson(NamedTuple):
    """The same training for every contender: faces, and which of them each step is shown."""

    images: np.ndarray
    labels: np.ndarray
    batches: list[np.ndarray]

    @classmethod
    def of(cls, steps: int, size: int, batch: int) -> "Lesson":
        """Losses of 4 faces of 32 px fall from 2.2 to 0.14 in 200 steps; float64's are 4e-6 away: it is not chaotic."""
        rng = np.random.default_rng(0)
        images, labels = faces(8 * batch, size)
        return cls(images, labels, [rng.choice(len(images), batch, replace=False) for _ in range(steps)])

    def plan(self, backend: str) -> Plan:
        """A plan with the first parameters."""
        return Plan(icnn_graph(labels=LABELS, size=self.images.shape[-1]), len(self.batches[0]), backend, seed=0)

    def curve(self, backend: str) -> list[float]:
        """A backend's losses."""
        plan = self.plan(backend)
        return [float(plan.step(self.images[rows], self.labels[rows], OPTIMISER)) for rows in self.batches]


def largest_difference(losses: list[float], expected: list[float]) -> float:
    """Relative, over the whole of two curves; NaN if one has a NaN."""
    ours, theirs = np.array(losses), np.array(expected)
    return float(np.abs(ours / theirs - 1).max())


# ---- graphs


def trained(steps: int, labels: int, size: int, batch: int, captured: bool) -> list[np.ndarray]:
    """Losses, parameters and velocities after some steps on noise; as a replayed graph, or launch after launch."""
    rng = np.random.default_rng(0)
    hook = None if captured else lambda phase, node: None
    plan = Plan(icnn_graph(labels, size), batch, "cupy", seed=0, hook=hook)
    losses = []
    for step in range(steps):
        n = max(1, batch - step % 2)  # also fewer images than the batch
        images = rng.standard_normal((n, 3, size, size), np.float32)
        losses.append(plan.download(plan.step(images, rng.integers(0, labels, (n, size, size)), OPTIMISER)))
    return [*losses, *plan.state().values()]


def same_bits(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    """Whether two trainings are finite and equal in every bit."""
    return all(
        np.isfinite(ours).all() and ours.tobytes() == theirs.tobytes()
        for ours, theirs in zip(first, second, strict=True)
    )
