"""Learnt parameters of a network in one flat buffer, with named views into it."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from minicnn.graph import Graph
from minicnn.kernels.backend import Backend


def views(flat, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Any]:
    """Return a read-only mapping of names to writable views of one flat buffer, in the order of `shapes`."""
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()]).tolist()
    starts = [0, *ends]
    return MappingProxyType(
        {name: flat[start:end].reshape(shapes[name]) for name, start, end in zip(shapes, starts, ends, strict=False)}
    )


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
    values, gradients : read-only mappings
        Writable views of `flat` and `flat_gradients` by "node/array".
    """

    def __init__(self, graph: Graph, kernels: Backend, dtype: str):
        shapes = graph.parameter_shapes
        count = sum(int(np.prod(shape)) for shape in shapes.values())
        self.flat = kernels.zeros(count, dtype)
        self.flat_gradients = kernels.zeros(count, dtype)
        self.flat_velocity = kernels.zeros(count, dtype)
        self.values = views(self.flat, shapes)
        self.gradients = views(self.flat_gradients, shapes)
        self._graph = graph
        self._kernels = kernels

    def initialise(self, rng: np.random.Generator) -> None:
        """Draw the initial values with `rng`, layer by layer in the order of the graph; reset the velocity to 0."""
        for node in self._graph.nodes.values():
            for array, shape in node.parameters.items():
                drawn = node.layer.initialise(array, shape, rng)
                self._kernels.upload(self.values[f"{node.name}/{array}"], drawn)
        self.flat_velocity[...] = 0

    def assign(self, parameters: Mapping[str, np.ndarray]) -> None:
        """Copy values into the parameters of the same names; KeyError or ValueError for another name or shape."""
        for name, values in parameters.items():
            self._kernels.upload(self.values[name], values)

    def state(self) -> dict[str, np.ndarray]:
        """Return NumPy copies of all values and velocities, (V,)."""
        return {name: np.array(self._kernels.download(buffer)) for name, buffer in self._restorable.items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Copy the arrays of `state` back.

        Raises
        ------
        ValueError
            If they have the shapes of another network; nothing is changed then.
        """
        for name, buffer in self._restorable.items():
            if state[name].shape != buffer.shape:
                raise ValueError(f"expected {name} of shape {buffer.shape}, got {state[name].shape}")
        for name, buffer in self._restorable.items():
            self._kernels.upload(buffer, state[name])

    @property
    def _restorable(self) -> dict[str, Any]:
        return {"values": self.flat, "velocity": self.flat_velocity}
