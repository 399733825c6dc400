"""Coordinate transforms: affine matrices, the letterbox of stage 1, and similarities between sets of points.

A (2, 3) float64 matrix maps output pixels (x, y, 1) to input pixels; integer coordinates are pixel centres.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


def affine(
    linear: np.ndarray | Sequence[float] | float,
    source: np.ndarray | Sequence[float] | float = 0.0,
    target: np.ndarray | Sequence[float] | float = 0.0,
) -> np.ndarray:
    """Return the matrix of the map z -> linear (z - source) + target.

    Parameters
    ----------
    linear : (2, 2), or (2,) for factors in x and y, or one factor
    source, target : (2,), or one number for x and y

    Returns
    -------
    (2, 3) float64
    """
    whole = np.asarray(linear, np.float64)
    if whole.ndim < 2:
        whole = whole * np.eye(2)
    return np.column_stack([whole, np.broadcast_to(target, 2) - whole @ np.broadcast_to(source, 2)])


def shrinkage(matrix: np.ndarray) -> float:
    """Return how many input pixels fall into one output pixel along each axis, their geometric mean."""
    return math.sqrt(abs(np.linalg.det(matrix[:, :2])))


def to_reduced(matrix: np.ndarray, factor: int) -> np.ndarray:
    """Return the matrix of the same crop from an image that is reduced `factor` times."""
    return compose(affine(1 / factor, -0.5, -0.5), matrix)


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
        return affine(1 / self.scale, target=self.to_image(np.zeros(2)))


def patch_matrix(centre: np.ndarray, size: int, mirrored: bool) -> np.ndarray:
    """Return the matrix from a patch to its image, (2, 3).

    The patch has side `size` in pixels and centre `centre` (x, y); `mirrored` flips it left to right.
    """
    return affine((-1 if mirrored else 1, 1), (size - 1) / 2, centre)


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Return the matrix, (2, 3), that applies `inner` first, then `outer` (both (2, 3))."""
    return affine(outer[:, :2] @ inner[:, :2], target=outer[:, :2] @ inner[:, 2] + outer[:, 2])


class Similarity(NamedTuple):
    """Similarity transforms (shift, rotation, scale) in complex numbers, z -> a (z - source) + target; one or several.

    Attributes
    ----------
    a : (...) complex
    source, target : (..., 2) float64
    """

    a: np.ndarray
    source: np.ndarray
    target: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Transform points (n, 2), by each of the transforms: (..., n, 2)."""
        moved = self.a[..., None] * ((points - self.source[..., None, :]) @ (1, 1j))
        return np.stack([moved.real, moved.imag], -1) + self.target[..., None, :]


def fit_similarity(source: np.ndarray, target: np.ndarray) -> Similarity:
    """Fit the least-squares similarities from points `source` to `target`, both (..., n, 2); pure shifts for n = 1."""
    middles = source.mean(-2), target.mean(-2)
    z, w = ((points - at[..., None, :]) @ (1, 1j) for points, at in zip((source, target), middles, strict=True))
    spread = (z.conj() * z).sum(-1).real
    a = np.where(spread > 0, (z.conj() * w).sum(-1) / np.where(spread > 0, spread, 1), 1)
    return Similarity(a, *middles)
