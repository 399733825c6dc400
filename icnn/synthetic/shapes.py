"""Shapes of a synthetic face: random proportions, and outlines as polygons.

Head coordinates are pixels of a 256 x 256 image before the pose is applied,
with x to the right, y down and the origin in the middle of the face::

        y  -110  top of the head        y  -40 .. 9   nose
            -60  eyebrows                       22    mouth, x = ±25
            -40  eyes, x = ±30                  66    chin
"""

import math
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike


def drawn(method: str, *arguments: ArrayLike) -> Any:
    """Declare a field of a `Drawn` class by a method of the random generator and its arguments."""
    return field(metadata={"drawn": (method, arguments)})


#: Fields declared as ``uniform(low, high)`` and ``normal(mean, deviation)``.
uniform, normal = partial(drawn, "uniform"), partial(drawn, "normal")


@dataclass(frozen=True)
class Drawn:
    """Base of the proportions of a face: lengths in head coordinates, slopes as rise over run."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Draw the fields in the order of their declaration; those with a default are constants."""
        random = [(each.name, *each.metadata["drawn"]) for each in fields(cls) if each.metadata]
        return cls(**{name: getattr(rng, method)(*arguments) for name, method, arguments in random})


def polyline(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Return points (n, 2) float64 from their coordinates; either may be a scalar."""
    return np.stack(np.broadcast_arrays(np.asarray(x, np.float64), y), 1)


def mirrored(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Return a closed polygon (n, 2), symmetric about x = 0, from its right half."""
    half = polyline(x, y)
    return np.concatenate([half, (half[half[:, 0] > 0] * (-1, 1))[::-1]])


def smooth(controls: np.ndarray, steps: int = 8) -> np.ndarray:
    """Return a closed Catmull-Rom curve through (n, 2) control points, `steps` points per segment."""
    p0, p1, p2, p3 = (np.roll(controls, shift, 0) for shift in (1, 0, -1, -2))
    t = (np.arange(steps) / steps)[:, None, None]
    curve = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * (p1 - p2) + p3 - p0) * t**3
    return 0.5 * curve.transpose(1, 0, 2).reshape(-1, 2)


_TURN = np.arange(24) * (np.pi / 12)


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> np.ndarray:
    """Return an ellipse as a closed polygon (24, 2), its axes rotated by `angle` radians."""
    dx, dy, c, s = rx * np.cos(_TURN), ry * np.sin(_TURN), math.cos(angle), math.sin(angle)
    return polyline(x + dx * c - dy * s, y + dx * s + dy * c)


def ribbon(x: ArrayLike, y: ArrayLike, width: ArrayLike) -> np.ndarray:
    """Return the outline of a stroke with the full `width` at each point; a closed line gives a ring."""
    line = polyline(x, y)
    along = np.concatenate([line[1:], line[-1:]]) - np.concatenate([line[:1], line[:-1]])
    half = np.asarray(width) / 2 / (np.hypot(along[:, 0], along[:, 1]) + 1e-9)
    across = along[:, ::-1] * (-1, 1) * half[:, None]
    return np.concatenate([line + across, (line - across)[::-1]])
