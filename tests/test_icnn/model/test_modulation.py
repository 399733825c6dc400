"""Modulation: do beta and beta0 of the background's map find the best F there is?"""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from icnn.model.modulation import BOUNDS, PLAIN, RELEASED_STARTS, Fit, SoftF, fit_modulation, modulate, probabilities
from icnn.stages import STAGE2

#: What was done to the background's map: B' = a B + b. Undoing it takes beta = 1 / a, beta0 = -b / a.
DISTORTIONS = [(3.0, 5.0), (0.4, -2.0), (1.0, 4.0), (1.0, -4.0), (2.5, 0.0), (0.2, 1.0)]


class Task:
    """Logits as of a trained network, and labels that are noisy around the boundaries it sees.

    Parameters
    ----------
    labels : int
    seed : int
    scale : float
        Of the logits; the labels' noise stays.
    """

    def __init__(self, labels, seed=0, images=6, size=32, scale=4.0):
        rng = np.random.default_rng(seed)
        fields = rng.normal(size=(images, labels, size, size))
        fields = np.stack([gaussian_filter(field, (0, 4, 4)) for field in fields])
        fields /= fields.std()
        self.logits = (scale * fields).astype(np.float32)
        self.truth = (self.logits + rng.normal(0, 1.0, self.logits.shape)).argmax(1)
        self.inside = np.ones(self.truth.shape, bool)
        self.inside[0, :, : size // 4] = False  # a patch across the image's border
        self.beyond = np.array([0, *rng.integers(0, 50, labels - 1)])  # true pixels outside all patches

    def distorted(self, a, b):
        """The logits with B' = a B + b."""
        logits = self.logits.copy()
        logits[:, 0] = a * logits[:, 0] + b
        return logits

    def total(self):
        """True pixels of each label in the full images."""
        return np.bincount(self.truth[self.inside], minlength=self.logits.shape[1]) + self.beyond

    def hard_f(self, logits, pair):
        """Mean F of the parts from counted pixels, written out once more."""
        z = np.moveaxis(logits, 1, 0)[:, self.inside].astype(np.float64)
        z[0] = pair[0] * z[0] + pair[1]
        prediction, truth = z.argmax(0), self.truth[self.inside]
        scores = []
        for label in range(1, len(z)):
            tp = ((prediction == label) & (truth == label)).sum()
            scores.append(2 * tp / ((prediction == label).sum() + self.total()[label]))
        return np.mean(scores)

    def soft_f(self, logits):
        return SoftF(logits, self.truth, self.inside, self.total())

    def fit(self, logits, method="lbfgsb", **options):
        return fit_modulation(self.soft_f(logits), lambda pair: self.hard_f(logits, pair), method, **options)

    def best(self, logits, a, b):
        """The best hard F on a fine grid around the pair that undoes the distortion."""
        betas = np.geomspace(0.5, 2, 29) / a
        return max(self.hard_f(logits, (beta, shift - beta * b)) for beta in betas for shift in np.linspace(-2, 2, 33))


# ---------------------------------------------------------------- the two numbers


def test_modulation_touches_the_background_map_alone():
    logits = np.random.default_rng(0).normal(size=(2, 4, 5, 5)).astype(np.float32)
    before = logits.copy()
    out = modulate(logits, (2.0, -0.5))
    np.testing.assert_allclose(out[:, 0], 2 * logits[:, 0] - 0.5, rtol=1e-6)
    assert (out[:, 1:] == logits[:, 1:]).all()
    assert (logits == before).all(), "the network's own array must stay"


def test_probabilities_are_a_softmax_over_the_labels():
    logits = np.random.default_rng(1).normal(size=(2, 3, 4, 6))
    p = probabilities(logits, PLAIN)
    np.testing.assert_allclose(p, np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
    assert (probabilities(logits, (1.0, 50.0)).argmax(1) == 0).all()


# ---------------------------------------------------------------- the smooth stand-in


@pytest.mark.parametrize("labels", [2, 4])
@pytest.mark.parametrize("pair", [(1.0, 0.0), (0.3, -1.0), (4.0, 2.5)])
@pytest.mark.parametrize("sharpness", [1.0, 3.0])
def test_the_gradient_equals_numeric_differences(labels, pair, sharpness):
    task = Task(labels, images=2, size=16)
    soft_f, h = task.soft_f(task.logits), 1e-5
    numeric = [
        (soft_f(np.add(pair, step), sharpness)[0] - soft_f(np.subtract(pair, step), sharpness)[0]) / (2 * h)
        for step in np.eye(2) * h
    ]
    gradient = soft_f(pair, sharpness)[1]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-9)
    assert np.abs(gradient).min() > 1e-7, "a gradient of 0 would prove nothing"


@pytest.mark.parametrize("labels", [2, 4])
@pytest.mark.parametrize("pair", [(1.0, 0.0), (0.5, 1.0), (2.0, -1.0)])
def test_sharpened_without_end_it_is_the_hard_f(labels, pair):
    task = Task(labels)
    assert task.soft_f(task.logits)(pair, 1e6)[0] == pytest.approx(task.hard_f(task.logits, pair), abs=1e-4)


def test_pixels_outside_the_image_do_not_count():
    task = Task(2)
    nonsense = task.logits.copy()
    nonsense[~np.broadcast_to(task.inside[:, None], nonsense.shape)] = 99
    assert task.soft_f(nonsense)(PLAIN)[0] == task.soft_f(task.logits)(PLAIN)[0]


def test_true_pixels_that_no_patch_covers_count_as_missed():
    task = Task(2)
    within = np.bincount(task.truth[task.inside])
    complete = SoftF(task.logits, task.truth, task.inside, within)(PLAIN, 1e6)[0]
    halved = SoftF(task.logits, task.truth, task.inside, within * (1, 2))(PLAIN, 1e6)[0]
    assert halved < complete - 0.1


def test_a_part_that_is_nowhere_is_no_division_by_zero():
    logits = np.zeros((1, 3, 4, 4))
    logits[:, 0] = 1e4  # all probability on the background
    truth = np.zeros((1, 4, 4), int)
    value, gradient = SoftF(logits, truth, truth == 0, np.array([16, 0, 0]))(PLAIN)
    assert value == 0 and (gradient == 0).all()


# ---------------------------------------------------------------- the fit


@pytest.mark.parametrize("labels", [2, 4])
@pytest.mark.parametrize("a, b", DISTORTIONS)
def test_the_fitted_pair_is_within_a_thousandth_of_the_best(labels, a, b):
    task = Task(labels)
    logits = task.distorted(a, b)
    fit = task.fit(logits)
    assert task.hard_f(task.logits, PLAIN) > 0.7, "a task that can be solved"
    assert fit.after > task.best(logits, a, b) - 0.001
    assert fit.after == task.hard_f(logits, fit.pair) and fit.before == task.hard_f(logits, PLAIN)


@pytest.mark.parametrize("seed", range(3))
def test_the_fitted_pair_is_as_good_for_a_network_that_is_unsure(seed):
    """Small logits: the stand-in must be sharpened further before it is the hard F."""
    task = Task(2, seed, size=48, scale=1.0)
    logits = task.distorted(0.4, -2.0)
    assert task.fit(logits).after > task.best(logits, 0.4, -2.0) - 0.001


@pytest.mark.parametrize("a, b", DISTORTIONS)
def test_the_fitted_pair_undoes_the_distortion(a, b):
    task = Task(2)
    beta, beta0 = task.fit(task.distorted(a, b)).pair
    plain_beta, plain_beta0 = task.fit(task.logits).pair
    assert beta * a == pytest.approx(plain_beta, rel=0.3)
    assert beta * b + beta0 == pytest.approx(plain_beta0, abs=0.5)


@pytest.mark.parametrize("b, sign", [(-4.0, 1), (4.0, -1)])
def test_a_background_that_is_too_low_is_raised_and_one_too_high_lowered(b, sign):
    task = Task(2)
    assert sign * task.fit(task.distorted(1, b)).pair[1] > 2


def test_a_pair_stays_within_its_bounds():
    task = Task(2)
    for a, b in ((0.01, 0.0), (1.0, 60.0), (100.0, 0.0)):
        pair = task.fit(task.distorted(a, b)).pair
        assert all(low <= value <= high for value, (low, high) in zip(pair, BOUNDS, strict=True))


def test_a_fit_that_does_not_beat_the_plain_pair_is_dropped():
    task = Task(2)
    soft_f = task.soft_f(task.distorted(3, 5))
    for method in ("lbfgsb", "neldermead"):
        fit = fit_modulation(soft_f, lambda pair: 0.5 if pair == PLAIN else 0.4999, method, (2.0, 1.0))
        assert fit == Fit(PLAIN, 0.5, 0.5)


def test_a_fit_that_only_equals_the_plain_pair_is_dropped():
    task = Task(2)
    assert fit_modulation(task.soft_f(task.logits), lambda pair: 0.5, "lbfgsb").pair == PLAIN


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", ["lbfgsb", "neldermead", "none"])
def test_a_fit_is_never_worse_than_the_plain_pair(seed, method):
    rng = np.random.default_rng(seed)
    task = Task(2, seed, images=2, size=16)
    task.truth = rng.integers(0, 2, task.truth.shape)  # nothing to be learnt
    fit = task.fit(task.logits, method, start=(1.5, 3.0))
    assert fit.after >= fit.before == task.hard_f(task.logits, PLAIN)
    assert fit.after == task.hard_f(task.logits, fit.pair)


def test_without_a_method_the_pair_stays_plain():
    task = Task(2)
    logits = task.distorted(3, 5)
    before = task.hard_f(logits, PLAIN)
    assert task.fit(logits, "none") == Fit(PLAIN, before, before)


def test_nelder_mead_starts_where_it_is_told_and_climbs_the_hard_f():
    task, asked = Task(2), []
    logits = task.distorted(0.6, -2.0)

    def hard_f(pair):
        asked.append(pair)
        return task.hard_f(logits, pair)

    fit = fit_modulation(task.soft_f(logits), hard_f, "neldermead", (1.4, 3.0))
    assert asked[:2] == [PLAIN, (1.4, 3.0)]
    assert fit.after > max(fit.before, hard_f((1.4, 3.0))) + 0.001
    assert fit.after > task.best(logits, 0.6, -2.0) - 0.02


def test_every_network_of_stage_2_has_a_released_start():
    assert set(RELEASED_STARTS) == set(STAGE2)


def test_a_pair_is_of_plain_floats_that_a_file_can_hold():
    task = Task(2)
    for method in ("lbfgsb", "neldermead", "none"):
        assert {type(value) for value in task.fit(task.distorted(3, 5), method).pair} == {float}
