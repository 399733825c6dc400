"""Data: do folders in the Smith layout, and photographs of every kind, read as they are meant?"""

import io
import re
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from icnn import dataset
from icnn.dataset import DatasetWarning, Face, SmithFolder, find_helen, read_image, write_face, write_split
from icnn.errors import InputError
from icnn.palette import PARTS

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


def photograph(height=8, width=14):
    """(H, W, 3) uint8: smooth, so that JPEG changes it little."""
    y, x = np.mgrid[:height, :width]
    return np.stack([40 + 8 * x, 60 + 9 * y, 200 - 5 * x], axis=-1).astype(np.uint8)


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


def fails(*words):
    """One line that holds all the words, in order."""
    pattern = r"\A(?=[^\r\n]*\Z).*" + ".*".join(re.escape(str(word)) for word in words)
    return pytest.raises(InputError, match=pattern)


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


def grey_ramp():
    return np.tile(np.arange(14, dtype=np.uint8) * 17, (8, 1))


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


@pytest.mark.parametrize(
    "name", ["../a", "..", ".", "/etc/a", "x/a", "x\\a", "..\\a", "C:a", "a\0b", "a\x1bb", "a/"]
)
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
    with pytest.warns(
        DatasetWarning, match=r"exemplars\.txt.* got 1 of testing\.txt.*'b'.*2 and 2"
    ) as caught:
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


# Photographs


def saved(tmp_path, image, name="x.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def rotated_jpeg(path, orientation, pixels):
    """A JPEG whose *stored* pixels are such that undoing the orientation gives `pixels`."""
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, 1),
        7: np.rot90(pixels, 2).transpose(1, 0, 2),
        8: np.rot90(pixels, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)


@pytest.mark.parametrize("name", ["x.png", "x.tif"])  # Pillow turns TIFF by itself: not twice
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation, name):
    rotated_jpeg(tmp_path / name, orientation, photograph())
    np.testing.assert_array_equal(read_image(tmp_path / name), photograph())


def test_exif_rotated_face(folder):
    rotated_jpeg(folder / "images" / "a.jpg", 6, photograph())
    face = SmithFolder(folder).load("a")
    assert np.abs(face.image.astype(int) - photograph()).max() <= 20
    np.testing.assert_array_equal(face.maps, soft_maps())
    save_map(folder, "a", "00", np.zeros((14, 8), np.uint8))  # the size as stored
    with fails("a_lbl00.png", "expected 14 x 8", "a.jpg", "after its EXIF rotation", "got 8 x 14"):
        SmithFolder(folder).load("a")


def test_damaged_exif_does_not_matter(tmp_path):
    for exif in (b"Exif\0\0II*\0\x08\0\0\0\xff\xff garbage", b"Exif\0\0not even a header"):
        path = saved(tmp_path, Image.fromarray(photograph()), "x.png", exif=exif)
        np.testing.assert_array_equal(read_image(path), photograph())


def test_rgb_array_is_fresh_and_contiguous(tmp_path):
    pixels = read_image(str(saved(tmp_path, Image.fromarray(photograph()))))
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous and pixels.flags.writeable


def test_modes_become_rgb(tmp_path):
    grey, eye = Image.fromarray(grey_ramp()), np.eye(8, 14, dtype=bool)
    expected = np.repeat(grey_ramp()[..., None], 3, axis=-1)
    np.testing.assert_array_equal(read_image(saved(tmp_path, grey)), expected)
    np.testing.assert_array_equal(read_image(saved(tmp_path, grey.convert("P"))), expected)
    one_bit = read_image(saved(tmp_path, Image.fromarray(eye)))
    np.testing.assert_array_equal(one_bit, np.repeat(255 * eye[..., None], 3, axis=-1))
    red = Image.new("CMYK", (14, 8), (0, 255, 255, 0))
    np.testing.assert_array_equal(read_image(saved(tmp_path, red, "x.tif"))[3, 5], [255, 0, 0])
    assert np.abs(read_image(saved(tmp_path, red, "x.jpg"))[3, 5].astype(int) - [255, 0, 0]).max() < 8


def test_palette_colours(tmp_path):
    image = Image.new("P", (14, 8), 1)
    image.putpalette([0, 0, 0, 250, 120, 10])
    assert (read_image(saved(tmp_path, image)) == [250, 120, 10]).all()


def test_sixteen_bits_are_scaled(tmp_path):
    """0, 128 and 65535 of 65535: clipping would give 0, 128, 255; truncation to the high byte 0, 0, 255."""
    values = np.array([[0, 129, 0x8000, 65535, 1000]], np.uint16)
    expected = np.repeat(np.array([[[0], [1], [128], [255], [4]]]), 3, axis=-1)
    for name in ("x.png", "x.tif", "x.pgm"):
        np.testing.assert_array_equal(read_image(saved(tmp_path, Image.fromarray(values), name)), expected)


def test_wider_than_sixteen_bits(tmp_path):
    for values in (
        np.full((4, 4), 70000, np.int32),
        np.full((4, 4), -1, np.int32),
        np.zeros((4, 4), np.float32),
    ):
        with fails("x.tif", "expected 8 or 16 bits a channel", "got mode"):
            read_image(saved(tmp_path, Image.fromarray(values), "x.tif"))


def test_transparency_on_white(tmp_path):
    rgba = Image.new("RGBA", (14, 8), (200, 100, 0, 0))
    rgba.putpixel((0, 0), (200, 100, 0, 255))
    rgba.putpixel((1, 0), (200, 100, 0, 51))
    pixels = read_image(saved(tmp_path, rgba))
    assert pixels[0, :3].tolist() == [[200, 100, 0], [244, 224, 204], [255, 255, 255]]
    assert (read_image(saved(tmp_path, Image.new("LA", (14, 8), (30, 0)))) == 255).all()
    palette = Image.new("P", (14, 8), 1)
    palette.putpalette([0, 0, 0, 250, 120, 10])
    for name in ("x.png", "x.gif"):
        assert (read_image(saved(tmp_path, palette, name, transparency=1)) == 255).all()
    colour_key = Image.new("RGB", (14, 8), (1, 2, 3))
    assert (read_image(saved(tmp_path, colour_key, transparency=(1, 2, 3))) == 255).all()
    half_bytes = Image.new("P", (14, 8), 1)
    half_bytes.putpalette([0, 0, 0, 250, 120, 10])
    assert (read_image(saved(tmp_path, half_bytes, transparency=bytes([255, 0]))) == 255).all()
    sixteen = Image.fromarray(np.array([[500, 65535 // 2]], np.uint16))
    assert read_image(saved(tmp_path, sixteen, transparency=500))[0, :, 0].tolist() == [255, 127]


@pytest.mark.parametrize("name", ["x.gif", "x.png", "x.webp"])
def test_first_frame_of_an_animation(tmp_path, name):
    frames = [Image.new("RGB", (14, 8), colour) for colour in ("red", "blue", "green")]
    lossless = {"lossless": True} if name == "x.webp" else {}
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **lossless)
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == 3
    assert (read_image(path) == [255, 0, 0]).all()


def test_not_an_image(tmp_path):
    cases = {
        "missing.png": (None, "got no such file"),
        "empty.png": (b"", "got an empty file"),
        "text.png": (b"hello, this is text", "got another kind of file"),
        "list.jpg": (b"\xff\xd8\xff", "got"),
    }
    for name, (data, got) in cases.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with fails(tmp_path / name, "expected an image such as JPEG or PNG", got):
            read_image(tmp_path / name)
    with fails(tmp_path, "expected an image such as JPEG or PNG", "got a directory"):
        read_image(tmp_path)


def test_line_breaks_stay_out_of_the_message(tmp_path):
    with fails("two lines.png"):
        read_image(tmp_path / "two\nlines.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_truncated(tmp_path, kind):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    for share in (0.05, 0.5, 0.9):
        (tmp_path / "x").write_bytes(buffer.getvalue()[: int(share * len(buffer.getvalue()))])
        with fails(tmp_path / "x", "expected an image", "got"):
            read_image(tmp_path / "x")


def test_flipped_bytes_never_escape_as_another_error(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(photograph()).save(buffer, "PNG")
    rng, whole = np.random.default_rng(1), np.frombuffer(buffer.getvalue(), np.uint8)
    failures = 0
    for _ in range(100):
        data = whole.copy()
        data[rng.integers(8, len(data), 3)] = rng.integers(0, 256, 3)
        (tmp_path / "x.png").write_bytes(data.tobytes())
        try:
            read_image(tmp_path / "x.png")
        except InputError as error:
            failures += 1
            assert len(str(error).splitlines()) == 1
    assert failures > 50


def test_errors_of_every_type_are_the_file_s(tmp_path):
    """Pillow refuses this whole PNG with a bare ValueError: 2 MB of text in a small chunk."""
    text = PngInfo()
    text.add_text("comment", "x" * 2_000_000, zip=True)
    with fails("x.png", "expected an image", "cannot be decoded (ValueError"):
        read_image(saved(tmp_path, Image.fromarray(photograph()), pnginfo=text))


def png_header(width, height):
    """A PNG that claims a size; its pixels are missing."""
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")
    parts = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("side", [10_000, 100_000])  # Pillow warns of the first and refuses the second
def test_decompression_bomb(tmp_path, side):
    limit = Image.MAX_IMAGE_PIXELS
    (tmp_path / "x.png").write_bytes(png_header(side, side))
    with fails("x.png", f"expected an image of at most {limit} pixels", "got a larger one", "scale it down"):
        read_image(tmp_path / "x.png")
    assert limit == Image.MAX_IMAGE_PIXELS


def test_decompression_bomb_in_a_worker(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8 * 14 - 1)
    with fails("a.jpg", "expected an image of at most 111 pixels"):
        SmithFolder(folder).load_split("exemplars")


def test_unreadable(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.fromarray(photograph()))

    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)
    with fails(path, "expected a readable file", "Permission denied", "permissions"):
        read_image(path)


def test_warnings_of_pillow_stay_inside(folder, monkeypatch):
    load, calls = Image.open, []

    def noisy(path):
        calls.append(path)
        warnings.warn("damaged tag", UserWarning, stacklevel=1)
        return load(path)

    monkeypatch.setattr(Image, "open", noisy)
    filters = list(warnings.filters)
    read_image(folder / "images" / "a.jpg")
    SmithFolder(folder).load("a")
    SmithFolder(folder).load_split("exemplars")
    assert len(calls) == 1 + 12 + 24  # each file once
    assert list(warnings.filters) == filters


def test_threads_restore_the_warning_filters(tmp_path):
    path, filters = saved(tmp_path, Image.fromarray(photograph())), list(warnings.filters)
    threads = [threading.Thread(target=lambda: [read_image(path) for _ in range(40)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == filters


# The real photographs


def test_find_helen(tmp_path, monkeypatch):
    monkeypatch.setenv("ICNN_HELEN", str(tmp_path))
    assert find_helen() == tmp_path
    monkeypatch.setenv("ICNN_HELEN", str(tmp_path / "absent"))
    with fails(tmp_path / "absent", "expected a directory", "$ICNN_HELEN"):
        find_helen()
    monkeypatch.delenv("ICNN_HELEN")
    monkeypatch.setattr(dataset, "__file__", str(tmp_path / "repo" / "icnn" / "dataset.py"))
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
