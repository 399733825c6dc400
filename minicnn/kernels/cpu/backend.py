"""Backend "numba": plain loops and register tiles, compiled by Numba and LLVM (`compiled`).

Convolution, which takes nearly all the time, is in `conv`; the other kernels are in `pool` and `loss`. float32 and
float64 use the same code. What each kernel computes, and the shapes and roles of its arguments:
`minicnn.kernels.signatures`.
"""

from collections.abc import Callable

from minicnn.kernels import host
from minicnn.kernels.backend import Backend
from minicnn.kernels.cpu import conv, layout, loss, pool
from minicnn.kernels.cpu.kernel import Kernel
from minicnn.kernels.cpu.threads import limited as threads  # noqa: F401  # of the backend
from minicnn.kernels.signatures import kernel
from minicnn.kernels.validation import Check

# The convolutions consist of several calls with offsets that are computed in advance: they return one prepared call.


@kernel(conv.forward_workspace)
def conv2d_forward(y, x, w, b, s):
    return conv.prepare_forward(y, x, w, b, s)


@kernel(conv.forward_workspace)
def conv2d_tanh_forward(y, pooled, up, x, w, b, s):
    return layout.in_turn([conv.prepare_forward(y, x, w, b, s), pool.interlink_forward.bind(y, pooled, up, y)])


@kernel(conv.backward_workspace)
def conv2d_backward_data(dx, dy, w, s, add):
    return conv.prepare_backward_data(dx, dy, w, s, add)


@kernel(conv.weights_workspace)
def conv2d_backward_weights(dw, db, dy, x, s):
    return conv.prepare_backward_weights(dw, db, dy, x, s)


def _prepare(function: Callable, *arguments) -> Callable[[], None]:
    return function.bind(*arguments) if isinstance(function, Kernel) else function(*arguments)


_FUNCTIONS = vars(host) | {"planes": layout.planes} | vars(pool) | vars(loss) | globals()
BACKEND = Backend("numba", _FUNCTIONS, _prepare, Check)
