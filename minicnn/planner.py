"""Planner: which nodes are computed together, in which order, and which arrays share a buffer. No arrays, no kernels.

A unit is a single node, or a convolution fused with the tanh that follows it
and with the copies of that tanh which interlinking layers use (Sec. 2.2): 2 x 2
max-pooled, and upsampled by 2. The tanh is computed in place.

Concatenation copies nothing: a node that is an input of a concatenation
writes directly into its channels of the concatenation's array.

    row1/round1/concat   [ row1/round0/tanh | row1/round1/coarser ]
                           8 channels         16 channels, row 2's tanh upsampled

Time steps of one training step of a graph with M units::

    0 .. M-1      forward of unit i at time i
    M             loss
    M + 1         gradient of the loss
    M + 2 ..      backward, in reverse order, one or two time steps per unit (`Schedule.backward_times`)

The life of an array begins when it is first written and ends after its last
read; an array that contains others lives as long as any of them. Arrays of the
same shape whose lives do not overlap share a buffer. Only equal shapes share,
since a backend may use a different memory layout for each shape.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from minicnn.graph import Graph, Node
from minicnn.layers import Concat, Conv2D, MaxPool2D, Shape, Tanh, UpsampleNearest2D


def needs_gradient(graph: Graph, input_gradient: bool = False) -> set[str]:
    """Return the nodes whose gradient is computed: on a path from a parameter (or the input, if set) to the output."""
    reaches_output = {graph.output.name}
    for node in reversed(graph.nodes.values()):
        if node.name in reaches_output:
            reaches_output.update(node.inputs)
    needed: set[str] = set()
    for node in graph.nodes.values():
        is_source = bool(node.parameters) or (input_gradient and node is graph.input)
        if node.name in reaches_output and (is_source or needed.intersection(node.inputs)):
            needed.add(node.name)
    return needed


# ---- what is computed together, and when


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
        Nodes whose gradient is computed (`needs_gradient`).

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


# ---- what shares a buffer


@dataclass(frozen=True)
class Life:
    """Lifetime of one array: its shape per image (C, H, W), and its first and last time step (both inclusive)."""

    shape: Shape
    birth: int
    death: int


def lifetimes(graph: Graph, schedule: Schedule, needed: set[str]) -> dict[str, Life]:
    """Compute the lifetimes of the arrays of a training step.

    `needed` are the nodes whose gradient is computed (`needs_gradient`).

    Returns
    -------
    dict of "activation/NODE" and "gradient/NODE" to Life, without the arrays that lie inside another one
    """
    done, end = schedule.backward_times, schedule.end
    lives: dict[str, Life] = {}
    for name, node in graph.nodes.items():
        time, readers = schedule.times[name], schedule.consumers[name]
        reads = [time, *(schedule.times[reader.name] for reader in readers)]
        if name in needed and "y" in node.layer.backward_reads and name not in schedule.linked:
            reads.append(done[name])
        for reader in readers:
            if reader.name in needed and "x" in reader.layer.backward_reads:
                reads.append(done[reader.name])
        # images are kept for a second forward pass; callers may read the logits until the next one
        kept = node is graph.output or not node.inputs
        _add(lives, schedule, f"activation/{name}", Life(node.shape, time, end if kept else max(reads)))
        if name in needed:
            written = [done[reader.name] for reader in readers if reader.name in needed]
            birth = len(schedule.units) + 1 if node is graph.output else min(written)
            _add(lives, schedule, f"gradient/{name}", Life(node.shape, birth, done[name] if node.inputs else end))
    return {name: life for name, life in lives.items() if schedule.homes[name][0] == name}


def _add(lives: dict[str, Life], schedule: Schedule, name: str, life: Life) -> None:
    """Extend the lifetime of the array that contains `name` (or is `name`) by `life`."""
    home = schedule.homes[name][0]
    known = lives.get(home, life)
    shape = known.shape if home != name else life.shape
    lives[home] = Life(shape, min(known.birth, life.birth), max(known.death, life.death))


def assign_buffers(lives: dict[str, Life], share: bool = True) -> dict[str, int]:
    """Assign a buffer number to each array; arrays with the same number have equal shapes and disjoint lifetimes."""
    buffers: list[tuple[Shape, int]] = []  # shape and last death so far
    assigned = {}
    for name, life in sorted(lives.items(), key=lambda item: item[1].birth):
        free = (
            number
            for number, (shape, death) in enumerate(buffers)
            if share and shape == life.shape and death < life.birth
        )
        number = next(free, len(buffers))
        entry = (life.shape, life.death)
        if number == len(buffers):
            buffers.append(entry)
        else:
            buffers[number] = entry
        assigned[name] = number
    return assigned


def dead_buffers(lives: dict[str, Life], assigned: dict[str, int], time: int) -> Iterable[int]:
    """Return the buffers whose content is not read after time step `time`; a test fills them with NaN."""
    alive = {assigned[name] for name, life in lives.items() if life.birth <= time < life.death}
    return set(assigned.values()) - alive


# ---- what the kernels need


def halo(graph: Graph, shape: Shape) -> int:
    """Return the zeros around planes of a shape's size that suffice for every convolution on them."""
    nodes = graph.nodes.values()
    kernel_sizes = [n.layer.kernel_size for n in nodes if isinstance(n.layer, Conv2D) and n.shape[1:] == shape[1:]]
    return max(kernel_sizes, default=1) // 2


def values_per_image(graph: Graph, shapes: Iterable[Shape]) -> int:
    """Return the numbers that a plan holds for one image: buffers of `shapes`, loss, and the prefetched batch."""
    pixels = math.prod(graph.output.shape[1:])
    loss = math.prod(graph.output.shape) + 2 * pixels
    return sum(map(math.prod, shapes)) + loss + 2 * (math.prod(graph.input.shape) + 2 * pixels)


def workspace_wishes(graph: Graph, schedule: Schedule) -> list[tuple[str, dict[str, int]]]:
    """Return each kernel call that may need a workspace: its name, and its sizes by shape letter, without N."""
    labels, height, width = graph.output.shape
    loss_size = {"L": labels, "H": height, "W": width}
    wishes = [
        ("sgd_update", {"V": sum(map(math.prod, graph.parameter_shapes.values()))}),
        ("softmax_cross_entropy_forward", loss_size),
        ("softmax_cross_entropy_backward", loss_size),
    ]
    for unit in schedule.units:
        wishes.extend(unit.node.layer.kernel_sizes(*graph.input_shapes(unit.node)).items())
        if unit.tanh is not None:
            channels, height, width = unit.tanh.shape
            wishes.append(("interlink_backward", {"C": channels, "H": height, "W": width}))
    return wishes
