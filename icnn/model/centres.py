"""Part centres: computed from label maps, with fallbacks for missing parts (Sec. 3.1)."""

from collections.abc import Sequence

import numpy as np

from icnn.data.face_box import CROP_SIZE, TYPICAL
from icnn.data.geometry import Letterbox, fit_similarity
from icnn.stages import PATCHES

#: Part centres (x, y) of the typical face in a face crop of side 1, in the order of PATCHES; for weights without a
#: layout of their own, which is measured on their training data (`mean_layout`).
DEFAULT_LAYOUT = 0.5 + np.array([TYPICAL[np.array(patch.ids) - 1, :2].mean(0) for patch in PATCHES]) / CROP_SIZE


def part_centres(labels: np.ndarray, rule: str = "median") -> np.ndarray:
    """Compute the centre of each part in a label map of ids; the three mouth parts share one centre.

    Parameters
    ----------
    labels : (H, W) integers
    rule : "median" (per axis, the paper's) or "box" (middle of the bounding box, the released program's)

    Returns
    -------
    (6, 2) float64
        x and y in the order of `PATCHES`; NaN where a part has no pixel.
    """
    centres = np.full((len(PATCHES), 2), np.nan)
    for number, patch in enumerate(PATCHES):
        y, x = np.nonzero(np.isin(labels, patch.ids))
        if x.size:
            pairs = (x, y)
            centres[number] = [np.median(axis) if rule == "median" else (axis.min() + axis.max()) / 2 for axis in pairs]
    return centres


def complete_centres(centres: np.ndarray, layout: np.ndarray) -> np.ndarray:
    """Estimate the centres of the parts that were not found.

    The mean layout of a face is fitted to the found parts: by a least-squares similarity (shift, rotation, scale) if
    two or more were found, by a shift if one was. If none was found, the layout itself is returned.

    Parameters
    ----------
    centres : (6, 2) float64
        NaN where a part was not found.
    layout : (6, 2) float64
        Mean part centres in the same coordinates.

    Returns
    -------
    (6, 2) float64
        Without NaN; found centres are kept.
    """
    found = ~np.isnan(centres[:, 0])
    guess = layout.copy()
    if found.any():
        moved = fit_similarity(layout[found], centres[found])
        if abs(moved.a) < 0.5 or abs(moved.a) > 2:  # implausible, for example two parts in one spot: shift only
            moved = moved._replace(a=np.ones(()))
        guess = moved(layout)
    return np.where(found[:, None], centres, guess)


_TWINS = [2, 3, 0, 1, 4, 5]  # index in PATCHES of each patch's mirror image


def face_scale(centres: np.ndarray, usual: np.ndarray) -> float:
    """Return the size of a face relative to the mean face, from the part centres (6, 2) of both, in pixels.

    The scale is averaged over the mean face and its mirror image, so that a face and its mirror image get the same.
    """
    faces = usual, usual[_TWINS] * (-1, 1)
    return float(np.mean([abs(fit_similarity(face, centres).a) for face in faces]))


def mean_layout(centres: Sequence[np.ndarray], boxes: Sequence[Letterbox], size: int) -> np.ndarray:
    """Compute the mean layout, (6, 2) float64: mean part centres in a stage-1 square of side 1.

    `centres` are true centres (6, 2) in image coordinates, NaN if missing; `boxes` map each image to the stage-1 square
    of side `size`, in pixels. Parts that no image has are taken from `DEFAULT_LAYOUT`.
    """
    squares = np.array([box.to_square(points) for box, points in zip(boxes, centres, strict=True)])
    known = ~np.isnan(squares)
    total = np.where(known, squares, 0).sum(0)
    count = known.sum(0)
    mean = (total / np.maximum(count, 1) + 0.5) / size
    return np.where(count > 0, mean, DEFAULT_LAYOUT)
