"""Geometric augmentation: random rotation, scale, shift, stretch, shear and mirroring of network inputs (Sec. 4.2)."""

from dataclasses import dataclass

import numpy as np

from icnn.config import Augment
from icnn.data.geometry import affine


@dataclass(frozen=True)
class Draw:
    """Parameters of one geometric transform about the centre of a network's input.

    Attributes
    ----------
    rotation : float
        Degrees; positive turns the image's x axis towards its y axis (clockwise on screen).
    scale : float
        Scale factor; above 1 enlarges the content.
    shift : (float, float)
        Displacement of the content in network pixels, x and y.
    stretch : float
        Aspect change; above 1 makes the content taller and narrower.
    shear : float
        Horizontal displacement of the content in pixels per row downwards.
    mirrored : bool
        Whether the content is mirrored left to right before the other transforms.
    """

    rotation: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    stretch: float = 1.0
    shear: float = 0.0
    mirrored: bool = False

    @classmethod
    def random(cls, rng: np.random.Generator, settings: Augment) -> "Draw":
        """Draw each parameter uniformly from the ranges in `settings`.

        The ranges of Sec. 4.2 are ±15° rotation, scale 0.9 to 1.1 and ±10 pixels shift per axis.
        """
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
        """Return the matrix, (2, 3), from the transformed square of side `size` to the original one."""
        middle = (size - 1) / 2
        angle = np.deg2rad(self.rotation)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / self.scale
        root = np.sqrt(self.stretch)
        # inverse of: mirror, stretch, shear, rotate
        turn = np.array([[-root if self.mirrored else root, 0], [0, 1 / root]]) @ [[1, -self.shear], [0, 1]] @ turn
        return affine(turn, middle + np.array(self.shift), middle)
