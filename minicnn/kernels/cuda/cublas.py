"""Backend "cublas": convolution by im2col and cuBLAS matrix multiplication; all other kernels are those of "cupy".

A simple implementation for reading and for comparison. Its weight gradient copies all columns to transpose them, so
its times say little about cuBLAS. CuPy cannot call cuBLAS during a CUDA graph capture, so its steps are not captured.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from minicnn.kernels.cuda import backend as gpu
from minicnn.kernels.cuda import device
from minicnn.kernels.signatures import kernel

_COLUMNS = 1 << 24  # upper limit on the elements of the columns in one multiplication, if more than one image
_BLOCK = 256


def capture(run: Callable[[], None]) -> Callable[[], None]:
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


def _columns(N, C, O, K, H, W, **_) -> int:  # noqa: E741
    size = _Size(N, C, O, K, H, W)
    return size.at_once * (size.rows + O) * size.pixels  # columns, and a product or dy


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
    return gpu.BACKEND.bind("concat_backward", product.reshape(dy.shape), dy, 0, False)


@kernel(_columns)
def conv2d_forward(y, x, w, b, s):
    size, launches = _size(x, w), []
    for part, col, product in _batches(size, s):
        multiply = partial(device.cupy.matmul, w.reshape(size.o, size.rows), col, out=product)
        numbers = gpu.step_of(y), col.shape[0], size.o, size.pixels
        add = _launch("add_bias", product.size, y[part], product, b, *numbers)
        launches += [_im2col(col, x[part], size), multiply, add]
    return launches


@kernel(_columns)
def conv2d_tanh_forward(y, pooled, up, x, w, b, s):
    return [*conv2d_forward(y, x, w, b, s), *gpu.interlink_forward(y, pooled, up, y)]


@kernel(_columns)
def conv2d_backward_data(dx, dy, w, s, add):
    # the gradient of the columns is w^T dy; each input pixel sums it over its columns (col2im)
    size, launches = _size(dx, w), []
    for part, dcol, gradient in _batches(size, s):
        multiply = partial(device.cupy.matmul, w.reshape(size.o, size.rows).T, gradient, out=dcol)
        target = dx[part]
        fold = _launch(
            "col2im", target.size, target, dcol, gpu.step_of(dx), dcol.shape[0], *size.geometry, bool(add)
        )  # fmt: skip
        launches += [_gathered(gradient, dy[part]), multiply, fold]
    return launches


def _columns_and_parts(N, C, O, K, H, W, **_) -> int:  # noqa: E741
    return _columns(N, C, O, K, H, W) + N * O * (C * K**2 + 1)  # and dw and db of each image


@kernel(_columns_and_parts)
def conv2d_backward_weights(dw, db, dy, x, s):
    # dw = sum over images of dy col^T
    size, launches = _size(x, dw), []
    w_parts = s[: size.n * dw.size].reshape(size.n, size.o, size.rows)
    b_parts = s[w_parts.size : w_parts.size + size.n * size.o].reshape(size.n, size.o)
    for part, col, gradient in _batches(size, s[w_parts.size + b_parts.size :]):
        multiply = partial(device.cupy.matmul, gradient, col.transpose(0, 2, 1), out=w_parts[part])
        planes_of_part = (col.shape[0] * size.o,)
        arguments = b_parts[part], gradient, size.pixels
        sums = gpu.launch(
            "im2col.cu", "plane_sums", dw, planes_of_part, _BLOCK, *arguments, shared=_BLOCK * dw.itemsize
        )
        launches += [_im2col(col, x[part], size), _gathered(gradient, dy[part]), multiply, sums]
    return [*launches, gpu.sum_parts(dw, db, w_parts, b_parts, size.n, size.n)]


BACKEND = gpu.gpu_backend("cublas", vars(gpu) | globals())
