"""Backend "cublas": convolution by im2col and cuBLAS matrix multiplication; all other kernels are those of "cupy".

A simple implementation for reading and for comparison. Its weight gradient copies all columns to transpose them, so
its times say little about cuBLAS. CuPy cannot call cuBLAS during a CUDA graph capture, so its steps are not captured.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from minicnn.kernels.cuda import backend as gpu
from minicnn.kernels.cuda.backend import (
    Feed,
    all_reduce,
    concat_backward,
    concat_forward,
    download,
    empty,
    interlink_backward,
    interlink_forward,
    max_pool2d_backward,
    max_pool2d_forward,
    mean_pool2d_backward,
    mean_pool2d_forward,
    memory_left,
    parity_maps,
    planes,
    sgd_update,
    softmax_cross_entropy_backward,
    softmax_cross_entropy_forward,
    tanh_backward,
    tanh_forward,
    threads,
    upload,
    upsample_nearest2d_backward,
    upsample_nearest2d_forward,
    zeros,
)

__all__ = [
    "Feed",
    "all_reduce",
    "concat_backward",
    "concat_forward",
    "download",
    "empty",
    "interlink_backward",
    "interlink_forward",
    "max_pool2d_backward",
    "max_pool2d_forward",
    "mean_pool2d_backward",
    "mean_pool2d_forward",
    "memory_left",
    "parity_maps",
    "planes",
    "sgd_update",
    "softmax_cross_entropy_backward",
    "softmax_cross_entropy_forward",
    "tanh_backward",
    "tanh_forward",
    "threads",
    "upload",
    "upsample_nearest2d_backward",
    "upsample_nearest2d_forward",
    "zeros",
]

NAME = "cublas"
_COLUMNS = 1 << 24  # upper limit on the elements of the columns in one multiplication, if more than one image
_BLOCK = 256


def record(run: Callable[[], None]) -> Callable[[], None]:
    """Return `run` itself: CuPy's `matmul` raises during a graph capture."""
    return run


class _Size(NamedTuple):
    """Sizes of a convolution (n, c, o: images, in and out channels; k: kernel size; h, w), and derived sizes."""

    n: int
    c: int
    o: int
    k: int
    h: int
    w: int

    @property
    def rows(self) -> int:
        return self.c * self.k**2

    @property
    def pixels(self) -> int:
        return self.h * self.w

    @property
    def at_once(self) -> int:
        """Number of images whose columns are in the workspace at a time."""
        return max(1, min(self.n, _COLUMNS // (self.rows * self.pixels)))

    @property
    def before(self) -> int:
        return (self.k - 1) // 2

    @property
    def geometry(self) -> tuple[int, ...]:
        """Last arguments of the kernels im2col and col2im; `before` is the padding at the top and at the left."""
        return self.c, self.h, self.w, self.k, self.before


def _size(x, w) -> _Size:
    n, c, height, width = x.shape
    return _Size(n, c, w.shape[0], w.shape[2], height, width)


def scratch_size(kernel: str, **size: int) -> int:
    """Return the workspace elements that `kernel` needs; sizes are keyed by shape letter (N, C, O, H, W, K)."""
    if not kernel.startswith("conv2d"):
        return gpu.scratch_size(kernel, **size)
    one = _Size(*(size[letter] for letter in "NCOKHW"))
    least = one.at_once * (one.rows + one.o) * one.pixels  # columns, and a product or dy
    if kernel == "conv2d_backward_weights":
        least += one.n * one.o * (one.rows + 1)  # dw and db of each image
    return least


table = gpu.Table(scratch_size, gpu.table.builders)
bind, _kernel = table.bind, table.kernel


def _batches(size: _Size, s) -> Iterator[tuple[slice, Any, Any]]:
    """Yield the images of each multiplication, and workspace views for their columns and for (images, O, pixels)."""
    for first in range(0, size.n, size.at_once):
        count = min(size.at_once, size.n - first)
        columns, rest = count * size.rows * size.pixels, count * size.o * size.pixels
        yield (
            slice(first, first + count),
            s[:columns].reshape(count, size.rows, size.pixels),
            s[columns : columns + rest].reshape(count, size.o, size.pixels),
        )


def _launch(kernel: str, count: int, *arguments) -> Callable[[], None]:
    return gpu.launch("im2col.cu", kernel, arguments[0], (min(-(-count // _BLOCK), 1 << 20),), _BLOCK, *arguments)


def _im2col(col, x, size: _Size) -> Callable[[], None]:
    return _launch("im2col", col.size, col, x, gpu.step_of(x), x.shape[0], *size.geometry)


def _gathered(product, dy) -> Callable[[], None]:
    """Prepare the copy of dy, perhaps a channel slice of a larger array, into a contiguous array for cuBLAS."""
    return gpu.bind("concat_backward", product.reshape(dy.shape), dy, 0, False)


@_kernel
def conv2d_forward(y, x, w, b, s):
    """Compute y = x correlated with w (zero padding, stride 1) + b."""
    size, launches = _size(x, w), []
    for part, col, product in _batches(size, s):
        multiply = partial(gpu.cupy.matmul, w.reshape(size.o, size.rows), col, out=product)
        numbers = gpu.step_of(y), col.shape[0], size.o, size.pixels
        add = _launch("add_bias", product.size, y[part], product, b, *numbers)
        launches += [_im2col(col, x[part], size), multiply, add]
    return launches


@_kernel
def conv2d_tanh_forward(y, pooled, up, x, w, b, s):
    """Compute y = tanh(x correlated with w + b); pooled = 2 x 2 max pooling of y, up = 2 x upsampling, if not empty."""
    return [*table.builders["conv2d_forward"](y, x, w, b, s), *table.builders["interlink_forward"](y, pooled, up, y)]


@_kernel
def conv2d_backward_data(dx, dy, w, s, add):
    """Compute dx: the gradient of the columns is w^T dy; each input pixel sums it over its columns (col2im)."""
    size, launches = _size(dx, w), []
    for part, dcol, gradient in _batches(size, s):
        multiply = partial(gpu.cupy.matmul, w.reshape(size.o, size.rows).T, gradient, out=dcol)
        target = dx[part]
        fold = _launch(
            "col2im", target.size, target, dcol, gpu.step_of(dx), dcol.shape[0], *size.geometry, bool(add)
        )  # fmt: skip
        launches += [_gathered(gradient, dy[part]), multiply, fold]
    return launches


@_kernel
def conv2d_backward_weights(dw, db, dy, x, s):
    """Compute dw = sum over images of dy col^T; db = dy summed over images and pixels."""
    size, launches = _size(x, dw), []
    w_parts = s[: size.n * dw.size].reshape(size.n, size.o, size.rows)
    b_parts = s[w_parts.size : w_parts.size + size.n * size.o].reshape(size.n, size.o)
    for part, col, gradient in _batches(size, s[w_parts.size + b_parts.size :]):
        multiply = partial(gpu.cupy.matmul, gradient, col.transpose(0, 2, 1), out=w_parts[part])
        planes_of_part = (col.shape[0] * size.o,)
        arguments = b_parts[part], gradient, size.pixels
        sums = gpu.launch(
            "im2col.cu", "plane_sums", dw, planes_of_part, _BLOCK, *arguments, shared=_BLOCK * dw.itemsize
        )
        launches += [_im2col(col, x[part], size), _gathered(gradient, dy[part]), multiply, sums]
    return [*launches, gpu.sum_parts(dw, db, w_parts, b_parts, size.n, size.n)]
