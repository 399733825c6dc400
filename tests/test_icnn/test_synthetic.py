"""Synthetic faces: reproducible, well labelled, like real ones, and beyond position or colour alone?"""

from dataclasses import dataclass

import numpy as np
import pytest

from icnn.classes import PARTS
from icnn.data.folder import SmithFolder
from icnn.errors import InputError
from icnn.evaluate.baselines import ColourClassifier, ConstantPrior
from icnn.synthetic import __main__ as synthetic
from icnn.synthetic import faces
from icnn.synthetic.faces import STREAMS, draw_face, face_generator, synthetic_faces
from icnn.synthetic.shapes import Drawn, normal, uniform

#: Median pixels of each part in the photographs of Helen at this scale, and the medians of its centre.
HELEN_AREA = (290, 146, 277, 147, 1168, 224, 112, 336)
HELEN_CENTRE = ((93, 71), (97, 88), (159, 70), (156, 87), (127, 113), (128, 145), (127, 150), (127, 157))


@pytest.fixture(scope="module")
def exemplars():
    return synthetic_faces(300, 0, "exemplars")


@pytest.fixture(scope="module")
def testing():
    return synthetic_faces(60, 0, "testing")


@pytest.fixture(scope="module")
def centres(testing):
    """(faces, 9, 2): median x and y of every part, NaN where it is outside the image."""
    centres = np.full((len(testing), len(PARTS), 2), np.nan)
    for face, row in zip(testing, centres, strict=True):
        labels = face.labels()
        for part in np.unique(labels):
            y, x = np.nonzero(labels == part)
            row[part] = np.median(x), np.median(y)
    return centres


def test_proportions_are_drawn_in_the_order_of_their_declaration():
    @dataclass(frozen=True)
    class Shape(Drawn):
        second: float = normal(0.5, 2)
        first: float = uniform(3, 4)
        constant: float = 0.25

    rng = np.random.default_rng(0)
    assert Shape.draw(np.random.default_rng(0)) == Shape(rng.normal(0.5, 2), rng.uniform(3, 4), 0.25)


def test_same_generator_state_gives_same_bytes():
    first, second, other = (draw_face(np.random.default_rng(seed)) for seed in (5, 5, 6))
    for a, b, c in zip(first, second, other, strict=True):
        assert a.tobytes() == b.tobytes() != c.tobytes()


def test_a_face_does_not_depend_on_the_count(testing):
    for few, many in zip(synthetic_faces(3, 0, "testing"), testing, strict=False):
        assert few.name == many.name
        np.testing.assert_array_equal(few.pixels, many.pixels)


def test_no_face_is_in_two_streams_or_seeds():
    images = [draw_face(face_generator(seed, stream, index))[0].tobytes()
              for seed in (0, 1) for stream in STREAMS for index in range(2)]  # fmt: skip
    assert len(set(images)) == len(images)


@pytest.mark.parametrize("size", [64, 256, 300])
def test_shapes_and_types(size):
    image, maps = draw_face(np.random.default_rng(0), size)
    assert (image.shape, maps.shape) == ((size, size, 3), (size, size, 9))
    assert image.dtype == maps.dtype == np.uint8
    assert (maps.argmax(2) > 0).mean() == pytest.approx(0.04, abs=0.03)


def test_faces_are_as_the_loader_gives_them(testing):
    assert [face.name for face in testing[:2]] == ["synthetic_00000", "synthetic_00001"]
    for face in testing:
        assert face.pixels.shape == (256, 256, 12)
        assert face.pixels.dtype == np.uint8
        assert face.pixels.flags.c_contiguous


def test_maps_sum_to_255_and_are_soft(testing):
    for face in testing:
        assert (face.maps.sum(2, dtype=int) == 255).all()
        assert ((face.maps[..., 1:] > 0) & (face.maps[..., 1:] < 255)).any()


def test_parts_are_where_a_face_has_them(centres):
    assert np.isfinite(centres).all(axis=(1, 2)).mean() >= 0.95  # a few faces are cut by the border
    (_, brow_l, eye_l, brow_r, eye_r, nose, upper, inner, lower) = np.moveaxis(centres, 1, 0)
    x, y = 0, 1
    for first, then, axis in (
        (brow_l, brow_r, x), (eye_l, eye_r, x), (eye_l, nose, x), (nose, eye_r, x),
        (brow_l, eye_l, y), (brow_r, eye_r, y), (nose, upper, y), (upper, inner, y), (inner, lower, y),
    ):  # fmt: skip
        distance = (then - first)[:, axis]
        assert (distance[np.isfinite(distance)] > 0).mean() >= 0.97


def test_sizes_and_places_are_those_of_real_photographs(testing, centres):
    counts = np.array([np.bincount(face.labels().ravel(), minlength=9)[1:] for face in testing])
    ratio = np.median(counts, axis=0) / HELEN_AREA
    assert ((ratio > 0.4) & (ratio < 1.6)).all(), ratio
    np.testing.assert_allclose(np.nanmedian(centres[:, 1:], axis=0), HELEN_CENTRE, atol=12)
    assert (np.nanstd(centres[:, 5], axis=0) > 8).all()  # the pose varies


def test_position_or_colour_alone_fail_but_learn_something(exemplars, testing):
    for classifier in (ConstantPrior(), ColourClassifier()):
        score = classifier.fit(exemplars).score(testing)["overall_micro"]
        assert 0.05 < score < 0.45, type(classifier).__name__


def test_baselines_take_images_of_any_size(exemplars):
    image, maps = draw_face(np.random.default_rng(1), 96)
    small = type(exemplars[0])("small", np.concatenate([image, maps], axis=2))
    for classifier in (ConstantPrior(), ColourClassifier()):
        labels = classifier.fit(exemplars[:20]).predict(small)
        assert (labels.shape, labels.dtype) == ((96, 96), np.uint8)
        assert labels.any()


def test_baselines_are_exact_where_cells_decide(exemplars):
    face = exemplars[0]
    np.testing.assert_array_equal(ConstantPrior().fit([face]).predict(face), face.labels())


def test_the_folder_reads_back(tmp_path):
    root = tmp_path / "new" / "faces"
    assert synthetic.main(["--out", str(root), "--count", "25", "--seed", "3"]) == 0
    folder = SmithFolder(root)
    names = [folder.names(split) for split in ("exemplars", "tuning", "testing")]
    assert [len(split) for split in names] == [21, 2, 2]
    assert [name for split in names for name in split] == [f"synthetic_{index:05d}" for index in range(25)]
    for index, face in enumerate(folder.load_split("exemplars")[:4]):
        image, maps = draw_face(face_generator(3, "folder", index))
        np.testing.assert_array_equal(face.maps, maps)
        assert np.abs(face.image.astype(int) - image).mean() < 5  # JPEG


def test_the_folder_is_a_function_of_seed_and_index(tmp_path):
    for name, count, seed in (("a", 10, 3), ("b", 11, 3), ("c", 10, 4)):
        synthetic.main(["--out", str(tmp_path / name), "--count", str(count), "--seed", str(seed)])
    a, b, c = ((tmp_path / name / "images" / "synthetic_00009.jpg").read_bytes() for name in "abc")
    assert a == b != c


def test_80_10_10(tmp_path, monkeypatch):
    blank = np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2, 9), np.uint8)
    monkeypatch.setattr(faces, "draw_face", lambda rng: blank)
    synthetic.main(["--out", str(tmp_path), "--count", "100", "--threads", "1"])
    folder = SmithFolder(tmp_path)
    assert [len(folder.names(split)) for split in ("exemplars", "tuning", "testing")] == [80, 10, 10]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "new", "--count", "9", "--seed", "0"], "--count.*at least 10.*9"),
        (["--out", "new", "--count", "-1", "--seed", "0"], "--count.*at least 1.*-1"),
        (["--out", "new", "--seed", "0"], "--count"),
        (["--count", "10"], "--out"),
        (["--out", "new", "--count", "10", "--seed", "-1"], "--seed.*-1"),
        (["--out", "full", "--count", "10", "--seed", "0"], "--out.*empty.*full"),
        (["--out", "full/file", "--count", "10", "--seed", "0"], "--out.*folder.*file"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    with pytest.raises(InputError, match=words):
        synthetic.main(arguments)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full"]
