"""Stochastic gradient descent (Sec. 2.5) and its learning-rate schedules."""

import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """Constant learning rate."""

    lr: float

    def __call__(self, step: int) -> float:
        return self.lr


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up to `lr` over `warmup` steps, then cosine decay to 0 at step `steps`."""

    lr: float
    steps: int
    warmup: int = 0

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True)
class Exponential:
    """Step decay: multiply the learning rate by `factor` after every `every` steps."""

    lr: float
    factor: float
    every: int

    def __call__(self, step: int) -> float:
        return self.lr * self.factor ** (step // self.every)


@dataclass(frozen=True)
class SGD:
    """Settings of the SGD update; the `Plan` keeps the velocity and the step count.

    With g the gradient of the mean loss plus ``weight_decay * w``::

        v <- momentum v - lr g
        w <- shrink w + v                      plain
        w <- shrink w + momentum v - lr g      nesterov

    This is the form of Pylearn2, which the paper's program was built on.

    Parameters
    ----------
    lr : float or callable
        Learning rate, or a schedule that maps the step (from 0) to it.
    momentum : float in [0, 1)
    nesterov : bool
    weight_decay : float
        L2 coefficient, applied to weights and biases.
    shrink : float
        Factor that multiplies every parameter at each step; 0.99999 in stage 1 of the released program.
    """

    lr: float | Schedule
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    shrink: float = 1.0

    def __post_init__(self):
        if not callable(self.lr) and not self.lr >= 0:
            raise ValueError(f"expected a learning rate of at least 0, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"expected a momentum in [0, 1), got {self.momentum}")

    def rate(self, step: int) -> float:
        """Return the learning rate of update `step`, counted from 0."""
        return self.lr(step) if callable(self.lr) else self.lr
