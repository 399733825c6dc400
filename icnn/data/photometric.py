"""Photometric augmentation, drawn anew for every input: tone, colour, lighting, blur, noise, JPEG and occlusion.

It is applied after the warp of `resample`, at the network's resolution, and does not change the labels: an occluded
part is labelled as if it were visible. Gain and offset of a channel are not varied, since normalisation removes them.
"""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from icnn.config import Augment
from minicnn.kernels.cpu.cache import cached

LUMA = np.array((0.299, 0.587, 0.114))  # ITU-R BT.601
_REACH = 3  # radius of the blur kernel in pixels
_OCCLUDER = (0.15, 0.5)  # range of an occluder's sides, as fractions of the input's side


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
        out = np.array(values, np.float32)
        if self.occluder is not None:
            hides = self.occluder
            _occlude(out, inside, hides.centre, hides.half, hides.angle, hides.colour)
        if self.gamma != 1 or self.saturation != 1 or self.light.any():
            curve = (255 * np.linspace(0, 1, 257) ** self.gamma).astype(np.float32)
            mixture = self.saturation * np.eye(3) + (1 - self.saturation) * np.tile(LUMA, (3, 1))
            _recolour(out, inside, mixture.astype(np.float32), curve, self.light)
        if self.blur > 0:
            steps = np.arange(-_REACH, _REACH + 1)
            out = _blurred(out, inside, np.exp(-0.5 * (steps / self.blur) ** 2).astype(np.float32))
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


# As in `resample`, no fastmath, so that every run gives the same bits, and no GIL, so that training steps are not
# blocked.


@cached(nogil=True, error_model="numpy")
def _occlude(values, inside, centre, half, angle, colour):
    size = values.shape[0]
    cosine, sine = np.cos(angle), np.sin(angle)
    for i in range(size):
        for j in range(size):
            x, y = (j + 0.5) / size - centre[0], (i + 0.5) / size - centre[1]
            if inside[i, j] and abs(cosine * x + sine * y) < half[0] and abs(cosine * y - sine * x) < half[1]:
                for c in range(3):
                    values[i, j, c] = colour[c]


@cached(nogil=True, error_model="numpy")
def _recolour(values, inside, mixture, curve, light):
    """Apply the tone curve (257 points from 0 to 255), the lighting, then the channel mixture, in place."""
    size = values.shape[0]
    mixed = np.empty(3, np.float32)
    for i in range(size):
        for j in range(size):
            if not inside[i, j]:
                continue
            slope = light[0] * ((2 * j + 1) / size - 1) + light[1] * ((2 * i + 1) / size - 1)
            for c in range(3):
                place = min(max(values[i, j, c], np.float32(0)), np.float32(255)) * np.float32(256 / 255)
                below = min(int(place), 255)
                part = place - np.float32(below)
                mixed[c] = (curve[below] + part * (curve[below + 1] - curve[below])) * np.float32(1 + slope)
            for c in range(3):
                value = mixture[c, 0] * mixed[0] + mixture[c, 1] * mixed[1] + mixture[c, 2] * mixed[2]
                values[i, j, c] = min(max(value, np.float32(0)), np.float32(255))


@cached(nogil=True, error_model="numpy")
def _blurred(values, inside, taps):
    """Blur along rows, then along columns; pixels outside the image do not contribute to any mean."""
    size, reach = values.shape[0], len(taps) // 2
    first, out = np.zeros_like(values), np.zeros_like(values)
    for source, target, down, across in ((values, first, 0, 1), (first, out, 1, 0)):
        for i in range(size):
            for j in range(size):
                if not inside[i, j]:
                    continue
                total = np.float32(0)
                for t in range(-reach, reach + 1):
                    u, v = i + t * down, j + t * across
                    if 0 <= u < size and 0 <= v < size and inside[u, v]:
                        weight = taps[t + reach]
                        total += weight
                        for c in range(3):
                            target[i, j, c] += weight * source[u, v, c]
                for c in range(3):
                    target[i, j, c] /= total
    return out
