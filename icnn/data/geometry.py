"""Maps between coordinates: the letterbox of stage 1, and the 2 x 3 matrices of patches.

Matrices take output pixels (x, y, 1) to input pixels, in pixel centres.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Letterbox:
    """An image centred in a square with its aspect ratio kept (Sec. 3.1).

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
        """The letterbox of a (height, width) image in a square of side `size`."""
        scale = size / max(height, width)
        return cls(scale, (size - width * scale) / 2, (size - height * scale) / 2)

    def to_square(self, points: np.ndarray) -> np.ndarray:
        """Image coordinates (..., 2), x first, in the square."""
        return (np.asarray(points) + 0.5) * self.scale - 0.5 + (self.left, self.top)

    def to_image(self, points: np.ndarray) -> np.ndarray:
        """Square coordinates (..., 2), x first, in the image: undoes `to_square` exactly."""
        return (np.asarray(points) + 0.5 - (self.left, self.top)) / self.scale - 0.5

    def matrix(self) -> np.ndarray:
        """The map from the square to the image, (2, 3)."""
        x, y = self.to_image(np.zeros(2))
        return np.array([[1 / self.scale, 0, x], [0, 1 / self.scale, y]])


def patch_matrix(centre: np.ndarray, size: int, mirrored: bool) -> np.ndarray:
    """The map from a patch of side `size` around `centre` (x, y) to its image, (2, 3)."""
    middle = (size - 1) / 2
    x, y = centre
    if mirrored:
        return np.array([[-1, 0, x + middle], [0, 1, y - middle]], np.float64)
    return np.array([[1, 0, x - middle], [0, 1, y - middle]], np.float64)


def compose(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The map that applies `inner` first, then `outer`."""
    linear = outer[:, :2] @ inner[:, :2]
    return np.column_stack([linear, outer[:, :2] @ inner[:, 2] + outer[:, 2]])
