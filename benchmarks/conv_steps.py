"""Time one convolution in six ways, from loops in Python to Winograd's method: the table of docs/tutorial/09-cpu.md.

    python benchmarks/conv_steps.py [SIDE]        # from the repository root; one thread, ten images, 24 -> 24 channels

Each result is compared with im2col's. Ways take turns; the best time of nine rounds stands in the table.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
from measure import convolution_flops, machine
from numba import njit

from minicnn import get_backend
from minicnn.kernels.cpu import conv

IMAGES, CHANNELS, K, ROUNDS = 10, 24, 5, 9
PIXELS = 8  # that the loops in Python compute; their time is scaled up


def in_python(y, x, w) -> None:
    """Compute the first pixels of y from padded x, one at a time."""
    for j in range(PIXELS):
        total = 0.0
        for c in range(w.shape[1]):
            for u in range(K):
                for v in range(K):
                    total += w[0, c, u, v] * x[0, c, u, j + v]
        y[0, 0, 0, j] = total


@njit
def loops(y, x, w):
    """Compute y from padded x, one number at a time."""
    for n in range(y.shape[0]):
        for o in range(y.shape[1]):
            for i in range(y.shape[2]):
                for j in range(y.shape[3]):
                    total = y.dtype.type(0)
                    for c in range(w.shape[1]):
                        for u in range(w.shape[2]):
                            for v in range(w.shape[3]):
                                total += w[o, c, u, v] * x[n, c, i + u, j + v]
                    y[n, o, i, j] = total


@njit
def rows(y, x, w):
    """Compute y from padded x, a row at a time, which becomes vector code."""
    y[:] = 0
    for n in range(y.shape[0]):
        for o in range(y.shape[1]):
            for c in range(w.shape[1]):
                for i in range(y.shape[2]):
                    for u in range(w.shape[2]):
                        for v in range(w.shape[3]):
                            for j in range(y.shape[3]):
                                y[n, o, i, j] += w[o, c, u, v] * x[n, c, i + u, j + v]


def by_backend(name: str, x: np.ndarray, w: np.ndarray, way: str = "auto") -> tuple[np.ndarray, Callable[[], None]]:
    """Return the result and the bound call of a backend's kernel; `way` as MINICNN_CONV has it."""
    kernels = get_backend(name)
    n, c, side, _ = x.shape
    before, conv.WAY = conv.WAY, way
    y, own = (kernels.planes(x.shape, "float32", K // 2) for _ in range(2))
    own[...] = x
    size = kernels.workspace_size("conv2d_forward", N=n, C=c, O=c, K=K, H=side, W=side)
    call = kernels.bind("conv2d_forward", y, own, w, np.zeros(c, "float32"), np.empty(size, "float32"))
    conv.WAY = before
    return y, call


def main(side: int = 64) -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((IMAGES, CHANNELS, side, side)).astype("float32")
    w = rng.standard_normal((CHANNELS, CHANNELS, K, K)).astype("float32") / 25
    padded = np.pad(x, ((0, 0), (0, 0), (K // 2, K // 2), (K // 2, K // 2)))
    one, two, three = (np.empty_like(x) for _ in range(3))
    ways: dict[str, tuple[np.ndarray, Callable[[], object]]] = {
        "im2col and a matrix product": by_backend("numpy", x, w),
        "loops in Python, scaled up": (one, lambda: in_python(one, padded, w)),
        "the same loops, compiled": (two, lambda: loops(two, padded, w)),
        "rows as vectors": (three, lambda: rows(three, padded, w)),
        "sums in registers": by_backend("numba", x, w, "direct"),
        "Winograd's method": by_backend("numba", x, w, "winograd"),
    }
    best = dict.fromkeys(ways, np.inf)
    with get_backend("numpy").threads(1), get_backend("numba").threads(1):
        for _, call in ways.values():
            call()
        for _ in range(ROUNDS):
            for name, (_, call) in ways.items():
                start = time.perf_counter()
                call()
                best[name] = min(best[name], time.perf_counter() - start)
    expected = ways["im2col and a matrix product"][0]
    assert np.abs(one[0, 0, 0, :PIXELS] - expected[0, 0, 0, :PIXELS]).max() < 1e-3
    for name in list(ways)[2:]:
        assert np.abs(ways[name][0] - expected).max() < 1e-3, name
    best["loops in Python, scaled up"] *= expected.size / PIXELS
    print(machine())
    for name, seconds in sorted(best.items(), key=lambda item: -item[1]):
        flops = convolution_flops(IMAGES, CHANNELS, CHANNELS, K, side)
        print(f"{name:28s} {1000 * seconds:12.1f} ms {flops / seconds / 1e9:8.3f} GFLOP/s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
