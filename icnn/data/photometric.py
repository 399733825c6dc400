"""Photometric augmentation, drawn anew for every input: tone, colour, lighting, blur, noise, JPEG and occlusion.

It is applied after the warp of `resample`, at the network's resolution, and does not change the labels: an occluded
part is labelled as if it were visible. Gain and offset of a channel are not varied, since normalisation removes them.
"""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from icnn.config import Augment
from minicnn.kernels.cpu.kernel import Kernel, one

LUMA = np.array((0.299, 0.587, 0.114))  # ITU-R BT.601
_REACH = 3  # radius of the blur kernel in pixels
_OCCLUDER = (0.15, 0.5)  # range of an occluder's sides, as fractions of the input's side

_OCCLUDE = Kernel("icnn.data.loops:occlude", "pixels mask numbers flat", one, strict=True)
_RECOLOUR = Kernel("icnn.data.loops:recolour", "flat pixels mask flat2 flat numbers", one, strict=True)
_BLUR = Kernel("icnn.data.loops:blur", "pixels pixels pixels mask flat", one, strict=True)


@dataclass(frozen=True)
class Occluder:
    """Rotated rectangle of one colour in front of the face.

    Attributes
    ----------
    centre, half : (2,) float64
        Centre (x, y) and half the sides, as fractions of the input's side.
    angle : float
        Rotation in radians.
    colour : (3,) float32 in [0, 255]
        RGB.
    """

    centre: np.ndarray
    half: np.ndarray
    angle: float
    colour: np.ndarray


@dataclass(frozen=True)
class Appearance:
    """Parameters of one photometric augmentation.

    Attributes
    ----------
    gamma : float
        Exponent of the tone curve.
    saturation : float
        0 gives grey, 1 leaves the colours unchanged.
    light : (2,) float64
        Lighting gradient along x and y: relative change of brightness from the input's centre to its edge.
    blur : float
        Standard deviation of the Gaussian in pixels; 0 disables it.
    noise : float
        Standard deviation in grey levels; 0 disables it.
    quality : int
        Quality of the JPEG compression; 0 disables it.
    occluder : Occluder or None
    """

    gamma: float
    saturation: float
    light: np.ndarray
    blur: float
    noise: float
    quality: int
    occluder: Occluder | None

    @classmethod
    def random(cls, rng: np.random.Generator, settings: Augment) -> "Appearance":
        """Draw the parameters from the ranges in `settings`.

        Every call consumes the same count of random numbers, so that changing one setting does not affect the others.
        """
        chance, size = rng.random(4), rng.random(3)
        slope, position, half, colour = rng.uniform(-1, 1, 2), rng.random(2), rng.uniform(*_OCCLUDER, 2), rng.random(3)
        low, high = settings.saturation
        least, most = settings.quality
        occluder = None
        if chance[3] < settings.occlusion:
            occluder = Occluder(position, half / 2, np.pi * size[2], (255 * colour).astype(np.float32))
        return cls(
            gamma=float(np.exp(settings.gamma * (2 * size[0] - 1))),
            saturation=0.0 if chance[0] < settings.grey else low + (high - low) * chance[1],
            light=settings.light * slope,
            blur=settings.blur * max(0.0, 2 * size[1] - 1),  # half of the inputs are not blurred
            noise=settings.noise * chance[1] ** 2,
            quality=round(least + (most - least) * position[0]) if chance[2] < settings.jpeg else 0,
            occluder=occluder,
        )

    def skip(self, size: int, rng: np.random.Generator) -> None:
        """Advance `rng` exactly as `apply` does for an input of side `size`.

        Skipped samples then do not shift the random stream.
        """
        if self.noise > 0:
            rng.standard_normal((size, size, 3), np.float32)

    def apply(self, values: np.ndarray, inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Apply the augmentation to a copy of an input.

        Parameters
        ----------
        values : (S, S, 3) float32 in [0, 255]
        inside : (S, S) bool
            Pixels that are changed; those outside stay as they are.
        rng : numpy.random.Generator
            Source of the noise.

        Returns
        -------
        (S, S, 3) float32 in [0, 255]
        """
        out, inside = np.array(values, np.float32, order="C"), np.ascontiguousarray(inside)
        if self.occluder is not None:
            hides = self.occluder
            place = np.array([*hides.centre, *hides.half, np.cos(hides.angle), np.sin(hides.angle)])
            _OCCLUDE(out, inside, place, hides.colour)
        if self.gamma != 1 or self.saturation != 1 or self.light.any():
            curve = (255 * np.linspace(0, 1, 257) ** self.gamma).astype(np.float32)
            mixture = self.saturation * np.eye(3) + (1 - self.saturation) * np.tile(LUMA, (3, 1))
            light = np.asarray(self.light, np.float64)
            _RECOLOUR(np.empty(3, np.float32), out, inside, mixture.astype(np.float32), curve, light)
        if self.blur > 0:
            steps = np.arange(-_REACH, _REACH + 1)
            sharp, out, first = out, np.zeros_like(out), np.zeros_like(out)
            _BLUR(out, first, sharp, inside, np.exp(-0.5 * (steps / self.blur) ** 2).astype(np.float32))
        if self.noise > 0:
            out += np.float32(self.noise) * rng.standard_normal(out.shape, np.float32) * inside[..., None]
        if self.quality:
            return through_jpeg(out, self.quality) * inside[..., None]
        return out


def through_jpeg(values: np.ndarray, quality: int) -> np.ndarray:
    """Round (H, W, 3) values in [0, 255], encode them as a JPEG and decode it; returns float32 of the same shape."""
    file = BytesIO()
    Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        return np.asarray(image, np.float32)
