"""Backend "numba": loss and parameter update; `compiled.loss` has the loops.

What each kernel computes: `minicnn.kernels.signatures`.
"""

from minicnn.kernels.cpu.kernel import Kernel, one, table_kernel
from minicnn.kernels.cpu.layout import in_turn
from minicnn.kernels.signatures import kernel

BLOCK = 1 << 14  # parameters updated by one task

_LOOPS = f"{__package__}.compiled.loss"
_losses_of_rows = Kernel(
    f"{_LOOPS}:losses_of_rows", "planes planes labels pixels flat2", lambda p, z, t, weights, rows: rows.shape[0]
)
_mean_loss = Kernel(f"{_LOOPS}:mean_loss", "number number flat2", one)


@kernel(lambda N, H, W, **_: N * H * (2 * W + 2))
def softmax_cross_entropy_forward(loss, total, p, z, t, weights, s):
    n, _, h, w = z.shape
    rows = s[: n * h * (2 * w + 2)].reshape(n * h, 2 * w + 2)
    return in_turn([_losses_of_rows.bind(p, z, t, weights, rows), _mean_loss.bind(loss, total, rows)])


softmax_cross_entropy_backward = table_kernel(
    _LOOPS, "softmax_cross_entropy_backward", "planes planes labels pixels number flat",
    lambda dz, *_: dz.shape[0] * dz.shape[2],
)  # fmt: skip
sgd_update = table_kernel(
    _LOOPS, "sgd_update", "flat flat flat number flat float bool float float",
    lambda values, *_: -(-values.size // BLOCK),
)  # fmt: skip
