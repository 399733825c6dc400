"""Loops of Winograd convolution; `minicnn.kernels.cpu.conv_winograd` explains the method."""

from minicnn.kernels.cpu.compiled.tiles import pointer
from minicnn.kernels.cpu.compiled.winograd_products import gradient_products, products
from minicnn.kernels.cpu.compiled.winograd_tiles import (
    restore_kernel,
    transform_gradient,
    transform_input,
    transform_kernel,
    transform_output,
)
from minicnn.kernels.cpu.vectors import VECTOR_BYTES
from minicnn.kernels.cpu.winograd_blocks import FREQUENCIES, INPUTS, PAIRS, TAPS, TILE


def transform_weights(tasks, u, w, taps, out_channels, transposed):
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


def convolution(outputs: int, quads: int, segments: int):
    """Make the kernel whose products have `outputs` output channels and `quads` quads."""

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


def accumulation(outputs: int, segments: int):
    """Make the kernel of the weight gradient whose products have `outputs` output channels."""

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
                                segments, plane, y_row, pointer(y_places, run), y_channel, real,
                                pointer(own, place), d_step,
                            )  # fmt: skip
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


def restore_weights(tasks, dw, db, du, sums, taps):
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
