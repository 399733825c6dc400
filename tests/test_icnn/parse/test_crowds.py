"""Are the faces of unusual photographs labelled: crowds, panoramas, cheek to cheek, at the border, none?"""

import numpy as np
import pytest

from icnn.classes import PARTS
from icnn.data.resample import resize
from icnn.parse.parser import FaceParser
from icnn.parse.results import ParseResult
from icnn.synthetic.faces import synthetic_faces

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def parser() -> FaceParser:
    return FaceParser(threads=2)


@pytest.fixture(scope="module")
def squares() -> list[np.ndarray]:
    """Synthetic faces with what is around them, (256, 256, 3)."""
    return [face.image for face in synthetic_faces(20, 7, "testing")]


def side_by_side(squares: list[np.ndarray], count: int, columns: int, side: int) -> np.ndarray:
    """A photograph of faces in rows, (rows side, columns side, 3) uint8."""
    small = [np.rint(resize(square, (side, side))).astype(np.uint8) for square in squares]
    chosen = [small[n % len(small)] for n in range(count)]
    return np.vstack([np.hstack(chosen[n : n + columns]) for n in range(0, count, columns)])


def cells(result: ParseResult, side: int) -> set[tuple[int, int]]:
    """The squares in which the middles of boxes lie."""
    boxes = [face.box for face in result.faces]
    return {(int((x + width / 2) // side), int((y + height / 2) // side)) for x, y, width, height in boxes}


def test_a_crowd_of_two_hundred(parser, squares):
    result = parser.parse(side_by_side(squares, 200, 20, 96), detect=True)
    assert len(result.faces) == len(cells(result, 96)) >= 190
    assert all(set(face.parts) == set(PARTS[1:]) for face in result.faces)


@pytest.mark.parametrize("count", [20, 40])
def test_a_panorama(parser, squares, count):
    """20 and 40 times as wide as high: the faces are half as high as it."""
    result = parser.parse(side_by_side(squares, count, count, 128), detect=True)
    assert len(result.faces) == count and len(cells(result, 128)) == count


def test_two_people_cheek_to_cheek(parser, squares):
    """Cut so close that eyebrows and cheeks touch the border between them; each keeps its own parts."""
    left, right = (square[:, 56:200] for square in squares[:2])
    result = parser.parse(np.hstack([left, right]), detect=True)
    first, second = sorted(result.faces, key=lambda face: face.box[0])
    for face, low, high in ((first, 0, 144), (second, 144, 288)):
        for part in face.parts.values():
            if part.pixels:
                assert low - 4 <= part.center[0] <= high + 4


@pytest.mark.parametrize("turned", [False, True])
def test_a_face_cut_by_the_border(parser, squares, turned):
    """Half of it is outside: whatever is found lies inside, and the labels are as large as the photograph."""
    half = squares[3][:, 128:] if turned else squares[3][128:]
    for detect in (False, True):
        result = parser.parse(half, detect=detect)
        assert result.labels.shape == half.shape[:2]
        for face in result.faces:
            assert sum(part.pixels for part in face.parts.values()) <= half.shape[0] * half.shape[1]


@pytest.mark.parametrize("detect", [False, True])
def test_noise_has_no_face(parser, rng, detect):
    assert parser.parse(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8), detect=detect).faces == []
