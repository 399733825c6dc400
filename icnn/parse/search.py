"""Refine and judge face boxes in unannotated photographs.

Boxes that the finder proposes are moved onto the parts that stage 1 finds in them. How much these lie as in a typical
face tells good boxes from bad ones, and so does the agreement of both stages: two networks that were trained separately
and see different scales label the same pixels of a face, and few of a wall.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from icnn.data.face_box import CROP_SIZE, TYPICAL_LENGTH, Box
from icnn.data.geometry import Similarity, fit_similarity
from icnn.evaluate.metrics import confusion, mean_f
from icnn.model.centres import DEFAULT_LAYOUT

#: Part centres of the typical face in a face crop, pixels, in the order of PATCHES, (6, 2).
USUAL = DEFAULT_LAYOUT * CROP_SIZE - 0.5

#: Sizes of a face, as shares of a photograph's shorter side, and heights of its middle, as shares of the height.
_SHARES = (0.2, 0.3, 0.43, 0.6, 0.85)
_HEIGHTS = (0.5, 0.36)  # the middle, and where portraits have it

_PARTS_NEEDED = 4  # to refine a box
_CONTRADICTED = 0.4  # a part is left out of a fit if the error of the others then falls to this share
#: Contributions to the misfit: for each part not found, for a scale of e, for a pixel and for a degree. Stage 1 sees a
#: face less well the further it is from the middle of its crop and from the usual size.
_MISSING, _SCALED, _MOVED, _TURNED = 2.0, 20.0, 0.2, 0.1
_MOST_TURNED = 60  # degrees
#: Move, as a share of a face, logarithm of the scale and turn in radians, below which a box stays where it is. With .03
#: a face of the project's 60 whole photographs is lost.
_SETTLED = 0.01
DUPLICATE = 0.7  # IoU from which on two proposals count as one


def propose_centred(shape: tuple[int, int]) -> list[Box]:
    """Propose boxes for a roughly centred face of any size in a photograph (H, W)."""
    height, width = shape
    return [
        Box((width - 1) / 2, tall * height - 0.5, share * min(shape)) for tall in _HEIGHTS for share in _SHARES
    ]  # fmt: skip


def prominence(box: Box, shape: tuple[int, int]) -> float:
    """Return how likely a face is to be the one that a photograph (H, W) shows: large, and near the middle; 0 to 1."""
    shorter = min(shape)
    distance = np.hypot(box.x + 0.5 - shape[1] / 2, box.y + 0.5 - shape[0] / 2) / shorter
    return min(1.0, box.length / shorter) * float(np.exp(-2 * distance**2))


class Candidate(NamedTuple):
    """A box that may have a face in it.

    Attributes
    ----------
    box : Box
    score : float
        Of the finder, 0 to 1; 0.5 for boxes that it did not propose.
    misfit : float
        How far the crop that the box was refined from is from that of a typical face; 1 to 5 for most faces.
    settled : bool
        True if refining it hardly moved the box: it is not refined again.
    """

    box: Box
    score: float = 0.5
    misfit: float = np.inf
    settled: bool = False


def refine(candidate: Candidate, centres: np.ndarray, found: np.ndarray) -> Candidate | None:
    """Fit a face box to the part centres that stage 1 found in the crop of another box.

    Parameters
    ----------
    candidate : Candidate
    centres : (6, 2)
        Pixels of the crop of side 256.
    found : (6,) bool

    Returns
    -------
    Candidate or None
        Turned as the face is. None if too few parts were found, or their arrangement is not a face's.
    """
    if found.sum() < _PARTS_NEEDED:
        return None
    box = candidate.box
    face, distances = _robust_fit(USUAL[found], centres[found])
    scale, turn = float(abs(face.a)), float(np.angle(face.a, deg=True))  # clockwise as seen, since y points down
    if not 0.3 < scale < 3 or abs(turn) > _MOST_TURNED:
        return None
    middle = (CROP_SIZE - 1) / 2
    moved = face(np.full((1, 2), middle))[0]
    x, y = (box.matrix(CROP_SIZE, TYPICAL_LENGTH) @ (*moved, 1)).tolist()
    misfit = np.sqrt(np.mean(distances**2)) / scale + _MISSING * (~found).sum()
    misfit += _SCALED * abs(np.log(scale)) + _MOVED * np.linalg.norm(moved - middle) + _TURNED * abs(turn)
    moved_box = Box(x, y, box.length * scale, (box.roll - turn + 180) % 360 - 180)
    change = np.linalg.norm(moved - middle) / TYPICAL_LENGTH, abs(np.log(scale)), np.radians(abs(turn))
    return Candidate(moved_box, candidate.score, float(misfit), bool(max(change) < _SETTLED))


def _robust_fit(usual: np.ndarray, centres: np.ndarray) -> tuple[Similarity, np.ndarray]:
    """Fit a similarity from the usual centres to those found; without one that all others contradict.

    Returns
    -------
    face : Similarity
    distances : (n,) float64
        Of the found centres from the fitted ones, pixels; those of all, also of the one left out.
    """
    face = fit_similarity(usual, centres)
    distances = np.linalg.norm(face(usual) - centres, axis=1)
    if len(usual) == _PARTS_NEEDED:
        return face, distances
    alone = np.eye(len(usual), dtype=np.bool_)
    others = np.nonzero(~alone)[1].reshape(len(usual), -1)  # row k: all indices but k
    faces = fit_similarity(usual[others], centres[others])
    errors = np.linalg.norm(faces(usual) - centres, axis=2)
    spread = (errors**2).mean(1, where=~alone)
    out = int(spread.argmin())
    if spread[out] < _CONTRADICTED**2 * (distances**2).mean():
        return Similarity(*(of_all[out] for of_all in faces)), errors[out]
    return face, distances


def overlap(one: Box, others: Sequence[Box]) -> np.ndarray:
    """Compute the intersection over union (IoU) of a box with others, (n,)."""
    x, y, length = np.reshape([(other.x, other.y, other.length) for other in others], (-1, 3)).T
    across, down = (
        np.minimum(a + one.length / 2, b + length / 2) - np.maximum(a - one.length / 2, b - length / 2)
        for a, b in ((one.x, x), (one.y, y))
    )
    shared = np.maximum(across, 0) * np.maximum(down, 0)
    return shared / (one.length**2 + length**2 - shared)


def nms(boxes: Sequence[Box], threshold: float) -> list[list[int]]:
    """Non-maximum suppression.

    Parameters
    ----------
    boxes : sequence of Box
        The best first.
    threshold : float
        A box with this IoU or more to a kept one is dropped.

    Returns
    -------
    list of list of int
        For each box that is kept its index, and then those of the boxes that are dropped for it; best first.
    """
    rest, groups = list(range(len(boxes))), []
    while rest:
        same = overlap(boxes[rest[0]], [boxes[i] for i in rest]) >= threshold
        groups.append([i for i, one in zip(rest, same, strict=True) if one])
        rest = [i for i, one in zip(rest, same, strict=True) if not one]
    return groups


def best(candidates: Sequence[Candidate], most: int, worse: float) -> list[Candidate]:
    """Return those of least misfit without duplicates: at most `most`, with at most `worse` more than the least."""
    order = sorted(candidates, key=lambda one: one.misfit)
    kept = [order[i] for i, *_ in nms([candidate.box for candidate in order], DUPLICATE)]
    return [candidate for candidate in kept[:most] if candidate.misfit <= kept[0].misfit + worse]


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
