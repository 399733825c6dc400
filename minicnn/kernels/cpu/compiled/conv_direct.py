"""Loops of the direct correlation; `minicnn.kernels.cpu.conv_direct` explains the two ways."""

from minicnn.kernels.cpu.compiled.tiles import outer_tile, pointer, row


def pack(tasks, packed, w, transposed):
    """Pack w (O, C, K, K) as [block][input channel][u][v][output channel]; the last block is padded with zeros.

    `transposed` swaps O and C and rotates the kernel by 180°: the input gradient of a convolution is the
    correlation of dy with those weights.
    """
    _, channels, k, _, size = packed.shape
    out_channels = w.shape[1] if transposed else w.shape[0]
    for task in range(tasks[0], tasks[1]):
        block, c = task // channels, task % channels
        for u in range(k):
            for v in range(k):
                for f in range(size):
                    o = block * size + f
                    value = w.dtype.type(0)
                    if o < out_channels:
                        value = w[c, o, k - 1 - u, k - 1 - v] if transposed else w[o, c, u, v]
                    packed[block, c, u, v, f] = value


def correlate_positions(scalars: int, vectors: int, segments: int):
    """Make the correlation kernel for a tile of `scalars` output channels and `vectors` vectors of positions."""

    def correlate(tasks, y, x, packed, bias, y_places, x_places, spans, before, parts):
        """Correlate, with one task for each image, block of output channels and part of the plane."""
        _, out_channels = y.shape[:2]
        blocks, channels, k = packed.shape[:3]
        y_image, y_channel = y.strides[0] // y.itemsize, y.strides[1] // y.itemsize
        x_image, x_channel, x_row = x.strides[0] // y.itemsize, x.strides[1] // y.itemsize, x.strides[2] // y.itemsize
        tiles = spans.shape[0]
        for task in range(tasks[0], tasks[1]):
            part, block, n = task % parts, task // parts % blocks, task // (parts * blocks)
            for t in range(tiles * part // parts, tiles * (part + 1) // parts):
                top, bottom = spans[t, 0], spans[t, 1]
                target = pointer(y, n * y_image + block * scalars * y_channel)
                source = pointer(x, n * x_image + (top - before) * x_row - before)
                weights = pointer(packed, (block * channels * k + top) * k * scalars)
                run, filled = t * vectors * segments, min(scalars, out_channels - block * scalars)
                outer_tile(
                    vectors, scalars, segments, 0, 0,
                    (target, y_channel, pointer(y_places, run), pointer(bias, block * scalars), filled),
                    (source, (x_channel, x_row, 1), pointer(x_places, run)),
                    (weights, (k * k * scalars, k * scalars, scalars)),
                    (channels, bottom - top, k),
                )  # fmt: skip

    return correlate


def correlate_channels(vectors: int, scalars: int, kernel_size: int, left: int):
    """Make the correlation kernel for a tile of `vectors` vectors of output channels and `scalars` pixels of a row.

    If the pixels are a whole row, `kernel_size` and the padding to its `left` are compile-time constants,
    and kernel columns outside the plane are skipped as well. Otherwise both are 0.
    """

    def correlate(tasks, y, x, packed, bias, zeros, sums, places, before, out_channels):
        """Correlate, with one task for each image, block of output channels and row; sums are (pixel, channel)."""
        h, w = y.shape[2:]
        blocks, channels, k, _, size = packed.shape
        x_image, x_channel, x_row = x.strides[0] // y.itemsize, x.strides[1] // y.itemsize, x.strides[2] // y.itemsize
        for task in range(tasks[0], tasks[1]):
            i, block, n = task % h, task // h % blocks, task // (h * blocks)
            top, bottom = max(0, before - i), min(k, h + before - i)
            own = sums[task]
            for first in range(0, w, scalars):
                start = min(first, w - scalars)
                weights = pointer(packed, (block * channels * k + top) * k * size)
                source = pointer(x, n * x_image + (i + top - before) * x_row + start - before)
                outer_tile(
                    vectors, scalars, 1, kernel_size, left,
                    (pointer(own, 0), size, pointer(places, 0), pointer(zeros, 0), scalars),
                    (weights, (k * k * size, k * size, size), pointer(places, 0)),
                    (source, (x_channel, x_row, 1)),
                    (channels, bottom - top, k),
                )  # fmt: skip
                for f in range(min(size, out_channels - block * size)):
                    target, shift = row(y, n, block * size + f, i), bias[block * size + f]
                    for q in range(scalars):
                        target[start + q] = own[q * size + f] + shift

    return correlate
