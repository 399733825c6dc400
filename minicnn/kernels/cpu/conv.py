"""Convolution of the "numba" backend: by Winograd's method (`conv_winograd`) or direct (`conv_direct`, `conv_weights`).

Winograd's method is faster wherever it is possible, by 1.3 to 3 times in the network's layers: for kernels of 5 x 5
and 9 x 9. The environment variable MINICNN_CONV chooses "direct" or "winograd" for comparisons; "auto" is the default.
"""

import os
from collections.abc import Callable

from minicnn.kernels.cpu import conv_direct, conv_weights, conv_winograd
from minicnn.kernels.cpu.tiles import lanes
from minicnn.kernels.cpu.winograd_tiles import TILE

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


def prepare_forward(y, x, w, b, s) -> Callable[[], None]:
    """Prepare y = x correlated with w (zero padded, stride 1) + b; arguments as for `backend.conv2d_forward`."""
    way = conv_winograd if is_winograd(w.shape[2], *x.shape[2:], x.itemsize) else conv_direct
    return way.prepare_forward(y, x, w, b, s)


def prepare_backward_data(dx, dy, w, s, add) -> Callable[[], None]:
    """Prepare dx = dy correlated with w rotated by 180°, channels swapped, as for `backend.conv2d_backward_data`."""
    way = conv_winograd if is_winograd(w.shape[2], *dy.shape[2:], dy.itemsize) else conv_direct
    return way.prepare_backward_data(dx, dy, w, s, add)


def prepare_backward_weights(dw, db, dy, x, s) -> Callable[[], None]:
    """Prepare dw = dy correlated with x, db = sum of dy over images and pixels (`backend.conv2d_backward_weights`)."""
    way = conv_winograd if is_winograd(dw.shape[2], *x.shape[2:], x.itemsize) else conv_weights
    return way.prepare_backward_weights(dw, db, dy, x, s)


def forward_workspace(N, C, O, H, W, K, **_) -> int:  # noqa: E741
    """Return the workspace elements of a forward pass, enough for both float types."""
    sizes = []
    for itemsize in (4, 8):
        way = conv_winograd if is_winograd(K, H, W, itemsize) else conv_direct
        sizes.append(way.correlation_workspace(N, C, O, H, W, K, itemsize))
    return max(sizes) + _ALIGNMENT


def backward_workspace(N, C, O, H, W, K, **_) -> int:  # noqa: E741
    """Return the workspace elements of an input gradient, enough for both float types."""
    return forward_workspace(N, O, C, H, W, K)


def weights_workspace(N, C, O, H, W, K, **_) -> int:  # noqa: E741
    """Return the workspace elements of a weight gradient, enough for both float types."""
    sizes = []
    for itemsize in (4, 8):
        way = conv_winograd if is_winograd(K, H, W, itemsize) else conv_weights
        sizes.append(way.weight_gradient_workspace(N, C, O, H, W, K, itemsize))
    return max(sizes) + _ALIGNMENT
