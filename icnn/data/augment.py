"""Geometric augmentation: random rotation, scale, shift, stretch and shear of a network's input (Sec. 4.2)."""

from dataclasses import dataclass

import numpy as np

from icnn.config import Augment


@dataclass(frozen=True)
class Draw:
    """One random transform about the centre of a network's input.

    Attributes
    ----------
    rotation : float
        Degrees; positive turns the image's x axis towards its y axis (clockwise as seen).
    scale : float
        Above 1 the content grows.
    shift : (float, float)
        Network pixels by which the content moves, x and y.
    stretch : float
        Above 1 the content grows in height and shrinks in width.
    shear : float
        Pixels by which the content moves along a row for each row downwards.
    mirrored : bool
        Whether the content is mirrored first.
    """

    rotation: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    stretch: float = 1.0
    shear: float = 0.0
    mirrored: bool = False

    @classmethod
    def random(cls, rng: np.random.Generator, settings: Augment) -> "Draw":
        """Draw uniformly within `settings` (Sec. 4.2: ±15°, 0.9 to 1.1, ±10 pixels each way)."""
        angle, x, y = rng.uniform(-1, 1, 3)
        scale = rng.uniform(*settings.scale)
        stretch, shear = rng.uniform(-1, 1, 2)
        return cls(
            angle * settings.rotation,
            scale,
            (x * settings.shift, y * settings.shift),
            1 + stretch * settings.stretch,
            shear * settings.shear,
            bool(rng.random() < settings.mirror),
        )

    def matrix(self, size: int) -> np.ndarray:
        """The map from the transformed square of side `size` to the plain one, (2, 3)."""
        middle = (size - 1) / 2
        angle = np.deg2rad(self.rotation)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / self.scale
        root = np.sqrt(self.stretch)
        # the inverse of: mirror, stretch, shear, turn
        turn = np.array([[-root if self.mirrored else root, 0], [0, 1 / root]]) @ [[1, -self.shear], [0, 1]] @ turn
        offset = middle - turn @ (middle + np.array(self.shift))
        return np.column_stack([turn, offset])
