"""Draw label maps in the palette's colours, alone or over the photograph."""

import numpy as np
from PIL import Image

from icnn.classes import COLOURS

_STRIP = 64  # rows that `overlay` colours at a time


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
    mixed = image.copy()
    if found := _coloured(image, labels, strength):
        colours, top, left = found
        mixed[top : top + len(colours), left : left + colours.shape[1]] = colours
    return mixed


def overlay_image(image: np.ndarray, labels: np.ndarray) -> Image.Image:
    """Make the image of `overlay`, without an array of its size."""
    mixed = Image.fromarray(image)
    if found := _coloured(image, labels, 0.5):
        colours, top, left = found
        mixed.paste(Image.fromarray(colours), (left, top))
    return mixed


def _coloured(image: np.ndarray, labels: np.ndarray, strength: float) -> tuple[np.ndarray, int, int] | None:
    """Return the coloured pixels around the parts, and the top row and left column; None without parts."""
    if image.shape != (*labels.shape, 3):
        raise ValueError(f"expected labels of shape {image.shape[:2]}, as the image has, got {labels.shape}")
    rows, columns = (np.flatnonzero(labels.any(axis)) for axis in (1, 0))
    if not rows.size:
        return None
    face = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    around = np.pad(labels, 1, "edge")[rows[0] : rows[-1] + 3, columns[0] : columns[-1] + 3]
    own, mixed = labels[face], image[face].copy()
    for top in range(0, len(own), _STRIP):  # a whole face at once would take twenty times its memory
        part, window = own[top : top + _STRIP], around[top : top + _STRIP + 2]
        neighbours = window[:-2, 1:-1], window[2:, 1:-1], window[1:-1, :-2], window[1:-1, 2:]
        contour = np.any([part != neighbour for neighbour in neighbours], axis=0)
        share = np.where(contour, (1 + strength) / 2, strength) * (part > 0)
        pixels = mixed[top : top + _STRIP]
        pixels[...] = np.rint(pixels + share[..., None] * (COLOURS[part].astype(float) - pixels))
    return mixed, int(rows[0]), int(columns[0])
