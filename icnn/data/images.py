"""Photographs of any kind, upright and in RGB, and errors that name the file.

`read_image` is for whoever wants pixels; `icnn.data.folder` decodes its label maps
with the same tools.
"""

import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from icnn.errors import InputError

# The transposition that undoes each EXIF orientation. ImageOps.exif_transpose also rewrites the EXIF
# block, which fails on blocks that are damaged elsewhere; only the pixels matter here.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a photograph as it is meant to be seen.

    The EXIF orientation is applied, transparency is laid on white, 16-bit
    greyscale is scaled to 8 bits; of an animation, the first frame counts.

    Returns
    -------
    (H, W, 3) uint8
        RGB, C-contiguous.

    Raises
    ------
    InputError
        If the file cannot be read, is not an image, is truncated, or has more
        pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    with quiet():
        return to_rgb(decode(Path(path))[0], Path(path))


#: What `photograph_of` reads: pictures that cameras and browsers make, none of which Pillow hands to another program.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def photograph_of(data: bytes, name: str, most_pixels: int) -> np.ndarray:
    """Read a photograph from a file's bytes, as `read_image` does; the size is looked at before it is decoded.

    Parameters
    ----------
    data : bytes
        A file in one of `FORMATS`.
    name : str
        For errors.
    most_pixels : int

    Returns
    -------
    (H, W, 3) uint8

    Raises
    ------
    InputError
        If the bytes are no such image, are damaged, or have more pixels.
    """
    if not data:
        raise mistake(name, _EXPECTED, "an empty file", "copy or download it again")
    Image.init()  # all of Pillow's formats: which of ours it was built with
    formats = tuple(name for name in FORMATS if name in Image.OPEN)
    with quiet():
        return to_rgb(_decoded(io.BytesIO(data), Path(name), formats, most_pixels)[0], Path(name))


class _Quiet:
    """What `quiet` shares between threads: how many are within it, and the way back to the filters before."""

    lock = threading.Lock()
    users = 0
    back = ExitStack()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings, but for the decompression bomb, which becomes an error.

    Warning filters belong to the process: two threads that changed them in
    turns would restore them in the wrong order. So the first who comes sets
    them, the last who goes puts them back, and many may decode at a time.
    """
    with _Quiet.lock:
        if not _Quiet.users:
            _Quiet.back.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
        _Quiet.users += 1
    try:
        yield
    finally:
        with _Quiet.lock:
            _Quiet.users -= 1
            if not _Quiet.users:
                _Quiet.back.close()


def decode(path: Path) -> tuple[Image.Image, bool]:
    """Decode a file, upright; and whether its EXIF orientation had to be undone. Call within `quiet`."""
    if not there(path, Path.is_file):  # a pipe would block for ever
        got = "a directory" if there(path, Path.is_dir) else "no such file"
        raise mistake(path, _EXPECTED, got, "check the path and its permissions")
    if path.stat().st_size == 0:
        raise mistake(path, _EXPECTED, "an empty file", "copy or download it again")
    return _decoded(path, path)


_EXPECTED = "an image such as JPEG or PNG"


def _decoded(
    file: Path | io.BytesIO, path: Path, formats: tuple[str, ...] | None = None, most_pixels: int | None = None
) -> tuple[Image.Image, bool]:
    try:
        with Image.open(file, formats=formats) as image:
            width, height = image.size
            if most_pixels is not None and width * height > most_pixels:
                got = f"one of {width} x {height}"
                raise mistake(path, f"an image of at most {most_pixels} pixels", got, "scale it down first")
            image.load()
            try:
                turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
            except Exception:  # damaged EXIF: the pixels are whole, so show them as they are stored
                turn = None
            return (image.copy(), False) if turn is None else (image.transpose(turn), True)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise mistake(path, _EXPECTED, "another kind of file", "convert it to PNG or JPEG") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"an image of at most {Image.MAX_IMAGE_PIXELS} pixels"
        raise mistake(path, limit, f"a larger one ({error})", "scale it down first") from error
    except PermissionError as error:
        raise mistake(path, "a readable file", str(error), "check its permissions") from error
    except Exception as error:  # on damaged files Pillow's decoders raise nearly anything
        got = f"one that cannot be decoded ({type(error).__name__}: {error})"
        raise mistake(path, _EXPECTED, got, "copy or download it again, or convert it") from error


def to_rgb(image: Image.Image, path: Path) -> np.ndarray:
    """(H, W, 3) uint8 of an image of any mode; transparency on white."""
    if image.mode[0] in "IF":
        grey = to_grey(image, path)
        # a 16-bit greyscale PNG may name one value as transparent; None equals no pixel
        grey[np.asarray(image) == image.info.get("transparency")] = 255
        return np.repeat(grey[..., None], 3, axis=-1)
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.array(image.convert("RGB"))
    except ValueError as error:
        expected, got = "an image that converts to RGB", f"mode {image.mode}"
        raise mistake(path, expected, got, "convert it to PNG or JPEG") from error


def to_grey(image: Image.Image, path: Path) -> np.ndarray:
    """(H, W) uint8 of a single channel of more than 8 bits; Pillow's own conversion would clip it."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        got = f"mode {image.mode} with values {values.min()}..{values.max()}"
        raise mistake(path, "8 or 16 bits a channel", got, "convert it to 8 bits a channel")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 -> 255, rounded


def mistake(file: str | Path, expected: str, got: str, hint: str) -> InputError:
    """The error that names a file, what was expected of it, what came, and what to try."""
    return InputError(f"{file}: expected {expected}, got {got}; {hint}")


def there(path: Path, test: Callable[[Path], bool]) -> bool:
    """`test` (such as `Path.is_dir`) of a path; False where the system will not even look at it."""
    try:
        return test(path)
    except (OSError, ValueError):  # no permission on a parent folder, a name too long, a NUL in it
        return False
