"""Learnt parameters of a network in one flat buffer, with named views into it."""

from collections.abc import Iterator, Mapping

import numpy as np

from minicnn.graph import Graph
from minicnn.kernels.backend import Backend


class Views(Mapping[str, np.ndarray]):
    """Read-only mapping of "node/array" to writable views of one flat buffer, in the order of `shapes`."""

    def __init__(self, flat, shapes: Mapping[str, tuple[int, ...]]):
        self._views = {}
        offset = 0
        for name, shape in shapes.items():
            size = int(np.prod(shape))
            self._views[name] = flat[offset : offset + size].reshape(shape)
            offset += size

    def __getitem__(self, name: str):
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)


class Parameters:
    """Flat buffers of one network: parameter values, their gradients, and the optimiser's velocity.

    Parameters
    ----------
    graph : Graph
    kernels : module
        Backend that allocates the buffers.
    dtype : str
        "float32" or "float64".

    Attributes
    ----------
    flat, flat_gradients, flat_velocity : (V,) backend arrays of `dtype`
        Values, gradients and velocity of all V parameters.
    values, gradients : Views
        Views of `flat` and `flat_gradients` by "node/array".
    """

    def __init__(self, graph: Graph, kernels: Backend, dtype: str):
        shapes = graph.parameter_shapes
        count = sum(int(np.prod(shape)) for shape in shapes.values())
        self.flat = kernels.zeros(count, dtype)
        self.flat_gradients = kernels.zeros(count, dtype)
        self.flat_velocity = kernels.zeros(count, dtype)
        self.values = Views(self.flat, shapes)
        self.gradients = Views(self.flat_gradients, shapes)
        self._graph = graph
        self._kernels = kernels

    def initialise(self, rng: np.random.Generator) -> None:
        """Draw the initial values with `rng`, layer by layer in the order of the graph; reset the velocity to 0."""
        for node in self._graph.nodes.values():
            for array, shape in node.parameters.items():
                drawn = node.layer.initialise(array, shape, rng)
                self._kernels.upload(self.values[f"{node.name}/{array}"], drawn)
        self.flat_velocity[...] = 0
