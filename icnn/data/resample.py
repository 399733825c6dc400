"""Resample image and labels with one affine transform, derive labels and normalise pixels.

A transform is a (2, 3) float64 matrix from output to source pixel coordinates,
x_source = M @ (x, y, 1), with pixel centres at integers: pixel x covers
[x - 0.5, x + 0.5). Scaling by s about the image's corner is then
x' = (x + 0.5) s - 0.5.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from icnn.classes import PARTS
from icnn.data.geometry import affine
from minicnn.kernels.cpu.cache import cached
from minicnn.kernels.host import cores

Item = TypeVar("Item")
Result = TypeVar("Result")


def warp(pixels: np.ndarray, matrix: np.ndarray, size: int | tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Resample an image into a square or another rectangle, in one pass.

    Each output pixel is the mean of a grid of bilinear samples. The grid has as many samples along each axis as
    source pixels fall into one output pixel (rounded): an area average when shrinking, plain bilinear otherwise.
    Training and inference use this same filter.

    Parameters
    ----------
    pixels : (H, W, C) uint8
    matrix : (2, 3) float64
        From output to source pixel coordinates.
    size : int or (int, int)
        Side of the square, or height and width, in pixels.

    Returns
    -------
    values : (size, size, C) float32, in [0, 255]; 0 outside the image
    inside : (size, size) bool
        True if the centre of the output pixel lies in the image. Exactly on the border, on any side, is outside.
    """
    shape = (size, size) if isinstance(size, int) else size
    values = np.zeros((*shape, pixels.shape[2]), np.float32)
    inside = np.zeros(shape, np.bool_)
    shrink = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    _warp(values, inside, pixels, np.ascontiguousarray(matrix, np.float64), max(1, round(shrink)))
    return values, inside


# Strict arithmetic (no fastmath): code loaded from Numba's cache may fuse operations differently than in the process
# that compiled it, and the same seed must give the same bits.
@cached(nogil=True, error_model="numpy")
def _warp(values, inside, pixels, matrix, grid):
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


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item], threads: int | None = None) -> list[Result]:
    """Map `function` over `items` with a thread pool, keeping the order.

    Parameters
    ----------
    function : callable
        It should release the GIL, as `warp` does.
    items : sequence
    threads : int, optional
        Number of threads; one per core by default.
    """
    if len(items) < 2 or threads == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads or cores()) as pool:
        return list(pool.map(function, items))


def resize(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Resample (H, W, C) uint8 to another (height, width) with `warp`; the result is float32 in [0, 255]."""
    y, x = (before / after for before, after in zip(pixels.shape[:2], shape, strict=True))
    return warp(pixels, affine((x, y), -0.5, -0.5), shape)[0]


def labels_of(maps: np.ndarray, inside: np.ndarray, rule: str = "argmax") -> np.ndarray:
    """Convert soft maps to one label per pixel.

    Parameters
    ----------
    maps : (H, W, 9) in [0, 255]
    inside : (H, W) bool
        Where False, the label is 0.
    rule : "argmax" or "threshold"
        "argmax" takes the largest map, ties to the lower id. "threshold" takes the largest part map if it exceeds 50,
        else background.

    Returns
    -------
    (H, W) uint8
    """
    labels = np.zeros(inside.shape, np.uint8)
    _label(labels, maps, inside, rule == "threshold")
    return labels


def maps_of(labels: np.ndarray) -> np.ndarray:
    """Convert ids (H, W) to maps (H, W, 9) uint8 of 255 or 0; the inverse of `labels_of`."""
    return (255 * np.eye(len(PARTS), dtype=np.uint8)).take(labels, axis=0)


@cached(nogil=True)
def _label(labels, maps, inside, threshold):
    for i in range(labels.shape[0]):
        for j in range(labels.shape[1]):
            first = 1 if threshold else 0
            best = first
            for label in range(first + 1, maps.shape[2]):
                if maps[i, j, label] > maps[i, j, best]:
                    best = label
            if inside[i, j] and not (threshold and maps[i, j, best] <= 50):
                labels[i, j] = best


def normalise(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Normalise each channel to (x - mean) / std over the pixels inside the image; 0 elsewhere (Sec. 3.1).

    A std of 0, or one that comes only from the rounding of a constant channel by `warp`, is replaced by 1.

    Parameters
    ----------
    values : (H, W, 3)
    inside : (H, W) bool

    Returns
    -------
    (3, H, W) float32
    """
    out = np.zeros((values.shape[2], *inside.shape), np.float32)
    _normalise(out, values, inside)
    return out


@cached(nogil=True, error_model="numpy")
def _normalise(out, values, inside):
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
