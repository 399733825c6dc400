"""The network as a fixed directed acyclic graph of named nodes."""

from dataclasses import dataclass, fields

from minicnn.layers import Input, Layer, Shape, ShapeError


class GraphError(ValueError):
    """A node's name is taken, or an input of it does not exist."""


@dataclass(frozen=True)
class Node:
    """A layer, the names of the nodes it reads, and the shape (C, H, W) it writes."""

    name: str
    layer: Layer
    inputs: tuple[str, ...]
    shape: Shape
    parameters: dict[str, tuple[int, ...]]


class Graph:
    """Append-only list of nodes: inputs must exist, so insertion order is topological order.

    Parameters
    ----------
    **attributes : str or int
        What a checkpoint of this network should say about it, for example ``preset="paper"``.
    """

    def __init__(self, **attributes: str | int):
        self.attributes = attributes
        self.nodes: dict[str, Node] = {}

    def add(self, name: str, layer: Layer, *inputs: str) -> str:
        """Append a node and return its name.

        Raises
        ------
        GraphError
            If `name` is taken or an input does not exist.
        ShapeError
            If the layer does not accept the inputs' shapes; names the node.
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
        """The node where images enter: the only `Input`."""
        (node,) = (node for node in self.nodes.values() if isinstance(node.layer, Input))
        return node

    @property
    def output(self) -> Node:
        """The node added last; its values are the network's logits."""
        return next(reversed(self.nodes.values()))

    def input_shapes(self, node: Node) -> list[Shape]:
        """Shapes of what `node` reads."""
        return [self.nodes[name].shape for name in node.inputs]

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every learnt array, "node/array" -> shape, in the order of the nodes."""
        return {
            f"{node.name}/{array}": shape for node in self.nodes.values() for array, shape in node.parameters.items()
        }

    def describe(self) -> str:
        """A table of the nodes: layer, inputs, shape, parameters, and float32 bytes an image."""
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
    """The layer as it would be written down: settings that have their default are left out."""
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
