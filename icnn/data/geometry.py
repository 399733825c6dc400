"""Coordinate transforms: the letterbox of stage 1 and the affine matrices of patches.

A (2, 3) float64 matrix maps output pixels (x, y, 1) to input pixels; integer coordinates are pixel centres.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Letterbox:
    """Placement of an image centred in a square, aspect ratio preserved (Sec. 3.1).

    Attributes
    ----------
    scale : float
        Square pixels per image pixel.
    left, top : float
        Margins in square pixels.
    """

    scale: float
    left: float
    top: float

    @classmethod
    def of(cls, height: int, width: int, size: int) -> "Letterbox":
        """Return the letterbox of a (height, width) image in a square of side `size`, all in pixels."""
        scale = size / max(height, width)
        return cls(scale, (size - width * scale) / 2, (size - height * scale) / 2)

    def to_square(self, points: np.ndarray) -> np.ndarray:
        """Convert image coordinates (..., 2), x first, to square coordinates of the same shape."""
        return (np.asarray(points) + 0.5) * self.scale - 0.5 + (self.left, self.top)

    def to_image(self, points: np.ndarray) -> np.ndarray:
        """Convert square coordinates (..., 2), x first, to image coordinates: the exact inverse of `to_square`."""
        return (np.asarray(points) + 0.5 - (self.left, self.top)) / self.scale - 0.5

    def matrix(self) -> np.ndarray:
        """Return the matrix from the square to the image, (2, 3)."""
        x, y = self.to_image(np.zeros(2))
        return np.array([[1 / self.scale, 0, x], [0, 1 / self.scale, y]])


def patch_matrix(centre: np.ndarray, size: int, mirrored: bool) -> np.ndarray:
    """Return the matrix from a patch to its image, (2, 3).

    The patch has side `size` in pixels and centre `centre` (x, y); `mirrored` flips it left to right.
    """
    middle = (size - 1) / 2
    x, y = centre
    if mirrored:
        return np.array([[-1, 0, x + middle], [0, 1, y - middle]], np.float64)
    return np.array([[1, 0, x - middle], [0, 1, y - middle]], np.float64)


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Return the matrix, (2, 3), that applies `inner` first, then `outer` (both (2, 3))."""
    linear = outer[:, :2] @ inner[:, :2]
    return np.column_stack([linear, outer[:, :2] @ inner[:, 2] + outer[:, 2]])
