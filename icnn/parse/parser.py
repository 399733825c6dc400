"""`FaceParser`: label the parts of faces in photographs of any size.

Faces are proposed or given as boxes, cropped at the scale of the training data, labelled by both stages, and the labels
are resampled to the photograph's own size.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from icnn.classes import PARTS
from icnn.data.face_box import CROP_SIZE, SHORTEST, Box
from icnn.data.images import to_rgb
from icnn.data.resample import side_by_side
from icnn.errors import InputError
from icnn.model.pipeline import load_pipeline
from icnn.model.weights import SHIPPED
from icnn.parse.results import FacePrediction, ParsedFace, ParseResult, Part
from icnn.parse.search import DUPLICATE, agreement, crop_face, nms, propose_centred, refine_box
from minicnn.kernels import choose_backend

#: Detections with a lower stage agreement are rejected. The lowest of the project's 130 tuning photographs is .56, 98 %
#: reach .60; of 430 pieces of them without a face, and of noise, 95 % have less than .554, and the highest is .65.
LEAST_AGREEMENT = 0.55
_REFINEMENTS = 2  # times that a proposed box is moved onto the face in it
_OVERLAPPING = 0.3  # IoU from which on two faces count as one

#: A face detector: (H, W, 3) uint8 -> boxes.
Detect = Callable[[np.ndarray], list[Box]]


class FaceParser:
    """Label the parts of faces in photographs.

    >>> from icnn import FaceParser
    >>> result = FaceParser().parse(image)
    >>> result.labels, result.faces[0].parts["nose"].center

    Parameters
    ----------
    weights : path-like
        A RUN folder of `icnn.train`, or its weights; default: the shipped ones.
    backend : str
        "auto", "numpy", "numba", "cupy" or "cublas".
    threads : int, optional
        CPU threads; default: all cores.
    batch : int
        Patches that the networks label at once.

    Raises
    ------
    InputError
        If the weights are missing or damaged.
    minicnn.kernels.BackendError
        If the backend cannot be used here.
    """

    def __init__(
        self,
        weights: str | os.PathLike = SHIPPED,
        backend: str = "auto",
        threads: int | None = None,
        batch: int = 16,
    ):
        name, _ = choose_backend(backend)
        self._pipeline = load_pipeline(Path(weights), name, batch, threads)

    def parse(
        self, image: "np.ndarray | Image.Image", boxes: Sequence[Sequence[float]] | None = None, detect: bool = False
    ) -> ParseResult:
        """Parse the face, or the faces, of one photograph.

        Parameters
        ----------
        image : PIL image of any mode, or array
            (H, W) or (H, W, 3) or (H, W, 4) uint8, RGB.
        boxes : sequence of (x, y, width, height), optional
            Where faces are, eyebrows to chin and ear to ear, pixels: each is parsed, whatever is seen there. Without,
            the photograph is taken as a roughly centred face of any size.
        detect : bool
            Look for faces, any number, by OpenCV's detector (extra `detect`).

        Raises
        ------
        InputError
            For an array of another shape or type, a box that is no box, boxes together with detect, or without OpenCV.
        """
        if boxes is not None and detect:
            raise InputError("expected boxes or detect, got both; leave out one")
        photograph = as_photograph(image)
        given = None if boxes is None else [[box_of(box, photograph.shape[:2]) for box in boxes]]
        finder = None
        if detect:
            from icnn.parse.detect import detector

            finder = detector()
        return self.parse_photographs([photograph], given, finder)[0]

    def parse_photographs(
        self,
        photographs: Sequence[np.ndarray],
        boxes: Sequence[Sequence[Box]] | None = None,
        detect: Detect | None = None,
    ) -> list[ParseResult]:
        """Parse several photographs at once.

        Parameters
        ----------
        photographs : sequence of (H, W, 3) uint8
        boxes : sequence of sequences of Box, optional
            The faces of each photograph; default: one roughly centred face.
        detect : callable, optional
            Finds the faces of a photograph instead.

        Returns
        -------
        list of ParseResult
            One for each photograph.
        """
        faces = self.predict(photographs, boxes, detect)
        return [result_of(photograph.shape[:2], own) for photograph, own in zip(photographs, faces, strict=True)]

    def predict(
        self,
        photographs: Sequence[np.ndarray],
        boxes: Sequence[Sequence[Box]] | None = None,
        detect: Detect | None = None,
    ) -> list[list[FacePrediction]]:
        """Run the networks: the faces of each photograph in their crops, for `result_of`."""
        proposed = boxes if boxes is not None else map(detect or _centred, photographs)
        places = [(n, box) for n, own in enumerate(proposed) for box in own]
        if boxes is None:
            places = self._refine(photographs, places)
        faces: list[list[FacePrediction]] = [[] for _ in photographs]
        for (n, _), face in zip(places, self._predict_crops(photographs, places), strict=True):
            faces[n].append(face)
        if boxes is None:
            faces = [_select(own, keep_all=detect is not None) for own in faces]
        return faces

    def _refine(self, photographs: Sequence[np.ndarray], places: "list[_Place]") -> "list[_Place]":
        """Refine boxes with stage 1; drop duplicates and boxes without a face."""
        for _ in range(_REFINEMENTS):
            if not places:
                break
            located = self._pipeline.locate(self._crops(photographs, places))
            boxes: dict[int, list[Box]] = {}
            for (n, box), centres, found in zip(places, located.centres, located.found, strict=True):
                refined = refine_box(box, centres, found)
                if refined is not None and SHORTEST < refined.length < 4 * max(photographs[n].shape):
                    boxes.setdefault(n, []).append(refined)
            places = [(n, own[i]) for n, own in boxes.items() for i in nms(own, DUPLICATE)]
        return places

    def _crops(self, photographs: Sequence[np.ndarray], places: "list[_Place]") -> list[np.ndarray]:
        """Face crops (256, 256, 3) uint8."""
        return side_by_side(lambda place: crop_face(photographs[place[0]], place[1]), places, self._pipeline.threads)

    def _predict_crops(self, photographs: Sequence[np.ndarray], places: "list[_Place]") -> list[FacePrediction]:
        """Run both stages on the crops."""
        if not places:
            return []
        crops = self._crops(photographs, places)
        located = self._pipeline.locate(crops)
        patches = self._pipeline.label_patches(crops, located.centres)
        maps = self._pipeline.joint_probabilities((CROP_SIZE, CROP_SIZE), patches)
        return [
            FacePrediction(box, probable, agreement(coarse, probable.argmax(-1)))
            for (_, box), coarse, probable in zip(places, located.labels, maps, strict=True)
        ]


#: Number of a photograph, and a box in it.
_Place = tuple[int, Box]


def _centred(photograph: np.ndarray) -> list[Box]:
    return propose_centred(photograph.shape[:2])


def _select(faces: list[FacePrediction], keep_all: bool) -> list[FacePrediction]:
    """Reject detections with low agreement, then non-maximum suppression, best first; the best unless `keep_all`."""
    sure = sorted((face for face in faces if face.agreement >= LEAST_AGREEMENT), key=lambda face: -face.agreement)
    kept = [sure[i] for i in nms([face.box for face in sure], _OVERLAPPING)]
    return kept if keep_all else kept[:1]


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
        x, y, own = face.labels(shape)
        there = labels[y : y + own.shape[0], x : x + own.shape[1]]
        np.copyto(there, own, where=there == 0)
        half = face.box.length / 2
        corner = face.box.x + 0.5 - half, face.box.y + 0.5 - half
        parts = {
            name: _part(own, part, (x, y), confidence)
            for (part, name), confidence in zip(enumerate(PARTS), face.confidences().tolist(), strict=True)
            if part
        }
        described.append(ParsedFace((*corner, face.box.length, face.box.length), parts, face.agreement))
    return ParseResult(labels, described, faces)


def _part(labels: np.ndarray, part: int, corner: tuple[int, int], confidence: float) -> Part:
    rows, columns = np.nonzero(labels == part)
    if not rows.size:
        return Part(part, 0, None, None, 0.0)
    x, y = columns + corner[0], rows + corner[1]
    box = int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1
    return Part(part, rows.size, box, (float(np.median(x)), float(np.median(y))), confidence)


def box_of(numbers: Sequence[float], shape: tuple[int, int]) -> Box:
    """Convert a face given as (x, y, width, height), eyebrows to chin and ear to ear, to a square box.

    Raises
    ------
    InputError
        If it is not four numbers, is too small, or lies outside of the photograph.
    """
    expected = "a face as x, y, width, height in pixels"
    if len(numbers) != 4 or not np.isfinite(np.asarray(numbers, float)).all():
        raise InputError(f"expected {expected}, got {tuple(numbers)}")
    x, y, width, height = map(float, numbers)
    if min(width, height) < SHORTEST:
        raise InputError(f"expected {expected}, at least {SHORTEST} wide and high, got {width:g} x {height:g}")
    if x >= shape[1] or y >= shape[0] or x + width <= 0 or y + height <= 0:
        raise InputError(
            f"expected {expected}, in a photograph of {shape[1]} x {shape[0]}, got {x:g}, {y:g}, {width:g}, {height:g}"
        )
    return Box(x + width / 2 - 0.5, y + height / 2 - 0.5, max(width, height))


def numbers_of(text: str) -> tuple[float, ...]:
    """Parse a face box written as X,Y,W,H; `box_of` checks the numbers.

    Raises
    ------
    InputError
        If one is no number.
    """
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise InputError(f"expected a face as X,Y,W,H in pixels, got {text!r}") from None


def as_photograph(image: "np.ndarray | Image.Image") -> np.ndarray:
    """Convert a PIL image or an array to (H, W, 3) uint8 RGB.

    Raises
    ------
    InputError
        If it is neither, has no pixels, or is of another shape or type.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))):
            got = f"{image.dtype} of shape {image.shape}"
            raise InputError(f"expected a photograph (H, W), (H, W, 3) or (H, W, 4) of uint8, got {got}")
        if not image.size:
            raise InputError(f"expected a photograph with pixels, got one of shape {image.shape}")
        if image.ndim == 3 and image.shape[2] == 3:
            return image
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise InputError(f"expected a PIL image or a NumPy array, got {type(image).__name__}")
    return to_rgb(image, Path(getattr(image, "filename", "") or "the image"))
