"""Patches of stage 2: cropped around part centres, mirrored for the right side, and pasted back (Sec. 3, Fig. 2)."""

from collections.abc import Sequence

import numpy as np

from icnn.classes import PARTS
from icnn.data.resample import normalise
from icnn.stages import Patch


def patch_origin(centre: np.ndarray, size: int, shape: tuple[int, int]) -> tuple[int, int]:
    """Return the top-left corner (x, y) in whole pixels of the patch around `centre` in an image of `shape` (H, W).

    Half pixels are rounded towards the middle of the image, so that mirroring the image mirrors the patch.
    """
    corner = []
    for position, length in zip(centre, (shape[1], shape[0]), strict=True):
        exact = position - (size - 1) / 2
        below = np.floor(exact)
        # A half, up to rounding errors of the scaled centre; a power of 2, so that the comparison itself has none.
        if abs(exact - below - 0.5) < 2**-20:
            nearest = below if exact > (length - size) / 2 else below + 1
        else:
            nearest = np.rint(exact)
        corner.append(int(nearest))
    return corner[0], corner[1]


def cut_patch(image: np.ndarray, origin: tuple[int, int], patch: Patch) -> tuple[np.ndarray, np.ndarray]:
    """Crop a patch as its network gets it, mirrored for the right side, with a mask of its pixels in the image.

    Parameters
    ----------
    image : (H, W, C)
    origin : (x, y), top-left corner, possibly outside the image
    patch : Patch

    Returns
    -------
    values : (S, S, C), dtype of `image`, 0 outside the image
    inside : (S, S) bool, True for pixels in the image
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
    """Return the overlap of a patch and an image of `shape`, as slices of the patch and slices of the image."""
    in_patch, in_image = [], []
    for start, length in zip(origin[::-1], shape, strict=True):
        first, stop = max(0, start), max(0, min(length, start + size))
        in_image.append(slice(first, max(first, stop)))
        in_patch.append(slice(first - start, max(first, stop) - start))
    return tuple(in_patch), tuple(in_image)


def network_input(image: np.ndarray, origin: tuple[int, int], patch: Patch) -> np.ndarray:
    """Crop a patch (`cut_patch`) and normalise it over its pixels in the image; return (3, S, S) float32."""
    return normalise(*cut_patch(image, origin, patch))


def _placed(p: np.ndarray, patch: Patch, origin: tuple[int, int], shape: tuple[int, int]) -> tuple[np.ndarray, tuple]:
    """Return the in-image part of a patch's maps (L, S, S), mirrored back if needed, and its slices of the image."""
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
    """Combine the softmax maps of the patches into a full label map of ids (Sec. 3.2).

    Each patch is mirrored back if needed, and its arg-max taken. Where patches overlap, the part with the highest
    probability wins, then the lower id; the background label of a patch never overrides a part of another patch.

    Parameters
    ----------
    shape : (H, W)
    patches, origins : sequences of Patch and (x, y), equally long
    probabilities : sequence of (L, S, S) float arrays, one for each patch

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
    """Combine the softmax maps of the patches into the probability of every id at every pixel.

    A part has the probability from its own patch, and 0 outside it; the background has the lowest background
    probability of all patches at the pixel. The sum is normalised to 1. The arguments are those of `paste_patches`,
    whose labels are the arg-max of this result, except at pixels where two patches disagree.

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
