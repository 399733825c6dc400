"""Two trivial baselines: one uses only the position of a pixel, the other only its colour.

They measure how much of the score a data set allows without a real model.
Both assign each pixel to a cell and predict the most frequent label of that
cell. Most pixels are background, so the background counts are divided by a
discount, chosen on the training faces to maximise the baseline's score.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from icnn.classes import PARTS
from icnn.data.folder import Face
from icnn.evaluate.metrics import confusion, f_measures

DISCOUNTS = (1, 2, 3, 5, 10, 20, 50)


class _CellClassifier:
    """Base class: predict the most frequent label of the cell that a pixel belongs to.

    Attributes
    ----------
    table : (cells,) uint8
        Label of each cell, after `fit`.
    discount : int
        Divisor of the background counts, after `fit`.
    """

    cells: int

    def __init__(self):
        self.table = np.zeros(self.cells, np.uint8)
        self.discount = 1

    def _cell(self, image: np.ndarray) -> np.ndarray:
        """Map an image (H, W, 3) uint8 to the cell index of every pixel, (H, W) intp."""
        raise NotImplementedError

    def fit(self, faces: Iterable[Face]):
        """Count labels per cell, choose the discount of highest ``overall_micro`` and return self."""
        labels = len(PARTS)
        counts = np.zeros(self.cells * labels, np.int64)
        for face in faces:
            index = self._cell(face.image) * labels + face.labels()
            counts += np.bincount(index.ravel(), minlength=counts.size)
        counts = counts.reshape(self.cells, labels)
        best = -1.0
        for discount in DISCOUNTS:
            table = (counts / ([discount] + [1] * (labels - 1))).argmax(1).astype(np.uint8)
            # All pixels of a cell get the same label, so the counts are enough for the confusion matrix.
            pairs = np.stack([counts[table == label].sum(0) for label in range(labels)], 1)
            score = f_measures(pairs)["overall_micro"] or 0.0
            if score > best:
                best, self.table, self.discount = score, table, discount
        return self

    def predict(self, face: Face) -> np.ndarray:
        """Return the predicted label map of a face, (H, W) uint8."""
        return self.table[self._cell(face.image)]

    def score(self, faces: Iterable[Face]) -> dict:
        """Return the F-measures over the pooled pixels of `faces`; see `icnn.evaluate.metrics.f_measures`."""
        pairs = [confusion(face.labels(), self.predict(face)) for face in faces]
        return f_measures(np.sum(pairs, axis=0))


class ConstantPrior(_CellClassifier):
    """Most frequent label per position on a 256 x 256 grid over the image; pixel values are ignored."""

    cells = 256 * 256

    def _cell(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        rows, columns = ((2 * np.arange(n) + 1) * 128 // n for n in (height, width))  # cell of each pixel centre
        return rows[:, None] * 256 + columns


class ColourClassifier(_CellClassifier):
    """Most frequent label per colour, quantised to 16 levels per channel; neighbouring pixels are ignored."""

    cells = 16**3

    def _cell(self, image: np.ndarray) -> np.ndarray:
        red, green, blue = np.moveaxis(image >> 4, -1, 0).astype(np.intp)
        return (red * 16 + green) * 16 + blue
