"""Where the parts are: centres from label maps, fallbacks, and the patches around them (Sec. 3.1)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from icnn.data.geometry import Letterbox
from icnn.stages import PATCHES

#: Usual part centres (x, y) in a stage-1 square of side 1, in the order of PATCHES: for weights that bring none.
DEFAULT_LAYOUT = np.array(
    [(0.39, 0.36), (0.41, 0.43), (0.61, 0.36), (0.59, 0.43), (0.5, 0.53), (0.5, 0.66)]
)  # fmt: skip


def part_centres(labels: np.ndarray, rule: str = "median") -> np.ndarray:
    """Centre of each part in a label map of ids; the three mouth parts share one.

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


class Similarity(NamedTuple):
    """A shift, turn and scale of the plane, by complex numbers: z -> a (z - source) + target."""

    a: complex
    source: np.ndarray
    target: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Where points (n, 2) go."""
        moved = self.a * ((points - self.source) @ (1, 1j))
        return np.column_stack([moved.real, moved.imag]) + self.target


def fit_similarity(source: np.ndarray, target: np.ndarray) -> Similarity:
    """The similarity of least squares that carries points (n, 2) to others; one point only shifts."""
    z = (source - source.mean(0)) @ (1, 1j)
    w = (target - target.mean(0)) @ (1, 1j)
    spread = np.vdot(z, z).real
    return Similarity(np.vdot(z, w) / spread if spread > 0 else 1.0, source.mean(0), target.mean(0))


def complete_centres(centres: np.ndarray, layout: np.ndarray) -> np.ndarray:
    """Fill in the parts that were not found.

    The usual layout of a face is moved onto the parts that were: by the similarity (shift, turn, scale) of least
    squares for two or more, by a shift for one, not at all for none.

    Parameters
    ----------
    centres : (6, 2)
        NaN where a part was not found.
    layout : (6, 2)
        Usual centres in the same coordinates.

    Returns
    -------
    (6, 2) without NaN; found centres are kept.
    """
    found = ~np.isnan(centres[:, 0])
    guess = layout.copy()
    if found.any():
        moved = fit_similarity(layout[found], centres[found])
        if abs(moved.a) < 0.5 or abs(moved.a) > 2:  # two parts found on one spot, say: trust only where they are
            moved = moved._replace(a=1.0)
        guess = moved(layout)
    return np.where(found[:, None], centres, guess)


_TWINS = [2, 3, 0, 1, 4, 5]  # of PATCHES, as seen in a mirror


def face_scale(centres: np.ndarray, usual: np.ndarray) -> float:
    """How much larger a face is than usual, from its part centres (6, 2) and the usual ones, both in pixels.

    The mean over the usual face and its mirror image, so that it is the same for a face and its own.
    """
    faces = usual, usual[_TWINS] * (-1, 1)
    return float(np.mean([abs(fit_similarity(face, centres).a) for face in faces]))


def mean_layout(centres: Sequence[np.ndarray], boxes: Sequence[Letterbox], size: int) -> np.ndarray:
    """Usual layout from true centres in image coordinates: their mean in a stage-1 square of side 1, (6, 2)."""
    squares = np.array([box.to_square(points) for box, points in zip(boxes, centres, strict=True)])
    known = ~np.isnan(squares)
    total = np.where(known, squares, 0).sum(0)
    count = known.sum(0)
    mean = (total / np.maximum(count, 1) + 0.5) / size
    return np.where(count > 0, mean, DEFAULT_LAYOUT)
