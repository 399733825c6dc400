"""F-measures of label maps, as in Smith et al. and later papers.

The pixels of all images are pooled into one confusion matrix; left and
right sides are merged; F = 2 P R / (P + R) = 2 TP / (2 TP + FP + FN).
"""

from collections.abc import Sequence

import numpy as np

from icnn.classes import PARTS

#: Region name -> ids of the parts merged into it, in the order of the paper's Table 1.
MERGED = {
    "eyebrow": (1, 3),
    "eye": (2, 4),
    "nose": (5,),
    "upper_lip": (6,),
    "inner_mouth": (7,),
    "lower_lip": (8,),
}
MOUTH = (6, 7, 8)

#: Keys of the result of `f_measures`, in the column order of the table.
MEASURES = (*MERGED, "mouth", "overall_micro", "overall_union")


def confusion(truth: np.ndarray, prediction: np.ndarray, labels: int = len(PARTS)) -> np.ndarray:
    """Count pixels by true label (rows) and predicted label (columns).

    Parameters
    ----------
    truth, prediction : integer arrays of equal shape, values in [0, labels)
    labels : int
        Number of classes.

    Returns
    -------
    (labels, labels) int64

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"expected a prediction of shape {truth.shape}, got {prediction.shape}")
    pairs = truth.astype(np.int64).ravel() * labels + prediction.ravel()
    return np.bincount(pairs, minlength=labels * labels).reshape(labels, labels)


def f_of_counts(tp: float, fp: float, fn: float) -> float | None:
    """Compute F = 2 TP / (2 TP + FP + FN); None if the three counts are all zero."""
    return None if tp + fp + fn == 0 else float(2 * tp / (2 * tp + fp + fn))


def region_counts(matrix: np.ndarray, ids: tuple[int, ...]) -> np.ndarray:
    """Return TP, FP and FN, (3, ...), of `ids` merged into one region, from confusion matrices (..., L, L)."""
    index, both = list(ids), (-2, -1)
    columns = matrix[..., index]
    tp = columns[..., index, :].sum(both)
    return np.stack([tp, columns.sum(both) - tp, matrix[..., index, :].sum(both) - tp])


def mean_f(matrix: np.ndarray) -> float:
    """Return the mean F over foreground labels; labels absent from both sides are skipped, 0.0 if none is left."""
    scores = [f_of_counts(*region_counts(matrix, (label,))) for label in range(1, len(matrix))]
    return float(np.mean([f for f in scores if f is not None] or [0.0]))


def f_measures(matrix: np.ndarray) -> dict[str, float | None]:
    """Compute the measures of `MEASURES` from a (9, 9) confusion matrix of ids; an undefined measure is None.

    ``overall_micro`` sums TP, FP and FN over the six parts, so a nose pixel labelled as lip is an error;
    ``overall_union`` treats the six parts as one region. The two are not comparable.
    """
    return {name: f_of_counts(*count) for name, count in _measured(matrix).items()}


def _measured(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Return TP, FP and FN, (3, ...), for each of `MEASURES`, from confusion matrices (..., 9, 9)."""
    counts = {name: region_counts(matrix, ids) for name, ids in MERGED.items()}
    overall = np.sum(list(counts.values()), axis=0)
    counts["mouth"] = region_counts(matrix, MOUTH)
    counts["overall_micro"] = overall
    counts["overall_union"] = region_counts(matrix, tuple(range(1, len(PARTS))))
    return counts


def bootstrap(
    matrices: Sequence[np.ndarray], rng: np.random.Generator, rounds: int = 2000, level: float = 0.95
) -> dict[str, list[float] | None]:
    """Estimate bootstrap percentile intervals of the F-measures over images.

    Parameters
    ----------
    matrices : sequence of (9, 9)
        Confusion matrix of each image; each round draws as many images with replacement and pools them.
    rng : numpy.random.Generator
    rounds : int
        Number of bootstrap samples.
    level : float
        Confidence level: fraction of the rounds inside the interval.

    Returns
    -------
    dict
        Measure -> [lower, upper]; None if F is undefined in some round (no true and no predicted pixel).
    """
    stack = np.asarray(matrices)
    count = len(stack)
    if not count:
        return dict.fromkeys(MEASURES)
    draws = rng.multinomial(count, np.full(count, 1 / count), rounds)
    ends = [(1 - level) / 2, (1 + level) / 2]
    found = {}
    for measure, (tp, fp, fn) in _measured(np.tensordot(draws, stack, 1)).items():
        everywhere = (tp + fp + fn > 0).all()
        found[measure] = np.quantile(2 * tp / (2 * tp + fp + fn), ends).tolist() if everywhere else None
    return found
