"""PyTorch implementation of a `minicnn.Graph` and its training step, for benchmarks and as a test reference."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch import nn  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from minicnn.graph import Graph, Node
from minicnn.layers import Concat, Conv2D, Input, MaxPool2D, MeanPool2D, Tanh, UpsampleNearest2D


class TorchNet(nn.Module):
    """Network that evaluates a graph's nodes in order with PyTorch's own functions.

    Parameters
    ----------
    graph : Graph
    values : mapping of "node/array" to NumPy arrays
        Initial parameters.

    Attributes
    ----------
    names : list of str
        "node/array" of every parameter.
    """

    def __init__(self, graph: Graph, values: Mapping[str, np.ndarray]):
        super().__init__()
        self._nodes = list(graph.nodes.values())
        self._output = graph.output.name
        self.names = list(values)
        # a parameter's name must not contain a dot or a slash
        self.arrays = nn.ParameterDict({_key(name): torch.tensor(np.array(array)) for name, array in values.items()})

    def parameter(self, name: str) -> nn.Parameter:
        """Return the parameter "node/array"."""
        return self.arrays[_key(name)]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, L, H, W) of images (N, 3, H, W)."""
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
                return functional.conv2d(x, weight, bias, padding=layer.kernel_size // 2)
            case Tanh():
                return torch.tanh(x)
            case MaxPool2D():
                padded = (
                    functional.pad(x, (layer.padding, 0, layer.padding, 0), value=-torch.inf) if layer.padding else x
                )
                return functional.max_pool2d(padded, layer.kernel_size, layer.stride)
            case MeanPool2D():
                return functional.avg_pool2d(x, layer.kernel_size)
            case UpsampleNearest2D(parity=False):
                return functional.interpolate(x, scale_factor=layer.factor, mode="nearest")
            case Concat():
                return torch.cat(inputs, 1)
        raise NotImplementedError(f"{node.name}: {layer}")


def _key(name: str) -> str:
    return name.replace("/", "_")


class TorchStep:
    """Training step: forward, mean cross-entropy, backward and SGD with Nesterov momentum, in one memory layout.

    Parameters
    ----------
    graph : Graph
    values : mapping of "node/array" to NumPy arrays
        Initial parameters.
    images : (N, 3, S, S) float32
    labels : (N, S, S) integers
    layout : "default" or "channels_last"
    compiled : bool or str
        Whether to use ``torch.compile``; a string is its mode.
    device : "cpu" or "cuda"
    dtype : "float32" or "float64"
    lr, momentum, weight_decay : float
    """

    def __init__(
        self,
        graph: Graph,
        values: Mapping[str, np.ndarray],
        images: np.ndarray,
        labels: np.ndarray,
        layout: str = "default",
        compiled: bool | str = False,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ):
        memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        real = getattr(torch, dtype)
        self.net = TorchNet(graph, values).to(device, real)
        for array in self.net.parameters():
            if array.ndim == 4:
                array.data = array.data.contiguous(memory_format=memory)
        self._images = torch.tensor(images, dtype=real, device=device).contiguous(memory_format=memory)
        self._labels = torch.tensor(np.asarray(labels, np.int64), device=device)
        self._optimiser = torch.optim.SGD(
            self.net.parameters(), lr, momentum, weight_decay=weight_decay, nesterov=momentum > 0
        )
        self._loss, self._mode = self._plain_loss, compiled
        if compiled:
            self._loss = torch.compile(self._plain_loss, mode=compiled if isinstance(compiled, str) else None)

    def _plain_loss(self) -> torch.Tensor:
        return functional.cross_entropy(self.net(self._images), self._labels)

    def feed(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Copy in another batch of the same size, with images (N, 3, S, S) and labels (N, S, S)."""
        self._images.copy_(torch.from_numpy(images))
        self._labels.copy_(torch.from_numpy(np.asarray(labels, np.int64)))

    def gradients(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Compute gradients without an update.

        Returns
        -------
        logits : (N, L, S, S) array
        gradients : dict of str to array
            Gradient of each parameter, by "node/array".
        """
        self._optimiser.zero_grad(set_to_none=True)
        logits = self.net(self._images)
        functional.cross_entropy(logits, self._labels).backward()
        found = {name: self.net.parameter(name).grad for name in self.net.names}
        return logits.detach().cpu().numpy(), {name: grad.cpu().numpy() for name, grad in found.items()}

    def __call__(self) -> torch.Tensor:
        """Run one step; return the loss before the update as a 0-d tensor. Reading its value waits for the GPU."""
        if self._mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        self._optimiser.zero_grad(set_to_none=True)
        loss = self._loss()
        loss.backward()
        self._optimiser.step()
        return loss.detach()

    def captured(self) -> Callable[[], torch.Tensor]:
        """Return the step as one CUDA graph, captured after steps on a side stream, as PyTorch's notes recommend."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self()

        def replay() -> torch.Tensor:
            graph.replay()
            return loss

        return replay


@contextmanager
def tensor_cores(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 rounding on a GPU (convolutions: PyTorch's default is on); enable cuDNN's autotuning."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32, convolutions.benchmark
    convolutions.allow_tf32 = products.allow_tf32 = allowed
    convolutions.benchmark = True
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32, convolutions.benchmark = before
