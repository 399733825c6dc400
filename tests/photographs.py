"""What the tests of photographs and of folders share: pictures, files, and an error of one line."""

import re

import numpy as np
import pytest
from PIL import ExifTags, Image

from icnn.errors import InputError


def fails(*words):
    """One line that holds all the words, in order."""
    pattern = r"\A(?=[^\r\n]*\Z).*" + ".*".join(re.escape(str(word)) for word in words)
    return pytest.raises(InputError, match=pattern)


def photograph(height=8, width=14):
    """(H, W, 3) uint8: smooth, so that JPEG changes it little."""
    y, x = np.mgrid[:height, :width]
    return np.stack([40 + 8 * x, 60 + 9 * y, 200 - 5 * x], axis=-1).astype(np.uint8)


def grey_ramp():
    return np.tile(np.arange(14, dtype=np.uint8) * 17, (8, 1))


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
