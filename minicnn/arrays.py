"""Memory of a plan: the buffers of activations and gradients, and the workspace of the kernels."""

from bisect import bisect_right

import numpy as np

from minicnn.graph import Graph
from minicnn.kernels import BackendError
from minicnn.kernels.backend import Backend
from minicnn.planner import Schedule, assign_buffers, halo, lifetimes, values_per_image, workspace_wishes


class Arrays:
    """All activations, gradients and the workspace of a plan, allocated once.

    Parameters
    ----------
    graph : Graph
    schedule : Schedule
    needed : set of str
        Nodes whose gradient is computed.
    kernels : Backend
    batch : int
        Maximum number of images.
    dtype : str
    share : bool
        Let arrays with disjoint lifetimes share a buffer.

    Attributes
    ----------
    lives : dict of str to Life
    assigned : dict of str to int
        Number of the buffer of each array that no other one contains, by "activation/NODE" or "gradient/NODE".
    buffers : dict of int to (batch, C, H, W) backend arrays
    workspace : 1-d backend array
        Large enough for each kernel call; the calls run one after another and share it.

    Raises
    ------
    BackendError
        If the device has too little memory for the batch.
    """

    def __init__(
        self, graph: Graph, schedule: Schedule, needed: set[str], kernels: Backend, batch: int, dtype: str, share: bool
    ):
        self._graph = graph
        self._schedule = schedule
        self._kernels = kernels
        self.lives = lifetimes(graph, schedule, needed)
        self.assigned = assign_buffers(self.lives, share)
        shapes = {self.assigned[name]: life.shape for name, life in self.lives.items()}
        self._wishes = workspace_wishes(graph, schedule)
        values = values_per_image(graph, shapes.values())
        self._require_memory(batch, values, np.dtype(dtype).itemsize)
        self.buffers = {
            number: kernels.planes((batch, *shape), dtype, halo(graph, shape)) for number, shape in shapes.items()
        }
        self.workspace = kernels.zeros(self._workspace_size(batch), dtype)

    def of(self, kind: str, node: str, n: int):
        """Return a node's "activation" or "gradient" for the first n images: a view, (n, C, H, W)."""
        home, first = self._schedule.homes[f"{kind}/{node}"]
        channels = self._graph.nodes[node].shape[0]
        return self.buffers[self.assigned[home]][:n, first : first + channels]

    def _workspace_size(self, batch: int) -> int:
        return max(self._kernels.workspace_size(kernel, N=batch, **size) for kernel, size in self._wishes)

    def _require_memory(self, batch: int, values: int, itemsize: int) -> None:
        left = self._kernels.memory_left()
        if left is None:
            return

        def needed(batch: int) -> int:
            """Return bytes; the parameters already exist."""
            return itemsize * (batch * values + self._workspace_size(batch))

        if needed(batch) > left:
            fits = bisect_right(range(1, batch + 1), left, key=needed)
            advice = f"a batch of {fits} would fit" if fits else "not even one image would fit"
            raise BackendError(
                f"expected {needed(batch) / 2**20:,.0f} MiB of free memory on the device for a batch of {batch}, "
                f"found {left / 2**20:,.0f} MiB: {advice}"
            )
