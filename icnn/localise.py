"""Where the parts are: centres from label maps, fallbacks, and the patches around them (Sec. 3.1)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from icnn.augment import Letterbox, normalise
from icnn.palette import PARTS
from icnn.parts import PATCHES, Patch

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


def patch_origin(centre: np.ndarray, size: int, shape: tuple[int, int]) -> tuple[int, int]:
    """Whole-pixel top-left corner (x, y) of the patch around `centre` in an image of `shape` (H, W).

    Halves go towards the image's middle, so that the patch of a mirrored image is the mirrored patch.
    """
    corner = []
    for position, length in zip(centre, (shape[1], shape[0]), strict=True):
        exact = position - (size - 1) / 2
        below = np.floor(exact)
        if abs(exact - below - 0.5) < 1e-6:  # centres scaled back from stage 1 are halves but for rounding
            nearest = below if exact > (length - size) / 2 else below + 1
        else:
            nearest = np.rint(exact)
        corner.append(int(nearest))
    return corner[0], corner[1]


def cut_patch(image: np.ndarray, origin: tuple[int, int], patch: Patch) -> tuple[np.ndarray, np.ndarray]:
    """The patch as the network sees it, mirrored for right sides, and which of its pixels are in the image.

    Parameters
    ----------
    image : (H, W, C)
    origin : (x, y), top-left corner, may lie outside the image
    patch : Patch

    Returns
    -------
    values : (S, S, C), 0 outside the image
    inside : (S, S) bool
    """
    size = patch.size
    values = np.zeros((size, size, image.shape[2]), image.dtype)
    inside = np.zeros((size, size), np.bool_)
    target, source = _overlap(origin, size, image.shape[:2])
    values[target] = image[source]
    inside[target] = True
    if patch.mirrored:
        values, inside = values[:, ::-1], inside[:, ::-1]
    return values, inside


def _overlap(origin: tuple[int, int], size: int, shape: tuple[int, ...]) -> tuple[tuple, tuple]:
    """Slices of the part of a patch that lies in an image of `shape`: in the patch, and in the image."""
    in_patch, in_image = [], []
    for start, length in zip(origin[::-1], shape, strict=True):
        first, stop = max(0, start), max(0, min(length, start + size))
        in_image.append(slice(first, max(first, stop)))
        in_patch.append(slice(first - start, max(first, stop) - start))
    return tuple(in_patch), tuple(in_image)


def network_input(image: np.ndarray, origin: tuple[int, int], patch: Patch) -> np.ndarray:
    """`cut_patch`, normalised over its in-image pixels: (3, S, S) float32."""
    return normalise(*cut_patch(image, origin, patch))


def _placed(p: np.ndarray, patch: Patch, origin: tuple[int, int], shape: tuple[int, int]) -> tuple[np.ndarray, tuple]:
    """A patch's maps (L, S, S), turned back if it was mirrored, as far as they lie in an image; and where there."""
    if patch.mirrored:
        p = p[:, :, ::-1]
    here, there = _overlap(origin, patch.size, shape)
    return p[(slice(None), *here)], there


def paste_patches(
    shape: tuple[int, int],
    patches: Sequence[Patch],
    origins: Sequence[tuple[int, int]],
    probabilities: Sequence[np.ndarray],
) -> np.ndarray:
    """Full label map of ids from the patches' softmax maps (Sec. 3.2).

    Each patch is turned back if it was mirrored and takes its arg-max. Where patches overlap the part with the
    highest probability wins, then the lower id; a patch's background means only "not my part" and beats nothing.

    Parameters
    ----------
    shape : (H, W)
    patches, origins : of one length
    probabilities : (L, S, S) each

    Returns
    -------
    (H, W) uint8
    """
    labels = np.zeros(shape, np.uint8)
    best = np.zeros(shape, np.float32)
    for patch, origin, p in sorted(zip(patches, origins, probabilities, strict=True), key=lambda item: item[0].ids):
        p, there = _placed(p, patch, origin, shape)
        label = p.argmax(0)
        probability = np.take_along_axis(p, label[None], 0)[0].astype(np.float32)
        wins = (label > 0) & (probability > best[there])
        labels[there] = np.where(wins, patch.to_ids()[label], labels[there])
        best[there] = np.where(wins, probability, best[there])
    return labels


def joint_probabilities(
    shape: tuple[int, int],
    patches: Sequence[Patch],
    origins: Sequence[tuple[int, int]],
    probabilities: Sequence[np.ndarray],
) -> np.ndarray:
    """Probability of every id at every pixel, from the patches' softmax maps.

    A part is as probable as its patch says, nothing outside; the background as the patch says that is surest of a
    part. Where patches overlap all are scaled to a sum of 1. Arguments are those of `paste_patches`, whose labels are
    the arg-max of this, but for pixels where two patches disagree.

    Returns
    -------
    (H, W, 9) float32
    """
    joint = np.zeros((*shape, len(PARTS)), np.float32)
    joint[..., 0] = 1
    for patch, origin, p in zip(patches, origins, probabilities, strict=True):
        p, there = _placed(p, patch, origin, shape)
        joint[..., 0][there] = np.minimum(joint[..., 0][there], p[0])
        for part, values in zip(patch.ids, p[1:], strict=True):
            joint[..., part][there] = values
    return joint / joint.sum(-1, keepdims=True)
