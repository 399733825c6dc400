"""Propose and refine face boxes in unannotated photographs.

Boxes are proposed, moved onto the parts that stage 1 finds in them, and scored by the agreement of both stages: two
networks that were trained separately and see different scales label the same pixels of a face, and few of a wall.
"""

from collections.abc import Sequence

import numpy as np

from icnn.data.face_box import CROP_SIZE, TYPICAL_LENGTH, Box
from icnn.data.geometry import fit_similarity
from icnn.data.resample import warp
from icnn.evaluate.metrics import confusion, mean_f
from icnn.model.centres import DEFAULT_LAYOUT

#: Part centres of the typical face in a face crop, pixels, in the order of PATCHES, (6, 2).
USUAL = DEFAULT_LAYOUT * CROP_SIZE - 0.5

#: Sizes of a face, as shares of a photograph's shorter side, and heights of its middle, as shares of the height.
_SHARES = (0.2, 0.3, 0.43, 0.6, 0.85)
_HEIGHTS = (0.5, 0.36)  # the middle, and where portraits have it

_PARTS_NEEDED = 4  # to refine a box
_MOST_TURNED = 60  # degrees
DUPLICATE = 0.8  # IoU from which on two proposals count as one


def crop_face(image: np.ndarray, box: Box) -> np.ndarray:
    """Crop a face at the scale of the training data: (256, 256, 3) uint8, black outside the photograph."""
    return np.rint(warp(image, box.matrix(CROP_SIZE, TYPICAL_LENGTH), CROP_SIZE)[0]).astype(np.uint8)


def propose_centred(shape: tuple[int, int]) -> list[Box]:
    """Propose boxes for a roughly centred face of any size in a photograph (H, W)."""
    height, width = shape
    return [
        Box((width - 1) / 2, tall * height - 0.5, share * min(shape)) for tall in _HEIGHTS for share in _SHARES
    ]  # fmt: skip


def refine_box(box: Box, centres: np.ndarray, found: np.ndarray) -> Box | None:
    """Fit a face box to the part centres that stage 1 found in the crop of another box.

    Parameters
    ----------
    box : Box
    centres : (6, 2)
        Pixels of the crop.
    found : (6,) bool

    Returns
    -------
    Box or None
        None if too few parts were found, or their arrangement is not a face's.
    """
    if found.sum() < _PARTS_NEEDED:
        return None
    face = fit_similarity(USUAL[found], centres[found])
    if not 0.3 < abs(face.a) < 3 or abs(np.angle(face.a, deg=True)) > _MOST_TURNED:
        return None
    step = box.length / TYPICAL_LENGTH
    middle = (CROP_SIZE - 1) / 2
    x, y = (face(np.full((1, 2), middle))[0] - middle) * step + (box.x, box.y)
    return Box(float(x), float(y), float(box.length * abs(face.a)))


def overlap(one: Box, other: Box) -> float:
    """Compute the intersection over union (IoU) of two boxes."""
    sides = [
        max(0.0, min(a + one.length / 2, b + other.length / 2) - max(a - one.length / 2, b - other.length / 2))
        for a, b in ((one.x, other.x), (one.y, other.y))
    ]
    shared = sides[0] * sides[1]
    return shared / (one.length**2 + other.length**2 - shared)


def nms(boxes: Sequence[Box], threshold: float) -> list[int]:
    """Non-maximum suppression.

    Parameters
    ----------
    boxes : sequence of Box
        The best first.
    threshold : float
        A box with this IoU or more to a kept one is dropped.

    Returns
    -------
    list of int
        Indices of the boxes that are kept, ascending.
    """
    kept: list[int] = []
    for index, box in enumerate(boxes):
        if all(overlap(box, boxes[other]) < threshold for other in kept):
            kept.append(index)
    return kept


def agreement(coarse: np.ndarray, fine: np.ndarray) -> float:
    """Compute how well stage 1 and stage 2 agree on a face crop, 0 to 1.

    It is the mean over the parts of the F of one stage against the other, so small parts, which networks rarely see
    where there are none, count as much as large ones.

    Parameters
    ----------
    coarse : (64, 64) ids from stage 1
    fine : (256, 256) ids from stage 2
    """
    step = len(fine) // len(coarse)
    return mean_f(confusion(fine[step // 2 :: step, step // 2 :: step], coarse))
