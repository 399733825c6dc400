"""Where the faces of a photograph lie that nobody has framed.

Boxes are proposed, moved onto what stage 1 finds in them, and judged by how far both stages agree: two networks that
were trained apart and see different scales label the same pixels of a face, and hardly any of a wall.
"""

from collections.abc import Sequence

import numpy as np

from icnn.data.face_box import TYPICAL, TYPICAL_LENGTH, Box
from icnn.data.resample import warp
from icnn.evaluate.metrics import confusion, mean_f
from icnn.model.centres import fit_similarity
from icnn.stages import PATCHES

#: Side of the square in which the networks see a face, whose box is `TYPICAL_LENGTH` there: as in the training data.
SQUARE = 256

#: Usual part centres in that square, in the order of PATCHES, (6, 2).
USUAL = np.array([TYPICAL[np.array(patch.ids) - 1, :2].mean(0) for patch in PATCHES]) + (SQUARE - 1) / 2

#: Sizes of a face, as shares of a photograph's shorter side, and heights of its middle, as shares of the height.
_SHARES = (0.2, 0.3, 0.43, 0.6, 0.85)
_HEIGHTS = (0.5, 0.36)  # the middle, and where portraits have it

_PARTS_NEEDED = 4  # to move a box
_MOST_TURNED = 60  # degrees
_ALIKE = 0.8  # overlap over union of two boxes that are one


def cut_square(image: np.ndarray, box: Box) -> np.ndarray:
    """The square around a face at the scale of the training data: (256, 256, 3) uint8, black outside the photograph."""
    return np.rint(warp(image, box.matrix(SQUARE, TYPICAL_LENGTH), SQUARE)[0]).astype(np.uint8)


def centred_boxes(shape: tuple[int, int]) -> list[Box]:
    """Boxes for a face that is roughly in the middle of a photograph (H, W), of any size."""
    height, width = shape
    return [
        Box((width - 1) / 2, tall * height - 0.5, share * min(shape)) for tall in _HEIGHTS for share in _SHARES
    ]  # fmt: skip


def moved_box(box: Box, centres: np.ndarray, found: np.ndarray) -> Box | None:
    """The box of the face whose parts stage 1 has found in the square around another.

    Parameters
    ----------
    box : Box
    centres : (6, 2)
        In the square of `cut_square`.
    found : (6,) bool

    Returns
    -------
    Box or None
        None where too few parts were found, or they lie as in no face.
    """
    if found.sum() < _PARTS_NEEDED:
        return None
    face = fit_similarity(USUAL[found], centres[found])
    if not 0.3 < abs(face.a) < 3 or abs(np.angle(face.a, deg=True)) > _MOST_TURNED:
        return None
    step = box.length / TYPICAL_LENGTH
    middle = (SQUARE - 1) / 2
    x, y = (face(np.full((1, 2), middle))[0] - middle) * step + (box.x, box.y)
    return Box(float(x), float(y), float(box.length * abs(face.a)))


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    sides = [
        max(0.0, min(a + one.length / 2, b + other.length / 2) - max(a - one.length / 2, b - other.length / 2))
        for a, b in ((one.x, other.x), (one.y, other.y))
    ]
    shared = sides[0] * sides[1]
    return shared / (one.length**2 + other.length**2 - shared)


def without_twins(boxes: Sequence[Box]) -> list[Box]:
    """Boxes that are not nearly the same as one before."""
    kept: list[Box] = []
    for box in boxes:
        if all(overlap(box, other) < _ALIKE for other in kept):
            kept.append(box)
    return kept


def agreement(coarse: np.ndarray, fine: np.ndarray) -> float:
    """How far stage 1 and stage 2 see the same parts in a square, 0 to 1.

    The mean over the parts of the F of one against the other; small parts, which are the hardest to see where there
    are none, so count as much as large ones.

    Parameters
    ----------
    coarse : (64, 64) ids from stage 1
    fine : (256, 256) ids from stage 2
    """
    step = len(fine) // len(coarse)
    return mean_f(confusion(fine[step // 2 :: step, step // 2 :: step], coarse))
