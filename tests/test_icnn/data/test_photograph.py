"""Photographs: is every kind of file read as it should be seen, and every bad one refused in one line?"""

import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from photographs import fails, grey_ramp, photograph, rotated_jpeg
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from icnn.data.images import quiet, read_image
from icnn.errors import InputError


def saved(tmp_path, image, name="x.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize("name", ["x.png", "x.tif"])  # Pillow turns TIFF by itself: not twice
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation, name):
    rotated_jpeg(tmp_path / name, orientation, photograph())
    np.testing.assert_array_equal(read_image(tmp_path / name), photograph())


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


def test_unreadable(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.fromarray(photograph()))

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)
    with fails(path, "expected a readable file", "Permission denied", "permissions"):
        read_image(path)


def test_threads_restore_the_warning_filters(tmp_path):
    path, filters = saved(tmp_path, Image.fromarray(photograph())), list(warnings.filters)
    threads = [threading.Thread(target=lambda: [read_image(path) for _ in range(40)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == filters


def test_many_decode_at_a_time_and_the_last_restores_the_filters():
    filters, inside, leave = list(warnings.filters), threading.Barrier(3, timeout=20), threading.Event()

    def decoding():
        with quiet():
            inside.wait()  # passed only if nobody keeps the others out
            leave.wait(20)
            warnings.warn("not heard", stacklevel=1)

    first, second = (threading.Thread(target=decoding) for _ in range(2))
    first.start(), second.start()
    with quiet():
        inside.wait()
    assert list(warnings.filters) != filters, "two are still decoding"
    leave.set()
    first.join(), second.join()
    assert list(warnings.filters) == filters
