"""Surroundings of a synthetic face: background, body, hair, hat, and distractors in the colours of the parts."""

import math

import numpy as np

from icnn.synthetic.canvas import WHITE, Canvas, noise, paint_colour, textured
from icnn.synthetic.shapes import ellipse, mirrored, polyline, ribbon, smooth


def background(c: Canvas) -> None:
    """Fill the image with two colours mixed by noise or stripes, and add blobs."""
    rng = c.rng
    first, second = paint_colour(rng), paint_colour(rng)
    if rng.random() < 0.3:  # skin-coloured wall
        first = c.skin * rng.uniform(0.7, 1.1)
    field = noise(rng, c.size, *(3, 6, 12, 24, 48)[: rng.integers(2, 6)])
    if rng.random() < 0.3:  # stripes
        angle, period = rng.uniform(0, np.pi), rng.uniform(2, 11)
        phase = (c.x * math.cos(angle) + c.y * math.sin(angle)) / np.float32(period)
        field = 0.4 * field + np.tanh(np.float32(rng.uniform(0.5, 6)) * np.sin(phase))
    share = np.clip(0.5 + np.float32(rng.uniform(0.1, 0.45)) * field, 0, 1)
    c.image[:] = textured(first, 1 - share) + textured(second, share)
    for _ in range(rng.integers(0, 6)):
        (x, y), (rx, ry) = rng.uniform(-150, 150, 2), rng.uniform(5, 50, 2)
        spot = ellipse(x, y, rx, ry, rng.uniform(0, np.pi))
        c.paint(spot, paint_colour(rng), rng.uniform(0.3, 1), blur=rng.uniform(1, 9), lift=None)


def _distractor(c: Canvas, x: float, y: float, grow: float, alpha: float, lift: float | None) -> None:
    """Draw an unlabelled shape in the colour of a part; `grow` scales its size."""
    rng = c.rng
    angle, kind = rng.normal(0, 0.5), rng.choice(["lips", "eyebrow", "eye", "skin"], p=[0.3, 0.3, 0.12, 0.28])
    (rx, ry), look = grow * rng.uniform((8, 4), (24, 9)), {"alpha": alpha, "blur": rng.uniform(0.4, 2.5), "lift": lift}
    if kind == "lips":
        c.paint(ellipse(x, y, rx, ry, angle), c.lip, **look)
    elif kind == "eyebrow":
        t = np.linspace(-1, 1, 9)
        curve = y + rx * (0.2 * t * t + math.sin(angle) * t)
        c.paint(ribbon(x + rx * t, curve, ry * (1.1 - t * t)), c.hair * 0.8, **look)
    elif kind == "eye":
        c.paint(ellipse(x, y, rx * 0.6, ry * 0.6, angle), WHITE * 0.8, **look)
        c.paint(ellipse(x, y, ry * 0.5, ry * 0.5), c.hair * 0.8, **look)
    else:
        c.paint(ellipse(x, y, rx, ry * 2, angle), c.shade(rng.uniform(0.75, 1.15)), **look)


def scatter(c: Canvas) -> None:
    """Draw distractors around the head."""
    for _ in range(c.rng.integers(0, 7)):
        x, y = c.rng.uniform(-150, 150, 2)
        _distractor(c, x, y, 1, c.rng.uniform(0.5, 1), None)


def blemishes(c: Canvas) -> None:
    """Draw distractors on the skin (moles, plasters, paint) on forehead, cheeks and chin."""
    rng = c.rng
    places = polyline([-22, 22, 0, -42, 42, -36, 36, 0], [-84, -86, -92, 0, 0, 40, 40, 52])
    for place in rng.permutation(places)[: rng.choice(4, p=[0.4, 0.3, 0.2, 0.1])]:
        x, y = place + rng.normal(0, 3, 2)
        if rng.random() < 0.5:
            c.paint(ellipse(x, y, 1.6, 1.6), c.shade(0.4), 0.8, blur=0.5)
        else:
            _distractor(c, x, y, 0.6, rng.uniform(0.35, 0.85), 0.0)


def body(c: Canvas) -> None:
    """Draw shoulders, neck and ears."""
    rng = c.rng
    top, n = rng.uniform(84, 98), 34 * c.wide / 60 * rng.uniform(0.9, 1.15)
    cloth = textured(paint_colour(rng), np.clip(1 + 0.12 * noise(rng, c.size, 4, 9), 0.5, 1.5))
    shoulders = mirrored([n + 2, 60, 108, 132, 140], top + np.array([-8, 9, 24, 56, 130]))
    c.paint(shoulders, cloth, blur=0.7, lift=None)
    collar = top + rng.uniform(8, 45)
    neck = mirrored([n, n, n * 1.1, n * 0.6, 0], [20, top - 12, top - 2, (top + collar) / 2 + 2, collar])
    c.paint(np.add(neck, (0, 3)), cloth * 0.6, 0.7, blur=2, lift=None, clip=shoulders)
    c.paint(neck, c.shade(0.8), blur=0.7, lift=None)
    c.paint(ellipse(0, 62, 46, 24), c.shade(0.45), 0.65, blur=6, lift=None, clip=neck)  # shadow of the chin
    for side in (-1, 1):
        x = side * (c.wide + 3) - 10 * math.sin(c.pose.yaw)
        c.paint(ellipse(x, -22, 9, 19, side * 0.15), c.shade(0.86, 1.05), lift=None)
        c.paint(ellipse(x, -23, 4.5, 11, side * 0.15), c.shade(0.6), 0.6, blur=1.5, lift=None)


def hair_texture(c: Canvas, curly: bool) -> np.ndarray:
    """Return a hair texture (3, size, size) float32: strands from a parting with a ring of gloss, or curly tufts."""
    rng = c.rng
    if curly:
        return textured(c.hair, np.clip(1 + 0.3 * noise(rng, c.size, 6, 28, 64), 0.3, 1.9))
    dx, dy = c.x - np.float32(rng.normal(0, 16)), c.y + np.float32(rng.uniform(105, 140))  # from the parting
    strands = np.repeat(rng.standard_normal(181, np.float32), 4) + rng.standard_normal(724, np.float32)
    strands = np.convolve(strands, np.hanning(7).astype(np.float32) / 3, "same")
    lookup = strands[((np.arctan2(dy, dx) + np.pi) * (720 / (2 * np.pi))).astype(np.intp)]
    ring = (np.hypot(dx, dy) - np.float32(rng.uniform(35, 60))) / np.float32(rng.uniform(8, 20))
    tone = 1 + rng.uniform(0.06, 0.16) * lookup + 0.12 * noise(rng, c.size, 6, 14)
    tone += rng.uniform(0, 0.5) * np.exp(-ring * ring)
    return textured(c.hair, np.clip(tone, 0.3, 1.9))


def back_hair(c: Canvas, texture: np.ndarray, style: str) -> None:
    """Draw the hair behind the head; call it before drawing the head."""
    rng = c.rng
    w = c.wide + rng.uniform(4, 14)
    if style == "curly":
        t = np.linspace(0, 2 * np.pi, 120, endpoint=False)
        r = rng.uniform(1.05, 1.4) + 0.035 * np.sin(t * rng.integers(14, 30)) + rng.normal(0, 0.012, 120)
        shape = polyline(w * r * np.cos(t), -58 + 66 * r * np.sin(t))
    else:
        low, spread = (rng.uniform(50, 150) if style == "long" else -10), rng.uniform(0.95, 1.25)
        x = np.array([0, 0.8 * spread, spread, 1.04, 0.85, 0]) * w
        shape = smooth(mirrored(x, [low, low, (low - 30) / 2, -50, -98, -116 - rng.uniform(0, 12)]))
    c.paint(shape, texture * 0.75, blur=0.6, lift=None)


def front_hair(c: Canvas, texture: np.ndarray, style: str) -> None:
    """Draw hair above the hairline; a fringe reaches the eyebrows, long hair falls beside the cheeks."""
    rng, t = c.rng, np.linspace(-1, 1, 41)
    fringe = style == "fringe"
    hairline = rng.uniform(-72, -58) if fringe else rng.uniform(-92, -78)
    hairline = hairline + 34 * np.abs(t) ** rng.uniform(2.5, 6) + rng.normal(0, 1.2, 41)
    if fringe:  # strands of unequal length
        hairline += rng.uniform(1, 5) * np.abs(np.sin(t * rng.uniform(8, 24)))
    else:  # parting
        hairline -= 8 * np.exp(-((t - rng.uniform(-0.6, 0.6)) ** 2) * 20)
    out = c.wide + rng.uniform(2, 8)
    crown = mirrored(np.array([1, 0.9, 0.55, 0]) * out, [-50, -88, -112, -119])
    shape = np.concatenate([polyline(t * c.wide * 1.02, hairline), smooth(crown)[:-8]])
    shadow = np.add(shape, (0, 3))  # on the forehead
    c.paint(shadow, c.shade(0.35), 0.4, blur=3, lift=None, clip=c.outline)
    c.paint(shape, texture, blur=0.5, lift=None)
    for side in (-1, 1) if style == "long" else ():
        low, width = rng.uniform(30, 120), rng.uniform(6, 17)
        x = np.array([0.5, 1.02, 1.05, 1.02, 1]) * c.wide - (0, 0, 0, width, width)
        c.paint(smooth(polyline(side * x, [-96, -60, low, low, -30])), texture, blur=0.6, lift=None)


def hat(c: Canvas) -> None:
    """Draw a cap with a brim over the hair."""
    t, w, colour = np.linspace(-1, 1, 15), c.wide + 6, paint_colour(c.rng)
    brim = c.rng.uniform(-92, -78) + 14 * t * t
    turn = np.pi / 2 * (t + 1)
    crown = polyline(0.98 * w * np.cos(turn), -96 - 38 * np.sin(turn) ** 0.8)
    c.paint(np.concatenate([polyline(t * w, brim), crown]), colour, blur=0.5, lift=None)
    c.paint(ribbon(t * w, brim - 3, 8), colour * 0.6, 0.8, blur=1, lift=None)
