"""Winograd convolution of the "numba" backend: fewer multiplications for 5 x 5 and 9 x 9 kernels.

F(4 x 4, 5 x 5) computes a tile of 4 x 4 pixels from 8 x 8 pixels of the input
(Lavin and Gray 2015), by the points 0, 1, -1, 2, -2, 1/2, -1/2 and infinity::

    Y = A^T [sum over input channels of (G w G^T) * (B^T d B)] A        * is elementwise

with 64 products for each pair of channels instead of 400. All other work is
done once for each channel, not for each pair of them.

forward           V = B^T x B, M[o] = sum over c of U[o][c] V[c], y = A^T M A + b, with U = G w G^T
input gradient    the same with dy in place of x, and kernels rotated by 180°
weight gradient   dU[o][c] = sum over tiles of (A dy A^T)[o] (B^T x B)[c], dw = G^T dU G
9 x 9             four 5 x 5 kernels, taps 0..3 and 4..8 along each axis: each reads the input 0 or 1 tile further

`compiled.winograd_tiles` and `compiled.winograd_products` have the vector code
and the layout of transformed tiles, `winograd_blocks` the sizes. Tiles are processed in blocks,
whose transformed tiles stay in the L2 cache::

    V [channel][frequency pair][row][quad]     one copy for each thread, as are the sums M and the gradients D

Planes whose sides are not multiples of a tile are copied into larger ones.
"""

import math
from collections.abc import Callable
from functools import cache, partial

import numpy as np

from minicnn.kernels.cpu.kernel import Kernel
from minicnn.kernels.cpu.layout import Arena, layout, view, with_halo
from minicnn.kernels.cpu.winograd_blocks import FREQUENCIES, QUADS, TAPS, Correlation, Tiling, WeightGradient

# ---- prepared calls


def _elements(x: np.ndarray) -> tuple[int, int]:
    """Return the distances of images and of rows, in elements."""
    return x.strides[0] // x.itemsize, x.strides[2] // x.itemsize


def _enlarged(x: np.ndarray, tiling: Tiling, halo: int, arena: Arena) -> tuple[np.ndarray, list[Callable]]:
    """Provide x with a halo and whole tiles: x itself, or a copy in workspace; return also the steps that copy."""
    if tiling.padded == x.shape[2:]:
        return with_halo(x, halo, arena)
    shape = (*x.shape[:2], *tiling.padded)
    memory = arena.take(shape[0] * shape[1] * layout(*tiling.padded, halo)[2])
    copy = view(memory, shape, halo)
    return copy, [partial(memory.fill, 0), partial(np.copyto, copy[:, :, : x.shape[2], : x.shape[3]], x)]


def prepare_correlation(y, x, w, b, arena: Arena, transposed: bool) -> list[Callable]:
    """Return the steps of y = x correlated with w + b, to be called in order; as in `conv_direct`."""
    n, out_channels, h, width = y.shape
    sizes = Correlation.of(n, x.shape[1], out_channels, h, width, w.shape[2], y.itemsize)
    tiling, outputs = sizes.tiling, sizes.outputs
    x, steps = _enlarged(x, tiling, w.shape[2] // 2, arena)
    target = y
    if tiling.padded != (h, width):
        target = arena.take(n, out_channels, *tiling.padded)
    u = arena.take(*sizes.u_shape)
    taps = arena.take(sizes.u_shape[1], TAPS * TAPS)
    steps.append(_TRANSFORM_WEIGHTS.bind(u, w, taps, out_channels, transposed))
    bias = arena.take(out_channels)
    steps.append(partial(bias.fill, 0) if b is None else partial(np.copyto, bias, b))
    scratch = arena.take(*sizes.scratch)
    tables = tiling.tables(*_elements(x), of_input=True), tiling.tables(*_elements(target), of_input=False)
    convolve = _convolution(outputs, QUADS[outputs], tiling.segments)
    steps.append(convolve.bind(target, x, u, bias, scratch, *tables, tiling.counts(), sizes.steps))
    if target is not y:
        steps.append(partial(np.copyto, y, target[:, :, :h, :width]))
    return steps


def prepare_weight_gradient(dw, db, dy, x, arena: Arena) -> list[Callable]:
    """Return the steps of dw = dy correlated with x, db = sum of dy over images and pixels, to be called in order."""
    n, out_channels, h, width = dy.shape
    sizes = WeightGradient.of(n, x.shape[1], out_channels, h, width, dw.shape[2], dw.itemsize)
    tiling = sizes.tiling
    x, steps = _enlarged(x, tiling, dw.shape[2] // 2, arena)
    if tiling.padded != (h, width):
        dy, more = _enlarged(dy, tiling, 0, arena)
        steps += more
    du, scratch = arena.take(*sizes.du_shape), arena.take(*sizes.scratch)
    sums = arena.take(sizes.chunks, out_channels)
    tables = tiling.tables(*_elements(x), of_input=True), tiling.tables(*_elements(dy), of_input=False)
    accumulate = _accumulation(sizes.outputs, tiling.segments)
    steps.append(accumulate.bind(du, sums, dy, x, scratch, *tables, tiling.counts(), sizes.steps))
    taps = arena.take(out_channels, TAPS * FREQUENCIES)
    steps.append(_RESTORE_WEIGHTS.bind(dw, db, du, sums, taps))
    return steps


def _room(n: int, c: int, tiling: Tiling) -> int:
    """Return the elements of a copy of planes with a halo and whole tiles."""
    return n * c * layout(*tiling.padded, tiling.k // 2)[2]


@cache
def correlation_workspace(n: int, c: int, out_channels: int, h: int, w: int, k: int, itemsize: int) -> int:
    """Return the number of workspace elements of a correlation."""
    sizes = Correlation.of(n, c, out_channels, h, w, k, itemsize)
    arrays = sizes.u_shape, (sizes.u_shape[1], TAPS * TAPS), sizes.scratch, (n, out_channels, *sizes.tiling.padded)
    return sum(map(math.prod, arrays)) + out_channels + _room(n, c, sizes.tiling)


@cache
def weight_gradient_workspace(n: int, c: int, o: int, h: int, w: int, k: int, itemsize: int) -> int:
    """Return the number of workspace elements of a weight gradient."""
    sizes = WeightGradient.of(n, c, o, h, w, k, itemsize)
    arrays = sizes.du_shape, sizes.scratch, (sizes.chunks + TAPS * FREQUENCIES, o)
    return sum(map(math.prod, arrays)) + _room(n, c, sizes.tiling) + _room(n, o, sizes.tiling)


# ---- kernels

_LOOPS = f"{__package__}.compiled.conv_winograd"
_TRANSFORM_WEIGHTS = Kernel(f"{_LOOPS}:transform_weights", "packed weights flat2 int bool", lambda u, *_: u.shape[1])
_RESTORE_WEIGHTS = Kernel(f"{_LOOPS}:restore_weights", "weights flat packed flat2 flat2", lambda dw, *_: dw.shape[0])


def _convolution(outputs: int, quads: int, segments: int) -> Kernel:
    signature = "planes planes packed flat flat2 table table table places"
    return Kernel(f"{_LOOPS}:convolution", signature, lambda *given: given[5].shape[0], (outputs, quads, segments))


def _accumulation(outputs: int, segments: int) -> Kernel:
    signature = "packed flat2 planes planes flat2 table table table places"
    return Kernel(f"{_LOOPS}:accumulation", signature, lambda du, *_: du.shape[0], (outputs, segments))
