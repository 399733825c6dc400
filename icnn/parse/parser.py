"""Faces in photographs of any size: found or given, parsed at the scale of the training data, labelled at their own."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from icnn.classes import PARTS
from icnn.data.face_box import SHORTEST, Box
from icnn.data.images import quiet, to_rgb
from icnn.data.resample import side_by_side
from icnn.errors import InputError
from icnn.model.pipeline import load_pipeline
from icnn.model.weights import SHIPPED
from icnn.parse.results import Parsed, ParsedFace, Part, Seen
from icnn.parse.search import SQUARE, agreement, centred_boxes, cut_square, moved_box, overlap, without_twins
from minicnn.kernels import choose_backend

#: A face whose stages agree less is none. Of the project's 130 tuning photographs the least has .56, 98 % have .60; of
#: 430 pieces of them without a face, and of noise, 95 % have less than .554 and the most has .65.
LEAST_AGREEMENT = 0.55
_ROUNDS = 2  # of moving a proposed box onto what is found in it

#: Finds faces: (H, W, 3) uint8 -> boxes.
Detect = Callable[[np.ndarray], list[Box]]


class FaceParser:
    """Labels the parts of faces.

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
    ) -> Parsed:
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
    ) -> list[Parsed]:
        """Parse several photographs (H, W, 3) uint8 at once; `boxes`, if given, are those of each."""
        faces = self.look_at(photographs, boxes, detect)
        return [parsed_of(photograph.shape[:2], own) for photograph, own in zip(photographs, faces, strict=True)]

    def look_at(
        self,
        photographs: Sequence[np.ndarray],
        boxes: Sequence[Sequence[Box]] | None = None,
        detect: Detect | None = None,
    ) -> list[list[Seen]]:
        """The networks' part of `parse_photographs`: the faces of each photograph, for `parsed_of`."""
        proposed = boxes if boxes is not None else map(detect or _centred, photographs)
        places = [(n, box) for n, own in enumerate(proposed) for box in own]
        if boxes is None:
            places = self._settled(photographs, places)
        seen: list[list[Seen]] = [[] for _ in photographs]
        for (n, _), face in zip(places, self._see(photographs, places), strict=True):
            seen[n].append(face)
        if boxes is None:
            seen = [_kept(faces, all_of_them=detect is not None) for faces in seen]
        return seen

    def _settled(self, photographs: Sequence[np.ndarray], places: "list[_Place]") -> "list[_Place]":
        """Places moved onto the faces that stage 1 sees in them; twice the same face and none at all are left out."""
        for _ in range(_ROUNDS):
            if not places:
                break
            squares = self._squares(photographs, places)
            located = self._pipeline.locate(squares)
            boxes: dict[int, list[Box]] = {}
            for (n, box), centres, found in zip(places, located.centres, located.found, strict=True):
                moved = moved_box(box, centres, found)
                if moved is not None and SHORTEST < moved.length < 4 * max(photographs[n].shape):
                    boxes.setdefault(n, []).append(moved)
            places = [(n, box) for n, moved in boxes.items() for box in without_twins(moved)]
        return places

    def _squares(self, photographs: Sequence[np.ndarray], places: "list[_Place]") -> list[np.ndarray]:
        """The squares around these places, as the networks see faces."""
        return side_by_side(lambda place: cut_square(photographs[place[0]], place[1]), places, self._pipeline.threads)

    def _see(self, photographs: Sequence[np.ndarray], places: "list[_Place]") -> list[Seen]:
        """Both stages in the squares of these places."""
        if not places:
            return []
        squares = self._squares(photographs, places)
        located = self._pipeline.locate(squares)
        patches = self._pipeline.label_patches(squares, located.centres)
        maps = self._pipeline.joint_probabilities((SQUARE, SQUARE), patches)
        return [
            Seen(box, probable, agreement(coarse, probable.argmax(-1)))
            for (_, box), coarse, probable in zip(places, located.labels, maps, strict=True)
        ]


#: Number of a photograph, and a box in it.
_Place = tuple[int, Box]


def _centred(photograph: np.ndarray) -> list[Box]:
    return centred_boxes(photograph.shape[:2])


def _kept(faces: list[Seen], all_of_them: bool) -> list[Seen]:
    """Those that are faces, the surest first: all that do not lie on another, or one."""
    sure = sorted((face for face in faces if face.agreement >= LEAST_AGREEMENT), key=lambda face: -face.agreement)
    kept: list[Seen] = []
    for face in sure:
        if all(overlap(face.box, other.box) < 0.3 for other in kept):
            kept.append(face)
    return kept if all_of_them else kept[:1]


def parsed_of(shape: tuple[int, int], faces: list[Seen]) -> Parsed:
    """What `FaceParser.look_at` saw in a photograph (H, W), at the photograph's own size."""
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
    return Parsed(labels, described, faces)


def _part(labels: np.ndarray, part: int, corner: tuple[int, int], confidence: float) -> Part:
    rows, columns = np.nonzero(labels == part)
    if not rows.size:
        return Part(part, 0, None, None, 0.0)
    x, y = columns + corner[0], rows + corner[1]
    box = int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1
    return Part(part, rows.size, box, (float(np.median(x)), float(np.median(y))), confidence)


def box_of(numbers: Sequence[float], shape: tuple[int, int]) -> Box:
    """The square around a face given as (x, y, width, height), eyebrows to chin and ear to ear, in a photograph (H, W).

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
    """The numbers of a face's box as people write it, X,Y,W,H; `box_of` looks at how many and what they are.

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
    """(H, W, 3) uint8 of a PIL image or an array.

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
    with quiet():
        return to_rgb(image, Path(getattr(image, "filename", "") or "the image"))
