"""Pyramid of a photograph: the levels from which face crops are cut.

Level k is the photograph reduced 2**k times by area averages. A crop is cut from the level next above its own scale, so
each of its pixels is the mean of few samples however large the face is. A JPEG file is decoded no larger than needed.
"""

import math
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from icnn.data.geometry import shrinkage, to_reduced
from icnn.data.images import read_reduced
from icnn.data.resample import warp

#: Pixels of the shorter side at which a JPEG file is decoded at first: enough for a face that takes a quarter of it.
_FIRST = 560
_MOST = 16  # levels above the photograph itself
_STRIP = 256  # rows that are reduced at a time


class Pyramid:
    """A photograph and its reduced copies, made when they are first needed.

    Parameters
    ----------
    pixels : (h, w, 3) uint8
        The photograph, or a reduced copy.
    factor : int
        Reduction of `pixels`, a power of 2.
    shape : (int, int), optional
        Height and width of the photograph; default: those of `pixels`.
    path : Path, optional
        File from which larger copies are read when they are needed.
    """

    def __init__(
        self, pixels: np.ndarray, factor: int = 1, shape: tuple[int, int] | None = None, path: Path | None = None
    ):
        self.shape: tuple[int, int] = shape or pixels.shape[:2]
        self._path = path
        self._largest = factor
        self._levels = {factor: pixels}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path) -> "Pyramid":
        """Read an image file; raise InputError as `icnn.data.images.read_image` does."""
        return cls(*read_reduced(path, _FIRST), path)

    @property
    def pixels(self) -> np.ndarray:
        """The photograph at its own size, (H, W, 3) uint8."""
        return self.reduced(1)

    def reduced(self, factor: int) -> np.ndarray:
        """Return the photograph reduced by a power of 2, sides rounded up, uint8. Threads may call this at once."""
        with self._lock:
            return self._level(factor)

    def _level(self, factor: int) -> np.ndarray:
        if factor < self._largest and self._path is not None:
            pixels, self._largest, _ = read_reduced(self._path, min(self.shape) // factor)
            self._levels[self._largest] = pixels
        if factor not in self._levels:
            self._levels[factor] = _averages(self._levels[self._largest], factor // self._largest)
        return self._levels[factor]

    def crop(self, matrix: np.ndarray, size: int | tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Resample a part of the photograph; as `icnn.data.resample.warp`, with `matrix` from crop to photograph."""
        factor = 2 ** min(math.floor(math.log2(max(shrinkage(matrix), 1)) + 1e-9), _MOST)
        return warp(self.reduced(factor), to_reduced(matrix, factor), size)


def _averages(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Reduce (H, W, 3) uint8 by area averages, strip by strip: an image of Pillow takes more memory than its array."""
    rows = factor * -(-_STRIP // factor)
    strips = (Image.fromarray(pixels[top : top + rows]).reduce(factor) for top in range(0, len(pixels), rows))
    return np.concatenate([np.asarray(strip) for strip in strips])
