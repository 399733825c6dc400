"""Probabilities and labels of one face crop, and how they are drawn into its photograph."""

from typing import NamedTuple

import numpy as np

from icnn.classes import PARTS
from icnn.data.face_box import CROP_SIZE, TYPICAL_LENGTH, Box
from icnn.data.geometry import affine, compose
from icnn.data.resample import draw_labels, warp


class Drawn(NamedTuple):
    """Labels of one face at the photograph's size.

    Attributes
    ----------
    labels : (h, w) uint8
        Ids in the region of the photograph that holds the face's parts.
    rows, columns : (9, h) and (9, w) int64
        Number of pixels of each id in each row and column; not of the background.
    corner : (int, int)
        Position x, y of the region in the photograph.
    """

    labels: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    corner: tuple[int, int]

    def paste(self, photograph: np.ndarray) -> None:
        """Copy the labels into those of the whole photograph (H, W) uint8, where these are background."""
        x, y = self.corner
        there = photograph[y : y + self.labels.shape[0], x : x + self.labels.shape[1]]
        np.copyto(there, self.labels, where=there == 0)


class FaceMaps(NamedTuple):
    """Result of both stages on one face crop.

    Attributes
    ----------
    box : Box
        The face in the photograph.
    maps : (256, 256, 9) float32
        Probability of every id at every pixel of the crop.
    labels : (256, 256) uint8
        The most probable ids.
    """

    box: Box
    maps: np.ndarray
    labels: np.ndarray

    def region(self, shape: tuple[int, int], columns: tuple[int, int], rows: tuple[int, int]) -> tuple[int, ...]:
        """Compute the region (x, y, width, height) of a photograph (H, W) that a part of the crop covers; may be empty.

        The part has the given first and last column and row, of 0 to 255.
        """
        edges = [(first - 0.5, last + 0.5) for first, last in (columns, rows)]
        corners = np.array([(x, y, 1) for x in edges[0] for y in edges[1]])
        places = corners @ self.box.matrix(CROP_SIZE, TYPICAL_LENGTH).T
        low = np.clip(np.floor(places.min(0)), 0, shape[::-1]).astype(int)
        high = np.clip(np.ceil(places.max(0)) + 1, low, shape[::-1]).astype(int)
        return *low.tolist(), *(high - low).tolist()

    def _matrix(self, x: int, y: int) -> np.ndarray:
        """Return the matrix from a region of the photograph with this corner to the crop, (2, 3)."""
        return compose(self.box.inverse(CROP_SIZE, TYPICAL_LENGTH), affine(1, target=(x, y)))

    def resampled(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Resample the probabilities to a region of the photograph: (height, width, 9); background outside the crop."""
        maps, inside = warp(self.maps, self._matrix(x, y), (height, width))
        maps[~inside, 0] = 1
        return maps

    def draw(self, shape: tuple[int, int]) -> "Drawn":
        """Draw the labels at the photograph's size (H, W): where `resampled` is largest."""
        ends = []
        for axis in (0, 1):  # only where parts are: a pixel further on mixes two pixels of the crop at most
            places = np.flatnonzero(self.labels.any(axis))
            ends.append((max(0, places[0] - 1), min(CROP_SIZE, places[-1] + 2) - 1) if places.size else (0, 0))
        x, y, width, height = self.region(shape, *ends)
        return Drawn(*draw_labels(self.maps, self.labels, self._matrix(x, y), (height, width)), (x, y))

    def confidences(self) -> np.ndarray:
        """Compute the mean probability of each id over the crop's pixels with that id: (9,); 0 for absent ids."""
        labels, best = self.labels.ravel(), self.maps.max(-1).ravel()
        count = np.bincount(labels, minlength=len(PARTS))
        return np.bincount(labels, best, len(PARTS)) / np.maximum(count, 1)
