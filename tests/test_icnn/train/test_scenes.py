"""Do the scenes of the face finder's training say where faces are, and how they are turned?"""

import math

import numpy as np
import pytest

from icnn.data.folder import Face
from icnn.synthetic.faces import synthetic_faces
from icnn.train.scenes import SIZE, Scene, Source, _label, _Placed, draw_scene, negative_of, sources_of, turned


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return sources_of(synthetic_faces(12, 0, "exemplars"))


def test_a_source_has_the_face_in_its_box_and_its_roll(sources):
    (face,) = synthetic_faces(1, 0, "exemplars")
    quarter = Face("turned", np.ascontiguousarray(np.rot90(face.pixels)))
    (turned_source,) = sources_of([quarter])
    assert sources[0].length == pytest.approx(64)
    assert abs(sources[0].x - 64) < 20 and abs(sources[0].roll) < 30
    assert turned_source.roll - sources[0].roll == pytest.approx(90, abs=10)


def test_a_face_without_parts_is_left_out():
    assert sources_of([Face("empty", np.zeros((32, 32, 12), np.uint8))]) == []


def test_the_same_generator_gives_the_same_scene(sources):
    one, other = (draw_scene(sources, np.random.default_rng(3)) for _ in range(2))
    assert all((a == b).all() for a, b in zip(one, other, strict=True))
    assert one.values.shape == (SIZE, SIZE, 3) and one.values.dtype == np.uint8


def test_scenes_have_faces_at_all_angles_and_without_sources_of_faces_none(sources):
    scenes = [draw_scene(sources, np.random.default_rng(n)) for n in range(60)]
    assert set(np.unique([scene.labels for scene in scenes])) == set(range(9))
    without = [negative_of(np.full((900, 700, 3), 90, np.uint8))]
    assert without[0].image.shape == (640, 498, 3)
    for n in range(20):
        scene = draw_scene(without, np.random.default_rng(n))
        assert not scene.labels.any() and scene.weights.all()


@pytest.mark.parametrize(
    ("length", "visible", "label", "weight"),
    [(24, 1, 3, 1), (29, 1, 3, 1), (34, 1, 0, 0), (50, 1, 0, 1), (14, 1, 0, 1), (24, 0.6, 0, 0), (24, 0.2, 0, 1)],
)  # fmt: skip
def test_cells_in_the_middle_of_a_visible_face_of_the_right_size_are_labelled(length, visible, label, weight):
    owner = np.zeros((SIZE, SIZE), int)
    owner[: round(49.5 + (visible - 0.5) * 0.9 * length * (1 if visible < 1 else 9))] = 1
    labels, weights = _label([_Placed(49.5, 49.5, length, 95, 1)], owner)
    assert labels[12, 12] == label and weights[12, 12] == weight
    assert labels[0, 0] == 0 and weights[0, 0] == 1


def test_turning_a_scene_turns_its_labels():
    """The label of a marked face follows where the top of the scene's picture goes."""
    values, labels = np.zeros((SIZE, SIZE, 3), np.uint8), np.zeros((SIZE // 4, SIZE // 4), np.int32)
    labels[12, 12] = 2  # 45 degrees: up points to the upper left
    values[:40, :40] = 200
    seen = set()
    for seed in range(40):
        scene = turned(Scene(values, labels, np.ones_like(labels, np.float32)), np.random.default_rng(seed))
        (cell,) = np.argwhere(scene.labels)
        assert tuple(cell) in {(11, 11), (11, 12), (12, 11), (12, 12)}
        roll = math.radians(45 * (scene.labels.max() - 1))
        bright = scene.values.mean(-1) > scene.values.mean()
        row, column = np.argwhere(bright).mean(0) - (SIZE - 1) / 2
        assert math.cos(math.atan2(-column, -row) - roll) > 0.99
        seen.add(int(scene.labels.max()))
    assert seen == {2, 4, 6, 8}
