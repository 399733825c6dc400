"""Pyramid: does a crop from a reduced copy show what a crop from the whole photograph does, where it does?"""

import numpy as np
import pytest
from PIL import Image

from icnn.data.face_box import Box
from icnn.data.images import read_image, read_reduced
from icnn.data.pyramid import Pyramid
from icnn.data.resample import draw_labels, warp
from icnn.errors import InputError


def waves(height, width):
    """A photograph that changes slowly: any good filter shows it alike."""
    y, x = np.mgrid[:height, :width]
    channels = [np.sin(x / 120 + c) * np.cos(y / 150 - c) for c in range(3)]
    return np.rint(127 + 100 * np.stack(channels, -1)).astype(np.uint8)


def saved(path, pixels, **options):
    Image.fromarray(pixels).save(path, quality=95, **options)
    return path


@pytest.mark.parametrize("length", [100, 150, 300, 700, 1500, 2500])
@pytest.mark.parametrize("roll", [0, 33])
def test_a_crop_shows_the_same_at_any_scale(length, roll):
    photograph = waves(901, 1203)
    matrix = Box(600.5, 430.25, length, roll).matrix(64, 35)
    values, inside = Pyramid(photograph).crop(matrix, 64)
    expected, covered = warp(photograph, matrix, 64)
    both = inside & covered
    assert both.any() and (inside != covered).mean() < 0.02
    assert np.abs(values[both] - expected[both]).mean() < 2


@pytest.mark.parametrize(("shape", "factor"), [((300, 200), 1), ((1121, 1400), 2), ((2300, 3001), 4), ((600, 9000), 1)])
def test_a_large_jpeg_file_is_decoded_reduced(tmp_path, shape, factor):
    photograph = waves(*shape)
    path = saved(tmp_path / "a.jpg", photograph)
    pixels, found, size = read_reduced(path, 560)
    assert (found, size) == (factor, shape) and pixels.shape[:2] == tuple(-(-side // factor) for side in shape)
    opened = Pyramid.open(path)
    assert opened.shape == shape
    matrix = Box(shape[1] / 2, shape[0] / 2, 0.8 * min(shape)).matrix(64, 35)
    assert np.abs(opened.crop(matrix, 64)[0] - Pyramid(photograph).crop(matrix, 64)[0]).mean() < 3


def test_a_crop_of_a_small_face_is_read_at_its_size(tmp_path):
    """What is finer than the first copy shows comes from the file."""
    photograph = np.random.default_rng(0).integers(0, 255, (1200, 1200, 3), np.uint8)
    opened = Pyramid.open(saved(tmp_path / "a.jpg", photograph, subsampling=0))
    matrix = Box(600, 600, 140).matrix(64, 140)
    opened.reduced(2)
    values, _ = opened.crop(matrix, 64)
    assert np.abs(values - warp(photograph, matrix, 64)[0]).mean() < 12
    assert np.abs(opened.pixels.astype(int) - read_image(tmp_path / "a.jpg")).max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(1200, 1600), (1201, 1603)])
def test_turned_files_are_decoded_upright(tmp_path, orientation, shape):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.jpg", waves(*shape), exif=exif)
    whole, opened = read_image(path), Pyramid.open(path)
    assert opened.shape == whole.shape[:2]
    matrix = Box(opened.shape[1] * 0.4, opened.shape[0] * 0.6, 700).matrix(64, 35)
    assert np.abs(opened.crop(matrix, 64)[0] - Pyramid(whole).crop(matrix, 64)[0]).mean() < 2


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_files_of_other_modes_are_decoded_reduced(tmp_path, mode):
    Image.fromarray(waves(1200, 1300)).convert(mode).save(tmp_path / "a.jpg", progressive=True)
    pixels, factor, _ = read_reduced(tmp_path / "a.jpg", 560)
    expected = np.asarray(Image.fromarray(read_image(tmp_path / "a.jpg")).reduce(2), int)
    assert factor == 2 and np.abs(pixels - expected).mean() < 3


def test_a_damaged_file_is_refused_at_once(tmp_path):
    path = saved(tmp_path / "a.jpg", waves(900, 900))
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(InputError, match="cannot be decoded"):
        Pyramid.open(path)


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize("length", [60, 139, 140, 333, 900])
@pytest.mark.parametrize("roll", [0, -25, 180])
def test_drawn_labels_are_the_largest_of_resampled_probabilities(length, roll):
    rng = np.random.default_rng(length)
    coarse = rng.random((16, 16, 9)).astype(np.float32) ** 8
    maps = np.ascontiguousarray(np.kron(coarse, np.ones((16, 16, 1), np.float32)))
    maps[40:90, 30:200] = rng.random((50, 170, 9))
    maps /= maps.sum(-1, keepdims=True)
    matrix, shape = Box(400, 300, length, roll).inverse(256, 140), (620, 790)
    labels, rows, columns = draw_labels(maps, maps.argmax(-1).astype(np.uint8), matrix, shape)
    expected, inside = warp(maps, matrix, shape)
    np.testing.assert_array_equal(labels, np.where(inside, expected.argmax(-1), 0))
    for part in range(1, 9):
        np.testing.assert_array_equal(rows[part], (labels == part).sum(1))
        np.testing.assert_array_equal(columns[part], (labels == part).sum(0))
    assert labels.any()


@pytest.mark.parametrize("shape", [(1000, 70), (513, 30), (1, 1), (255, 31)])
@pytest.mark.parametrize("factor", [2, 8, 64])
def test_strips_do_not_show_in_a_reduced_copy(rng, shape, factor):
    pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    np.testing.assert_array_equal(Pyramid(pixels).reduced(factor), np.asarray(Image.fromarray(pixels).reduce(factor)))
