"""Every array of a run, and the order in which kernels touch them.

A plan takes a graph and a batch size, decides once which arrays share a
buffer and which gradient is stored or added, allocates everything, and after
that only calls kernels.
"""

import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import numpy as np

from minicnn.checkpoint import check_fit, load_tensors, save_tensors
from minicnn.graph import Graph
from minicnn.kernels import get_backend
from minicnn.loss import SoftmaxCrossEntropy
from minicnn.memory import assign_buffers, lifetimes, needs_gradient
from minicnn.parameters import Parameters, Views
from minicnn.sgd import SGD

try:
    VERSION = version("icnn")
except PackageNotFoundError:  # imported from a source tree that is not installed
    VERSION = "unknown"


class _Call(NamedTuple):
    """One kernel launch of a pass: the node it belongs to, and what to call."""

    node: str
    run: Callable[[], None]


class Plan:
    """Runs a graph forward, backward and through updates.

    Parameters
    ----------
    graph : Graph
    batch : int
        Most images of one pass.
    backend : str
        "numpy" or "numba".
    dtype : "float32" or "float64"
        Of all activations, gradients and parameters.
    seed : int or SeedSequence
        Of the first parameter values.
    threads : int, optional
        CPU threads of the kernels; default all.
    share : bool
        Let arrays whose lives do not overlap share a buffer. Results are the same bits either way.
    input_gradient : bool
        Also compute the gradient of the images, `input_gradient`; parsing and training do not need it.
    hook : callable, optional
        ``hook(phase, node)`` after each node's "forward" and "backward".

    Attributes
    ----------
    parameters, gradients : mapping of "node/array" to writable backend arrays
        What is written into `parameters` counts from the next forward.
    step_count : int
        Updates made so far; schedules read it.
    """

    def __init__(
        self,
        graph: Graph,
        batch: int,
        backend: str = "numpy",
        dtype: str = "float32",
        seed: int | np.random.SeedSequence = 0,
        threads: int | None = None,
        share: bool = True,
        input_gradient: bool = False,
        hook: Callable[[str, str], None] | None = None,
    ):
        if batch < 1:
            raise ValueError(f"expected a batch of at least 1, got {batch}")
        if dtype not in ("float32", "float64"):
            raise ValueError(f"expected dtype float32 or float64, got {dtype!r}")
        self.graph = graph
        self.batch = batch
        self.threads = threads or len(os.sched_getaffinity(0))
        self.hook = hook
        self.step_count = 0
        self._kernels = get_backend(backend)
        self._store = Parameters(graph, self._kernels, dtype)
        self._store.initialise(np.random.default_rng(seed))
        self._needed = needs_gradient(graph, input_gradient)
        self.lives = lifetimes(graph, self._needed)
        self.assigned = assign_buffers(self.lives, share)
        shapes = {self.assigned[name]: life.shape for name, life in self.lives.items()}
        self.buffers = {number: self._kernels.zeros((batch, *shape), dtype) for number, shape in shapes.items()}
        self._loss = SoftmaxCrossEntropy(self._kernels, graph.output.shape, batch, dtype)
        self._scratch = self._kernels.zeros(self._scratch_size(), dtype)
        self._passes: dict[int, tuple[list[_Call], list[_Call]]] = {}
        self._n = 0  # images of the last forward; 0 before it
        self._done = ""  # last pass: "forward", "loss" or "backward"

    # ---- construction

    def _scratch_size(self) -> int:
        """The largest wish of all kernel calls: they run one after the other and share one scratch."""
        labels, height, width = self.graph.output.shape
        loss_size = {"L": labels, "H": height, "W": width}
        wishes = [
            ("sgd_update", {"V": self._store.flat.size}),
            ("softmax_cross_entropy_forward", loss_size),
            ("softmax_cross_entropy_backward", loss_size),
        ]
        for node in self.graph.nodes.values():
            wishes.extend(node.layer.kernel_sizes(*self.graph.input_shapes(node)).items())
        return max(self._kernels.scratch_size(kernel, N=self.batch, **size) for kernel, size in wishes)

    def _array(self, kind: str, node: str, n: int):
        return self.buffers[self.assigned[f"{kind}/{node}"]][:n]

    def _calls(self, n: int) -> tuple[list[_Call], list[_Call]]:
        """Forward and backward passes over n images, as lists of ready calls; made once for each n."""
        if n not in self._passes:
            nodes = [node for node in self.graph.nodes.values() if node.inputs]
            self._passes[n] = (
                [self._forward_call(node, n) for node in nodes],
                self._backward_calls(nodes, n),
            )
        return self._passes[n]

    def _local(self, views: Views, node) -> dict:
        return {array: views[f"{node.name}/{array}"] for array in node.parameters}

    def _forward_call(self, node, n: int) -> _Call:
        y = self._array("activation", node.name, n)
        xs = [self._array("activation", name, n) for name in node.inputs]
        parameters = self._local(self.parameters, node)

        def run() -> None:
            node.layer.forward(self._kernels, y, xs, parameters, self._scratch)

        return _Call(node.name, run)

    def _backward_calls(self, nodes: list, n: int) -> list[_Call]:
        """In reverse order. The first writer of a gradient stores, later ones add: decided here, once."""
        written: set[str] = set()
        calls = []
        for node in reversed(nodes):
            if node.name not in self._needed:
                continue
            dxs, adds = [], []
            for name in node.inputs:
                dxs.append(self._array("gradient", name, n) if name in self._needed else None)
                adds.append(name in written)
                written.add(name)
            calls.append(self._backward_call(node, n, dxs, adds))
        return calls

    def _backward_call(self, node, n: int, dxs: list, adds: list[bool]) -> _Call:
        dy = self._array("gradient", node.name, n)
        y = self._array("activation", node.name, n)
        xs = [self._array("activation", name, n) for name in node.inputs]
        parameters = self._local(self.parameters, node)
        gradients = self._local(self.gradients, node)

        def run() -> None:
            node.layer.backward(
                self._kernels, dxs, gradients, dy, y, xs, parameters, self._scratch, adds
            )  # fmt: skip

        return _Call(node.name, run)

    # ---- running

    @property
    def parameters(self) -> Views:
        return self._store.values

    @property
    def gradients(self) -> Views:
        return self._store.gradients

    @property
    def has_input_gradient(self) -> bool:
        """Whether backward computes `input_gradient`."""
        return self.graph.input.name in self._needed

    @property
    def input_gradient(self):
        """Gradient of the last loss with respect to the images, (n, C, H, W); asked for at construction."""
        return self._array("gradient", self.graph.input.name, self._n)

    def _run(self, calls: list[_Call], phase: str) -> None:
        with self._kernels.threads(self.threads):
            for call in calls:
                call.run()
                if self.hook is not None:
                    self.hook(phase, call.node)

    def forward(self, images: np.ndarray):
        """Logits (n, L, H, W) of `images` (n, C, H, W), n at most `batch`; valid until the next forward.

        Raises
        ------
        ValueError
            For images of another shape, or more than `batch` of them.
        """
        images = np.asarray(images)
        expected = self.graph.input.shape
        if images.ndim != 4 or images.shape[1:] != expected or not 1 <= images.shape[0] <= self.batch:
            shape = ", ".join(map(str, expected))
            raise ValueError(f"expected images (n, {shape}) with n from 1 to {self.batch}, got {images.shape}")
        self._n = images.shape[0]
        self._done = "forward"
        self._kernels.upload(self._array("activation", self.graph.input.name, self._n), images)
        self._run(self._calls(self._n)[0], "forward")
        return self._array("activation", self.graph.output.name, self._n)

    def loss(self, labels: np.ndarray, weights: np.ndarray | None = None):
        """Mean cross-entropy of the last forward's logits, weighted by pixel: sum(w l) / sum(w), a 0-d array.

        Parameters
        ----------
        labels : (n, H, W) integers in [0, L)
        weights : (n, H, W) of at least 0, optional

        Raises
        ------
        ValueError
            For other shapes or values, or weights that sum to 0.
        RuntimeError
            Unless forward has run since the last backward.
        """
        if self._done not in ("forward", "loss"):
            raise RuntimeError("call forward before loss")
        logits = self._array("activation", self.graph.output.name, self._n)
        with self._kernels.threads(self.threads):
            value = self._loss.forward(logits, labels, weights, self._scratch)
        self._done = "loss"
        return value

    def backward(self) -> None:
        """Gradients of the last loss with respect to every parameter, into `gradients`.

        Raises
        ------
        RuntimeError
            Before any loss of the last forward.
        """
        if self._done != "loss":
            raise RuntimeError("call forward and loss before backward")
        with self._kernels.threads(self.threads):
            self._loss.backward(self._array("gradient", self.graph.output.name, self._n), self._scratch)
        self._run(self._calls(self._n)[1], "backward")
        self._done = "backward"  # what it read may be overwritten: shared buffers

    def update(self, optimiser: SGD) -> None:
        """Apply the last gradients to the parameters."""
        with self._kernels.threads(self.threads):
            self._kernels.sgd_update(
                self._store.flat,
                self._store.flat_velocity,
                self._store.flat_gradients,
                self._scratch,
                optimiser.rate(self.step_count),
                optimiser.momentum,
                optimiser.nesterov,
                optimiser.weight_decay,
                optimiser.shrink,
            )
        self.step_count += 1

    def step(self, images: np.ndarray, labels: np.ndarray, optimiser: SGD, weights: np.ndarray | None = None):
        """Forward, loss, backward and update; returns the loss before the update, a 0-d array."""
        self.forward(images)
        value = self.loss(labels, weights)
        self.backward()
        self.update(optimiser)
        return value

    # ---- checkpoints

    def save(self, path: str | os.PathLike, **metadata: object) -> None:
        """Write the parameters as safetensors, with the graph's attributes, beta 1 and beta0 0 unless given."""
        tensors = {name: self._kernels.download(array) for name, array in self.parameters.items()}
        about = {"beta": 1.0, "beta0": 0.0, "version": VERSION, **self.graph.attributes, **metadata}
        save_tensors(path, tensors, about)

    def load(self, path: str | os.PathLike) -> dict[str, str]:
        """Read parameters that `save` wrote; returns the file's metadata.

        Raises
        ------
        CheckpointError
            If the file cannot be read or holds another network's weights; nothing is changed then.
        """
        tensors, metadata = load_tensors(path)
        check_fit(path, tensors, self.graph.parameter_shapes)
        for name, tensor in tensors.items():
            self._kernels.upload(self.parameters[name], tensor)
        return metadata

    def state(self) -> dict[str, np.ndarray]:
        """Copies of what a training must keep to go on bit for bit, besides `step_count`."""
        return {
            "values": self._kernels.download(self._store.flat).copy(),
            "velocity": self._kernels.download(self._store.flat_velocity).copy(),
        }

    def restore(self, state: dict[str, np.ndarray], step_count: int) -> None:
        """Put back what `state` returned.

        Raises
        ------
        ValueError
            If the arrays are another network's; nothing is changed then.
        """
        buffers = {"values": self._store.flat, "velocity": self._store.flat_velocity}
        for name, buffer in buffers.items():
            if state[name].shape != buffer.shape:
                raise ValueError(f"expected {name} of shape {buffer.shape}, got {state[name].shape}")
        for name, buffer in buffers.items():
            self._kernels.upload(buffer, state[name])
        self.step_count = step_count
