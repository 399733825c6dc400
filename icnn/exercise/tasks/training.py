"""Exercises on the loss and the update (Sec. 2.4 and 2.5)."""

import numpy as np

from icnn.exercise.task import Exercise


def cross_entropy_forward(z, labels, weights):
    """Compute the softmax and the weighted cross-entropy of an image.

    p[l, i, j] = exp z[l, i, j] / sum over m of exp z[m, i, j];
    loss = sum over i, j of weights[i, j] (-log p[labels[i, j], i, j]) / sum of weights.
    Subtract the largest z of a pixel first: p stays the same, and exp cannot overflow.

    z: (L, H, W) logits, labels: (H, W) int, weights: (H, W). Returns loss, a number, and p, (L, H, W).
    """
    shifted = z - z.max(axis=0)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=0))
    losses = -np.take_along_axis(log_p, labels[None], axis=0)[0]
    return (weights * losses).sum() / weights.sum(), np.exp(log_p)


def cross_entropy_backward(p, labels, weights):
    """Compute the gradient of the loss of `cross_entropy_forward` by the logits.

    dz[l, i, j] = weights[i, j] (p[l, i, j] - [l = labels[i, j]]) / sum of weights, where [ ] is 1 if true, else 0.

    p: (L, H, W), labels: (H, W) int, weights: (H, W). Returns dz, (L, H, W).
    """
    onehot = labels == np.arange(len(p))[:, None, None]
    return weights * (p - onehot) / weights.sum()


def sgd_momentum(w, v, g, lr, momentum):
    """Update parameters by gradient descent with momentum (Sec. 2.5).

    v <- momentum v - lr g, then w <- w + v.

    w: parameters, v: velocity, g: gradient, arrays of one shape; lr, momentum: float. Returns the new w and v.
    """
    velocity = momentum * v - lr * g
    return w + velocity, velocity


def _logits(rng: np.random.Generator) -> list[tuple]:
    cases = []
    for scale, shape in ((1, (2, 3, 4)), (3, (4, 2, 4)), (500, (3, 3, 3))):
        z = scale * rng.standard_normal(shape)
        cases.append((z, rng.integers(0, shape[0], shape[1:]), rng.integers(0, 3, shape[1:]) + 0.5))
    return cases


def _probabilities(rng: np.random.Generator) -> list[tuple]:
    return [(cross_entropy_forward(*case)[1], *case[1:]) for case in _logits(rng)]


def _parameters(rng: np.random.Generator) -> list[tuple]:
    return [(*rng.standard_normal((3, 4)), lr, momentum) for lr, momentum in ((0.1, 0.9), (0.3, 0.5))]


def _naive(z, labels, weights):
    with np.errstate(all="ignore"):
        p = np.exp(z) / np.exp(z).sum(0)
        losses = -np.log(np.take_along_axis(p, labels[None], 0)[0])
        return (weights * losses).sum() / weights.sum(), p


def _whole_image(z, labels, weights):
    e = np.exp(z - z.max())
    with np.errstate(all="ignore"):
        losses = -np.log(np.take_along_axis(e / e.sum(), labels[None], 0)[0])
        return (weights * losses).sum() / weights.sum(), e / e.sum()


def _rows(z, labels, weights):
    e = np.exp(z - z.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    with np.errstate(all="ignore"):
        losses = -np.log(np.take_along_axis(p, labels[None], 0)[0])
        return (weights * losses).sum() / weights.sum(), p


EXERCISES = (
    Exercise(
        cross_entropy_forward,
        ("loss", "p"),
        _logits,
        {
            "forgot to divide by the sum of the weights: you divided by the number of pixels": (
                lambda z, t, w: (cross_entropy_forward(z, t, w)[0] * w.mean(), None)
            ),
            "forgot to divide by the sum of the weights": (
                lambda z, t, w: (cross_entropy_forward(z, t, w)[0] * w.sum(), None)
            ),
            "the weights are not used": lambda z, t, w: (cross_entropy_forward(z, t, np.ones_like(w))[0], None),
            "exp overflowed: subtract the largest z of each pixel, and take log p as z - log(sum of exp z)": _naive,
            "the axis of the softmax: the sum goes over the labels, axis 0, not over the whole image": _whole_image,
            "the axis of the softmax: the sum goes over the labels, axis 0, not over the columns": _rows,
        },
        "log p = s - log(sum of exp s), where s is z minus its maximum over the labels; take_along_axis picks.",
    ),
    Exercise(
        cross_entropy_backward,
        ("dz",),
        _probabilities,
        {
            "forgot to divide by the sum of the weights": (
                lambda p, t, w: cross_entropy_backward(p, t, w) * w.sum()
            ),
            "you divided by the number of pixels, not by the sum of the weights": (
                lambda p, t, w: cross_entropy_backward(p, t, w) * w.mean()
            ),
            "the sign: the gradient is p - onehot, the update subtracts it": (
                lambda p, t, w: -cross_entropy_backward(p, t, w)
            ),
            "only the true label's logit got a gradient: the others get p": (
                lambda p, t, w: cross_entropy_backward(p, t, w) * (t == np.arange(len(p))[:, None, None])
            ),
        },
        "labels == numpy.arange(L)[:, None, None] is the one-hot array.",
    ),
    Exercise(
        sgd_momentum,
        ("w", "v"),
        _parameters,
        {
            "the sign: gradient descent subtracts lr g": (
                lambda w, v, g, lr, m: sgd_momentum(w, v, -g, lr, m)
            ),
            "w moved by the old velocity: update v first": (
                lambda w, v, g, lr, m: (w + v, m * v - lr * g)
            ),
            "the learning rate is inside of v here: w <- w + v, not w - lr v": (
                lambda w, v, g, lr, m: (w - lr * (m * v + g), m * v + g)
            ),
            "that is Nesterov's update; plain momentum adds v alone": (
                lambda w, v, g, lr, m: (w + m * (m * v - lr * g) - lr * g, m * v - lr * g)
            ),
        },
        "Two lines; do not write into w and v.",
    ),
)  # fmt: skip
