"""Label maps as pictures: in the palette's colours, and over the photograph."""

import numpy as np
from PIL import Image

from icnn.classes import COLOURS


def label_picture(labels: np.ndarray) -> np.ndarray:
    """Paint ids (H, W) in the colours of `icnn.classes`: (H, W, 3) uint8."""
    return COLOURS[labels]


def label_image(labels: np.ndarray) -> Image.Image:
    """Ids (H, W) uint8 as an 8-bit image with the palette's colours: its pixels are still the ids."""
    image = Image.fromarray(labels)  # mode L
    image.putpalette(COLOURS.tobytes())
    return image


def overlay(image: np.ndarray, labels: np.ndarray, strength: float = 0.5) -> np.ndarray:
    """Lay the part colours over a photograph, contours a little stronger; background stays as it is.

    Parameters
    ----------
    image : (H, W, 3) uint8
    labels : (H, W) uint8
        Ids of `icnn.classes.PARTS`.
    strength : float in [0, 1]
        Share of the colour; on a contour half of what is left comes on top.

    Returns
    -------
    (H, W, 3) uint8

    Raises
    ------
    ValueError
        If the shapes do not fit.
    """
    if image.shape != (*labels.shape, 3):
        raise ValueError(f"expected labels of shape {image.shape[:2]}, as the image has, got {labels.shape}")
    contour = np.zeros(labels.shape, bool)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    contour[:, 1:] |= across
    contour[:, :-1] |= across
    contour[1:] |= down
    contour[:-1] |= down
    share = np.where(contour, (1 + strength) / 2, strength) * (labels > 0)
    mixed = image + share[..., None] * (COLOURS[labels].astype(float) - image)
    return np.rint(mixed).astype(np.uint8)
