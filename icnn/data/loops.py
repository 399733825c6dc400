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
            count = _add_samples(values[i, j], pixels, x, y, matrix, grid)
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


#: Cell of a map of probabilities whose corners have different labels.
MIXED = 255


@cached(nogil=True)
def agree(cells, labels):
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


@cached(nogil=True, error_model="numpy")
def draw(labels, rows, columns, maps, cells, matrix, grid):
    """Write the arg-max of maps (S, S, L), resampled as by `warp`, into labels (H', W'), which are 0.

    rows (L, H') and columns (L, W') count the pixels of each label. `cells` are those of `agree`.
    """
    size = maps.shape[0]
    mean = np.zeros(maps.shape[2], np.float32)
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


@cached(nogil=True)
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


@cached(nogil=True, error_model="numpy")
def _sampled(mean, maps, x, y, matrix, grid):
    """Return the arg-max of the mean of a pixel's samples, as `warp` takes them; `mean` is overwritten."""
    mean[:] = 0
    count = _add_samples(mean, maps, x, y, matrix, grid)
    best = 0
    for part in range(1, mean.size):
        if mean[part] / np.float32(count) > mean[best] / np.float32(count):
            best = part
    return best if count else 0


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
