"""Are the faces of a crowd found, at any place, size and angle, and few where there are none?"""

import math
from dataclasses import astuple
from itertools import pairwise

import numpy as np
import pytest

from icnn.data.face_box import Box
from icnn.data.geometry import affine
from icnn.data.resample import resize, warp
from icnn.errors import InputError
from icnn.model.finder import finder_graph
from icnn.model.weights import SHIPPED, read_parameters
from icnn.parse.finder import Finder, _merge, _pack, _spans
from icnn.parse.search import Candidate, overlap
from icnn.synthetic.faces import synthetic_faces
from icnn.train.scenes import sources_of


@pytest.fixture(scope="module")
def finder() -> Finder:
    return Finder(threads=2)


def crowd(rng: np.random.Generator) -> tuple[np.ndarray, list[Candidate]]:
    """Faces of 40 to 110 pixels at all angles, one in each cell of a grid, on a smooth background."""
    photograph = resize(rng.integers(40, 216, (4, 5, 3), dtype=np.uint8), (640, 960))
    places = []
    for number, source in enumerate(sources_of(synthetic_faces(20, 7, "testing"))[:6]):
        length, turn = rng.uniform(42, 110), rng.uniform(-180, 180)
        centre = np.array([160 + 320 * (number % 3), 160 + 320 * (number // 3)]) + rng.uniform(-40, 40, 2)
        cosine, sine = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        linear = np.array([(cosine, -sine), (sine, cosine)]) * source.length / length
        values, inside = warp(source.image, affine(linear, centre, (source.x, source.y)), photograph.shape[:2])
        photograph[inside] = values[inside]
        places.append(Candidate(Box(*centre.tolist(), length, turn + source.roll), 1.0))
    return np.rint(photograph).astype(np.uint8), places


def shared(one: Candidate, other: Candidate) -> float:
    return overlap(one.box, [other.box])[0]


def numbers(candidates: list[Candidate]) -> list[tuple[float, ...]]:
    return [(*astuple(one.box), one.score) for one in candidates]


@pytest.mark.parametrize("seed", range(4))
def test_every_face_of_a_crowd_is_found(finder, seed):
    photograph, faces = crowd(np.random.default_rng(seed))
    found = finder.find(photograph)
    turns = []
    for face in faces:
        best = max(found, key=lambda proposal: shared(proposal, face))
        assert shared(best, face) > 0.5
        turns.append(abs((best.box.roll - face.box.roll + 180) % 360 - 180))
    assert max(turns) < 50 and np.mean(turns) < 15
    assert [proposal.score for proposal in found] == sorted((p.score for p in found), reverse=True)


def test_a_face_may_fill_the_photograph_or_be_small_in_it(finder):
    (source,) = sources_of(synthetic_faces(1, 3, "testing"))
    for zoom in (0.8, 2.0, 5.3):
        shape = (round(source.image.shape[0] * zoom), round(source.image.shape[1] * zoom))
        found = finder.find(np.rint(resize(source.image, shape)).astype(np.uint8))
        face = Candidate(Box((source.x + 0.5) * zoom - 0.5, (source.y + 0.5) * zoom - 0.5, source.length * zoom))
        assert shared(found[0], face) > 0.5


def test_a_smaller_copy_gives_the_photographs_coordinates(finder):
    photograph, faces = crowd(np.random.default_rng(5))
    half = np.rint(resize(photograph, (320, 480))).astype(np.uint8)
    found = finder.find(half, smallest=60, step=2.0)
    for face in faces:
        if face.box.length > 64:
            assert max(shared(proposal, face) for proposal in found) > 0.5


def test_the_number_of_proposals_is_bounded_and_so_is_their_size(finder):
    photograph, _ = crowd(np.random.default_rng(6))
    assert len(finder.find(photograph, most=2)) == 2
    assert all(proposal.box.length > 60 for proposal in finder.find(photograph, smallest=80))


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (1, 4000), (40, 800), (800, 40), (600, 700)])
@pytest.mark.parametrize("value", [0, 255, 90])
def test_a_photograph_of_one_colour_has_no_face(finder, shape, value):
    assert finder.find(np.full((*shape, 3), value, np.uint8)) == []


def test_a_view_of_a_larger_array_is_taken(finder):
    photograph, _ = crowd(np.random.default_rng(8))
    assert finder.find(photograph[:, ::-1]) == finder.find(photograph[:, ::-1].copy())


def test_any_number_of_threads_finds_the_same(finder):
    photograph, _ = crowd(np.random.default_rng(9))
    assert Finder(threads=1).find(photograph) == finder.find(photograph)


def test_backends_find_the_same(finder):
    photograph, _ = crowd(np.random.default_rng(9))
    other = Finder(backend="numpy").find(photograph, smallest=80)
    np.testing.assert_allclose(numbers(other), numbers(finder.find(photograph, smallest=80)), rtol=1e-2, atol=0.5)


@pytest.mark.parametrize("damage", [b"", b"no weights"])
def test_damaged_weights_are_named(tmp_path, damage):
    (tmp_path / "finder.safetensors").write_bytes(damage)
    with pytest.raises(InputError, match=r"finder\.safetensors"):
        read_parameters(tmp_path, "finder", finder_graph(192))
    with pytest.raises(InputError, match=r"eye\.safetensors"):
        read_parameters(SHIPPED, "eye", finder_graph(192))


def test_regions_cover_each_level_and_do_not_overlap_in_their_tiles():
    shapes = [(500, 700), (350, 495), (88, 124), (44, 62), (9, 700), (192, 192), (193, 20)]
    covered = [np.zeros(shape, bool) for shape in shapes]
    regions = _pack(shapes)
    used = np.zeros((regions[-1].tile + 1, 192, 192), bool)
    for level, top, left, height, width, tile, row, column in regions:
        covered[level][top : top + height, left : left + width] = True
        place = used[tile, row : row + height, column : column + width]
        assert place.shape == (height, width) and not place.any()
        place[...] = True
        assert row % 4 == 0 and column % 4 == 0
    assert all(level.all() for level in covered)
    for side in (192, 193, 1000):
        spans = _spans(side)
        assert all(a + n - b >= 40 for (a, n), (b, _) in pairwise(spans))


def test_proposals_of_one_face_are_merged_and_others_stay():
    face, near, inside, aside = (
        Candidate(Box(100, 100, 50, 178), 0.9), Candidate(Box(104, 100, 60, -178), 0.9),
        Candidate(Box(110, 110, 15, 0), 0.8), Candidate(Box(300, 100, 50, 0), 0.7),
    )  # fmt: skip
    merged = _merge([aside, inside, near, face])
    np.testing.assert_allclose(numbers(merged[1:]), numbers([inside, aside]))
    assert numbers(merged)[0][:3] == pytest.approx((102, 100, math.sqrt(50 * 60)))
    assert abs(merged[0].box.roll) == pytest.approx(180) and merged[0].score == 0.9
