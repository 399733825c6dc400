"""Lifetimes of the arrays of a training step, and the assignment of arrays to shared buffers.

Time steps of one training step of a graph with M units (`minicnn.schedule`)::

    0 .. M-1      forward of unit i at time i
    M             loss
    M + 1         gradient of the loss
    M + 2 ..      backward, in reverse order, one or two time steps per unit (`Schedule.backward_times`)

The life of an array begins when it is first written and ends after its last
read; an array that contains others lives as long as any of them. Arrays of the
same shape whose lives do not overlap share a buffer. Only equal shapes share,
since a backend may use a different memory layout for each shape.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from minicnn.graph import Graph
from minicnn.layers import Shape
from minicnn.schedule import Schedule


@dataclass(frozen=True)
class Life:
    """Lifetime of one array: its shape per image (C, H, W), and its first and last time step (both inclusive)."""

    shape: Shape
    birth: int
    death: int


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
