"""Every array of a run, and the order in which kernels touch them.

A plan takes a graph and a batch size, decides once which arrays share a
buffer and which gradient is stored or added, allocates everything, and after
that only calls kernels.
"""

import math
import os
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import NamedTuple

import numpy as np

from minicnn.checkpoint import check_fit, load_tensors, save_tensors
from minicnn.graph import Graph, Node
from minicnn.kernels import BackendError, get_backend
from minicnn.kernels.host import cores
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


Call = Callable[[], None]


class _Calls(NamedTuple):
    """One unit of a pass: the node that names it, and the kernel calls it makes."""

    node: str
    calls: list[Call]


class _Passes(NamedTuple):
    """All kernel calls of a step over some number of images, but the update."""

    forward: list[_Calls]
    loss: Call
    loss_gradient: Call
    backward: list[_Calls]


class _Recorder:
    """Stands in for a backend: a layer's calls are noted, bound to their arrays, instead of made."""

    def __init__(self, kernels: ModuleType):
        self._kernels = kernels
        self.calls: list[Call] = []

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
        "numpy", "numba", "cupy", or "cublas" to compare with.
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
        ``hook(phase, node)`` after each unit's "forward" and "backward"; its first node stands for it. With a hook
        a GPU makes each call by itself.

    Attributes
    ----------
    parameters, gradients : mapping of "node/array" to writable backend arrays
        What is written into `parameters` counts from the next forward.
    step_count : int
        Updates made so far; schedules read it.

    Raises
    ------
    BackendError
        If the backend cannot be used here, or the device has too little memory for the batch.
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
        self.threads = threads or cores()
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
        self._require_memory(shapes.values(), dtype)
        self.buffers = {number: self._make_buffer(shape, dtype) for number, shape in shapes.items()}
        self._loss = SoftmaxCrossEntropy(self._kernels, graph.output.shape, batch, dtype)
        self._scratch = self._kernels.zeros(self._scratch_size(batch), dtype)
        self._rate = self._kernels.zeros((), dtype)  # an array, so that a recorded step reads the one of its turn
        self._images = self.array("activation", graph.input.name, batch)
        self._feed: Callable[..., None] | None = None  # made by the first step
        self._passes: dict[int, _Passes] = {}
        self._steps: dict[tuple, Call] = {}
        self._n = 0  # images of the last forward; 0 before it
        self._done = ""  # last pass: "forward", "loss" or "backward"

    # ---- construction

    def _make_buffer(self, shape: Shape, dtype: str):
        """A buffer whose halo is enough for every convolution on planes of this size."""
        nodes = self.graph.nodes.values()
        windows = [n.layer.window for n in nodes if isinstance(n.layer, Conv2D) and n.shape[1:] == shape[1:]]
        return self._kernels.planes((self.batch, *shape), dtype, max(windows, default=1) // 2)

    def _require_memory(self, shapes: Collection[Shape], dtype: str) -> None:
        left = self._kernels.memory_left()
        if left is None:
            return

        def needed(batch: int) -> int:
            """Bytes: buffers; probabilities, labels and weights; what `Feed` holds; parameters are there already."""
            pixels, images = math.prod(self.graph.output.shape[1:]), math.prod(self.graph.input.shape)
            loss = math.prod(self.graph.output.shape) + 2 * pixels
            count = sum(map(math.prod, shapes)) + loss + 2 * (images + 2 * pixels)
            return np.dtype(dtype).itemsize * (batch * count + self._scratch_size(batch))

        if needed(self.batch) > left:
            fits = bisect_right(range(1, self.batch + 1), left, key=needed)
            advice = f"a batch of {fits} would fit" if fits else "not even one image would fit"
            raise BackendError(
                f"expected {needed(self.batch) / 2**20:,.0f} MiB of free memory on the device for a batch of "
                f"{self.batch}, found {left / 2**20:,.0f} MiB: {advice}"
            )

    def _scratch_size(self, batch: int) -> int:
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
            if unit.tanh is not None:
                channels, height, width = unit.tanh.shape
                wishes.append(("interlink_backward", {"C": channels, "H": height, "W": width}))
        return max(self._kernels.scratch_size(kernel, N=batch, **size) for kernel, size in wishes)

    def array(self, kind: str, node: str, n: int):
        """The first n images of a node's "activation" or "gradient", (n, C, H, W), wherever it lies.

        Others may have overwritten it by the time a pass is over, unless ``share=False``; a hook sees it in time. A
        convolution that a tanh follows is always overwritten by it.
        """
        home, first = self.schedule.homes[f"{kind}/{node}"]
        channels = self.graph.nodes[node].shape[0]
        return self.buffers[self.assigned[home]][:n, first : first + channels]

    def _calls(self, n: int) -> _Passes:
        """Forward and backward passes over n images, unit by unit; made once for each n."""
        if n not in self._passes:
            units, output = [unit for unit in self.schedule.units if unit.node.inputs], self.graph.output.name
            self._passes[n] = _Passes(
                [_Calls(unit.node.name, self._forward(unit, n)) for unit in units],
                self._loss.forward(self.array("activation", output, n), self._scratch),
                self._loss.backward(self.array("gradient", output, n), self._scratch),
                self._backward_calls(units, n),
            )
        return self._passes[n]

    def _local(self, views: Views, node) -> dict:
        return {array: views[f"{node.name}/{array}"] for array in node.parameters}

    def _forward(self, unit: Unit, n: int) -> list[Call]:
        node, recorder = unit.node, _Recorder(self._kernels)
        y = self.array("activation", node.name, n)
        xs = [self.array("activation", name, n) for name in node.inputs]
        if unit.tanh is not None:
            pooled, up = (self._link("activation", link, y, n) for link in (unit.pooled, unit.up))
            values = self._local(self.parameters, node)
            recorder.conv2d_tanh_forward(y, pooled, up, xs[0], values["weight"], values["bias"], self._scratch)
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
            last = unit.tanh or node
            has_gradient = last.name in written or last is self.graph.output
            calls.append(_Calls(node.name, self._backward(unit, n, dxs, adds, has_gradient)))
        return calls

    def _residents(self, concat: str) -> list[str]:
        """Nodes whose gradient is written with that of a concatenation, being a part of it."""
        node = self.graph.nodes[concat]
        if concat not in self._needed or not isinstance(node.layer, Concat):
            return []
        return [name for name in node.inputs if name in self._needed and self._lies_in(node, name, "gradient")]

    def _backward(self, unit: Unit, n: int, dxs: list, adds: list[bool], has_gradient: bool) -> list[Call]:
        node, recorder = unit.node, _Recorder(self._kernels)
        dy = self.array("gradient", node.name, n)
        y = self.array("activation", node.name, n)
        if unit.tanh is not None:
            dpooled, dup = (self._link("gradient", link, y, n) for link in (unit.pooled, unit.up))
            own = self.array("gradient", unit.tanh.name, n)
            if not has_gradient:  # nobody reads the tanh but its own links
                own = own[:, :0]
            recorder.interlink_backward(dy, own, dpooled, dup, y, self._scratch)
        if node.parameters or any(dx is not None for dx in dxs):
            xs = [self.array("activation", name, n) for name in node.inputs]
            values, gradients = self._local(self.parameters, node), self._local(self.gradients, node)
            node.layer.backward(recorder, dxs, gradients, dy, y, xs, values, self._scratch, adds)
        return recorder.calls

    def _update(self, optimiser: SGD) -> Call:
        """The call that applies the gradients, at the rate in `_rate`."""
        store = self._store
        settings = optimiser.momentum, optimiser.nesterov, optimiser.weight_decay, optimiser.shrink
        arrays = store.flat, store.flat_velocity, store.flat_gradients, self._rate, self._scratch
        return self._kernels.bind("sgd_update", *arrays, *settings)

    def _step(self, n: int, optimiser: SGD) -> Call:
        """All of a step over n images that are in place; made once for each n and settings of the optimiser."""
        key = n, optimiser.momentum, optimiser.nesterov, optimiser.weight_decay, optimiser.shrink
        if key not in self._steps:
            passes, update = self._calls(n), self._update(optimiser)

            def run() -> None:
                self._run(passes.forward, "forward")
                with self._kernels.threads(self.threads):
                    passes.loss()
                    passes.loss_gradient()
                self._run(passes.backward, "backward")
                with self._kernels.threads(self.threads):
                    update()

            self._steps[key] = run if self.hook is not None else self._kernels.record(run)
        return self._steps[key]

    # ---- running

    @property
    def parameters(self) -> Views:
        return self._store.values

    @property
    def gradients(self) -> Views:
        return self._store.gradients

    @property
    def flat_gradients(self):
        """All of `gradients` as one array (V,), in the order of the graph."""
        return self._store.flat_gradients

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
        images = self._checked(images)
        self._n = len(images)
        self._done = "forward"
        self._kernels.upload(self._images[: self._n], images)
        self._run(self._calls(self._n).forward, "forward")
        return self.array("activation", self.graph.output.name, self._n)

    def _checked(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        expected = self.graph.input.shape
        if images.ndim != 4 or images.shape[1:] != expected or not 1 <= images.shape[0] <= self.batch:
            shape = ", ".join(map(str, expected))
            raise ValueError(f"expected images (n, {shape}) with n from 1 to {self.batch}, got {images.shape}")
        return images

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
        labels, weights = self._loss.checked(self._n, labels, weights)
        self._kernels.upload(self._loss.labels[: self._n], labels)
        self._kernels.upload(self._loss.weights[: self._n], weights)
        with self._kernels.threads(self.threads):
            self._calls(self._n).loss()
        self._done = "loss"
        return self._loss.value

    def backward(self, total: float | None = None) -> None:
        """Gradients of the last loss with respect to every parameter, into `gradients`.

        Parameters
        ----------
        total : float, optional
            Sum of the weights of all images of a batch of which these are some: the gradients are then their part of
            that batch's, which is the sum of such parts.

        Raises
        ------
        RuntimeError
            Before any loss of the last forward.
        """
        if self._done != "loss":
            raise RuntimeError("call forward and loss before backward")
        passes = self._calls(self._n)
        if total is not None:
            self._kernels.upload(self._loss.total, np.asarray(total))
        with self._kernels.threads(self.threads):
            passes.loss_gradient()
        self._run(passes.backward, "backward")
        self._done = "backward"  # what it read may be overwritten: shared buffers

    def all_reduce_gradients(self, comm) -> None:
        """Replace the gradients, in every process (`minicnn.distributed`), by the sum of all."""
        self._kernels.all_reduce(comm)(self.flat_gradients)

    def update(self, optimiser: SGD) -> None:
        """Apply the last gradients to the parameters."""
        self._kernels.upload(self._rate, np.asarray(optimiser.rate(self.step_count)))
        with self._kernels.threads(self.threads):
            self._update(optimiser)()
        self.step_count += 1

    def step(self, images: np.ndarray, labels: np.ndarray, optimiser: SGD, weights: np.ndarray | None = None):
        """Forward, loss, backward and update; returns the loss before the update, a 0-d array.

        The array is overwritten by the next step. On a GPU to read it is to wait for the step, which otherwise is
        still running when this returns.

        Raises
        ------
        ValueError
            For what `forward` and `loss` do not accept; nothing has changed then.
        """
        images = self._checked(images)
        labels, weights = self._loss.checked(len(images), labels, weights)
        feed = self._feed or self._kernels.Feed(self._images, self._loss.labels, self._loss.weights, self._rate)
        self._n = len(images)
        run = self._step(self._n, optimiser)
        self._feed = feed
        feed(images, labels, weights, optimiser.rate(self.step_count))
        run()
        self._done = "backward"
        self.step_count += 1
        return self._loss.value

    # ---- to and from NumPy

    def download(self, array) -> np.ndarray:
        """A NumPy copy of one of the backend's arrays, when what computes it is done."""
        return np.array(self._kernels.download(array))

    def upload(self, array, values: np.ndarray) -> None:
        """Copy NumPy values into one of the backend's arrays of the same shape, converting the dtype."""
        self._kernels.upload(array, values)

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
        self.assign(tensors)
        return metadata

    def assign(self, parameters: Mapping[str, np.ndarray]) -> None:
        """Copy parameters in, by name.

        Raises
        ------
        KeyError, ValueError
            For a name or a shape that the network does not have.
        """
        for name, values in parameters.items():
            self.upload(self.parameters[name], values)

    def state(self) -> dict[str, np.ndarray]:
        """Copies of what a training must keep to go on bit for bit, besides `step_count`."""
        return {
            "values": self.download(self._store.flat),
            "velocity": self.download(self._store.flat_velocity),
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
