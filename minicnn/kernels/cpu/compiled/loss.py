"""Loops of the loss and of the parameter update."""

import math

from minicnn.kernels.cpu.compiled.pool import clear, copy
from minicnn.kernels.cpu.compiled.tiles import row
from minicnn.kernels.cpu.compiled.vecmath import exp, like
from minicnn.kernels.cpu.loss import BLOCK


def losses_of_rows(tasks, p, z, t, weights, rows):
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


def mean_loss(tasks, loss, total, rows):
    """Add up the rows in their order."""
    loss_sum, weight_sum = 0.0, 0.0
    for task in range(rows.shape[0]):
        loss_sum += rows[task, -2]
        weight_sum += rows[task, -1]
    total[()] = weight_sum
    loss[()] = loss_sum / weight_sum


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


def sgd_update(tasks, values, velocity, gradients, lr, s, momentum, nesterov, weight_decay, shrink):
    rate = lr[()]
    for task in range(tasks[0], tasks[1]):
        for i in range(task * BLOCK, min(values.size, (task + 1) * BLOCK)):
            step = -rate * (gradients[i] + weight_decay * values[i])
            velocity[i] = momentum * velocity[i] + step
            move = momentum * velocity[i] + step if nesterov else velocity[i]
            values[i] = shrink * values[i] + move
