"""Contenders of conv_bench: the convolutions, our backends and PyTorch, with CPU and GPU timers."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import numpy as np
from measure import convolution_flops

from icnn.model.network import icnn_graph
from icnn.stages import NETWORKS
from minicnn.kernels import get_backend
from minicnn.kernels.backend import Backend
from minicnn.layers import Conv2D
from minicnn.planner import needs_gradient

KERNELS = {
    "forward": "conv2d_forward",
    "input_gradient": "conv2d_backward_data",
    "weight_gradient": "conv2d_backward_weights",
}
SHORT = 2e8  # FLOP; calls with less work are repeated, so that the timer resolution does not matter
GPU_SHORT, GPU_REPEATS = 2e10, 500  # FLOP, and the maximum number of repeats
GPU_BACKENDS = ("cupy", "cublas")
#: float32 multiply-adds per clock cycle and multiprocessor, by compute capability (CUDA C++ programming guide,
#: throughput of arithmetic instructions).
LANES = {70: 64, 72: 64, 75: 64, 80: 64}
NEWER_LANES = 128

Clock = Callable[[Callable[[], object], int], float]


@dataclass(frozen=True)
class Convolution:
    """First convolution with a given geometry.

    Attributes
    ----------
    name : str
        The layer's name.
    channels, out_channels, kernel_size, size : int
        Input channels C, output channels O, kernel size K and side S of the feature maps.
    input_gradient : bool
        Whether a training step needs the gradient of its input.
    """

    name: str
    channels: int
    out_channels: int
    kernel_size: int
    size: int
    input_gradient: bool

    @property
    def layer(self) -> str:
        k, s = self.kernel_size, self.size
        return f"{self.name} {self.channels}->{self.out_channels} {k}x{k} at {s}x{s}"

    @property
    def directions(self) -> list[str]:
        """Passes that a training step computes; the gradient of the image is not needed."""
        return [direction for direction in KERNELS if direction != "input_gradient" or self.input_gradient]

    def flops(self, batch: int) -> float:
        """Return the FLOP (multiplications and additions) of one pass; all three passes need the same."""
        return convolution_flops(batch, self.channels, self.out_channels, self.kernel_size, self.size)


class Case(NamedTuple):
    convolution: Convolution
    direction: str


Calls = dict[Case, Callable[[], object]]


class Contender(NamedTuple):
    """A backend, or PyTorch in one memory layout.

    `clock(call, repeats)` returns seconds per call; `threads(count)` is a context manager that sets the CPU threads.
    """

    name: str
    threads: Callable[[int], AbstractContextManager]
    calls: Calls
    clock: Clock
    repeats: Callable[[Case, int], int]


# ---- timers


def wall_clock(call: Callable[[], object], repeats: int) -> float:
    """Return the seconds per call by wall time, for calls that are synchronous."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def cpu_repeats(case: Case, batch: int) -> int:
    return max(1, round(SHORT / case.convolution.flops(batch)))


def gpu_repeats(case: Case, batch: int) -> int:
    return min(GPU_REPEATS, max(1, round(GPU_SHORT / case.convolution.flops(batch))))


def event_clock(cupy: ModuleType) -> Clock:
    """Return a timer that uses two CUDA events of CuPy's current stream."""

    def clock(call: Callable[[], object], repeats: int) -> float:
        stream = cupy.cuda.get_current_stream()
        first, last = cupy.cuda.Event(), cupy.cuda.Event()
        first.record(stream)
        for _ in range(repeats):
            call()
        last.record(stream)
        last.synchronize()
        return 1e-3 * cupy.cuda.get_elapsed_time(first, last) / repeats

    return clock


def captured_clock(kernels: Backend) -> Clock:
    """Return a timer that replays the calls as one CUDA graph, as a plan's step does, without Python in between."""
    clock = event_clock(kernels.cupy)

    def captured(call: Callable[[], object], repeats: int) -> float:
        def run() -> None:
            for _ in range(repeats):
                call()

        replay = kernels.capture(run)
        replay()
        replay()  # the first call runs eagerly, the second one captures
        return clock(replay, 1) / repeats

    return captured


def torch_clock(torch: ModuleType) -> Clock:
    """Return a timer that uses two CUDA events of PyTorch's stream."""

    def clock(call: Callable[[], object], repeats: int) -> float:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(repeats):
            call()
        last.record()
        last.synchronize()
        return 1e-3 * first.elapsed_time(last) / repeats

    return clock


def cuda_torch(torch: ModuleType | None) -> ModuleType | None:
    """Return `torch` if it has a GPU, else None."""
    return torch if torch is not None and torch.cuda.is_available() else None


class DevicePeak:
    """Theoretical float32 peak of the current GPU at its maximum clock, in GFLOP/s, and the GPU's name."""

    def __init__(self, cupy: ModuleType) -> None:
        device = cupy.cuda.Device()
        properties = cupy.cuda.runtime.getDeviceProperties(device.id)
        name = properties["name"]
        self.name = name.decode() if isinstance(name, bytes) else name
        lanes = LANES.get(int(device.compute_capability), NEWER_LANES)
        self._gflops = 2e-6 * lanes * properties["multiProcessorCount"] * _kilohertz(cupy, properties, device.id)

    def gflops(self, threads: int) -> float:
        """Return the peak in GFLOP/s; the number of CPU threads has no effect."""
        return self._gflops


def _kilohertz(cupy: ModuleType, properties: dict, device: int) -> int:
    """Return the maximum clock in kHz; with CUDA 13 it is an attribute, no longer a device property."""
    runtime = cupy.cuda.runtime
    return properties.get("clockRate") or runtime.deviceGetAttribute(runtime.cudaDevAttrClockRate, device)


# ---- contenders


def distinct_convolutions() -> list[Convolution]:
    """Return the convolutions of the five networks, one for each distinct geometry."""
    found: dict[tuple[int, ...], Convolution] = {}
    for network in NETWORKS.values():
        graph = icnn_graph(network.labels, network.size)
        needed = needs_gradient(graph)
        for node in graph.nodes.values():
            if isinstance(node.layer, Conv2D):
                channels, size, _ = graph.input_shapes(node)[0]
                key = (channels, node.layer.out_channels, node.layer.kernel_size, size)
                found.setdefault(key, Convolution(node.name, *key, node.inputs[0] in needed))
    return list(found.values())


def example(convolution: Convolution, batch: int) -> tuple[np.ndarray, ...]:
    """Return random x, w, b and dy, float32, with magnitudes typical of activations and initial weights.

    The shapes are (N, C, S, S), (O, C, K, K), (O,) and (N, O, S, S).
    """
    rng = np.random.default_rng(0)
    c, o, k, s = convolution.channels, convolution.out_channels, convolution.kernel_size, convolution.size
    shapes = ((batch, c, s, s), (o, c, k, k), (o,), (batch, o, s, s))
    x, w, b, dy = (rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes)
    return x, w / k**2, b, dy


def make(kernels: Backend, array: np.ndarray, halo: int):
    """Allocate an array of the same shape and dtype from the backend, as a plan does: feature maps with a halo."""
    if array.ndim == 4 and array.shape[2] > 2 * halo + 1:
        return kernels.planes(array.shape, array.dtype, halo)
    return kernels.empty(array.shape, array.dtype)


def backend_contender(name: str, convolutions: Sequence[Convolution], batch: int) -> Contender:
    """Bind a backend's kernels to preallocated arrays and workspace, as a plan does."""
    kernels = get_backend(name)
    wishes = [
        kernels.workspace_size(kernel, N=batch, C=c.channels, O=c.out_channels, K=c.kernel_size, H=c.size, W=c.size)
        for c in convolutions
        for kernel in KERNELS.values()
    ]
    s = kernels.zeros((max(wishes),), "float32")
    calls: Calls = {}

    def add(case: Case, *arguments) -> None:
        calls[case] = kernels.bind(KERNELS[case.direction], *arguments)

    for convolution in convolutions:
        given = example(convolution, batch)
        halo = convolution.kernel_size // 2
        x, w, b, dy = (make(kernels, array, halo) for array in given)
        dx, dw, db, y = (make(kernels, array, halo) for array in given)
        for target, array in zip((x, w, b, dy), given, strict=True):
            kernels.upload(target, array)
        add(Case(convolution, "forward"), y, x, w, b, s)
        add(Case(convolution, "weight_gradient"), dw, db, dy, x, s)
        if convolution.input_gradient:
            add(Case(convolution, "input_gradient"), dx, dy, w, s, False)
    if name in GPU_BACKENDS:
        return Contender(name, kernels.threads, calls, event_clock(kernels.cupy), gpu_repeats)
    return Contender(name, kernels.threads, calls, wall_clock, cpu_repeats)


def torch_contender(
    torch: ModuleType,
    layout: str,
    convolutions: Sequence[Convolution],
    batch: int,
    device: str = "cpu",
    tf32: bool = False,
) -> Contender:
    """Prepare calls of PyTorch's own kernels, without autograd.

    Parameters
    ----------
    layout : "default" or "channels_last"
    device : "cpu" or "cuda"
    tf32 : bool
        Whether a GPU may round to TF32, which is PyTorch's default.
    """
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    backward = torch.ops.aten.convolution_backward
    calls: Calls = {}

    def add(convolution: Convolution) -> None:
        x, w, b, dy = (torch.from_numpy(array).to(device) for array in example(convolution, batch))
        x, w, dy = (tensor.contiguous(memory_format=memory_format) for tensor in (x, w, dy))
        pad = convolution.kernel_size // 2
        geometry = (w.shape[0],), (1, 1), (pad, pad), (1, 1), False, (0, 0), 1

        def gradient(*wanted: bool) -> Callable[[], object]:
            return lambda: backward(dy, x, w, *geometry, wanted)

        calls[Case(convolution, "forward")] = lambda: torch.nn.functional.conv2d(x, w, b, padding=pad)
        calls[Case(convolution, "input_gradient")] = gradient(True, False, False)
        calls[Case(convolution, "weight_gradient")] = gradient(False, True, True)

    for convolution in convolutions:
        add(convolution)

    def threads(count: int) -> AbstractContextManager:
        torch.set_num_threads(count)
        return nullcontext()

    if device == "cuda":
        from torch_twin import tensor_cores

        name = f"torch_{layout}{'_tf32' if tf32 else ''}"
        return Contender(name, lambda count: tensor_cores(tf32), calls, torch_clock(torch), gpu_repeats)
    return Contender(f"torch_{layout}", threads, calls, wall_clock, cpu_repeats)
