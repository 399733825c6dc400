"""Image decoding to upright RGB, with error messages that name the file.

`read_image` is the public entry point; `icnn.data.folder` decodes label maps
with the same helpers.
"""

import io
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from icnn.errors import InputError

# EXIF orientation -> the transposition that undoes it. ImageOps.exif_transpose is not used: it also rewrites the
# EXIF block, which fails if the block is damaged elsewhere. Only the pixels matter here.
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
    """Read an image file as upright 8-bit RGB.

    The EXIF orientation is applied, transparency is composited on white and
    16-bit greyscale is scaled to 8 bits. An animation yields its first frame.

    Parameters
    ----------
    path : path-like

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
    return to_rgb(decode(Path(path))[0], Path(path))


def read_reduced(path: Path, shorter: int) -> tuple[np.ndarray, int, tuple[int, int]]:
    """Read an image file as `read_image` does; a JPEG file reduced by 2, 4 or 8 if it is large.

    Decoding reduced takes a half to a fifth of the time.

    Parameters
    ----------
    path : Path
    shorter : int
        Least number of pixels of the shorter side of the reduced image.

    Returns
    -------
    pixels : (H, W, 3) uint8
    factor : int
        Reduction; 1 for a smaller image or one of another format.
    shape : (int, int)
        Height and width of the image in the file, upright.
    """
    _require_file(path)
    found = _decoded(path, path, shorter=shorter)
    width, height = found.size
    return to_rgb(found.image, path), found.factor, (height, width)


#: Formats that `photograph_of` accepts: those of cameras and browsers that Pillow decodes without an external program.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def photograph_of(data: bytes, name: str, most_pixels: int) -> np.ndarray:
    """Decode an image file's bytes as `read_image` does, checking its size before decoding.

    Parameters
    ----------
    data : bytes
        A file in one of `FORMATS`.
    name : str
        Name to use in error messages.
    most_pixels : int
        Largest width times height that is accepted.

    Returns
    -------
    (H, W, 3) uint8

    Raises
    ------
    InputError
        If the bytes are empty, damaged or in another format, or the image has
        more than `most_pixels` pixels.
    """
    if not data:
        raise mistake(name, _EXPECTED, "an empty file", "copy or download it again")
    Image.init()  # register all formats, to see which of FORMATS this Pillow build supports
    formats = tuple(name for name in FORMATS if name in Image.OPEN)
    return to_rgb(_decoded(io.BytesIO(data), Path(name), formats, most_pixels).image, Path(name))


class _Quiet:
    """State that `quiet` shares between threads: number of active users, and the stack that restores the filters."""

    lock = threading.Lock()
    users = 0
    back = ExitStack()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings, except for the decompression bomb, which becomes an error.

    Warning filters are global to the process: two threads with overlapping
    contexts would restore them in the wrong order. So the first thread to
    enter sets them and the last to leave restores them; many may decode at once.
    Everything here that decodes or converts is quiet by itself.
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


@contextmanager
def limited_pixels(most: int) -> Iterator[None]:
    """Refuse images of more than `most` pixels inside a ``with`` block; Pillow's own limit is 89 million."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, most
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def decode(path: Path) -> tuple[Image.Image, int]:
    """Decode a file to an upright image.

    Returns
    -------
    image : PIL.Image.Image
    orientation : int
        EXIF orientation (2 to 8) that was undone; 1 if there was none to undo.
    """
    _require_file(path)
    found = _decoded(path, path)
    return found.image, found.orientation


_EXPECTED = "an image such as JPEG or PNG"


def _require_file(path: Path) -> None:
    if not there(path, Path.is_file):  # reading a pipe would block forever
        got = "a directory" if there(path, Path.is_dir) else "no such file"
        raise mistake(path, _EXPECTED, got, "check the path and its permissions")
    if path.stat().st_size == 0:
        raise mistake(path, _EXPECTED, "an empty file", "copy or download it again")


class _Decoded(NamedTuple):
    """An upright image, the orientation that was undone, the factor of its reduction, its unreduced (width, height)."""

    image: Image.Image
    orientation: int
    factor: int
    size: tuple[int, int]


def _reduce(image: Image.Image, shorter: int, orientation: int) -> int:
    """Set a JPEG file to be decoded reduced, with at least `shorter` pixels of its shorter side; return the factor."""
    width, height = image.size
    factor = max((f for f in (1, 2, 4, 8) if min(width, height) >= f * shorter), default=1)
    if image.format not in ("JPEG", "MPO") or (orientation != 1 and (width % factor or height % factor)):
        return 1  # a turned image whose last pixels are parts of pixels would be shifted
    image.draft(image.mode, (width // factor, height // factor))
    return factor


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 2 to 8; 1 for upright, unknown or damaged ones: their pixels are kept as stored."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
        return found if found in _UPRIGHT else 1
    except Exception:
        return 1


@quiet()
def _decoded(
    file: Path | io.BytesIO,
    path: Path,
    formats: tuple[str, ...] | None = None,
    most_pixels: int | None = None,
    shorter: int | None = None,
) -> _Decoded:
    try:
        with Image.open(file, formats=formats) as image:
            width, height = image.size
            if most_pixels is not None and width * height > most_pixels:
                got = f"one of {width} x {height}"
                raise mistake(path, f"an image of at most {most_pixels} pixels", got, "scale it down first")
            factor = 1 if shorter is None else _reduce(image, shorter, _orientation(image))
            image.load()
            orientation = _orientation(image)  # that of a PNG file may follow its pixels
            if orientation == 1:
                return _Decoded(image, 1, factor, (width, height))
            size = (height, width) if orientation > 4 else (width, height)
            return _Decoded(image.transpose(_UPRIGHT[orientation]), orientation, factor, size)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise mistake(path, _EXPECTED, "another kind of file", "convert it to PNG or JPEG") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"an image of at most {Image.MAX_IMAGE_PIXELS} pixels"
        raise mistake(path, limit, f"a larger one ({error})", "scale it down, or raise the limit") from error
    except PermissionError as error:
        raise mistake(path, "a readable file", str(error), "check its permissions") from error
    except Exception as error:  # Pillow's decoders raise almost any exception on damaged files
        got = f"one that cannot be decoded ({type(error).__name__}: {error})"
        raise mistake(path, _EXPECTED, got, "copy or download it again, or convert it") from error


@quiet()
def to_rgb(image: Image.Image, path: Path) -> np.ndarray:
    """Convert an image of any mode to RGB, (H, W, 3) uint8, with transparency composited on white."""
    if image.mode[0] in "IF":
        grey = to_grey(image, path)
        # a 16-bit greyscale PNG may declare one value transparent; without one, None compares unequal to every pixel
        grey[np.asarray(image) == image.info.get("transparency")] = 255
        return np.repeat(grey[..., None], 3, axis=-1)
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except ValueError as error:
        expected, got = "an image that converts to RGB", f"mode {image.mode}"
        raise mistake(path, expected, got, "convert it to PNG or JPEG") from error


def as_photograph(image: "np.ndarray | Image.Image") -> np.ndarray:
    """Convert a PIL image or an array to (H, W, 3) uint8 RGB.

    Raises
    ------
    InputError
        If it is neither, has no pixels, or is of another shape or type.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))):
            got = f"{image.dtype} of shape {image.shape}"
            raise InputError(f"expected a photograph (H, W), (H, W, 3) or (H, W, 4) of uint8, got {got}")
        if not image.size:
            raise InputError(f"expected a photograph with pixels, got one of shape {image.shape}")
        if image.ndim == 3 and image.shape[2] == 3:
            return image
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise InputError(f"expected a PIL image or a NumPy array, got {type(image).__name__}")
    return to_rgb(image, Path(getattr(image, "filename", "") or "the image"))


def to_grey(image: Image.Image, path: Path) -> np.ndarray:
    """Scale a single channel of more than 8 bits to (H, W) uint8; Pillow's own conversion would clip it."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        got = f"mode {image.mode} with values {values.min()}..{values.max()}"
        raise mistake(path, "8 or 16 bits a channel", got, "convert it to 8 bits a channel")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 -> 255, rounded


def mistake(file: str | Path, expected: str, got: str, hint: str) -> InputError:
    """Build the error "FILE: expected EXPECTED, got GOT; HINT"."""
    return InputError(f"{file}: expected {expected}, got {got}; {hint}")


def there(path: Path, test: Callable[[Path], bool]) -> bool:
    """Return `test(path)` (`test` is for example `Path.is_dir`), or False if the system cannot examine the path."""
    try:
        return test(path)
    except (OSError, ValueError):  # no permission on a parent folder, name too long, or NUL in it
        return False
