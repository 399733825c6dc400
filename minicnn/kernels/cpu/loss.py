"""Backend "numba": loss and parameter update. What each computes: `minicnn.kernels.signatures`."""

import math

from minicnn.kernels.cpu.compile import kernel, one
from minicnn.kernels.cpu.layout import in_turn
from minicnn.kernels.cpu.pool import clear, copy
from minicnn.kernels.cpu.tiles import row
from minicnn.kernels.cpu.vecmath import exp, like
from minicnn.kernels.signatures import kernel as described

_BLOCK = 1 << 14  # parameters updated by one task


@described(lambda N, H, W, **_: N * H * (2 * W + 2))
def softmax_cross_entropy_forward(loss, total, p, z, t, weights, s):
    n, _, h, w = z.shape
    rows = s[: n * h * (2 * w + 2)].reshape(n * h, 2 * w + 2)
    return in_turn([_losses_of_rows.bind(p, z, t, weights, rows), _mean_loss.bind(loss, total, rows)])


@kernel("planes planes labels pixels flat2", lambda p, z, t, weights, rows: rows.shape[0])
def _losses_of_rows(tasks, p, z, t, weights, rows):
    """Compute p, and of each row of pixels the sums of losses and of weights, the last two numbers of `rows`."""
    _, labels, h, w = z.shape
    for task in range(tasks[0], tasks[1]):
        n, i = task // h, task % h
        own = rows[task]
        peak, norm = own[:w], own[w : 2 * w]
        copy(peak, row(z, n, 0, i))
        for label in range(1, labels):
            source = row(z, n, label, i)
            for j in range(w):
                peak[j] = max(peak[j], source[j])
        clear(norm)
        for label in range(labels):
            source, target = row(z, n, label, i), row(p, n, label, i)
            for j in range(w):
                target[j] = exp(source[j] - peak[j])
                norm[j] += target[j]
        row_loss, row_weight = rows.dtype.type(0), rows.dtype.type(0)
        for j in range(w):  # -log p[t], which stays finite if p[t] underflows
            row_loss += weights[n, i, j] * (math.log(norm[j]) + peak[j] - row(z, n, t[n, i, j], i)[j])
            row_weight += weights[n, i, j]
        own[2 * w], own[2 * w + 1] = row_loss, row_weight
        for label in range(labels):
            target = row(p, n, label, i)
            for j in range(w):
                target[j] /= norm[j]


@kernel("number number flat2", one)
def _mean_loss(tasks, loss, total, rows):
    """Add up the rows in their order."""
    loss_sum, weight_sum = 0.0, 0.0
    for task in range(rows.shape[0]):
        loss_sum += rows[task, -2]
        weight_sum += rows[task, -1]
    total[()] = weight_sum
    loss[()] = loss_sum / weight_sum


@kernel("planes planes labels pixels number flat", lambda dz, *_: dz.shape[0] * dz.shape[2])
def softmax_cross_entropy_backward(tasks, dz, p, t, weights, total, s):
    _, labels, h, w = p.shape
    scale = like(1.0, total[()]) / total[()]
    for task in range(tasks[0], tasks[1]):
        n, i = task // h, task % h
        for label in range(labels):
            source, target = row(p, n, label, i), row(dz, n, label, i)
            for j in range(w):
                hit = like(1.0 if t[n, i, j] == label else 0.0, scale)
                target[j] = (source[j] - hit) * weights[n, i, j] * scale


@kernel("flat flat flat number flat float bool float float", lambda values, *_: -(-values.size // _BLOCK))
def sgd_update(tasks, values, velocity, gradients, lr, s, momentum, nesterov, weight_decay, shrink):
    rate = lr[()]
    for task in range(tasks[0], tasks[1]):
        for i in range(task * _BLOCK, min(values.size, (task + 1) * _BLOCK)):
            step = -rate * (gradients[i] + weight_decay * values[i])
            velocity[i] = momentum * velocity[i] + step
            move = momentum * velocity[i] + step if nesterov else velocity[i]
            values[i] = shrink * values[i] + move
