"""Backend "cupy": CUDA C++ kernels on an NVIDIA GPU.

Each kernel of the table consists of one or a few launches: the function of its name returns them, and `bind` prepares
them once. What each kernel computes, and the shapes and roles of its arguments: `minicnn.kernels.signatures`.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from minicnn.kernels.backend import Backend
from minicnn.kernels.cuda import device
from minicnn.kernels.cuda.device import cupy
from minicnn.kernels.cuda.sources import OPTIONS, compiled_with, source
from minicnn.kernels.cuda.tiles import WARP, Tile, correlation_tile, parts_of_weights, weight_gradient_tile
from minicnn.kernels.signatures import kernel
from minicnn.kernels.validation import Check

logger = logging.getLogger("minicnn.kernels")
_NOTED = 0.1  # s; a slower load means that the kernel was compiled, not read from CuPy's cache

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


class GpuCheck(Check):
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


def in_turn(build: Callable[..., list[_Launch]], *arguments) -> _Launch:
    """Return a function that makes a kernel's launches on the same arrays at each call."""
    launches = build(*arguments)
    if len(launches) == 1:
        return launches[0]

    def call() -> None:
        for one in launches:
            one()

    return call


# ---- convolution

_ADD, _TANH, _POOL, _DOUBLE = 1, 2, 4, 8  # flags of conv.cu


@kernel()
def conv2d_forward(y, x, w, b, s):
    return _forward(y, y[:, :0], y[:, :0], x, w, b, 0)


@kernel()
def conv2d_tanh_forward(y, pooled, up, x, w, b, s):
    return _forward(y, pooled, up, x, w, b, _TANH | (_POOL if pooled.size else 0) | (_DOUBLE if up.size else 0))


def _forward(y, pooled, up, x, w, b, flags: int) -> list[_Launch]:
    n, c, h, width = x.shape
    o, k = w.shape[0], w.shape[2]
    tile = correlation_tile(n, c, o, h, width, k, x.dtype.name, pooled=bool(flags & _POOL))
    return _correlate(tile, (y, pooled, up, x, w, b), (n, o, c, h, width), flags)


@kernel()
def conv2d_backward_data(dx, dy, w, s, add):
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


def _weights_workspace(N, C, O, H, W, K, **_) -> int:  # noqa: E741
    def least(dtype: str) -> int:
        try:
            tile = weight_gradient_tile(N, C, O, H, W, K, dtype)
        except ValueError:
            return 0  # no tile fits; the kernel raises this error when it is bound
        return parts_of_weights(tile) * O * C * K * K + tile.grid[0] * O

    return max(map(least, ("float32", "float64")))


@kernel(_weights_workspace)
def conv2d_backward_weights(dw, db, dy, x, s):
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


@kernel()
def max_pool2d_forward(y, x, kernel_size, stride, padding):
    n, c, p, q = y.shape
    return _over_planes("max_pool2d_forward", (y, x), n * c, p * q, n, c, p, q, kernel_size, stride, padding)


@kernel()
def max_pool2d_backward(dx, dy, x, y, s, kernel_size, stride, padding, add):
    n, c, p, q = y.shape
    pixels = dx.shape[2] * dx.shape[3]
    numbers = n, c, p, q, kernel_size, stride, padding, bool(add)
    return _over_planes("max_pool2d_backward", (dx, dy, x, y), n * c, pixels, *numbers)


@kernel()
def mean_pool2d_forward(y, x, kernel_size):
    n, c, p, q = y.shape
    return _over_planes("mean_pool2d_forward", (y, x), n * c, p * q, n, c, p, q, kernel_size)


@kernel()
def mean_pool2d_backward(dx, dy, s, kernel_size, add):
    n, c, p, q = dy.shape
    pixels = dx.shape[2] * dx.shape[3]
    return _over_planes("mean_pool2d_backward", (dx, dy), n * c, pixels, n, c, p, q, kernel_size, bool(add))


@kernel()
def upsample_nearest2d_forward(y, x, factor):
    n, c, h, w = x.shape
    return _over_planes("upsample_nearest2d_forward", (y, x), n * c, y.shape[2] * y.shape[3], n, c, h, w, factor)


@kernel()
def upsample_nearest2d_backward(dx, dy, factor, add):
    n, c, h, w = dx.shape
    return _over_planes("upsample_nearest2d_backward", (dx, dy), n * c, h * w, n, c, h, w, factor, bool(add))


@kernel()
def parity_maps(y, offset):
    n, _, h, w = y.shape
    return _over_planes("parity_maps", (y[:, offset : offset + 2],), n * 2, h * w, n, h, w)


@kernel()
def concat_forward(y, x, offset):
    n, c, h, w = x.shape
    return _over_planes("copy_planes", (y[:, offset : offset + c], x), n * c, h * w, n, c, h * w, False)


@kernel()
def concat_backward(dx, dy, offset, add):
    n, c, h, w = dx.shape
    return _over_planes("copy_planes", (dx, dy[:, offset : offset + c]), n * c, h * w, n, c, h * w, bool(add))


# ---- activation, alone and fused with the pooling and upsampling of interlinking layers


@kernel()
def tanh_forward(y, x):
    n, c, h, w = y.shape
    return _over_planes("tanh_forward", (y, x), n * c, h * w, n, c, h * w)


@kernel()
def tanh_backward(dx, dy, y, s, add):
    n, c, h, w = y.shape
    return _over_planes("tanh_backward", (dx, dy, y), n * c, h * w, n, c, h * w, bool(add))


_OWN_GRADIENT, _POOLED, _DOUBLED = 1, 2, 4  # flags of pool.cu


@kernel()
def interlink_forward(y, pooled, up, x):
    n, c, h, w = y.shape
    flags = (_POOLED if pooled.size else 0) | (_DOUBLED if up.size else 0)
    tiles = _ceil(h, 2) * _ceil(w, 2)
    return _over_planes("interlink_forward", (y, pooled, up, x), n * c, tiles, n, c, h, w, flags)


@kernel()
def interlink_backward(dx, dy, dpooled, dup, y, s):
    n, c, h, w = y.shape
    flags = (_OWN_GRADIENT if dy.size else 0) | (_POOLED if dpooled.size else 0) | (_DOUBLED if dup.size else 0)
    tiles = _ceil(h, 2) * _ceil(w, 2)
    return _over_planes("interlink_backward", (dx, dy, dpooled, dup, y), n * c, tiles, n, c, h, w, flags)


# ---- loss, update


@kernel(lambda N, H, W, **_: 2 * _ceil(N * H * W, 256))
def softmax_cross_entropy_forward(loss, total, p, z, t, weights, s):
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


@kernel()
def softmax_cross_entropy_backward(dz, p, t, weights, total, s):
    n, labels, h, w = p.shape
    numbers = step_of(dz), step_of(p), n, labels, h * w
    return [launch("loss.cu", "softmax_backward", p, (_ceil(n * h * w, 256),), 256, dz, p, t, weights, total, *numbers)]


@kernel()
def sgd_update(values, velocity, gradients, lr, s, momentum, nesterov, weight_decay, shrink):
    count, real = values.size, values.dtype.type
    arrays = values, velocity, gradients, lr
    numbers = np.int64(count), real(momentum), int(nesterov), real(weight_decay), real(shrink)
    return [launch("loss.cu", "sgd_update", values, (_ceil(count, 256),), 256, *arrays, *numbers)]


def gpu_backend(name: str, kernels: Mapping[str, Any]) -> Backend:
    """Make a backend of kernels that return launches, with the device's arrays, and CuPy as its attribute `cupy`."""
    return Backend(name, vars(device) | kernels, in_turn, GpuCheck, cupy=cupy, module_of=module_of)


BACKEND = gpu_backend("cupy", globals())
