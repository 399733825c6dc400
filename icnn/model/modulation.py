"""Background modulation: the background map B becomes beta B + beta0 (Sec. 4.2).

beta and beta0 of a network maximise F on the validation split. F of hard
labels is piecewise constant in them, so L-BFGS-B maximises a smooth surrogate:
F from soft counts, with p = softmax(sharpness z) in place of the arg-max. It
approaches the hard F as the sharpness grows. The hard F selects the result:
the identity pair (1, 0) is kept unless another pair scores higher.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Pair = tuple[float, float]

PLAIN: Pair = (1.0, 0.0)
BOUNDS = ((0.05, 20.0), (-20.0, 20.0))
SHARPNESS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
#: Initial pairs (beta, beta0) of the search.
STARTS: tuple[Pair, ...] = (PLAIN, (1.0, 1.0), (1.0, -1.0), (1.5, 0.0))
#: Initial pairs of the released program's search, which is Nelder-Mead on the hard F.
RELEASED_STARTS: dict[str, Pair] = {
    "eyebrow": (1.481, 3.735),
    "eye": (8.540, 6.319),
    "nose": (1.362, 3.451),
    "mouth": (1.516, 7.374),
}


def modulate(logits: np.ndarray, pair: Pair) -> np.ndarray:
    """Return a copy of logits (n, L, S, S) with the background map B replaced by beta B + beta0 (Sec. 4.2)."""
    beta, beta0 = pair
    modulated = np.array(logits)
    modulated[:, 0] = beta * modulated[:, 0] + beta0
    return modulated


def probabilities(logits: np.ndarray, pair: Pair) -> np.ndarray:
    """Return the softmax over the classes of the modulated logits, (n, L, S, S)."""
    return _softmax(modulate(logits, pair), axis=1)


def _softmax(z: np.ndarray, axis: int) -> np.ndarray:
    """Return the softmax along one axis; `scipy.special.softmax` is the same, but loading SciPy takes a second."""
    exponentials = np.exp(z - z.max(axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


class Fit(NamedTuple):
    """Fitted pair, and the hard F on the validation split at (1, 0), `before`, and at the pair, `after`."""

    pair: Pair
    before: float
    after: float


class SoftF:
    """Soft F: mean over the parts of a network of F from soft counts, with its gradient in (beta, beta0).

    Parameters
    ----------
    logits : (n, L, S, S)
        Logits of all validation patches.
    truth : (n, S, S) integers in [0, L)
        True labels.
    inside : (n, S, S) bool
        True for patch pixels in the image; the others are ignored.
    total : (L,)
        Pixels of each true label in the full images, including those outside all patches.
    """

    def __init__(self, logits: np.ndarray, truth: np.ndarray, inside: np.ndarray, total: np.ndarray):
        labels = logits.shape[1]
        z = np.moveaxis(logits, 1, 0).reshape(labels, -1)[:, inside.ravel()].astype(np.float64)
        truth = truth.ravel()[inside.ravel()]
        self._z = z
        self._is_truth = truth == np.arange(1, labels)[:, None]
        self._total = np.asarray(total[1:], np.float64)

    def __call__(self, pair: Sequence[float] | np.ndarray, sharpness: float = 1.0) -> tuple[float, np.ndarray]:
        """Return the mean soft F at a pair (beta, beta0), and its gradient (2,) float64."""
        beta, beta0 = pair
        z = self._z.copy()
        z[0] = beta * z[0] + beta0
        p = _softmax(sharpness * z, axis=0)
        # d p_k / d z_0 = -sharpness p_k p_0, and d z_0 / d (beta, beta0) = (B, 1)
        slope = -sharpness * p[1:] * p[0]
        value, gradient = 0.0, np.zeros(2)
        for part, (truth, total) in enumerate(zip(self._is_truth, self._total, strict=True)):
            tp, predicted = p[part + 1][truth].sum(), p[part + 1].sum()
            denominator = predicted + total
            if denominator == 0:
                continue
            value += 2 * tp / denominator
            by_pixel = 2 * (truth * denominator - tp) / denominator**2 * slope[part]
            gradient += ((by_pixel * self._z[0]).sum(), by_pixel.sum())  # no BLAS call: its threads busy-wait
        parts = len(self._total)
        return value / parts, gradient / parts


def fit_modulation(soft_f: SoftF, hard_f: Callable[[Pair], float], method: str, start: Pair = PLAIN) -> Fit:
    """Fit the pair (beta, beta0) of a network.

    Parameters
    ----------
    soft_f : SoftF
    hard_f : callable
        Pair -> mean hard F of the network's parts over the full validation images.
    method : "lbfgsb", "neldermead" or "none"
    start : Pair
        Initial pair of Nelder-Mead.

    Returns
    -------
    Fit
        Its hard F is at least that of (1, 0).
    """
    before = hard_f(PLAIN)
    candidates: list[Pair] = []
    if method == "lbfgsb":
        from threadpoolctl import threadpool_limits  # imported here, as SciPy: not needed to evaluate or parse

        with threadpool_limits(1, "blas"):  # in many short calls threads busy-wait longer than they work
            candidates = _climb(soft_f)
    elif method == "neldermead":
        from scipy.optimize import minimize

        found = minimize(
            lambda pair: -hard_f((pair[0], pair[1])),
            start,
            method="Nelder-Mead",
            options={"maxfev": 80, "xatol": 1e-2, "fatol": 1e-5},
        )
        candidates = [(float(found.x[0]), float(found.x[1]))]
    best, after = PLAIN, before
    for pair in candidates:
        f = hard_f(pair)
        if f > after:
            best, after = pair, f
    return Fit(best, before, after)


def _climb(soft_f: SoftF) -> list[Pair]:
    """Return the optimum of L-BFGS-B at each sharpness, from the best initial pair, each started at the last one."""
    from scipy.optimize import minimize

    def negative(pair: np.ndarray, sharpness: float) -> tuple[float, np.ndarray]:
        value, gradient = soft_f(pair, sharpness)
        return -value, -gradient

    def ascend(pair: Sequence[float] | np.ndarray, sharpness: float):
        return minimize(
            negative,
            pair,
            args=(sharpness,),
            jac=True,
            method="L-BFGS-B",
            bounds=BOUNDS,
            options={"maxiter": 40},
        )

    found = min((ascend(pair, SHARPNESS[0]) for pair in STARTS), key=lambda result: result.fun)
    candidates = [(float(found.x[0]), float(found.x[1]))]
    for sharpness in SHARPNESS[1:]:
        found = ascend(found.x, sharpness)
        candidates.append((float(found.x[0]), float(found.x[1])))
    return candidates
