"""Results of parsing a photograph: labels, faces, parts, and their description as JSON."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from icnn.classes import PARTS
from icnn.data.face_box import CROP_SIZE, TYPICAL_LENGTH, Box
from icnn.data.geometry import affine
from icnn.data.resample import warp

_STRIP = 1 << 20  # pixels labelled at once: 9 maps of 4 bytes each


@dataclass(frozen=True)
class Part:
    """One part of a parsed face, in the photograph's pixels.

    Attributes
    ----------
    id : int
        Index in `icnn.classes.PARTS`.
    pixels : int
        Number of pixels with this label.
    box : (x, y, width, height) or None
        Bounding box; None without pixels.
    center : (x, y) or None
        Median of the pixels along each axis; None without pixels.
    confidence : float
        Mean probability of the label over its pixels, 0 to 1.
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
        Agreement of the two stages (`icnn.parse.search.agreement`), 0 to 1; about .8 for a clear face.
    """

    box: tuple[float, float, float, float]
    parts: dict[str, Part]
    agreement: float


class FacePrediction(NamedTuple):
    """The networks' prediction for one face crop.

    Attributes
    ----------
    box : Box
        The face in the photograph.
    maps : (256, 256, 9) float32
        Probability of every id at every pixel of the crop.
    agreement : float
        Of the two stages, 0 to 1.
    """

    box: Box
    maps: np.ndarray
    agreement: float

    def region(self, shape: tuple[int, int]) -> tuple[int, int, int, int]:
        """Compute the region (x, y, width, height) of a photograph (H, W) that the crop covers; may be empty."""
        half = self.box.length / TYPICAL_LENGTH * CROP_SIZE / 2
        ends = []
        for middle, length in ((self.box.x, shape[1]), (self.box.y, shape[0])):
            first = min(max(0, int(np.floor(middle - half))), length)
            last = min(max(first, int(np.ceil(middle + half)) + 1), length)
            ends.append((first, last - first))
        (x, width), (y, height) = ends
        return x, y, width, height

    def resampled(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Resample the probabilities to a region of the photograph: (height, width, 9); background outside the crop."""
        box = self.box
        matrix = affine(TYPICAL_LENGTH / box.length, (box.x - x, box.y - y), (CROP_SIZE - 1) / 2)
        maps, inside = warp(self.maps, matrix, (height, width))
        maps[~inside, 0] = 1
        return maps

    def labels(self, shape: tuple[int, int]) -> tuple[int, int, np.ndarray]:
        """Compute the ids (h, w) uint8 of its region in a photograph (H, W), and the region's corner x, y."""
        x, y, width, height = self.region(shape)
        labels = np.zeros((height, width), np.uint8)
        rows = max(1, _STRIP // max(1, width))
        for top in range(0, height, rows):
            strip = labels[top : top + rows]
            strip[:] = self.resampled(x, y + top, width, len(strip)).argmax(-1)
        return x, y, labels

    def confidences(self) -> np.ndarray:
        """Compute the mean probability of each id over the crop's pixels with that id: (9,); 0 for absent ids."""
        labels, best = self.maps.argmax(-1).ravel(), self.maps.max(-1).ravel()
        count = np.bincount(labels, minlength=len(PARTS))
        return np.bincount(labels, best, len(PARTS)) / np.maximum(count, 1)


@dataclass(frozen=True)
class ParseResult:
    """The labels and faces of one photograph.

    Attributes
    ----------
    labels : (H, W) uint8
        Ids of `icnn.classes.PARTS`; where faces overlap, those of the first in `faces`.
    faces : list of ParsedFace
        Highest agreement first; empty if there is no face.
    """

    labels: np.ndarray
    faces: list[ParsedFace]
    _predictions: "list[FacePrediction]"

    def probabilities(self) -> np.ndarray:
        """Compute the probability of every id at every pixel: (H, W, 9) float32, 36 bytes a pixel."""
        height, width = self.labels.shape
        total = np.zeros((height, width, len(PARTS)), np.float32)
        total[..., 0] = 1
        for seen in reversed(self._predictions):  # the best last, over the others
            x, y, w, h = seen.region(self.labels.shape)
            maps = seen.resampled(x, y, w, h)
            parts = maps[..., 1:].sum(-1, keepdims=True) > 1e-3
            total[y : y + h, x : x + w] = np.where(parts, maps, total[y : y + h, x : x + w])
        return total


def described(source: Path, parsed: ParseResult) -> dict:
    """Describe a result as NAME.json has it; `source` is the photograph's path."""
    height, width = parsed.labels.shape
    faces = []
    for face in parsed.faces:
        parts = {
            name: asdict(part) | {"confidence": round(part.confidence, 4)} for name, part in face.parts.items()
        }  # fmt: skip
        box = [round(number, 1) for number in face.box]
        faces.append({"box": box, "agreement": round(face.agreement, 4), "parts": parts})
    return {"image": str(source), "size": [width, height], "faces": faces}
