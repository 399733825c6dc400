"""Is the network the paper's? Shapes, names, counts and order of channels, and errors that name the node."""

import math

import numpy as np
import pytest
from scipy.signal import correlate2d

from icnn.model.network import icnn_graph
from minicnn import Graph, Plan
from minicnn.graph import GraphError
from minicnn.layers import (
    Concat,
    Conv2D,
    Input,
    MaxPool2D,
    MeanPool2D,
    ShapeError,
    Tanh,
    UpsampleNearest2D,
)


def graph_with_image(channels: int = 3, height: int = 8, width: int = 8) -> Graph:
    graph = Graph()
    graph.add("image", Input(channels, height, width))
    return graph


# ---- adding nodes


def test_nodes_keep_their_order_and_know_their_shapes():
    graph = graph_with_image()
    assert graph.add("conv", Conv2D(5, 3), "image") == "conv"
    graph.add("pool", MaxPool2D(), "conv")
    graph.add("both", Concat(), "pool", "pool")
    assert list(graph.nodes) == ["image", "conv", "pool", "both"]
    assert [node.shape for node in graph.nodes.values()] == [(3, 8, 8), (5, 8, 8), (5, 4, 4), (10, 4, 4)]
    assert graph.input.name == "image" and graph.output.name == "both"
    assert graph.parameter_shapes == {"conv/weight": (5, 3, 3, 3), "conv/bias": (5,)}


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Conv2D(4, 2), (4, 6, 12)),
        (MaxPool2D(3, 2, 1), (2, 3, 6)),
        (MaxPool2D(3, 3), (2, 2, 4)),
        (MeanPool2D(3), (2, 2, 4)),
        (UpsampleNearest2D(3), (2, 18, 36)),
        (UpsampleNearest2D(2, parity=True), (4, 12, 24)),
        (Concat(), (2, 6, 12)),
        (Tanh(), (2, 6, 12)),
    ],
    ids=str,
)
def test_output_shapes(layer, shape):
    assert layer.output_shape((2, 6, 12)) == shape


def test_an_input_must_exist():
    with pytest.raises(GraphError, match=r"'conv' reads 'imgae', which does not exist"):
        graph_with_image().add("conv", Conv2D(1, 1), "imgae")


def test_a_name_is_given_once_and_the_graph_stays_as_it_was():
    graph = graph_with_image()
    with pytest.raises(GraphError, match="'image' exists already"):
        graph.add("image", Tanh(), "image")
    assert isinstance(graph.nodes["image"].layer, Input)


@pytest.mark.parametrize(
    ("layer", "inputs", "message"),
    [
        (MaxPool2D(), ("odd",), "divisible by the stride 2, got 7 x 8"),
        (MaxPool2D(3, 2, 3), ("image",), "padding from 0 to kernel_size - 1 = 2, got 3"),
        (MaxPool2D(3, 2), ("image",), "reaches past the last pixel"),
        (MeanPool2D(3), ("image",), "divisible by the kernel_size 3, got 8 x 8"),
        (Concat(), ("image", "odd"), "planes of one size, 8 x 8, got 7 x 8"),
        (Concat(), (), "at least 1 input, got 0"),
        (Conv2D(0, 3), ("image",), "positive out_channels and kernel_size, got 0 and 3"),
        (Tanh(), ("image", "odd"), "expected 1 input, got 2"),
        (Input(1, 2, 2), ("image",), "expected no inputs, got 1"),
    ],
    ids=lambda value: str(value) if not isinstance(value, (tuple, str)) else None,
)
def test_a_shape_error_names_node_expected_and_actual(layer, inputs, message):
    graph = graph_with_image()
    graph.add("odd", Input(3, 7, 8))
    with pytest.raises(ShapeError, match=rf"node 'bad' \({type(layer).__name__}\): .*{message}"):
        graph.add("bad", layer, *inputs)
    assert "bad" not in graph.nodes


def test_layers_are_frozen():
    with pytest.raises(AttributeError):
        Conv2D(1, 1).out_channels = 2


# ---- describe


def test_describe_by_hand():
    graph = graph_with_image()
    graph.add("conv", Conv2D(2, 3), "image")
    lines = [line.split() for line in graph.describe().splitlines()]
    assert lines[1] == ["image", "Input(channels=3,", "height=8,", "width=8)", "3", "x", "8", "x", "8", "768"]
    assert lines[2][:4] == ["conv", "Conv2D(out_channels=2,", "kernel_size=3)", "image"]
    assert lines[2][4:] == ["2", "x", "8", "x", "8", "56", "512"]
    assert lines[3:] == [["2", "nodes", "56", "1,280"]]


def test_describe_has_every_node_and_the_totals():
    graph = icnn_graph(labels=9, size=64)
    lines = graph.describe().splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == list(graph.nodes)
    n_bytes = sum(4 * int(np.prod(node.shape)) for node in graph.nodes.values())
    assert lines[-1].split() == [str(len(graph.nodes)), "nodes", "423,889", f"{n_bytes:,}"]


# ---- the network's parameters


@pytest.mark.parametrize(
    ("preset", "labels", "count"),
    [
        ("paper", 9, 423_889),
        ("paper", 2, 399_592),
        ("paper", 4, 404_914),
        ("released", 9, 447_729),
        ("released", 2, 422_732),
        ("released", 4, 428_254),
        ("separate", 9, 423_641),
        ("separate", 2, 397_944),
        ("separate", 4, 403_666),
    ],
)
def test_parameter_counts(preset, labels, count):
    shapes = icnn_graph(labels, 64, preset).parameter_shapes
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == count


def test_rows_without_links_meet_in_output_integration_only():
    graph = icnn_graph(9, 64, "separate")
    for node in graph.nodes.values():
        rows = {source.partition("/")[0] for source in node.inputs if source.startswith("row")}
        assert len(rows) <= 1
        if node.name.startswith("row") and rows and not node.name.endswith("/image"):
            assert rows == {node.name.partition("/")[0]}
    paper = sum(math.prod(shape) for shape in icnn_graph(9, 64).parameter_shapes.values())
    assert sum(math.prod(shape) for shape in graph.parameter_shapes.values()) == pytest.approx(paper, rel=0.001)


@pytest.mark.parametrize("preset", ["paper", "released"])
@pytest.mark.parametrize("labels", [2, 9])
def test_names_and_shapes_of_the_parameters(preset, labels):
    """Own channels, the finer neighbour's, the coarser one's, and two parity maps with each upsampling."""
    parity, first = (0, 5) if preset == "paper" else (2, 9)
    channels = {1: 8, 2: 16, 3: 24, 4: 32}
    last = 2 * (labels - 1) + 8
    expected = {}
    for k, out_channels in channels.items():
        expected[f"row{k}/round0"] = (out_channels, 3, first)
        coarser = channels[k + 1] + parity if k < 4 else 0
        for r in (1, 2, 3):
            expected[f"row{k}/round{r}"] = (out_channels, out_channels + channels.get(k - 1, 0) + coarser, 5)
    expected["integrate/row3"] = (24, 24 + 32 + parity, 5)
    expected["integrate/row2"] = (16, 16 + 24 + parity, 5)
    expected["integrate/row1"] = (last, 8 + 16 + parity, 5)
    expected["output"] = (labels, last, 9)
    shapes = {f"{name}/conv/weight": (o, c, k, k) for name, (o, c, k) in expected.items()}
    shapes |= {f"{name}/conv/bias": (o,) for name, (o, _, _) in expected.items()}
    graph = icnn_graph(labels, 64, preset)
    assert graph.parameter_shapes == shapes
    assert graph.output.name == "output/conv" and graph.output.shape == (labels, 64, 64)


def test_the_graph_knows_what_it_is():
    graph = icnn_graph(labels=4, size=80, preset="released")
    assert graph.attributes == {"preset": "released", "labels": 4, "size": 80}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": 1}, "at least 2 labels.*got 1"),
        ({"size": 20}, "multiple of 8, got 20"),
        ({"size": 0}, "multiple of 8, got 0"),
        ({"preset": "both"}, "'both'.*paper, released"),
    ],
)
def test_networks_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        icnn_graph(**({"labels": 9, "size": 64} | wrong))


# ---- what the network computes


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_concatenation_is_own_finer_coarser(preset):
    """Weights 0 and one bias for each row make constant maps, which tell where they came from."""
    plan = Plan(icnn_graph(3, 16, preset), 1, "numpy", "float64", threads=1, share=False)
    for name, array in plan.parameters.items():
        array[...] = 0.1 * int(name[3]) if name.startswith("row") and name.endswith("bias") else 0
    plan.parameters["integrate/row3/conv/bias"][...] = 0.7
    plan.forward(np.zeros((1, 3, 16, 16)))

    def channels(node: str) -> list[float]:
        maps = plan.array("activation", node, 1)[0]
        return [float(np.arctanh(maps[c, 0, 0])) for c in range(len(maps))]

    parity = [0.0] * (2 if preset == "released" else 0)  # 0 at the first pixel
    row1, row2, row3, row4 = [0.1] * 8, [0.2] * 16, [0.3] * 24, [0.4] * 32
    assert channels("row1/round1/concat") == pytest.approx([*row1, *row2, *parity])
    assert channels("row2/round2/concat") == pytest.approx([*row2, *row1, *row3, *parity])
    assert channels("row3/round3/concat") == pytest.approx([*row3, *row2, *row4, *parity])
    assert channels("row4/round1/concat") == pytest.approx([*row4, *row3])
    assert channels("integrate/row3/concat") == pytest.approx([*row3, *row4, *parity])
    assert channels("integrate/row2/concat") == pytest.approx([*row2, *[0.7] * 24, *parity])


def test_released_upsampling_appends_column_then_row_parity():
    plan = Plan(icnn_graph(3, 16, "released"), 2, "numpy", "float64", threads=1, share=False)
    plan.forward(np.ones((2, 3, 16, 16)))
    for name, side in (("row1/round2/coarser", 16), ("integrate/row3/coarser", 4)):
        maps = plan.array("activation", name, 2)[:, -2:]
        odd = np.arange(side) % 2
        np.testing.assert_array_equal(maps[:, 0], np.broadcast_to(odd, (2, side, side)))
        np.testing.assert_array_equal(maps[:, 1], np.broadcast_to(odd[:, None], (2, side, side)))


class Figure1:
    """The network for one image, written from Fig. 1 and the table of the released program, without minicnn."""

    def __init__(self, parameters, preset: str):
        self.parameters = parameters
        self.released = preset == "released"

    def conv(self, name: str, x: np.ndarray) -> np.ndarray:
        """(C, H, W) to (O, H, W)."""
        w, b = self.parameters[f"{name}/conv/weight"], self.parameters[f"{name}/conv/bias"]
        return np.array(
            [sum(correlate2d(x[c], w[o, c], mode="same") for c in range(len(x))) + b[o] for o in range(len(w))]
        )

    def pyramid(self, x: np.ndarray) -> np.ndarray:
        return self.down(x) if self.released else self.quarters(x).mean(0)

    def down(self, x: np.ndarray) -> np.ndarray:
        """Paper: 2 x 2 maximum. Released: 3 x 3, stride 2, -1e10 on top and on the left."""
        if not self.released:
            return self.quarters(x).max(0)
        padded = np.pad(x, ((0, 0), (1, 0), (1, 0)), constant_values=-1e10)
        height, width = x.shape[1:]
        return np.max([padded[:, u : u + height : 2, v : v + width : 2] for u in range(3) for v in range(3)], 0)

    def quarters(self, x: np.ndarray) -> np.ndarray:
        return np.array([x[:, u::2, v::2] for u in (0, 1) for v in (0, 1)])

    def up(self, x: np.ndarray) -> np.ndarray:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        if not self.released:
            return x
        rows, columns = np.indices(x.shape[1:])
        return np.concatenate([x, [columns % 2, rows % 2]])

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Logits (L, H, W) of an image (3, H, W)."""
        images = [image]
        for _ in range(3):
            images.append(self.pyramid(images[-1]))
        x = [np.tanh(self.conv(f"row{k + 1}/round0", images[k])) for k in range(4)]
        for r in (1, 2, 3):
            joined = [
                [x[0], self.up(x[1])],
                [x[1], self.down(x[0]), self.up(x[2])],
                [x[2], self.down(x[1]), self.up(x[3])],
                [x[3], self.down(x[2])],
            ]
            x = [np.tanh(self.conv(f"row{k + 1}/round{r}", np.concatenate(joined[k]))) for k in range(4)]
        y = x[3]
        for k in (3, 2, 1):
            y = np.tanh(self.conv(f"integrate/row{k}", np.concatenate([x[k - 1], self.up(y)])))
        return self.conv("output", y)


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_the_network_is_figure_1(preset, rng):
    plan = Plan(icnn_graph(3, 16, preset), 2, "numpy", "float64", threads=1)
    for name, array in plan.parameters.items():
        if name.endswith("/bias"):
            array[...] = rng.uniform(-0.5, 0.5, array.shape)
    images = rng.standard_normal((2, 3, 16, 16))
    expected = [Figure1(plan.parameters, preset)(image) for image in images]
    np.testing.assert_allclose(plan.forward(images), expected, rtol=0, atol=1e-12)
