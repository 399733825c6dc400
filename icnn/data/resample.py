"""Resample image and labels with one affine transform, derive labels and normalise pixels.

A transform is a (2, 3) float64 matrix from output to source pixel coordinates,
x_source = M @ (x, y, 1), with pixel centres at integers: pixel x covers
[x - 0.5, x + 0.5). Scaling by s about the image's corner is then
x' = (x + 0.5) s - 0.5.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from icnn.classes import PARTS
from icnn.data.geometry import affine, shrinkage
from minicnn.kernels.cpu.kernel import Kernel, one
from minicnn.kernels.host import cores

Item = TypeVar("Item")
Result = TypeVar("Result")

_WARP = Kernel("icnn.data.loops:warp", "pixels mask image matrix int", one, strict=True)
_AGREE = Kernel("icnn.data.loops:agree", "ids ids", one, strict=True)
_DRAW = Kernel("icnn.data.loops:draw", "flat ids table table image ids matrix int", one, strict=True)
_LABEL = Kernel("icnn.data.loops:label", "ids image mask bool", one, strict=True)
_NORMALISE = Kernel("icnn.data.loops:normalise", "pixels image mask", one, strict=True)


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
    _WARP(values, inside, pixels, np.ascontiguousarray(matrix, np.float64), _samples(matrix))
    return values, inside


def draw_labels(
    maps: np.ndarray, largest: np.ndarray, matrix: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Resample probabilities as `warp` does and take the largest at each pixel, without making the resampled maps.

    Parameters
    ----------
    maps : (S, S, 9) float32
    largest : (S, S) uint8
        Their arg-max.
    matrix : (2, 3) float64
        From output to map coordinates.
    shape : (h, w)
        Of the output.

    Returns
    -------
    labels : (h, w) uint8
        Ids; 0 outside the maps.
    rows, columns : (9, h) and (9, w) int64
        Number of pixels of each id in each row and column; 0 for the background.
    """
    labels = np.zeros(shape, np.uint8)
    rows, columns = (np.zeros((maps.shape[2], length), np.int64) for length in shape)
    cells = np.empty(maps.shape[:2], np.uint8)
    _AGREE(cells, largest)
    matrix = np.ascontiguousarray(matrix, np.float64)
    _DRAW(np.empty(maps.shape[2], np.float32), labels, rows, columns, maps, cells, matrix, _samples(matrix))
    return labels, rows, columns


def prepare_loops() -> None:
    """Begin to compile the loops that parsing needs, where they are missing, so that other work goes on meanwhile."""
    values, inside, ids = np.zeros((1, 1, 3), np.float32), np.zeros((1, 1), np.bool_), np.zeros((1, 1), np.uint8)
    matrix, counts = np.zeros((2, 3)), np.zeros((1, 1), np.int64)
    _WARP.bind(values, inside, ids[..., None], matrix, 1)
    _NORMALISE.bind(values, values, inside)
    _DRAW.bind(values[0, 0], ids, counts, counts, values, ids, matrix, 1)
    _AGREE.bind(ids, ids)


def _samples(matrix: np.ndarray) -> int:
    """Return the samples of an output pixel along each axis: the source pixels that fall into it, rounded."""
    return max(1, round(shrinkage(matrix)))


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


def begin_ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], depth: int
) -> "Iterator[tuple[Item, Future[Result]]]":
    """Yield items in order with the futures of `function` for them; up to `depth` are begun before their turn."""
    begun: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            begun.append((item, pool.submit(function, item)))
            if len(begun) > depth:
                yield begun.popleft()
        while begun:
            yield begun.popleft()
    finally:
        for _, future in begun:
            future.cancel()


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
    _LABEL(labels, maps, np.ascontiguousarray(inside), rule == "threshold")
    return labels


def maps_of(labels: np.ndarray) -> np.ndarray:
    """Convert ids (H, W) to maps (H, W, 9) uint8 of 255 or 0; the inverse of `labels_of`."""
    return (255 * np.eye(len(PARTS), dtype=np.uint8)).take(labels, axis=0)


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
    _NORMALISE(out, values, np.ascontiguousarray(inside))
    return out
