"""The NVIDIA GPU: finding it, arrays, streams, graph capture, several processes. The only module that imports CuPy.

Computation runs on one stream, batches are copied on a second one, and a whole training step can be replayed as one
CUDA graph (`capture`). Without a usable GPU, importing this module raises ImportError with the reason.
"""

import atexit
import logging
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from minicnn.kernels import BackendError
from minicnn.kernels.cuda.sources import OPTIONS

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


class Prefetcher:
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


def capture(run: Callable[[], None]) -> Callable[[], None]:
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
