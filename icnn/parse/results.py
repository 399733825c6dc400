"""What parsing a photograph gives: labels, faces, parts, and their description as JSON."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from icnn.classes import PARTS
from icnn.data.face_box import TYPICAL_LENGTH, Box
from icnn.data.resample import warp
from icnn.parse.search import SQUARE

_STRIP = 1 << 20  # pixels that are labelled at once: 9 maps of 4 bytes each


@dataclass(frozen=True)
class Part:
    """One part of a parsed face.

    Attributes
    ----------
    id : int
        Of `icnn.classes.PARTS`.
    pixels : int
        How many the label image has of it.
    box : (x, y, width, height) or None
        The smallest that holds them, whole pixels; None if there are none.
    center : (x, y) or None
        Median of them along each axis.
    confidence : float
        Mean probability of their label, 0 to 1.
    """

    id: int
    pixels: int
    box: tuple[int, int, int, int] | None
    center: tuple[float, float] | None
    confidence: float


@dataclass(frozen=True)
class ParsedFace:
    """One face of a photograph.

    Attributes
    ----------
    box : (x, y, width, height) of float
        Eyebrows to chin and ear to ear, a square, in the photograph's pixels.
    parts : dict of str to Part
        All eight, by name.
    agreement : float
        How far the two stages see the same (`icnn.parse.search.agreement`), 0 to 1: of a clear face .8 or so.
    """

    box: tuple[float, float, float, float]
    parts: dict[str, Part]
    agreement: float


class Seen(NamedTuple):
    """A face in its square: where that lies, probabilities (256, 256, 9), and how far the stages agree."""

    box: Box
    maps: np.ndarray
    agreement: float

    def region(self, shape: tuple[int, int]) -> tuple[int, int, int, int]:
        """x, y, width and height of the part of a photograph (H, W) that the square covers; maybe nothing."""
        half = self.box.length / TYPICAL_LENGTH * SQUARE / 2
        ends = []
        for middle, length in ((self.box.x, shape[1]), (self.box.y, shape[0])):
            first = min(max(0, int(np.floor(middle - half))), length)
            last = min(max(first, int(np.ceil(middle + half)) + 1), length)
            ends.append((first, last - first))
        (x, width), (y, height) = ends
        return x, y, width, height

    def resampled(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Probabilities (height, width, 9) in a region of the photograph; background outside of the square."""
        step = TYPICAL_LENGTH / self.box.length
        middle = (SQUARE - 1) / 2
        left, top = middle + (x - self.box.x) * step, middle + (y - self.box.y) * step
        maps, inside = warp(self.maps, np.array([[step, 0, left], [0, step, top]]), (height, width))
        maps[~inside, 0] = 1
        return maps

    def labels(self, shape: tuple[int, int]) -> tuple[int, int, np.ndarray]:
        """Corner x, y and ids (h, w) uint8 of its region in a photograph (H, W), strip by strip."""
        x, y, width, height = self.region(shape)
        labels = np.zeros((height, width), np.uint8)
        rows = max(1, _STRIP // max(1, width))
        for top in range(0, height, rows):
            strip = labels[top : top + rows]
            strip[:] = self.resampled(x, y + top, width, len(strip)).argmax(-1)
        return x, y, labels

    def confidences(self) -> np.ndarray:
        """(9,) float: mean probability of each id over the pixels of the square that have it; 0 where none has."""
        labels, best = self.maps.argmax(-1).ravel(), self.maps.max(-1).ravel()
        count = np.bincount(labels, minlength=len(PARTS))
        return np.bincount(labels, best, len(PARTS)) / np.maximum(count, 1)


@dataclass(frozen=True)
class Parsed:
    """What is seen in a photograph.

    Attributes
    ----------
    labels : (H, W) uint8
        Ids of `icnn.classes.PARTS`; where faces overlap, of the first in `faces`.
    faces : list of ParsedFace
        The surest first; empty where there is none.
    """

    labels: np.ndarray
    faces: list[ParsedFace]
    _seen: "list[Seen]"

    def probabilities(self) -> np.ndarray:
        """Probability of every id at every pixel, (H, W, 9) float32: 36 bytes a pixel, made when asked for."""
        height, width = self.labels.shape
        total = np.zeros((height, width, len(PARTS)), np.float32)
        total[..., 0] = 1
        for seen in reversed(self._seen):  # the surest last, over the others
            x, y, w, h = seen.region(self.labels.shape)
            maps = seen.resampled(x, y, w, h)
            parts = maps[..., 1:].sum(-1, keepdims=True) > 1e-3
            total[y : y + h, x : x + w] = np.where(parts, maps, total[y : y + h, x : x + w])
        return total


def described(source: Path, parsed: Parsed) -> dict:
    """What NAME.json holds."""
    height, width = parsed.labels.shape
    faces = []
    for face in parsed.faces:
        parts = {
            name: asdict(part) | {"confidence": round(part.confidence, 4)} for name, part in face.parts.items()
        }  # fmt: skip
        box = [round(number, 1) for number in face.box]
        faces.append({"box": box, "agreement": round(face.agreement, 4), "parts": parts})
    return {"image": str(source), "size": [width, height], "faces": faces}
