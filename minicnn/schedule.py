"""In which units a graph is computed, and which arrays of it are one.

A unit is a node, or a convolution together with the tanh behind it, and the
2 x 2 maxima and doubled planes that interlinking layers make of that (Sec.
2.2). The tanh works in place.

Nothing is concatenated either: who produces an input of a concatenation
writes into its channels of the concatenation's own array.

    row1/round1/concat   [ row1/round0/tanh | row1/round1/coarser ]
                           8 channels         16 channels, row 2's tanh doubled
"""

from dataclasses import dataclass

from minicnn.graph import Graph, Node
from minicnn.layers import Concat, Conv2D, MaxPool2D, Tanh, UpsampleNearest2D


@dataclass(frozen=True)
class Unit:
    """Nodes that one call computes: one, or a convolution, its tanh, and that tanh's pooled and upsampled copies."""

    node: Node
    tanh: Node | None = None
    pooled: Node | None = None
    up: Node | None = None

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(node for node in (self.node, self.tanh, self.pooled, self.up) if node is not None)


class Schedule:
    """The units of a graph in the order of computation.

    Attributes
    ----------
    units : list of Unit
    times, backward_times : mappings of node names to the moments of their forward and backward passes
        Forward, all of a unit at once; then two for the loss; backward, a unit's tanh before its convolution.
    end : the last moment
    consumers : mapping of node names to the nodes that read them
    linked : names of the pooled and upsampled copies that a unit computes with their tanh
    homes : mapping of "activation/NODE" and "gradient/NODE" to (array, channel)
        Where an array lies: itself and 0, or another array and the first of its channels there.
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
        """The first consumer of a node that is exactly this layer."""
        return next((consumer for consumer in self.consumers[node.name] if consumer.layer == layer), None)

    def _settle_in_place(self, convolution: str, tanh: str, needed: set[str]) -> None:
        """The convolution's sums become their tanh, and its gradient that of the sums, where they are."""
        self._parents[f"activation/{convolution}"] = f"activation/{tanh}", 0
        if {convolution, tanh} <= needed:
            self._parents[f"gradient/{convolution}"] = f"gradient/{tanh}", 0

    def _settle_inputs(self, graph: Graph, concat: Node, needed: set[str]) -> None:
        """Inputs of a concatenation lie in its array, if they are not somewhere else already."""
        channel = 0
        complete = min((self.times[reader.name] for reader in self.consumers[concat.name]), default=len(self.units))
        for name in concat.inputs:
            node = graph.nodes[name]
            movable = node.inputs and node is not graph.output and not isinstance(node.layer, Concat)
            if movable and concat.inputs.count(name) == 1 and f"activation/{name}" not in self._parents:
                self._parents[f"activation/{name}"] = f"activation/{concat.name}", channel
                # What others add to the gradient must come after the concatenation's readers have stored theirs.
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
