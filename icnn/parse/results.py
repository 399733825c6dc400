"""Results of parsing a photograph: labels, faces, parts, and their description as JSON."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from icnn.classes import PARTS
from icnn.data.face_box import CROP_SIZE, TYPICAL_LENGTH, Box
from icnn.data.geometry import affine, compose
from icnn.data.resample import draw_labels, warp


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
    roll : float
        Degrees by which the face is turned counter-clockwise about the middle of the box; 0 for a box that was given.
    parts : dict of str to Part
        All eight, by name.
    agreement : float
        Agreement of the two stages (`icnn.parse.search.agreement`), 0 to 1; about .8 for a clear face.
    """

    box: tuple[float, float, float, float]
    roll: float
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
    labels : (256, 256) uint8
        The most probable ids.
    agreement : float
        Of the two stages, 0 to 1.
    score, misfit : float
        As of `icnn.parse.search.Candidate`, in the final crop; the misfit is infinite if stage 1 sees no face.
    """

    box: Box
    maps: np.ndarray
    labels: np.ndarray
    agreement: float
    score: float
    misfit: float

    @property
    def sureness(self) -> float:
        """Evidence that this is a face; 20 times it is about the log odds, up to a constant."""
        odds = np.log(self.score + 1e-4) - np.log(1 - self.score + 1e-4)
        return float(self.agreement + 0.05 * odds - 0.03 * self.misfit)

    def region(self, shape: tuple[int, int], columns: tuple[int, int], rows: tuple[int, int]) -> tuple[int, ...]:
        """Compute the region (x, y, width, height) of a photograph (H, W) that a part of the crop covers; may be empty.

        The part has the given first and last column and row, of 0 to 255.
        """
        edges = [(first - 0.5, last + 0.5) for first, last in (columns, rows)]
        corners = np.array([(x, y, 1) for x in edges[0] for y in edges[1]])
        places = corners @ self.box.matrix(CROP_SIZE, TYPICAL_LENGTH).T
        low = np.clip(np.floor(places.min(0)), 0, shape[::-1]).astype(int)
        high = np.clip(np.ceil(places.max(0)) + 1, low, shape[::-1]).astype(int)
        return *low.tolist(), *(high - low).tolist()

    def _matrix(self, x: int, y: int) -> np.ndarray:
        """Return the matrix from a region of the photograph with this corner to the crop, (2, 3)."""
        return compose(self.box.inverse(CROP_SIZE, TYPICAL_LENGTH), affine(1, target=(x, y)))

    def resampled(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Resample the probabilities to a region of the photograph: (height, width, 9); background outside the crop."""
        maps, inside = warp(self.maps, self._matrix(x, y), (height, width))
        maps[~inside, 0] = 1
        return maps

    def draw(self, shape: tuple[int, int]) -> "Drawn":
        """Draw the labels at the photograph's size (H, W): where `resampled` is largest."""
        ends = []
        for axis in (0, 1):  # only where parts are: a pixel further on mixes two pixels of the crop at most
            places = np.flatnonzero(self.labels.any(axis))
            ends.append((max(0, places[0] - 1), min(CROP_SIZE, places[-1] + 2) - 1) if places.size else (0, 0))
        x, y, width, height = self.region(shape, *ends)
        labels, by_row, by_column = draw_labels(self.maps, self.labels, self._matrix(x, y), (height, width))
        return Drawn(labels, by_row, by_column, (x, y), self.confidences())

    def confidences(self) -> np.ndarray:
        """Compute the mean probability of each id over the crop's pixels with that id: (9,); 0 for absent ids."""
        labels, best = self.labels.ravel(), self.maps.max(-1).ravel()
        count = np.bincount(labels, minlength=len(PARTS))
        return np.bincount(labels, best, len(PARTS)) / np.maximum(count, 1)


class Drawn(NamedTuple):
    """Labels of one face at the photograph's size.

    Attributes
    ----------
    labels : (h, w) uint8
        Ids in the region of the photograph that holds the face's parts.
    rows, columns : (9, h) and (9, w) int64
        Number of pixels of each id in each row and column; not of the background.
    corner : (int, int)
        Position x, y of the region in the photograph.
    confidences : (9,) float64
        Mean probability of each id over its pixels in the crop.
    """

    labels: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    corner: tuple[int, int]
    confidences: np.ndarray

    def part(self, part: int) -> Part:
        """Describe a part."""
        count = int(self.rows[part].sum())
        if not count:
            return Part(part, 0, None, None, 0.0)
        (left, right, x), (top, bottom, y) = (
            _spread(along[part], count, start)
            for along, start in zip((self.columns, self.rows), self.corner, strict=True)
        )
        box = left, top, right - left + 1, bottom - top + 1
        return Part(part, count, box, (x, y), float(self.confidences[part]))


def _spread(counts: np.ndarray, total: int, start: int) -> tuple[int, int, float]:
    """Return the first and the last place with a pixel, and the median place; `counts` begin at place `start`."""
    places = np.flatnonzero(counts)
    below = counts.cumsum()
    middle = np.searchsorted(below, [(total - 1) // 2, total // 2], side="right")
    return start + int(places[0]), start + int(places[-1]), start + float(middle.mean())


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
        whole = 0, CROP_SIZE - 1
        for seen in reversed(self._predictions):  # the best last, over the others
            x, y, w, h = seen.region(self.labels.shape, whole, whole)
            maps = seen.resampled(x, y, w, h)
            parts = maps[..., 1:].sum(-1, keepdims=True) > 1e-3
            total[y : y + h, x : x + w] = np.where(parts, maps, total[y : y + h, x : x + w])
        return total


def result_of(shape: tuple[int, int], faces: list[FacePrediction]) -> ParseResult:
    """Resample the predictions of `FaceParser.predict` to a photograph's own size.

    Parameters
    ----------
    shape : (H, W)
        Of the photograph.
    faces : list of FacePrediction
        The best first: where faces overlap, its labels count.
    """
    labels = np.zeros(shape, np.uint8)
    described = []
    for face in faces:
        drawn = face.draw(shape)
        x, y = drawn.corner
        height, width = drawn.labels.shape
        there = labels[y : y + height, x : x + width]
        np.copyto(there, drawn.labels, where=there == 0)
        half = face.box.length / 2
        box = face.box.x + 0.5 - half, face.box.y + 0.5 - half, face.box.length, face.box.length
        parts = {name: drawn.part(part) for part, name in enumerate(PARTS) if part}
        described.append(ParsedFace(box, face.box.roll, parts, face.agreement))
    return ParseResult(labels, described, faces)


def described(source: Path, parsed: ParseResult) -> dict:
    """Describe a result as NAME.json has it; `source` is the photograph's path."""
    height, width = parsed.labels.shape
    faces = []
    for face in parsed.faces:
        parts = {
            name: asdict(part) | {"confidence": round(part.confidence, 4)} for name, part in face.parts.items()
        }  # fmt: skip
        box = [round(number, 1) for number in face.box]
        face = {"box": box, "roll": round(face.roll, 1), "agreement": round(face.agreement, 4), "parts": parts}
        faces.append(face)
    return {"image": str(source), "size": [width, height], "faces": faces}
