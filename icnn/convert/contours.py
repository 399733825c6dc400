"""Helen's original annotation (Le et al., ECCV 2012): 194 points per face, converted to soft label maps.

      0 ..  40  jaw line, ear to ear         114 .. 133  an eye        154 .. 173  an eyebrow
     41 ..  57  nose, open at the nasion     134 .. 153  the other     174 .. 193  the other
     58 ..  85  outer contour of the lips
     86 .. 113  inner contour of the lips

Left and right, mouth corners, upper and lower lip are derived from the positions of the points.
They do not depend on the start or the direction of a contour.
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

#: Samples per pixel along each axis. Pillow also fills a polygon's edge: eyes grow by 4 % at 4 samples, 2 % at 8.
FINE = 8


def read_lines(path: Path) -> list[str]:
    """Return the lines of a small text file, stripped.

    Raises
    ------
    InputError
        If the file cannot be read or is not UTF-8.
    """
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").split("\n")]
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        raise mistake(path, "a text file", str(error), "check its permissions, or download it again") from error


def read_points(path: Path) -> np.ndarray:
    """Read an annotation file: the photograph's name, then one "x , y" per line.

    Returns
    -------
    (194, 2) float64
        x and y in pixels of the photograph.

    Raises
    ------
    InputError
        If the file cannot be read or does not hold exactly 194 points.
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
    """Return the outlines of the parts in drawing order.

    Parameters
    ----------
    points : (194, 2) float64
        x to the right, y down.

    Returns
    -------
    list of (int, (n, 2) float64)
        Class id and closed outline of each part. The inner mouth is last, so that closed lips leave a sliver of it.
    """
    eyes = _left_to_right(points, EYES)
    eyebrows = _left_to_right(points, EYEBROWS)
    across = eyes[1].mean(0) - eyes[0].mean(0)
    # The nose contour is open between the eyes. Close it at the nasion, midway between the inner eye corners.
    nasion = (eyes[0][np.argmax(eyes[0] @ across)] + eyes[1][np.argmin(eyes[1] @ across)]) / 2
    outer, inner = points[OUTER], points[INNER]
    below = outer.mean(0) - (eyes[0].mean(0) + eyes[1].mean(0)) / 2
    # Use the line through the eyes as the mouth's axis: an open mouth can be taller than wide,
    # so its own shape does not give a reliable axis.
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
    """Draw soft label maps of the parts by supersampling.

    Parameters
    ----------
    points : (194, 2) float64
        Pixel coordinates in the output; pixel centres are integers.
    size : int
        Side of the output, pixels.

    Returns
    -------
    (size, size, 9) uint8
        Class shares that sum to 255 at every pixel.
    """
    ids = Image.new("L", (size * FINE, size * FINE))
    draw = ImageDraw.Draw(ids)
    for part, outline in polygons(points):
        # Round here: Pillow truncates fractions, which would shift all outlines by half a sample.
        draw.polygon(np.rint((outline + 0.5) * FINE - 0.5).ravel().tolist(), fill=part)
    samples = np.asarray(ids).reshape(size, FINE, size, FINE)
    shares = [(samples == part).mean((1, 3)) for part in range(len(PARTS))]
    return whole_shares(255 * np.stack(shares, axis=-1))


def _left_to_right(points: np.ndarray, twins: tuple[slice, slice]) -> list[np.ndarray]:
    return sorted((points[twin] for twin in twins), key=lambda contour: contour[:, 0].mean())


def _halves(contour: np.ndarray, across: np.ndarray, below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split a closed contour into upper and lower half, each from its first to its last corner along `across`."""
    along = contour @ across
    contour = np.roll(contour, -int(along.argmin()), axis=0)
    end = int((contour @ across).argmax())
    halves = contour[: end + 1], np.concatenate([contour[end:], contour[:1]])[::-1]
    down = np.array([-across[1], across[0]])
    down = down if down @ below > 0 else -down
    upper, lower = sorted(halves, key=lambda half: (half @ down).mean())
    return upper, lower
