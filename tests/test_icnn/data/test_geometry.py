"""Geometry: does every pixel, of the image and of its labels, land where it should, and come back?"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icnn.config import Augment
from icnn.data.augment import Draw
from icnn.data.folder import Face
from icnn.data.geometry import Letterbox, compose, fit_similarity, patch_matrix
from icnn.data.resample import labels_of, normalise, warp
from icnn.model.centres import DEFAULT_LAYOUT, complete_centres, face_scale, mean_layout, part_centres
from icnn.model.patches import cut_patch, joint_probabilities, most_probable, network_input, patch_origin
from icnn.stages import PATCHES
from icnn.train.batches import Sample, make_sample

#: (height, width): square, landscape, portrait, odd, smaller than the stage-1 square.
SIZES = [(256, 256), (200, 300), (333, 251), (140, 411), (50, 60)]
PATCH = {patch.name: patch for patch in PATCHES}
PLAIN = np.array([[1, 0, 0], [0, 1, 0]], np.float64)

by_size = pytest.mark.parametrize("shape", SIZES, ids=lambda shape: "{}x{}".format(*shape))
by_patch = pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def face_with_dot(shape, dot, sigma, part):
    """A black photograph with a soft white dot at (x, y), which is also the part's soft map."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    soft = np.rint(255 * np.exp(-((x - dot[0]) ** 2 + (y - dot[1]) ** 2) / (2 * sigma**2))).astype(np.uint8)
    pixels = np.zeros((*shape, 12), np.uint8)
    pixels[..., :3] = soft[..., None]
    pixels[..., 3] = 255 - soft
    pixels[..., 3 + part] = soft
    return Face("dot", pixels)


def centroid(weights):
    """(x, y) of the centre of mass of (H, W) weights."""
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]]
    return np.array([(weights * x).sum(), (weights * y).sum()]) / weights.sum()


def dots_of(image, labels, weights):
    """Centroids of the dot in a normalised image, and in its labels."""
    brightness = np.where(weights > 0, image.sum(0) - image.sum(0)[weights > 0].min(), 0)
    return centroid(brightness), centroid(labels > 0)


def moved(point, draw, size):
    """Where a point of a network's input goes, by mirroring, stretching, shearing, ... about the middle by hand."""
    middle = (size - 1) / 2
    root = np.sqrt(draw.stretch)
    x, y = (point[0] - middle) / root, (point[1] - middle) * root
    x = (-x if draw.mirrored else x) + draw.shear * y
    c, s = np.cos(np.radians(draw.rotation)), np.sin(np.radians(draw.rotation))
    turned = np.array([c * x - s * y, s * x + c * y])  # y down: x turns towards y
    return draw.scale * turned + middle + draw.shift


# ---------------------------------------------------------------- augmentation


@by_size
def test_a_dot_of_stage_1_lands_in_the_same_place_in_image_and_label(shape):
    rng = np.random.default_rng(1)
    height, width = shape
    zoom = 64 / max(shape)
    for _ in range(25):
        draw = Draw.random(rng, Augment())
        dot = np.array([width, height]) * rng.uniform(0.4, 0.6, 2)
        in_square = (dot + 0.5) * zoom - 0.5 + np.array([64 - width * zoom, 64 - height * zoom]) / 2
        sample = Sample(face_with_dot(shape, dot, 2 / zoom, 5))
        in_image, in_label = dots_of(*make_sample(sample, draw, "argmax"))
        np.testing.assert_allclose(in_image, moved(in_square, draw, 64), atol=0.04)
        np.testing.assert_allclose(in_label, in_image, atol=0.32)  # of a few whole pixels


@by_patch
@pytest.mark.parametrize("shape", [(256, 256), (201, 330)], ids=["256x256", "201x330"])
def test_a_dot_of_stage_2_lands_in_the_same_place_in_image_and_label(patch, shape):
    rng = np.random.default_rng(2)
    size = patch.size
    for number in range(25):
        draw = Draw.random(rng, Augment())
        centre = np.array([shape[1], shape[0]]) * rng.uniform(0.45, 0.55, 2)
        offset = rng.uniform(-9, 9, 2)
        in_patch = (size - 1) / 2 + offset * ((-1, 1) if patch.mirrored else (1, 1))
        part = patch.ids[number % len(patch.ids)]
        sample = Sample(face_with_dot(shape, centre + offset, 2.5, part), patch, centre)
        in_image, in_label = dots_of(*make_sample(sample, draw, "argmax"))
        np.testing.assert_allclose(in_image, moved(in_patch, draw, size), atol=0.04)
        np.testing.assert_allclose(in_label, in_image, atol=0.3)


ALL = Augment(stretch=0.2, shear=0.15, mirror=0.5)


def test_a_dot_lands_in_the_same_place_when_it_is_stretched_sheared_and_mirrored():
    rng = np.random.default_rng(6)
    for patch in (PATCHES[0], PATCHES[2], PATCHES[5]):
        for _ in range(25):
            draw = Draw.random(rng, ALL)
            centre, offset = np.array((130.0, 120.0)), rng.uniform(-9, 9, 2)
            in_patch = (patch.size - 1) / 2 + offset * ((-1, 1) if patch.mirrored else (1, 1))
            sample = Sample(face_with_dot((256, 256), centre + offset, 2.5, patch.ids[0]), patch, centre)
            in_image, in_label = dots_of(*make_sample(sample, draw, "argmax"))
            np.testing.assert_allclose(in_image, moved(in_patch, draw, patch.size), atol=0.05)
            np.testing.assert_allclose(in_label, in_image, atol=0.3)


@pytest.mark.parametrize(("part", "seen"), [(0, 0), (1, 3), (2, 4), (3, 1), (4, 2), (5, 5), (6, 6), (7, 7), (8, 8)])
def test_in_a_mirrored_face_left_and_right_swap(part, seen):
    face = face_with_dot((64, 64), np.array((20.0, 30.0)), 4, part or 5)
    labels = make_sample(Sample(face), Draw(mirrored=True), "argmax")[1]
    assert labels[30, 43] == (seen or 5) and labels[30, 20] == 0


def test_stretch_and_shear_keep_areas():
    rng = np.random.default_rng(7)
    for draw in (Draw.random(rng, ALL) for _ in range(20)):
        area = np.linalg.det(draw.matrix(64)[:, :2]) * draw.scale**2
        assert area == pytest.approx(-1 if draw.mirrored else 1)


def test_draws_stay_within_the_settings_and_fill_them():
    rng = np.random.default_rng(3)
    draws = [Draw.random(rng, Augment()) for _ in range(4000)]
    values = np.array([(draw.rotation, draw.scale, *draw.shift) for draw in draws])
    low, high = np.array([(-15, 0.9, -10, -10), (15, 1.1, 10, 10)])
    assert (values >= low).all() and (values <= high).all()
    places = (values - low) / (high - low)
    for column in places.T:  # ten bins of 400 in expectation
        assert np.histogram(column, 10, (0, 1))[0] == pytest.approx(400, abs=90)
    assert np.abs(np.corrcoef(places.T) - np.eye(4)).max() < 0.06


def test_draws_follow_other_settings():
    rng = np.random.default_rng(4)
    settings = Augment(rotation=3, scale=(1.2, 1.3), shift=5)
    draws = [Draw.random(rng, settings) for _ in range(300)]
    assert 2.8 < max(abs(draw.rotation) for draw in draws) <= 3
    assert 1.2 <= min(draw.scale for draw in draws) < 1.21 < 1.29 < max(draw.scale for draw in draws) <= 1.3
    assert 4.7 < max(np.abs(draw.shift).max() for draw in draws) <= 5


def test_draws_of_shape_follow_their_settings():
    rng = np.random.default_rng(8)
    draws = [Draw.random(rng, ALL) for _ in range(2000)]
    assert 0.8 <= min(d.stretch for d in draws) < 0.81 < 1.19 < max(d.stretch for d in draws) <= 1.2
    assert -0.15 <= min(d.shear for d in draws) < -0.145 < 0.145 < max(d.shear for d in draws) <= 0.15
    assert np.mean([d.mirrored for d in draws]) == pytest.approx(0.5, abs=0.05)
    assert not any(Draw.random(rng, Augment()).mirrored for _ in range(100))


def test_no_draw_moves_nothing():
    assert (Draw().matrix(64) == PLAIN).all()


def test_compose_applies_the_inner_map_first():
    rng = np.random.default_rng(5)
    outer, inner = rng.normal(size=(2, 2, 3))
    point = np.array([3.0, -2.0])
    step = inner[:, :2] @ point + inner[:, 2]
    expected = outer[:, :2] @ step + outer[:, 2]
    np.testing.assert_allclose(compose(outer, inner) @ (3, -2, 1), expected)


# ---------------------------------------------------------------- letterbox


def test_a_300_x_200_photograph_goes_to_64_x_64_and_back_with_its_dot_in_place():
    dot, part = np.array([203.0, 71.0]), 5
    face = face_with_dot((200, 300), dot, 9, part)
    in_image, in_label = dots_of(*make_sample(Sample(face), Draw(), "argmax"))
    box = Letterbox.of(200, 300, 64)
    np.testing.assert_allclose(box.to_image(in_image), dot, atol=0.1)  # a fiftieth of a square's pixel
    np.testing.assert_allclose(box.to_image(in_label), dot, atol=1)


@by_size
def test_a_letterbox_is_centred_and_keeps_the_aspect_ratio(shape):
    height, width = shape
    box = Letterbox.of(height, width, 64)
    left, top = box.to_square([-0.5, -0.5])  # the outer edges of the photograph
    right, bottom = box.to_square([width - 0.5, height - 0.5])
    assert left + right == pytest.approx(63) and top + bottom == pytest.approx(63)
    assert (right - left) / (bottom - top) == pytest.approx(width / height)
    assert max(right - left, bottom - top) == pytest.approx(64)


@by_size
def test_letterbox_coordinates_come_back(shape):
    points = np.random.default_rng(6).uniform(-20, 420, (50, 2))
    box = Letterbox.of(*shape, 64)
    np.testing.assert_allclose(box.to_image(box.to_square(points)), points, atol=1e-10)
    np.testing.assert_allclose(box.matrix() @ (*box.to_square([12.0, 34.0]), 1), (12, 34), atol=1e-10)


def test_padding_is_0_with_label_0_and_weight_0():
    pixels = noise(200, 300, 12)
    pixels[..., 3] = 0  # every pixel belongs to some part
    image, labels, weights = make_sample(Sample(Face("landscape", pixels)), Draw(), "argmax")
    # 64 x 42 2/3 pixels: rows whose centre lies within 32 ± 21 1/3
    real = np.abs(np.arange(64) - 31.5) < 21 + 1 / 3
    assert (weights == real[:, None]).all() and weights.sum() == 42 * 64
    assert (image[:, ~real] == 0).all() and (labels[~real] == 0).all()
    assert (image[:, real] != 0).all() and (labels[real] > 0).all()


@pytest.mark.parametrize("shape", [(256, 252), (256, 253), (252, 256), (384, 378), (300, 200), (97, 131)])
def test_the_letterbox_of_a_mirrored_image_is_the_mirrored_letterbox(shape):
    """Also where pixel centres fall on the photograph's very edge (252 of 256)."""
    image, matrix = noise(*shape), Letterbox.of(*shape, 64).matrix()
    values, inside = warp(image, matrix, 64)
    mirrored_values, mirrored_inside = warp(image[:, ::-1], matrix, 64)
    assert (mirrored_inside == inside[:, ::-1]).all()
    np.testing.assert_allclose(mirrored_values, values[:, ::-1], atol=1e-3)


# ---------------------------------------------------------------- warp


def test_the_identity_copies():
    image = noise(40, 40)
    values, inside = warp(image, PLAIN, 40)
    assert (values == image).all() and inside.all()


def test_a_whole_pixel_shift_copies_and_leaves_0_outside():
    image = noise(40, 30) | 1  # no zero inside
    values, inside = warp(image, np.array([[1, 0, -5], [0, 1, 7]]), 48)
    expected = np.zeros((48, 48, 3))
    expected[:33, 5:35] = image[7:]
    assert (values == expected).all()
    assert (inside == (expected[..., 0] > 0)).all()


def test_half_a_pixel_is_the_mean_of_two():
    image = noise(20, 20)
    values, _ = warp(image, np.array([[1, 0, 0.5], [0, 1, 0]]), 19)
    np.testing.assert_allclose(values, (image[:19, :19] + image[:19, 1:].astype(float)) / 2, atol=1e-3)


def test_downscaling_by_4_is_the_mean_of_boxes():
    image = noise(64, 64)
    values, inside = warp(image, Letterbox.of(64, 64, 16).matrix(), 16)
    np.testing.assert_allclose(values, image.reshape(16, 4, 16, 4, 3).mean((1, 3)), atol=1e-3)
    assert inside.all()


@pytest.mark.parametrize("angle", [-180, -90, -31, 0, 8, 45, 90, 133])
@pytest.mark.parametrize("scale", [0.2, 0.9, 1.0, 3.1])
def test_a_constant_image_stays_constant(angle, scale):
    image = np.full((50, 70, 3), (7, 128, 255), np.uint8)
    matrix = compose(Letterbox.of(50, 70, 64).matrix(), Draw(angle, scale, (4, -3)).matrix(64))
    values, inside = warp(image, matrix, 64)
    assert inside.any()
    np.testing.assert_allclose(values[inside], np.broadcast_to([7, 128, 255], (inside.sum(), 3)), atol=1e-3)
    assert (values[~inside] == 0).all()


def test_a_warp_wholly_outside_is_empty():
    values, inside = warp(noise(20, 20), np.array([[1.0, 0, 100], [0, 1, -300]]), 16)
    assert not values.any() and not inside.any()


def test_inside_is_where_the_source_lies_within_half_a_pixel_of_the_image():
    matrix = compose(patch_matrix(np.array([3.0, 40.0]), 64, True), Draw(13, 0.93, (6.2, -7.9)).matrix(64))
    inside = warp(noise(45, 30), matrix, 64)[1]
    y, x = np.mgrid[:64, :64]
    u, v = np.einsum("ij,jyx->iyx", matrix, np.stack([x, y, np.ones_like(x)]))
    assert (inside == ((u > -0.5) & (u < 29.5) & (v > -0.5) & (v < 44.5))).all()
    assert 0 < inside.sum() < inside.size


def test_a_warped_checkerboard_is_grey_where_it_shrinks():
    """The filter before downscaling: without it, single pixels of a fine pattern would be picked."""
    image = np.indices((192, 192)).sum(0)[..., None] % 2 * np.uint8(255)
    values, inside = warp(image.astype(np.uint8), compose(Letterbox.of(192, 192, 64).matrix(), PLAIN), 64)
    assert np.abs(values[inside] - 127.5).max() < 15  # 4 or 5 white pixels of 9


# ---------------------------------------------------------------- labels and normalisation


def soft(*values):
    """One pixel's nine soft maps, by default background."""
    maps = np.zeros((1, 1, 9), np.float32)
    for part, value in values:
        maps[0, 0, part] = value
    return maps


@pytest.mark.parametrize(
    "maps, rule, label",
    [
        (soft((0, 120), (5, 135)), "argmax", 5),
        (soft((0, 135), (5, 120)), "argmax", 0),
        (soft((0, 127), (5, 127)), "argmax", 0),
        (soft((6, 127), (7, 127)), "argmax", 6),
        (soft((0, 204), (5, 51)), "threshold", 5),
        (soft((0, 100), (5, 50)), "threshold", 0),
        (soft((0, 100), (6, 60), (8, 90)), "threshold", 8),
        (soft((6, 90), (7, 90)), "threshold", 6),
    ],
)
def test_the_label_of_a_pixel(maps, rule, label):
    assert labels_of(maps, np.array([[True]]), rule) == label


@pytest.mark.parametrize("rule", ["argmax", "threshold"])
def test_outside_the_image_the_label_is_0(rule):
    maps = np.broadcast_to(soft((8, 255)), (1, 2, 9))
    assert labels_of(maps, np.array([[True, False]]), rule).tolist() == [[8, 0]]


def test_normalised_channels_have_mean_0_and_std_1_over_real_pixels():
    rng = np.random.default_rng(7)
    values = rng.uniform(0, 255, (64, 64, 3)).astype(np.float32) * (1, 0.1, 3) + (0, 100, 20)
    inside = rng.random((64, 64)) < 0.6
    out = normalise(values, inside)
    assert out.shape == (3, 64, 64) and out.dtype == np.float32
    np.testing.assert_allclose(out[:, inside].mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(out[:, inside].std(1), 1, atol=1e-5)
    assert (out[:, ~inside] == 0).all()


def test_normalising_keeps_the_channels_apart_and_in_order():
    values = noise(8, 8).astype(np.float32)
    out = normalise(values, np.ones((8, 8), bool))
    for channel in range(3):
        assert np.corrcoef(out[channel].ravel(), values[..., channel].ravel())[0, 1] == pytest.approx(1)


@pytest.mark.parametrize("value", [0, 77, 0.1, 254.9])
def test_a_constant_channel_becomes_0(value):
    values = noise(64, 64).astype(np.float32)
    values[..., 1] = value
    out = normalise(values, np.ones((64, 64), bool))
    assert np.abs(out[1]).max() < 1e-4
    assert out[[0, 2]].std() == pytest.approx(1, abs=1e-4)


@by_size
def test_a_constant_photograph_becomes_0_after_any_warp(shape):
    """The warp's rounding must not be blown up to a standard deviation of 1."""
    pixels = np.full((*shape, 12), 77, np.uint8)
    image, _, weights = make_sample(Sample(Face("grey", pixels)), Draw(7.3, 1.03, (2, 3)), "argmax")
    assert np.abs(image).max() < 1e-3
    assert weights.any()


def test_a_patch_without_real_pixels_is_0():
    assert not normalise(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), bool)).any()


# ---------------------------------------------------------------- part centres


def label_map(*pixels, shape=(40, 60)):
    labels = np.zeros(shape, np.uint8)
    for part, x, y in pixels:
        labels[y, x] = part
    return labels


def test_a_centre_is_the_median_of_each_axis():
    labels = label_map((5, 10, 30), (5, 11, 4), (5, 40, 6))
    assert part_centres(labels)[4].tolist() == [11, 6]


def test_an_even_count_takes_the_mean_of_the_middle_two():
    labels = label_map((5, 10, 4), (5, 11, 6), (5, 20, 9), (5, 40, 30))
    assert part_centres(labels)[4].tolist() == [15.5, 7.5]


def test_a_box_centre_is_the_middle_of_the_bounding_box():
    labels = label_map((5, 10, 30), (5, 11, 4), (5, 41, 6))
    assert part_centres(labels, "box")[4].tolist() == [25.5, 17]


def test_the_three_mouth_parts_share_one_centre():
    labels = label_map((6, 10, 20), (7, 12, 22), (8, 20, 27))
    assert part_centres(labels)[5].tolist() == [12, 22]


def test_centres_come_in_the_order_of_the_patches():
    labels = label_map(*((patch.ids[0], 3 * n, n) for n, patch in enumerate(PATCHES, 1)))
    assert part_centres(labels).tolist() == [[3 * n, n] for n in range(1, 7)]


@pytest.mark.parametrize("rule", ["median", "box"])
def test_the_centre_of_an_absent_part_is_nan(rule):
    centres = part_centres(label_map((2, 5, 5)), rule)
    assert np.isnan(centres[[0, 2, 3, 4, 5]]).all() and centres[1].tolist() == [5, 5]


# ---------------------------------------------------------------- parts that were not found

LAYOUT = DEFAULT_LAYOUT * 64 - 0.5


def without(centres, *missing):
    centres = centres.copy()
    centres[list(missing)] = np.nan
    return centres


@pytest.mark.parametrize("missing", [(4,), (0, 5), (0, 1, 2, 3), (1, 2, 4, 5)])
@pytest.mark.parametrize("angle, scale", [(0, 1), (20, 0.8), (-35, 1.4)])
def test_missing_parts_are_recovered_under_a_similarity(missing, angle, scale):
    c, s = scale * np.cos(np.radians(angle)), scale * np.sin(np.radians(angle))
    true = LAYOUT @ np.array([[c, s], [-s, c]]) + (3, -7)
    np.testing.assert_allclose(complete_centres(without(true, *missing), LAYOUT), true, atol=1e-9)


def test_found_centres_are_kept_to_the_bit():
    found = LAYOUT + np.random.default_rng(8).normal(0, 3, (6, 2))
    completed = complete_centres(without(found, 2, 4), LAYOUT)
    kept = [0, 1, 3, 5]
    assert (completed[kept] == found[kept]).all()
    assert (complete_centres(found, LAYOUT) == found).all()


def test_a_missing_part_is_about_right_when_the_others_are():
    found = LAYOUT + np.random.default_rng(9).normal(0, 1, (6, 2))
    assert np.abs(complete_centres(without(found, 4), LAYOUT) - LAYOUT)[4].max() < 2


def test_with_one_part_found_the_layout_is_shifted():
    one = np.full((6, 2), np.nan)
    one[4] = 20.0, 50.0
    np.testing.assert_allclose(complete_centres(one, LAYOUT), LAYOUT + (one[4] - LAYOUT[4]))


def test_with_no_part_found_the_layout_is_used():
    nothing = np.full((6, 2), np.nan)
    completed = complete_centres(nothing, LAYOUT)
    assert (completed == LAYOUT).all()
    completed[:] = 0  # the layout itself must not be handed out
    assert LAYOUT.any()


@pytest.mark.parametrize("gap", [0, 1e-9, 0.5])
def test_two_parts_found_on_one_spot_leave_the_layout_at_its_size(gap):
    found = np.full((6, 2), np.nan)
    found[1], found[3] = (30, 30), (30 + gap, 30)
    completed = complete_centres(found, LAYOUT)
    eyes = (LAYOUT[1] + LAYOUT[3]) / 2
    np.testing.assert_allclose(completed[[0, 2, 4, 5]], (LAYOUT - eyes + (30 + gap / 2, 30))[[0, 2, 4, 5]])


def test_the_mean_layout_is_in_squares_of_side_1():
    shapes = [(200, 300), (256, 256)]
    boxes = [Letterbox.of(*shape, 64) for shape in shapes]
    layouts = DEFAULT_LAYOUT, DEFAULT_LAYOUT + 0.1
    centres = [box.to_image(layout * 64 - 0.5) for box, layout in zip(boxes, layouts, strict=True)]
    np.testing.assert_allclose(mean_layout(centres, boxes, 64), DEFAULT_LAYOUT + 0.05, atol=1e-12)


def test_the_mean_layout_leaves_absent_parts_out():
    box = Letterbox.of(64, 64, 64)
    first, second = without(LAYOUT + 2, 0, 4), without(LAYOUT + 4, 0)
    layout = mean_layout([first, second], [box, box], 64) * 64 - 0.5
    np.testing.assert_allclose(layout[4], LAYOUT[4] + 4)  # of the one face that has it
    np.testing.assert_allclose(layout[[1, 2, 3, 5]], LAYOUT[[1, 2, 3, 5]] + 3)
    np.testing.assert_allclose(layout[0], LAYOUT[0])  # of no face: the default


# ---------------------------------------------------------------- patches


def test_a_patch_has_its_centre_in_the_middle():
    assert patch_origin(np.array([100.5, 80.5]), 64, (256, 256)) == (69, 49)  # pixels 69..132, middle 100.5
    assert patch_origin(np.array([100.2, 80.9]), 64, (256, 256)) == (69, 49)
    assert patch_origin(np.array([5.5, -3.5]), 80, (256, 256)) == (-34, -43)


@given(
    st.one_of(st.integers(0, 1000).map(lambda n: n / 2), st.floats(-40, 540)),
    st.integers(20, 260).map(lambda half: 2 * half),
    st.sampled_from([64, 80]),
)
def test_the_patch_of_a_mirrored_image_is_the_mirrored_patch(x, width, size):
    x = min(x, width - 1)
    here = patch_origin(np.array([x, 9.0]), size, (100, width))[0]
    there = patch_origin(np.array([width - 1 - x, 9.0]), size, (100, width))[0]
    assert there == width - size - here
    assert abs(here + (size - 1) / 2 - x) <= 0.5 + 1e-5


@pytest.mark.parametrize("width", [102, 200, 256, 300, 332, 414])
def test_patches_mirror_also_for_halves_that_scaling_back_has_rounded(width):
    box = Letterbox.of(180, width, 64)
    for place in np.arange(0, 63.5, 0.5):  # medians
        here, there = (box.to_image([x, 0.0]) for x in (place, 63 - place))
        assert patch_origin(there, 64, (180, width))[0] == width - 64 - patch_origin(here, 64, (180, width))[0]


@by_patch
@pytest.mark.parametrize("origin", [(20, 30), (-9, -13), (70, 60), (-30, 75)])
def test_a_cut_patch_shows_the_image_at_its_place(patch, origin):
    image = noise(100, 90) | 1
    values, inside = cut_patch(image, origin, patch)
    expected = np.zeros((patch.size, patch.size, 3), np.uint8)
    for row in range(patch.size):
        for column in range(patch.size):
            y, x = origin[1] + row, origin[0] + column
            if 0 <= y < 100 and 0 <= x < 90:
                expected[row, column] = image[y, x]
    if patch.mirrored:
        expected = expected[:, ::-1]
    assert (values == expected).all() and (inside == (expected[..., 0] > 0)).all()


@by_patch
@pytest.mark.parametrize("origin", [(-100, 5), (5, -200), (90, 0), (0, 100), (500, 500)])
def test_a_patch_wholly_outside_is_empty(patch, origin):
    values, inside = cut_patch(noise(100, 90), origin, patch)
    assert not values.any() and not inside.any()
    assert not network_input(noise(100, 90), origin, patch).any()


def test_the_network_input_is_normalised_over_the_pixels_in_the_image():
    patch, image = PATCH["right_eye"], noise(100, 90)
    out = network_input(image, (60, -20), patch)  # 30 columns and 44 rows in the image
    cut = image[:44, 60:].reshape(-1, 3)[None].astype(float)
    expected = ((image[:44, 60:] - cut.mean(1)) / cut.std(1))[:, ::-1]
    np.testing.assert_allclose(out[:, 20:, 34:], expected.transpose(2, 0, 1), atol=1e-5)
    assert not out[:, :20].any() and not out[:, :, :34].any()


@by_patch
def test_a_patch_knows_its_own_parts_and_takes_the_other_side_for_background(patch):
    labels = patch.to_network_labels()
    assert labels[list(patch.ids)].tolist() == list(range(1, len(patch.ids) + 1))
    assert labels.sum() == sum(range(len(patch.ids) + 1))  # every other id is background
    assert (patch.to_ids()[labels[list(patch.ids)]] == patch.ids).all() and patch.to_ids()[0] == 0


# ---------------------------------------------------------------- pasting


def paste_patches(*arguments):
    """Labels of the joint probabilities."""
    joint = joint_probabilities(*arguments)
    np.testing.assert_allclose(joint.sum(-1), 1, atol=1e-6)
    labels = most_probable(joint)
    assert labels.dtype == np.uint8 and (labels == joint.argmax(-1)).all()
    return labels


def one_hot(labels, count, confidence=0.9):
    """(L, S, S) probabilities that favour (S, S) labels."""
    rest = (1 - confidence) / (count - 1)
    return np.where(np.arange(count)[:, None, None] == labels, confidence, rest)


@by_patch
@pytest.mark.parametrize("origin", [(20, 30), (-9, -13), (70, 60), (-70, 0), (200, 200)])
def test_pasting_undoes_cutting(patch, origin):
    truth = np.random.default_rng(10).integers(0, 9, (100, 90), dtype=np.uint8)
    cut = cut_patch(truth[..., None], origin, patch)[0][..., 0]
    labels = patch.to_network_labels()[cut]
    pasted = paste_patches((100, 90), [patch], [origin], [one_hot(labels, 1 + len(patch.ids))])
    covered = np.zeros((100, 90), bool)
    covered[max(0, origin[1]) : max(0, origin[1] + patch.size), max(0, origin[0]) : max(0, origin[0] + patch.size)] = 1
    assert (pasted == np.where(covered & np.isin(truth, patch.ids), truth, 0)).all()


def everywhere(patch, label, confidence):
    """Probabilities of a patch that says one label at every pixel."""
    return one_hot(np.full((patch.size, patch.size), label), 1 + len(patch.ids), confidence)


def overlap(*said):
    """The label where patches overlap, given (patch, its label, probability), in whatever order they come."""
    patches = [PATCH[name] for name, _, _ in said]
    maps = [everywhere(PATCH[name], label, p) for name, label, p in said]
    results = set()
    for order in (slice(None), slice(None, None, -1)):
        pasted = paste_patches((70, 70), patches[order], [(0, 0)] * len(said), maps[order])
        results.add(int(pasted[5, 5]))
    assert len(results) == 1, "the order in which patches are given must not matter"
    return results.pop()


def test_the_highest_probability_wins_an_overlap():
    assert overlap(("left_eye", 1, 0.8), ("nose", 1, 0.9)) == 5
    assert overlap(("left_eye", 1, 0.9), ("nose", 1, 0.8)) == 2
    assert overlap(("left_eye", 1, 0.6), ("nose", 1, 0.8), ("mouth", 3, 0.7)) == 5


def test_of_equal_probabilities_the_lower_id_wins():
    assert overlap(("mouth", 1, 0.75), ("nose", 1, 0.75)) == 5
    assert overlap(("right_eyebrow", 1, 0.75), ("left_eye", 1, 0.75)) == 2  # id 3 comes before 2 in some lists


def test_the_background_of_a_patch_beats_nothing():
    assert overlap(("left_eye", 0, 0.99), ("nose", 1, 0.51)) == 5
    assert overlap(("left_eye", 0, 0.99), ("nose", 0, 0.51)) == 0


def test_a_mouth_part_that_leads_its_own_patch_narrowly_loses_to_a_surer_one():
    mouth, nose = PATCH["mouth"], PATCH["nose"]
    p = np.broadcast_to(np.array([0.1, 0.2, 0.3, 0.4])[:, None, None], (4, 80, 80))
    sure, unsure = everywhere(nose, 1, 0.55), everywhere(nose, 0, 0.55)
    assert paste_patches((80, 80), [nose, mouth], [(0, 0)] * 2, [sure, p])[3, 3] == 5
    assert paste_patches((80, 80), [nose, mouth], [(0, 0)] * 2, [unsure, p])[3, 3] == 8


def test_outside_all_patches_everything_is_background():
    pasted = paste_patches((100, 100), [PATCH["nose"]], [(10, 20)], [everywhere(PATCH["nose"], 1, 0.9)])
    expected = np.zeros((100, 100))
    expected[20:84, 10:74] = 5
    assert (pasted == expected).all()


# ---------------------------------------------------------------- similarities


def test_a_similarity_is_found_again_and_its_scale_is_the_faces():
    rng = np.random.default_rng(9)
    usual = DEFAULT_LAYOUT * 256
    for _ in range(20):
        scale, angle, shift = rng.uniform(0.2, 5), rng.uniform(-3, 3), rng.uniform(-99, 99, 2)
        c, s = np.cos(angle), np.sin(angle)
        centres = scale * usual @ np.array([[c, s], [-s, c]]) + shift
        np.testing.assert_allclose(fit_similarity(usual, centres)(usual), centres, atol=1e-9)
        assert face_scale(centres, usual) == pytest.approx(scale)


def test_several_similarities_are_fitted_as_one_by_one():
    sources, targets = np.random.default_rng(11).normal(0, 40, (2, 3, 5, 2))
    sources[2] = 7  # points in one spot: a pure shift
    fits, points = fit_similarity(sources, targets), targets[0]
    for k, together in enumerate(fits(points)):
        np.testing.assert_allclose(together, fit_similarity(sources[k], targets[k])(points), atol=1e-9)
    np.testing.assert_allclose(fits(points)[2], points - 7 + targets[2].mean(0))


def test_a_face_and_its_mirror_image_are_equally_large():
    rng = np.random.default_rng(10)
    usual = DEFAULT_LAYOUT * 256 + rng.normal(0, 4, (6, 2))  # of faces that look to one side
    centres = usual + rng.normal(0, 9, (6, 2))
    mirrored = centres[[2, 3, 0, 1, 4, 5]] * (-1, 1) + (255, 0)
    assert face_scale(mirrored, usual) == pytest.approx(face_scale(centres, usual), rel=1e-12)
