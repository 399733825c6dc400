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

`winograd_tiles` and `winograd_products` have the vector code and the layout of
transformed tiles, `winograd_blocks` the sizes. Tiles are processed in blocks,
whose transformed tiles stay in the L2 cache::

    V [channel][frequency pair][row][quad]     one copy for each thread, as are the sums M and the gradients D

Planes whose sides are not multiples of a tile are copied into larger ones.
"""

import math
from collections.abc import Callable
from functools import cache, partial

import numpy as np

from minicnn.kernels.cpu.compile import VECTOR_BYTES, kernel
from minicnn.kernels.cpu.layout import Arena, layout, view, with_halo
from minicnn.kernels.cpu.tiles import pointer
from minicnn.kernels.cpu.winograd_blocks import INPUTS, PAIRS, QUADS, Correlation, Tiling, WeightGradient
from minicnn.kernels.cpu.winograd_products import gradient_products, products
from minicnn.kernels.cpu.winograd_tiles import (
    FREQUENCIES,
    TAPS,
    TILE,
    restore_kernel,
    transform_gradient,
    transform_input,
    transform_kernel,
    transform_output,
)

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
    steps.append(_transform_weights.bind(u, w, taps, out_channels, transposed))
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
    steps.append(_restore_weights.bind(dw, db, du, sums, taps))
    return steps


def _room(n: int, c: int, tiling: Tiling) -> int:
    """Return the elements of a copy of planes with a halo and whole tiles."""
    return n * c * layout(*tiling.padded, tiling.k // 2)[2]


def correlation_workspace(n: int, c: int, out_channels: int, h: int, w: int, k: int, itemsize: int) -> int:
    """Return the number of workspace elements of a correlation."""
    sizes = Correlation.of(n, c, out_channels, h, w, k, itemsize)
    arrays = sizes.u_shape, (sizes.u_shape[1], TAPS * TAPS), sizes.scratch, (n, out_channels, *sizes.tiling.padded)
    return sum(map(math.prod, arrays)) + out_channels + _room(n, c, sizes.tiling)


def weight_gradient_workspace(n: int, c: int, o: int, h: int, w: int, k: int, itemsize: int) -> int:
    """Return the number of workspace elements of a weight gradient."""
    sizes = WeightGradient.of(n, c, o, h, w, k, itemsize)
    arrays = sizes.du_shape, sizes.scratch, (sizes.chunks + TAPS * FREQUENCIES, o)
    return sum(map(math.prod, arrays)) + _room(n, c, sizes.tiling) + _room(n, o, sizes.tiling)


# ---- compiled kernels


@kernel("packed weights flat2 int bool", lambda u, *_: u.shape[1])
def _transform_weights(tasks, u, w, taps, out_channels, transposed):
    """Compute G w G^T of each 5 x 5 kernel, into u [frequency pair][block][part][c][output, row frequency].

    `transposed` swaps O and C and rotates the kernel by 180°, for the input gradient. Outputs that pad the last block
    are 0. One task for each block.
    """
    _, blocks, parts, channels, width = u.shape
    outputs, k = width // TILE, w.shape[2]
    for block in range(tasks[0], tasks[1]):
        t = taps[block]
        for part in range(parts):
            top, left = part // 2 * 4, part % 2 * 4
            rows, columns = 5 if parts == 1 or top else 4, 5 if parts == 1 or left else 4
            t[:] = 0
            for c in range(channels):
                for f in range(outputs):
                    o = block * outputs + f
                    if o < out_channels:
                        for a in range(rows):
                            for b in range(columns):
                                if transposed:
                                    t[TAPS * a + b] = w[c, o, k - 1 - top - a, k - 1 - left - b]
                                else:
                                    t[TAPS * a + b] = w[o, c, top + a, left + b]
                    else:
                        t[:] = 0
                    place = ((block * parts + part) * channels + c) * width + TILE * f
                    transform_kernel(pointer(t, 0), pointer(u, place), blocks * parts * channels * width)


@cache
def _convolution(outputs: int, quads: int, segments: int):
    """Make the kernel whose products have `outputs` output channels and `quads` quads."""

    @kernel("planes planes packed flat flat2 table table table places", lambda *given: given[5].shape[0])
    def convolve(tasks, y, x, u, bias, scratch, x_places, y_places, counts, steps):
        """Transform, multiply and transform back, one task for each block of tiles."""
        lane_count = VECTOR_BYTES // y.itemsize
        _, blocks, parts, channels, _ = u.shape
        extra = 1 if parts > 1 else 0
        row_quads, v_step, v_channel = steps[0], steps[1], steps[2]
        m_quads, m_step, m_channel, m_start = steps[3], steps[4], steps[5], steps[6]
        y_channel, y_row = y.strides[1] // y.itemsize, y.strides[2] // y.itemsize
        x_channel, x_row = x.strides[1] // y.itemsize, x.strides[2] // y.itemsize
        for task in range(tasks[0], tasks[1]):
            own = scratch[tasks[2]]
            rows, n_quads = counts[task, 0], counts[task, 1]
            for c in range(channels):
                plane = pointer(x, c * x_channel)
                for r in range(rows + extra):
                    for q in range(n_quads + extra):
                        run = task * x_places.shape[1] + (r * row_quads + q) * segments
                        target = pointer(own, c * v_channel + (r * row_quads + q) * lane_count)
                        transform_input(segments, plane, x_row, pointer(x_places, run), x_channel, target, v_step)
            for pair in range(PAIRS):
                for block in range(blocks):
                    weights = pointer(u, (pair * blocks + block) * parts * channels * outputs * TILE)
                    first = m_start + block * outputs * m_channel + pair * m_step
                    for r in range(rows):
                        for q in range(0, n_quads, quads):
                            source = pointer(own, pair * v_step + (r * row_quads + q) * lane_count)
                            target = pointer(own, first + (r * m_quads + q) * lane_count)
                            products(
                                outputs, quads, weights, (source, v_channel, row_quads * lane_count),
                                (target, m_channel), channels, parts,
                            )  # fmt: skip
            for o in range(y.shape[1]):
                plane = pointer(y, o * y_channel)
                for r in range(rows):
                    for q in range(n_quads):
                        run = task * y_places.shape[1] + (r * (row_quads - extra) + q) * segments
                        source = pointer(own, m_start + o * m_channel + (r * m_quads + q) * lane_count)
                        transform_output(
                            segments, source, m_step, pointer(bias, o), plane, y_row, pointer(y_places, run), y_channel
                        )

    return convolve


@cache
def _accumulation(outputs: int, segments: int):
    """Make the kernel of the weight gradient whose products have `outputs` output channels."""

    @kernel("packed flat2 planes planes flat2 table table table places", lambda du, *_: du.shape[0])
    def accumulate(tasks, du, sums, dy, x, scratch, x_places, y_places, counts, steps):
        """Sum the products of transformed tiles, one task for each chunk of blocks; `sums` are those of dy."""
        lane_count = VECTOR_BYTES // dy.itemsize
        chunks, parts, _, padded, width = du.shape
        extra = 1 if parts > 1 else 0
        row_quads, v_step, v_channel = steps[0], steps[1], steps[2]
        d_quads, d_step, d_channel, d_start = steps[3], steps[4], steps[5], steps[6]
        y_channel, y_row = dy.strides[1] // dy.itemsize, dy.strides[2] // dy.itemsize
        x_channel, x_row = x.strides[1] // dy.itemsize, x.strides[2] // dy.itemsize
        blocks = x_places.shape[0]
        for chunk in range(tasks[0], tasks[1]):
            own = scratch[chunk]
            du[chunk] = 0
            sums[chunk] = 0
            for place in range(x.shape[1] * v_channel, width // TILE * v_channel):
                own[place] = 0
            for place in range(d_start + dy.shape[1] * d_channel, d_start + padded * d_channel):
                own[place] = 0
            for task in range(blocks * chunk // chunks, blocks * (chunk + 1) // chunks):
                rows, n_quads = counts[task, 0], counts[task, 1]
                for c in range(x.shape[1]):
                    plane = pointer(x, c * x_channel)
                    for r in range(rows + extra):
                        for q in range(n_quads + extra):
                            run = task * x_places.shape[1] + (r * row_quads + q) * segments
                            target = pointer(own, c * v_channel + (r * row_quads + q) * lane_count)
                            transform_input(segments, plane, x_row, pointer(x_places, run), x_channel, target, v_step)
                for o in range(dy.shape[1]):
                    plane = pointer(dy, o * y_channel)
                    for r in range(rows):
                        for q in range(n_quads):
                            run = task * y_places.shape[1] + (r * d_quads + q) * segments
                            place = d_start + o * d_channel + (r * d_quads + q) * lane_count
                            real = counts[task, 2] - (r * n_quads + q) * (lane_count // TILE)
                            transform_gradient(
                                segments,
                                plane,
                                y_row,
                                pointer(y_places, run),
                                y_channel,
                                real,
                                pointer(own, place),
                                d_step,
                            )
                            for lane in range(1, lane_count, TILE):  # frequencies (1, 1): the sum of a tile
                                sums[chunk, o] += own[place + 2 * d_step + lane]
                for pair in range(PAIRS):
                    for part in range(parts):
                        shift = part // 2 * row_quads * lane_count + part % 2 * TILE
                        for c in range(0, width // TILE, INPUTS):
                            source = pointer(own, c * v_channel + pair * v_step + shift)
                            for o in range(0, padded, outputs):
                                place = (((chunk * parts + part) * PAIRS + pair) * padded + o) * width + TILE * c
                                gradients = pointer(own, d_start + o * d_channel + pair * d_step)
                                gradient_products(
                                    outputs, INPUTS, (pointer(du, place), width),
                                    (gradients, d_channel, d_quads * lane_count),
                                    (source, v_channel, row_quads * lane_count), rows, n_quads,
                                )  # fmt: skip

    return accumulate


@kernel("weights flat packed flat2 flat2", lambda dw, *_: dw.shape[0])
def _restore_weights(tasks, dw, db, du, sums, taps):
    """Compute dw = G^T dU G and db, with dU and the sums of dy summed over the chunks; one task for each output."""
    chunks, parts, pairs, outputs, width = du.shape
    step = outputs * width
    for o in range(tasks[0], tasks[1]):
        t = taps[o]
        db[o] = 0
        for chunk in range(chunks):
            db[o] += sums[chunk, o]
        for c in range(dw.shape[1]):
            for part in range(parts):
                source = pointer(du, part * pairs * step + o * width + TILE * c)
                restore_kernel(source, step, parts * pairs * step, chunks, pointer(t, 0))
                top, left = part // 2 * 4, part % 2 * 4
                for a in range(5 if parts == 1 or top else 4):
                    for b in range(5 if parts == 1 or left else 4):
                        dw[o, c, top + a, left + b] = t[FREQUENCIES * b + a]
