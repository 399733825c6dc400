"""Gradient checks in float64: analytic gradients against central differences."""

from collections.abc import Callable

import numpy as np

from minicnn.plan import Plan


def numeric_gradient(f: Callable[[], float], x: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    """Compute the gradient of `f` with respect to `x` by central differences, one element at a time.

    Parameters
    ----------
    f : callable
        Function without arguments that reads `x`.
    x : float64 array
        Modified in place during the computation and restored.

    Returns
    -------
    float64 array of shape x.shape
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
    """Return the largest absolute difference divided by the largest magnitude, or by 1e-8 if that is larger."""
    scale = max(np.abs(actual).max(initial=0), np.abs(expected).max(initial=0), 1e-8)
    return float(np.abs(actual - expected).max(initial=0) / scale)


def tie_free(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw float64 values in (-1, 1), at least 2 / size apart, so that a small perturbation changes no argmax."""
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
    """Check the gradients of a float64 plan along random directions.

    For each parameter array (and the images, if the plan computes their gradient) and each of `directions` random unit
    vectors d, compare <gradient, d> with (loss(w + eps d) - loss(w - eps d)) / (2 eps).

    Returns
    -------
    dict of "node/array" (and "images") to the largest error, relative to the largest of both values and 1/100 of the
    gradient's norm (for directions nearly orthogonal to the gradient, where both values are close to 0).
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
