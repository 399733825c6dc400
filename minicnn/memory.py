"""When each array of a training step is alive, and which of them may share a buffer.

Time runs over one step of a graph with M nodes::

    0 .. M-1      forward of node i at time i
    M             loss
    M + 1         gradient of the loss
    M + 2 ..      backward of node i at time 2 M + 1 - i

An array is born when it is first written and dies after its last read. Two
arrays of one shape whose lives do not overlap get the same buffer. Only equal
shapes share, since a backend may give each shape a layout of its own.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from minicnn.graph import Graph
from minicnn.layers import Shape


@dataclass(frozen=True)
class Life:
    """One array of a step: shape of an image's part (C, H, W), birth and death (both inclusive)."""

    shape: Shape
    birth: int
    death: int


def needs_gradient(graph: Graph, input_gradient: bool = False) -> set[str]:
    """Nodes whose gradient is computed: on a path from a parameter (or the input, if asked) to the output."""
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


def lifetimes(graph: Graph, needed: set[str]) -> dict[str, Life]:
    """Lives of "activation/NODE" for every node and "gradient/NODE" for those in `needed`."""
    nodes = list(graph.nodes.values())
    last = len(nodes) - 1
    end = 2 * len(nodes) + 1

    def backward_time(index: int) -> int:
        return end - index

    consumers: dict[str, list[int]] = {node.name: [] for node in nodes}
    for index, node in enumerate(nodes):
        for name in node.inputs:
            consumers[name].append(index)

    lives = {}
    for index, node in enumerate(nodes):
        reads = [index, *consumers[node.name]]
        if node.name in needed and "y" in node.layer.backward_reads:
            reads.append(backward_time(index))
        for consumer in consumers[node.name]:
            if nodes[consumer].name in needed and "x" in nodes[consumer].layer.backward_reads:
                reads.append(backward_time(consumer))
        # images stay for a second forward pass; logits are handed out until the next one
        kept = index == last or not node.inputs
        lives[f"activation/{node.name}"] = Life(node.shape, index, end if kept else max(reads))
        if node.name in needed:
            written = [backward_time(consumer) for consumer in consumers[node.name] if nodes[consumer].name in needed]
            birth = len(nodes) + 1 if index == last else min(written)
            death = backward_time(index) if node.inputs else end
            lives[f"gradient/{node.name}"] = Life(node.shape, birth, death)
    return lives


def assign_buffers(lives: dict[str, Life], share: bool = True) -> dict[str, int]:
    """Give each array the number of a buffer; arrays of one number have one shape and disjoint lives."""
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
    """Buffers whose content nobody reads after `time`: a test fills them with NaN."""
    alive = {assigned[name] for name, life in lives.items() if life.birth <= time < life.death}
    return set(assigned.values()) - alive
