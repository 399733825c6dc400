"""In which units a graph is computed, and which arrays of it are one.

A unit is a node, or the tanh behind a convolution together with the 2 x 2
maxima and the doubled planes that interlinking layers make of it (Sec. 2.2):
one pass over the memory instead of three. The tanh works in place.

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
    """Nodes that one call computes: one, or a tanh in place (`interlinks`) and its pooled and upsampled copies."""

    node: Node
    interlinks: bool = False
    pooled: Node | None = None
    up: Node | None = None

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(node for node in (self.node, self.pooled, self.up) if node is not None)


class Schedule:
    """The units of a graph in the order of computation.

    Attributes
    ----------
    units : list of Unit
    times : mapping of node names to the number of their unit
    consumers : mapping of node names to the nodes that read them
    linked : names of the nodes that a unit computes besides its first
    homes : mapping of "activation/NODE" and "gradient/NODE" to (array, channel)
        Where an array lies: itself and 0, or another array and the first of its channels there.
    """

    def __init__(self, graph: Graph, needed: set[str]):
        self.consumers: dict[str, list[Node]] = {name: [] for name in graph.nodes}
        for node in graph.nodes.values():
            for name in node.inputs:
                self.consumers[name].append(node)
        self.units = self._make_units(graph)
        self.linked = {node.name for unit in self.units for node in unit.nodes[1:]}
        self.times = {node.name: time for time, unit in enumerate(self.units) for node in unit.nodes}
        self._parents: dict[str, tuple[str, int]] = {}
        for unit in self.units:
            if unit.interlinks:
                self._settle_in_place(unit, needed)
            elif isinstance(unit.node.layer, Concat):
                self._settle_inputs(graph, unit.node, needed)
        names = [f"activation/{name}" for name in graph.nodes] + [f"gradient/{name}" for name in needed]
        self.homes = {name: self._home(name) for name in names}

    def _make_units(self, graph: Graph) -> list[Unit]:
        units, linked = [], set()
        for node in graph.nodes.values():
            if node.name in linked:
                continue
            unit = Unit(node)
            if isinstance(node.layer, Tanh):
                (source,) = node.inputs
                if isinstance(graph.nodes[source].layer, Conv2D) and self.consumers[source] == [node]:
                    unit = Unit(node, True, self._reader(node, MaxPool2D()), self._reader(node, UpsampleNearest2D()))
            linked.update(one.name for one in unit.nodes)
            units.append(unit)
        return units

    def _reader(self, node: Node, layer) -> Node | None:
        """The first consumer of a node that is exactly this layer."""
        return next((consumer for consumer in self.consumers[node.name] if consumer.layer == layer), None)

    def _settle_in_place(self, unit: Unit, needed: set[str]) -> None:
        """The convolution's sums become their tanh, and its gradient that of the sums, where they are."""
        name, (source,) = unit.node.name, unit.node.inputs
        self._parents[f"activation/{source}"] = f"activation/{name}", 0
        if name in needed and source in needed:
            self._parents[f"gradient/{source}"] = f"gradient/{name}", 0

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
