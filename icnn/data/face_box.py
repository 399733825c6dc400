"""Locate a labelled face in a photograph of any size and crop it to a square like those of Helen.

The box of a face extends from the eyebrows to the chin and from ear to ear.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from icnn.classes import MIRRORED, PARTS
from icnn.data.geometry import Similarity, affine, fit_similarity
from icnn.data.images import mistake
from icnn.data.resample import maps_of, warp

#: A square photograph (size, size, 3) and its soft maps (size, size, 9), both uint8.
Converted = tuple[np.ndarray, np.ndarray]

#: Typical part positions in a face whose box is 140 pixels along its longer side, one row per id 1..8: mean x and y
#: relative to the box's centre, standard deviation of x and y. Measured on exemplars and tuning of the project's Helen
#: photographs: 1,000 faces, each centred in its image with a box of exactly that size. The values are medians, made
#: symmetric and scaled by 0.984 so that the median length from `find_face` on these faces is 140. The length is within
#: 4 % for half of them (standard deviation 6.6 %), the centre within 7 pixels in x (faces look aside) and 3 in y.
#: A simpler rule, 1.33 times the distance from the top of the eyebrows to the bottom of the lower lip, reaches 5 %
#: (8.2 %), 8 and 3 pixels, and gives no estimate for faces that lack one of those parts.
TYPICAL = np.array(
    [
        (-33.9, -58.5, 10.6, 2.9),
        (-30.8, -41.6, 5.6, 2.3),
        (33.9, -58.5, 10.6, 2.9),
        (30.8, -41.6, 5.6, 2.3),
        (0, -16.2, 8.6, 12.1),
        (0, 18.4, 12.5, 2.4),
        (0, 22.9, 10.7, 2.0),
        (0, 29.0, 11.9, 3.5),
    ]
)
TYPICAL_LENGTH = 140
#: Side of a face crop, pixels, in which the face's box has `TYPICAL_LENGTH`: as in the training data.
CROP_SIZE = 256
SHORTEST = 16  # photograph pixels; anything smaller is a stray spot, not a face


@dataclass(frozen=True)
class Box:
    """Square around a face, from the eyebrows to the chin and from ear to ear.

    Attributes
    ----------
    x, y : float
        Centre in photograph pixels; pixel centres are at integers.
    length : float
        Side in photograph pixels.
    roll : float
        Degrees by which the face is turned counter-clockwise, as seen; its crop is upright.
    """

    x: float
    y: float
    length: float
    roll: float = 0.0

    @property
    def axes(self) -> np.ndarray:
        """Directions of the crop's axes in the photograph, the columns of a rotation matrix (2, 2)."""
        cosine, sine = np.cos(np.deg2rad(self.roll)), np.sin(np.deg2rad(self.roll))
        return np.array([[cosine, sine], [-sine, cosine]])

    def matrix(self, size: int, face: float) -> np.ndarray:
        """Return the matrix, (2, 3), from a crop of side `size`, with the box `face` pixels long, to the photograph."""
        return affine(self.length / face * self.axes, (size - 1) / 2, (self.x, self.y))

    def inverse(self, size: int, face: float) -> np.ndarray:
        """Return the matrix, (2, 3), from the photograph to the crop: the inverse of `matrix`."""
        return affine(face / self.length * self.axes.T, (self.x, self.y), (size - 1) / 2)

    def to_crop(self, points: np.ndarray, size: int, face: float) -> np.ndarray:
        """Convert photograph coordinates (n, 2), x first, to the crop that `matrix(size, face)` describes."""
        matrix = self.inverse(size, face)
        return points @ matrix[:, :2].T + matrix[:, 2]


def check_length(box: Box, file: str | Path) -> None:
    """Raise InputError if a box is shorter than `SHORTEST` pixels, too small for a face."""
    if box.length < SHORTEST:
        hint = "check its labels, or remove the face"
        raise mistake(file, f"a face at least {SHORTEST} pixels long", f"one of {box.length:.1f}", hint)


def whole_shares(shares: np.ndarray) -> np.ndarray:
    """Round soft maps so that they still sum to 255 at each pixel, by rounding their cumulative sum over the parts.

    Parameters
    ----------
    shares : (H, W, 9) float
        They sum to 255 at each pixel, or to less outside the photograph; the rest counts as background.

    Returns
    -------
    (H, W, 9) uint8
    """
    total = np.rint(shares[..., 1:].cumsum(axis=-1)).clip(0, 255)
    maps = np.empty(shares.shape, np.uint8)
    maps[..., 1:] = np.diff(total, axis=-1, prepend=0)
    maps[..., 0] = 255 - total[..., -1]
    return maps


def as_seen(ids: np.ndarray) -> np.ndarray:
    """Relabel eyebrows and eyes so that left and right are as seen in the image.

    A pair is swapped if its left part lies right of its right part. A part without its counterpart follows the other
    pair; without such a pair, its position relative to nose and mouth decides.

    Parameters
    ----------
    ids : (H, W) uint8

    Returns
    -------
    (H, W) uint8
    """
    x = _places(ids)[:, 0]
    middle = x[5:][~np.isnan(x[5:])]
    middle = middle.mean() if middle.size else np.nan
    pairs = [(part, int(twin)) for part, twin in enumerate(MIRRORED) if part < twin]
    whole = [x[left] - x[right] for left, right in pairs if not np.isnan(x[left] - x[right])]
    new = np.arange(len(PARTS), dtype=np.uint8)
    for left, right in pairs:
        offset = x[left] - x[right]
        if np.isnan(offset):
            offset = whole[0] if whole else np.nanmax([x[left] - middle, middle - x[right], -np.inf])
        if offset > 0:
            new[[left, right]] = right, left
    return new[ids]


def find_face(ids: np.ndarray, file: str | Path) -> Box:
    """Estimate the box of a face, from the eyebrows to the chin and from ear to ear, from its labelled parts.

    `TYPICAL` is fitted to the parts by least squares with a similarity transform (shift, rotation, scale). Each part
    contributes four points, two standard deviations from its mean, rather than its extremes: those would be moved by
    the stray pixels of hand-made labels.

    Parameters
    ----------
    ids : (H, W) uint8
    file : path-like
        Source of the labels, for error messages.

    Returns
    -------
    Box

    Raises
    ------
    InputError
        As `fit_face`, or if the parts are too small for a face.
    """
    face = fit_face(ids, file)
    x, y = face(np.zeros((1, 2)))[0].tolist()
    box = Box(x, y, length_of(face))
    check_length(box, file)
    return box


def length_of(face: Similarity) -> float:
    """Return the length in pixels of a face that `fit_face` fitted."""
    return TYPICAL_LENGTH * float(abs(face.a))


def fit_face(ids: np.ndarray, file: str | Path) -> Similarity:
    """Fit `TYPICAL`, whose origin is the middle of the box, to labelled parts; `find_face` says how.

    Raises
    ------
    InputError
        If fewer than two parts are labelled.
    """
    places = _places(ids)[1:]
    seen = ~np.isnan(places[:, 0])
    if seen.sum() < 2:
        parts = ", ".join(PARTS[part + 1] for part in np.flatnonzero(seen)) or "none"
        raise mistake(file, "at least 2 parts of a face", parts, "check its labels, or remove the face")
    return fit_similarity(_four_points(TYPICAL[seen]), _four_points(places[seen]))


def _four_points(places: np.ndarray) -> np.ndarray:
    """Compute the left, right, upper and lower end of each part, (4 n, 2) float64, from its moments (n, 4)."""
    ends = places[:, None, :2] + places[:, None, 2:] * [(-2, 0), (2, 0), (0, -2), (0, 2)]
    return ends.reshape(-1, 2)


def _places(ids: np.ndarray) -> np.ndarray:
    """Compute mean x, y and standard deviation x, y of each id's pixels, (9, 4) float64; NaN for 0 and absent ids."""
    places = np.full((len(PARTS), 4), np.nan)
    at = np.nonzero(ids)
    pixels = np.stack([at[1], at[0]], axis=1)
    parts = ids[at]
    for part in np.unique(parts):
        own = pixels[parts == part]
        places[part] = *own.mean(0), *np.sqrt(own.var(0) + 1 / 12)  # 1/12: variance within a pixel
    return places


def cut_out(image: np.ndarray, ids: np.ndarray, size: int, face: int, file: str | Path) -> Converted:
    """Crop a photograph (H, W, 3) and its ids (H, W), both uint8, to the square around the face, in one resampling.

    The square has side `size`, with the face `face` pixels long; `file` is the source named in error messages.
    """
    ids = as_seen(ids)
    box = find_face(ids, file)
    values, _ = warp(np.concatenate([image, maps_of(ids)], axis=2), box.matrix(size, face), size)
    return np.rint(values[..., :3]).astype(np.uint8), whole_shares(values[..., 3:])
