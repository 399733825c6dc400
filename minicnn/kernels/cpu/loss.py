"""Backend "numba": loss and parameter update. What each computes: `minicnn.kernels.signatures`."""

import math

from numba import prange

from minicnn.kernels.cpu.compile import exp, kernel, like
from minicnn.kernels.cpu.pool import clear, copy
from minicnn.kernels.cpu.tiles import row

_BLOCK = 1 << 14  # parameters updated by one task


@kernel(
    "number number planes planes labels pixels flat",
    lambda loss, total, p, z, *_: z.shape[0] * z.shape[2],
    workspace=lambda N, H, W, **_: N * H * (2 * W + 2),
)
def softmax_cross_entropy_forward(loss, total, p, z, t, weights, s):
    n_images, labels, h, w = z.shape
    for task in prange(n_images * h):
        n, i = task // h, task % h
        own = s[task * (2 * w + 2) : (task + 1) * (2 * w + 2)]
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
        row_loss, row_weight = s.dtype.type(0), s.dtype.type(0)
        for j in range(w):  # -log p[t], which stays finite if p[t] underflows
            row_loss += weights[n, i, j] * (math.log(norm[j]) + peak[j] - row(z, n, t[n, i, j], i)[j])
            row_weight += weights[n, i, j]
        own[2 * w], own[2 * w + 1] = row_loss, row_weight
        for label in range(labels):
            target = row(p, n, label, i)
            for j in range(w):
                target[j] /= norm[j]
    loss_sum, weight_sum = 0.0, 0.0
    for task in range(n_images * h):
        loss_sum += s[task * (2 * w + 2) + 2 * w]
        weight_sum += s[task * (2 * w + 2) + 2 * w + 1]
    total[()] = weight_sum
    loss[()] = loss_sum / weight_sum


@kernel("planes planes labels pixels number flat", lambda dz, *_: dz.shape[0] * dz.shape[2])
def softmax_cross_entropy_backward(dz, p, t, weights, total, s):
    n_images, labels, h, w = p.shape
    scale = like(1.0, total[()]) / total[()]
    for task in prange(n_images * h):
        n, i = task // h, task % h
        for label in range(labels):
            source, target = row(p, n, label, i), row(dz, n, label, i)
            for j in range(w):
                hit = like(1.0 if t[n, i, j] == label else 0.0, scale)
                target[j] = (source[j] - hit) * weights[n, i, j] * scale


@kernel("flat flat flat number flat float bool float float", lambda values, *_: values.size // _BLOCK)
def sgd_update(values, velocity, gradients, lr, s, momentum, nesterov, weight_decay, shrink):
    rate = lr[()]
    for task in prange((values.size + _BLOCK - 1) // _BLOCK):
        for i in range(task * _BLOCK, min(values.size, (task + 1) * _BLOCK)):
            step = -rate * (gradients[i] + weight_decay * values[i])
            velocity[i] = momentum * velocity[i] + step
            move = momentum * velocity[i] + step if nesterov else velocity[i]
            values[i] = shrink * values[i] + move
