"""Find faces at any angle with a small fully convolutional network (`icnn.model.finder`).

The network finds faces of one size, so it runs on a pyramid of the photograph whose levels are half an octave apart.
The levels are cut into regions that overlap by more than a face, and the regions are packed into tiles of one size,
because a `Plan` has a fixed input shape.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from icnn.data.face_box import Box
from icnn.model.finder import FACE_LENGTH, ROLLS, STRIDE, finder_graph, network_input
from icnn.model.weights import SHIPPED, read_parameters
from icnn.parse.search import Candidate, nms
from minicnn import Plan

#: Lowest score of a proposal. It is meant for candidates that both stages check afterwards.
LEAST_SCORE = 0.6
_TILE = 192  # side of a tile, pixels
_OVERLAP = 40  # of the regions of a level, pixels: more than the longest face that a level finds
_GAP = 8  # between the regions in a tile, pixels
_BATCH = 8  # tiles in one pass
_OCTAVE = 2  # levels in an octave of scale
_SAME = 0.3  # IoU from which on two proposals are of one face


class _Region(NamedTuple):
    """Rectangle of a level, and where it lies in the tiles; all in pixels but `level` and `tile`."""

    level: int
    top: int
    left: int
    height: int
    width: int
    tile: int
    row: int
    column: int


class Finder:
    """Find faces in photographs.

    Parameters
    ----------
    threads : int, optional
        CPU threads; default: all cores.
    backend : str
        "numpy", "numba", "cupy" or "cublas".

    Raises
    ------
    InputError
        If the shipped weights are missing or damaged.
    """

    def __init__(self, threads: int | None = None, backend: str = "numba"):
        graph = finder_graph(_TILE)
        self._plan = Plan(graph, _BATCH, backend, threads=threads)
        self._plan.assign(read_parameters(SHIPPED, "finder", graph))

    def find(
        self, image: np.ndarray, smallest: float = 40, most: int = 200, step: float = 1.0, least: float = LEAST_SCORE
    ) -> list[Candidate]:
        """Find faces of any size from `smallest` on.

        Parameters
        ----------
        image : (H, W, 3) uint8
            The photograph, or a smaller copy of it.
        smallest : float
            Length of the smallest faces, photograph pixels.
        most : int
            Number of proposals at most.
        step : float
            Photograph pixels per pixel of `image`.
        least : float
            Lowest score.

        Returns
        -------
        list of Candidate
            The best first; they do not overlap much.
        """
        levels = [(level, (across / step, down / step)) for level, (across, down) in _pyramid(image, smallest / step)]
        regions = _pack([level.shape[:2] for level, _ in levels])
        found = []
        for first in range(0, regions[-1].tile + 1 if regions else 0, _BATCH):
            own = [region for region in regions if first <= region.tile < first + _BATCH]
            found += self._find_in(levels, own, first, least)
        return _merge(found)[:most]

    def _find_in(
        self, levels: "Sequence[_Level]", regions: Sequence[_Region], first: int, least: float
    ) -> list[Candidate]:
        """Run the network on the tiles from `first` on, which hold `regions`; return the peaks."""
        tiles = np.zeros((regions[-1].tile - first + 1, 3, _TILE, _TILE), np.float32)
        owner = np.full((len(tiles), _TILE // STRIDE, _TILE // STRIDE), -1)
        for number, (level, top, left, height, width, tile, row, column) in enumerate(regions):
            pixels = levels[level][0][top : top + height, left : left + width]
            tiles[tile - first, :, row : row + height, column : column + width] = network_input(pixels)
            rows, columns = (
                (slice(at // STRIDE, -(-(at + n) // STRIDE))) for at, n in ((row, height), (column, width))
            )
            owner[tile - first, rows, columns] = number
        logits = self._plan.download(self._plan.forward(tiles))
        found = []
        for tile, i, j, x, y, roll, score in _peaks(logits, least):
            if (number := owner[tile, i, j]) >= 0:
                region = regions[number]
                across, down = levels[region.level][1]
                x = ((x + 0.5) * STRIDE + region.left - region.column) / across - 0.5
                y = ((y + 0.5) * STRIDE + region.top - region.row) / down - 0.5
                found.append(Candidate(Box(x, y, FACE_LENGTH / math.sqrt(across * down), roll), score))
        return found


#: Pixels (H, W, 3) uint8, and their number per pixel of the image, or of the photograph, along x and y.
_Level = tuple[np.ndarray, tuple[float, float]]


def _pyramid(image: np.ndarray, smallest: float) -> Iterator[_Level]:
    """Scale an image so that each of its faces, from the length `smallest` in pixels on, fits the network in one level.

    The first octave is resampled from the image; each further level has half the size of one before it.
    """
    height, width = image.shape[:2]
    # Box averages come first, as far as they leave twice the resolution of the finest level: they are fast.
    shrink = max(1, int(smallest / FACE_LENGTH / 2))
    photograph = Image.fromarray(image).reduce(shrink)
    whole = (0, 0, width / shrink, height / shrink)
    levels: list[Image.Image] = []
    for number in itertools.count():
        octave, fraction = divmod(number, _OCTAVE)
        if octave:
            level = levels[number - _OCTAVE].reduce(2)
        else:
            zoom = FACE_LENGTH / smallest / 2 ** ((fraction + 0.5) / _OCTAVE)
            size = max(1, round(width * zoom)), max(1, round(height * zoom))
            level = photograph.resize(size, Image.Resampling.BILINEAR, whole)
        if max(level.size) < FACE_LENGTH:
            return
        levels.append(level)
        first = levels[fraction]
        yield np.asarray(level), (first.width / width / 2**octave, first.height / height / 2**octave)


def _pack(shapes: Sequence[tuple[int, int]]) -> list[_Region]:
    """Cut levels of these shapes (H, W) into regions and place them in tiles, row by row."""
    cuts = [
        (level, top, left, height, width)
        for level, shape in enumerate(shapes)
        for top, height in _spans(shape[0])
        for left, width in _spans(shape[1])
    ]
    regions, tile, row, column, tall = [], 0, 0, 0, 0
    for cut in sorted(cuts, key=lambda cut: (-cut[3], -cut[4])):
        height, width = cut[3:]
        if column + width > _TILE:
            row, column, tall = row + tall, 0, 0
        if row + height > _TILE:
            tile, row, column, tall = tile + 1, 0, 0, 0
        regions.append(_Region(*cut, tile, row, column))
        column += -(-(width + _GAP) // STRIDE) * STRIDE
        tall = max(tall, -(-(height + _GAP) // STRIDE) * STRIDE)
    return regions


def _spans(side: int) -> list[tuple[int, int]]:
    """Cut a side of a level into spans of equal length, (start, length), that overlap by `_OVERLAP` or more."""
    count = max(1, math.ceil((side - _OVERLAP) / (_TILE - _OVERLAP)))
    length = min(_TILE, math.ceil((side + (count - 1) * _OVERLAP) / count))
    return [(round(n * (side - length) / max(1, count - 1)), length) for n in range(count)]


def _peaks(logits: np.ndarray, least: float) -> Iterator[tuple[int, int, int, float, float, float, float]]:
    """Yield the local maxima of the probability of a face, at least `least`.

    Parameters
    ----------
    logits : (n, 1 + ROLLS, H, W)
    least : float

    Yields
    ------
    tile, row, column : int
        Cell of the maximum.
    x, y : float
        Centre of mass of the 3 x 3 cells around it, in cells.
    roll : float
        Degrees, the circular mean over these cells and all classes.
    score : float
    """
    _, _, height, width = logits.shape
    rolls = np.exp(np.minimum(logits[:, 1:] - logits[:, :1], 50))  # relative to the background
    face = np.pad(1 - 1 / (1 + rolls.sum(1)), ((0, 0), (1, 1), (1, 1)))
    middle = face[:, 1:-1, 1:-1]
    highest = middle >= least
    for k in range(9):
        other = face[:, k // 3 : k // 3 + height, k % 3 : k % 3 + width]
        highest &= middle > other if k < 4 else middle >= other
    turns = np.exp(2j * np.pi * np.arange(ROLLS) / ROLLS)
    offsets = np.arange(-1, 2)
    for tile, i, j in np.argwhere(highest).tolist():
        near = face[tile, i : i + 3, j : j + 3]
        x, y = j + near.sum(0) @ offsets / near.sum(), i + near.sum(1) @ offsets / near.sum()
        around = slice(max(0, i - 1), i + 2), slice(max(0, j - 1), j + 2)
        shares = rolls[tile, :, *around] / (1 + rolls[tile, :, *around].sum(0))
        roll = np.angle(shares.sum((1, 2)) @ turns, deg=True)
        yield tile, i, j, float(x), float(y), float(roll), float(middle[tile, i, j])


def _merge(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Replace the best candidate and those that overlap it by their mean, and so on, best first.

    The weights are the squared scores. A candidate inside a much larger one stays: either may be the face.
    """
    ordered = sorted(candidates, key=lambda one: -one.score)
    merged = []
    for group in nms([one.box for one in ordered], _SAME):
        boxes, score = [ordered[i].box for i in group], np.array([ordered[i].score for i in group])
        x, y, length, roll = np.array([(box.x, box.y, box.length, box.roll) for box in boxes]).T
        weights = score**2 / (score**2).sum()
        turned = np.angle(np.exp(1j * np.radians(roll)) @ weights, deg=True)
        mean = x @ weights, y @ weights, np.exp(np.log(length) @ weights), turned
        merged.append(Candidate(Box(*map(float, mean)), float(score[0])))
    return merged
