"""Backend "cublas": convolution as im2col and matrix multiplication by cuBLAS; all else is backend "cupy".

The plain way, to read and to check against: its weight gradient copies all columns to transpose them, so its times
say little of cuBLAS. CuPy does not call cuBLAS while a CUDA graph is captured, so its steps are never captured.
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
_COLUMNS = 1 << 24  # elements of the columns of as many images as are multiplied at once
_BLOCK = 256


def record(run: Callable[[], None]) -> Callable[[], None]:
    """`run` itself: CuPy's `matmul` raises while a graph is captured."""
    return run


class _Size(NamedTuple):
    """Sizes of a convolution, and what follows from them."""

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
        """Images whose columns are in scratch at a time."""
        return max(1, min(self.n, _COLUMNS // (self.rows * self.pixels)))

    @property
    def before(self) -> int:
        return (self.k - 1) // 2

    @property
    def geometry(self) -> tuple[int, ...]:
        """The last arguments of im2col and col2im."""
        return self.c, self.h, self.w, self.k, self.before


def _size(x, w) -> _Size:
    n, c, height, width = x.shape
    return _Size(n, c, w.shape[0], w.shape[2], height, width)


def scratch_size(kernel: str, **size: int) -> int:
    """Elements of scratch that `kernel` needs for the sizes given as shape letters."""
    if not kernel.startswith("conv2d"):
        return gpu.scratch_size(kernel, **size)
    one = _Size(*(size[letter] for letter in "NCOKHW"))
    least = one.at_once * (one.rows + one.o) * one.pixels  # columns, and a product or dy
    if kernel == "conv2d_backward_weights":
        least += one.n * one.o * (one.rows + 1)  # each image's part of dw and db
    return least


table = gpu.Table(scratch_size, gpu.table.builders)
bind, _kernel = table.bind, table.kernel


def _batches(size: _Size, s) -> Iterator[tuple[slice, Any, Any]]:
    """Images of one multiplication, and the parts of scratch for their columns and for (images, O, pixels)."""
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
    """dy, some channels of a larger array perhaps, as one contiguous array: what cuBLAS can read."""
    return gpu.bind("concat_backward", product.reshape(dy.shape), dy, 0, False)


@_kernel
def conv2d_forward(y, x, w, b, s):
    """y = x correlated with w (zero padded, stride 1) + b."""
    size, launches = _size(x, w), []
    for part, col, product in _batches(size, s):
        multiply = partial(gpu.cupy.matmul, w.reshape(size.o, size.rows), col, out=product)
        numbers = gpu.step_of(y), col.shape[0], size.o, size.pixels
        add = _launch("add_bias", product.size, y[part], product, b, *numbers)
        launches += [_im2col(col, x[part], size), multiply, add]
    return launches


@_kernel
def conv2d_tanh_forward(y, pooled, up, x, w, b, s):
    """y = tanh(x correlated with w + b); pooled = maxima of 2 x 2 tiles of y, up = y doubled, unless they are empty."""
    return [*table.builders["conv2d_forward"](y, x, w, b, s), *table.builders["interlink_forward"](y, pooled, up, y)]


@_kernel
def conv2d_backward_data(dx, dy, w, s, add):
    """dx: the columns' gradient is w^T dy; every input pixel gathers it from the windows it was in."""
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
    """dw = sum over images of dy col^T; db = dy summed over images and pixels."""
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
