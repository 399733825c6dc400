"""What conv_bench lets take turns: the convolutions, backends and PyTorch, and the clocks of CPU and GPU."""

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
from minicnn.layers import Conv2D
from minicnn.memory import needs_gradient

KERNELS = {
    "forward": "conv2d_forward",
    "input_gradient": "conv2d_backward_data",
    "weight_gradient": "conv2d_backward_weights",
}
SHORT = 2e8  # FLOP; shorter calls are repeated, so that the clock's steps do not matter
GPU_SHORT, GPU_REPEATS = 2e10, 500  # FLOP, and most repeats
GPU_BACKENDS = ("cupy", "cublas")
#: float32 multiply-adds a clock and multiprocessor, by compute capability: CUDA C++ programming guide, throughput of
#: arithmetic instructions.
LANES = {70: 64, 72: 64, 75: 64, 80: 64}
NEWER_LANES = 128

Clock = Callable[[Callable[[], object], int], float]


@dataclass(frozen=True)
class Convolution:
    """The first convolution of a geometry: where it is, and its C, O, K and S x S plane."""

    name: str
    channels: int
    filters: int
    window: int
    size: int
    input_gradient: bool

    @property
    def layer(self) -> str:
        k, s = self.window, self.size
        return f"{self.name} {self.channels}->{self.filters} {k}x{k} at {s}x{s}"

    @property
    def directions(self) -> list[str]:
        """What a training step computes: nobody needs the gradient of the image."""
        return [direction for direction in KERNELS if direction != "input_gradient" or self.input_gradient]

    def flops(self, batch: int) -> float:
        """Multiplications and additions, the same in each direction."""
        return convolution_flops(batch, self.channels, self.filters, self.window, self.size)


class Case(NamedTuple):
    convolution: Convolution
    direction: str


Calls = dict[Case, Callable[[], object]]


class Contender(NamedTuple):
    """A backend, or torch in one memory layout.

    `clock` says how many seconds a call takes that it repeats so many times.
    """

    name: str
    threads: Callable[[int], AbstractContextManager]
    calls: Calls
    clock: Clock
    repeats: Callable[[Case, int], int]


# ---- clocks


def wall_clock(call: Callable[[], object], repeats: int) -> float:
    """Seconds of a call that is over when it returns."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def cpu_repeats(case: Case, batch: int) -> int:
    return max(1, round(SHORT / case.convolution.flops(batch)))


def gpu_repeats(case: Case, batch: int) -> int:
    return min(GPU_REPEATS, max(1, round(GPU_SHORT / case.convolution.flops(batch))))


def event_clock(cupy: ModuleType) -> Clock:
    """Seconds of a call between two events of the current stream."""

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


def captured_clock(kernels: ModuleType) -> Clock:
    """The same of calls that are replayed as one CUDA graph, as in a plan's step: without Python between them."""
    clock = event_clock(kernels.cupy)

    def captured(call: Callable[[], object], repeats: int) -> float:
        def run() -> None:
            for _ in range(repeats):
                call()

        replay = kernels.record(run)
        replay()
        replay()  # the first call is eager, the second one captures
        return clock(replay, 1) / repeats

    return captured


def torch_clock(torch: ModuleType) -> Clock:
    """Seconds of a call between two events of PyTorch's stream."""

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
    """PyTorch, None where it has no GPU."""
    return torch if torch is not None and torch.cuda.is_available() else None


class DevicePeak:
    """The rate of multiply-adds at the device's highest clock, in GFLOP/s of float32; and its name."""

    def __init__(self, cupy: ModuleType) -> None:
        device = cupy.cuda.Device()
        properties = cupy.cuda.runtime.getDeviceProperties(device.id)
        name = properties["name"]
        self.name = name.decode() if isinstance(name, bytes) else name
        lanes = LANES.get(int(device.compute_capability), NEWER_LANES)
        self._gflops = 2e-6 * lanes * properties["multiProcessorCount"] * _kilohertz(cupy, properties, device.id)

    def gflops(self, threads: int) -> float:
        """The same for any number of CPU threads."""
        return self._gflops


def _kilohertz(cupy: ModuleType, properties: dict, device: int) -> int:
    """CUDA 13 no longer counts the clock among a device's properties."""
    runtime = cupy.cuda.runtime
    return properties.get("clockRate") or runtime.deviceGetAttribute(runtime.cudaDevAttrClockRate, device)


# ---- contenders


def distinct_convolutions() -> list[Convolution]:
    """The convolutions of the five networks, one for each geometry."""
    found: dict[tuple[int, ...], Convolution] = {}
    for network in NETWORKS.values():
        graph = icnn_graph(network.labels, network.size)
        needed = needs_gradient(graph)
        for node in graph.nodes.values():
            if isinstance(node.layer, Conv2D):
                channels, size, _ = graph.input_shapes(node)[0]
                key = (channels, node.layer.filters, node.layer.window, size)
                found.setdefault(key, Convolution(node.name, *key, node.inputs[0] in needed))
    return list(found.values())


def example(convolution: Convolution, batch: int) -> tuple[np.ndarray, ...]:
    """x, w, b and dy: float32, of the size that activations and first weights have."""
    rng = np.random.default_rng(0)
    c, o, k, s = convolution.channels, convolution.filters, convolution.window, convolution.size
    shapes = ((batch, c, s, s), (o, c, k, k), (o,), (batch, o, s, s))
    x, w, b, dy = (rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes)
    return x, w / k**2, b, dy


def make(kernels: ModuleType, array: np.ndarray, halo: int):
    """An array like this one, as a plan would ask the backend for it."""
    if array.ndim == 4 and array.shape[2] > 2 * halo + 1:
        return kernels.planes(array.shape, array.dtype, halo)
    return kernels.empty(array.shape, array.dtype)


def backend_contender(name: str, convolutions: Sequence[Convolution], batch: int) -> Contender:
    """The kernels of a backend, bound as a plan does it to arrays and scratch made beforehand."""
    kernels = get_backend(name)
    wishes = [
        kernels.scratch_size(kernel, N=batch, C=c.channels, O=c.filters, K=c.window, H=c.size, W=c.size)
        for c in convolutions
        for kernel in KERNELS.values()
    ]
    s = kernels.zeros((max(wishes),), "float32")
    calls: Calls = {}

    def add(case: Case, *arguments) -> None:
        calls[case] = kernels.bind(KERNELS[case.direction], *arguments)

    for convolution in convolutions:
        given = example(convolution, batch)
        halo = convolution.window // 2
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
    """PyTorch's own kernels without autograd.

    Parameters
    ----------
    layout : "default" or "channels_last"
    device : "cpu" or "cuda"
    tf32 : bool
        Whether a GPU may round to TF32, as it does by default.
    """
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    backward = torch.ops.aten.convolution_backward
    calls: Calls = {}

    def add(convolution: Convolution) -> None:
        x, w, b, dy = (torch.from_numpy(array).to(device) for array in example(convolution, batch))
        x, w, dy = (tensor.contiguous(memory_format=memory_format) for tensor in (x, w, dy))
        pad = convolution.window // 2
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
