"""Canvas of a synthetic face: noise, colours, head pose, painting and labels, lighting and camera effects."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter

from icnn.synthetic.shapes import mirrored, smooth


def _colours(codes: str) -> np.ndarray:
    return np.array([list(bytes.fromhex(code)) for code in codes.split()], np.float32)


# `pick` mixes neighbouring colours, so the order matters: light to dark for skin, a gradual change for hair.
SKIN = _colours("fadecc f0c8ac e2b28c c8926a a06c4c 744c36 503428")
HAIR = _colours("161212 281c16 462e1e 704a2c ba9258 dec48e 8c3e1e 807c78 d6d2cc")
IRIS = _colours("3a2214 54361e 4a623e 4a7094 68747c")
WHITE, BLACK = np.full(3, 250, np.float32), np.full(3, 14, np.float32)

ELLIPSOID = 74, 112, 58  # radii of the head along x, y and depth, head coordinates
Box = tuple[slice, slice]
Shape = np.ndarray | list[np.ndarray]  # one polygon (n, 2) or several, in head coordinates


# ---------------------------------------------------------------- noise, colours


def noise(rng: np.random.Generator, size: int, *cells: int) -> np.ndarray:
    """Return smooth noise (size, size) with a standard deviation of about 1; each octave has `cells` cells per side."""
    total = np.zeros((1, 1), np.float32)
    for k, n in enumerate(cells):
        coarser = Image.fromarray(total).resize((n, n), Image.Resampling.BICUBIC)
        total = np.asarray(coarser) + rng.standard_normal((n, n), np.float32) / (k + 1)
    total /= total.std() + 1e-6
    return np.asarray(Image.fromarray(total).resize((size, size), Image.Resampling.BICUBIC))


def mix(a: ArrayLike, b: ArrayLike, share: float) -> np.ndarray:
    """Interpolate linearly: ``a * (1 - share) + b * share``, float32."""
    return np.asarray(a, np.float32) * (1 - share) + np.asarray(b, np.float32) * share


def textured(colour: np.ndarray, tone: np.ndarray) -> np.ndarray:
    """Return a colour times a factor per pixel, `tone` (size, size), as (3, size, size) float32."""
    return np.asarray(colour, np.float32)[:, None, None] * tone.astype(np.float32)


def pick(rng: np.random.Generator, colours: np.ndarray, spread: float) -> np.ndarray:
    """Return a random mixture of two neighbouring colours plus noise of standard deviation `spread`, (3,) float32."""
    at = rng.uniform(0, len(colours) - 1)
    colour = mix(colours[int(at)], colours[int(at) + 1], at % 1)
    return np.clip(colour + rng.normal(0, spread, 3), 4, 252).astype(np.float32)


def paint_colour(rng: np.random.Generator) -> np.ndarray:
    """Return a random colour (3,) for cloth or walls; highly saturated colours are rare."""
    return mix(rng.uniform(15, 240), rng.uniform(10, 245, 3), rng.uniform(0.1, 0.8))


# ---------------------------------------------------------------- pose and canvas


class Pose:
    """Random map from head coordinates to image pixels: yaw and pitch of an ellipsoid, then a similarity.

    Attributes
    ----------
    yaw, pitch : float
        Radians.
    scale : float
        Image pixels per unit of head coordinates.
    shift : (2,) float64
        Image position of the origin, pixels.
    turn : (2, 2) float64
        Rotation matrix of the roll.
    """

    def __init__(self, rng: np.random.Generator, size: int):
        self.yaw, self.pitch = np.clip(rng.normal(0, (0.17, 0.07)), (-0.4, -0.16), (0.4, 0.16)).tolist()
        self.scale = rng.uniform(0.85, 1.15) * size / 256
        self.shift = 128 + rng.uniform((-24, -18), (24, 18))
        if rng.random() < 0.02:  # the image border cuts the face
            self.shift += rng.choice([-1, 1], 2) * rng.permutation([0, 70])
        self.shift *= size / 256
        roll = math.radians(rng.uniform(-18, 18))
        self.turn = np.array([[math.cos(roll), -math.sin(roll)], [math.sin(roll), math.cos(roll)]])

    def project(self, points: np.ndarray, lift: float | None) -> np.ndarray:
        """Map head coordinates (n, 2) to pixels, `lift` above the ellipsoid; None means in the outline's plane."""
        x, y = points[:, 0], points[:, 1]
        if lift is not None:
            rx, ry, rz = ELLIPSOID
            z = lift + rz * np.sqrt(np.maximum(1 - (x / rx) ** 2 - (y / ry) ** 2, 0))
            x = x * math.cos(self.yaw) + z * math.sin(self.yaw)
            y = y * math.cos(self.pitch) + z * math.sin(self.pitch)
        return np.stack([x, y], 1) @ (self.scale * self.turn.T) + self.shift

    def plane(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return head coordinates x and y of all pixel centres in the outline's plane, each (size, size) float32."""
        rows, columns = np.ogrid[:size, :size]
        (a, b), (c, d) = (self.turn.T / self.scale).astype(np.float32)
        columns = (columns + 0.5 - self.shift[0]).astype(np.float32)
        rows = (rows + 0.5 - self.shift[1]).astype(np.float32)
        return a * columns + b * rows, c * columns + d * rows


class Canvas:
    """Image and label maps of a face while it is drawn, with random properties shared by all its features."""

    def __init__(self, rng: np.random.Generator, size: int):
        self.rng, self.size, self.pose = rng, size, Pose(rng, size)
        self.image = np.zeros((3, size, size), np.float32)  # 0 .. 255; channels first, for speed
        self.parts = np.zeros((8, size, size), np.float32)  # shares of class ids 1..8; their sum is at most 1
        self.x, self.y = self.pose.plane(size)
        self.skin = pick(rng, SKIN, 5)
        dark = rng.random() < 0.35 + 0.5 * (self.skin.mean() < 130)
        self.hair = pick(rng, HAIR[:3] if dark else HAIR, 6)
        rosy = mix(self.skin * 0.9, self.skin * (0.92, 0.64, 0.66), rng.uniform(0.4, 1.2))
        self.lip = rng.uniform((110, 10, 20), (235, 90, 120)) if rng.random() < 0.2 else rosy
        self.gape = max(0.0, rng.normal(0, 6.5))  # mouth opening, pixels
        self.light = rng.normal(0, 0.55)  # horizontal light direction; > 0: from the right
        self.wide = 60 * rng.uniform(0.9, 1.1)  # half the head's width
        self.long = rng.uniform(0.94, 1.06)  # length factor of the lower face
        x = np.array([0, 0.33, 0.66, 0.9, 1, 0.93, 0.6, 0]) * self.wide
        chin = 66 * self.long + self.gape * 0.6
        self.outline = smooth(mirrored(x, [chin, chin - 4, chin - 22, 18, -28, -70, -101, -110]))

    def shade(self, factor: float, red: float = 1.0) -> np.ndarray:
        """Return the skin colour times `factor`; `red` scales the red channel, as shadows on skin are redder."""
        return np.clip(self.skin * (factor * red, factor, factor), 0, 255)

    def coverage(self, shape: Shape, blur: float = 0.0, lift: float | None = 0.0) -> tuple[Box, np.ndarray]:
        """Rasterise a shape with soft edges.

        Returns
        -------
        box : (slice, slice)
            Rows and columns of the shape's bounding box in the image.
        mask : (height, width) float32
            Covered share of each pixel of the box, in [0, 1].
        """
        several = isinstance(shape, list)
        points = self.pose.project(np.concatenate(shape) if several else shape, lift)
        polygons = np.split(points, np.cumsum([len(p) for p in shape[:-1]], dtype=int)) if several else [points]
        margin = 3 * blur * self.pose.scale + 1
        low = np.maximum(points.min(0) - margin, 0).astype(int).tolist()
        high = np.maximum(points.max(0) + margin + 1, 0).astype(int).tolist()
        columns, rows = (slice(min(a, self.size), min(b, self.size)) for a, b in zip(low, high, strict=True))
        box = (rows, columns)
        return box, self._raster(polygons, box, blur)

    def _raster(self, polygons: list[np.ndarray], box: Box, blur: float) -> np.ndarray:
        """Return the share of each pixel in a box covered by polygons (image pixels), by supersampling."""
        top, left = box[0].start, box[1].start
        height, width = box[0].stop - top, box[1].stop - left
        if width * height == 0:
            return np.zeros((height, width), np.float32)
        fine = 2 if blur > 1 or width * height > 20000 else 4
        mask = Image.new("L", (width * fine, height * fine))
        draw = ImageDraw.Draw(mask)
        for points in polygons:
            draw.polygon(((points - (left, top)) * fine - 0.5).ravel().tolist(), fill=255)
        mask = mask.reduce(fine)
        if blur:
            mask = mask.filter(ImageFilter.GaussianBlur(blur * self.pose.scale))
        return np.asarray(mask, np.float32) * np.float32(1 / 255)

    def paint(
        self,
        shape: Shape,
        colour: np.ndarray,
        alpha: float = 1.0,
        *,
        blur: float = 0.0,
        lift: float | None = 0.0,
        clip: np.ndarray | None = None,
    ) -> None:
        """Blend a colour (3,) or a texture (3, size, size) over a shape with opacity `alpha`.

        The edge fades over `blur` pixels; `clip` restricts painting to another
        polygon; `lift` is passed to `Pose.project`.
        """
        box, mask = self.coverage(shape, blur, lift)
        if clip is not None:  # the outline is always projected in its own plane, without `lift`
            mask = mask * self._raster([self.pose.project(clip, None if clip is self.outline else lift)], box, 0)
        colour = np.asarray(colour, np.float32)
        under = self.image[:, *box]
        under += np.float32(alpha) * mask * ((colour[:, *box] if colour.ndim == 3 else colour[:, None, None]) - under)

    def label(self, points: np.ndarray, part: int, lift: float = 0.0) -> None:
        """Assign a polygon to the class `part`; parts below it lose the covered share."""
        box, mask = self.coverage(points, 0.0, lift)
        self.parts[:, *box] *= 1 - mask
        self.parts[part - 1][box] += mask

    def maps(self) -> np.ndarray:
        """Return the class shares (size, size, 9) uint8, background first; they sum to exactly 255."""
        maps = np.empty((self.size, self.size, 9), np.uint8)
        # Round down (with a margin for float error): the sum of the eight must not exceed 255.
        parts = (self.parts * np.float32(255) + np.float32(0.1)).astype(np.uint8)
        maps[..., 0] = 255 - parts.sum(0, dtype=np.uint8)
        maps[..., 1:] = np.moveaxis(parts, 0, -1)
        return maps


# ---------------------------------------------------------------- light and photograph


def light_head(c: Canvas) -> None:
    """Apply Lambertian shading of an ellipsoid to everything drawn on the head."""
    rng = c.rng
    (box, mask), above = c.coverage(c.outline * 1.01, 0.0, None), rng.normal(-0.35, 0.3)
    nx, ny = c.x[box] / 70, (c.y[box] + 18) / 105
    nz = np.sqrt(np.maximum(1 - nx * nx - ny * ny, 0.02))
    lambert = np.maximum(nx * c.light + ny * above + nz, 0) / math.hypot(c.light, above, 1)
    ambient = rng.uniform(0.35, 0.75)
    light = ambient + (1 - ambient) * 1.25 * lambert
    c.image[:, *box] *= (1 + mask * (light - 1)).astype(np.float32)


def develop(c: Canvas) -> np.ndarray:
    """Apply global lighting, tint, exposure, blur and grain; return the image (size, size, 3) uint8."""
    rng = c.rng
    across, down = (0.003 * rng.uniform(-1, 1, 2)).astype(np.float32)
    tint = rng.uniform(0.93, 1.07, 3) if rng.random() < 0.75 else rng.uniform(0.75, 1.2, 3)
    image = c.image * np.maximum(1 + across * c.x + down * c.y, np.float32(0.3))
    image *= tint.astype(np.float32)[:, None, None]
    photograph = Image.merge("RGB", [Image.fromarray(plane) for plane in np.clip(image, 0, 255).astype(np.uint8)])
    level = np.linspace(0, 1, 256) ** math.exp(rng.normal(0, 0.2))
    curve = 255 * ((level - 0.5) * rng.uniform(0.8, 1.2) + 0.5 + rng.normal(0, 0.04))
    photograph = photograph.point(np.clip(curve, 0, 255).astype(int).tolist() * 3)
    if rng.random() < 0.12:
        photograph = photograph.convert("L").convert("RGB")
    if rng.random() < 0.5:
        photograph = photograph.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1) * c.size / 256))
    grain = rng.standard_normal((c.size, c.size, 1), np.float32) * np.float32(rng.uniform(0, 5))
    return np.clip(np.asarray(photograph) + (grain + 0.5), 0, 255).astype(np.uint8)
