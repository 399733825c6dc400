"""Data: do folders in the Smith layout read as they are meant, and are broken ones named?"""

import threading
import warnings

import numpy as np
import pytest
from photographs import fails, grey_ramp, photograph, rotated_jpeg
from PIL import Image

from icnn.classes import PARTS
from icnn.data import folder as dataset
from icnn.data.folder import DatasetWarning, Face, SmithFolder, find_helen
from icnn.data.images import read_image
from icnn.data.write_folder import write_face, write_split

#: One column of pixels per part, left parts left of right ones; the order of the paper's ids 0..8.
COLUMNS = (0, 2, 3, 6, 7, 9, 10, 11, 12)


def soft_maps(height=8, width=14, columns=COLUMNS):
    """(H, W, 9) uint8: background, and part k in rows 1.. of columns[k]; None leaves a part out."""
    maps = np.zeros((height, width, len(PARTS)), np.uint8)
    for part, column in enumerate(columns):
        if part and column is not None:
            maps[1:, column, part] = 255
    maps[..., 0] = 255 - maps[..., 1:].sum(axis=-1)
    return maps


@pytest.fixture
def folder(tmp_path):
    """Faces a, b (exemplars), c (tuning) and d (testing)."""
    for name in "abcd":
        write_face(tmp_path, name, photograph(), soft_maps())
    for split, names in (("exemplars", "ab"), ("tuning", "c"), ("testing", "d")):
        write_split(tmp_path, split, names)
    return tmp_path


def map_file(root, name, kk):
    return root / "labels" / name / f"{name}_lbl{kk}.png"


def save_map(root, name, kk, pixels):
    Image.fromarray(np.asarray(pixels)).save(map_file(root, name, kk))


def write_list(root, text, split="exemplars", encoding="utf-8"):
    (root / f"{split}.txt").write_bytes(text.encode(encoding))


# Faces


def test_round_trip(tmp_path):
    maps = np.random.default_rng(0).integers(0, 256, (8, 14, 9), np.uint8)
    write_face(tmp_path, "a", photograph(), maps)
    face = SmithFolder(tmp_path).load("a")
    assert face.name == "a"
    assert face.pixels.shape == (8, 14, 12)
    assert face.pixels.dtype == np.uint8
    assert face.pixels.flags.c_contiguous
    assert face.nbytes == 8 * 14 * 12
    np.testing.assert_array_equal(face.maps, maps)
    assert face.image.shape == (8, 14, 3)
    assert np.abs(face.image.astype(int) - photograph()).max() <= 20
    assert np.shares_memory(face.image, face.pixels) and np.shares_memory(face.maps, face.pixels)


def test_written_files(tmp_path):
    maps = np.full((8, 14, 9), 7, np.uint8)
    write_face(tmp_path, "a", photograph(), maps)
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"images/a.jpg"} | {f"labels/a/a_lbl{kk:02}.png" for kk in range(11)}
    values = [np.unique(np.asarray(Image.open(map_file(tmp_path, "a", f"{kk:02}")))) for kk in range(11)]
    assert values == [7, 0, 7, 7, 7, 7, 7, 7, 7, 7, 0]
    write_split(tmp_path, "tuning", ["a", "b"])
    assert (tmp_path / "tuning.txt").read_bytes() == b"1 , a\n2 , b\n"


@pytest.mark.parametrize(
    ("image", "maps"),
    [
        (np.zeros((8, 14, 3), np.uint8), np.zeros((8, 13, 9), np.uint8)),
        (np.zeros((8, 14, 3), np.uint8), np.zeros((8, 14, 11), np.uint8)),
        (np.zeros((8, 14), np.uint8), np.zeros((8, 14, 9), np.uint8)),
        (np.zeros((8, 14, 3), np.uint8), np.zeros((8, 14, 9), np.float32)),
    ],
)
def test_write_face_refuses_other_shapes(tmp_path, image, maps):
    with pytest.raises(ValueError, match=r"expected image \(H, W, 3\)"):
        write_face(tmp_path, "a", image, maps)


def test_write_where_a_file_stands(tmp_path):
    (tmp_path / "taken").write_text("")
    with fails("taken", "expected a place to write to", "got"):
        write_face(tmp_path / "taken", "a", photograph(), soft_maps())
    with fails("taken", "expected a place to write to", "got"):
        write_split(tmp_path / "taken", "tuning", ["a"])


def test_file_numbers_are_not_ids(folder):
    """A dot per file: 03 is the right eyebrow (id 3), 04 the left eye (id 2); 01 and 10 are background."""
    for kk in range(11):
        dot = np.zeros((8, 14), np.uint8)
        dot[3, kk] = 255
        save_map(folder, "a", f"{kk:02}", dot)
    labels = SmithFolder(folder).load("a").labels()
    assert labels.dtype == np.uint8
    assert [PARTS[i] for i in labels[3, :11]] == [
        "background",
        "background",
        "left_eyebrow",
        "right_eyebrow",
        "left_eye",
        "right_eye",
        "nose",
        "upper_lip",
        "inner_mouth",
        "lower_lip",
        "background",
    ]
    assert np.count_nonzero(labels) == 8


def test_skin_and_hair_are_summed_into_the_background_before_arg_max(folder):
    for kk, value in (("00", 100), ("01", 100), ("02", 150), ("10", 0)):
        save_map(folder, "a", kk, np.full((8, 14), value, np.uint8))
    save_map(folder, "b", "00", np.full((8, 14), 200, np.uint8))
    save_map(folder, "b", "10", np.full((8, 14), 100, np.uint8))  # 300: clipped, not 44
    a, b = (SmithFolder(folder).load(name) for name in "ab")
    assert (a.maps[..., 0] == 200).all()
    assert (a.labels()[:, [0, 1, 4, 5]] == 0).all()
    assert (b.maps[..., 0] == 255).all()


def test_skin_and_hair_may_be_absent(folder):
    before = SmithFolder(folder).load("a").maps
    for kk in ("01", "10"):
        map_file(folder, "a", kk).unlink()
    np.testing.assert_array_equal(SmithFolder(folder).load("a").maps, before)


def test_ties_go_to_the_lower_id():
    pixels = np.zeros((1, 3, 12), np.uint8)
    pixels[0, 0, 3:] = [0, 0, 0, 90, 0, 90, 0, 0, 90]
    pixels[0, 1, 3:] = [90, 0, 0, 90, 0, 0, 0, 0, 0]
    assert Face("a", pixels).labels().tolist() == [[3, 0, 0]]


def test_sizes_may_vary(tmp_path):
    sizes = {"a": (8, 14), "b": (9, 20), "c": (30, 15)}
    for name, size in sizes.items():
        write_face(tmp_path, name, photograph(*size), soft_maps(*size))
    write_split(tmp_path, "exemplars", sizes)
    faces = SmithFolder(tmp_path).load_split("exemplars")
    assert {face.name: face.image.shape[:2] for face in faces} == sizes


@pytest.mark.parametrize("suffix", [".jpeg", ".png"])
def test_other_suffixes(folder, suffix):
    (folder / "images" / "a.jpg").unlink()
    Image.fromarray(photograph()).save(folder / "images" / f"a{suffix}")
    assert SmithFolder(folder).names("exemplars") == ["a", "b"]
    assert SmithFolder(folder).load("a").image.shape == (8, 14, 3)


def test_jpg_comes_before_png(folder):
    Image.fromarray(photograph(20, 20)).save(folder / "images" / "a.png")
    assert SmithFolder(folder).load("a").image.shape == (8, 14, 3)


# Label maps


@pytest.mark.parametrize("kk", ["00", "02", "03", "04", "05", "06", "07", "08", "09"])
def test_missing_map(folder, kk):
    map_file(folder, "a", kk).unlink()
    with fails(map_file(folder, "a", kk), "expected", "got no such file", "add it"):
        SmithFolder(folder).load("a")


def test_the_first_missing_map_is_named(folder):
    for kk in ("09", "04", "03"):  # 03 comes before 04 among the files, after it among the ids
        map_file(folder, "a", kk).unlink()
    with fails("a_lbl03.png"):
        SmithFolder(folder).load("a")


def test_map_of_another_size(folder):
    save_map(folder, "a", "07", np.zeros((14, 8), np.uint8))
    with fails("a_lbl07.png", "expected 14 x 8", "a.jpg", "got 8 x 14") as caught:
        SmithFolder(folder).load("a")
    assert "EXIF" not in str(caught.value)


def converted_maps():
    ramp = Image.fromarray(grey_ramp())
    yield "RGB", ramp.convert("RGB")
    yield "RGBA", ramp.convert("RGBA")
    yield "LA", ramp.convert("LA")
    yield "palette", ramp.convert("P")
    yield "16 bits", Image.fromarray(grey_ramp().astype(np.uint16) * 257)


@pytest.mark.parametrize(("kind", "image"), list(converted_maps()))
def test_grey_maps_of_other_kinds(folder, kind, image):
    image.save(map_file(folder, "a", "06"))
    np.testing.assert_array_equal(SmithFolder(folder).load("a").maps[..., 5], grey_ramp())


def test_one_bit_map(folder):
    save_map(folder, "a", "06", np.eye(8, 14, dtype=bool))
    np.testing.assert_array_equal(SmithFolder(folder).load("a").maps[..., 5], 255 * np.eye(8, 14))


def test_map_that_is_not_grey(folder):
    coloured = np.repeat(grey_ramp()[..., None], 3, axis=-1)
    coloured[4, 5, 2] ^= 1
    see_through = Image.fromarray(grey_ramp()).convert("RGBA")
    see_through.putpixel((3, 3), (51, 51, 51, 254))
    for image in (Image.fromarray(coloured), see_through):
        image.save(map_file(folder, "a", "06"))
        with fails("a_lbl06.png", "expected a greyscale label map", "got mode RGB"):
            SmithFolder(folder).load("a")


def test_damaged_maps(folder):
    path = map_file(folder, "a", "10")
    whole = path.read_bytes()
    for data in (b"", whole[: len(whole) // 2], b"no image at all"):
        path.write_bytes(data)
        with fails("a_lbl10.png", "expected", "got"):
            SmithFolder(folder).load("a")


# Split lists


def test_names(folder):
    data = SmithFolder(folder)
    assert [data.names(split) for split in dataset.SPLITS] == [["a", "b"], ["c"], ["d"]]


def test_list_order_counts_not_the_index(folder):
    write_list(folder, "7 , b\n3,a")
    assert SmithFolder(folder).names("exemplars") == ["b", "a"]


def test_blank_lines_crlf_and_bom(folder):
    write_list(folder, "\ufeff\r\n1 , a\r\n   \r\n2 , b\r\n\r\n")
    assert SmithFolder(folder).names("exemplars") == ["a", "b"]


@pytest.mark.parametrize("missing", ["", "images", "labels"])
def test_not_a_smith_folder(folder, missing):
    (folder / "other").mkdir()
    for part in {"images", "labels"} - {missing}:
        (folder / "other" / part).mkdir()
    root = folder / "other" if missing else folder / "absent"
    with fails(root / missing, "expected a directory", "got nothing"):
        SmithFolder(root)


def test_folder_that_is_a_file(folder):
    with fails("exemplars.txt", "expected a directory", "got something else"):
        SmithFolder(folder / "exemplars.txt")


def test_missing_list_matters_when_asked_for(folder):
    (folder / "tuning.txt").unlink()
    data = SmithFolder(folder)
    assert len(data.load_split("exemplars")) == 2
    with fails("tuning.txt", "expected", "got no such file"):
        data.names("tuning")


def test_unknown_split(folder):
    with fails("exemplars, tuning, testing", "'train'"):
        SmithFolder(folder).names("train")


@pytest.mark.parametrize("text", ["", "\n \r\n", "\ufeff"])
def test_empty_split(folder, text):
    write_list(folder, text)
    with fails("exemplars.txt", "expected at least one name", "got an empty list"):
        SmithFolder(folder).names("exemplars")


@pytest.mark.parametrize("line", ["a", "1 a", "1 ,", ", a", "x , a", "-1 , a", "1.0 , a"])
def test_malformed_line(folder, line):
    write_list(folder, f"1 , b\n\n{line}\n")
    with fails("exemplars.txt line 3", 'expected "INDEX , NAME"', repr(line)):
        SmithFolder(folder).names("exemplars")


def test_list_that_is_not_utf8(folder):
    write_list(folder, "1 , a\n", encoding="utf-16")
    with fails("exemplars.txt", "expected a text file in UTF-8"):
        SmithFolder(folder).names("exemplars")


@pytest.mark.parametrize("name", ["../a", "..", ".", "/etc/a", "x/a", "x\\a", "..\\a", "C:a", "a\0b", "a\x1bb", "a/"])
def test_names_that_leave_the_folder(folder, name):
    write_list(folder, f"1 , a\n2 , {name}\n")
    data = SmithFolder(folder)
    with fails("exemplars.txt line 2", "expected a name that stays in its folder", repr(name)):
        data.names("exemplars")
    with fails("expected a name that stays in its folder", repr(name)):
        data.load(name)
    with fails("expected a name that stays in its folder", repr(name)):
        write_face(folder, name, photograph(), soft_maps())
    with fails("expected a name that stays in its folder", repr(name)):
        write_split(folder, "testing", [name])
    assert SmithFolder(folder).names("testing") == ["d"]


def test_name_listed_twice(folder):
    write_list(folder, "1 , a\n2 , b\n\n3 , a\n")
    with fails("exemplars.txt", "'a'", "line 1", "line 4"):
        SmithFolder(folder).names("exemplars")


def test_absent_image_or_label_folder(folder):
    write_list(folder, "1 , a\n2 , b\n")
    (folder / "labels" / "b").rename(folder / "labels" / "z")
    with fails("exemplars.txt line 2", folder / "labels" / "b", "no such"):
        SmithFolder(folder).names("exemplars")
    (folder / "images" / "a.jpg").unlink()
    with fails("exemplars.txt line 1", folder / "images" / "a.jpg", "no such"):
        SmithFolder(folder).names("exemplars")
    with fails(folder / "images" / "a.jpg", "no such file"):
        SmithFolder(folder).load("a")


def test_name_too_long_for_the_file_system(folder):
    write_list(folder, f"1 , {'a' * 300}\n")
    with fails("exemplars.txt line 1", "no such file"):
        SmithFolder(folder).names("exemplars")


# Whole splits


def test_load_split_keeps_order_and_reports_progress(tmp_path):
    names = [f"f{i}" for i in range(12)]
    for i, name in enumerate(names):
        write_face(tmp_path, name, np.full((8, 14, 3), 20 * i, np.uint8), soft_maps())
    write_split(tmp_path, "tuning", reversed(names))
    calls = []
    faces = SmithFolder(tmp_path).load_split("tuning", progress=lambda *now: calls.append(now))
    assert [face.name for face in faces] == names[::-1]
    assert [round(face.image.mean() / 20) for face in faces] == list(range(12))[::-1]
    assert calls == [(i, 12) for i in range(1, 13)]


def test_load_split_names_the_first_bad_face(folder):
    map_file(folder, "b", "05").write_bytes(b"")
    running = threading.active_count()
    with fails("b_lbl05.png", "an empty file"):
        SmithFolder(folder).load_split("exemplars")
    assert threading.active_count() == running


def test_limit_bytes(folder):
    data, needed = SmithFolder(folder), 2 * 8 * 14 * 12
    assert len(data.load_split("exemplars", limit_bytes=needed)) == 2
    with fails("exemplars.txt", f"{needed - 1:,}", f"{needed:,} for 2 faces"):
        data.load_split("exemplars", limit_bytes=needed - 1)


def test_good_split_gives_no_warning(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SmithFolder(folder).load_split("exemplars")


def test_name_in_two_splits(folder):
    write_split(folder, "testing", ["d", "b"])
    with pytest.warns(DatasetWarning, match=r"exemplars\.txt.* got 1 of testing\.txt.*'b'.*2 and 2") as caught:
        assert len(SmithFolder(folder).load_split("exemplars")) == 2
    assert [warning.filename for warning in caught] == [__file__]  # stacklevel: the caller's line
    with pytest.warns(DatasetWarning, match=r"testing\.txt.* got 1 of exemplars\.txt"):
        SmithFolder(folder).load_split("testing")
    assert len(SmithFolder(folder).load_split("tuning")) == 1


def test_left_parts_right_of_their_twins(tmp_path):
    """Eyebrows the wrong way round on average; eyes the right way, though not in every face."""
    crossed = (0, 6, 3, 2, 7, 9, 10, 11, 12)  # eyebrows by 4 columns, eyes not
    a_little = (0, 4, 8, 5, 7, 9, 10, 11, 12)  # eyes by 1 column, eyebrows not
    alone = (0, 5, 3, None, 7, 9, 10, 11, 12)  # no twin: says nothing of eyebrows
    for name, columns in (("a", crossed), ("b", a_little), ("c", alone)):
        write_face(tmp_path, name, photograph(), soft_maps(columns=columns))
    write_split(tmp_path, "tuning", "abc")
    with pytest.warns(DatasetWarning) as caught:
        SmithFolder(tmp_path).load_split("tuning")
    (message,) = (str(warning.message) for warning in caught)
    assert "tuning.txt: expected left_eyebrow left of right_eyebrow" in message
    assert "over 2 faces" in message and "\n" not in message


def test_part_absent_from_every_face(folder):
    for name in "ab":
        save_map(folder, name, "08", np.zeros((8, 14), np.uint8))
    with pytest.warns(DatasetWarning, match=r"exemplars\.txt.*inner_mouth.*2 faces.*_lbl08\.png") as caught:
        faces = SmithFolder(folder).load_split("exemplars")
    assert len(caught) == 1 and not faces[0].maps[..., 7].any()
    save_map(folder, "b", "08", soft_maps()[..., 7])  # absent from one face only: fine
    assert len(SmithFolder(folder).load_split("exemplars")) == 2


# Their photographs


def test_exif_rotated_face(folder):
    rotated_jpeg(folder / "images" / "a.jpg", 6, photograph())
    face = SmithFolder(folder).load("a")
    assert np.abs(face.image.astype(int) - photograph()).max() <= 20
    np.testing.assert_array_equal(face.maps, soft_maps())
    save_map(folder, "a", "00", np.zeros((14, 8), np.uint8))  # the size as stored
    with fails("a_lbl00.png", "expected 14 x 8", "a.jpg", "after its EXIF rotation", "got 8 x 14"):
        SmithFolder(folder).load("a")


def test_decompression_bomb_in_a_worker(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8 * 14 - 1)
    with fails("a.jpg", "expected an image of at most 111 pixels"):
        SmithFolder(folder).load_split("exemplars")


def test_warnings_of_pillow_stay_inside(folder, monkeypatch):
    load, calls = Image.open, []

    def noisy(path, **options):
        calls.append(path)
        warnings.warn("damaged tag", UserWarning, stacklevel=1)
        return load(path, **options)

    monkeypatch.setattr(Image, "open", noisy)
    filters = list(warnings.filters)
    read_image(folder / "images" / "a.jpg")
    SmithFolder(folder).load("a")
    SmithFolder(folder).load_split("exemplars")
    assert len(calls) == 1 + 12 + 24  # each file once
    assert list(warnings.filters) == filters


# The real photographs


def test_find_helen(tmp_path, monkeypatch):
    monkeypatch.setenv("ICNN_HELEN", str(tmp_path))
    assert find_helen() == tmp_path
    monkeypatch.setenv("ICNN_HELEN", str(tmp_path / "absent"))
    with fails(tmp_path / "absent", "expected a directory", "$ICNN_HELEN"):
        find_helen()
    monkeypatch.delenv("ICNN_HELEN")
    monkeypatch.setattr(dataset, "__file__", str(tmp_path / "repo" / "icnn" / "data" / "folder.py"))
    assert find_helen() is None
    (tmp_path / "shared" / "data" / "helen").mkdir(parents=True)
    assert find_helen() == tmp_path / "shared" / "data" / "helen"


def test_helen():
    root = find_helen()  # $ICNN_HELEN set and absent: an InputError, so a failure and not a skip
    if root is None:
        pytest.skip("no real photographs: neither $ICNN_HELEN nor ../shared/data/helen")
    data = SmithFolder(root)
    assert [len(data.names(split)) for split in dataset.SPLITS] == [870, 130, 100]
    faces = data.load_split("testing")  # a DatasetWarning would fail the test
    assert {face.pixels.shape for face in faces} == {(256, 256, 12)}
    sums = np.stack([face.maps.sum(axis=-1, dtype=np.uint16) for face in faces])
    assert np.abs(sums.astype(int) - 255).max() <= 4
    x = np.arange(256)
    for face in faces:
        labels = face.labels()
        present = np.unique(labels)
        assert set(range(9)) - set(present.tolist()) <= {7}  # a closed mouth may round away
        eyebrow_left, eye_left, eyebrow_right, eye_right = (
            (x * (labels == part)).sum() / (labels == part).sum() for part in (1, 2, 3, 4)
        )
        assert eyebrow_left < eyebrow_right and eye_left < eye_right, face.name
