"""Convolution of the "numba" backend: by Winograd's method (`conv_winograd`) or direct (`conv_direct`, `conv_weights`).

Winograd's method is faster wherever it is possible, by 1.3 to 3 times in the network's layers: for kernels of 5 x 5
and 9 x 9. The environment variable MINICNN_CONV chooses "direct" or "winograd" for comparisons; "auto" is the default.
"""

import os
from collections.abc import Callable
from functools import partial

import numpy as np

from minicnn.kernels.cpu import conv_direct, conv_weights, conv_winograd
from minicnn.kernels.cpu.layout import Arena, in_turn
from minicnn.kernels.cpu.vectors import lanes
from minicnn.kernels.cpu.winograd_blocks import TILE

_WAYS = ("auto", "direct", "winograd")
#: Workspace elements for the alignment of a way's arrays.
_ALIGNMENT = 256


def _choose_way() -> str:
    """Return the value of MINICNN_CONV.

    Raises
    ------
    ImportError
        If it is unknown; the backend is then unusable.
    """
    way = os.environ.get("MINICNN_CONV") or "auto"
    if way not in _WAYS:
        raise ImportError(f"MINICNN_CONV={way}: expected one of {', '.join(_WAYS)}")
    return way


WAY = _choose_way()


def is_winograd(k: int, h: int, w: int, itemsize: int) -> bool:
    """Return True if convolutions with a k x k kernel on h x w planes use Winograd's method.

    A vector must hold a row of a tile, 4 numbers. On planes smaller than a tile most of the work would be wasted.
    """
    possible = k in (5, 9) and lanes(itemsize) >= TILE
    return possible and WAY != "direct" and (WAY == "winograd" or min(h, w) >= TILE)


def _correlation(k: int, h: int, w: int, itemsize: int):
    """Return the module that correlates: `prepare_correlation`, `correlation_workspace`."""
    return conv_winograd if is_winograd(k, h, w, itemsize) else conv_direct


def _weight_gradient(k: int, h: int, w: int, itemsize: int):
    """Return the module of the weight gradient: `prepare_weight_gradient`, `weight_gradient_workspace`."""
    return conv_winograd if is_winograd(k, h, w, itemsize) else conv_weights


def prepare_forward(y, x, w, b, s) -> Callable[[], None]:
    """Prepare y = x correlated with w (zero padded, stride 1) + b; arguments as for `backend.conv2d_forward`."""
    way = _correlation(w.shape[2], *x.shape[2:], x.itemsize)
    return in_turn(way.prepare_correlation(y, x, w, b, Arena(s), transposed=False))


def prepare_backward_data(dx, dy, w, s, add) -> Callable[[], None]:
    """Prepare dx = dy correlated with w rotated by 180°, channels swapped, as for `backend.conv2d_backward_data`."""
    way, arena = _correlation(w.shape[2], *dy.shape[2:], dy.itemsize), Arena(s)
    if not add:
        return in_turn(way.prepare_correlation(dx, dy, w, None, arena, transposed=True))
    fresh = arena.take(*dx.shape)
    return in_turn(
        [*way.prepare_correlation(fresh, dy, w, None, arena, transposed=True), partial(np.add, dx, fresh, out=dx)]
    )


def prepare_backward_weights(dw, db, dy, x, s) -> Callable[[], None]:
    """Prepare dw = dy correlated with x, db = sum of dy over images and pixels (`backend.conv2d_backward_weights`)."""
    way = _weight_gradient(dw.shape[2], *x.shape[2:], x.itemsize)
    return in_turn(way.prepare_weight_gradient(dw, db, dy, x, Arena(s)))


def _most(elements: Callable[[int], int]) -> int:
    """Return the workspace elements that suffice for both float types, given those for an element of some bytes."""
    return max(elements(4), elements(8)) + _ALIGNMENT


def forward_workspace(N, C, O, H, W, K, **_) -> int:  # noqa: E741
    """Return the workspace elements of a forward pass."""
    return _most(lambda size: _correlation(K, H, W, size).correlation_workspace(N, C, O, H, W, K, size))


def backward_workspace(N, C, O, H, W, K, **_) -> int:  # noqa: E741
    """Return the workspace elements of an input gradient, with a copy of dx for `add`."""
    return forward_workspace(N, O, C, H, W, K) + N * C * H * W


def weights_workspace(N, C, O, H, W, K, **_) -> int:  # noqa: E741
    """Return the workspace elements of a weight gradient."""
    return _most(lambda size: _weight_gradient(K, H, W, size).weight_gradient_workspace(N, C, O, H, W, K, size))
