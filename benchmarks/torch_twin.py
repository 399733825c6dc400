"""The network of a `minicnn.Graph`, and its training step, in PyTorch: a competitor and an oracle."""

from collections.abc import Mapping

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from minicnn.graph import Graph, Node
from minicnn.layers import Concat, Conv2D, Input, MaxPool2D, MeanPool2D, Tanh, UpsampleNearest2D


class TorchNet(nn.Module):
    """A graph's nodes, one after the other, as PyTorch's own functions.

    Parameters
    ----------
    graph : Graph
    values : mapping of "node/array" to arrays
        First parameters, as a plan has them.
    """

    def __init__(self, graph: Graph, values: Mapping[str, np.ndarray]):
        super().__init__()
        self._nodes = list(graph.nodes.values())
        self._output = graph.output.name
        # a parameter's name must not have a dot or a slash in it
        self.arrays = nn.ParameterDict({_key(name): torch.tensor(np.array(array)) for name, array in values.items()})

    def parameter(self, name: str) -> nn.Parameter:
        """The parameter "node/array"."""
        return self.arrays[_key(name)]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, L, H, W) of images (N, 3, H, W)."""
        values: dict[str, torch.Tensor] = {}
        for node in self._nodes:
            inputs = [values[name] for name in node.inputs]
            values[node.name] = images if isinstance(node.layer, Input) else self._compute(node, inputs)
        return values[self._output]

    def _compute(self, node: Node, inputs: list[torch.Tensor]) -> torch.Tensor:
        layer, x = node.layer, inputs[0]
        match layer:
            case Conv2D():
                weight, bias = (self.parameter(f"{node.name}/{array}") for array in ("weight", "bias"))
                return functional.conv2d(x, weight, bias, padding=layer.window // 2)
            case Tanh():
                return torch.tanh(x)
            case MaxPool2D():
                padded = functional.pad(x, (layer.border, 0, layer.border, 0), value=-torch.inf) if layer.border else x
                return functional.max_pool2d(padded, layer.window, layer.stride)
            case MeanPool2D():
                return functional.avg_pool2d(x, layer.window)
            case UpsampleNearest2D(parity=False):
                return functional.interpolate(x, scale_factor=layer.factor, mode="nearest")
            case Concat():
                return torch.cat(inputs, 1)
        raise NotImplementedError(f"{node.name}: {layer}")


def _key(name: str) -> str:
    return name.replace("/", "_")


class TorchStep:
    """Forward, mean cross-entropy, backward and an SGD update with Nesterov's momentum, in one memory layout.

    Parameters
    ----------
    graph, values : as for TorchNet
    images : (N, 3, S, S) float32
    labels : (N, S, S) integers
    layout : "default" or "channels_last"
    compiled : bool
        Through ``torch.compile``.
    lr, momentum : float
    """

    def __init__(self, graph, values, images, labels, layout, compiled=False, lr=0.01, momentum=0.9):
        memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        self.net = TorchNet(graph, values)
        for array in self.net.parameters():
            if array.ndim == 4:
                array.data = array.data.contiguous(memory_format=memory)
        self._images = torch.tensor(images).contiguous(memory_format=memory)
        self._labels = torch.tensor(np.asarray(labels, np.int64))
        self._optimiser = torch.optim.SGD(self.net.parameters(), lr, momentum, nesterov=momentum > 0)
        self._loss = torch.compile(self._plain_loss) if compiled else self._plain_loss

    def _plain_loss(self) -> torch.Tensor:
        return functional.cross_entropy(self.net(self._images), self._labels)

    def __call__(self) -> float:
        """Run one step and return the loss before the update."""
        self._optimiser.zero_grad(set_to_none=True)
        loss = self._loss()
        loss.backward()
        self._optimiser.step()
        return float(loss.detach())
