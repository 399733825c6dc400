"""Patches of stage 2: cut around part centres, mirrored for the right side, and pasted back (Sec. 3, Fig. 2)."""

from collections.abc import Sequence

import numpy as np

from icnn.classes import PARTS
from icnn.data.resample import normalise
from icnn.stages import Patch


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
