"""Results of parsing a photograph: labels, faces, parts, and their description as JSON."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from icnn.classes import PARTS
from icnn.data.face_box import CROP_SIZE
from icnn.model.face_maps import Drawn, FaceMaps


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
    face : FaceMaps
    agreement : float
        Of the two stages, 0 to 1.
    score, misfit : float
        As of `icnn.parse.search.Candidate`, in the final crop; the misfit is infinite if stage 1 sees no face.
    """

    face: FaceMaps
    agreement: float
    score: float
    misfit: float

    @property
    def sureness(self) -> float:
        """Evidence that this is a face; 20 times it is about the log odds, up to a constant."""
        odds = np.log(self.score + 1e-4) - np.log(1 - self.score + 1e-4)
        return float(self.agreement + 0.05 * odds - 0.03 * self.misfit)


def _described_part(part: int, drawn: Drawn, confidence: float) -> Part:
    """Describe a part of a face that was drawn."""
    count = int(drawn.rows[part].sum())
    if not count:
        return Part(part, 0, None, None, 0.0)
    (left, right, x), (top, bottom, y) = (
        _spread(along[part], count, start)
        for along, start in zip((drawn.columns, drawn.rows), drawn.corner, strict=True)
    )
    return Part(part, count, (left, top, right - left + 1, bottom - top + 1), (x, y), confidence)


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
            x, y, w, h = seen.face.region(self.labels.shape, whole, whole)
            maps = seen.face.resampled(x, y, w, h)
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
    for face, agreement, *_ in faces:
        drawn, confidences = face.draw(shape), face.confidences().tolist()
        drawn.paste(labels)
        own, half = face.box, face.box.length / 2
        box = own.x + 0.5 - half, own.y + 0.5 - half, own.length, own.length
        parts = {name: _described_part(n, drawn, confidences[n]) for n, name in enumerate(PARTS) if n}
        described.append(ParsedFace(box, own.roll, parts, agreement))
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
