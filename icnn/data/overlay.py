"""Draw label maps in the palette's colours, alone or over the photograph."""

import numpy as np
from PIL import Image

from icnn.classes import COLOURS


def label_picture(labels: np.ndarray) -> np.ndarray:
    """Convert ids (H, W) to the colours of `icnn.classes`, (H, W, 3) uint8 RGB."""
    return COLOURS[labels]


def label_image(labels: np.ndarray) -> Image.Image:
    """Convert ids (H, W) uint8 to an 8-bit palette image whose pixel values are still the ids."""
    image = Image.fromarray(labels)  # mode L
    image.putpalette(COLOURS.tobytes())
    return image


def overlay(image: np.ndarray, labels: np.ndarray, strength: float = 0.5) -> np.ndarray:
    """Blend the part colours over a photograph, slightly stronger on contours; background is unchanged.

    Parameters
    ----------
    image : (H, W, 3) uint8
    labels : (H, W) uint8
        Ids of `icnn.classes.PARTS`.
    strength : float in [0, 1]
        Weight of the colour; on contours it is (1 + strength) / 2.

    Returns
    -------
    (H, W, 3) uint8

    Raises
    ------
    ValueError
        If the shapes do not match.
    """
    if image.shape != (*labels.shape, 3):
        raise ValueError(f"expected labels of shape {image.shape[:2]}, as the image has, got {labels.shape}")
    mixed = image.copy()
    rows, columns = (np.flatnonzero(labels.any(axis)) for axis in (1, 0))
    if not rows.size:
        return mixed
    face = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    around = np.pad(labels, 1, "edge")[rows[0] : rows[-1] + 3, columns[0] : columns[-1] + 3]
    own = labels[face]
    neighbours = around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]
    contour = np.any([own != neighbour for neighbour in neighbours], axis=0)
    share = np.where(contour, (1 + strength) / 2, strength) * (own > 0)
    mixed[face] = np.rint(image[face] + share[..., None] * (COLOURS[own].astype(float) - image[face]))
    return mixed
