"""Compiled loops over pixels, for `resample`, which documents them.

Numba takes half a second to import, so this module is imported at the first use.
"""

import numpy as np

from minicnn.kernels.cpu.cache import cached


# Strict arithmetic (no fastmath): code loaded from Numba's cache may fuse operations differently than in the process
# that compiled it, and the same seed must give the same bits.
@cached(nogil=True, error_model="numpy")
def warp(values, inside, pixels, matrix, grid):
    """Write into values (H', W', C) the means of grid x grid bilinear samples of pixels, and inside (H', W')."""
    height, width, channels = pixels.shape
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            x = matrix[0, 0] * j + matrix[0, 1] * i + matrix[0, 2]
            y = matrix[1, 0] * j + matrix[1, 1] * i + matrix[1, 2]
            inside[i, j] = _is_inside(x, y, width, height)
            count = 0
            for row in range(grid):
                for column in range(grid):
                    v = (row + 0.5) / grid - 0.5
                    u = (column + 0.5) / grid - 0.5
                    xs = x + matrix[0, 0] * u + matrix[0, 1] * v
                    ys = y + matrix[1, 0] * u + matrix[1, 1] * v
                    if _is_inside(xs, ys, width, height):
                        count += 1
                        _add_bilinear(values[i, j], pixels, xs, ys)
            if inside[i, j] and count:
                for c in range(channels):
                    values[i, j, c] /= np.float32(count)
            else:
                values[i, j, :] = 0


@cached(nogil=True, inline="always")
def _is_inside(x, y, width, height):
    # the border is outside, with a margin for rounding, so that the mask of a mirrored image is the mirrored mask
    edge = 0.5 - 1e-6
    return -edge < x < width - 1 + edge and -edge < y < height - 1 + edge


@cached(nogil=True, error_model="numpy")
def _add_bilinear(total, pixels, x, y):
    """Add the bilinear sample of `pixels` at (x, y) to `total`; edge pixels extend outwards by half a pixel."""
    height, width, channels = pixels.shape
    x = min(max(x, 0.0), width - 1.0)
    y = min(max(y, 0.0), height - 1.0)
    left, top = int(x), int(y)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    a, b = np.float32(x - left), np.float32(y - top)
    w00, w01 = (np.float32(1) - b) * (np.float32(1) - a), (np.float32(1) - b) * a
    w10, w11 = b * (np.float32(1) - a), b * a
    p00, p01 = pixels[top, left], pixels[top, right]
    p10, p11 = pixels[bottom, left], pixels[bottom, right]
    for c in range(channels):
        total[c] += w00 * p00[c] + w01 * p01[c] + w10 * p10[c] + w11 * p11[c]


@cached(nogil=True)
def label(labels, maps, inside, threshold):
    """Write the largest map of each pixel into labels, which are 0."""
    for i in range(labels.shape[0]):
        for j in range(labels.shape[1]):
            first = 1 if threshold else 0
            best = first
            for label in range(first + 1, maps.shape[2]):
                if maps[i, j, label] > maps[i, j, best]:
                    best = label
            if inside[i, j] and not (threshold and maps[i, j, best] <= 50):
                labels[i, j] = best


@cached(nogil=True, error_model="numpy")
def normalise(out, values, inside):
    """Normalise in float64, without the GIL: this runs in parallel with the training steps."""
    height, width = inside.shape
    for c in range(out.shape[0]):
        count, total, peak = 0, 0.0, 0.0
        for i in range(height):
            for j in range(width):
                if inside[i, j]:
                    count += 1
                    total += values[i, j, c]
                    peak = max(peak, abs(values[i, j, c]))
        mean, squares = total / max(count, 1), 0.0
        for i in range(height):
            for j in range(width):
                if inside[i, j]:
                    squares += (values[i, j, c] - mean) ** 2
        std = np.sqrt(squares / max(count, 1))
        if std <= 1e-5 * peak:
            std = 1.0
        for i in range(height):
            for j in range(width):
                if inside[i, j]:
                    out[c, i, j] = (values[i, j, c] - mean) / std
