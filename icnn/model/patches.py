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


def joint_probabilities(
    shape: tuple[int, int],
    patches: Sequence[Patch],
    origins: Sequence[tuple[int, int]],
    probabilities: Sequence[np.ndarray],
) -> np.ndarray:
    """Combine the softmax maps of the patches into the probability of every id at every pixel (Sec. 3.2).

    A part has the probability from its own patch, and 0 outside it; the background has the lowest background
    probability of all patches at the pixel. The sum is normalised to 1. The largest is the label (`most_probable`):
    where patches label several parts, the most probable wins, then the lower id. Where a patch labels background, its
    parts lose against the background, however unsure the other patches are of it.

    Parameters
    ----------
    shape : (H, W)
    patches, origins : sequences of Patch and (x, y), equally long
    probabilities : sequence of (L, S, S) float arrays, one for each patch

    Returns
    -------
    (H, W, 9) float32
    """
    joint = np.zeros((len(PARTS), *shape), np.float32)
    background = joint[0]
    background[:] = 1
    placed = [_placed(*one, shape) for one in zip(probabilities, patches, origins, strict=True)]
    for p, there in placed:
        background[there] = np.minimum(background[there], p[0])
    for patch, (p, there) in zip(patches, placed, strict=True):
        most = np.where(p[1:].max(0) > p[0], 1, background[there])
        for part, values in zip(patch.ids, p[1:], strict=True):
            joint[part][there] = np.minimum(values, most)
    return np.ascontiguousarray(np.moveaxis(joint / joint.sum(0), 0, -1))


def most_probable(joint: np.ndarray) -> np.ndarray:
    """Return the most probable id of each pixel, ties to the lower id: (H, W) uint8 from probabilities (H, W, 9)."""
    labels = np.zeros(joint.shape[:2], np.uint8)
    unsure = joint[..., 0] <= 0.5  # elsewhere it is background: most pixels
    labels[unsure] = joint[unsure].argmax(-1)
    return labels
