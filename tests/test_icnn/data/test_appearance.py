"""Appearance: does each change of colours do what it says, within its settings, and nothing else?"""

from dataclasses import fields, replace

import numpy as np
import pytest

from icnn.config import Augment, Train
from icnn.data.augment import Draw
from icnn.data.photometric import Appearance, Occluder
from icnn.synthetic.faces import synthetic_faces
from icnn.train.batches import Batches, make_sample, samples_of

SIZE = 32
PLAIN = Appearance(1.0, 1.0, np.zeros(2), 0.0, 0.0, 0, None)
INSIDE = np.ones((SIZE, SIZE), np.bool_)
#: Every change at once, as strong as is usual.
STRONG = Augment(
    gamma=0.5, saturation=(0.2, 1.6), grey=0.2, light=0.5, blur=1.5, noise=15, jpeg=0.5, quality=(20, 60), occlusion=0.5
)


def picture(seed=0):
    return np.random.default_rng(seed).uniform(0, 255, (SIZE, SIZE, 3)).astype(np.float32)


def changed(values, inside=INSIDE, **change):
    return replace(PLAIN, **change).apply(values, inside, np.random.default_rng(1))


def test_without_settings_nothing_changes():
    rng, values = np.random.default_rng(0), picture()
    for _ in range(20):
        np.testing.assert_array_equal(Appearance.random(rng, Augment()).apply(values, INSIDE, rng), values)


def test_what_is_given_is_not_written_to():
    values, rng = picture(), np.random.default_rng(0)
    before = values.copy()
    for _ in range(20):
        Appearance.random(rng, STRONG).apply(values, INSIDE, rng)
    np.testing.assert_array_equal(values, before)


def test_outside_stays_as_it_is():
    rng, inside = np.random.default_rng(0), INSIDE.copy()
    inside[:, :9] = False
    values = picture() * inside[..., None]
    for _ in range(40):
        assert not Appearance.random(rng, STRONG).apply(values, inside, rng)[:, :9].any()


def test_the_tone_curve():
    values = np.repeat(np.linspace(0, 255, SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE, 1), 3, 2)
    np.testing.assert_allclose(changed(values, gamma=1.7), 255 * (values / 255) ** 1.7, atol=0.01)
    np.testing.assert_allclose(changed(values, gamma=0.6), 255 * (values / 255) ** 0.6, atol=3)  # steep at black
    np.testing.assert_allclose(changed(values, gamma=0.6)[4:], 255 * (values[4:] / 255) ** 0.6, atol=0.05)


def test_saturation():
    values = picture()
    luma = values @ np.array((0.299, 0.587, 0.114))
    np.testing.assert_allclose(changed(values, saturation=0.0), np.repeat(luma[..., None], 3, 2), atol=0.01)
    np.testing.assert_allclose(changed(values, saturation=0.5), (values + luma[..., None]) / 2, atol=0.01)
    grey = np.repeat(values[..., :1], 3, 2)
    np.testing.assert_allclose(changed(grey, saturation=1.8), grey, atol=0.01)


def test_light_falls_along_its_slope():
    lit = changed(np.full((SIZE, SIZE, 3), 100, np.float32), light=np.array((0.4, -0.2)))
    np.testing.assert_allclose(lit[0, 0], 100 * (1 - (0.4 - 0.2) * (SIZE - 1) / SIZE), atol=0.01)
    np.testing.assert_allclose(np.diff(lit[3, :, 1]), 100 * 0.4 * 2 / SIZE, atol=0.01)
    np.testing.assert_allclose(np.diff(lit[:, 5, 2]), 100 * -0.2 * 2 / SIZE, atol=0.01)


def test_blur_is_a_gaussian_of_its_width_that_outside_has_no_part_in():
    dot = np.zeros((SIZE, SIZE, 3), np.float32)
    dot[16, 16] = 200
    seen = changed(dot, blur=0.9)[..., 0] / 200
    steps = np.arange(SIZE) - 16
    assert seen.sum() == pytest.approx(1, abs=1e-5)
    assert (seen.sum(0) * steps**2).sum() == pytest.approx(0.81, abs=0.03)
    np.testing.assert_allclose(seen, seen.T, atol=1e-6)
    inside = INSIDE.copy()
    inside[:, 20:] = False
    flat = np.full((SIZE, SIZE, 3), 90, np.float32) * inside[..., None]
    np.testing.assert_allclose(changed(flat, inside, blur=1.5), flat, atol=1e-3)


def test_noise_has_its_deviation():
    noise = changed(np.full((SIZE, SIZE, 3), 128, np.float32), noise=7.0) - 128
    assert noise.std() == pytest.approx(7, rel=0.05) and abs(noise.mean()) < 0.5


def test_a_jpeg_is_closer_the_better_it_is():
    values = np.cumsum(picture(), 1) % 256  # neither flat nor mere noise
    errors = [np.abs(changed(values.astype(np.float32), quality=quality) - values).mean() for quality in (5, 30, 95)]
    assert errors[0] > errors[1] > errors[2] > 0


def test_an_occluder_hides_its_rectangle():
    values, colour = picture(), np.array((10, 20, 30), np.float32)
    seen = changed(values, occluder=Occluder(np.array((0.5, 0.25)), np.array((0.25, 0.125)), 0.0, colour))
    hidden = (seen == colour).all(2)
    expected = np.zeros_like(hidden)
    expected[4:12, 8:24] = True
    np.testing.assert_array_equal(hidden, expected)
    np.testing.assert_array_equal(seen[~hidden], values[~hidden])
    turned = changed(values, occluder=Occluder(np.array((0.5, 0.5)), np.array((0.25, 0.125)), np.pi / 2, colour))
    assert (turned == colour).all(2)[8:24, 12:20].all()


def test_draws_stay_within_the_settings_and_fill_them():
    rng = np.random.default_rng(0)
    draws = [Appearance.random(rng, STRONG) for _ in range(3000)]
    gammas = np.log([draw.gamma for draw in draws])
    assert -0.5 <= gammas.min() < -0.48 and 0.48 < gammas.max() <= 0.5
    lights = np.array([draw.light for draw in draws])
    assert 0.48 < np.abs(lights).max() <= 0.5
    blurs, noises = np.array([draw.blur for draw in draws]), np.array([draw.noise for draw in draws])
    assert 1.4 < blurs.max() <= 1.5 and np.mean(blurs == 0) == pytest.approx(0.5, abs=0.05)
    assert 14 < noises.max() <= 15
    colours = np.array([draw.saturation for draw in draws])
    assert np.mean(colours == 0) == pytest.approx(0.2, abs=0.03)
    assert colours[colours > 0].min() >= 0.2 and colours.max() <= 1.6
    qualities = np.array([draw.quality for draw in draws])
    assert np.mean(qualities > 0) == pytest.approx(0.5, abs=0.05)
    assert set(qualities[qualities > 0]) == set(range(20, 61))
    hidden = [draw.occluder for draw in draws if draw.occluder is not None]
    assert len(hidden) == pytest.approx(1500, abs=150)
    assert all(0.15 <= 2 * side <= 0.5 for one in hidden for side in one.half)


@pytest.mark.parametrize("setting", ["gamma", "saturation", "grey", "light", "blur", "noise", "jpeg", "occlusion"])
def test_a_setting_moves_no_other_draw(setting):
    """So that rows of a table of experiments differ in what they say they differ in."""
    without = replace(STRONG, **{setting: getattr(Augment(), setting)})
    pairs = [
        (Appearance.random(np.random.default_rng(n), STRONG), Appearance.random(np.random.default_rng(n), without))
        for n in range(50)
    ]
    moved = {
        entry.name
        for one, other in pairs
        for entry in fields(Appearance)
        if str(getattr(one, entry.name)) != str(getattr(other, entry.name))
    }
    names = {"grey": "saturation", "jpeg": "quality", "occlusion": "occluder"}
    assert moved == {names.get(setting, setting)}


@pytest.mark.parametrize("network", ["stage1", "eye", "mouth"])
def test_labels_know_nothing_of_it(network):
    sample = samples_of(network, synthetic_faces(1, 0, "exemplars"))[0]
    rng = np.random.default_rng(0)

    def recolour(values, inside):
        return Appearance.random(rng, STRONG).apply(values, inside, rng)

    plain, other = (make_sample(sample, Draw(5.0, 1.1), "argmax", change) for change in (None, recolour))
    np.testing.assert_array_equal(plain[1], other[1])
    np.testing.assert_array_equal(plain[2], other[2])
    assert not np.allclose(plain[0], other[0], atol=0.05)


def test_batches_are_recoloured_and_a_pure_function_of_the_step():
    samples = samples_of("eye", synthetic_faces(2, 0, "exemplars"))
    one, again, plain = (Batches("eye", samples, Train(batch=4), augment, 7) for augment in (STRONG, STRONG, Augment()))
    one.make(0)
    np.testing.assert_array_equal(one.make(3).images, again.make(3).images)
    assert not np.allclose(one.make(3).images, plain.make(3).images, atol=0.05)
