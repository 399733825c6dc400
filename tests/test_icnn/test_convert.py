"""Other data sets: is every face, converted, where and as large as the networks expect it, and rightly labelled?"""

import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from commands import call, refused
from PIL import ExifTags, Image, ImageDraw

import icnn.convert.__main__
import icnn.convert.formats
from icnn.classes import COLOURS, MIRRORED, PARTS
from icnn.convert.contours import draw_maps, polygons
from icnn.convert.formats import FORMATS
from icnn.data.face_box import as_seen, find_face, whole_shares
from icnn.data.folder import SPLITS, SmithFolder

#: Ellipses in the middle of 256 x 256 pixels, ids 1..8: x, y, half axes, as large as the parts are in Helen.
ELLIPSES = (
    (93, 70, 21, 5),
    (97, 87, 11, 4),
    (163, 70, 21, 5),
    (159, 87, 11, 4),
    (128, 112, 16, 23),
    (128, 146, 25, 3),
    (128, 151, 21, 2),
    (128, 158, 24, 5),
)
LAPA_IDS = np.array([0, 2, 4, 3, 5, 6, 7, 8, 9], np.uint8)
MASKS = ("", "l_brow", "l_eye", "r_brow", "r_eye", "nose", "u_lip", "mouth", "l_lip")


def drawn(side=256, scale=1.0, shift=(0, 0), roll=0.0, without=()):
    """(side, side) ids of the ellipses, scaled and rolled (degrees) about their image's middle, then moved."""
    y, x = np.mgrid[:side, :side] + 0.5 - side / 2
    x, y, angle = x - shift[0], y - shift[1], np.deg2rad(roll)
    x, y = (x * np.cos(angle) + y * np.sin(angle)) / scale + 128, (y * np.cos(angle) - x * np.sin(angle)) / scale + 128
    ids = np.zeros((side, side), np.uint8)
    for part, (cx, cy, rx, ry) in enumerate(ELLIPSES, 1):
        if part not in without:
            ids[((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1] = part
    return ids


def coloured(ids):
    """A photograph in the colours of its labels, on grey."""
    return np.where(ids[..., None] > 0, COLOURS[ids], 110).astype(np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def converted(*arguments):
    """The folder of a conversion without mistakes."""
    code, _, err = call("convert", *arguments)
    assert (code, err) == (0, "")
    return SmithFolder(arguments[arguments.index("--out") + 1])


def skips(*arguments, words, good):
    """One face is skipped for one line with all the words; the `good` others are there."""
    code, out, err = call("convert", *arguments)
    assert code == 2, err
    skipped, summary = err.splitlines()
    assert skipped.startswith("icnn.convert: skipped: "), err
    for word in words:
        assert str(word) in skipped
    assert summary == f"icnn.convert: 1 of {good + 1} faces skipped, for the reasons above"
    folder = Path(arguments[arguments.index("--out") + 1])
    names = [line.split(" , ")[1] for split in SPLITS for line in (folder / f"{split}.txt").read_text().splitlines()]
    assert len(names) == good and f"written to {folder}" in out
    assert {path.stem for path in (folder / "images").iterdir()} == set(names)


def listed(folder, split):
    return [line.split(" , ")[1] for line in (folder.root / f"{split}.txt").read_text().splitlines()]


def check_maps(face, size=256):
    assert face.pixels.shape == (size, size, 12)
    assert (face.maps.sum(axis=2, dtype=int) == 255).all()
    assert ((face.maps > 0) & (face.maps < 255)).any(), "soft at the edges"


def agreement(face):
    """Share of the labelled pixels, but for edges, at which the photograph has its label's colour."""
    sure = face.maps[..., 1:].max(axis=2) == 255
    colours = np.concatenate([[(110, 110, 110)], COLOURS[1:]]).astype(int)
    distances = np.abs(face.image[sure][:, None].astype(int) - colours).sum(axis=2)
    return (distances.argmin(axis=1) == face.labels()[sure]).mean()


# ---------------------------------------------------------------- Helen, 194 points


def arc(cx, cy, rx, ry, count, first=0.0, last=2 * np.pi):
    t = np.linspace(first, last, count, endpoint=False)
    return np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], axis=1)


def annotation(gape=5.0, start=0, backwards=False, swapped=False):
    """(194, 2) points of a face whose box, 140 pixels tall, is in the middle of 256 x 256."""

    def turned(contour):
        return np.roll(contour[::-1] if backwards else contour, start, axis=0)

    def mouth(x, up, low):  # closed, 28 points, from the left corner over the top to the right one and back
        upper = arc(128, 148, x, up, 14, np.pi, 2 * np.pi)
        return np.concatenate([upper, arc(128, 148, x, low, 14, 0, np.pi)])

    jaw = arc(128, 98, 66, 100, 41, 0, np.pi * 41 / 40)
    nose = np.stack([128 + np.linspace(-1, 1, 17) * 10, 132 - 44 * np.linspace(-1, 1, 17) ** 4], axis=1)
    eyes = [turned(arc(x, 86, 11, 4, 20)) for x in (98, 158)]
    eyebrows = [turned(arc(x, 64, 20, 6, 20)) for x in (93, 163)]
    twins = [*eyes[:: -1 if swapped else 1], *eyebrows[:: -1 if swapped else 1]]
    nose = nose[::-1] if backwards else nose
    return np.concatenate([jaw, nose, turned(mouth(25, 8, 11 + gape)), turned(mouth(21, 2, gape)), *twins])


def placed(points, scale=1.0, shift=(0.0, 0.0), roll=0.0):
    angle = np.deg2rad(roll)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (points - 128) @ turn * scale + 128 + shift


def write_annotation(path, name, points):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([name, *(f"{x:.6f} , {y:.6f}" for x, y in points)]) + "\n")


def painted(points, size):
    """A photograph of (width, height) in the colours of the labels that the points should get."""
    image = Image.new("RGB", size, (110, 110, 110))
    for part, outline in polygons(points):
        ImageDraw.Draw(image).polygon(outline.ravel().tolist(), fill=tuple(COLOURS[part].tolist()))
    return np.asarray(image)


@pytest.fixture
def helen(tmp_path):
    """Faces 7_1, 7_2, 8_1 and 9_1, the photographs in folders of their own; no lists."""
    for number, (name, scale) in enumerate([("7_1", 3.0), ("7_2", 2.5), ("8_1", 2.0), ("9_1", 1.0)], 1):
        points = placed(annotation(), scale, (250, 200), 10 * number - 20)
        save(tmp_path / "helen" / f"helen_{number}" / f"{name}.jpg", painted(points, (700, 640)), quality=95)
        write_annotation(tmp_path / "helen" / "annotation" / f"{number}.txt", name, points)
    return tmp_path / "helen"


def part_at(maps, x, y):
    """Name of the part at a point in the coordinates of `annotation`, whose box lies in the middle of the image."""
    return PARTS[maps[round(y - 0.5), round(x - 0.5)].argmax()]


def test_every_contour_becomes_its_part():
    maps = draw_maps(annotation() - 0.5, 256)
    assert maps.dtype == np.uint8 and (maps.sum(axis=2, dtype=int) == 255).all()
    for x, y, part in (
        (93, 64, "left_eyebrow"), (163, 64, "right_eyebrow"), (98, 86, "left_eye"), (158, 86, "right_eye"),
        (128, 120, "nose"), (128, 143, "upper_lip"), (128, 150, "inner_mouth"), (128, 158, "lower_lip"),
        (105, 147, "upper_lip"), (151, 147, "upper_lip"), (105, 149, "lower_lip"), (151, 149, "lower_lip"),
        (128, 75, "background"), (128, 138, "background"), (128, 180, "background"),
    ):  # fmt: skip
        assert part_at(maps, x, y) == part, (x, y)
    area = maps[..., 1:].sum(axis=(0, 1), dtype=int) / 255
    expected = [np.pi * 20 * 6, np.pi * 11 * 4, np.pi * 20 * 6, np.pi * 11 * 4]
    np.testing.assert_allclose(area[:4], expected, rtol=0.03)  # a polygon lies within its ellipse
    inner, outer = (np.pi / 2 * x * y for x, y in ((21, 7), (25, 24)))
    assert area[5:].sum() == pytest.approx(outer, rel=0.02)
    assert area[6] == pytest.approx(inner, rel=0.05)
    y, x = np.indices((256, 256))
    assert (maps[..., 2] * x).sum() / maps[..., 2].sum() == pytest.approx(97.5, abs=0.05)
    assert (maps[..., 2] * y).sum() / maps[..., 2].sum() == pytest.approx(85.5, abs=0.05)


def test_the_nose_is_closed_between_the_inner_corners_of_the_eyes():
    maps = draw_maps(annotation() - 0.5, 256)
    assert [part_at(maps, 128, y) for y in (85, 87.5)] == ["background", "nose"]
    _, nose = polygons(annotation())[4]
    np.testing.assert_allclose(nose[-1], (128, 86), atol=0.2)


@pytest.mark.parametrize("start", [0, 1, 9, 14, 20])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_where_a_contour_starts_and_which_way_it_runs_do_not_matter(start, backwards, swapped):
    expected = draw_maps(annotation(), 256)
    maps = draw_maps(annotation(start=start, backwards=backwards, swapped=swapped), 256)
    assert np.abs(maps.astype(int) - expected).max() <= 8


@pytest.mark.parametrize("gape", [0, 5, 70])
@pytest.mark.parametrize("roll", [-50, 0, 50, 170])
def test_lips_are_parted_at_their_corners_in_a_tilted_head_and_an_open_mouth(gape, roll):
    maps = draw_maps(placed(annotation(gape), roll=roll), 300)

    def at(x, y):
        ((x, y),) = placed(np.array([(x, y)], float), roll=roll)
        return PARTS[maps[round(y), round(x)].argmax()]

    assert at(128, 143) == at(110, 144) == at(146, 144) == "upper_lip"
    assert at(128, 153 + gape) == at(112, 152 + 0.6 * gape) == at(144, 152 + 0.6 * gape) == "lower_lip"
    assert maps[..., 7].any(), "closed lips keep a sliver of the inner mouth"
    if gape:
        assert at(128, 148 + gape / 2) == "inner_mouth"


def test_shares_keep_their_sum_when_they_are_rounded():
    shares = np.random.default_rng(0).dirichlet(np.full(9, 0.3), (50, 60)) * 255
    maps = whole_shares(shares)
    assert (maps.sum(axis=2, dtype=int) == 255).all()
    assert np.abs(maps - shares).max() <= 1
    shares = np.zeros((1, 3, 9))
    shares[0, 1, [2, 4]] = 127.5
    shares[0, 2, [0, 2, 4]] = 0, 100, 50  # some of it outside of the photograph
    np.testing.assert_array_equal(whole_shares(shares)[0, :, [0, 2, 4]].T, [(255, 0, 0), (0, 128, 127), (105, 100, 50)])


def test_helen_faces_are_cut_out_by_their_box_and_labelled(helen, tmp_path):
    folder = converted("helen194", helen, "--out", tmp_path / "out")
    for name, roll in (("7_1", -10), ("7_2", 0), ("8_1", 10), ("9_1", 20)):
        face = folder.load(name)
        check_maps(face)
        assert agreement(face) > 0.97
        own = placed(annotation(), roll=roll)
        low, high = own.min(0), own.max(0)
        scale = 140 / max(high - low)
        expected = draw_maps((own - (low + high) / 2) * scale + 127.5, 256)
        assert (face.labels() == expected.argmax(axis=2)).mean() > 0.999


def test_the_longer_side_of_the_box_counts(tmp_path):
    points = placed(annotation() * (1.5, 1), 2, (100, 100))
    save(tmp_path / "helen" / "wide.jpg", painted(points, (800, 700)))
    write_annotation(tmp_path / "helen" / "annotation" / "1.txt", "wide", points)
    face = converted("helen194", tmp_path / "helen", "--out", tmp_path / "out").load("wide")
    columns = np.flatnonzero((face.labels() > 0).any(axis=0))
    expected = np.array([-55 * 140 / 132, 55 * 140 / 132]) + 127.5  # the outer ends of the eyebrows; the jaw has 132
    np.testing.assert_allclose(columns[[0, -1]], expected, atol=1.5)
    assert agreement(face) > 0.97


@pytest.mark.parametrize(("size", "face"), [(128, 70), (320, 140), (100, 100)])
def test_size_and_face_are_what_was_asked_for(helen, tmp_path, size, face):
    folder = converted("helen194", helen, "--out", tmp_path / "out", "--size", size, "--face", face)
    loaded = folder.load("7_2")
    check_maps(loaded, size)
    rows = np.flatnonzero((loaded.labels() == 1).any(axis=1))
    assert rows[0] == pytest.approx((size - face) / 2, abs=1), "the eyebrows' top is the top of the box"


def test_helen_without_lists_keeps_faces_of_one_photograph_together(tmp_path):
    root = tmp_path / "helen"
    for number in range(1, 301):
        write_annotation(
            root / "annotation" / f"{number}.txt", f"{1000 + number // 2}_{number % 2}", np.zeros((194, 2))
        )
    split = {source.name: source.split for source in FORMATS["helen194"](root)}
    assert len(split) == 300
    assert all(
        split[name] == split[name[:-1] + other] for name in split for other in "01" if name[:-1] + other in split
    )
    counts = [list(split.values()).count(part) for part in SPLITS]
    assert 200 < counts[0] < 270 and min(counts) > 10
    assert split == {source.name: source.split for source in FORMATS["helen194"](root)}


@pytest.mark.parametrize("lists", [("train", "test"), ("train",), ("test",)])
def test_helen_splits_by_its_lists(tmp_path, lists):
    root = tmp_path / "helen"
    names = [f"{number}_1" for number in range(100, 143)]
    for number, name in enumerate(names):
        write_annotation(root / "annotation" / f"{number}.txt", name, np.zeros((194, 2)))
    for part, chosen in (("train", names[33:]), ("test", names[:33])):
        if part in lists:
            (root / f"{part}names.txt").write_text("\r\n".join(chosen) + "\r\n")
    split = {source.name: source.split for source in FORMATS["helen194"](root)}
    assert [split[name] for name in names] == ["tuning"] * 23 + ["testing"] * 10 + ["exemplars"] * 10


def test_annotations_are_read_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 1):
        write_annotation(tmp_path / "annotation" / f"{number}.txt", f"n{number}", np.zeros((194, 2)))
    (tmp_path / "annotation" / "._1.txt").write_bytes(b"\x00\xff")  # what other systems' archives bring along
    assert [source.name for source in FORMATS["helen194"](tmp_path)] == ["n1", "n9", "n10"]


def edit(function):
    """Damage that edits the lines of annotation 2."""

    def damage(root):
        path = root / "annotation" / "2.txt"
        path.write_text("\n".join(function(path.read_text().splitlines())))

    return damage


def other_photograph(root):
    shutil.copy(root / "helen_1" / "7_1.jpg", root / "helen_1" / "7_2.jpg")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (edit(lambda lines: lines[:-1]), ["2.txt", "194 points", "193"]),
        (edit(lambda lines: [*lines, "3 , 4"]), ["2.txt", "194 points", "195"]),
        (edit(lambda lines: [*lines[:9], "3 4", *lines[10:]]), ["2.txt line 10", '"x , y"', "3 4"]),
        (edit(lambda lines: [*lines[:9], "nan , 4", *lines[10:]]), ["2.txt line 10", "nan"]),
        (edit(lambda lines: [*lines[:9], "1 , 2 , 3", *lines[10:]]), ["2.txt line 10", "1 , 2 , 3"]),
        (edit(lambda lines: lines[:1] + ["9000 , 4"] * 194), ["2.txt", "7_2.jpg", "700 x 640", "(9000, 4)"]),
        (edit(lambda lines: lines[:1] + ["50 , 50"] * 194), ["2.txt", "16 pixels"]),
        (edit(lambda lines: ["elsewhere", *lines[1:]]), ["2.txt", "elsewhere.jpg", "none"]),
        (edit(lambda lines: ["../../7_2", *lines[1:]]), ["2.txt", "../../7_2.jpg", "none"]),
        (lambda root: (root / "annotation" / "2.txt").write_bytes(b"7_2\n\xff\xfe"), ["2.txt", "text file"]),
        (lambda root: (root / "helen_2" / "7_2.jpg").unlink(), ["2.txt", "7_2.jpg", "none"]),
        (lambda root: (root / "helen_2" / "7_2.jpg").write_bytes(b""), ["7_2.jpg", "empty"]),
        (lambda root: (root / "helen_2" / "7_2.jpg").write_text("no picture"), ["7_2.jpg", "another kind of file"]),
        (other_photograph, ["7_2.jpg", "helen_1", "helen_2", "another"]),
    ],
)  # fmt: skip
def test_a_broken_face_of_helen_is_named_and_skipped(helen, tmp_path, damage, words):
    damage(helen)
    skips("helen194", helen, "--out", tmp_path / "out", words=words, good=3)


def test_a_second_copy_of_a_photograph_does_not_matter(helen, tmp_path):
    shutil.copytree(helen / "helen_1", helen / "copies")
    converted("helen194", helen, "--out", tmp_path / "out")


# ---------------------------------------------------------------- LaPa


def write_lapa(root, split, name, ids, labels=None, **options):
    save(root / split / "images" / f"{name}.jpg", coloured(ids), quality=95, **options)
    save(root / split / "labels" / f"{name}.png", LAPA_IDS[ids] if labels is None else labels)


@pytest.fixture
def lapa(tmp_path):
    """Faces of several sizes and places."""
    root = tmp_path / "LaPa"
    write_lapa(root, "train", "a", drawn())
    write_lapa(root, "train", "b", drawn(400, 1.5, (30, -20), 12))
    write_lapa(root, "val", "c", drawn(700, 2.6, (-40, 60), -20))
    write_lapa(root, "test", "d", drawn(200, 0.6))
    return root


def test_lapa_faces_are_where_and_as_large_as_those_of_helen(lapa, tmp_path):
    folder = converted("lapa", lapa, "--out", tmp_path / "out")
    assert [listed(folder, split) for split in SPLITS] == [["a", "b"], ["c"], ["d"]]
    for name, roll in (("a", 0), ("b", 12), ("c", -20), ("d", 0)):
        face = folder.load(name)
        check_maps(face)
        assert agreement(face) > 0.97
        labels, expected = face.labels(), drawn(roll=roll)
        for part in range(1, 9):
            places = [np.mean(np.nonzero(ids == part), axis=1) for ids in (labels, expected)]
            np.testing.assert_allclose(*places, atol=3.5)
            assert (labels == part).sum() / (expected == part).sum() == pytest.approx(1, abs=0.2)


def test_skin_and_hair_of_lapa_are_background(tmp_path):
    ids = drawn()
    labels = np.where(ids, LAPA_IDS[ids], np.where(np.arange(256)[:, None] < 60, 10, 1)).astype(np.uint8)
    write_lapa(tmp_path / "plain", "train", "a", ids)
    write_lapa(tmp_path / "full", "train", "a", ids, labels)
    maps = [
        converted("lapa", tmp_path / source, "--out", tmp_path / f"{source}.out").load("a").maps
        for source in ("plain", "full")
    ]
    np.testing.assert_array_equal(*maps)


def test_what_lies_outside_of_the_photograph_is_black_background(tmp_path):
    write_lapa(tmp_path / "in", "train", "a", drawn(180, 1, (0, 10)))
    face = converted("lapa", tmp_path / "in", "--out", tmp_path / "out").load("a")
    for strip in (face.pixels[:20], face.pixels[:, :30], face.pixels[:, -30:]):
        assert strip[..., :3].max() < 12  # JPEG
        assert (strip[..., 3] == 255).all() and not strip[..., 4:].any()
    assert face.image[40, 50:200].min() > 90


def test_a_mirrored_photograph_gives_the_mirrored_face(tmp_path):
    ids = drawn(300, 1.1, (20, -5), 15, without=(4,))
    write_lapa(tmp_path / "in", "train", "plain", ids)
    write_lapa(tmp_path / "in", "train", "mirrored", MIRRORED[ids[:, ::-1]])
    folder = converted("lapa", tmp_path / "in", "--out", tmp_path / "out")
    plain, mirrored = folder.load("plain"), folder.load("mirrored")
    assert np.abs(plain.maps.astype(int) - mirrored.maps[:, ::-1][..., MIRRORED]).max() <= 1
    assert np.abs(plain.image.astype(int) - mirrored.image[:, ::-1]).mean() < 2


@pytest.mark.parametrize(
    ("swapped", "without"),
    [
        ([3, 4, 1, 2], ()),  # all by the person's own sides
        ([3, 2, 1, 4], ()),  # eyebrows only
        ([3, 4, 1, 2], (1,)),  # a lone eyebrow goes with the eyes
        ([1, 2, 3, 4], (1,)),
        ([3, 4, 1, 2], (1, 4)),  # no pair: by nose and mouth
        ([1, 2, 3, 4], (1, 4)),
        ([3, 4, 1, 2], (1, 2, 3, 4)),
    ],
)
def test_left_is_left_in_the_image_whatever_the_source_means(swapped, without):
    expected = drawn(without=without)
    given = np.array([0, *swapped, 5, 6, 7, 8], np.uint8)[expected]
    np.testing.assert_array_equal(as_seen(given), expected)


@pytest.mark.parametrize("lone", [1, 3])
def test_a_lone_eyebrow_across_the_middle_of_a_tilted_face_goes_with_the_eyes(lone):
    expected = drawn(roll=40 if lone == 1 else -40, without=(4 - lone,))
    for given in (expected, MIRRORED[expected]):
        np.testing.assert_array_equal(as_seen(given), expected)


def test_parts_without_twin_nose_and_mouth_stay_as_they_are():
    ids = drawn(without=(3, 4, 5, 6, 7, 8))
    np.testing.assert_array_equal(as_seen(ids), ids)


@pytest.mark.parametrize("without", [(), (1, 3), (2, 4), (6, 7, 8), (1, 2), (5,), (1, 2, 3, 4)])
@pytest.mark.parametrize("roll", [-30, 0, 30])
def test_a_face_is_found_from_the_parts_that_are_there(without, roll):
    box = find_face(drawn(600, 2, (50, -30), roll, without), "here")
    assert box.length == pytest.approx(280, rel=0.07)
    assert (box.x, box.y) == pytest.approx((349.5, 269.5), abs=10)


def test_stray_pixels_hardly_move_a_face():
    ids = drawn(600, 2)
    stray = ids.copy()
    stray[5, 5], stray[590, 300], stray[300, 10] = 1, 8, 5
    boxes = [find_face(labels, "here") for labels in (ids, stray)]
    assert boxes[1].length == pytest.approx(boxes[0].length, rel=0.02)
    assert (boxes[1].x, boxes[1].y) == pytest.approx((boxes[0].x, boxes[0].y), abs=2)


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_labels_belong_to_the_pixels_as_stored_whatever_exif_says(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    ids = drawn(300)[:280]
    write_lapa(tmp_path / "in", "train", "turned", ids, exif=exif)
    write_lapa(tmp_path / "in", "train", "plain", ids)
    folder = converted("lapa", tmp_path / "in", "--out", tmp_path / "out")
    np.testing.assert_array_equal(folder.load("turned").pixels, folder.load("plain").pixels)


def test_names_that_clash_get_their_folder_in_front(tmp_path):
    for split, names in (("train", ["a", "b", "val_a"]), ("val", ["a"]), ("test", ["A", "c"])):
        for name in names:
            write_lapa(tmp_path / "in", split, name, drawn(without=(5,) if name == "val_a" else ()))
    folder = converted("lapa", tmp_path / "in", "--out", tmp_path / "out")
    assert [listed(folder, split) for split in SPLITS] == [["train_a", "b", "val_a"], ["val_a_"], ["test_A", "c"]]
    assert (folder.load("val_a_").labels() == 5).any() and not (folder.load("val_a").labels() == 5).any()


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (LAPA_IDS[drawn(250)], ["labels", "b.png", "256 x 256", "250 x 250"]),
        (np.full((256, 256), 11, np.uint8), ["b.png", "0 to 10", "11"]),
        (np.zeros((256, 256, 3), np.uint8), ["b.png", "8-bit", "RGB"]),
        (np.zeros((256, 256), np.uint8), ["b.png", "at least 2 parts", "none"]),
        (LAPA_IDS[drawn(without=(1, 2, 3, 4, 6, 7, 8))], ["b.png", "at least 2 parts", "nose"]),
        (LAPA_IDS[drawn(scale=0.08)], ["b.png", "16 pixels"]),
        (None, ["labels", "b.png", "no such file"]),
    ],
)
def test_a_broken_face_of_lapa_is_named_and_skipped(tmp_path, labels, words):
    for name in "ac":
        write_lapa(tmp_path / "in", "train", name, drawn())
    write_lapa(tmp_path / "in", "train", "b", drawn(), labels)
    if labels is None:
        (tmp_path / "in" / "train" / "labels" / "b.png").unlink()
    skips("lapa", tmp_path / "in", "--out", tmp_path / "out", words=words, good=2)


def test_a_face_without_eyes_is_kept(tmp_path):
    write_lapa(tmp_path / "in", "train", "a", drawn(without=(2, 4)))
    face = converted("lapa", tmp_path / "in", "--out", tmp_path / "out").load("a")
    assert set(np.unique(face.labels())) == {0, 1, 3, 5, 6, 7, 8}


def test_label_images_with_a_palette_are_read_by_id(tmp_path):
    ids = drawn()
    write_lapa(tmp_path / "in", "train", "a", ids)
    write_lapa(tmp_path / "in", "train", "b", ids)
    labels = Image.fromarray(LAPA_IDS[ids])
    labels.putpalette(list(range(255, 255 - 33, -1)))
    labels.save(tmp_path / "in" / "train" / "labels" / "b.png")
    folder = converted("lapa", tmp_path / "in", "--out", tmp_path / "out")
    np.testing.assert_array_equal(folder.load("a").maps, folder.load("b").maps)


# ---------------------------------------------------------------- CelebAMask-HQ


def write_celeba(root, number, ids, side=512, swapped=True, colours=False):
    """A photograph of `side` pixels and masks of 512, by the person's own left and right if `swapped`."""
    photograph = Image.fromarray(coloured(ids)).resize((side, side), Image.Resampling.BILINEAR)
    save(root / "CelebA-HQ-img" / f"{number}.jpg", np.asarray(photograph), quality=95)
    folder = root / "CelebAMask-HQ-mask-anno" / str(number // 2000)
    folder.mkdir(parents=True, exist_ok=True)
    given = MIRRORED[ids] if swapped else ids
    for part in np.unique(given[given > 0]):
        mask = np.where(given == part, 255, 0).astype(np.uint8)
        save(folder / f"{number:05d}_{MASKS[part]}.png", mask[..., None].repeat(3, axis=2) if colours else mask)


@pytest.fixture
def celeba(tmp_path):
    root = tmp_path / "CelebAMask-HQ"
    write_celeba(root, 7, drawn(512, 1.8, (5, 20)), 1024)
    write_celeba(root, 8, drawn(512, 1.8, (-8, 10), 8), swapped=False, colours=True)
    write_celeba(root, 2009, drawn(512, 1.7, without=(1, 7)))
    (root / "CelebAMask-HQ-mask-anno" / "0" / "00007_hair.png").write_text("not looked at")
    return root


def test_celebamask_faces_are_where_and_as_large_as_those_of_helen(celeba, tmp_path):
    folder = converted("celebamask", celeba, "--out", tmp_path / "out")
    assert [listed(folder, split) for split in SPLITS] == [["7"], ["8"], ["2009"]]
    for name, roll, without in (("7", 0, ()), ("8", 8, ()), ("2009", 0, (1, 7))):
        face = folder.load(name)
        check_maps(face)
        assert agreement(face) > 0.97
        labels, expected = face.labels(), drawn(roll=roll, without=without)
        assert set(np.unique(labels)) == set(np.unique(expected))
        for part in set(range(1, 9)) - set(without):
            places = [np.mean(np.nonzero(ids == part), axis=1) for ids in (labels, expected)]
            np.testing.assert_allclose(*places, atol=4)


def test_celebamask_splits_as_celeba_does_where_the_mapping_says(celeba, tmp_path):
    rows = ["idx\torig_idx\torig_file", "7 162770 162771.jpg", "8 162771 162772.jpg", "2009 182638 182639.jpg"]
    (celeba / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(rows))
    assert [source.split for source in FORMATS["celebamask"](celeba)] == ["exemplars", "tuning", "testing"]
    (celeba / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(rows).replace("162771 1", "182637 1"))
    assert [source.split for source in FORMATS["celebamask"](celeba)] == ["exemplars", "tuning", "testing"]
    out = tmp_path / "out"
    for text, words in (
        ("\n".join(rows[:-1]), ["mapping.txt", "2009.jpg"]),
        ("\n".join([*rows, "x y z"]), ["mapping.txt line 5", "x y z"]),
    ):
        (celeba / "CelebA-HQ-to-CelebA-mapping.txt").write_text(text)
        refused("convert", "celebamask", celeba, "--out", out, words=words)
        assert not out.exists()


def test_celebamask_without_the_mapping_splits_80_10_10(tmp_path):
    for number in range(40):
        save(tmp_path / "CelebA-HQ-img" / f"{number}.jpg", np.zeros((1, 1), np.uint8))
    (tmp_path / "CelebAMask-HQ-mask-anno").mkdir()
    sources = FORMATS["celebamask"](tmp_path)
    assert [source.name for source in sources] == [str(number) for number in range(40)]
    assert [[source.split for source in sources].count(split) for split in SPLITS] == [32, 4, 4]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (("CelebAMask-HQ-mask-anno/0/00008_nose.png", np.zeros((511, 512), np.uint8)),
         ["00008_nose.png", "512 x 512", "512 x 511"]),
        (("CelebAMask-HQ-mask-anno/0/00008_u_lip.png", None), ["00008_u_lip.png", "another kind of file"]),
        (("CelebA-HQ-img/8.jpg", np.zeros((512, 500, 3), np.uint8)), ["8.jpg", "1024 x 1024", "500 x 512"]),
        (("CelebA-HQ-img/8.jpg", None), ["8.jpg", "another kind of file"]),
        (("CelebA-HQ-img/11.jpg", np.zeros((512, 512, 3), np.uint8)), ["00011_*.png", "at least 2 parts", "none"]),
    ],
)  # fmt: skip
def test_a_broken_face_of_celebamask_is_named_and_skipped(celeba, tmp_path, damage, words):
    file, pixels = damage
    if pixels is None:
        (celeba / file).write_text("no picture")
    else:
        save(celeba / file, pixels)
    good = len(list((celeba / "CelebA-HQ-img").iterdir())) - 1
    skips("celebamask", celeba, "--out", tmp_path / "out", words=words, good=good)


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["helen194", "."], ["annotation", "NAME.jpg", "SOURCE"]),
        (["lapa", "."], ["train, val and test", "labels/NAME.png"]),
        (["lapa", "half"], ["labels", "images/NAME.jpg"]),
        (["celebamask", "."], ["CelebA-HQ-img", "CelebAMask-HQ-mask-anno/K/NNNNN_PART.png"]),
        (["celebamask", "half"], ["CelebAMask-HQ-mask-anno", "SOURCE"]),
        (["helen194", "half"], ["half", "helen194", "none"]),
        (["helen194", "absent"], ["absent", "folder"]),
        (["helen", "."], ["helen194", "celebamask"]),
        (["lapa", ".", "--size", "0"], ["--size", "at least 1"]),
        (["lapa", ".", "--size", "100"], ["--face", "100", "140"]),
        (["lapa", ".", "--limit", "0"], ["--limit"]),
        (["lapa", ".", "--bogus"], ["--bogus", "--help"]),
    ],
)
def test_mistakes_are_refused_with_what_was_expected(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    for folder in ("train/images", "CelebA-HQ-img", "annotation"):
        (tmp_path / "half" / folder).mkdir(parents=True)
    refused("convert", *arguments, "--out", tmp_path / "out", words=words)
    assert not (tmp_path / "out").exists()


def test_out_is_required(tmp_path):
    refused("convert", "lapa", tmp_path, words=["--out"])


def test_a_folder_that_is_not_empty_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    for format in FORMATS:  # there is nothing of theirs to read
        refused("convert", format, tmp_path, "--out", tmp_path / "out", words=["--out", "empty", tmp_path / "out"])
        refused("convert", format, tmp_path, "--out", tmp_path / "out" / "mine.txt", words=["--out", "mine.txt"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_taken(lapa, tmp_path):
    (tmp_path / "out").mkdir()
    converted("lapa", lapa, "--out", tmp_path / "out")


def test_if_nothing_can_be_converted_nothing_is_written(lapa, tmp_path):
    for path in lapa.rglob("*.png"):
        path.unlink()
    code, out, err = call("convert", "lapa", lapa, "--out", tmp_path / "out")
    assert code == 2 and not out
    assert len(err.splitlines()) == 5 and "none of 4 faces" in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_limit_takes_faces_of_every_split(tmp_path):
    for index in range(16):
        write_lapa(tmp_path / "in", "train", f"a{index:02}", drawn(64, 0.25))
    for split in ("val", "test"):
        for index in range(4):
            write_lapa(tmp_path / "in", split, f"{split}{index}", drawn(64, 0.25))
    folder = converted("lapa", tmp_path / "in", "--out", tmp_path / "out", "--limit", 6)
    assert [len(listed(folder, split)) for split in SPLITS] == [4, 1, 1]
    folder = converted("lapa", tmp_path / "in", "--out", tmp_path / "all", "--limit", 1000)
    assert [len(listed(folder, split)) for split in SPLITS] == [16, 4, 4]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_and_lists_what_is_there(lapa, tmp_path, monkeypatch, number):
    def interrupted(path, *rest):
        if path.stem == "c":
            os.kill(os.getpid(), number)
        return read(path, *rest)

    read = icnn.convert.formats._read_lapa
    monkeypatch.setattr(icnn.convert.formats, "_read_lapa", interrupted)
    code, out, err = call("convert", "lapa", lapa, "--out", tmp_path / "out")
    assert code == 128 + number and not out
    assert err == f"icnn.convert: stopped by {signal.Signals(number).name}\n"
    folder = SmithFolder(tmp_path / "out")
    assert [listed(folder, split) for split in SPLITS] == [["a", "b"], ["c"], []]


def test_a_folder_that_cannot_be_written_ends_the_conversion(lapa, tmp_path):
    (tmp_path / "file").write_text("")
    refused("convert", "lapa", lapa, "--out", tmp_path / "file" / "out", words=["file", "a place to write to"])


def test_the_same_source_gives_the_same_bytes(lapa, tmp_path):
    for out in ("one", "two"):
        converted("lapa", lapa, "--out", tmp_path / out)
    one, two = (
        {
            path.relative_to(tmp_path / out): path.read_bytes()
            for path in (tmp_path / out).rglob("*.*")
            if path.is_file()
        }
        for out in ("one", "two")
    )
    assert one == two and len(one) == 4 * 12 + 3


def test_help_names_every_option():
    code, out, _ = call("convert", "--help")
    assert code == 0
    source = Path(str(icnn.convert.__main__.__file__)).read_text()
    for option in {*re.findall(r'"(--[a-z]+)"', source), *FORMATS}:
        assert option in out
