"""`FaceParser`: label the parts of faces in photographs of any size.

Faces are proposed or given as boxes, cropped at the scale of the training data, labelled by both stages, and the labels
are resampled to the photograph's own size.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from icnn.data.face_box import CROP_SIZE, SHORTEST, TYPICAL_LENGTH, Box
from icnn.data.images import as_photograph
from icnn.data.pyramid import Pyramid
from icnn.data.resample import begin_ahead, prepare_loops
from icnn.errors import InputError
from icnn.model.face_maps import FaceMaps
from icnn.model.finder import FACE_LENGTH
from icnn.model.pipeline import load_pipeline
from icnn.model.weights import SHIPPED
from icnn.parse.finder import Finder
from icnn.parse.results import FacePrediction, ParseResult, result_of
from icnn.parse.search import Candidate, agreement, best, nms, overlap, prominence, propose_centred, refine
from icnn.stages import NETWORKS
from minicnn.kernels import choose_backend

#: Least sureness of a face: of those that the finder proposed, and of those that stage 1 found around the middle, which
#: have no score of the finder. At .55 `detect` finds 162 of 172 annotated faces of AFW, and 8 % of its boxes are beside
#: them; of 12 such boxes, 11 show other faces or drawings of some.
LEAST_SURENESS, LEAST_CENTRED = 0.55, 0.34
#: For each round of refinement, how many boxes of a photograph are kept, and how much more misfit than the best they
#: may have: of all faces, and of the most prominent one, for which the networks of stage 2 shall not run in vain.
_ALL = ((1000, np.inf),) * 3
_FEW = (4, np.inf), (4, np.inf), (3, 5.0)
_HIT = 0.55  # IoU from which on a box has found the face that another one shows
_TOGETHER = 32  # crops that are predicted together: each has nine maps, of which those of a face alone are kept
_AHEAD = 4  # photographs that are decoded before their turn
_OVERLAPPING = 0.3  # IoU from which on two faces count as one


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
        self._backend, _ = choose_backend(backend)
        self._pipeline = load_pipeline(Path(weights), self._backend, batch, threads)
        self._finder: Finder | None = None  # made when a face is looked for

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
            the photograph's most prominent face is looked for: a large one, near the middle.
        detect : bool
            Look for all faces instead, at any angle, from 36 pixels and a sixtieth of the longer side on; in a
            panorama from a 52nd of the square root of its area.

        Raises
        ------
        InputError
            For an array of another shape or type, a box that is no box, or boxes together with detect.
        """
        if boxes is not None and detect:
            raise InputError("expected boxes or detect, got both; leave out one")
        photograph = as_photograph(image)
        given = None if boxes is None else [[box_of(box, photograph.shape[:2]) for box in boxes]]
        return self.parse_photographs([photograph], given, detect)[0]

    def parse_photographs(
        self,
        photographs: Sequence[np.ndarray],
        boxes: Sequence[Sequence[Box]] | None = None,
        detect: bool = False,
    ) -> list[ParseResult]:
        """Parse several photographs at once.

        Parameters
        ----------
        photographs : sequence of (H, W, 3) uint8
        boxes : sequence of sequences of Box, optional
            The faces of each photograph; default: its most prominent one.
        detect : bool
            Look for all faces instead.

        Returns
        -------
        list of ParseResult
            One for each photograph.
        """
        faces = self.predict([Pyramid(photograph) for photograph in photographs], boxes, detect)
        return [result_of(photograph.shape[:2], own) for photograph, own in zip(photographs, faces, strict=True)]

    def parse_many(
        self, sources: Iterable["str | os.PathLike | np.ndarray | Image.Image"], detect: bool = False
    ) -> Iterator[ParseResult]:
        """Parse photographs one after the other, while the next ones are decoded.

        A JPEG file is decoded only as large as its faces need.

        Parameters
        ----------
        sources : iterable
            Paths of image files, or images as for `parse`; taken a few ahead.
        detect : bool
            Look for all faces of each, not for the most prominent one.

        Yields
        ------
        ParseResult
            In the order of `sources`.

        Raises
        ------
        InputError
            When its turn comes, for a file that cannot be read or another mistake.
        """
        with ThreadPoolExecutor(2, "photographs") as pool:
            for _, opening in begin_ahead(pool, _open, sources, _AHEAD):
                photograph = opening.result()
                yield result_of(photograph.shape, self.predict([photograph], detect=detect)[0])

    def warm_up(self) -> None:
        """Run all networks once, which compiles all kernels that are missing."""
        blank = Pyramid(np.zeros((CROP_SIZE, CROP_SIZE, 3), np.uint8))
        middle = (CROP_SIZE - 1) / 2
        self._propose(blank, detect=False)
        self.predict([blank], [[Box(middle, middle, TYPICAL_LENGTH)]])

    def predict(
        self,
        photographs: Sequence[Pyramid],
        boxes: Sequence[Sequence[Box]] | None = None,
        detect: bool = False,
    ) -> list[list[FacePrediction]]:
        """Run the networks: the faces of each photograph in their crops, for `result_of`."""
        if boxes is not None:
            return self._predict_candidates(photographs, [list(map(Candidate, own)) for own in boxes])
        faces = self._select(self.find(photographs, detect), photographs, detect, LEAST_SURENESS)
        # Where the finder finds nothing, stage 1 looks around the middle.
        centred = [
            [] if own else list(map(Candidate, propose_centred(photograph.shape)))
            for photograph, own in zip(photographs, faces, strict=True)
        ]
        again = self._select(self._refine(photographs, centred, _FEW), photographs, detect=False, least=LEAST_CENTRED)
        return [own or other for own, other in zip(faces, again, strict=True)]

    def find(self, photographs: Sequence[Pyramid], detect: bool = False) -> list[list[Candidate]]:
        """Find boxes with a face in them, probably, with the finder and stage 1.

        Parameters
        ----------
        photographs : sequence of Pyramid
        detect : bool
            Return all of a photograph, not the few best ones of those that may be its most prominent face.
        """
        proposed = [self._propose(photograph, detect) for photograph in photographs]
        refined = self._refine(photographs, proposed, _ALL if detect else _FEW)
        # Stage 1 may move a box off a face. The finder's own one is tried too, then: all, or the most prominent one.
        tried = slice(None) if detect else slice(1)
        return [
            own + [one for one in rough[tried] if (overlap(one.box, [other.box for other in own]) < _HIT).all()]
            for own, rough in zip(refined, proposed, strict=True)
        ]

    def _select(
        self, candidates: Sequence[Sequence[Candidate]], photographs: Sequence[Pyramid], detect: bool, least: float
    ) -> list[list[FacePrediction]]:
        """Predict candidates; keep the faces that are sure, or the most prominent one of a photograph."""
        faces = self._predict_candidates(photographs, candidates, least)
        shapes = [None if detect else photograph.shape for photograph in photographs]
        return [_most_sure(own, shape) for own, shape in zip(faces, shapes, strict=True)]

    def _propose(self, photograph: Pyramid, detect: bool) -> list[Candidate]:
        """Propose boxes with the finder: of all faces, or of the most prominent ones."""
        if self._finder is None:
            prepare_loops()
            self._finder = Finder(self._pipeline.threads, self._backend)
        longer, shorter = max(photograph.shape), min(photograph.shape)
        smallest = (
            max(36, min(longer / 60, math.sqrt(longer * shorter) / 52)) if detect else max(SHORTEST, 0.15 * shorter)
        )
        step = 2 ** max(0, int(np.log2(smallest / FACE_LENGTH)))
        candidates = self._finder.find(photograph.reduced(step), smallest, step=step)
        if detect:
            return candidates
        candidates.sort(key=lambda one: -one.score * prominence(one.box, photograph.shape))
        return candidates[: _FEW[0][0]]

    def _refine(
        self,
        photographs: Sequence[Pyramid],
        candidates: Sequence[Sequence[Candidate]],
        rounds: Sequence[tuple[int, float]],
    ) -> list[list[Candidate]]:
        """Move boxes onto the faces in them, with stage 1; keep the best of each photograph (`_ALL`, `_FEW`)."""
        refined = [list(own) for own in candidates]
        for most, worse in rounds:
            places = _places([[one for one in own if not one.settled] for own in refined])
            found = [[one for one in own if one.settled] for own in refined]
            for (n, _), moved in zip(places, self._moved(photographs, places), strict=True):
                if moved is not None and SHORTEST < moved.box.length < 4 * max(photographs[n].shape):
                    found[n].append(moved)
            refined = [best(own, most, worse) for own in found]
        return refined

    def _moved(self, photographs: Sequence[Pyramid], places: "list[_Place]") -> list[Candidate | None]:
        """Move each box onto the face that stage 1 sees in it; None where it sees none."""
        if not places:
            return []
        size = NETWORKS["stage1"].size
        located = self._pipeline.locate(self._crops(photographs, places, size))
        centres = (located.centres + 0.5) * (CROP_SIZE / size) - 0.5
        return [refine(one, *seen) for (_, one), *seen in zip(places, centres, located.found, strict=True)]

    def _crops(self, photographs: Sequence[Pyramid], places: "list[_Place]", size: int = CROP_SIZE) -> list[np.ndarray]:
        return self._pipeline.crop([photographs[n] for n, _ in places], [one.box for _, one in places], size)

    def _predict_candidates(
        self, photographs: Sequence[Pyramid], candidates: Sequence[Sequence[Candidate]], least: float = -np.inf
    ) -> list[list[FacePrediction]]:
        """Run both stages on the crops of candidates; return those that are at least so sure."""
        faces: list[list[FacePrediction]] = [[] for _ in photographs]
        every = _places(candidates)
        for start in range(0, len(every), _TOGETHER):
            places = every[start : start + _TOGETHER]
            crops = self._crops(photographs, places)
            located = self._pipeline.locate(crops)
            labelled = self._pipeline.label(crops, [one.box for _, one in places], located.centres)
            for (n, candidate), face, *seen in zip(places, labelled, *located, strict=True):
                prediction = _prediction(candidate, face, *seen)
                if prediction.sureness >= least:
                    faces[n].append(prediction)
        return faces


#: Number of a photograph, and a candidate in it.
_Place = tuple[int, Candidate]


def _places(candidates: Sequence[Sequence[Candidate]]) -> list[_Place]:
    return [(n, one) for n, own in enumerate(candidates) for one in own]


def _prediction(
    candidate: Candidate, face: FaceMaps, centres: np.ndarray, found: np.ndarray, coarse: np.ndarray
) -> FacePrediction:
    """Build the prediction of a crop from its labels and from what stage 1 saw (`Located`)."""
    seen = refine(candidate, centres, found)
    misfit = np.inf if seen is None else seen.misfit
    return FacePrediction(face, agreement(coarse, face.labels), candidate.score, misfit)


def _open(source: "str | os.PathLike | np.ndarray | Image.Image") -> Pyramid:
    if isinstance(source, str | os.PathLike):
        return Pyramid.open(Path(source))
    return Pyramid(as_photograph(source))


def _most_sure(faces: list[FacePrediction], shape: tuple[int, int] | None) -> list[FacePrediction]:
    """Return the faces without duplicates, the surest first; with a photograph's `shape`, only the most prominent."""
    sure = sorted(faces, key=lambda face: -face.sureness)
    kept = [sure[i] for i, *_ in nms([one.face.box for one in sure], _OVERLAPPING)]
    if shape is None or not kept:
        return kept
    return [max(kept, key=lambda one: one.sureness * prominence(one.face.box, shape) ** 0.5)]


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
