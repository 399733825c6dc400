"""Procedural faces in the layout of Smith et al.: a data set that needs no download.

Every face is drawn from one random generator: pose, shapes, colours and light
vary, and shapes of the parts' colours lie about as distractors, so that a
network has to segment by shape and context (`icnn.baselines` shows that
position or colour alone fail).

Head coordinates are pixels of a 256 x 256 image before the pose is applied:
x to the right, y down, origin mid-face, as seen from the front::

        y -110  top of the head          eyes   x = ±30, y = -40
          -60  eyebrows                  nose   y = -38 .. 9
          -40  eyes                      mouth  x = ±25
           22  mouth                     head   x = ±60
           68  chin
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from icnn.dataset import Face, write_face, write_split
from icnn.errors import InputError

#: One independent stream of faces each; "folder" is what the command writes.
STREAMS = ("exemplars", "tuning", "testing", "folder")

#: sRGB, fair to dark: neighbours are mixed.
SKIN = np.array(
    [
        (250, 222, 204),
        (240, 200, 172),
        (226, 178, 140),
        (200, 146, 106),
        (160, 108, 76),
        (116, 76, 54),
        (80, 52, 40),
    ],
    np.float32,
)
HAIR = np.array(
    [
        (22, 18, 18),
        (40, 28, 22),
        (70, 46, 30),
        (112, 74, 44),
        (186, 146, 88),
        (222, 196, 142),
        (140, 62, 30),
        (128, 124, 120),
        (214, 210, 204),
    ],
    np.float32,
)
IRIS = np.array([(58, 34, 20), (84, 54, 30), (74, 98, 62), (74, 112, 148), (104, 116, 124)], np.float32)


Box = tuple[slice, slice]
Shape = np.ndarray | list[np.ndarray]  # one polygon (n, 2) or several, in head coordinates

# ------------------------------------------------------------------- curves and noise


def _smooth(controls: ArrayLike, steps: int = 8) -> np.ndarray:
    """Closed Catmull-Rom curve through (n, 2) control points."""
    p1 = np.asarray(controls, np.float64)
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = (np.arange(steps) / steps)[:, None, None]
    curve = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * (p1 - p2) + p3 - p0) * t**3
    return 0.5 * curve.transpose(1, 0, 2).reshape(-1, 2)


def _ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> np.ndarray:
    t = np.arange(24) * (np.pi / 12)
    dx, dy = rx * np.cos(t), ry * np.sin(t)
    return np.stack(
        [x + dx * math.cos(angle) - dy * math.sin(angle), y + dx * math.sin(angle) + dy * math.cos(angle)], 1
    )


def _ribbon(line: ArrayLike, width: ArrayLike) -> np.ndarray:
    """Outline of a stroke along (n, 2) points, of a full width per point; a closed line gives a ring."""
    line = np.asarray(line, np.float64)
    along = np.concatenate([line[1:], line[-1:]]) - np.concatenate([line[:1], line[:-1]])
    across = along[:, ::-1] * (-1, 1)
    across *= (np.asarray(width) / 2 / (np.hypot(along[:, 0], along[:, 1]) + 1e-9))[:, None]
    return np.concatenate([line + across, (line - across)[::-1]])


def _noise(rng: np.random.Generator, size: int, cells: tuple[int, ...], shape: float = 1.0) -> np.ndarray:
    """Smooth noise of several scales, (size, size), standard deviation about 1; shape > 1 stretches it in y."""
    total = np.zeros((1, 1), np.float32)
    for k, cell in enumerate(cells):
        rows = max(2, round(cell / shape))
        grid = rng.standard_normal((rows, cell), np.float32) / (k + 1)
        total = grid + np.asarray(Image.fromarray(total).resize((cell, rows), Image.Resampling.BICUBIC))
    total /= total.std() + 1e-6
    return np.asarray(Image.fromarray(total).resize((size, size), Image.Resampling.BICUBIC))


def _polygons(shape: Shape) -> list[np.ndarray]:
    return shape if isinstance(shape, list) else [shape]


def _mix(a: ArrayLike, b: ArrayLike, share: float) -> np.ndarray:
    return np.asarray(a, np.float32) * (1 - share) + np.asarray(b, np.float32) * share


def _pick(rng: np.random.Generator, colours: np.ndarray, spread: float) -> np.ndarray:
    """A mixture of two neighbouring colours, jittered."""
    at = rng.uniform(0, len(colours) - 1)
    low = int(at)
    colour = _mix(colours[low], colours[min(low + 1, len(colours) - 1)], at - low)
    return np.clip(colour + rng.normal(0, spread, 3), 4, 252).astype(np.float32)


# ------------------------------------------------------------------- pose and canvas


class _Pose:
    """Where head coordinates fall in the image: yaw and pitch of an ellipsoid, then a similarity."""

    def __init__(self, rng: np.random.Generator, size: int):
        self.unit = size / 256
        self.yaw = float(np.clip(rng.normal(0, 0.16), -0.4, 0.4))
        self.pitch = float(np.clip(rng.normal(0, 0.07), -0.16, 0.16))
        self.roll = math.radians(rng.uniform(-18, 18))
        self.scale = rng.uniform(0.85, 1.15)
        self.shift = np.array([128, 128]) + rng.uniform((-24, -18), (24, 18))
        if rng.random() < 0.02:  # cut by the border
            self.shift += rng.choice([-1, 1], 2) * rng.permutation([0, 70])
        c, s = self.scale * math.cos(self.roll), self.scale * math.sin(self.roll)
        self.matrix = np.array([[c, -s], [s, c]])

    def project(self, points: np.ndarray, lift: float | None) -> np.ndarray:
        """(n, 2) head coordinates -> image pixels; lift above the ellipsoid, None: in the plane of the outline."""
        x, y = points.T
        if lift is not None:
            z = lift + 58 * np.sqrt(np.clip(1 - (x / 74) ** 2 - (y / 112) ** 2, 0, 1))
            x = x * math.cos(self.yaw) + z * math.sin(self.yaw)
            y = y * math.cos(self.pitch) + z * math.sin(self.pitch)
        return (np.stack([x, y], 1) @ self.matrix.T + self.shift) * self.unit

    def plane(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Head coordinates x, y of every pixel's centre, in the plane of the outline, (size, size) float32."""
        rows, columns = np.mgrid[:size, :size].astype(np.float32) + 0.5
        columns = columns / self.unit - np.float32(self.shift[0])
        rows = rows / self.unit - np.float32(self.shift[1])
        (a, b), (c, d) = np.linalg.inv(self.matrix).astype(np.float32)
        return a * columns + b * rows, c * columns + d * rows


class _Canvas:
    """The photograph and its part maps while they are drawn, and what all parts of one face share."""

    def __init__(self, rng: np.random.Generator, size: int):
        self.rng, self.size = rng, size
        self.pose = _Pose(rng, size)
        self.image = np.zeros((size, size, 3), np.float32)  # 0 .. 255
        self.parts = np.zeros((8, size, size), np.float32)  # shares of ids 1..8, sum at most 1
        self.x, self.y = self.pose.plane(size)
        self.skin = _pick(rng, SKIN, 5)
        dark = rng.random() < 0.35 + 0.5 * (self.skin.mean() < 130)
        self.hair = _pick(rng, HAIR[:3] if dark else HAIR, 6)
        self.lip = self._lip_colour()
        self.wide = rng.uniform(0.88, 1.1)  # of the head
        self.long = rng.uniform(0.94, 1.08)  # of the lower face
        self.gape = max(0.0, rng.normal(-1, 6))  # opening of the mouth, pixels
        self.light = rng.normal(0, 0.55)  # > 0: from the right
        self.outline = self._outline()

    def _lip_colour(self) -> np.ndarray:
        rng = self.rng
        if rng.random() < 0.2:  # lipstick
            return rng.uniform((110, 10, 20), (235, 90, 120)).astype(np.float32)
        red = self.skin * np.array([0.92, 0.66, 0.66], np.float32)
        return _mix(self.skin * 0.9, red, rng.uniform(0.35, 1.2))

    def shade(self, factor: float, red: float = 1.0) -> np.ndarray:
        """Skin colour times a factor; shadows on skin are redder."""
        return np.clip(self.skin * np.array([factor * red, factor, factor], np.float32), 0, 255)

    def _outline(self) -> np.ndarray:
        """Head without ears: ellipse above, jaw below."""
        w, k = 60 * self.wide, self.long
        chin = 66 * k + self.gape * 0.6
        half = [
            (0, chin),
            (w * 0.33, chin - 4),
            (w * 0.66, chin - 22),
            (w * 0.9, 18),
            (w, -28),
            (w * 0.93, -70),
            (w * 0.6, -101),
        ]
        return _smooth([*half, (0, -110), *((-x, y) for x, y in half[:0:-1])])

    def coverage(self, shape: Shape, blur: float = 0.0, lift: float | None = 0.0) -> tuple[Box, np.ndarray]:
        """Soft mask of a shape: the rows and columns that it may touch and the shares in [0, 1] there."""
        polygons = [self.pose.project(points, lift) for points in _polygons(shape)]
        margin = 3 * blur * self.pose.unit * self.pose.scale + 1
        points = np.concatenate(polygons) if len(polygons) > 1 else polygons[0]
        low = np.clip(np.floor(points.min(0) - margin), 0, self.size).astype(int)
        high = np.clip(np.ceil(points.max(0) + margin), low, self.size).astype(int)
        box = (slice(low[1], high[1]), slice(low[0], high[0]))
        return box, self._raster(polygons, box, blur)

    def _raster(self, polygons: list[np.ndarray], box: Box, blur: float) -> np.ndarray:
        """Share of every pixel of a box that polygons in image pixels cover: supersampled, then averaged."""
        rows, columns = box
        width, height = columns.stop - columns.start, rows.stop - rows.start
        if width * height == 0:
            return np.zeros((height, width), np.float32)
        fine = 2 if blur > 1 or width * height > 20000 else 4
        mask = Image.new("L", (width * fine, height * fine))
        draw = ImageDraw.Draw(mask)
        for points in polygons:
            draw.polygon(((points - (columns.start, rows.start)) * fine - 0.5).ravel().tolist(), fill=255)
        mask = mask.reduce(fine)
        if blur:
            mask = mask.filter(ImageFilter.GaussianBlur(blur * self.pose.unit * self.pose.scale))
        return np.asarray(mask, np.float32) / 255

    def paint(
        self,
        shape: Shape,
        colour: np.ndarray,
        alpha: float = 1.0,
        blur: float = 0.0,
        lift: float | None = 0.0,
        clip: np.ndarray | None = None,
    ) -> None:
        """Lay a colour, or a (size, size, 3) texture, over a shape.

        `clip` keeps it inside another polygon; a blurred mask fades over `blur`
        pixels; `lift` is that of `_Pose.project`.
        """
        box, mask = self.coverage(shape, blur, lift)
        if clip is not None:
            # Only the head's outline is clipped against from other depths, and it lies in its plane.
            mask = mask * self._raster(
                [self.pose.project(clip, None if clip is self.outline else lift)], box, 0
            )
        colour = np.asarray(colour, np.float32)
        under = self.image[box]
        under += (alpha * mask)[..., None] * ((colour[box] if colour.ndim == 3 else colour) - under)

    def label(self, points: np.ndarray, part: int, lift: float = 0.0) -> None:
        """Give a polygon to a part; what lies below it loses the covered share."""
        box, mask = self.coverage(points, 0.0, lift)
        self.parts[:, *box] *= 1 - mask
        self.parts[part - 1][box] += mask

    def maps(self) -> np.ndarray:
        """(size, size, 9) uint8 : the shares, background first, with a sum of exactly 255."""
        maps = np.empty((self.size, self.size, 9), np.uint8)
        # Rounded down, all but float error: eight shares of 1 in all must not exceed 255.
        maps[..., 1:] = np.moveaxis(self.parts * 255 + 0.1, 0, -1)
        maps[..., 0] = 255 - maps[..., 1:].sum(2, dtype=np.int32)
        return maps


# ------------------------------------------------------------------- surroundings


def _background(c: _Canvas) -> None:
    rng, size = c.rng, c.size
    first, second = (_mix(np.full(3, rng.uniform(10, 245)), rng.uniform(10, 245, 3), 0.6) for _ in range(2))
    if rng.random() < 0.3:  # walls and woods of skin or hair colour
        first = c.skin * rng.uniform(0.7, 1.1)
    field = _noise(rng, size, (3, 6, 12, 24, 48)[: rng.integers(2, 6)])
    if rng.random() < 0.4:
        angle, period = rng.uniform(0, np.pi), rng.uniform(10, 70)
        phase = (c.x * math.cos(angle) + c.y * math.sin(angle)) / period * 2 * np.pi
        field = 0.4 * field + np.tanh(rng.uniform(0.5, 6) * np.sin(phase))
    share = np.clip(0.5 + rng.uniform(0.1, 0.45) * field, 0, 1)[..., None]
    c.image[:] = first + share * (second - first)
    for _ in range(rng.integers(0, 6)):
        x, y = rng.uniform(-150, 150, 2)
        spot = _ellipse(x, y, *rng.uniform(5, 50, 2), rng.uniform(0, np.pi))
        c.paint(spot, _mix(first, rng.uniform(0, 255, 3), 0.6), rng.uniform(0.3, 1), rng.uniform(1, 9), None)


def _distractor(c: _Canvas, x: float, y: float, blur: float, alpha: float, lift: float | None) -> None:
    """A shape with the colour of a part, where no part is."""
    rng = c.rng
    angle = c.rng.normal(0, 0.5)
    kind = rng.choice(4, p=[0.3, 0.3, 0.12, 0.28])
    if kind == 0:  # lips
        points = _ellipse(x, y, rng.uniform(6, 24), rng.uniform(3, 9), angle)
        c.paint(points, c.lip, alpha, blur, lift)
    elif kind == 1:  # eyebrow
        t = np.linspace(-1, 1, 9)
        line = np.stack([x + 18 * t, y + 4 * t * t + 18 * math.sin(angle) * t], 1)
        c.paint(_ribbon(line, rng.uniform(3, 8) * (1.1 - t * t)), c.hair * 0.8, alpha, blur, lift)
    elif kind == 2:  # eye
        c.paint(_ellipse(x, y, 10, rng.uniform(2, 6), angle), np.full(3, 205.0), alpha * 0.8, blur, lift)
        c.paint(_ellipse(x, y, 4, 4), c.hair * 0.8, alpha, blur, lift)
    else:  # skin
        points = _ellipse(x, y, *rng.uniform(8, 26, 2), angle)
        c.paint(points, c.shade(rng.uniform(0.75, 1.15)), alpha, blur, lift)


def _scatter(c: _Canvas) -> None:
    """Distractors around the head."""
    for _ in range(c.rng.integers(0, 7)):
        x, y = c.rng.uniform(-150, 150, 2)
        _distractor(c, x, y, c.rng.uniform(0.5, 2.5), c.rng.uniform(0.5, 1), None)


def _blemishes(c: _Canvas) -> None:
    """Paint, plasters and moles on forehead, cheeks and chin: distractors on the skin."""
    rng = c.rng
    places = np.array([(-22, -84), (22, -86), (0, -92), (-40, 2), (40, 2), (-33, 38), (33, 38), (0, 54)])
    for place in rng.permutation(places)[: rng.choice([0, 1, 2, 3], p=[0.4, 0.3, 0.2, 0.1])]:
        x, y = place + rng.normal(0, 3, 2)
        if rng.random() < 0.4:
            c.paint(_ellipse(x, y, 1.6, 1.6), c.shade(0.4), 0.8, 0.5)
        else:
            _distractor(c, x, y, rng.uniform(0.3, 2), rng.uniform(0.35, 0.9), 0.0)


def _body(c: _Canvas) -> None:
    rng = c.rng
    cloth = rng.uniform(10, 240, 3)
    top = rng.uniform(88, 104)
    half = [(22, top), (60, top + 12), (108, top + 26), (132, top + 60), (140, 220)]
    shoulders = np.array([*half, *((-x, y) for x, y in half[::-1])])
    c.paint(shoulders, cloth, 1, 0.7, None)
    n = 34 * c.wide * rng.uniform(0.9, 1.15)
    neck = np.array(
        [
            (-n, 20),
            (n, 20),
            (n, top),
            (n * 1.2, top + 10),
            (0, top + rng.uniform(12, 50)),
            (-n * 1.2, top + 10),
            (-n, top),
        ]
    )
    c.paint(neck, c.shade(0.78), 1, 0.7, None)
    c.paint(_ellipse(0, 62, 46, 24), c.shade(0.5), 0.6, 6, None, clip=neck)  # the chin's shadow
    w = 60 * c.wide
    for side in (-1, 1):
        ear = _ellipse(side * (w + 3 - side * 10 * math.sin(c.pose.yaw)), -22, 9, 19, side * 0.15)
        c.paint(ear, c.shade(0.86, 1.05), 1, 0, None)
        c.paint((ear - ear.mean(0)) * 0.55 + ear.mean(0), c.shade(0.6), 0.6, 1.5, None)


def _hair_texture(c: _Canvas) -> np.ndarray:
    """Strands that radiate from a parting, (size, size, 3)."""
    rng = c.rng
    x0, y0 = rng.normal(0, 16), rng.uniform(-140, -105)
    angle = np.arctan2(c.y - y0, c.x - x0)
    strands = np.repeat(rng.standard_normal(181, np.float32), 4) + rng.standard_normal(724, np.float32)
    strands = np.convolve(strands, np.hanning(7) / 3, "same")
    lookup = strands[((angle + np.pi) * (720 / (2 * np.pi))).astype(np.intp)]
    tone = 1 + rng.uniform(0.06, 0.16) * lookup + 0.12 * _noise(rng, c.size, (6, 14))
    ring = (np.hypot(c.x - x0, c.y - y0) - rng.uniform(35, 60)) / rng.uniform(8, 20)
    tone += rng.uniform(0, 0.5) * np.exp(-ring * ring)  # the gloss
    return c.hair * np.clip(tone, 0.3, 1.9).astype(np.float32)[..., None]


def _back_hair(c: _Canvas, texture: np.ndarray, style: str) -> None:
    if style == "bald":
        return
    w = 60 * c.wide + c.rng.uniform(4, 16)
    bottom = c.rng.uniform(50, 150) if style == "long" else -10
    spread = c.rng.uniform(0.95, 1.25)
    half = [(w * 0.8 * spread, bottom), (w * spread, (bottom - 30) / 2), (w * 1.04, -50), (w * 0.85, -98)]
    top = -116 - c.rng.uniform(0, 12)
    c.paint(
        _smooth([(0, bottom), *half, (0, top), *((-x, y) for x, y in half[::-1])]),
        texture * 0.75,
        1,
        0.6,
        None,
    )


def _front_hair(c: _Canvas, texture: np.ndarray, style: str) -> None:
    """Hair from the hairline upwards; a fringe hangs down to the eyebrows, long hair beside the cheeks."""
    rng = c.rng
    if style == "bald":
        return
    w = 60 * c.wide
    line = rng.uniform(-92, -78) if style != "fringe" else rng.uniform(-72, -58)
    part = rng.uniform(-0.6, 0.6)
    t = np.linspace(-1, 1, 41)
    hairline = line + 34 * np.abs(t) ** rng.uniform(2.5, 6) + rng.normal(0, 1.2, 41)
    if style == "fringe":  # strands of unequal length
        hairline = hairline + rng.uniform(1, 5) * np.abs(np.sin(t * rng.uniform(8, 24)))
    else:
        hairline -= 8 * np.exp(-((t - part) ** 2) * 20)
    front = np.stack([t * w * 1.02, hairline], 1)
    out = w + rng.uniform(2, 8)
    crown = [
        (out, -50),
        (out * 0.9, -88),
        (out * 0.55, -112),
        (0, -119),
        (-out * 0.55, -112),
        (-out * 0.9, -88),
    ]
    shape = np.concatenate([front, _smooth([*crown, (-out, -50)])[:-8]])
    c.paint(shape, c.shade(0.35), 0.35, 3, None, clip=c.outline)
    c.paint(shape, texture, 1, 0.5, None)
    if style == "long":
        for side in (-1, 1):
            low, width = rng.uniform(30, 120), rng.uniform(8, 22)
            strand = [
                (0.5 * w, -96),
                (w * 1.02, -60),
                (w * 1.05, low),
                (w * 1.02 - width, low),
                (w - width, -30),
            ]
            c.paint(_smooth([(side * x, y) for x, y in strand]), texture, 1, 0.6, None)


def _hat(c: _Canvas) -> None:
    rng = c.rng
    w, y = 60 * c.wide + 6, rng.uniform(-92, -78)
    colour = rng.uniform(15, 240, 3)
    t = np.linspace(-1, 1, 15)
    brim = np.stack([t * w, y + 14 * t * t], 1)
    crown = [(w * 0.98, -96), (w * 0.7, -124), (0, -134), (-w * 0.7, -124), (-w * 0.98, -96)]
    c.paint(np.concatenate([brim, crown]), colour, 1, 0.5, None)
    c.paint(_ribbon(brim - (0, 3), 8), colour * 0.6, 0.8, 1, None)


# ------------------------------------------------------------------- the face


def _head(c: _Canvas) -> None:
    rng = c.rng
    outline = c.outline
    grain = 1 + 0.025 * _noise(rng, c.size, (8, 20, 60))
    c.paint(outline, c.skin * grain[..., None], 1, 0, None)
    red = c.skin * np.array([1.02, 0.8, 0.78], np.float32)
    for side in (-1, 1):
        c.paint(_ellipse(side * 36, 6, 17, 13), red, rng.uniform(0, 0.5), 7)
        c.paint(_ellipse(side * 30, -44, 18, 12), c.shade(0.62, 1.08), rng.uniform(0.2, 0.65), 5)
        fold = np.array([(side * 19, 2), (side * 27, 12), (side * (30 + c.gape * 0.2), 26)])
        c.paint(_ribbon(fold, 2), c.shade(0.6, 1.08), rng.uniform(0, 0.6), 1.2)
    c.paint(_ellipse(0, 46, 15, 4), c.shade(0.62), rng.uniform(0.1, 0.5), 3)
    c.paint(_ellipse(0, -84, 26, 10), c.shade(1.2), rng.uniform(0, 0.5), 8)
    if rng.random() < 0.2:  # wrinkles
        for y in (-92, -84, -76):
            t = np.linspace(-1, 1, 9)
            c.paint(_ribbon(np.stack([26 * t, y + 2 * np.cos(3 * t)], 1), 1.4), c.shade(0.6), 0.5, 0.6)


def _beard(c: _Canvas) -> None:
    """Stubble to full beard on the jaw; the mouth is painted over it, the moustache over the lip."""
    rng = c.rng
    w = 60 * c.wide
    grain = np.clip(1 + 0.3 * _noise(rng, c.size, (40, 110)), 0.3, 1.8)[..., None]
    side = [(w * 1.3, -20), (w * 0.95, -14), (w * 0.8, 12), (30, 21)]
    jaw = _smooth([*side, (0, 12), *((-x, y) for x, y in side[::-1]), (-w * 1.3, 110), (w * 1.3, 110)])
    c.paint(jaw, c.hair * grain, rng.uniform(0.25, 0.9), rng.uniform(2, 4), 0.0, clip=c.outline)


def _eye(
    c: _Canvas, side: int, look: tuple[float, float], wide: float, high: float, tilt: float, iris: np.ndarray
) -> None:
    rng = c.rng
    x, y = side * 30 * (0.5 + 0.5 * c.wide), -40
    t = np.linspace(-1, 1, 13)
    slope = y - side * tilt * t * wide
    arch = np.sqrt(np.clip(1 - t * t, 0, 1)) * 0.5 + (1 - t * t) * 0.5
    upper = np.stack([x + wide * t, slope - high * 0.62 * arch], 1)
    lower = np.stack([x + wide * t, slope + high * 0.38 * arch], 1)
    eye = np.concatenate([upper, lower[::-1]])
    c.label(eye, 2 if side < 0 else 4)

    lid = upper - (0, 1)
    c.paint(_ribbon(lid - (0, 2.2), 1.5), c.shade(0.5, 1.1), 0.6, 0.7)
    c.paint(np.concatenate([lid - (0, 2.6), lower[::-1] + (0, 1.5)]), c.shade(0.8, 1.05), 0.6, 1)
    c.paint(eye, np.array([226, 220, 214]) * rng.uniform(0.78, 1))
    r = wide * 0.47
    ix, iy = x + look[0] * wide * 0.45, y - high * 0.1 + look[1] * high * 0.25
    c.paint(_ellipse(ix, iy, r, r), iris * 0.55, clip=eye)
    c.paint(_ellipse(ix, iy, r * 0.82, r * 0.82), iris, blur=0.4, clip=eye)
    c.paint(_ellipse(ix, iy, r * 0.42, r * 0.42), np.full(3, 12.0), clip=eye)
    c.paint(_ribbon(upper + (0, 0.8), 2.6), np.full(3, 30.0), 0.45, 0.9, clip=eye)  # the lid's shadow
    c.paint(_ellipse(ix + 1.6 * np.sign(c.light), iy - r * 0.35, 1.1, 1.1), np.full(3, 250.0), 0.9, clip=eye)
    c.paint(
        _ribbon(upper, 1.0 + 1.0 * np.abs(np.sin(t + 1))), _mix(c.hair * 0.4, c.shade(0.25), 0.5), 0.9, 0.3
    )
    c.paint(_ribbon(lower, 0.9), c.shade(0.5, 1.15), 0.6, 0.3)


def _eyes(c: _Canvas) -> None:
    rng = c.rng
    wide, high = rng.uniform(10, 13), np.clip(rng.normal(9.5, 2.8), 2.2, 16)
    look, tilt, iris = rng.uniform(-0.7, 0.7, 2), rng.normal(0.04, 0.06), _pick(rng, IRIS, 6)
    if c.skin.mean() < 130 and rng.random() < 0.9:
        iris = IRIS[0]
    for side in (-1, 1):
        _eye(c, side, (look[0], look[1]), wide, high * rng.uniform(0.9, 1.1), tilt, iris)


def _eyebrows(c: _Canvas) -> None:
    rng = c.rng
    thick, tilt, arch = rng.uniform(4.5, 10), rng.normal(0.05, 0.12), rng.uniform(0, 7)
    colour = _mix(c.hair * rng.uniform(0.5, 1), c.skin, rng.uniform(0, 0.35))
    height, inner, outer = rng.uniform(-64, -55), rng.uniform(9, 15), rng.uniform(48, 55)
    t = np.linspace(0, 1, 17)
    for side in (-1, 1):
        y = (
            height
            + rng.normal(0, 1)
            - tilt * 40 * t
            - arch * np.sin(np.pi * np.clip(t, 0, 1) ** 1.3)
            + 5 * t**3
        )
        line = np.stack([side * (inner + (outer - inner) * t), y], 1)
        brow = _ribbon(line, thick * np.sqrt(np.clip(1.15 * (1 - t**2.5) * (0.35 + 3 * t), 0.01, 1)))
        c.label(brow, 1 if side < 0 else 3)
        c.paint(brow, colour, rng.uniform(0.55, 0.8), 0.9)
        root = line[rng.integers(0, 16, 16)] + rng.uniform((-1, -0.25 * thick), (1, 0.35 * thick), (16, 2))
        tip = root + rng.uniform((3, -3), (6, 0.5), (16, 2)) * (side, 1)
        hairs = np.stack([root - (0, 0.7), tip, root + (0, 0.7)], 1)
        c.paint(list(hairs), colour * 0.7, 0.6)


def _nose(c: _Canvas) -> None:
    """Label: nasion to below the nostrils; seen by its shaded flank, wings, nostrils and shadow."""
    rng = c.rng
    top, bottom = rng.uniform(-43, -37), rng.uniform(6, 12)
    bridge, wing = rng.uniform(5.5, 8), rng.uniform(15.5, 21)
    flare = rng.uniform(8, 12)
    half = [
        (bridge, top),
        (bridge * 0.95, top + 12),
        (bridge + 3, bottom - 24),
        (wing * 0.82, bottom - flare),
        (wing, bottom - 6),
        (wing * 0.8, bottom - 1),
        (wing * 0.35, bottom + 1.5),
    ]
    nose = np.array([*half, (0, bottom + 2.5), *((-x, y) for x, y in half[::-1])])
    nose = np.concatenate([_smooth(nose[:-1], 5)])
    lift = 4.0
    c.label(nose, 5, lift)

    far = -1 if c.light > 0 else 1
    shadow, glow = c.shade(0.62, 1.1), c.shade(1.22)
    c.paint(nose, c.shade(1.05), 0.5, 2, lift)
    for side, alpha in ((far, rng.uniform(0.45, 0.8)), (-far, rng.uniform(0.15, 0.4))):
        flank = np.array(
            [
                (side * bridge * 0.6, top),
                (side * bridge, top + 2),
                (side * (bridge + 3), bottom - 24),
                (side * wing, bottom - 6),
                (side * wing * 0.7, bottom - 2),
                (side * bridge * 0.7, bottom - 16),
            ]
        )
        c.paint(flank, shadow, alpha, 1.8, lift)
        wing_line = np.array(
            [
                (wing * 0.8, bottom - flare - 1),
                (wing * 0.98, bottom - 7),
                (wing * 0.98, bottom - 4),
                (wing * 0.78, bottom - 1),
            ]
        ) * (side, 1)
        c.paint(_ribbon(wing_line, 1.6), c.shade(0.45, 1.1), rng.uniform(0.4, 0.8), 0.7, lift)
        nostril = _ellipse(side * wing * 0.43, bottom - 2.5, wing * 0.23, rng.uniform(1.4, 2.6), -side * 0.3)
        c.paint(nostril, c.shade(0.2, 1.1), 0.9, 0.7, lift)
    c.paint(
        _ribbon([(-wing * 0.75, bottom), (0, bottom + 2.5), (wing * 0.75, bottom)], 2.6),
        c.shade(0.5, 1.1),
        0.55,
        1.2,
        lift,
    )
    c.paint(
        _ribbon([(0, top + 8), (-far * 0.5, bottom - 22), (-far, bottom - 12)], [2, 3.5, 4]),
        glow,
        rng.uniform(0.2, 0.7),
        1.5,
        lift,
    )
    c.paint(_ellipse(-far * 2, bottom - 10, 3.5, 3), glow, rng.uniform(0.3, 0.8), 1.3, lift)


def _mouth(c: _Canvas) -> None:
    """Three strips between four curves over t in [-1, 1], from corner to corner."""
    rng, gape = c.rng, c.gape
    wide = rng.uniform(20, 29) + 0.15 * gape
    smile, y0 = rng.normal(3, 4), rng.uniform(20, 25) * c.long
    up, low = rng.uniform(3.5, 8.5), rng.uniform(5.5, 11)
    t = np.linspace(-1, 1, 25)
    bend, arch = -smile * t * t, 1 - t * t
    sliver = 0.5 + gape / 2
    x = wide * t
    inside = np.sqrt(np.clip(1 - (t / 0.93) ** 2, 0, 1))
    bow = np.clip(1 - np.abs(t) ** 1.6, 0, 1) - 0.24 * np.exp(-((t / 0.16) ** 2))
    top_in = y0 + bend - sliver * 0.6 * inside
    low_in = y0 + bend + sliver * 1.4 * inside
    upper = np.concatenate([np.stack([x, top_in - up * bow], 1), np.stack([x, top_in], 1)[::-1]])
    lower = np.concatenate([np.stack([x, low_in], 1), np.stack([x, low_in + low * arch**0.75], 1)[::-1]])
    inner = np.concatenate([np.stack([x, top_in], 1), np.stack([x, low_in], 1)[::-1]])
    for shape, part in ((upper, 6), (lower, 8), (inner, 7)):
        c.label(shape, part)

    c.paint(upper, c.lip * 0.84, 0.95, 0.45)
    c.paint(lower, c.lip, 0.95, 0.45)
    c.paint(
        _ellipse(-3 * np.sign(c.light), y0 + sliver * 1.4 + low * 0.45, wide * 0.4, low * 0.16),
        _mix(c.lip, np.full(3, 255.0), 0.4),
        rng.uniform(0.1, 0.8),
        1.2,
    )
    dark = np.array([58, 22, 22]) * rng.uniform(0.4, 1.2)
    c.paint(inner, dark, 1, 0.25)
    if gape > 2.5:
        if rng.random() < 0.35:
            c.paint(
                _ellipse(0, y0 + sliver * 1.5, wide * 0.5, sliver * 0.8),
                np.array([176, 84, 84.0]),
                0.9,
                0.8,
                clip=inner,
            )
        if rng.random() < 0.7:
            depth = sliver * rng.uniform(0.6, 2)
            teeth = np.concatenate(
                [np.stack([x, top_in - 1], 1), np.stack([x * 0.9, top_in + depth * inside], 1)[::-1]]
            )
            c.paint(teeth, np.array([236, 230, 216]) * rng.uniform(0.8, 1), 1, 0.4, clip=inner)
            gaps = [_ellipse(k * 4.6, y0, 0.35, depth + 8) for k in range(-3, 4)]
            c.paint(gaps, dark, 0.25, clip=teeth)
    for side in (-1, 1):
        c.paint(_ellipse(side * wide, y0 - smile, 2.4, 1.8), c.shade(0.4, 1.1), 0.5, 0.9)


def _moustache(c: _Canvas) -> None:
    rng = c.rng
    t = np.linspace(-1, 1, 17)
    line = np.stack([rng.uniform(20, 30) * t, 15 * c.long + rng.uniform(2, 9) * t * t], 1)
    grain = np.clip(1 + 0.3 * _noise(rng, c.size, (50, 120)), 0.3, 1.8)[..., None]
    c.paint(_ribbon(line, rng.uniform(4, 8) * (1.05 - t**4)), c.hair * grain, rng.uniform(0.5, 0.95), 0.9)


def _glasses(c: _Canvas) -> None:
    rng = c.rng
    colour, width = rng.uniform(10, 110, 3) * rng.uniform(0.2, 1), rng.uniform(1.2, 3.2)
    rx, ry, power = rng.uniform(18, 22), rng.uniform(12, 17), rng.uniform(0.55, 1)
    t = np.linspace(0, 2 * np.pi, 41)
    tint = rng.uniform(0.35, 0.65) if rng.random() < 0.15 else 0.0
    for side in (-1, 1):
        cos, sin = np.cos(t), np.sin(t)
        ring = np.stack(
            [
                side * 30 + rx * np.sign(cos) * np.abs(cos) ** power,
                -38 + ry * np.sign(sin) * np.abs(sin) ** power,
            ],
            1,
        )
        c.paint(ring, np.full(3, 255.0) if not tint else colour, tint or 0.07, 0, 4)
        c.paint(_ribbon(ring, width), colour, 0.95, 0, 4)
        c.paint(_ribbon([(side * (30 + rx), -42), (side * 62 * c.wide, -38)], width), colour, 0.9, 0, 0)
    c.paint(_ribbon([(-30 + rx, -41), (0, -44), (30 - rx, -41)], width), colour, 0.95, 0, 4)


# ------------------------------------------------------------------- light and photograph


def _light_head(c: _Canvas) -> None:
    """Lambertian light on an ellipsoid, over everything drawn on the head."""
    rng = c.rng
    nx, ny = c.x / 70, (c.y + 18) / 105
    nz = np.sqrt(np.clip(1 - nx * nx - ny * ny, 0.02, 1))
    lx, ly = c.light, rng.normal(-0.35, 0.3)
    length = math.sqrt(lx * lx + ly * ly + 1)
    lambert = np.clip((nx * lx + ny * ly + nz) / length, 0, 1)
    ambient = rng.uniform(0.3, 0.75)
    box, mask = c.coverage(c.outline * 1.01, 0.0, None)
    c.image[box] *= (1 + mask * ((ambient + (1 - ambient) * 1.25 * lambert)[box] - 1))[..., None]


def _photograph(c: _Canvas) -> np.ndarray:
    """Light over the whole picture, exposure, blur and grain; -> (size, size, 3) uint8."""
    rng, size = c.rng, c.size
    image = c.image / 255
    ramp = (c.x * math.cos(a := rng.uniform(0, 2 * np.pi)) + c.y * math.sin(a)) / 128
    image *= np.clip(1 + rng.uniform(0, 0.3) * ramp, 0.3, 1.7)[..., None]
    tint = rng.uniform(0.93, 1.07, 3) if rng.random() < 0.75 else rng.uniform(0.75, 1.2, 3)
    image = np.clip(image * tint.astype(np.float32), 0, 1) ** np.float32(math.exp(rng.normal(0, 0.25)))
    image = (image - 0.5) * np.float32(rng.uniform(0.7, 1.2)) + np.float32(0.5 + rng.normal(0, 0.05))
    if rng.random() < 0.15:
        image = np.broadcast_to((image @ np.array([0.3, 0.59, 0.11], np.float32))[..., None], image.shape)
    image = image + rng.standard_normal((size, size, 1), np.float32) * np.float32(rng.uniform(0, 0.03))
    out = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        out = np.asarray(
            Image.fromarray(out).filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.1) * size / 256))
        )
    return np.ascontiguousarray(out)


def draw_face(rng: np.random.Generator, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Draw one face.

    Parameters
    ----------
    rng
        All randomness; the same state gives the same bytes.
    size
        Side of the square image, pixels; the face is about 140/256 of it tall.

    Returns
    -------
    image : (size, size, 3) uint8
    maps : (size, size, 9) uint8
        Share of every class id at each pixel; they sum to 255. Parts behind
        hair, glasses or a beard are labelled as if visible.
    """
    c = _Canvas(rng, size)
    style = str(rng.choice(["short", "fringe", "long", "bald"], p=[0.42, 0.2, 0.28, 0.1]))
    bearded = style != "long" and rng.random() < 0.3
    texture = _hair_texture(c)
    _background(c)
    _scatter(c)
    _back_hair(c, texture, style)
    _body(c)
    _head(c)
    _blemishes(c)
    if bearded:
        _beard(c)
    _eyes(c)
    _nose(c)
    _mouth(c)
    if bearded and rng.random() < 0.7:
        _moustache(c)
    _eyebrows(c)
    _light_head(c)
    _front_hair(c, texture, style)
    if rng.random() < 0.1:
        _hat(c)
    if rng.random() < 0.15:
        _glasses(c)
    return _photograph(c), c.maps()


def face_generator(seed: int, stream: str, index: int) -> np.random.Generator:
    """The generator of face `index`: independent of all other faces and of how many are drawn."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(STREAMS.index(stream), index)))


def synthetic_faces(count: int, seed: int, split: str) -> list[Face]:
    """Draw the first `count` faces of a split.

    Parameters
    ----------
    count
        Faces; face i does not depend on it.
    seed
        Non-negative.
    split : {"exemplars", "tuning", "testing"}
        Splits share no face.
    """
    faces = []
    for index in range(count):
        image, maps = draw_face(face_generator(seed, split, index))
        faces.append(Face(f"synthetic_{index:05d}", np.concatenate([image, maps], 2)))
    return faces


# ------------------------------------------------------------------- command


def main(argv: list[str] | None = None) -> int:
    """Write a folder of faces in the layout of Smith et al.: 80 % exemplars, 10 % tuning, 10 % testing."""
    parser = argparse.ArgumentParser(prog="python -m icnn.synthetic", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--count", type=int, required=True, metavar="N", help="faces, at least 10")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="not negative (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    if options.count < 10:
        raise InputError(
            f"--count: expected at least 10, one face in ten is for testing; got {options.count}"
        )
    if options.seed < 0:
        raise InputError(f"--seed: expected an integer >= 0; got {options.seed}")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise InputError(
            f"--out: expected a new or empty folder; {options.out} exists and is not; choose another"
        )
    names = [f"synthetic_{index:05d}" for index in range(options.count)]
    for index, name in enumerate(tqdm(names, unit="face", file=sys.stderr, disable=None)):
        write_face(options.out, name, *draw_face(face_generator(options.seed, "folder", index)))
    tenth = options.count // 10
    write_split(options.out, "exemplars", names[: -2 * tenth])
    write_split(options.out, "tuning", names[-2 * tenth : -tenth])
    write_split(options.out, "testing", names[-tenth:])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
