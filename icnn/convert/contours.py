"""Helen's own annotation (Le et al., ECCV 2012): 194 points a face, and the soft maps of the parts they outline.

      0 ..  40  jaw line, ear to ear         114 .. 133  an eye        154 .. 173  an eyebrow
     41 ..  57  nose, open at the nasion     134 .. 153  the other     174 .. 193  the other
     58 ..  85  outer contour of the lips
     86 .. 113  inner contour of the lips

Sides, mouth corners, upper and lower lip are found from where the points lie,
never from where a contour starts or which way it runs.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from icnn.classes import PARTS
from icnn.data.face_box import whole_shares
from icnn.data.images import mistake

POINTS = 194
NOSE, OUTER, INNER = slice(41, 58), slice(58, 86), slice(86, 114)
EYES = slice(114, 134), slice(134, 154)
EYEBROWS = slice(154, 174), slice(174, 194)

#: Samples a pixel, along each axis. Pillow fills a polygon's edge too: eyes grow by 4 % at 4, by 2 % at 8.
FINE = 8


def read_lines(path: Path) -> list[str]:
    """Lines of a small text file, stripped.

    Raises
    ------
    InputError
        If it cannot be read or is not UTF-8.
    """
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").split("\n")]
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        raise mistake(path, "a text file", str(error), "check its permissions, or download it again") from error


def read_points(path: Path) -> np.ndarray:
    """Read an annotation: the photograph's name, then "x , y" a line.

    Returns
    -------
    (194, 2) float64
        Pixels of the photograph, x first.

    Raises
    ------
    InputError
        If it cannot be read, or holds anything but 194 points.
    """
    rows = [(number, line) for number, line in enumerate(read_lines(path), 1) if line][1:]
    if len(rows) != POINTS:
        expected = f"{POINTS} points below the photograph's name"
        raise mistake(path, expected, f"{len(rows)}", "download it again, or remove it")
    points = np.empty((POINTS, 2))
    for index, (number, line) in enumerate(rows):
        try:
            points[index] = [float(value) for value in line.split(",")]
            finite = bool(np.isfinite(points[index]).all()) and line.count(",") == 1
        except ValueError:
            finite = False
        if not finite:
            raise mistake(f"{path} line {number}", '"x , y"', repr(line), "download it again, or remove it")
    return points


def polygons(points: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Outlines of the parts, in the order in which they are to be painted.

    Parameters
    ----------
    points : (194, 2) float64
        x to the right, y down.

    Returns
    -------
    list of (int, (n, 2) float64)
        A part's id and its closed outline. The inner mouth comes last: closed lips leave a sliver of it.
    """
    eyes = _left_to_right(points, EYES)
    eyebrows = _left_to_right(points, EYEBROWS)
    across = eyes[1].mean(0) - eyes[0].mean(0)
    # The nose is open between the eyes: it is closed at the nasion, midway between their inner corners.
    nasion = (eyes[0][np.argmax(eyes[0] @ across)] + eyes[1][np.argmin(eyes[1] @ across)]) / 2
    outer, inner = points[OUTER], points[INNER]
    below = outer.mean(0) - (eyes[0].mean(0) + eyes[1].mean(0)) / 2
    # The mouth's axis is the line of the eyes: an open mouth is higher than wide, and has no axis of its own.
    upper, lower = _halves(outer, across, below)
    inner_upper, inner_lower = _halves(inner, across, below)
    return [
        (PARTS.index("left_eyebrow"), eyebrows[0]),
        (PARTS.index("right_eyebrow"), eyebrows[1]),
        (PARTS.index("left_eye"), eyes[0]),
        (PARTS.index("right_eye"), eyes[1]),
        (PARTS.index("nose"), np.concatenate([points[NOSE], nasion[None]])),
        (PARTS.index("upper_lip"), np.concatenate([upper, inner_upper[::-1]])),
        (PARTS.index("lower_lip"), np.concatenate([lower, inner_lower[::-1]])),
        (PARTS.index("inner_mouth"), inner),
    ]


def draw_maps(points: np.ndarray, size: int) -> np.ndarray:
    """Soft maps of the parts, supersampled.

    Parameters
    ----------
    points : (194, 2) float64
        Pixels of the square to draw in, pixel centres at whole numbers.
    size : int
        Side of the square.

    Returns
    -------
    (size, size, 9) uint8
        Their sum is 255 everywhere.
    """
    ids = Image.new("L", (size * FINE, size * FINE))
    draw = ImageDraw.Draw(ids)
    for part, outline in polygons(points):
        # Rounded here, as Pillow cuts fractions off, which would move everything by half a sample.
        draw.polygon(np.rint((outline + 0.5) * FINE - 0.5).ravel().tolist(), fill=part)
    samples = np.asarray(ids).reshape(size, FINE, size, FINE)
    shares = [(samples == part).mean((1, 3)) for part in range(len(PARTS))]
    return whole_shares(255 * np.stack(shares, axis=-1))


def _left_to_right(points: np.ndarray, twins: tuple[slice, slice]) -> list[np.ndarray]:
    return sorted((points[twin] for twin in twins), key=lambda contour: contour[:, 0].mean())


def _halves(contour: np.ndarray, across: np.ndarray, below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower half of a closed contour, both from its first corner along `across` to its last."""
    along = contour @ across
    contour = np.roll(contour, -int(along.argmin()), axis=0)
    end = int((contour @ across).argmax())
    halves = contour[: end + 1], np.concatenate([contour[end:], contour[:1]])[::-1]
    down = np.array([-across[1], across[0]])
    down = down if down @ below > 0 else -down
    upper, lower = sorted(halves, key=lambda half: (half @ down).mean())
    return upper, lower
