"""Backend "cupy": CUDA C++ kernels on an NVIDIA GPU. The only module that imports CuPy.

Each kernel of the table consists of one or a few launches, which `bind` prepares once. Computation runs on one stream,
batches are copied on a second one, and a whole training step can be replayed as one CUDA graph (`record`). Without a
usable GPU, importing this module raises ImportError with the reason. Array shapes and roles: `minicnn.kernels`.
"""

import atexit
import logging
import math
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial, wraps
from pathlib import Path

import numpy as np

from minicnn.kernels import BackendError
from minicnn.kernels.cuda.sources import OPTIONS, compiled_with, source
from minicnn.kernels.cuda.tiles import WARP, Tile, correlation_tile, parts_of_weights, weight_gradient_tile
from minicnn.kernels.signatures import SIGNATURES
from minicnn.kernels.validation import Check

NAME = "cupy"
logger = logging.getLogger("minicnn.kernels")


def _find_cache_folder() -> None:
    """Ensure that CuPy has a writable folder for compiled kernels; without one its import fails."""
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        logger.warning("no folder for compiled kernels (%s); set CUPY_CACHE_DIR to one", error)
        os.environ["CUPY_CACHE_DIR"] = tempfile.mkdtemp(prefix="minicnn-")
        atexit.register(shutil.rmtree, os.environ["CUPY_CACHE_DIR"], ignore_errors=True)


try:
    _find_cache_folder()
    import cupy  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError(f"CuPy is not installed or does not load ({error}): pip install 'icnn[cuda12]'") from None

_OLDEST = 70  # compute capability 7.0, Volta: the oldest that the tests of the machine code cover with CUDA 12
_OLDEST_CACHING = (14, 2)  # first CuPy version that finds compiled templates in its disk cache with any driver
_LEAST_MEMORY = 512 << 20  # bytes, enough for a small training
#: Environment variables with the local rank of a process, by MPI launcher: Hydra and Intel, Open MPI, Slurm.
_PLACES = "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"
_NOTED = 0.1  # s; a slower load means that the kernel was compiled, not read from CuPy's cache


def _check_version() -> None:
    """Warn if this CuPy version recompiles every kernel in each process."""
    if tuple(map(int, re.findall(r"\d+", cupy.__version__)[:2])) < _OLDEST_CACHING:
        logger.warning(
            "CuPy %s compiles all kernels anew in every process; expected 14.2 or newer: pip install -U 'icnn[cuda12]'",
            cupy.__version__,
        )


def _require_device() -> None:
    """Select the GPU; check that it can be used, that kernels compile and that enough memory is free.

    Raises
    ------
    ImportError
        With the reason why this backend cannot be used.
    """
    if os.environ.get("CUPY_CUDA_PER_THREAD_DEFAULT_STREAM", "0") not in ("", "0"):
        raise ImportError("its streams would not wait for each other: unset CUPY_CUDA_PER_THREAD_DEFAULT_STREAM")
    try:
        if not (count := cupy.cuda.runtime.getDeviceCount()):
            raise ImportError("no NVIDIA GPU was found")
        if (place := _place()) is not None:
            cupy.cuda.Device(place % count).use()  # one GPU per process on a machine, shared if there are too few
        device = cupy.cuda.Device()
        capability, free = int(device.compute_capability), device.mem_info[0]
    except cupy.cuda.runtime.CUDARuntimeError as error:
        text = str(error)
        reason = _driver_problem() if "InsufficientDriver" in text else "no NVIDIA GPU was found"
        raise ImportError(f"{reason} ({text.partition(':')[0]})") from None
    if capability < _OLDEST:
        raise ImportError(f"the GPU is too old: compute capability {capability / 10}, expected {_OLDEST / 10} or newer")
    if free < _LEAST_MEMORY:
        raise ImportError(f"too little memory is free on the GPU: {_mib(free)}, expected {_mib(_LEAST_MEMORY)} or more")
    try:
        cupy.RawModule(code='extern "C" __global__ void probe() {}', options=OPTIONS).get_function("probe")
    except Exception as error:  # CuPy reports a missing library by many exception types
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ImportError(f"NVRTC, CUDA's compiler, does not work ({first}): pip install 'icnn[cuda12]'") from None


def _driver_problem() -> str:
    """Return why the CUDA runtime rejects the driver: it is missing, or older than the CUDA that CuPy was built for."""
    found, needed = cupy.cuda.runtime.driverGetVersion(), cupy.cuda.runtime.runtimeGetVersion()
    if not found:
        return "no NVIDIA driver was found"
    return (
        f"the NVIDIA driver is too old: expected one for CUDA {_cuda(needed)}, as CuPy is, got one for CUDA "
        f"{_cuda(found)}; try a newer driver or a CuPy for CUDA {found // 1000}"
    )


def _cuda(version: int) -> str:
    """Format a CUDA version number: 12090 becomes 12.9."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _place() -> int | None:
    """Return the local rank of this process on its machine; None if no MPI launcher started it."""
    return next((int(text) for name in _PLACES if (text := os.environ.get(name, "")).isdecimal()), None)


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


_check_version()
_require_device()

#: Kernels run on the first stream. It and CUDA's default stream wait for each other, so an array can be read at any
#: time. Batches are copied on the second, which waits for events only; otherwise reading a loss would delay it.
_STREAM, _COPIES = cupy.cuda.Stream(), cupy.cuda.Stream(non_blocking=True)

# ---- arrays


def empty(shape: int | tuple[int, ...], dtype: str):
    """Return an uninitialised array on the device."""
    return _allocated(cupy.empty, shape, dtype)


def zeros(shape: int | tuple[int, ...], dtype: str):
    """Return an array of zeros on the device."""
    return _allocated(cupy.zeros, shape, dtype)


def _allocated(make: Callable, shape: int | tuple[int, ...], dtype: str):
    try:
        return make(shape, dtype)
    except cupy.cuda.memory.OutOfMemoryError:
        wanted = _mib(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        raise BackendError(
            f"the GPU is out of memory: an array of {wanted} was wanted, {_mib(memory_left())} are free; try a smaller "
            f"batch"
        ) from None


def planes(shape: tuple[int, ...], dtype: str, halo: int):
    """Return zeros (N, C, H, W); this backend ignores `halo`."""
    return zeros(shape, dtype)


def upload(destination, values: np.ndarray) -> None:
    """Copy a NumPy array of the same shape into `destination`, converting the dtype."""
    if destination.size:
        destination.set(np.ascontiguousarray(values, destination.dtype).reshape(destination.shape))


def download(array) -> np.ndarray:
    """Wait for the stream and return a NumPy copy of an array."""
    _STREAM.synchronize()
    return array.get()


def memory_left() -> int:
    """Return the number of bytes that can still be allocated on the device."""
    return cupy.cuda.Device().mem_info[0] + cupy.get_default_memory_pool().free_bytes()


def threads(count: int):
    """Return a context manager that sends work to the backend's stream; `count` (CPU threads) is ignored on a GPU."""
    return _STREAM


class Feed:
    """Prefetcher: copies batches to the device while it computes.

    A batch is copied into pinned memory, transferred from there on a separate stream, and copied to its destination on
    the device once the previous steps no longer read it. The buffers are doubled, so the host prepares a batch while
    the previous one is transferred.

    Parameters
    ----------
    *destinations : arrays
        Arrays of a whole batch, or arrays without dimensions.
    """

    def __init__(self, *destinations):
        self._destinations = destinations
        self._slots = [_Slot(destinations), _Slot(destinations)]

    def __call__(self, *values: np.ndarray | float) -> None:
        """Copy one array or number, in order, to each destination.

        Parameters
        ----------
        *values : arrays or float
            One for each destination; arrays of n samples fill the first n of it, cast to its dtype.
        """
        slot = self._slots[0]
        self._slots.reverse()
        slot.sent.synchronize()  # the pinned memory is free again
        _COPIES.wait_event(slot.taken)  # and so is the device's
        moves = []
        for destination, pinned, arrived, value in zip(
            self._destinations, slot.pinned, slot.arrived, values, strict=True
        ):
            part = slice(np.shape(value)[0]) if pinned.ndim else ...
            np.copyto(pinned[part], value, casting="unsafe")
            arrived[part].set(pinned[part], stream=_COPIES)
            moves.append((destination[part], arrived[part]))
        slot.sent.record(_COPIES)
        _STREAM.wait_event(slot.sent)
        for destination, arrived in moves:  # a copy; an assignment would launch a kernel
            destination.data.copy_from_device_async(arrived.data, arrived.nbytes, _STREAM)
        slot.taken.record(_STREAM)


class _Slot:
    """Host and device buffers for one batch, and the events that mark them as free."""

    def __init__(self, destinations: Sequence):
        self.pinned = [_pinned(array.shape, array.dtype) for array in destinations]
        self.arrived = [empty(array.shape, array.dtype) for array in destinations]
        self.sent, self.taken = (cupy.cuda.Event(disable_timing=True) for _ in range(2))
        # `arrived` may reuse the memory of another plan's arrays, which pending kernels of that plan still write.
        self.taken.record(_STREAM)


def _pinned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    count = math.prod(shape)
    memory = cupy.cuda.alloc_pinned_memory(count * dtype.itemsize)
    return np.frombuffer(memory, dtype, count).reshape(shape)


def record(run: Callable[[], None]) -> Callable[[], None]:
    """Capture `run` as a CUDA graph.

    Parameters
    ----------
    run : callable
        Calls bound kernels only, without cuBLAS, on arrays that outlive the result.

    Returns
    -------
    callable
        Same effect as `run`, in one launch from its second call on. The first call runs `run` directly, to load the
        kernels, which is impossible during a capture. If `run` raises during the capture, the incomplete graph is
        discarded and the next call captures again.
    """
    graph = None
    calls = 0

    def replay() -> None:
        nonlocal graph, calls
        calls += 1
        if calls == 1:
            run()
            return
        if graph is None:
            _STREAM.begin_capture()
            try:
                run()
            finally:
                captured = _STREAM.end_capture()
            graph = captured  # assigned only here: if `run` raised, the graph lacks its last launches
        graph.launch(_STREAM)

    return replay


# ---- several processes


@cache
def all_reduce(comm) -> Callable[..., None]:
    """Return a function that replaces an array in place, in every process, by the sum over all processes.

    It uses NCCL, from device to device, if that is installed and each process has its own GPU; otherwise it sums on the
    host through `comm`.
    """
    group = _nccl(comm)
    if group is not None:

        def between_devices(array) -> None:
            group.all_reduce(array, array, stream=_STREAM)

        return between_devices

    def through_host(array) -> None:
        values = download(array)
        comm.all_reduce(values)
        upload(array, values)

    return through_host


def _nccl(comm):
    """Return CuPy's NCCL communicator over all processes; None unless every process can use it."""
    if comm.size == 1:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy warns at length about an optional library
        from cupyx import distributed  # pyright: ignore[reportMissingImports]: loads cupy.cuda.nccl, too
    found = cupy.cuda.nccl.available  # pyright: ignore[reportAttributeAccessIssue]
    can = found and _place() is not None and comm.local_size <= cupy.cuda.runtime.getDeviceCount()
    return None if comm.all_max(int(not can)) else distributed.init_process_group(comm.size, comm.rank, use_mpi=True)


# ---- launches


@cache
def module_of(file: str, expressions: tuple[str, ...]):
    """Return the CuPy module with the given kernel instances of `file`, compiled or from CuPy's cache."""
    start = time.perf_counter()
    module = cupy.RawModule(code=source(file), options=OPTIONS, name_expressions=expressions)
    module.get_function(expressions[0])
    if (seconds := time.perf_counter() - start) > _NOTED:
        logger.info("compiled %s in %.1f s", expressions[0], seconds)
    return module


_Launch = Callable[[], None]


def launch(file: str, kernel: str, first, grid: tuple[int, ...], block: int, *arguments, shared: int = 0) -> _Launch:
    """Prepare a launch of a CUDA kernel.

    Parameters
    ----------
    file, kernel : str
        Source file, and kernel name or template instance; a bare name is instantiated for the dtype of `first`.
    first : array
    grid, block : tuple of int, int
        Blocks along each axis, and threads of a block.
    *arguments
        The kernel's arguments; Python int and bool are passed as 32-bit int.
    shared : int
        Bytes of dynamic shared memory.
    """
    if "<" not in kernel:
        kernel += "<float>" if first.dtype == np.float32 else "<double>"
    given = tuple(np.int32(value) if isinstance(value, (bool, int)) else value for value in arguments)
    function = module_of(file, compiled_with(file, kernel)).get_function(kernel)
    return partial(function, grid, (block,), given, shared_mem=shared)


def step_of(array) -> np.int64:
    """Return the stride between images, in elements."""
    return np.int64(array.strides[0] // array.itemsize)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _over_planes(kernel: str, arrays: Sequence, planes: int, pixels: int, *numbers: int) -> list[_Launch]:
    """Prepare a launch from pool.cu: arrays, their image strides, then numbers; blocks over pixels and planes."""
    block = min(256, _ceil(pixels, WARP) * WARP)
    grid = min(_ceil(pixels, block), 1 << 16), min(planes, 65535)
    return [launch("pool.cu", kernel, arrays[0], grid, block, *arrays, *map(step_of, arrays), *numbers)]


class _GpuCheck(Check):
    """Argument validation for GPU kernels: CuPy arrays, contiguous images, sizes within the range of 32-bit int."""

    array_type, array_name = cupy.ndarray, "a CuPy array"

    def _layout_problem(self, value, is_planes: bool) -> str:
        if is_planes and value.size:
            if not value[0].flags.c_contiguous:
                return "expected contiguous images"
            if math.prod(value.shape[2:]) > 1 << 30 or math.prod(value.shape[:2]) >= 1 << 31:
                return f"expected planes of at most 2^30 pixels, and less than 2^31 of them, got shape {value.shape}"
        elif not value.flags.c_contiguous:
            return "expected a C-contiguous array"
        return ""

    def _labels_problem(self, labels, count: int) -> str:
        return ""  # reading them would synchronise with the device; `minicnn.loss` checks them before the upload


class Table:
    """Kernel table of a backend whose kernels are lists of launches.

    Parameters
    ----------
    scratch_size : callable
        The backend's function of that name.
    builders : dict of str to callable, optional
        Kernels taken over from another table: name -> function that returns the launches.
    """

    def __init__(
        self, scratch_size: Callable[..., int], builders: dict[str, Callable[..., list[_Launch]]] | None = None
    ):
        self.builders = dict(builders or {})
        self._checks = {name: _GpuCheck(name, scratch_size) for name in SIGNATURES}

    def bind(self, kernel: str, *arguments) -> _Launch:
        """Validate the arguments once and return a function that runs the kernel on the same arrays at each call."""
        self._checks[kernel](arguments)
        launches = self.builders[kernel](*arguments)
        if len(launches) == 1:
            return launches[0]

        def call() -> None:
            for one in launches:
                one()

        return call

    def kernel(self, build: Callable[..., list[_Launch]]) -> Callable[..., None]:
        """Register a function that returns a kernel's launches, and return the kernel (a decorator)."""
        self.builders[build.__name__] = build

        @wraps(build)
        def call(*arguments) -> None:
            self.bind(build.__name__, *arguments)()

        return call


def scratch_size(kernel: str, **size: int) -> int:
    """Return the workspace elements that `kernel` needs; sizes are keyed by shape letter (N, C, O, H, W, K)."""
    if kernel == "conv2d_backward_weights":
        return max(_weight_gradient_scratch(size, dtype) for dtype in ("float32", "float64"))
    if kernel == "softmax_cross_entropy_forward":
        return 2 * _ceil(size["N"] * size["H"] * size["W"], 256)
    return 0


def _weight_gradient_scratch(size: dict[str, int], dtype: str) -> int:
    n, c, o, h, w, k = (size[letter] for letter in "NCOHWK")
    try:
        tile = weight_gradient_tile(n, c, o, h, w, k, dtype)
    except ValueError:
        return 0  # no tile fits; the kernel raises this error when it is bound
    return parts_of_weights(tile) * o * c * k * k + tile.grid[0] * o


table = Table(scratch_size)
bind, _kernel = table.bind, table.kernel

# ---- convolution

_ADD, _TANH, _POOL, _DOUBLE = 1, 2, 4, 8  # flags of conv.cu


@_kernel
def conv2d_forward(y, x, w, b, s):
    """Compute y = x correlated with w (zero padding, stride 1) + b."""
    return _forward(y, y[:, :0], y[:, :0], x, w, b, 0)


@_kernel
def conv2d_tanh_forward(y, pooled, up, x, w, b, s):
    """Compute y = tanh(x correlated with w + b); pooled = 2 x 2 max pooling of y, up = 2 x upsampling, if not empty."""
    return _forward(y, pooled, up, x, w, b, _TANH | (_POOL if pooled.size else 0) | (_DOUBLE if up.size else 0))


def _forward(y, pooled, up, x, w, b, flags: int) -> list[_Launch]:
    n, c, h, width = x.shape
    o, k = w.shape[0], w.shape[2]
    tile = correlation_tile(n, c, o, h, width, k, x.dtype.name, pooled=bool(flags & _POOL))
    return _correlate(tile, (y, pooled, up, x, w, b), (n, o, c, h, width), flags)


@_kernel
def conv2d_backward_data(dx, dy, w, s, add):
    """Compute dx = dy correlated with w rotated by 180° and with its channel axes swapped."""
    n, c, h, width = dx.shape
    o, k = w.shape[0], w.shape[2]
    tile = correlation_tile(n, c, o, h, width, k, dx.dtype.name, backward=True)
    none = dx[:, :0]
    return _correlate(tile, (dx, none, none, dy, w, none), (n, c, o, h, width), _ADD if add else 0)


def _correlate(tile: Tile, arrays: tuple, sizes: tuple[int, ...], flags: int) -> list[_Launch]:
    steps = map(step_of, arrays[:4])
    numbers = *steps, *sizes, *tile.geometry, flags
    first, shared = arrays[0], tile.shared
    return [launch(tile.file, tile.expression, first, tile.grid, tile.block, *arrays, *numbers, shared=shared)]


@_kernel
def conv2d_backward_weights(dw, db, dy, x, s):
    """Compute dw = dy correlated with x over all images; db = dy summed over images and pixels."""
    n, c, h, width = x.shape
    o, k = dw.shape[0], dw.shape[2]
    tile = weight_gradient_tile(n, c, o, h, width, k, x.dtype.name)
    parts = parts_of_weights(tile)
    w_parts, b_parts = s[: parts * dw.size], s[parts * dw.size : parts * dw.size + tile.grid[0] * o]
    arguments = w_parts, b_parts, dy, x, step_of(dy), step_of(x), n, o, c, h, width, *tile.geometry
    return [
        launch(tile.file, tile.expression, dw, tile.grid, tile.block, *arguments, shared=tile.shared),
        sum_parts(dw, db, w_parts, b_parts, parts, tile.grid[0]),
    ]


def sum_parts(dw, db, w_parts, b_parts, w_count: int, b_count: int) -> _Launch:
    """Prepare the launch that sums `w_count` partial results into dw and `b_count` into db."""
    grid = (_ceil(dw.size + db.size, WARP),)
    numbers = dw.size, db.size, w_count, b_count
    arrays, shared = (dw, db, w_parts, b_parts), 256 * dw.itemsize
    return launch("conv_weights.cu", "sum_parts", dw, grid, 256, *arrays, *numbers, shared=shared)


# ---- pooling, upsampling, concatenation (Sec. 2.2)


@_kernel
def max_pool2d_forward(y, x, window, stride, border):
    """Compute y[i, j] = max of x[stride i - border + u, stride j - border + v] for u, v < window; padding is -inf."""
    n, c, p, q = y.shape
    return _over_planes("max_pool2d_forward", (y, x), n * c, p * q, n, c, p, q, window, stride, border)


@_kernel
def max_pool2d_backward(dx, dy, x, y, s, window, stride, border, add):
    """Route each dy to the first maximum of its pooling region in row-major order."""
    n, c, p, q = y.shape
    pixels = dx.shape[2] * dx.shape[3]
    numbers = n, c, p, q, window, stride, border, bool(add)
    return _over_planes("max_pool2d_backward", (dx, dy, x, y), n * c, pixels, *numbers)


@_kernel
def mean_pool2d_forward(y, x, window):
    """Compute y = mean of the window x window tiles of x."""
    n, c, p, q = y.shape
    return _over_planes("mean_pool2d_forward", (y, x), n * c, p * q, n, c, p, q, window)


@_kernel
def mean_pool2d_backward(dx, dy, s, window, add):
    """Compute dx: dy / window^2 at each pixel of a tile."""
    n, c, p, q = dy.shape
    pixels = dx.shape[2] * dx.shape[3]
    return _over_planes("mean_pool2d_backward", (dx, dy), n * c, pixels, n, c, p, q, window, bool(add))


@_kernel
def upsample_nearest2d_forward(y, x, factor):
    """Compute y[i, j] = x[i // factor, j // factor], in the first C channels of y."""
    n, c, h, w = x.shape
    return _over_planes("upsample_nearest2d_forward", (y, x), n * c, y.shape[2] * y.shape[3], n, c, h, w, factor)


@_kernel
def upsample_nearest2d_backward(dx, dy, factor, add):
    """Compute dx[i, j] = sum of dy over the factor x factor copies of pixel (i, j)."""
    n, c, h, w = dx.shape
    return _over_planes("upsample_nearest2d_backward", (dx, dy), n * c, h * w, n, c, h, w, factor, bool(add))


@_kernel
def parity_maps(y, offset):
    """Fill channel `offset` of y with 0 on even and 1 on odd columns, and the next channel likewise by row."""
    n, _, h, w = y.shape
    return _over_planes("parity_maps", (y[:, offset : offset + 2],), n * 2, h * w, n, h, w)


@_kernel
def concat_forward(y, x, offset):
    """Copy x into the channels of y that begin at `offset`."""
    n, c, h, w = x.shape
    return _over_planes("copy_planes", (y[:, offset : offset + c], x), n * c, h * w, n, c, h * w, False)


@_kernel
def concat_backward(dx, dy, offset, add):
    """Copy the channels of dy that begin at `offset` into dx."""
    n, c, h, w = dx.shape
    return _over_planes("copy_planes", (dx, dy[:, offset : offset + c]), n * c, h * w, n, c, h * w, bool(add))


# ---- activation, alone and fused with the pooling and upsampling of interlinking layers


@_kernel
def tanh_forward(y, x):
    """Compute y = tanh(x), the f of eq. (1)."""
    n, c, h, w = y.shape
    return _over_planes("tanh_forward", (y, x), n * c, h * w, n, c, h * w)


@_kernel
def tanh_backward(dx, dy, y, s, add):
    """Compute dx = dy (1 - y^2)."""
    n, c, h, w = y.shape
    return _over_planes("tanh_backward", (dx, dy, y), n * c, h * w, n, c, h * w, bool(add))


_OWN_GRADIENT, _POOLED, _DOUBLED = 1, 2, 4  # flags of pool.cu


@_kernel
def interlink_forward(y, pooled, up, x):
    """Compute y = tanh(x); pooled = 2 x 2 max pooling of y, up = y upsampled by 2, unless they have no channels."""
    n, c, h, w = y.shape
    flags = (_POOLED if pooled.size else 0) | (_DOUBLED if up.size else 0)
    tiles = _ceil(h, 2) * _ceil(w, 2)
    return _over_planes("interlink_forward", (y, pooled, up, x), n * c, tiles, n, c, h, w, flags)


@_kernel
def interlink_backward(dx, dy, dpooled, dup, y, s):
    """Compute dx = (dy + gradients through pooled and up) (1 - y^2).

    Gradients without channels count as 0; dx may be dy itself.
    """
    n, c, h, w = y.shape
    flags = (_OWN_GRADIENT if dy.size else 0) | (_POOLED if dpooled.size else 0) | (_DOUBLED if dup.size else 0)
    tiles = _ceil(h, 2) * _ceil(w, 2)
    return _over_planes("interlink_backward", (dx, dy, dpooled, dup, y), n * c, tiles, n, c, h, w, flags)


# ---- loss, update


@_kernel
def softmax_cross_entropy_forward(loss, total, p, z, t, weights, s):
    """Compute p = softmax of z over the classes; total = sum of weights; loss = sum of -weights log p[t] / total."""
    n, labels, h, w = z.shape
    blocks = _ceil(n * h * w, 256)
    sums = s[: 2 * blocks]
    numbers = step_of(p), step_of(z), n, labels, h * w
    return [
        launch(
            "loss.cu", "softmax_forward", z, (blocks,), 256, p, sums, z, t, weights, *numbers, shared=256 * z.itemsize
        ),
        launch("loss.cu", "softmax_sums", z, (1,), 256, loss, total, sums, blocks, shared=256 * 8),  # sums in float64
    ]


@_kernel
def softmax_cross_entropy_backward(dz, p, t, weights, total, s):
    """Compute dz = weights (p - onehot(t)) / total."""
    n, labels, h, w = p.shape
    numbers = step_of(dz), step_of(p), n, labels, h * w
    return [launch("loss.cu", "softmax_backward", p, (_ceil(n * h * w, 256),), 256, dz, p, t, weights, total, *numbers)]


@_kernel
def sgd_update(values, velocity, gradients, lr, s, momentum, nesterov, weight_decay, shrink):
    """Apply one step of `minicnn.sgd.SGD` to the flat buffers."""
    count, real = values.size, values.dtype.type
    arrays = values, velocity, gradients, lr
    numbers = np.int64(count), real(momentum), int(nesterov), real(weight_decay), real(shrink)
    return [launch("loss.cu", "sgd_update", values, (_ceil(count, 256),), 256, *arrays, *numbers)]
