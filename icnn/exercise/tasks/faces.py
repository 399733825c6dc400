"""Exercises on what surrounds the network: centres, F-measure, background modulation (Sec. 3 and 4)."""

import numpy as np

from icnn.exercise.task import Exercise


def part_centre(labels, part):
    """Compute the centre of a part in a label map (Sec. 3.1).

    It is the median of the coordinates of the part's pixels, per axis.

    labels: (H, W) int, part: int. Returns x (the column) and y (the row), numbers; NaN if no pixel has the label.
    """
    y, x = np.nonzero(labels == part)
    return (np.median(x), np.median(y)) if x.size else (np.nan, np.nan)


def f_measure(truth, prediction, part):
    """Compute the F-measure of a part.

    F = 2 TP / (2 TP + FP + FN) over the pixels of all images together: TP counts pixels with the label `part` on both
    sides, FP those only predicted, FN those only true.

    truth, prediction: (n, H, W) int, part: int. Returns F, a number; NaN if no pixel has the label on either side.
    """
    t, p = truth == part, prediction == part
    return 2 * (t & p).sum() / (t.sum() + p.sum()) if t.any() or p.any() else np.nan


def modulation_objective(pair, z, truth):
    """Compute the objective of the background modulation (Sec. 4.2) and its gradient.

    The background map z[0] = B becomes beta B + beta0. With p = exp z[1] / (exp(beta B + beta0) + exp z[1]), the soft
    F is N / D, N = 2 sum over the pixels of t p, D = sum of t + sum of p, where t = 1 on the part, else 0. The
    objective is -F, since L-BFGS-B, which looks for the best pair, minimises. dp/dbeta = -p (1 - p) B and
    dp/dbeta0 = -p (1 - p).

    pair: (2,) beta and beta0, z: (2, H, W) logits, truth: (H, W) of 0 and 1. Returns the objective, a number, and its
    gradient by beta and beta0, (2,).
    """
    beta, beta0 = pair
    p = 1 / (1 + np.exp(beta * z[0] + beta0 - z[1]))
    numerator, denominator = 2 * (truth * p).sum(), truth.sum() + p.sum()
    by_p = (2 * truth * denominator - numerator) / denominator**2
    by_background = by_p * p * (1 - p)
    return -numerator / denominator, np.array([(by_background * z[0]).sum(), by_background.sum()])


def _maps(rng: np.random.Generator) -> list[tuple]:
    blob = np.zeros((8, 10), int)
    blob[1:4, 2:6] = 2
    blob[7, 9] = 2  # far away: it moves the mean, and hardly the median
    return [(blob, 2), (rng.integers(0, 3, (5, 7)), 1), (blob, 3)]


def _pairs(rng: np.random.Generator) -> list[tuple]:
    truth = rng.integers(0, 3, (3, 4, 5))
    truth[0] = 0
    prediction = np.where(rng.random(truth.shape) < 0.7, truth, 1)
    return [(truth, prediction, 1), (truth, prediction, 2), (truth, prediction, 3)]


def _patches(rng: np.random.Generator) -> list[tuple]:
    return [
        (np.array(pair), 2 * rng.standard_normal((2, 4, 5)), rng.integers(0, 2, (4, 5)))
        for pair in ((1.0, 0.0), (1.5, -0.5))
    ]


def _mean(labels, part):
    y, x = np.nonzero(labels == part)
    return (x.mean(), y.mean()) if x.size else (np.nan, np.nan)


def _box(labels, part):
    y, x = np.nonzero(labels == part)
    return ((x.min() + x.max()) / 2, (y.min() + y.max()) / 2) if x.size else (np.nan, np.nan)


def _overlap(truth, prediction, part):
    t, p = truth == part, prediction == part
    return (t & p).sum() / (t | p).sum() if t.any() or p.any() else np.nan


def _image_by_image(truth, prediction, part):
    scores = [f_measure(t, p, part) for t, p in zip(truth, prediction, strict=True)]
    defined = [f for f in scores if not np.isnan(f)]
    return np.mean(defined) if defined else np.nan


def _constant_denominator(pair, z, truth):
    p = 1 / (1 + np.exp(pair[0] * z[0] + pair[1] - z[1]))
    slope = 2 * truth / (truth.sum() + p.sum()) * p * (1 - p)
    return None, np.array([(slope * z[0]).sum(), slope.sum()])


def _no_factor(pair, z, truth):
    return None, modulation_objective(pair, z, truth)[1][[1, 1]]


EXERCISES = (
    Exercise(
        part_centre,
        ("x", "y"),
        _maps,
        {
            "x and y are exchanged: numpy.nonzero gives the rows first": lambda t, k: part_centre(t, k)[::-1],
            "you took the mean: one stray pixel moves it, which is why the paper takes the median": _mean,
            "you took the middle of the bounding box, which one stray pixel moves; take the median": _box,
        },
        "numpy.nonzero, then numpy.median of each axis.",
    ),
    Exercise(
        f_measure,
        ("F",),
        _pairs,
        {
            "that is TP / (TP + FP + FN), the intersection over union; F counts TP twice, above and below": _overlap,
            "you averaged over the images; count the pixels of all images together": _image_by_image,
            "that is the share of all pixels that are right, the accuracy, in which the background counts": (
                lambda t, p, k: ((t == k) == (p == k)).mean() if k in t or k in p else np.nan
            ),
        },
        "TP + FP is what was predicted, TP + FN is what is true.",
    ),
    Exercise(
        modulation_objective,
        ("objective", "gradient"),
        _patches,
        {
            "the sign: L-BFGS-B minimises, so the objective is -F and its gradient that of -F": (
                lambda *given: tuple(-value for value in modulation_objective(*given))
            ),
            "the denominator depends on p, too: use the quotient rule": _constant_denominator,
            "the gradient by beta lacks the factor B": _no_factor,
        },
        "d(-F)/dp = -(2 t D - N) / D^2; times dp/dbeta, summed over the pixels.",
    ),
)
