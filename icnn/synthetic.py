"""Procedural faces in the layout of Smith et al.: a data set that needs no download.

Every face is drawn from one random generator: pose, shapes, colours and light
vary, and shapes in the colours of the parts lie about as distractors, so that a
network has to segment by shape and context (`icnn.baselines` shows that
position or colour alone fail).

Head coordinates are pixels of a 256 x 256 image before the pose is applied,
x to the right, y down, origin mid-face::

        y  -110  top of the head        y  -40 .. 9   nose
            -60  eyebrows                       22    mouth, x = ±25
            -40  eyes, x = ±30                  66    chin
"""

from __future__ import annotations

import argparse
import math
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from icnn.dataset import Face, write_face, write_split
from icnn.errors import InputError

#: One independent stream of faces each; "folder" is what the command writes.
STREAMS = ("exemplars", "tuning", "testing", "folder")


def _colours(codes: str) -> np.ndarray:
    return np.array([list(bytes.fromhex(code)) for code in codes.split()], np.float32)


# Neighbours are mixed, so the order matters: light to dark, or a way through hair colours.
SKIN = _colours("fadecc f0c8ac e2b28c c8926a a06c4c 744c36 503428")
HAIR = _colours("161212 281c16 462e1e 704a2c ba9258 dec48e 8c3e1e 807c78 d6d2cc")
IRIS = _colours("3a2214 54361e 4a623e 4a7094 68747c")
WHITE, BLACK = np.full(3, 250, np.float32), np.full(3, 14, np.float32)

Box = tuple[slice, slice]
Shape = np.ndarray | list[np.ndarray]  # one polygon (n, 2) or several, in head coordinates


# ---------------------------------------------------------------- curves, noise, colours


def _points(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    return np.stack(np.broadcast_arrays(np.asarray(x, np.float64), y), 1)


def _mirrored(x: ArrayLike, y: ArrayLike) -> np.ndarray:
    """Closed polygon, symmetric about x = 0, from its right half."""
    half = _points(x, y)
    return np.concatenate([half, (half[half[:, 0] > 0] * (-1, 1))[::-1]])


def _smooth(controls: np.ndarray, steps: int = 8) -> np.ndarray:
    """Closed Catmull-Rom curve through (n, 2) control points."""
    p0, p1, p2, p3 = (np.roll(controls, shift, 0) for shift in (1, 0, -1, -2))
    t = (np.arange(steps) / steps)[:, None, None]
    curve = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * (p1 - p2) + p3 - p0) * t**3
    return 0.5 * curve.transpose(1, 0, 2).reshape(-1, 2)


_TURN = np.arange(24) * (np.pi / 12)


def _ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> np.ndarray:
    dx, dy, c, s = rx * np.cos(_TURN), ry * np.sin(_TURN), math.cos(angle), math.sin(angle)
    return _points(x + dx * c - dy * s, y + dx * s + dy * c)


def _ribbon(x: ArrayLike, y: ArrayLike, width: ArrayLike) -> np.ndarray:
    """Outline of a stroke through points, with a full width per point; a closed line gives a ring."""
    line = _points(x, y)
    along = np.concatenate([line[1:], line[-1:]]) - np.concatenate([line[:1], line[:-1]])
    half = np.asarray(width) / 2 / (np.hypot(along[:, 0], along[:, 1]) + 1e-9)
    across = along[:, ::-1] * (-1, 1) * half[:, None]
    return np.concatenate([line + across, (line - across)[::-1]])


def _noise(rng: np.random.Generator, size: int, *cells: int) -> np.ndarray:
    """Smooth noise, (size, size), standard deviation about 1: octaves of so many cells a side."""
    total = np.zeros((1, 1), np.float32)
    for k, n in enumerate(cells):
        coarser = Image.fromarray(total).resize((n, n), Image.Resampling.BICUBIC)
        total = np.asarray(coarser) + rng.standard_normal((n, n), np.float32) / (k + 1)
    total /= total.std() + 1e-6
    return np.asarray(Image.fromarray(total).resize((size, size), Image.Resampling.BICUBIC))


def _mix(a: ArrayLike, b: ArrayLike, share: float) -> np.ndarray:
    return np.asarray(a, np.float32) * (1 - share) + np.asarray(b, np.float32) * share


def _textured(colour: np.ndarray, tone: np.ndarray) -> np.ndarray:
    """A colour times a (size, size) factor: (3, size, size) float32."""
    return np.asarray(colour, np.float32)[:, None, None] * tone.astype(np.float32)


def _pick(rng: np.random.Generator, colours: np.ndarray, spread: float) -> np.ndarray:
    """A mixture of two neighbouring colours, jittered."""
    at = rng.uniform(0, len(colours) - 1)
    colour = _mix(colours[int(at)], colours[int(at) + 1], at % 1)
    return np.clip(colour + rng.normal(0, spread, 3), 4, 252).astype(np.float32)


def _paint_colour(rng: np.random.Generator) -> np.ndarray:
    """Any colour, as of cloth or a wall, seldom a glaring one."""
    return _mix(rng.uniform(15, 240), rng.uniform(10, 245, 3), rng.uniform(0.1, 0.8))


# ---------------------------------------------------------------- pose and canvas


class _Pose:
    """Where head coordinates fall in the image: yaw and pitch of an ellipsoid, then a similarity."""

    def __init__(self, rng: np.random.Generator, size: int):
        self.yaw, self.pitch = np.clip(rng.normal(0, (0.17, 0.07)), (-0.4, -0.16), (0.4, 0.16)).tolist()
        self.scale = rng.uniform(0.85, 1.15) * size / 256
        self.shift = 128 + rng.uniform((-24, -18), (24, 18))
        if rng.random() < 0.02:  # cut by the border
            self.shift += rng.choice([-1, 1], 2) * rng.permutation([0, 70])
        self.shift *= size / 256
        roll = math.radians(rng.uniform(-18, 18))
        self.turn = np.array([[math.cos(roll), -math.sin(roll)], [math.sin(roll), math.cos(roll)]])

    def project(self, points: np.ndarray, lift: float | None) -> np.ndarray:
        """(n, 2) head coordinates -> pixels, `lift` above the ellipsoid; None: in the outline's plane."""
        x, y = points[:, 0], points[:, 1]
        if lift is not None:
            z = lift + 58 * np.sqrt(np.maximum(1 - (x / 74) ** 2 - (y / 112) ** 2, 0))
            x = x * math.cos(self.yaw) + z * math.sin(self.yaw)
            y = y * math.cos(self.pitch) + z * math.sin(self.pitch)
        return np.stack([x, y], 1) @ (self.scale * self.turn.T) + self.shift

    def plane(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Head coordinates x, y of every pixel's centre, in the outline's plane, (size, size) each."""
        rows, columns = np.ogrid[:size, :size]
        (a, b), (c, d) = (self.turn.T / self.scale).astype(np.float32)
        columns = (columns + 0.5 - self.shift[0]).astype(np.float32)
        rows = (rows + 0.5 - self.shift[1]).astype(np.float32)
        return a * columns + b * rows, c * columns + d * rows


class _Canvas:
    """The photograph and its parts while they are drawn, and what all features of one face share."""

    def __init__(self, rng: np.random.Generator, size: int):
        self.rng, self.size, self.pose = rng, size, _Pose(rng, size)
        self.image = np.zeros((3, size, size), np.float32)  # 0 .. 255; planes, for speed
        self.parts = np.zeros((8, size, size), np.float32)  # shares of ids 1..8, in sum at most 1
        self.x, self.y = self.pose.plane(size)
        self.skin = _pick(rng, SKIN, 5)
        dark = rng.random() < 0.35 + 0.5 * (self.skin.mean() < 130)
        self.hair = _pick(rng, HAIR[:3] if dark else HAIR, 6)
        rosy = _mix(self.skin * 0.9, self.skin * (0.92, 0.64, 0.66), rng.uniform(0.4, 1.2))
        self.lip = rng.uniform((110, 10, 20), (235, 90, 120)) if rng.random() < 0.2 else rosy
        self.gape = max(0.0, rng.normal(0, 6.5))  # opening of the mouth, pixels
        self.light = rng.normal(0, 0.55)  # > 0: from the right
        self.wide = 60 * rng.uniform(0.9, 1.1)  # half the head's width
        self.long = rng.uniform(0.94, 1.06)  # of the lower face
        x = np.array([0, 0.33, 0.66, 0.9, 1, 0.93, 0.6, 0]) * self.wide
        chin = 66 * self.long + self.gape * 0.6
        self.outline = _smooth(_mirrored(x, [chin, chin - 4, chin - 22, 18, -28, -70, -101, -110]))

    def shade(self, factor: float, red: float = 1.0) -> np.ndarray:
        """Skin colour times a factor; shadows on skin are redder."""
        return np.clip(self.skin * (factor * red, factor, factor), 0, 255)

    def coverage(self, shape: Shape, blur: float = 0.0, lift: float | None = 0.0) -> tuple[Box, np.ndarray]:
        """Soft mask of a shape: the rows and columns that it may touch and the shares in [0, 1] there."""
        several = isinstance(shape, list)
        points = self.pose.project(np.concatenate(shape) if several else shape, lift)
        polygons = (
            np.split(points, np.cumsum([len(p) for p in shape[:-1]], dtype=int)) if several else [points]
        )
        margin = 3 * blur * self.pose.scale + 1
        low = np.maximum(points.min(0) - margin, 0).astype(int).tolist()
        high = np.maximum(points.max(0) + margin + 1, 0).astype(int).tolist()
        columns, rows = (slice(min(a, self.size), min(b, self.size)) for a, b in zip(low, high, strict=True))
        box = (rows, columns)
        return box, self._raster(polygons, box, blur)

    def _raster(self, polygons: list[np.ndarray], box: Box, blur: float) -> np.ndarray:
        """Share of every pixel of a box that polygons in image pixels cover: supersampled, then averaged."""
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
        blur: float = 0.0,
        lift: float | None = 0.0,
        clip: np.ndarray | None = None,
    ) -> None:
        """Lay a colour, or a (3, size, size) texture, over a shape.

        Its edge fades over `blur` pixels; `clip` keeps it inside another
        polygon; `lift` is that of `_Pose.project`.
        """
        box, mask = self.coverage(shape, blur, lift)
        if clip is not None:  # the outline lies in its own plane, whatever is clipped by it
            mask = mask * self._raster(
                [self.pose.project(clip, None if clip is self.outline else lift)], box, 0
            )
        colour = np.asarray(colour, np.float32)
        under = self.image[:, *box]
        under += (
            np.float32(alpha)
            * mask
            * ((colour[:, *box] if colour.ndim == 3 else colour[:, None, None]) - under)
        )

    def label(self, points: np.ndarray, part: int, lift: float = 0.0) -> None:
        """Give a polygon to a part; what lies below it loses the covered share."""
        box, mask = self.coverage(points, 0.0, lift)
        self.parts[:, *box] *= 1 - mask
        self.parts[part - 1][box] += mask

    def maps(self) -> np.ndarray:
        """(size, size, 9) uint8 : the shares, background first, with a sum of exactly 255."""
        maps = np.empty((self.size, self.size, 9), np.uint8)
        # Rounded down, but for float error: the eight together must not exceed 255.
        parts = (self.parts * np.float32(255) + np.float32(0.1)).astype(np.uint8)
        maps[..., 0] = 255 - parts.sum(0, dtype=np.uint8)
        maps[..., 1:] = np.moveaxis(parts, 0, -1)
        return maps


# ---------------------------------------------------------------- surroundings


def _background(c: _Canvas) -> None:
    rng = c.rng
    first, second = _paint_colour(rng), _paint_colour(rng)
    if rng.random() < 0.3:  # walls of skin colour
        first = c.skin * rng.uniform(0.7, 1.1)
    field = _noise(rng, c.size, *(3, 6, 12, 24, 48)[: rng.integers(2, 6)])
    if rng.random() < 0.3:  # stripes
        angle, period = rng.uniform(0, np.pi), rng.uniform(2, 11)
        phase = (c.x * math.cos(angle) + c.y * math.sin(angle)) / np.float32(period)
        field = 0.4 * field + np.tanh(np.float32(rng.uniform(0.5, 6)) * np.sin(phase))
    share = np.clip(0.5 + np.float32(rng.uniform(0.1, 0.45)) * field, 0, 1)
    c.image[:] = _textured(first, 1 - share) + _textured(second, share)
    for _ in range(rng.integers(0, 6)):
        (x, y), (rx, ry) = rng.uniform(-150, 150, 2), rng.uniform(5, 50, 2)
        spot = _ellipse(x, y, rx, ry, rng.uniform(0, np.pi))
        c.paint(spot, _paint_colour(rng), rng.uniform(0.3, 1), rng.uniform(1, 9), None)


def _distractor(c: _Canvas, x: float, y: float, grow: float, alpha: float, lift: float | None) -> None:
    """A shape with the colour of a part, where no part is."""
    rng = c.rng
    angle, kind = rng.normal(0, 0.5), rng.choice(4, p=[0.3, 0.3, 0.12, 0.28])
    (rx, ry), look = grow * rng.uniform((8, 4), (24, 9)), (alpha, rng.uniform(0.4, 2.5), lift)
    if kind == 0:  # lips
        c.paint(_ellipse(x, y, rx, ry, angle), c.lip, *look)
    elif kind == 1:  # eyebrow
        t = np.linspace(-1, 1, 9)
        curve = y + rx * (0.2 * t * t + math.sin(angle) * t)
        c.paint(_ribbon(x + rx * t, curve, ry * (1.1 - t * t)), c.hair * 0.8, *look)
    elif kind == 2:  # eye
        c.paint(_ellipse(x, y, rx * 0.6, ry * 0.6, angle), WHITE * 0.8, *look)
        c.paint(_ellipse(x, y, ry * 0.5, ry * 0.5), c.hair * 0.8, *look)
    else:  # skin
        c.paint(_ellipse(x, y, rx, ry * 2, angle), c.shade(rng.uniform(0.75, 1.15)), *look)


def _scatter(c: _Canvas) -> None:
    """Distractors around the head."""
    for _ in range(c.rng.integers(0, 7)):
        x, y = c.rng.uniform(-150, 150, 2)
        _distractor(c, x, y, 1, c.rng.uniform(0.5, 1), None)


def _blemishes(c: _Canvas) -> None:
    """Moles, plasters and paint on forehead, cheeks and chin: distractors on the skin."""
    rng = c.rng
    places = _points([-22, 22, 0, -42, 42, -36, 36, 0], [-84, -86, -92, 0, 0, 40, 40, 52])
    for place in rng.permutation(places)[: rng.choice(4, p=[0.4, 0.3, 0.2, 0.1])]:
        x, y = place + rng.normal(0, 3, 2)
        if rng.random() < 0.5:
            c.paint(_ellipse(x, y, 1.6, 1.6), c.shade(0.4), 0.8, 0.5)
        else:
            _distractor(c, x, y, 0.6, rng.uniform(0.35, 0.85), 0.0)


def _body(c: _Canvas) -> None:
    rng = c.rng
    top, n = rng.uniform(84, 98), 34 * c.wide / 60 * rng.uniform(0.9, 1.15)
    cloth = _textured(_paint_colour(rng), np.clip(1 + 0.12 * _noise(rng, c.size, 4, 9), 0.5, 1.5))
    shoulders = _mirrored([n + 2, 60, 108, 132, 140], top + np.array([-8, 9, 24, 56, 130]))
    c.paint(shoulders, cloth, 1, 0.7, None)
    collar = top + rng.uniform(8, 45)
    neck = _mirrored([n, n, n * 1.1, n * 0.6, 0], [20, top - 12, top - 2, (top + collar) / 2 + 2, collar])
    c.paint(np.add(neck, (0, 3)), cloth * 0.6, 0.7, 2, None, clip=shoulders)
    c.paint(neck, c.shade(0.8), 1, 0.7, None)
    c.paint(_ellipse(0, 62, 46, 24), c.shade(0.45), 0.65, 6, None, clip=neck)  # the chin's shadow
    for side in (-1, 1):
        x = side * (c.wide + 3) - 10 * math.sin(c.pose.yaw)
        c.paint(_ellipse(x, -22, 9, 19, side * 0.15), c.shade(0.86, 1.05), 1, 0, None)
        c.paint(_ellipse(x, -23, 4.5, 11, side * 0.15), c.shade(0.6), 0.6, 1.5, None)


def _hair_texture(c: _Canvas, curly: bool) -> np.ndarray:
    """Strands that radiate from a parting, with a ring of gloss; or tufts: (3, size, size)."""
    rng = c.rng
    if curly:
        return _textured(c.hair, np.clip(1 + 0.3 * _noise(rng, c.size, 6, 28, 64), 0.3, 1.9))
    dx, dy = c.x - np.float32(rng.normal(0, 16)), c.y + np.float32(rng.uniform(105, 140))
    strands = np.repeat(rng.standard_normal(181, np.float32), 4) + rng.standard_normal(724, np.float32)
    strands = np.convolve(strands, np.hanning(7).astype(np.float32) / 3, "same")
    lookup = strands[((np.arctan2(dy, dx) + np.pi) * (720 / (2 * np.pi))).astype(np.intp)]
    ring = (np.hypot(dx, dy) - np.float32(rng.uniform(35, 60))) / np.float32(rng.uniform(8, 20))
    tone = 1 + rng.uniform(0.06, 0.16) * lookup + 0.12 * _noise(rng, c.size, 6, 14)
    tone += rng.uniform(0, 0.5) * np.exp(-ring * ring)
    return _textured(c.hair, np.clip(tone, 0.3, 1.9))


def _back_hair(c: _Canvas, texture: np.ndarray, style: str) -> None:
    rng = c.rng
    w = c.wide + rng.uniform(4, 14)
    if style == "curly":
        t = np.linspace(0, 2 * np.pi, 120, endpoint=False)
        r = rng.uniform(1.05, 1.4) + 0.035 * np.sin(t * rng.integers(14, 30)) + rng.normal(0, 0.012, 120)
        shape = _points(w * r * np.cos(t), -58 + 66 * r * np.sin(t))
    else:
        low, spread = (rng.uniform(50, 150) if style == "long" else -10), rng.uniform(0.95, 1.25)
        x = np.array([0, 0.8 * spread, spread, 1.04, 0.85, 0]) * w
        shape = _smooth(_mirrored(x, [low, low, (low - 30) / 2, -50, -98, -116 - rng.uniform(0, 12)]))
    c.paint(shape, texture * 0.75, 1, 0.6, None)


def _front_hair(c: _Canvas, texture: np.ndarray, style: str) -> None:
    """Hair above the hairline; a fringe hangs down to the eyebrows, long hair beside the cheeks."""
    rng, t = c.rng, np.linspace(-1, 1, 41)
    fringe = style == "fringe"
    hairline = rng.uniform(-72, -58) if fringe else rng.uniform(-92, -78)
    hairline = hairline + 34 * np.abs(t) ** rng.uniform(2.5, 6) + rng.normal(0, 1.2, 41)
    if fringe:  # strands of unequal length
        hairline += rng.uniform(1, 5) * np.abs(np.sin(t * rng.uniform(8, 24)))
    else:  # the parting
        hairline -= 8 * np.exp(-((t - rng.uniform(-0.6, 0.6)) ** 2) * 20)
    out = c.wide + rng.uniform(2, 8)
    crown = _mirrored(np.array([1, 0.9, 0.55, 0]) * out, [-50, -88, -112, -119])
    shape = np.concatenate([_points(t * c.wide * 1.02, hairline), _smooth(crown)[:-8]])
    c.paint(np.add(shape, (0, 3)), c.shade(0.35), 0.4, 3, None, clip=c.outline)  # its shadow on the forehead
    c.paint(shape, texture, 1, 0.5, None)
    for side in (-1, 1) if style == "long" else ():
        low, width = rng.uniform(30, 120), rng.uniform(6, 17)
        x = np.array([0.5, 1.02, 1.05, 1.02, 1]) * c.wide - (0, 0, 0, width, width)
        c.paint(_smooth(_points(side * x, [-96, -60, low, low, -30])), texture, 1, 0.6, None)


def _hat(c: _Canvas) -> None:
    t, w, colour = np.linspace(-1, 1, 15), c.wide + 6, _paint_colour(c.rng)
    brim = c.rng.uniform(-92, -78) + 14 * t * t
    turn = np.pi / 2 * (t + 1)
    crown = _points(0.98 * w * np.cos(turn), -96 - 38 * np.sin(turn) ** 0.8)
    c.paint(np.concatenate([_points(t * w, brim), crown]), colour, 1, 0.5, None)
    c.paint(_ribbon(t * w, brim - 3, 8), colour * 0.6, 0.8, 1, None)


# ---------------------------------------------------------------- the face


def _head(c: _Canvas) -> None:
    rng, t = c.rng, np.linspace(-1, 1, 9)
    c.paint(c.outline, _textured(c.skin, 1 + 0.025 * _noise(rng, c.size, 8, 20, 60)), 1, 0, None)
    for side in (-1, 1):
        c.paint(_ellipse(side * 36, 6, 17, 13), c.skin * (1.02, 0.8, 0.78), rng.uniform(0, 0.5), 7)
        c.paint(_ellipse(side * 30, -44, 18, 12), c.shade(0.62, 1.08), rng.uniform(0.2, 0.65), 5)
        fold = _ribbon(side * np.array([19, 27, 30 + c.gape * 0.2]), [2, 12, 26], 2)
        c.paint(fold, c.shade(0.6, 1.08), rng.uniform(0, 0.6), 1.2)
    c.paint(_ellipse(0, 46 * c.long + c.gape, 15, 4), c.shade(0.62), rng.uniform(0.1, 0.5), 3)
    c.paint(_ellipse(0, -84, 26, 10), c.shade(1.2), rng.uniform(0, 0.5), 8)
    if rng.random() < 0.2:
        wrinkles = [_ribbon(26 * t, y + 2 * np.cos(3 * t), 1.4) for y in (-92, -84, -76)]
        c.paint(wrinkles, c.shade(0.6), rng.uniform(0.2, 0.5), 0.6)


def _beard(c: _Canvas) -> None:
    """Stubble to full beard on the jaw; drawn before the mouth."""
    hair = _textured(c.hair, np.clip(1 + 0.25 * _noise(c.rng, c.size, 110), 0.3, 1.8))
    x = np.array([1.3, 1.3, 0.95, 0.8, 0.5, 0]) * c.wide  # beyond the outline, which clips it
    jaw = _smooth(_mirrored(x, [110, -20, -14, 12, 21, 12]))
    c.paint(jaw, hair, c.rng.uniform(0.25, 0.9), c.rng.uniform(2, 4), 0.0, clip=c.outline)


def _moustache(c: _Canvas) -> None:
    rng, t = c.rng, np.linspace(-1, 1, 17)
    hair = _textured(c.hair, np.clip(1 + 0.25 * _noise(rng, c.size, 110), 0.3, 1.8))
    line = 15 * c.long + rng.uniform(2, 9) * t * t
    shape = _ribbon(rng.uniform(20, 30) * t, line, rng.uniform(4, 8) * (1.05 - t**4))
    c.paint(shape, hair, rng.uniform(0.5, 0.95), 0.9)


def _eyes(c: _Canvas) -> None:
    rng = c.rng
    wide, high = rng.uniform(10, 13), np.clip(rng.normal(9.5, 2.8), 2.2, 16)
    look, tilt = rng.uniform(-0.7, 0.7, 2), rng.normal(0.04, 0.06)
    iris = IRIS[0] if c.skin.mean() < 130 and rng.random() < 0.9 else _pick(rng, IRIS, 6)
    for side in (-1, 1):
        _eye(c, side, look, wide, high * rng.uniform(0.9, 1.1), tilt, iris)


def _eye(
    c: _Canvas, side: int, look: np.ndarray, wide: float, high: float, tilt: float, iris: np.ndarray
) -> None:
    t = np.linspace(-1, 1, 13)
    middle, y = side * (15 + c.wide / 4), -40
    x, slope = middle + wide * t, y - side * tilt * t * wide
    arch = (np.sqrt(1 - t * t) + 1 - t * t) / 2
    upper, lower = slope - high * 0.62 * arch, slope + high * 0.38 * arch
    eye = np.concatenate([_points(x, upper), _points(x, lower)[::-1]])
    c.label(eye, 2 if side < 0 else 4)

    c.paint(_ribbon(x, upper - 3.2, 1.5), c.shade(0.5, 1.1), 0.6, 0.7)  # crease and lids
    lids = np.concatenate([_points(x, upper - 3.6), _points(x, lower + 1.5)[::-1]])
    c.paint(lids, c.shade(0.8, 1.05), 0.6, 1)
    c.paint(eye, WHITE * (0.9, 0.88, 0.86) * c.rng.uniform(0.78, 1))
    r, ix, iy = wide * 0.47, middle + look[0] * wide * 0.45, y + high * (0.25 * look[1] - 0.1)
    c.paint(_ellipse(ix, iy, r, r), iris * 0.55, clip=eye)
    c.paint(_ellipse(ix, iy, r * 0.82, r * 0.82), iris, clip=eye)
    c.paint(_ellipse(ix, iy, r * 0.42, r * 0.42), BLACK, clip=eye)
    c.paint(_ribbon(x, upper + 0.8, 2.6), BLACK, 0.45, 0.9, clip=eye)  # the lid's shadow
    c.paint(_ellipse(ix + math.copysign(1.6, c.light), iy - r * 0.35, 1.1, 1.1), WHITE, 0.9, clip=eye)
    lash = _mix(c.hair * 0.4, c.shade(0.25), 0.5)
    c.paint(_ribbon(x, upper, 1 + np.abs(np.sin(t + 1))), lash, 0.9)
    c.paint(_ribbon(x, lower, 0.9), c.shade(0.5, 1.15), 0.6)


def _eyebrows(c: _Canvas) -> None:
    rng, t = c.rng, np.linspace(0, 1, 17)
    thick, tilt, arch = rng.uniform(4.5, 10), rng.normal(0.05, 0.12), rng.uniform(0, 7)
    colour = _mix(np.minimum(c.hair * rng.uniform(0.5, 1), c.skin * 0.6), c.skin, rng.uniform(0, 0.3))
    height, inner, outer = rng.uniform(-64, -55), rng.uniform(9, 15), rng.uniform(48, 55)
    width = thick * np.sqrt(np.clip(1.15 * (1 - t**2.5) * (0.35 + 3 * t), 0.01, 1))
    for side in (-1, 1):
        x = side * (inner + (outer - inner) * t)
        y = height + rng.normal(0, 1) - tilt * 40 * t - arch * np.sin(np.pi * t**1.3) + 5 * t**3
        brow = _ribbon(x, y, width)
        c.label(brow, 1 if side < 0 else 3)
        c.paint(brow, colour, rng.uniform(0.55, 0.8), 0.9)
        line = _points(x, y)
        root = line[rng.integers(0, 16, 16)] + rng.uniform((-1, -0.25 * thick), (1, 0.35 * thick), (16, 2))
        tip = root + rng.uniform((3, -3), (6, 0.5), (16, 2)) * (side, 1)
        hairs = np.stack([np.add(root, (0, -0.7)), tip, np.add(root, (0, 0.7))], 1)
        c.paint(list(hairs), colour * 0.7, 0.6)


def _nose(c: _Canvas) -> None:
    """Label: nasion to below the nostrils; seen by its flanks, wings, nostrils, shadow and highlights."""
    rng, lift = c.rng, 4.0
    top, end, flare = rng.uniform(-42, -36), rng.uniform(5, 11), rng.uniform(8, 12)
    bridge, wing = rng.uniform(5.5, 8.5), rng.uniform(16, 22)
    x = [bridge, bridge * 0.95, bridge + 3, wing * 0.82, wing, wing * 0.8, wing * 0.35, 0]
    y = [top, top + 12, end - 24, end - flare, end - 6, end - 1, end + 1.5, end + 2.5]
    nose = _smooth(_mirrored(x, y), 5)
    c.label(nose, 5, lift)

    far = -1 if c.light > 0 else 1
    dark, glow = c.shade(0.45, 1.1), c.shade(1.22)
    c.paint(nose, c.shade(1.05), 0.5, 2, lift)
    for side, alpha in ((far, rng.uniform(0.5, 0.85)), (-far, rng.uniform(0.2, 0.45))):
        x = [bridge * 0.6, bridge, bridge + 3, wing, wing * 0.7, bridge * 0.7]
        flank = _points(side * np.array(x), [top, top + 2, end - 24, end - 6, end - 2, end - 16])
        c.paint(flank, c.shade(0.6, 1.1), alpha, 1.8, lift)
        x = side * wing * np.array([0.8, 0.98, 0.98, 0.78])
        crease = _ribbon(x, [end - flare - 1, end - 7, end - 4, end - 1], 1.8)
        c.paint(crease, dark, rng.uniform(0.5, 0.9), 0.7, lift)
        nostril = _ellipse(side * wing * 0.43, end - 2.5, wing * 0.23, rng.uniform(1.4, 2.6), -side * 0.3)
        c.paint(nostril, c.shade(0.2, 1.1), 0.9, 0.7, lift)
    c.paint(_ribbon(wing * np.array([-0.75, 0, 0.75]), [end, end + 2.5, end], 2.6), dark, 0.55, 1.2, lift)
    ridge = _ribbon([0, -far * 0.5, -far], [top + 8, end - 22, end - 12], [2, 3.5, 4])
    c.paint(ridge, glow, rng.uniform(0.2, 0.7), 1.5, lift)
    c.paint(_ellipse(-far * 2, end - 10, 3.5, 3), glow, rng.uniform(0.3, 0.8), 1.3, lift)


def _mouth(c: _Canvas) -> None:
    """Three strips between four curves from corner to corner, t in [-1, 1]."""
    rng, t = c.rng, np.linspace(-1, 1, 25)
    wide, smile, y = rng.uniform(21, 30) + 0.15 * c.gape, rng.normal(3, 4), rng.uniform(20, 25) * c.long
    up, low, gap = rng.uniform(4, 9.5), rng.uniform(6, 12), 0.5 + c.gape / 2
    inside = np.sqrt(np.clip(1 - (t / 0.93) ** 2, 0, 1))
    bow = 1 - np.abs(t) ** 1.6 - 0.24 * np.exp(-((t / 0.16) ** 2))
    x, bend = wide * t, y - smile * t * t
    second, third = bend - 0.6 * gap * inside, bend + 1.4 * gap * inside
    first, fourth = second - up * np.maximum(bow, 0), third + low * (1 - t * t) ** 0.75
    edges = [_points(x, edge) for edge in (first, second, third, fourth)]
    upper, inner, lower = (np.concatenate([a, b[::-1]]) for a, b in pairwise(edges))
    for strip, part in ((upper, 6), (lower, 8), (inner, 7)):
        c.label(strip, part)

    c.paint(upper, c.lip * 0.84, 0.95, 0.45)
    c.paint(lower, c.lip, 0.95, 0.45)
    gloss = _ellipse(-math.copysign(3, c.light), y + 1.4 * gap + 0.45 * low, wide * 0.4, low * 0.16)
    c.paint(gloss, _mix(c.lip, WHITE, 0.4), rng.uniform(0.1, 0.8), 1.2)
    dark = np.array([58, 22, 22]) * rng.uniform(0.4, 1.2)
    c.paint(inner, dark)
    if c.gape > 2.5 and rng.random() < 0.35:
        c.paint(
            _ellipse(0, y + 1.5 * gap, wide * 0.5, gap * 0.8), np.array([176, 84, 84]), 0.9, 0.8, clip=inner
        )
    if c.gape > 2.5 and rng.random() < 0.7:
        depth = gap * rng.uniform(0.6, 2)
        teeth = np.concatenate([_points(x, second - 1), _points(x * 0.9, second + depth * inside)[::-1]])
        c.paint(teeth, WHITE * (0.95, 0.92, 0.87) * rng.uniform(0.8, 1), 1, 0.4, clip=inner)
        c.paint([_ellipse(k * 4.6, y, 0.35, depth + 8) for k in range(-3, 4)], dark, 0.25, clip=inner)
    c.paint([_ellipse(s * wide, y - smile, 2.4, 1.8) for s in (-1, 1)], c.shade(0.4, 1.1), 0.5, 0.9)


def _glasses(c: _Canvas) -> None:
    rng, t = c.rng, np.linspace(0, 2 * np.pi, 41)
    colour, width = rng.uniform(10, 110, 3) * rng.uniform(0.2, 1), rng.uniform(1.2, 3.2)
    rx, ry, power = rng.uniform(18, 22), rng.uniform(12, 17), rng.uniform(0.55, 1)
    x, y = (r * np.sign(f) * np.abs(f) ** power for r, f in ((rx, np.cos(t)), (ry, np.sin(t))))
    tint = rng.uniform(0.35, 0.65) if rng.random() < 0.15 else 0.0
    for side in (-1, 1):
        c.paint(_points(side * 30 + x, y - 38), colour if tint else WHITE, tint or 0.07, 0, 4)
        c.paint(_ribbon(side * 30 + x, y - 38, width), colour, 0.95, 0, 4)
        c.paint(_ribbon([side * (30 + rx), side * 1.03 * c.wide], [-42, -38], width), colour, 0.9)
    c.paint(_ribbon([rx - 30, 0, 30 - rx], [-41, -44, -41], width), colour, 0.95, 0, 4)


# ---------------------------------------------------------------- light and photograph


def _light_head(c: _Canvas) -> None:
    """Lambertian light on an ellipsoid, over everything drawn on the head."""
    rng = c.rng
    (box, mask), above = c.coverage(c.outline * 1.01, 0.0, None), rng.normal(-0.35, 0.3)
    nx, ny = c.x[box] / 70, (c.y[box] + 18) / 105
    nz = np.sqrt(np.maximum(1 - nx * nx - ny * ny, 0.02))
    lambert = np.maximum(nx * c.light + ny * above + nz, 0) / math.hypot(c.light, above, 1)
    ambient = rng.uniform(0.35, 0.75)
    light = ambient + (1 - ambient) * 1.25 * lambert
    c.image[:, *box] *= (1 + mask * (light - 1)).astype(np.float32)


def _photograph(c: _Canvas) -> np.ndarray:
    """Light over the whole picture, tint, exposure, blur and grain: (size, size, 3) uint8."""
    rng = c.rng
    across, down = (0.003 * rng.uniform(-1, 1, 2)).astype(np.float32)
    tint = rng.uniform(0.93, 1.07, 3) if rng.random() < 0.75 else rng.uniform(0.75, 1.2, 3)
    image = c.image * np.maximum(1 + across * c.x + down * c.y, np.float32(0.3))
    image *= tint.astype(np.float32)[:, None, None]
    photograph = Image.merge(
        "RGB", [Image.fromarray(plane) for plane in np.clip(image, 0, 255).astype(np.uint8)]
    )
    level = np.linspace(0, 1, 256) ** math.exp(rng.normal(0, 0.2))
    curve = 255 * ((level - 0.5) * rng.uniform(0.8, 1.2) + 0.5 + rng.normal(0, 0.04))
    photograph = photograph.point(np.clip(curve, 0, 255).astype(int).tolist() * 3)
    if rng.random() < 0.12:
        photograph = photograph.convert("L").convert("RGB")
    if rng.random() < 0.5:
        photograph = photograph.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1) * c.size / 256))
    grain = rng.standard_normal((c.size, c.size, 1), np.float32) * np.float32(rng.uniform(0, 5))
    return np.clip(np.asarray(photograph) + (grain + 0.5), 0, 255).astype(np.uint8)


# ---------------------------------------------------------------- faces, splits, the command


def draw_face(rng: np.random.Generator, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Draw one face.

    Parameters
    ----------
    rng : numpy.random.Generator
        All randomness; the same state gives the same bytes.
    size : int
        Side of the square image, pixels; eyebrows to chin take about half of it.

    Returns
    -------
    image : (size, size, 3) uint8
        RGB.
    maps : (size, size, 9) uint8
        Share of every class id at each pixel; they sum to 255. Parts behind
        hair, glasses or a beard are labelled as if visible.
    """
    c = _Canvas(rng, size)
    style = str(rng.choice(["short", "fringe", "long", "curly", "bald"], p=[0.34, 0.18, 0.26, 0.12, 0.1]))
    bearded = style != "long" and rng.random() < 0.3
    texture = _hair_texture(c, style == "curly")
    _background(c)
    _scatter(c)
    if style != "bald":
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
    if style != "bald":
        _front_hair(c, texture, style)
    if rng.random() < 0.08:
        _hat(c)
    if rng.random() < 0.15:
        _glasses(c)
    return _photograph(c), c.maps()


def face_generator(seed: int, stream: str, index: int) -> np.random.Generator:
    """Give face `index` of a stream its generator, independent of all others and of how many are drawn."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(STREAMS.index(stream), index)))


def synthetic_faces(count: int, seed: int, split: str) -> list[Face]:
    """Draw the first `count` faces of a split.

    Parameters
    ----------
    count : int
        Face i does not depend on it.
    seed : int
        Not negative.
    split : {"exemplars", "tuning", "testing"}
        Splits share no face.

    Returns
    -------
    list of Face
        256 x 256, named synthetic_00000 and so on.
    """
    drawn = (draw_face(face_generator(seed, split, index)) for index in range(count))
    return [Face(f"synthetic_{index:05d}", np.concatenate(face, axis=2)) for index, face in enumerate(drawn)]


def main(argv: list[str] | None = None) -> int:
    """Write procedural faces in the layout of Smith et al.: 80 % exemplars, 10 % tuning, 10 % testing.

    Raises
    ------
    InputError
        If DIR is not empty, N below 10 or S negative.
    """
    parser = argparse.ArgumentParser(
        "python -m icnn.synthetic", description=(main.__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--count", type=int, required=True, metavar="N", help="faces, at least 10")
    parser.add_argument("--seed", type=int, required=True, metavar="S", help="same N and S, same folder")
    options = parser.parse_args(argv)
    root, count, seed = options.out, options.count, options.seed
    if count < 10:
        raise InputError(f"--count: expected at least 10, got {count}; one face in ten is for testing")
    if seed < 0:
        raise InputError(f"--seed: expected 0 or more, got {seed}; try 0")
    if root.exists() and not (root.is_dir() and next(root.iterdir(), None) is None):
        raise InputError(f"--out: expected a new or empty folder, got {root}, which is not; choose another")
    names = [f"synthetic_{index:05d}" for index in range(count)]
    for index, name in enumerate(tqdm(names, unit="face", file=sys.stderr, disable=None)):
        write_face(root, name, *draw_face(face_generator(seed, "folder", index)))
    tenth = count // 10
    write_split(root, "exemplars", names[: -2 * tenth])
    write_split(root, "tuning", names[-2 * tenth : -tenth])
    write_split(root, "testing", names[-tenth:])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
