"""Conversion of one network to ONNX, from image pixels to labels."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from icnn.classes import PARTS
from icnn.errors import InputError
from icnn.model.modulation import PLAIN, Pair
from icnn.model.weights import read_network
from icnn.stages import NETWORKS
from minicnn import Graph
from minicnn.graph import Node
from minicnn.layers import Concat, Conv2D, Input, Layer, MaxPool2D, MeanPool2D, Tanh, UpsampleNearest2D

OPSET = 18  # the first opset in which all reductions take their axes as an input
_IR_VERSION = 9


def onnx_package():
    """Import and return the package onnx.

    Raises
    ------
    InputError
        If it is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise InputError("expected the package onnx, found none; try pip install 'icnn[onnx]'") from None
    return onnx


def model_of(weights: Path, name: str) -> Any:
    """Build the `onnx.ModelProto` of one network.

    Parameters
    ----------
    weights : Path
        Folder of weights.
    name : str
        Key of `icnn.stages.NETWORKS`.

    Raises
    ------
    InputError
        If the weights are missing or corrupted, or the package onnx is not installed.
    """
    stored = read_network(weights, name)
    about = {"network": name, "preset": stored.metadata["preset"], "classes": json.dumps(_classes(name))}
    about |= {key: text for key, text in stored.card.items() if key in ("data", "terms")}
    return to_onnx(stored.graph, stored.parameters, stored.pair, about)


def _classes(name: str) -> list[str]:
    """Return the class names of a network; stage 2 gets right eyebrows and eyes mirrored, as left ones."""
    ids = NETWORKS[name].ids
    names = [PARTS[part] if name == "stage1" else PARTS[part].removeprefix("left_") for part in ids]
    return ["background", *names]


def to_onnx(
    graph: Graph, parameters: Mapping[str, np.ndarray], pair: Pair = PLAIN, about: Mapping[str, str] | None = None
) -> Any:
    """Build an ONNX model equivalent to `icnn.data.resample.normalise`, a plan's forward pass and `modulate`.

    Parameters
    ----------
    graph : Graph
    parameters : mapping of str to float32 array
        Parameter name in the graph -> values.
    pair : (beta, beta0)
        Background modulation (Sec. 4.2).
    about : mapping of str to str
        Entries of the model's metadata.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    ValueError
        If a layer has no ONNX counterpart here.
    InputError
        If the package onnx is not installed.
    """
    helper = onnx_package().helper
    builder = _Builder(helper)
    channels, height, width = graph.input.shape
    entry = builder.normalised(channels, height, width)
    written = {graph.input.name: entry}
    for node in graph.nodes.values():
        if not isinstance(node.layer, Input):
            sources = [written[source] for source in node.inputs]
            written[node.name] = builder.layer(node, sources, parameters)
    builder.results(written[graph.output.name], pair)
    labels = graph.output.shape[0]
    types = helper.np_dtype_to_tensor_dtype
    image = helper.make_tensor_value_info("image", types(np.dtype(np.float32)), ["n", channels, height, width])
    inside = helper.make_tensor_value_info("inside", types(np.dtype(bool)), ["m", 1, height, width])
    outputs = [
        helper.make_tensor_value_info(key, types(np.dtype(np.float32)), ["n", labels, height, width])
        for key in ("logits", "probabilities")
    ]
    outputs.append(helper.make_tensor_value_info("labels", types(np.dtype(np.uint8)), ["n", height, width]))
    made = helper.make_graph(builder.nodes, "icnn", [image, inside], outputs, builder.constants)
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION, producer_name="icnn"
    )
    helper.set_model_props(model, dict(about or {}))
    return model


class _Builder:
    """Builder of ONNX nodes and constants; methods return the name of the tensor that they add."""

    def __init__(self, helper: Any):
        self._helper = helper
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, values: Any, dtype: type = np.float32) -> str:
        """Add a constant tensor (initializer)."""
        from onnx.numpy_helper import from_array

        self.constants.append(from_array(np.ascontiguousarray(values, dtype), name))
        return name

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append one ONNX node."""
        self.nodes.append(self._helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def normalised(self, channels: int, height: int, width: int) -> str:
        """Add `resample.normalise`: zero mean and unit deviation over the pixels inside, 0 elsewhere (Sec. 3.1)."""
        # The initializer is the default of the input, which may be omitted if there is no padding.
        self.constant("inside", np.ones((1, 1, height, width)), bool)
        plane, one = self.constant("norm/axes", [2, 3], np.int64), self.constant("norm/one", 1)
        ask = self.node("Cast", ["inside"], "norm/weights", to=1)
        count = self.node("ReduceSum", [ask, plane], "norm/pixels", keepdims=1)
        count = self.node("Max", [count, one], "norm/count")
        image = self.node("Mul", ["image", ask], "norm/masked")
        total = self.node("ReduceSum", [image, plane], "norm/total", keepdims=1)
        mean = self.node("Div", [total, count], "norm/mean")
        offset = self.node("Sub", [image, mean], "norm/offset")
        offset = self.node("Mul", [offset, ask], "norm/centred")
        squares = self.node("Mul", [offset, offset], "norm/squares")
        squares = self.node("ReduceSum", [squares, plane], "norm/squares_total", keepdims=1)
        variance = self.node("Div", [squares, count], "norm/variance")
        std = self.node("Sqrt", [variance], "norm/std")
        peak = self.node("ReduceMax", [self.node("Abs", [image], "norm/abs"), plane], "norm/peak", keepdims=1)
        least = self.node("Mul", [peak, self.constant("norm/rounding", 1e-5)], "norm/least")
        flat = self.node("LessOrEqual", [std, least], "norm/flat")
        std = self.node("Where", [flat, one, std], "norm/divisor")
        return self.node("Div", [offset, std], "norm/image")

    def layer(self, node: Node, sources: Sequence[str], parameters: Mapping[str, np.ndarray]) -> str:
        """Convert one node of the graph."""
        convert = _LAYERS.get(type(node.layer))
        if convert is None:
            raise ValueError(f"node {node.name!r}: {type(node.layer).__name__} has no ONNX counterpart here")
        own = {
            name: self.constant(f"{node.name}/{name}", parameters[f"{node.name}/{name}"]) for name in node.parameters
        }
        return convert(self, node, node.layer, sources, own)

    def results(self, logits: str, pair: Pair) -> None:
        """Add background modulation (Sec. 4.2), softmax and arg-max."""
        beta, beta0 = pair
        parts = self.constant("modulation/axis", [1], np.int64)
        first, second = self.constant("modulation/0", [0], np.int64), self.constant("modulation/1", [1], np.int64)
        last = self.constant("modulation/end", [np.iinfo(np.int64).max], np.int64)
        background = self.node("Slice", [logits, first, second, parts], "modulation/background")
        others = self.node("Slice", [logits, second, last, parts], "modulation/parts")
        background = self.node("Mul", [background, self.constant("modulation/beta", beta)], "modulation/scaled")
        background = self.node("Add", [background, self.constant("modulation/beta0", beta0)], "modulation/raised")
        self.node("Concat", [background, others], "logits", axis=1)
        self.node("Softmax", ["logits"], "probabilities", axis=1)
        best = self.node("ArgMax", ["logits"], "labels/wide", axis=1, keepdims=0)
        self.node("Cast", [best], "labels", to=2)


def _convolution(b: _Builder, node: Node, layer: Conv2D, sources: Sequence[str], own: Mapping[str, str]) -> str:
    before, after = (layer.kernel_size - 1) // 2, layer.kernel_size // 2
    pads = [before, before, after, after]
    return b.node("Conv", [sources[0], own["weight"], own["bias"]], node.name, pads=pads)


def _max_pool(b: _Builder, node: Node, layer: MaxPool2D, sources: Sequence[str], own: Mapping[str, str]) -> str:
    return b.node(
        "MaxPool", sources, node.name,
        kernel_shape=[layer.kernel_size] * 2, strides=[layer.stride] * 2, pads=[layer.padding, layer.padding, 0, 0],
    )  # fmt: skip


def _mean_pool(b: _Builder, node: Node, layer: MeanPool2D, sources: Sequence[str], own: Mapping[str, str]) -> str:
    return b.node(
        "AveragePool", sources, node.name, kernel_shape=[layer.kernel_size] * 2, strides=[layer.kernel_size] * 2
    )


def _upsample(b: _Builder, node: Node, layer: UpsampleNearest2D, sources: Sequence[str], own: Mapping[str, str]) -> str:
    scales = b.constant(f"{node.name}/scales", [1, 1, layer.factor, layer.factor])
    larger = f"{node.name}/larger" if layer.parity else node.name
    b.node(
        "Resize", [sources[0], "", scales], larger,
        mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip
    if not layer.parity:
        return larger
    _, height, width = node.shape
    odd = np.indices((height, width)) % 2
    maps = b.constant(f"{node.name}/parity", odd[None, ::-1])
    # Expand to the batch size at run time: no other ONNX operator repeats along an unknown dimension.
    images = b.node("Shape", [larger], f"{node.name}/images", start=0, end=1)
    ones = b.constant(f"{node.name}/ones", [1, 1, 1], np.int64)
    shape = b.node("Concat", [images, ones], f"{node.name}/copies", axis=0)
    copies = b.node("Expand", [maps, shape], f"{node.name}/parities")
    return b.node("Concat", [larger, copies], node.name, axis=1)


def _concat(b: _Builder, node: Node, layer: Concat, sources: Sequence[str], own: Mapping[str, str]) -> str:
    return b.node("Concat", sources, node.name, axis=1)


def _tanh(b: _Builder, node: Node, layer: Tanh, sources: Sequence[str], own: Mapping[str, str]) -> str:
    return b.node("Tanh", sources, node.name)


_LAYERS: dict[type[Layer], Callable[..., str]] = {
    Conv2D: _convolution,
    MaxPool2D: _max_pool,
    MeanPool2D: _mean_pool,
    UpsampleNearest2D: _upsample,
    Concat: _concat,
    Tanh: _tanh,
}
