"""Schedule of a graph: its nodes grouped into units of computation, and the arrays that share memory.

A unit is a single node, or a convolution fused with the tanh that follows it
and with the copies of that tanh which interlinking layers use (Sec. 2.2): 2 x 2
max-pooled, and upsampled by 2. The tanh is computed in place.

Concatenation copies nothing: a node that is an input of a concatenation
writes directly into its channels of the concatenation's array.

    row1/round1/concat   [ row1/round0/tanh | row1/round1/coarser ]
                           8 channels         16 channels, row 2's tanh upsampled
"""

from dataclasses import dataclass

from minicnn.graph import Graph, Node
from minicnn.layers import Concat, Conv2D, MaxPool2D, Tanh, UpsampleNearest2D


@dataclass(frozen=True)
class Unit:
    """Nodes computed by one call: one node, or a convolution, its tanh, and the pooled and upsampled tanh."""

    node: Node
    tanh: Node | None = None
    pooled: Node | None = None
    up: Node | None = None

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(node for node in (self.node, self.tanh, self.pooled, self.up) if node is not None)


class Schedule:
    """Units of a graph in the order of computation.

    Parameters
    ----------
    graph : Graph
    needed : set of str
        Nodes whose gradient is computed (`minicnn.memory.needs_gradient`).

    Attributes
    ----------
    units : list of Unit
    times, backward_times : dict of str to int
        Time step of each node's forward and backward pass. All nodes of a unit run forward in one time step; two time
        steps for the loss follow; backward, a unit's tanh comes one time step before its convolution.
    end : int
        Last time step.
    consumers : dict of str to list of Node, the nodes that read each node's output
    linked : set of str
        Names of the pooled and upsampled copies that a unit computes together with their tanh.
    homes : dict of "activation/NODE" and "gradient/NODE" to (array, channel)
        Location of each array: itself and 0, or the array that contains it and its first channel there.
    """

    def __init__(self, graph: Graph, needed: set[str]):
        self.consumers: dict[str, list[Node]] = {name: [] for name in graph.nodes}
        for node in graph.nodes.values():
            for name in node.inputs:
                self.consumers[name].append(node)
        self.units = self._make_units(graph)
        self.linked = {node.name for unit in self.units for node in (unit.pooled, unit.up) if node is not None}
        self.times = {node.name: time for time, unit in enumerate(self.units) for node in unit.nodes}
        self.backward_times: dict[str, int] = {}
        self.end = len(self.units) + 1
        for unit in reversed(self.units):
            for together in (unit.nodes[1:], (unit.node,)):
                self.end += bool(together)
                self.backward_times.update((node.name, self.end) for node in together)
        self._parents: dict[str, tuple[str, int]] = {}
        for unit in self.units:
            if unit.tanh is not None:
                self._settle_in_place(unit.node.name, unit.tanh.name, needed)
            elif isinstance(unit.node.layer, Concat):
                self._settle_inputs(graph, unit.node, needed)
        names = [f"activation/{name}" for name in graph.nodes] + [f"gradient/{name}" for name in needed]
        self.homes = {name: self._home(name) for name in names}

    def _make_units(self, graph: Graph) -> list[Unit]:
        units, done = [], set()
        for node in graph.nodes.values():
            if node.name in done:
                continue
            unit, readers = Unit(node), self.consumers[node.name]
            if isinstance(node.layer, Conv2D) and len(readers) == 1 and isinstance(readers[0].layer, Tanh):
                (tanh,) = readers
                unit = Unit(node, tanh, self._reader(tanh, MaxPool2D()), self._reader(tanh, UpsampleNearest2D()))
            done.update(one.name for one in unit.nodes)
            units.append(unit)
        return units

    def _reader(self, node: Node, layer) -> Node | None:
        """Return the first consumer of a node whose layer equals `layer`, or None."""
        return next((consumer for consumer in self.consumers[node.name] if consumer.layer == layer), None)

    def _settle_in_place(self, convolution: str, tanh: str, needed: set[str]) -> None:
        """Place a convolution's output and gradient in the arrays of its tanh, which is computed in place."""
        self._parents[f"activation/{convolution}"] = f"activation/{tanh}", 0
        if {convolution, tanh} <= needed:
            self._parents[f"gradient/{convolution}"] = f"gradient/{tanh}", 0

    def _settle_inputs(self, graph: Graph, concat: Node, needed: set[str]) -> None:
        """Place the inputs of a concatenation in its array, except those that already lie in another array."""
        channel = 0
        complete = min((self.times[reader.name] for reader in self.consumers[concat.name]), default=len(self.units))
        for name in concat.inputs:
            node = graph.nodes[name]
            movable = node.inputs and node is not graph.output and not isinstance(node.layer, Concat)
            if movable and concat.inputs.count(name) == 1 and f"activation/{name}" not in self._parents:
                self._parents[f"activation/{name}"] = f"activation/{concat.name}", channel
                # Other consumers add to this gradient: they must run after the concatenation's consumers stored it.
                others = (self.times[reader.name] for reader in self.consumers[name] if reader is not concat)
                if {name, concat.name} <= needed and all(time < complete for time in others):
                    self._parents[f"gradient/{name}"] = f"gradient/{concat.name}", channel
            channel += node.shape[0]

    def _home(self, name: str) -> tuple[str, int]:
        channel = 0
        while name in self._parents:
            name, first = self._parents[name]
            channel += first
        return name, channel
