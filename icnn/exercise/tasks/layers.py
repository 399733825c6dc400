"""Exercises on pooling, upsampling and concatenation (Sec. 2.2)."""

import numpy as np

from icnn.exercise.task import Exercise


def max_pool_forward(x):
    """Take the maximum of each 2 x 2 pixels.

    y[c, i, j] = max of x[c, 2 i + u, 2 j + v] over u, v in {0, 1}.

    x: (C, H, W), H and W even. Returns y, (C, H/2, W/2).
    """
    return np.max([x[:, u::2, v::2] for u in (0, 1) for v in (0, 1)], axis=0)


def max_pool_backward(dy, x):
    """Compute the gradient of max pooling.

    dy[c, i, j] goes to the pixel of its 2 x 2 that is the maximum; of several equal ones to the first, row by row.
    The others get 0.

    dy: (C, H/2, W/2), x: (C, H, W). Returns dx, (C, H, W).
    """
    peak = np.max([x[:, u::2, v::2] for u in (0, 1) for v in (0, 1)], axis=0)
    dx, left = np.zeros_like(x), np.ones(dy.shape, bool)
    for u in (0, 1):
        for v in (0, 1):
            hit = left & (x[:, u::2, v::2] == peak)
            dx[:, u::2, v::2] = np.where(hit, dy, 0)
            left &= ~hit
    return dx


def upsample_forward(x):
    """Double a plane: each pixel becomes 2 x 2 equal ones.

    y[c, i, j] = x[c, i // 2, j // 2].

    x: (C, H, W). Returns y, (C, 2 H, 2 W).
    """
    return x.repeat(2, axis=1).repeat(2, axis=2)


def upsample_backward(dy):
    """Compute the gradient of `upsample_forward`.

    dx[c, i, j] = sum of dy over all pixels that x[c, i, j] was copied to.

    dy: (C, 2 H, 2 W). Returns dx, (C, H, W).
    """
    return sum(dy[:, u::2, v::2] for u in (0, 1) for v in (0, 1))


def concat_forward(own, finer, coarser):
    """Concatenate the feature maps that a row reads (Sec. 2.2).

    y is [own | finer | coarser] along the channels.

    own: (C, H, W), finer: (C', H, W), coarser: (C'', H, W). Returns y, (C + C' + C'', H, W).
    """
    return np.concatenate([own, finer, coarser])


def concat_backward(dy, channels):
    """Compute the gradients of `concat_forward`.

    Each input gets its channels of dy.

    dy: (C + C' + C'', H, W), channels: (C, C', C''), a tuple of int. Returns down, dfiner, dcoarser, where `down` is
    the gradient of own.
    """
    first, second = channels[0], channels[0] + channels[1]
    return dy[:first], dy[first:second], dy[second:]


def _planes(rng: np.random.Generator) -> list[tuple]:
    return [(rng.standard_normal(shape),) for shape in ((1, 2, 2), (3, 4, 6))]


def _pooled(rng: np.random.Generator) -> list[tuple]:
    ties = np.array([[[1.0, 1, 0, 2], [0, 1, 2, 2], [3, 3, 5, 4], [3, 3, 4, 5]]])
    return [(rng.standard_normal((len(x), x.shape[1] // 2, x.shape[2] // 2)), x) for (x,) in [*_planes(rng), (ties,)]]


def _rows(rng: np.random.Generator) -> list[tuple]:
    return [tuple(rng.standard_normal((c, 2, 3)) for c in counts) for counts in ((2, 2, 2), (1, 3, 2))]


def _all_maxima(dy, x):
    return np.where(x == upsample_forward(max_pool_forward(x)), upsample_forward(dy), 0)


def _shared(dy, x):
    return _all_maxima(dy / upsample_backward(x == upsample_forward(max_pool_forward(x))), x)


def _firsts(dy, channels):
    return tuple(dy[:count] for count in channels)


def _swapped(dy, channels):
    own, coarser, finer = concat_backward(dy, (channels[0], channels[2], channels[1]))
    return own, finer, coarser


EXERCISES = (
    Exercise(
        max_pool_forward,
        ("y",),
        _planes,
        {
            "that is the mean of the four pixels, not their maximum": (
                lambda x: np.mean([x[:, u::2, v::2] for u in (0, 1) for v in (0, 1)], axis=0)
            ),
            "you reshaped H W to (H/2) (W/2) 4, which takes four pixels of one row; try H/2, 2, W/2, 2": (
                lambda x: x.reshape(len(x), x.shape[1] // 2, x.shape[2] // 2, 4).max(3)
            ),
        },
        "x[:, u::2, v::2] has the pixel (u, v) of each 2 x 2.",
    ),
    Exercise(
        max_pool_backward,
        ("dx",),
        _pooled,
        {
            "the gradient of a tie went to both: only the first maximum, row by row, gets it": _all_maxima,
            "the gradient of a tie was shared: the first maximum, row by row, gets all of it": _shared,
            "the gradient of a tie went to the last maximum instead of the first": (
                lambda dy, x: max_pool_backward(dy[:, ::-1, ::-1], x[:, ::-1, ::-1])[:, ::-1, ::-1]
            ),
        },
        "Go through the four pixels in order, and remember which dy have found their pixel.",
    ),
    Exercise(
        upsample_forward,
        ("y",),
        _planes,
        {
            "you repeated the whole plane; each pixel is repeated beside itself": lambda x: np.tile(x, (1, 2, 2)),
            "zeros were put between the pixels; all four copies have the pixel's value": (
                lambda x: np.kron(x, np.array([[[1.0, 0], [0, 0]]]))
            ),
        },
        "numpy.repeat, once along each axis.",
    ),
    Exercise(
        upsample_backward,
        ("dx",),
        lambda rng: [(rng.standard_normal((c, 2 * h, 2 * w)),) for c, h, w in ((1, 1, 1), (3, 2, 3))],
        {
            "you took the mean: a pixel that was copied four times gets the sum of four gradients": (
                lambda dy: upsample_backward(dy) / 4
            ),
            "only one of the four copies was counted": lambda dy: dy[:, ::2, ::2],
        },
        "The gradient of a copy is a sum.",
    ),
    Exercise(
        concat_forward,
        ("y",),
        _rows,
        {
            "the coarser row's maps came before the finer row's": lambda a, b, c: np.concatenate([a, c, b]),
            "the finer row's maps came before the row's own": lambda a, b, c: np.concatenate([b, a, c]),
        },
        "numpy.concatenate; the channels are axis 0.",
    ),
    Exercise(
        concat_backward,
        ("down", "dfiner", "dcoarser"),
        lambda rng: [(rng.standard_normal((sum(n), 2, 3)), n) for n in ((2, 2, 2), (1, 3, 2))],
        {
            "each input took the first channels; it begins where the one before it ends": _firsts,
            "finer and coarser are exchanged": _swapped,
        },
        "numpy.split, or three slices.",
    ),
)
