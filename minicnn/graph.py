"""Network description: a directed acyclic graph of named nodes."""

from dataclasses import dataclass, fields

from minicnn.layers import Input, Layer, Shape, ShapeError


class GraphError(ValueError):
    """Invalid node: its name is already taken, or one of its inputs does not exist."""


@dataclass(frozen=True)
class Node:
    """Layer of a graph, with the names of its input nodes, its output shape (C, H, W) and its parameter shapes."""

    name: str
    layer: Layer
    inputs: tuple[str, ...]
    shape: Shape
    parameters: dict[str, tuple[int, ...]]


class Graph:
    """Append-only list of nodes. Inputs must already exist, so insertion order is topological order.

    Parameters
    ----------
    **attributes : str or int
        Metadata that checkpoints of this network store, for example ``preset="paper"``.
    """

    def __init__(self, **attributes: str | int):
        self.attributes = attributes
        self.nodes: dict[str, Node] = {}

    def add(self, name: str, layer: Layer, *inputs: str) -> str:
        """Append a node and return its name.

        Parameters
        ----------
        name : str
            Name of the new node, unique in the graph.
        layer : Layer
        *inputs : str
            Names of existing nodes, in the order in which the layer takes them.

        Raises
        ------
        GraphError
            If `name` is already taken or an input does not exist.
        ShapeError
            If the layer does not accept the inputs' shapes; the message names the node.
        """
        if name in self.nodes:
            raise GraphError(f"node {name!r} exists already")
        for source in inputs:
            if source not in self.nodes:
                raise GraphError(f"node {name!r} reads {source!r}, which does not exist yet")
        shapes = [self.nodes[source].shape for source in inputs]
        try:
            shape = layer.output_shape(*shapes)
            parameters = layer.parameter_shapes(*shapes)
        except ShapeError as error:
            raise ShapeError(f"node {name!r} ({type(layer).__name__}): {error}") from None
        self.nodes[name] = Node(name, layer, inputs, shape, parameters)
        return name

    @property
    def input(self) -> Node:
        """Node of the images: the graph's only `Input`."""
        (node,) = (node for node in self.nodes.values() if isinstance(node.layer, Input))
        return node

    @property
    def output(self) -> Node:
        """Node added last; its values are the network's logits."""
        return next(reversed(self.nodes.values()))

    def input_shapes(self, node: Node) -> list[Shape]:
        """Return the shapes (C, H, W) of the inputs of `node`."""
        return [self.nodes[name].shape for name in node.inputs]

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all learnt arrays, "node/array" -> shape, in the order of the nodes."""
        return {
            f"{node.name}/{array}": shape for node in self.nodes.values() for array, shape in node.parameters.items()
        }

    def describe(self) -> str:
        """Return a text table of the nodes: layer, inputs, shape, parameter count, and float32 bytes per image."""
        rows = [("node", "layer", "reads", "shape", "parameters", "bytes/image")]
        parameters_total = bytes_total = 0
        for node in self.nodes.values():
            parameters = sum(_size(shape) for shape in node.parameters.values())
            n_bytes = 4 * _size(node.shape)
            parameters_total += parameters
            bytes_total += n_bytes
            shape = " x ".join(map(str, node.shape))
            rows.append(
                (
                    node.name,
                    _layer_text(node.layer),
                    ", ".join(node.inputs),
                    shape,
                    f"{parameters:,}" if parameters else "",
                    f"{n_bytes:,}",
                )
            )
        rows.append((f"{len(self.nodes)} nodes", "", "", "", f"{parameters_total:,}", f"{bytes_total:,}"))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if column > 3 else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )


def _layer_text(layer: Layer) -> str:
    """Return the layer as a constructor call, without the settings that equal their defaults."""
    settings = [
        f"{field.name}={getattr(layer, field.name)!r}"
        for field in fields(layer)
        if getattr(layer, field.name) != field.default
    ]
    return f"{type(layer).__name__}({', '.join(settings)})"


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
