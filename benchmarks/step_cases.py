"""Training steps to be timed: network geometries, batch sizes and the optimiser."""

from typing import NamedTuple

import numpy as np

from icnn.model.network import icnn_graph
from minicnn import SGD
from minicnn.graph import Graph

KINDS = ((9, 64), (2, 64), (4, 80))  # number of classes and input side of the five networks
CPU_BATCHES, GPU_BATCHES = [1, 10, 64], [1, 10, 64, 256]
OPTIMISER = SGD(lr=0.01, momentum=0.9, nesterov=True)


class StepCase(NamedTuple):
    """A network, given by its number of classes and input side in pixels, with a batch size."""

    labels: int
    size: int
    batch: int

    def __str__(self) -> str:
        return f"{self.labels} labels, {self.size} px, batch {self.batch}"

    def graph(self) -> Graph:
        """Return the network of the paper."""
        return icnn_graph(self.labels, self.size)

    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return random images (N, 3, S, S) float32 and labels (N, S, S) int64."""
        rng = np.random.default_rng(0)
        images = rng.standard_normal((self.batch, 3, self.size, self.size)).astype(np.float32)
        return images, rng.integers(0, self.labels, (self.batch, self.size, self.size))
