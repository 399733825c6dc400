"""Functions of the stand-in for CuPy that make arrays, read them and multiply them."""

import numpy as np
from standin_arrays import ndarray, only, write
from standin_device import STATS, Hazard
from standin_memory import written
from standin_streams import get_current_stream


def empty(shape, dtype=float, order="C"):
    """An array whose elements are NaN, or as much like it as the dtype allows."""
    only(order=(order, "C"))
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    for size in sizes:
        if not isinstance(size, (int, np.integer)):
            raise TypeError(f"'{type(size).__name__}' object cannot be interpreted as an integer")
        if size < 0:
            raise ValueError("Negative dimensions are not allowed")
    dtype = np.dtype(dtype)
    if dtype.kind not in "biuf":
        raise NotImplementedError(f"outside of the stand-in: arrays of {dtype}")
    if not dtype.isnative:
        raise ValueError(f"Unsupported dtype {dtype.str} with big-endian byte-order")
    return ndarray._new(tuple(int(size) for size in sizes), dtype)


def zeros(shape, dtype=float, order="C"):
    """An array of zeros."""
    array = empty(shape, dtype, order)
    array.fill(0)
    return array


def asnumpy(a, stream=None, order="C", out=None, *, blocking=True):
    """An array on the host."""
    if isinstance(a, ndarray):
        return a.get(stream=stream, order=order, out=out, blocking=blocking)
    only(stream=(stream, None), order=(order, "C"), out=(out, None))
    return np.asarray(a)


def matmul(*args, out=None):
    """Matrix products by what stands for cuBLAS, which refuses to be captured."""
    if out is None or len(args) != 2:
        raise NotImplementedError("outside of the stand-in: matmul other than matmul(a, b, out=...)")
    for array in (*args, out):
        if not isinstance(array, ndarray):
            raise TypeError(f"expected cupy.ndarray, got {type(array).__module__}.{type(array).__name__}")
        if array.dtype.char not in "fd" or array.dtype != out.dtype or array.ndim not in (2, 3):
            raise NotImplementedError(
                "outside of the stand-in: matmul of other than 2 or 3 dimensions of one float type"
            )
    a, b = (array._view for array in args)
    if out.shape != (*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]):
        raise ValueError(f"matmul: shapes {a.shape}, {b.shape} and out {out.shape} do not fit")
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape} do not fit")
    if not out.flags.c_contiguous:
        raise NotImplementedError("outside of the stand-in: matmul into an array that is not contiguous")
    if any(np.may_share_memory(array, out._view) for array in (a, b)):
        raise Hazard("matmul into one of its operands")
    if get_current_stream()._queue.capture is not None:
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    STATS.matmuls += 1
    out._ask("matmul", lambda view: _multiply(view, a, b), *args, is_launch=True)
    return out


def _multiply(view: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    for factor in (a, b):
        known = written(factor)
        if known is not None and not known.all():
            raise Hazard("matmul reads what nobody has written")
    write(view, np.matmul(a, b))
