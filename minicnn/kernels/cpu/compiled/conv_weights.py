"""Loops of the direct weight gradient; `minicnn.kernels.cpu.conv_weights` explains the two ways."""

from numba import njit

from minicnn.kernels.cpu.compiled.options import SERIAL
from minicnn.kernels.cpu.compiled.tiles import inner_tile, lane_sum, outer_tile, pointer, row


def multiply_positions(taps: int, out_channels: int):
    """Make the kernel for tiles of `taps` kernel columns and `out_channels` outputs, with vectors of positions."""

    def multiply(tasks, dw, db, dy, x, sums, places, ranges, images):
        """dw[o, c, u, v] = sum of dy[o] x[c] shifted by (u, v); one task per block of output channels and channel c.

        `images` images are processed at a time, so that a strip of dy stays in the L1 cache for all kernel rows.
        """
        n_filters, channels, k, _ = dw.shape
        n_images, _, h, _ = dy.shape
        before, groups, item = (k - 1) // 2, (k + taps - 1) // taps, dw.itemsize
        g_image, g_channel = dy.strides[0] // item, dy.strides[1] // item
        x_image, x_channel, x_row = x.strides[0] // item, x.strides[1] // item, x.strides[2] // item
        size, strips = sums.shape[1] // (k * groups), ranges.shape[0] // k
        lane_count, n_rows = size // (taps * out_channels), (h + strips - 1) // strips
        for task in range(tasks[0], tasks[1]):
            block, c = task // channels, task % channels
            o = min(block * out_channels, n_filters - out_channels)
            # the last block may begin early: it repeats `new` channels of the one before
            new = block * out_channels - o
            own = sums[task]
            for j in range(own.size):
                own[j] = 0
            if c == 0:
                for f in range(new, out_channels):
                    db[o + f] = 0
            for n in range(0, n_images, images):
                for strip in range(strips):
                    for u in range(k):
                        for group in range(groups):
                            shift = (u - before) * x_row - before + group * taps
                            begin, end = ranges[strip * k + u, 0], ranges[strip * k + u, 1]
                            inner_tile(
                                out_channels,
                                taps,
                                pointer(own, (u * groups + group) * size),
                                (pointer(dy, n * g_image + o * g_channel), g_image, g_channel),
                                (pointer(x, n * x_image + c * x_channel + shift), x_image),
                                min(images, n_images - n),
                                pointer(places, begin),
                                end - begin,
                            )
                    if c == 0:
                        for image in range(n, min(n + images, n_images)):
                            for f in range(new, out_channels):
                                for i in range(strip * n_rows, min(h, strip * n_rows + n_rows)):
                                    db[o + f] += _sum(row(dy, image, o + f, i))
            for f in range(new, out_channels):
                for u in range(k):
                    for v in range(k):
                        place = (u * groups + v // taps) * size
                        dw[o + f, c, u, v] = lane_sum(pointer(own, place + (f * taps + v % taps) * lane_count))

    return multiply


@njit(**SERIAL)
def _sum(x):
    total = x.dtype.type(0)
    for j in range(x.size):
        total += x[j]
    return total


def multiply_channels(vectors: int, taps: int):
    """Make the kernel for tiles of `taps` kernel columns and `vectors` vectors of the output channels of a pixel."""

    def multiply(tasks, dw, db, turned, x, zeros, sums, places):
        """Compute dw and db, one task per block of output channels and channel c; `turned` is dy as from `_turn`."""
        n_filters, channels, k, _ = dw.shape
        n_images, _, h, w = x.shape
        before, item = (k - 1) // 2, dw.itemsize
        x_image, x_channel, x_row = x.strides[0] // item, x.strides[1] // item, x.strides[2] // item
        padded = turned.shape[2]
        size = sums.shape[1] // taps
        for task in range(tasks[0], tasks[1]):
            block, c = task // channels, task % channels
            own = sums[task]
            if c == 0:
                for f in range(size):
                    own[f] = 0
                for line in range(turned.shape[0]):
                    for j in range(w):
                        for f in range(size):
                            own[f] += turned[line, j, block * size + f]
                for f in range(min(size, n_filters - block * size)):
                    db[block * size + f] = own[f]
            for u in range(k):
                top, bottom = max(0, before - u), min(h, h + before - u)
                for first in range(0, k, taps):
                    gradient = pointer(turned, top * w * padded + block * size)
                    source = pointer(x, c * x_channel + (top + u - before) * x_row - before + first)
                    outer_tile(
                        vectors, taps, 1, 0, 0,
                        (pointer(own, 0), size, pointer(places, 0), pointer(zeros, 0), taps),
                        (gradient, (h * w * padded, w * padded, padded), pointer(places, 0)),
                        (source, (x_image, x_row, 1)),
                        (n_images, max(0, bottom - top), w),
                    )  # fmt: skip
                    for v in range(first, min(k, first + taps)):
                        for f in range(min(size, n_filters - block * size)):
                            dw[block * size + f, c, u, v] = own[(v - first) * size + f]

    return multiply


def turn(tasks, turned, dy):
    """Copy dy (N, O, H, W) to (N H, W, O), with zeros after the last output channel."""
    _, out_channels, h, w = dy.shape
    for task in range(tasks[0], tasks[1]):
        n, i = task // h, task % h
        for o in range(turned.shape[2]):
            if o < out_channels:
                source = row(dy, n, o, i)
                for j in range(w):
                    turned[task, j, o] = source[j]
            else:
                for j in range(w):
                    turned[task, j, o] = 0
