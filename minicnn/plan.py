"""Execution of a graph: a plan allocates everything once, binds all kernel calls, and only runs them after that."""

import os
from collections.abc import Callable, Mapping

import numpy as np

from minicnn.arrays import Arrays
from minicnn.checkpoint import check_fit, load_tensors, program_version, save_tensors
from minicnn.graph import Graph
from minicnn.kernels import get_backend
from minicnn.kernels.host import cores
from minicnn.loss import SoftmaxCrossEntropy
from minicnn.parameters import Parameters
from minicnn.passes import Binder, Call, PassCalls, UnitCalls
from minicnn.planner import Schedule, needs_gradient
from minicnn.sgd import SGD


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
    flat_gradients : (V,) backend array
        All gradients, in the order of the graph.
    arrays : Arrays
        Buffers of all activations and gradients.
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
        self.parameters, self.gradients = self._store.values, self._store.gradients
        self.flat_gradients = self._store.flat_gradients
        self._needed = needs_gradient(graph, input_gradient)
        self.schedule = Schedule(graph, self._needed)
        self.arrays = Arrays(graph, self.schedule, self._needed, self._kernels, batch, dtype, share)
        self._loss = SoftmaxCrossEntropy(self._kernels, graph.output.shape, batch, dtype)
        self._rate = self._kernels.zeros((), dtype)  # an array, so that a captured step reads the current rate
        self._binder = Binder(graph, self.schedule, self._needed, self._kernels, self.arrays, self._store, self._loss)
        self._images = self.array("activation", graph.input.name, batch)
        self._prefetch: Callable[..., None] | None = None  # created by the first step
        self._passes: dict[int, PassCalls] = {}
        self._steps: dict[tuple, Call] = {}
        self._n = 0  # number of images in the last forward; 0 before it
        self._has_logits = self._has_loss = False  # of the last forward and loss, until a backward overwrites arrays

    # ---- construction

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
        return self.arrays.of(kind, node, n)

    def _calls(self, n: int) -> PassCalls:
        """Return the calls of a training step over n images; each bound once for each n."""
        if n not in self._passes:
            self._passes[n] = PassCalls(self._binder, n)
        return self._passes[n]

    def _step(self, n: int, optimiser: SGD) -> Call:
        """Return one call for a whole step over n uploaded images; built once for each n and optimiser settings."""
        key = n, optimiser.momentum, optimiser.nesterov, optimiser.weight_decay, optimiser.shrink
        if key not in self._steps:
            passes, update = self._calls(n), self._binder.update(optimiser, self._rate)
            forward, backward = passes.forward, passes.backward  # bound now: `run` may be captured as a CUDA graph
            loss, loss_gradient = passes.loss, passes.loss_gradient

            def run() -> None:
                self._run(forward, "forward")
                with self._kernels.threads(self.threads):
                    loss()
                    loss_gradient()
                self._run(backward, "backward")
                with self._kernels.threads(self.threads):
                    update()

            self._steps[key] = run if self.hook is not None else self._kernels.capture(run)
        return self._steps[key]

    # ---- running

    @property
    def has_input_gradient(self) -> bool:
        """True if backward computes `input_gradient`."""
        return self.graph.input.name in self._needed

    @property
    def input_gradient(self):
        """Gradient of the last loss by the images, (n, C, H, W); needs ``Plan(..., input_gradient=True)``."""
        return self.array("gradient", self.graph.input.name, self._n)

    def _run(self, units: list[UnitCalls], phase: str) -> None:
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
        self._has_logits, self._has_loss = True, False
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
        if not self._has_logits:
            raise RuntimeError("call forward before loss")
        labels, weights = self._loss.checked(self._n, labels, weights)
        self._kernels.upload(self._loss.labels[: self._n], labels)
        self._kernels.upload(self._loss.weights[: self._n], weights)
        with self._kernels.threads(self.threads):
            self._calls(self._n).loss()
        self._has_loss = True
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
        if not self._has_loss:
            raise RuntimeError("call forward and loss before backward")
        passes = self._calls(self._n)
        if total is not None:
            self._kernels.upload(self._loss.total, np.asarray(total))
        with self._kernels.threads(self.threads):
            passes.loss_gradient()
        self._run(passes.backward, "backward")
        self._has_logits = self._has_loss = False  # the arrays that it read may be overwritten: buffers are shared

    def all_reduce_gradients(self, comm) -> None:
        """Sum the gradients over all processes of `comm` (`minicnn.distributed.Communicator`), in place."""
        self._kernels.all_reduce(comm)(self.flat_gradients)

    def update(self, optimiser: SGD) -> None:
        """Apply the current gradients to the parameters, and increment `step_count`."""
        self._kernels.upload(self._rate, np.asarray(optimiser.rate(self.step_count)))
        with self._kernels.threads(self.threads):
            self._binder.update(optimiser, self._rate)()
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
        self._has_logits = self._has_loss = False
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
        """Write the parameters to a safetensors file, with `metadata`, the graph's attributes and the version."""
        tensors = {name: self._kernels.download(array) for name, array in self.parameters.items()}
        save_tensors(path, tensors, {"version": program_version(), **self.graph.attributes, **metadata})

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
        self._store.assign(parameters)

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of values and velocity, (V,): with `step_count`, a training resumes bit for bit from them."""
        return self._store.state()

    def restore(self, state: dict[str, np.ndarray], step_count: int) -> None:
        """Restore the arrays that `state` returned, and the step count.

        Raises
        ------
        ValueError
            If the arrays have the shapes of another network; nothing is changed then.
        """
        self._store.restore(state)
        self.step_count = step_count
