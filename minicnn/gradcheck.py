"""Gradient checks in float64: analytic gradients against central differences."""

from collections.abc import Callable

import numpy as np

from minicnn.plan import Plan


def numeric_gradient(f: Callable[[], float], x: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    """Element-wise central differences of `f`, a function that reads `x` (float64, changed and put back).

    Returns
    -------
    float64 array of x.shape
    """
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        kept = x[index]
        x[index] = kept + eps
        above = f()
        x[index] = kept - eps
        below = f()
        x[index] = kept
        gradient[index] = (above - below) / (2 * eps)
    return gradient


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference over the largest magnitude (over 1e-8 where all is 0)."""
    scale = max(np.abs(actual).max(initial=0), np.abs(expected).max(initial=0), 1e-8)
    return float(np.abs(actual - expected).max(initial=0) / scale)


def tie_free(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Float64 values in (-1, 1), no two closer than 2 / size: a small difference flips no maximum."""
    size = int(np.prod(shape))
    return (rng.permutation(size).reshape(shape) + 0.5) / size * 2 - 1


def check_plan(
    plan: Plan,
    images: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray | None = None,
    eps: float = 1e-5,
    directions: int = 2,
    seed: int = 0,
) -> dict[str, float]:
    """Directional check of every parameter array of a float64 plan (and of the images, if it computes their gradient).

    For each array and each of `directions` random unit vectors d: <gradient, d> against
    (loss(w + eps d) - loss(w - eps d)) / (2 eps).

    Returns
    -------
    dict of "node/array" (and "images") to the largest error, relative to the larger of the two values
    and of the gradient's norm over 100, under which a cancelling direction would say nothing.
    """
    rng = np.random.default_rng(seed)
    images = np.array(images, np.float64)

    def loss() -> float:
        plan.forward(images)
        return float(plan.loss(labels, weights))

    loss()
    plan.backward()
    gradients = {name: plan.download(gradient) for name, gradient in plan.gradients.items()}
    if plan.has_input_gradient:
        gradients["images"] = plan.download(plan.input_gradient)

    def write(name: str, values: np.ndarray) -> None:
        if name == "images":
            images[...] = values
        else:
            plan.upload(plan.parameters[name], values)

    errors = {}
    for name, gradient in gradients.items():
        errors[name] = 0.0
        kept = images.copy() if name == "images" else plan.download(plan.parameters[name])
        for _ in range(directions):
            direction = rng.standard_normal(kept.shape)
            direction /= np.linalg.norm(direction)
            write(name, kept + eps * direction)
            above = loss()
            write(name, kept - eps * direction)
            below = loss()
            write(name, kept)
            numeric, analytic = (above - below) / (2 * eps), float(np.sum(gradient * direction))
            scale = max(abs(numeric), abs(analytic), float(np.linalg.norm(gradient)) / 100, 1e-12)
            errors[name] = max(errors[name], abs(numeric - analytic) / scale)
    return errors
