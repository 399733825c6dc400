"""Exercises on the convolution, eq. (1)."""

import numpy as np

from icnn.exercise.task import Exercise


def conv_forward(x, w, b):
    """Compute a convolution, eq. (1) before the tanh.

    y[o, i, j] = b[o] + sum over c, u, v of w[o, c, u, v] x[c, i + u - r, j + v - r], where r = (K - 1) / 2, K is odd,
    and x is 0 outside the plane.

    x: (C, H, W), w: (O, C, K, K), b: (O,), all float64. Returns y, (O, H, W).
    """
    k, (_, height, width) = w.shape[2], x.shape
    r = (k - 1) // 2
    padded = np.pad(x, ((0, 0), (r, r), (r, r)))
    y = np.zeros((len(w), height, width)) + b[:, None, None]
    for u in range(k):
        for v in range(k):
            y += np.tensordot(w[:, :, u, v], padded[:, u : u + height, v : v + width], 1)
    return y


def conv_backward(dy, x, w):
    """Compute the gradients of a convolution.

    dy is the gradient of the loss by y. With it, dy being 0 outside the plane,
    dx[c, i, j] = sum over o, u, v of w[o, c, u, v] dy[o, i - u + r, j - v + r];
    dw[o, c, u, v] = sum over i, j of dy[o, i, j] x[c, i + u - r, j + v - r]; db[o] = sum over i, j of dy[o, i, j].

    dy: (O, H, W), x: (C, H, W), w: (O, C, K, K). Returns dx, dw and db, of the shapes of x, w and b.
    """
    k, (_, height, width) = w.shape[2], x.shape
    r = (k - 1) // 2
    padded, dx, dw = np.pad(x, ((0, 0), (r, r), (r, r))), np.zeros_like(x), np.zeros_like(w)
    dpadded = np.zeros_like(padded)
    for u in range(k):
        for v in range(k):
            seen = padded[:, u : u + height, v : v + width]
            dw[:, :, u, v] = np.tensordot(dy, seen, ((1, 2), (1, 2)))
            dpadded[:, u : u + height, v : v + width] += np.tensordot(w[:, :, u, v].T, dy, 1)
    dx[...] = dpadded[:, r : r + height, r : r + width]
    return dx, dw, dy.sum((1, 2))


def _inputs(rng: np.random.Generator) -> list[tuple]:
    sizes = ((1, 1, 3, 4, 4), (2, 3, 5, 6, 7), (3, 2, 1, 3, 5))
    return [
        (rng.standard_normal((c, h, w)), rng.standard_normal((o, c, k, k)), rng.standard_normal(o))
        for c, o, k, h, w in sizes
    ]


def _backward_inputs(rng: np.random.Generator) -> list[tuple]:
    return [(rng.standard_normal((len(w), *x.shape[1:])), x, w) for x, w, _ in _inputs(rng)]


def _turned(dy, x, w):
    return conv_backward(dy, x, w[:, :, ::-1, ::-1])[0], conv_backward(dy, x, w)[1][:, :, ::-1, ::-1], None


EXERCISES = (
    Exercise(
        conv_forward,
        ("y",),
        _inputs,
        {
            "you flipped the kernel: eq. (1) is a correlation, w[o, c, 0, 0] meets the upper left pixel": (
                lambda x, w, b: conv_forward(x, w[:, :, ::-1, ::-1], b)
            ),
            "the bias b[o] is missing": lambda x, w, b: conv_forward(x, w, 0 * b),
            "the window begins at pixel (i, j): subtract r, so that (i, j) is its middle": (
                lambda x, w, b: conv_forward(
                    np.pad(x, ((0, 0), (0, w.shape[2] // 2), (0, w.shape[2] // 2))), w, b
                )[:, w.shape[2] // 2 :, w.shape[2] // 2 :]
            ),
        },
        "Pad x with r zeros on each side; for each u and v add w[:, :, u, v] times a shifted slice of the padded x.",
    ),
    Exercise(
        conv_backward,
        ("dx", "dw", "db"),
        _backward_inputs,
        {
            "the kernel is turned the wrong way: dx reads dy at i - u + r, dw reads x at i + u - r": _turned,
            "you took the mean over the pixels: the gradient of a sum is a sum": (
                lambda dy, x, w: (None, *(d / dy[0].size for d in conv_backward(dy, x, w)[1:]))
            ),
        },
        "Write the forward as a loop over u and v; each line y += w x gives dw += dy x and dx += w dy.",
    ),
)  # fmt: skip
