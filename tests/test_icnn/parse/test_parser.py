"""Parser: are faces of any size found, parsed and described where they are, and nothing where there is none?"""

import numpy as np
import pytest
from PIL import Image
from stubs import coloured_face, grown, oracle, usual_layout

import icnn
from icnn.classes import PARTS
from icnn.data.face_box import CROP_SIZE, TYPICAL_LENGTH, Box
from icnn.data.images import as_photograph
from icnn.data.pyramid import Pyramid
from icnn.errors import InputError
from icnn.evaluate.metrics import confusion, f_measures
from icnn.model.centres import part_centres
from icnn.model.pipeline import Located
from icnn.parse.parser import FaceParser, box_of
from icnn.parse.search import (
    DUPLICATE,
    USUAL,
    Candidate,
    agreement,
    nms,
    overlap,
    propose_centred,
    refine,
)

MIDDLE = (CROP_SIZE - 1) / 2


@pytest.fixture
def parser(monkeypatch):
    """A parser whose networks know the coloured faces, and whose finder does not."""
    monkeypatch.setattr("icnn.parse.parser.load_pipeline", lambda *_: oracle())
    monkeypatch.setattr(FaceParser, "_propose", lambda *_: [])
    return FaceParser(backend="numpy")


def true_box(shape=(256, 256), middle=(133, 125)):
    """The box of a `coloured_face`: where the usual face would have its parts."""
    centres = part_centres(coloured_face(shape, middle).labels())
    return refined(Box(MIDDLE, MIDDLE, TYPICAL_LENGTH), centres)


def refined(box, centres, found=None):
    candidate = refine(Candidate(box), centres, np.ones(6, bool) if found is None else found)
    assert candidate is not None
    return candidate.box


def corner_box(box):
    return box.x + 0.5 - box.length / 2, box.y + 0.5 - box.length / 2, box.length, box.length


def score(truth, labels):
    return f_measures(confusion(truth, labels))["overall_micro"]


def in_front_of_grey(face, shape, corner):
    """A photograph (H, W) with a face in it, and its labels."""
    pixels, labels = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8)
    there = tuple(slice(start, start + length) for start, length in zip(corner, face.image.shape, strict=False))
    pixels[there], labels[there] = face.image, face.labels()
    return pixels, labels


# ---------------------------------------------------------------- one face, found


@pytest.mark.parametrize(
    ("shape", "side", "corner"),
    [
        ((256, 256), 256, (0, 0)),
        ((128, 128), 128, (0, 0)),
        ((900, 700), 512, (120, 90)),
        ((600, 900), 256, (170, 330)),
        ((1000, 600), 200, (250, 190)),
        ((400, 400), 400, (0, 0)),
    ],
)
def test_a_roughly_centred_face_of_any_size_is_found_and_parsed(parser, shape, side, corner):
    photograph, truth = in_front_of_grey(grown(coloured_face(), (side, side)), shape, corner)
    result = parser.parse(photograph)
    assert result.labels.shape == shape and result.labels.dtype == np.uint8
    assert score(truth, result.labels) > 0.9
    (face,) = result.faces
    x, y, width, height = face.box
    expected = true_box().length * side / 256
    assert width == height == pytest.approx(expected, rel=0.1)
    own = true_box()
    centre = np.array([own.x, own.y]) * side / 256 + corner[::-1]
    assert (x + width / 2, y + height / 2) == pytest.approx(centre, abs=0.1 * expected)


def test_parts_are_described_as_they_are_labelled(parser):
    result = parser.parse(coloured_face().image)
    (face,) = result.faces
    assert list(face.parts) == list(PARTS[1:])
    for part, name in enumerate(PARTS[1:], 1):
        y, x = np.nonzero(result.labels == part)
        described = face.parts[name]
        assert (described.id, described.pixels) == (part, x.size) and x.size
        assert described.box == (x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1)
        assert described.center == (np.median(x), np.median(y))
        assert 0.9 < described.confidence <= 1
    assert 0.7 < face.agreement <= 1


def test_a_part_that_is_not_there_has_no_pixels_and_no_place(parser):
    result = parser.parse(coloured_face(missing=(7,)).image, [corner_box(true_box())])
    lost = result.faces[0].parts["inner_mouth"]
    assert (lost.pixels, lost.box, lost.center, lost.confidence) == (0, None, None, 0)
    assert result.faces[0].parts["upper_lip"].pixels


@pytest.mark.parametrize("shape", [(256, 256), (1, 1), (3, 500), (40, 40)])
def test_nothing_is_found_where_there_is_nothing(parser, shape):
    result = parser.parse(np.full((*shape, 3), 60, np.uint8))
    assert result.faces == [] and result.labels.shape == shape and not result.labels.any()
    probabilities = result.probabilities()
    assert (probabilities[..., 0] == 1).all() and not probabilities[..., 1:].any()


def test_stages_that_see_different_things_are_no_face(parser):
    """Stage 1 sees a face everywhere, stage 2 only half of its parts."""
    networks = parser._pipeline.networks
    networks["eyebrow"] = networks["eye"] = networks["nose"] = lambda images: np.stack(
        [np.ones((len(images), 64, 64)), np.zeros((len(images), 64, 64))], 1
    )
    assert parser.parse(coloured_face().image).faces == []


def test_probabilities_are_those_of_the_labels(parser):
    photograph, _ = in_front_of_grey(coloured_face(), (300, 400), (20, 70))
    result = parser.parse(photograph)
    probabilities = result.probabilities()
    assert probabilities.shape == (300, 400, 9) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-3)
    assert (probabilities.argmax(-1) == result.labels).all() and result.labels.any()


# ---------------------------------------------------------------- faces that are given


def test_a_face_is_parsed_where_it_is_said_to_be(parser):
    face = coloured_face()
    photograph, truth = in_front_of_grey(face, (700, 900), (400, 600))
    own = true_box()
    box = Box(own.x + 600, own.y + 400, own.length)
    result = parser.parse(photograph, [corner_box(box)])
    assert score(truth, result.labels) > 0.9
    assert result.faces[0].box == pytest.approx(corner_box(box))


def test_of_two_faces_on_one_spot_the_first_is_labelled(parser):
    photograph = coloured_face().image
    own = true_box()
    other = Box(own.x + 6, own.y, own.length)
    alone = parser.parse(photograph, [corner_box(other)])
    both = parser.parse(photograph, [corner_box(own), corner_box(other)])
    first = parser.parse(photograph, [corner_box(own)])
    assert len(both.faces) == 2 and both.faces[1].parts == alone.faces[0].parts
    assert (both.labels == np.where(first.labels > 0, first.labels, alone.labels)).all()


@pytest.mark.parametrize("middle", [(20, 128), (240, 120), (128, 22), (110, 238)])
def test_a_face_that_the_border_cuts_is_parsed_as_far_as_it_is_seen(parser, middle):
    face = coloured_face(middle=middle)
    own = true_box()
    box = Box(own.x + middle[0] - 133, own.y + middle[1] - 125, own.length)
    result = parser.parse(face.image, [corner_box(box)])
    assert score(face.labels(), result.labels) > 0.9


def test_photographs_parsed_together_do_not_disturb_each_other(parser):
    photographs = [
        coloured_face().image,
        np.zeros((50, 70, 3), np.uint8),
        in_front_of_grey(grown(coloured_face(), (500, 500)), (700, 600), (90, 40))[0],
    ]
    for photograph, together in zip(photographs, parser.parse_photographs(photographs), strict=True):
        alone = parser.parse(photograph)
        assert (alone.labels == together.labels).all() and alone.faces == together.faces


# ---------------------------------------------------------------- faces that are detected


def test_detected_faces_are_all_parsed_the_surest_first(parser, monkeypatch):
    """The finder's boxes are only roughly right, and some are no faces."""
    face = coloured_face()
    photograph, truth = np.zeros((300, 700, 3), np.uint8), np.zeros((300, 700), np.uint8)
    for left in (10, 400):
        photograph[20:276, left : left + 256], truth[20:276, left : left + 256] = face.image, face.labels()
    own = true_box()
    rough = [
        Box(own.x + 15, own.y + 30, 0.85 * own.length),
        Box(own.x + 400, own.y + 12, 1.15 * own.length),
        Box(own.x + 404, own.y + 20, own.length),  # the same once more
        Box(340, 200, 40),
    ]
    monkeypatch.setattr(FaceParser, "_propose", lambda *_: [Candidate(box, 0.9) for box in rough])
    result = parser.parse(photograph, detect=True)
    assert len(result.faces) == 2
    assert sorted(round(one.box[0], -2) for one in result.faces) == pytest.approx([0, 500], abs=150)
    assert score(truth, result.labels) > 0.85


# ---------------------------------------------------------------- what comes in


def test_any_picture_is_taken():
    image = coloured_face().image
    expected = as_photograph(image)
    assert expected is image
    assert (as_photograph(Image.fromarray(image)) == image).all()
    transparent = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    assert (as_photograph(transparent) == image).all()
    grey = image[..., 0]
    assert (as_photograph(grey) == grey[..., None]).all()
    assert as_photograph(Image.fromarray(image).convert("P")).shape == image.shape


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("face.jpg", "PIL image"),
        (np.zeros((4, 4, 3)), "float64"),
        (np.zeros((4, 4, 2), np.uint8), "(4, 4, 2)"),
        (np.zeros((0, 4, 3), np.uint8), "pixels"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_picture_is_refused(image, words):
    with pytest.raises(InputError) as error:
        as_photograph(image)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "numbers", [(1, 2, 3), (0, 0, 5, 50), (300, 0, 50, 50), (0, -60, 50, 50), (0, 0, float("nan"), 50), ()]
)
def test_what_is_no_box_is_refused(numbers):
    with pytest.raises(InputError, match="expected a face as x, y, width, height"):
        box_of(numbers, (200, 300))


def test_boxes_and_detection_exclude_each_other(parser):
    with pytest.raises(InputError, match="both"):
        parser.parse(coloured_face().image, [(0, 0, 100, 100)], detect=True)


def test_the_package_brings_the_parser():
    assert icnn.FaceParser is FaceParser
    with pytest.raises(AttributeError, match="nothing"):
        _ = icnn.nothing


# ---------------------------------------------------------------- boxes


@pytest.mark.parametrize(("x", "y", "length"), [(127.5, 127.5, 140), (300, 80, 90), (60, 500, 700)])
def test_a_box_moves_onto_the_face_in_its_square(x, y, length):
    """A usual face, seen in the square of a box that is beside it and of another size."""
    truth, rough = Box(x, y, length), Box(x + 0.1 * length, y - 0.15 * length, 1.2 * length)
    photograph = (USUAL - MIDDLE) * (truth.length / TYPICAL_LENGTH) + (truth.x, truth.y)
    square = (photograph - (rough.x, rough.y)) * (TYPICAL_LENGTH / rough.length) + MIDDLE
    found = np.ones(6, bool)
    assert corner_box(refined(rough, square, found)) == pytest.approx(corner_box(truth))
    found[[1, 4]] = False
    square[[1, 4]] = 0
    assert corner_box(refined(rough, square, found)) == pytest.approx(corner_box(truth))
    found[2] = False
    assert refine(Candidate(rough), square, found) is None


def test_parts_that_lie_as_in_no_face_move_no_box():
    box, found = Candidate(Box(100, 100, 100)), np.ones(6, bool)
    assert refine(box, USUAL[:, ::-1], found) is None  # lying
    assert refine(box, 255 - USUAL, found) is None  # upside down
    assert refine(box, MIDDLE + (USUAL - MIDDLE) / 10, found) is None  # in a spot


def test_a_square_shows_the_face_as_large_as_in_training():
    face = coloured_face()
    own = true_box()
    double = Box(2 * own.x + 0.5, 2 * own.y + 0.5, 2 * own.length)
    square, plain = oracle().crop([Pyramid(grown(face, (512, 512)).image), Pyramid(face.image)], [double, own])
    assert square.dtype == np.uint8 and square.shape == (CROP_SIZE, CROP_SIZE, 3)
    assert np.mean(np.abs(square.astype(int) - plain) > 100) < 0.01
    centres = part_centres(coloured_face(middle=(133, 125)).labels())
    inside = (centres - (own.x, own.y)) * (TYPICAL_LENGTH / own.length) + MIDDLE
    assert np.abs(inside - USUAL).max() < 16, "the stub's face is about a face"


@pytest.mark.parametrize(("aside", "rounds"), [(0, 1), (0.1, 1), (1, 3)])
def test_a_box_that_lies_on_its_face_is_not_refined_again(parser, aside, rounds):
    """Stage 1 sees the face where it should be in every crop of 64 pixels, or that much aside."""
    counts, centres = [], (USUAL + 0.5) / 4 - 0.5 + (aside, 0)

    def locate(crops):
        counts.append(len(crops))
        return Located(centres[None], np.ones((1, 6), bool), np.zeros((1, 64, 64), np.uint8))

    parser._pipeline.locate = locate
    (found,) = parser._refine([Pyramid(coloured_face().image)], [[Candidate(true_box())]], ((9, np.inf),) * 3)
    assert len(found) == 1 and counts == [1] * rounds


def test_boxes_that_are_one_are_kept_once():
    boxes = [Box(50, 50, 100), Box(52, 50, 101), Box(150, 50, 100), Box(50, 50, 50)]
    assert nms(boxes, DUPLICATE) == [[0, 1], [2], [3]]
    assert overlap(boxes[0], boxes[2:]) == pytest.approx([0, 0.25])
    assert nms([], DUPLICATE) == [] and overlap(boxes[0], []).shape == (0,)


def test_proposed_boxes_lie_in_the_photograph():
    for shape in ((100, 300), (300, 100)):
        for box in propose_centred(shape):
            assert 0 < box.length <= 100 and box.x == (shape[1] - 1) / 2 and 0 < box.y < shape[0]


def test_agreement_of_equal_and_of_different_labels():
    coarse = np.zeros((64, 64), np.uint8)
    coarse[10:20, 10:20], coarse[30:40, 30:40] = 1, 5
    fine = np.kron(coarse, np.ones((4, 4), np.uint8))
    assert agreement(coarse, fine) == 1
    fine[fine == 5] = 6
    assert agreement(coarse, fine) == pytest.approx(1 / 3)  # of three parts that either sees, one alike
    assert agreement(np.zeros_like(coarse), np.zeros_like(fine)) == 0


def test_the_usual_layout_is_about_that_of_the_stub():
    assert np.abs(usual_layout() * CROP_SIZE - 0.5 - USUAL).max() < 24


# ---------------------------------------------------------------- faces at any angle, one after the other


@pytest.mark.parametrize("degrees", [-30, 45, 90, 180])
def test_a_turned_face_is_parsed_upright(parser, monkeypatch, degrees):
    """The finder's angle is roughly right; labels are as good as those of the upright face."""
    face = coloured_face()
    own, middle = true_box(), 349.5
    photograph, truth = in_front_of_grey(face, (700, 700), (222, 222))
    turned, expected = (
        np.asarray(Image.fromarray(pixels).rotate(degrees, Image.Resampling.NEAREST)) for pixels in (photograph, truth)
    )
    turn = Box(0, 0, 1, degrees).axes
    x, y = turn @ (own.x + 222 - middle, own.y + 222 - middle) + middle
    rough = Box(x + 8, y - 5, 1.1 * own.length, degrees + 12)
    monkeypatch.setattr(FaceParser, "_propose", lambda *_: [Candidate(rough, 0.9)])
    result = parser.parse(turned)
    assert score(expected, result.labels) > 0.85
    (found,) = result.faces
    assert abs((found.roll - degrees + 180) % 360 - 180) < 6
    assert (found.box[0] + found.box[2] / 2, found.box[1] + found.box[3] / 2) == pytest.approx((x, y), abs=8)


def test_the_most_prominent_of_sure_faces_is_parsed(parser, monkeypatch):
    small, large = grown(coloured_face(), (200, 200)), grown(coloured_face(), (500, 500))
    photograph = np.zeros((600, 1000, 3), np.uint8)
    photograph[:200, :200], photograph[50:550, 300:800] = small.image, large.image
    own = true_box()
    boxes = [Box((x + 0.5) * k - 0.5 + left, (y + 0.5) * k - 0.5 + top, own.length * k)
             for k, left, top in ((200 / 256, 0, 0), (500 / 256, 300, 50)) for x, y in ((own.x, own.y),)]  # fmt: skip
    monkeypatch.setattr(FaceParser, "_propose", lambda *_: [Candidate(box, 0.9) for box in boxes])
    (one,) = parser.parse(photograph).faces
    assert one.box[2] == pytest.approx(boxes[1].length, rel=0.1)
    assert len(parser.parse(photograph, detect=True).faces) == 2


def test_many_photographs_are_parsed_in_their_order(parser, tmp_path):
    images = [np.zeros((70, 50, 3), np.uint8), coloured_face().image, coloured_face(middle=(140, 120)).image]
    images += [grown(coloured_face(), (300, 300)).image] * 6
    Image.fromarray(images[1]).save(tmp_path / "a.png")
    sources = [images[0], tmp_path / "a.png", Image.fromarray(images[2]), *images[3:]]
    for image, result in zip(images, parser.parse_many(iter(sources)), strict=True):
        alone = parser.parse(image)
        assert (result.labels == alone.labels).all() and result.faces == alone.faces


def test_of_many_photographs_a_bad_one_is_named_when_its_turn_comes(parser, tmp_path):
    (tmp_path / "b.jpg").write_bytes(b"no image")
    results = parser.parse_many([coloured_face().image, str(tmp_path / "b.jpg")])
    assert next(results).faces
    with pytest.raises(InputError, match=r"b\.jpg"):
        next(results)
