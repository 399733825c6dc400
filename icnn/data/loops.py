"""Loops over pixels that Numba compiles, for `resample` and `photometric`, which document them.

Only processes that compile import this module. Arithmetic is strict: the same seed must give the same bits everywhere.
"""

import numpy as np
from numba import njit

from minicnn.kernels.cpu.compiled.options import STRICT


def warp(tasks, values, inside, pixels, matrix, grid):
    """Write into values (H', W', C) the means of grid x grid bilinear samples of pixels, and inside (H', W')."""
    height, width, channels = pixels.shape
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            x = matrix[0, 0] * j + matrix[0, 1] * i + matrix[0, 2]
            y = matrix[1, 0] * j + matrix[1, 1] * i + matrix[1, 2]
            inside[i, j] = _is_inside(x, y, width, height)
            count = _add_samples(values[i, j], pixels, x, y, matrix, grid)
            if inside[i, j] and count:
                for c in range(channels):
                    values[i, j, c] /= np.float32(count)
            else:
                values[i, j, :] = 0


@njit(inline="always", **STRICT)
def _is_inside(x, y, width, height):
    # the border is outside, with a margin for rounding, so that the mask of a mirrored image is the mirrored mask
    edge = 0.5 - 1e-6
    return -edge < x < width - 1 + edge and -edge < y < height - 1 + edge


@njit(**STRICT)
def _add_samples(total, pixels, x, y, matrix, grid):
    """Add the grid x grid bilinear samples of the output pixel at (x, y) to `total`; return how many are inside."""
    height, width = pixels.shape[:2]
    count = 0
    for row in range(grid):
        for column in range(grid):
            v = (row + 0.5) / grid - 0.5
            u = (column + 0.5) / grid - 0.5
            xs = x + matrix[0, 0] * u + matrix[0, 1] * v
            ys = y + matrix[1, 0] * u + matrix[1, 1] * v
            if _is_inside(xs, ys, width, height):
                count += 1
                _add_bilinear(total, pixels, xs, ys)
    return count


@njit(**STRICT)
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


#: Cell of a map of probabilities whose corners have different labels.
MIXED = 255


def agree(tasks, cells, labels):
    """Write into cells (S, S) the label that a pixel shares with its right, lower and lower right neighbour, or MIXED.

    Bilinear samples between four pixels with one arg-max have the same arg-max.
    """
    size = labels.shape[0]
    for i in range(size):
        for j in range(size):
            below, right = min(i + 1, size - 1), min(j + 1, size - 1)
            own = labels[i, j]
            same = own == labels[i, right] and own == labels[below, j] and own == labels[below, right]
            cells[i, j] = own if same else MIXED


def draw(tasks, mean, labels, rows, columns, maps, cells, matrix, grid):
    """Write the arg-max of maps (S, S, L), resampled as by `warp`, into labels (H', W'), which are 0.

    rows (L, H') and columns (L, W') count the pixels of each label. `cells` are those of `agree`; `mean`
    is memory (L,).
    """
    size = maps.shape[0]
    for i in range(labels.shape[0]):
        for j in range(labels.shape[1]):
            x = matrix[0, 0] * j + matrix[0, 1] * i + matrix[0, 2]
            y = matrix[1, 0] * j + matrix[1, 1] * i + matrix[1, 2]
            if not _is_inside(x, y, size, size):
                continue
            found = _common_cell(cells, x, y, matrix, grid)
            if found == MIXED:
                found = _sampled(mean, maps, x, y, matrix, grid)
            if found:
                labels[i, j] = found
                rows[found, i] += 1
                columns[found, j] += 1


@njit(**STRICT)
def _common_cell(cells, x, y, matrix, grid):
    """Return the label of the cells of all samples of a pixel, or MIXED."""
    size, found = cells.shape[0], -1
    for row in range(grid):
        for column in range(grid):
            v = (row + 0.5) / grid - 0.5
            u = (column + 0.5) / grid - 0.5
            xs = min(max(x + matrix[0, 0] * u + matrix[0, 1] * v, 0.0), size - 1.0)
            ys = min(max(y + matrix[1, 0] * u + matrix[1, 1] * v, 0.0), size - 1.0)
            cell = int(cells[int(ys), int(xs)])
            if found >= 0 and cell != found:
                return MIXED
            found = cell
    return found


@njit(**STRICT)
def _sampled(mean, maps, x, y, matrix, grid):
    """Return the arg-max of the mean of a pixel's samples, as `warp` takes them; `mean` is overwritten."""
    mean[:] = 0
    count = _add_samples(mean, maps, x, y, matrix, grid)
    best = 0
    for part in range(1, mean.size):
        if mean[part] / np.float32(count) > mean[best] / np.float32(count):
            best = part
    return best if count else 0


def label(tasks, labels, maps, inside, threshold):
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


def normalise(tasks, out, values, inside):
    """Normalise in float64."""
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


# ---- photometric augmentation


def occlude(tasks, values, inside, place, colour):
    """Paint the pixels inside a turned rectangle; place is its centre, half its sides, cosine and sine of the turn."""
    size = values.shape[0]
    across, down, width, height, cosine, sine = place[0], place[1], place[2], place[3], place[4], place[5]
    for i in range(size):
        for j in range(size):
            x, y = (j + 0.5) / size - across, (i + 0.5) / size - down
            if inside[i, j] and abs(cosine * x + sine * y) < width and abs(cosine * y - sine * x) < height:
                for c in range(3):
                    values[i, j, c] = colour[c]


def recolour(tasks, mixed, values, inside, mixture, curve, light):
    """Apply the tone curve (257 points from 0 to 255), the lighting, then the channel mixture, in place.

    `mixed` is memory (3,).
    """
    size = values.shape[0]
    for i in range(size):
        for j in range(size):
            if not inside[i, j]:
                continue
            slope = light[0] * ((2 * j + 1) / size - 1) + light[1] * ((2 * i + 1) / size - 1)
            for c in range(3):
                place = min(max(values[i, j, c], np.float32(0)), np.float32(255)) * np.float32(256 / 255)
                below = min(int(place), 255)
                part = place - np.float32(below)
                mixed[c] = (curve[below] + part * (curve[below + 1] - curve[below])) * np.float32(1 + slope)
            for c in range(3):
                value = mixture[c, 0] * mixed[0] + mixture[c, 1] * mixed[1] + mixture[c, 2] * mixed[2]
                values[i, j, c] = min(max(value, np.float32(0)), np.float32(255))


def blur(tasks, out, first, values, inside, taps):
    """Blur along rows into first, then along columns into out, both 0; pixels outside do not contribute to any mean."""
    size, reach = values.shape[0], len(taps) // 2
    for source, target, down, across in ((values, first, 0, 1), (first, out, 1, 0)):
        for i in range(size):
            for j in range(size):
                if not inside[i, j]:
                    continue
                total = np.float32(0)
                for t in range(-reach, reach + 1):
                    u, v = i + t * down, j + t * across
                    if 0 <= u < size and 0 <= v < size and inside[u, v]:
                        weight = taps[t + reach]
                        total += weight
                        for c in range(3):
                            target[i, j, c] += weight * source[u, v, c]
                for c in range(3):
                    target[i, j, c] /= total
