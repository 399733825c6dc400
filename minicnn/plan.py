"""Every array of a run, and the order in which kernels touch them.

A plan takes a graph and a batch size, decides once which arrays share a
buffer and which gradient is stored or added, allocates everything, and after
that only calls kernels.
"""

import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import NamedTuple

import numpy as np

from minicnn.checkpoint import check_fit, load_tensors, save_tensors
from minicnn.graph import Graph, Node
from minicnn.kernels import get_backend
from minicnn.layers import Concat, Conv2D, Shape
from minicnn.loss import SoftmaxCrossEntropy
from minicnn.memory import assign_buffers, lifetimes, needs_gradient
from minicnn.parameters import Parameters, Views
from minicnn.schedule import Schedule, Unit
from minicnn.sgd import SGD

try:
    VERSION = version("icnn")
except PackageNotFoundError:  # imported from a source tree that is not installed
    VERSION = "unknown"


class _Calls(NamedTuple):
    """One unit of a pass: the node that names it, and the kernel calls it makes."""

    node: str
    calls: list[Callable[[], None]]


class _Recorder:
    """Stands in for a backend: a layer's calls are noted, bound to their arrays, instead of made."""

    def __init__(self, kernels: ModuleType):
        self._kernels = kernels
        self.calls: list[Callable[[], None]] = []

    def __getattr__(self, kernel: str) -> Callable[..., None]:
        return lambda *arguments: self.calls.append(self._kernels.bind(kernel, *arguments))


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
        ``hook(phase, node)`` after each unit's "forward" and "backward"; its first node stands for it.

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
        self.schedule = Schedule(graph, self._needed)
        self.lives = lifetimes(graph, self.schedule, self._needed)
        self.assigned = assign_buffers(self.lives, share)
        shapes = {self.assigned[name]: life.shape for name, life in self.lives.items()}
        self.buffers = {number: self._make_buffer(shape, dtype) for number, shape in shapes.items()}
        self._loss = SoftmaxCrossEntropy(self._kernels, graph.output.shape, batch, dtype)
        self._scratch = self._kernels.zeros(self._scratch_size(), dtype)
        self._passes: dict[int, tuple[list[_Calls], list[_Calls]]] = {}
        self._n = 0  # images of the last forward; 0 before it
        self._done = ""  # last pass: "forward", "loss" or "backward"

    # ---- construction

    def _make_buffer(self, shape: Shape, dtype: str):
        """A buffer whose halo is enough for every convolution on planes of this size."""
        nodes = self.graph.nodes.values()
        windows = [n.layer.window for n in nodes if isinstance(n.layer, Conv2D) and n.shape[1:] == shape[1:]]
        return self._kernels.planes((self.batch, *shape), dtype, max(windows, default=1) // 2)

    def _scratch_size(self) -> int:
        """The largest wish of all kernel calls: they run one after the other and share one scratch."""
        labels, height, width = self.graph.output.shape
        loss_size = {"L": labels, "H": height, "W": width}
        wishes = [
            ("sgd_update", {"V": self._store.flat.size}),
            ("softmax_cross_entropy_forward", loss_size),
            ("softmax_cross_entropy_backward", loss_size),
        ]
        for unit in self.schedule.units:
            wishes.extend(unit.node.layer.kernel_sizes(*self.graph.input_shapes(unit.node)).items())
            if unit.interlinks:
                channels, height, width = unit.node.shape
                wishes.append(("interlink_backward", {"C": channels, "H": height, "W": width}))
        return max(self._kernels.scratch_size(kernel, N=self.batch, **size) for kernel, size in wishes)

    def array(self, kind: str, node: str, n: int):
        """The first n images of a node's "activation" or "gradient", (n, C, H, W), wherever it lies.

        Others may have overwritten it by the time a pass is over, unless ``share=False``; a hook sees it in time. A
        convolution that a tanh follows is always overwritten by it.
        """
        home, first = self.schedule.homes[f"{kind}/{node}"]
        channels = self.graph.nodes[node].shape[0]
        return self.buffers[self.assigned[home]][:n, first : first + channels]

    def _calls(self, n: int) -> tuple[list[_Calls], list[_Calls]]:
        """Forward and backward passes over n images, unit by unit; made once for each n."""
        if n not in self._passes:
            units = [unit for unit in self.schedule.units if unit.node.inputs]
            forward = [_Calls(unit.node.name, self._forward(unit, n)) for unit in units]
            self._passes[n] = forward, self._backward_calls(units, n)
        return self._passes[n]

    def _local(self, views: Views, node) -> dict:
        return {array: views[f"{node.name}/{array}"] for array in node.parameters}

    def _forward(self, unit: Unit, n: int) -> list[Callable[[], None]]:
        node, recorder = unit.node, _Recorder(self._kernels)
        y = self.array("activation", node.name, n)
        xs = [self.array("activation", name, n) for name in node.inputs]
        if unit.interlinks:
            pooled, up = (self._link("activation", link, y, n) for link in (unit.pooled, unit.up))
            recorder.interlink_forward(y, pooled, up, xs[0])
        elif not isinstance(node.layer, Concat) or not all(self._lies_in(node, x, "activation") for x in node.inputs):
            node.layer.forward(recorder, y, xs, self._local(self.parameters, node), self._scratch)
        return recorder.calls

    def _link(self, kind: str, link: Node | None, y, n: int):
        """The array of a unit's further node; y without channels where there is none."""
        if link is None or (kind == "gradient" and link.name not in self._needed):
            return y[:, :0]
        return self.array(kind, link.name, n)

    def _lies_in(self, concat: Node, name: str, kind: str) -> bool:
        """Whether an input's array is a part of the concatenation's."""
        homes = self.schedule.homes
        return homes[f"{kind}/{name}"][0] == homes[f"{kind}/{concat.name}"][0]

    def _backward_calls(self, units: list[Unit], n: int) -> list[_Calls]:
        """In reverse order. The first writer of a gradient stores, later ones add: decided here, once."""
        written: set[str] = set()
        calls = []
        for unit in reversed(units):
            node = unit.node
            if node.name not in self._needed:
                continue
            dxs, adds = [], []
            for name in node.inputs:
                settled = isinstance(node.layer, Concat) and self._lies_in(node, name, "gradient")
                dxs.append(self.array("gradient", name, n) if name in self._needed and not settled else None)
                adds.append(name in written)
                written.add(name)
                written.update(self._residents(name))
            has_gradient = node.name in written or node is self.graph.output
            calls.append(_Calls(node.name, self._backward(unit, n, dxs, adds, has_gradient)))
        return calls

    def _residents(self, concat: str) -> list[str]:
        """Nodes whose gradient is written with that of a concatenation, being a part of it."""
        node = self.graph.nodes[concat]
        if concat not in self._needed or not isinstance(node.layer, Concat):
            return []
        return [name for name in node.inputs if name in self._needed and self._lies_in(node, name, "gradient")]

    def _backward(
        self, unit: Unit, n: int, dxs: list, adds: list[bool], has_gradient: bool
    ) -> list[Callable[[], None]]:
        node, recorder = unit.node, _Recorder(self._kernels)
        dy = self.array("gradient", node.name, n)
        y = self.array("activation", node.name, n)
        if unit.interlinks:
            dpooled, dup = (self._link("gradient", link, y, n) for link in (unit.pooled, unit.up))
            if not has_gradient:  # nobody reads the tanh but its own links
                dy = dy[:, :0]
            recorder.interlink_backward(dxs[0], dy, dpooled, dup, y, self._scratch)
        elif node.parameters or any(dx is not None for dx in dxs):
            xs = [self.array("activation", name, n) for name in node.inputs]
            values, gradients = self._local(self.parameters, node), self._local(self.gradients, node)
            node.layer.backward(recorder, dxs, gradients, dy, y, xs, values, self._scratch, adds)
        return recorder.calls

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
        return self.array("gradient", self.graph.input.name, self._n)

    def _run(self, units: list[_Calls], phase: str) -> None:
        with self._kernels.threads(self.threads):
            for node, calls in units:
                for call in calls:
                    call()
                if self.hook is not None:
                    self.hook(phase, node)

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
        self._kernels.upload(self.array("activation", self.graph.input.name, self._n), images)
        self._run(self._calls(self._n)[0], "forward")
        return self.array("activation", self.graph.output.name, self._n)

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
        logits = self.array("activation", self.graph.output.name, self._n)
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
            self._loss.backward(self.array("gradient", self.graph.output.name, self._n), self._scratch)
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
