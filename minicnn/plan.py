"""Execution plan of a graph: all arrays of a run, and the order of the kernel calls.

For a graph and a batch size, a plan decides once which arrays share a buffer
and which gradients are stored or added, and allocates everything. After that
it only calls kernels.
"""

import math
import os
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import numpy as np

from minicnn.checkpoint import check_fit, load_tensors, save_tensors
from minicnn.graph import Graph, Node
from minicnn.kernels import BackendError, get_backend
from minicnn.kernels.backend import Backend
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
    """One unit of a pass: the name of its first node, and its kernel calls."""

    node: str
    calls: list[Call]


class _Passes(NamedTuple):
    """Kernel calls of a training step over n images, without the update."""

    forward: list[_Calls]
    loss: Call
    loss_gradient: Call
    backward: list[_Calls]


class _Recorder:
    """Backend stand-in that collects a layer's kernel calls, bound to their arrays, without executing them."""

    def __init__(self, kernels: Backend):
        self._kernels = kernels
        self.calls: list[Call] = []

    def __getattr__(self, kernel: str) -> Callable[..., None]:
        return lambda *arguments: self.calls.append(self._kernels.bind(kernel, *arguments))


class Plan:
    """Executor of a graph: forward pass, loss, backward pass and parameter updates.

    Parameters
    ----------
    graph : Graph
    batch : int
        Maximum number of images in one pass.
    backend : str
        "numpy", "numba", "cupy", or "cublas" (for comparison only).
    dtype : "float32" or "float64"
        Of all activations, gradients and parameters.
    seed : int or SeedSequence
        Seed of the initial parameter values.
    threads : int, optional
        CPU threads of the kernels; default: one per available core.
    share : bool
        Let arrays with disjoint lifetimes share a buffer. The results are bit-identical either way.
    input_gradient : bool
        Also compute the gradient of the images, `input_gradient`; parsing and training do not need it.
    hook : callable, optional
        Called as ``hook(phase, node)`` after each unit; `phase` is "forward" or "backward", `node` the name of the
        unit's first node. With a hook, a GPU launches each kernel separately instead of a captured graph.

    Attributes
    ----------
    parameters, gradients : mapping of "node/array" to writable backend arrays
        Values written into `parameters` take effect at the next forward.
    step_count : int
        Number of updates so far; the argument of learning-rate schedules.

    Raises
    ------
    BackendError
        If the backend is not usable on this machine, or the device has too little memory for the batch.
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
        self._workspace = self._kernels.zeros(self._workspace_size(batch), dtype)
        self._rate = self._kernels.zeros((), dtype)  # an array, so that a captured step reads the current rate
        self._images = self.array("activation", graph.input.name, batch)
        self._prefetch: Callable[..., None] | None = None  # created by the first step
        self._passes: dict[int, _Passes] = {}
        self._steps: dict[tuple, Call] = {}
        self._n = 0  # number of images in the last forward; 0 before it
        self._done = ""  # last pass: "forward", "loss" or "backward"

    # ---- construction

    def _make_buffer(self, shape: Shape, dtype: str):
        """Allocate a buffer whose zero padding (halo) suffices for every convolution on planes of this size."""
        nodes = self.graph.nodes.values()
        windows = [n.layer.window for n in nodes if isinstance(n.layer, Conv2D) and n.shape[1:] == shape[1:]]
        return self._kernels.planes((self.batch, *shape), dtype, max(windows, default=1) // 2)

    def _require_memory(self, shapes: Collection[Shape], dtype: str) -> None:
        left = self._kernels.memory_left()
        if left is None:
            return

        def needed(batch: int) -> int:
            """Return bytes: buffers, loss, batches to come, workspace; parameters already exist."""
            pixels, images = math.prod(self.graph.output.shape[1:]), math.prod(self.graph.input.shape)
            loss = math.prod(self.graph.output.shape) + 2 * pixels
            count = sum(map(math.prod, shapes)) + loss + 2 * (images + 2 * pixels)
            return np.dtype(dtype).itemsize * (batch * count + self._workspace_size(batch))

        if needed(self.batch) > left:
            fits = bisect_right(range(1, self.batch + 1), left, key=needed)
            advice = f"a batch of {fits} would fit" if fits else "not even one image would fit"
            raise BackendError(
                f"expected {needed(self.batch) / 2**20:,.0f} MiB of free memory on the device for a batch of "
                f"{self.batch}, found {left / 2**20:,.0f} MiB: {advice}"
            )

    def _workspace_size(self, batch: int) -> int:
        """Return the largest workspace size of all kernel calls; they run one after another and share one workspace."""
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
        return max(self._kernels.workspace_size(kernel, N=batch, **size) for kernel, size in wishes)

    def array(self, kind: str, node: str, n: int):
        """Return a node's activation or gradient for the first n images.

        After a pass, other arrays may have overwritten it, unless ``share=False``; a hook sees it before that. The
        output of a convolution followed by a tanh is always overwritten by the tanh.

        Parameters
        ----------
        kind : "activation" or "gradient"
        node : str
        n : int

        Returns
        -------
        (n, C, H, W) backend array, a view
        """
        home, first = self.schedule.homes[f"{kind}/{node}"]
        channels = self.graph.nodes[node].shape[0]
        return self.buffers[self.assigned[home]][:n, first : first + channels]

    def _calls(self, n: int) -> _Passes:
        """Return the forward and backward passes over n images, unit by unit; built once for each n."""
        if n not in self._passes:
            units, output = [unit for unit in self.schedule.units if unit.node.inputs], self.graph.output.name
            self._passes[n] = _Passes(
                [_Calls(unit.node.name, self._forward(unit, n)) for unit in units],
                self._loss.forward(self.array("activation", output, n), self._workspace),
                self._loss.backward(self.array("gradient", output, n), self._workspace),
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
            recorder.conv2d_tanh_forward(y, pooled, up, xs[0], values["weight"], values["bias"], self._workspace)
        elif not isinstance(node.layer, Concat) or not all(self._lies_in(node, x, "activation") for x in node.inputs):
            node.layer.forward(recorder, y, xs, self._local(self.parameters, node), self._workspace)
        return recorder.calls

    def _link(self, kind: str, link: Node | None, y, n: int):
        """Return the array of a unit's pooled or upsampled copy, or `y` sliced to 0 channels if there is none."""
        if link is None or (kind == "gradient" and link.name not in self._needed):
            return y[:, :0]
        return self.array(kind, link.name, n)

    def _lies_in(self, concat: Node, name: str, kind: str) -> bool:
        """Return True if the array of input `name` is a part of the concatenation's array."""
        homes = self.schedule.homes
        return homes[f"{kind}/{name}"][0] == homes[f"{kind}/{concat.name}"][0]

    def _backward_calls(self, units: list[Unit], n: int) -> list[_Calls]:
        """Build the backward calls, in reverse order. The first writer of a gradient stores, later ones add to it."""
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
        """Return the inputs of a concatenation whose gradients are parts of its gradient array."""
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
            if not has_gradient:  # only the unit's own pooled and upsampled copies read the tanh
                own = own[:, :0]
            recorder.interlink_backward(dy, own, dpooled, dup, y, self._workspace)
        if node.parameters or any(dx is not None for dx in dxs):
            xs = [self.array("activation", name, n) for name in node.inputs]
            values, gradients = self._local(self.parameters, node), self._local(self.gradients, node)
            node.layer.backward(recorder, dxs, gradients, dy, y, xs, values, self._workspace, adds)
        return recorder.calls

    def _update(self, optimiser: SGD) -> Call:
        """Return the call that applies the gradients, with the learning rate in `_rate`."""
        store = self._store
        settings = optimiser.momentum, optimiser.nesterov, optimiser.weight_decay, optimiser.shrink
        arrays = store.flat, store.flat_velocity, store.flat_gradients, self._rate, self._workspace
        return self._kernels.bind("sgd_update", *arrays, *settings)

    def _step(self, n: int, optimiser: SGD) -> Call:
        """Return one call for a whole step over n uploaded images; built once for each n and optimiser settings."""
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

            self._steps[key] = run if self.hook is not None else self._kernels.capture(run)
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
        """All gradients as one backend array (V,), in the order of the graph."""
        return self._store.flat_gradients

    @property
    def has_input_gradient(self) -> bool:
        """True if backward computes `input_gradient`."""
        return self.graph.input.name in self._needed

    @property
    def input_gradient(self):
        """Gradient of the last loss by the images, (n, C, H, W); needs ``Plan(..., input_gradient=True)``."""
        return self.array("gradient", self.graph.input.name, self._n)

    def _run(self, units: list[_Calls], phase: str) -> None:
        with self._kernels.threads(self.threads):
            for node, calls in units:
                for call in calls:
                    call()
                if self.hook is not None:
                    self.hook(phase, node)

    def forward(self, images: np.ndarray):
        """Compute the logits of `images`.

        Parameters
        ----------
        images : (n, C, H, W) array, n from 1 to `batch`

        Returns
        -------
        (n, L, H, W) backend array of logits, valid until the next forward

        Raises
        ------
        ValueError
            If the images have another shape, or n is not from 1 to `batch`.
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
        """Compute the weighted mean over pixels of the cross-entropy l of the last forward: sum(w l) / sum(w).

        Parameters
        ----------
        labels : (n, H, W) integers in [0, L)
        weights : (n, H, W) of at least 0, optional
            Pixel weights w; default 1.

        Returns
        -------
        0-d backend array

        Raises
        ------
        ValueError
            For other shapes or values, or weights that sum to 0.
        RuntimeError
            If forward has not run since the last backward.
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
        """Compute the gradients of the last loss with respect to all parameters, and write them into `gradients`.

        Parameters
        ----------
        total : float, optional
            Sum of all weights of a larger batch that these images are a part of. The gradients are divided by it, so
            that the sum over all parts is the gradient of the larger batch. Default: the sum of these weights.

        Raises
        ------
        RuntimeError
            If no loss has been computed since the last forward.
        """
        if self._done != "loss":
            raise RuntimeError("call forward and loss before backward")
        passes = self._calls(self._n)
        if total is not None:
            self._kernels.upload(self._loss.total, np.asarray(total))
        with self._kernels.threads(self.threads):
            passes.loss_gradient()
        self._run(passes.backward, "backward")
        self._done = "backward"  # the arrays that it read may now be overwritten: buffers are shared

    def all_reduce_gradients(self, comm) -> None:
        """Sum the gradients over all processes of `comm` (`minicnn.distributed.Communicator`), in place."""
        self._kernels.all_reduce(comm)(self.flat_gradients)

    def update(self, optimiser: SGD) -> None:
        """Apply the current gradients to the parameters, and increment `step_count`."""
        self._kernels.upload(self._rate, np.asarray(optimiser.rate(self.step_count)))
        with self._kernels.threads(self.threads):
            self._update(optimiser)()
        self.step_count += 1

    def step(self, images: np.ndarray, labels: np.ndarray, optimiser: SGD, weights: np.ndarray | None = None):
        """Run forward, loss, backward and update.

        On a GPU the step may still be running when this returns; reading the loss waits for it.

        Parameters
        ----------
        images, labels, weights
            As in `forward` and `loss`.
        optimiser : SGD

        Returns
        -------
        0-d backend array, the loss before the update; overwritten by the next step

        Raises
        ------
        ValueError
            For arguments that `forward` or `loss` reject; nothing is changed then.
        """
        images = self._checked(images)
        labels, weights = self._loss.checked(len(images), labels, weights)
        arrays = self._images, self._loss.labels, self._loss.weights, self._rate
        prefetch = self._prefetch or self._kernels.Prefetcher(*arrays)
        self._n = len(images)
        run = self._step(self._n, optimiser)
        self._prefetch = prefetch
        prefetch(images, labels, weights, optimiser.rate(self.step_count))
        run()
        self._done = "backward"
        self.step_count += 1
        return self._loss.value

    # ---- to and from NumPy

    def download(self, array) -> np.ndarray:
        """Return a NumPy copy of a backend array, after waiting for the computation of it."""
        return np.array(self._kernels.download(array))

    def upload(self, array, values: np.ndarray) -> None:
        """Copy a NumPy array into a backend array of the same shape, converting the dtype."""
        self._kernels.upload(array, values)

    # ---- checkpoints

    def save(self, path: str | os.PathLike, **metadata: object) -> None:
        """Write the parameters to a safetensors file.

        The file's metadata are `metadata`, the graph's attributes, the version, and beta 1 and beta0 0 unless given.
        """
        tensors = {name: self._kernels.download(array) for name, array in self.parameters.items()}
        about = {"beta": 1.0, "beta0": 0.0, "version": VERSION, **self.graph.attributes, **metadata}
        save_tensors(path, tensors, about)

    def load(self, path: str | os.PathLike) -> dict[str, str]:
        """Load parameters that `save` wrote, and return the file's metadata.

        Raises
        ------
        CheckpointError
            If the file is unreadable or contains the weights of another network; nothing is changed then.
        """
        tensors, metadata = load_tensors(path)
        check_fit(path, tensors, self.graph.parameter_shapes)
        self.assign(tensors)
        return metadata

    def assign(self, parameters: Mapping[str, np.ndarray]) -> None:
        """Copy values into the parameters of the same names, "node/array".

        Raises
        ------
        KeyError, ValueError
            For a name or a shape that the network does not have.
        """
        for name, values in parameters.items():
            self.upload(self.parameters[name], values)

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of values and velocity, (V,): with `step_count`, a training resumes bit for bit from them."""
        return {
            "values": self.download(self._store.flat),
            "velocity": self.download(self._store.flat_velocity),
        }

    def restore(self, state: dict[str, np.ndarray], step_count: int) -> None:
        """Restore the arrays that `state` returned, and the step count.

        Raises
        ------
        ValueError
            If the arrays have the shapes of another network; nothing is changed then.
        """
        buffers = {"values": self._store.flat, "velocity": self._store.flat_velocity}
        for name, buffer in buffers.items():
            if state[name].shape != buffer.shape:
                raise ValueError(f"expected {name} of shape {buffer.shape}, got {state[name].shape}")
        for name, buffer in buffers.items():
            self._kernels.upload(buffer, state[name])
        self.step_count = step_count
