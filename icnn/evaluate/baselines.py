"""Two classifiers that must fail: one knows only where a pixel lies, the other only its colour.

Scored beside a network, they show what a data set gives away for free. Both
sort the pixels into cells and answer with a cell's most frequent label. Most
pixels are background, so its counts are divided by a discount, chosen on the
faces fitted to make each the strongest of its kind.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from icnn.classes import PARTS
from icnn.data.folder import Face
from icnn.evaluate.metrics import confusion, f_measures

DISCOUNTS = (1, 2, 3, 5, 10, 20, 50)


class _CellClassifier:
    """The most frequent label of the cell that a pixel belongs to.

    Attributes
    ----------
    table : (cells,) uint8
        Label of each cell, after `fit`.
    discount : int
        What background counts were divided by, after `fit`.
    """

    cells: int

    def __init__(self):
        self.table = np.zeros(self.cells, np.uint8)
        self.discount = 1

    def _cell(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (H, W) cell of every pixel."""
        raise NotImplementedError

    def fit(self, faces: Iterable[Face]):
        """Count labels per cell, choose the discount; -> self."""
        labels = len(PARTS)
        counts = np.zeros(self.cells * labels, np.int64)
        for face in faces:
            index = self._cell(face.image) * labels + face.labels()
            counts += np.bincount(index.ravel(), minlength=counts.size)
        counts = counts.reshape(self.cells, labels)
        best = -1.0
        for discount in DISCOUNTS:
            table = (counts / ([discount] + [1] * (labels - 1))).argmax(1).astype(np.uint8)
            # All pixels of a cell get its label, so the counts hold the whole confusion on these faces.
            pairs = np.stack([counts[table == label].sum(0) for label in range(labels)], 1)
            score = f_measures(pairs)["overall_micro"] or 0.0
            if score > best:
                best, self.table, self.discount = score, table, discount
        return self

    def predict(self, face: Face) -> np.ndarray:
        """Label a face by its cells: (H, W) uint8."""
        return self.table[self._cell(face.image)]

    def score(self, faces: Iterable[Face]) -> dict:
        """F-measures on pooled pixels of `faces`, as `icnn.evaluate.metrics.f_measures` gives them."""
        pairs = [confusion(face.labels(), self.predict(face)) for face in faces]
        return f_measures(np.sum(pairs, axis=0))


class ConstantPrior(_CellClassifier):
    """The most frequent label of each position, on a 256 x 256 grid laid over the image; it sees no pixel."""

    cells = 256 * 256

    def _cell(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        rows, columns = ((2 * np.arange(n) + 1) * 128 // n for n in (height, width))  # by pixel centres
        return rows[:, None] * 256 + columns


class ColourClassifier(_CellClassifier):
    """The most frequent label of each colour, in 16 steps a channel; it sees no neighbour."""

    cells = 16**3

    def _cell(self, image: np.ndarray) -> np.ndarray:
        red, green, blue = np.moveaxis(image >> 4, -1, 0).astype(np.intp)
        return (red * 16 + green) * 16 + blue
