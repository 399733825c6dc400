"""Procedural faces with label maps in the layout of Smith et al.: a data set that needs no download.

Each face is drawn with one random generator. Pose, shapes, colours and lighting
vary. Distractors with the colours of the parts are added, so that a network has
to segment by shape and context (`icnn.evaluate.baselines` shows that position
or colour alone are not enough).

Coordinates are the head coordinates of `icnn.synthetic.canvas`.
"""

import math
from itertools import pairwise

import numpy as np

from icnn.data.folder import Face
from icnn.synthetic.canvas import (
    BLACK,
    IRIS,
    WHITE,
    Canvas,
    develop,
    ellipse,
    light_head,
    mirrored,
    mix,
    noise,
    pick,
    polyline,
    ribbon,
    smooth,
    textured,
)
from icnn.synthetic.surroundings import back_hair, background, blemishes, body, front_hair, hair_texture, hat, scatter

#: Independent random streams of faces; the command uses "folder".
STREAMS = ("exemplars", "tuning", "testing", "folder")


def _head(c: Canvas) -> None:
    rng, t = c.rng, np.linspace(-1, 1, 9)
    c.paint(c.outline, textured(c.skin, 1 + 0.025 * noise(rng, c.size, 8, 20, 60)), 1, 0, None)
    for side in (-1, 1):
        c.paint(ellipse(side * 36, 6, 17, 13), c.skin * (1.02, 0.8, 0.78), rng.uniform(0, 0.5), 7)
        c.paint(ellipse(side * 30, -44, 18, 12), c.shade(0.62, 1.08), rng.uniform(0.2, 0.65), 5)
        fold = ribbon(side * np.array([19, 27, 30 + c.gape * 0.2]), [2, 12, 26], 2)
        c.paint(fold, c.shade(0.6, 1.08), rng.uniform(0, 0.6), 1.2)
    c.paint(ellipse(0, 46 * c.long + c.gape, 15, 4), c.shade(0.62), rng.uniform(0.1, 0.5), 3)
    c.paint(ellipse(0, -84, 26, 10), c.shade(1.2), rng.uniform(0, 0.5), 8)
    if rng.random() < 0.2:
        wrinkles = [ribbon(26 * t, y + 2 * np.cos(3 * t), 1.4) for y in (-92, -84, -76)]
        c.paint(wrinkles, c.shade(0.6), rng.uniform(0.2, 0.5), 0.6)


def _beard(c: Canvas) -> None:
    """Draw a beard, from stubble to full, on the jaw; must precede the mouth."""
    hair = textured(c.hair, np.clip(1 + 0.25 * noise(c.rng, c.size, 110), 0.3, 1.8))
    x = np.array([1.3, 1.3, 0.95, 0.8, 0.5, 0]) * c.wide  # wider than the outline, which clips it
    jaw = smooth(mirrored(x, [110, -20, -14, 12, 21, 12]))
    c.paint(jaw, hair, c.rng.uniform(0.25, 0.9), c.rng.uniform(2, 4), 0.0, clip=c.outline)


def _moustache(c: Canvas) -> None:
    rng, t = c.rng, np.linspace(-1, 1, 17)
    hair = textured(c.hair, np.clip(1 + 0.25 * noise(rng, c.size, 110), 0.3, 1.8))
    line = 15 * c.long + rng.uniform(2, 9) * t * t
    shape = ribbon(rng.uniform(20, 30) * t, line, rng.uniform(4, 8) * (1.05 - t**4))
    c.paint(shape, hair, rng.uniform(0.5, 0.95), 0.9)


def _eyes(c: Canvas) -> None:
    rng = c.rng
    wide, high = rng.uniform(10, 13), np.clip(rng.normal(9.5, 2.8), 2.2, 16)
    look, tilt = rng.uniform(-0.7, 0.7, 2), rng.normal(0.04, 0.06)
    iris = IRIS[0] if c.skin.mean() < 130 and rng.random() < 0.9 else pick(rng, IRIS, 6)
    for side in (-1, 1):
        _eye(c, side, look, wide, high * rng.uniform(0.9, 1.1), tilt, iris)


def _eye(c: Canvas, side: int, look: np.ndarray, wide: float, high: float, tilt: float, iris: np.ndarray) -> None:
    t = np.linspace(-1, 1, 13)
    middle, y = side * (15 + c.wide / 4), -40
    x, slope = middle + wide * t, y - side * tilt * t * wide
    arch = (np.sqrt(1 - t * t) + 1 - t * t) / 2
    upper, lower = slope - high * 0.62 * arch, slope + high * 0.38 * arch
    eye = np.concatenate([polyline(x, upper), polyline(x, lower)[::-1]])
    c.label(eye, 2 if side < 0 else 4)

    c.paint(ribbon(x, upper - 3.2, 1.5), c.shade(0.5, 1.1), 0.6, 0.7)  # crease above the eye, then the lids
    lids = np.concatenate([polyline(x, upper - 3.6), polyline(x, lower + 1.5)[::-1]])
    c.paint(lids, c.shade(0.8, 1.05), 0.6, 1)
    c.paint(eye, WHITE * (0.9, 0.88, 0.86) * c.rng.uniform(0.78, 1))
    r, ix, iy = wide * 0.47, middle + look[0] * wide * 0.45, y + high * (0.25 * look[1] - 0.1)
    c.paint(ellipse(ix, iy, r, r), iris * 0.55, clip=eye)
    c.paint(ellipse(ix, iy, r * 0.82, r * 0.82), iris, clip=eye)
    c.paint(ellipse(ix, iy, r * 0.42, r * 0.42), BLACK, clip=eye)
    c.paint(ribbon(x, upper + 0.8, 2.6), BLACK, 0.45, 0.9, clip=eye)  # shadow of the upper lid
    c.paint(ellipse(ix + math.copysign(1.6, c.light), iy - r * 0.35, 1.1, 1.1), WHITE, 0.9, clip=eye)
    lash = mix(c.hair * 0.4, c.shade(0.25), 0.5)
    c.paint(ribbon(x, upper, 1 + np.abs(np.sin(t + 1))), lash, 0.9)
    c.paint(ribbon(x, lower, 0.9), c.shade(0.5, 1.15), 0.6)


def _eyebrows(c: Canvas) -> None:
    rng, t = c.rng, np.linspace(0, 1, 17)
    thick, tilt, arch = rng.uniform(4.5, 10), rng.normal(0.05, 0.12), rng.uniform(0, 7)
    colour = mix(np.minimum(c.hair * rng.uniform(0.5, 1), c.skin * 0.6), c.skin, rng.uniform(0, 0.3))
    height, inner, outer = rng.uniform(-64, -55), rng.uniform(9, 15), rng.uniform(48, 55)
    width = thick * np.sqrt(np.clip(1.15 * (1 - t**2.5) * (0.35 + 3 * t), 0.01, 1))
    for side in (-1, 1):
        x = side * (inner + (outer - inner) * t)
        y = height + rng.normal(0, 1) - tilt * 40 * t - arch * np.sin(np.pi * t**1.3) + 5 * t**3
        brow = ribbon(x, y, width)
        c.label(brow, 1 if side < 0 else 3)
        c.paint(brow, colour, rng.uniform(0.55, 0.8), 0.9)
        line = polyline(x, y)
        root = line[rng.integers(0, 16, 16)] + rng.uniform((-1, -0.25 * thick), (1, 0.35 * thick), (16, 2))
        tip = root + rng.uniform((3, -3), (6, 0.5), (16, 2)) * (side, 1)
        hairs = np.stack([np.add(root, (0, -0.7)), tip, np.add(root, (0, 0.7))], 1)
        c.paint(list(hairs), colour * 0.7, 0.6)


def _nose(c: Canvas) -> None:
    """Draw the nose (flanks, wings, nostrils, shadow, highlights); label it from nasion to below the nostrils."""
    rng, lift = c.rng, 4.0
    top, end, flare = rng.uniform(-42, -36), rng.uniform(5, 11), rng.uniform(8, 12)
    bridge, wing = rng.uniform(5.5, 8.5), rng.uniform(16, 22)
    x = [bridge, bridge * 0.95, bridge + 3, wing * 0.82, wing, wing * 0.8, wing * 0.35, 0]
    y = [top, top + 12, end - 24, end - flare, end - 6, end - 1, end + 1.5, end + 2.5]
    nose = smooth(mirrored(x, y), 5)
    c.label(nose, 5, lift)

    far = -1 if c.light > 0 else 1
    dark, glow = c.shade(0.45, 1.1), c.shade(1.22)
    c.paint(nose, c.shade(1.05), 0.5, 2, lift)
    for side, alpha in ((far, rng.uniform(0.5, 0.85)), (-far, rng.uniform(0.2, 0.45))):
        x = [bridge * 0.6, bridge, bridge + 3, wing, wing * 0.7, bridge * 0.7]
        flank = polyline(side * np.array(x), [top, top + 2, end - 24, end - 6, end - 2, end - 16])
        c.paint(flank, c.shade(0.6, 1.1), alpha, 1.8, lift)
        x = side * wing * np.array([0.8, 0.98, 0.98, 0.78])
        crease = ribbon(x, [end - flare - 1, end - 7, end - 4, end - 1], 1.8)
        c.paint(crease, dark, rng.uniform(0.5, 0.9), 0.7, lift)
        nostril = ellipse(side * wing * 0.43, end - 2.5, wing * 0.23, rng.uniform(1.4, 2.6), -side * 0.3)
        c.paint(nostril, c.shade(0.2, 1.1), 0.9, 0.7, lift)
    c.paint(ribbon(wing * np.array([-0.75, 0, 0.75]), [end, end + 2.5, end], 2.6), dark, 0.55, 1.2, lift)
    ridge = ribbon([0, -far * 0.5, -far], [top + 8, end - 22, end - 12], [2, 3.5, 4])
    c.paint(ridge, glow, rng.uniform(0.2, 0.7), 1.5, lift)
    c.paint(ellipse(-far * 2, end - 10, 3.5, 3), glow, rng.uniform(0.3, 0.8), 1.3, lift)


def _mouth(c: Canvas) -> None:
    """Draw upper lip, inner mouth and lower lip: three strips between four curves over t in [-1, 1]."""
    rng, t = c.rng, np.linspace(-1, 1, 25)
    wide, smile, y = rng.uniform(21, 30) + 0.15 * c.gape, rng.normal(3, 4), rng.uniform(20, 25) * c.long
    up, low, gap = rng.uniform(4, 9.5), rng.uniform(6, 12), 0.5 + c.gape / 2
    inside = np.sqrt(np.clip(1 - (t / 0.93) ** 2, 0, 1))
    bow = 1 - np.abs(t) ** 1.6 - 0.24 * np.exp(-((t / 0.16) ** 2))
    x, bend = wide * t, y - smile * t * t
    second, third = bend - 0.6 * gap * inside, bend + 1.4 * gap * inside
    first, fourth = second - up * np.maximum(bow, 0), third + low * (1 - t * t) ** 0.75
    edges = [polyline(x, edge) for edge in (first, second, third, fourth)]
    upper, inner, lower = (np.concatenate([a, b[::-1]]) for a, b in pairwise(edges))
    for strip, part in ((upper, 6), (lower, 8), (inner, 7)):
        c.label(strip, part)

    c.paint(upper, c.lip * 0.84, 0.95, 0.45)
    c.paint(lower, c.lip, 0.95, 0.45)
    gloss = ellipse(-math.copysign(3, c.light), y + 1.4 * gap + 0.45 * low, wide * 0.4, low * 0.16)
    c.paint(gloss, mix(c.lip, WHITE, 0.4), rng.uniform(0.1, 0.8), 1.2)
    dark = np.array([58, 22, 22]) * rng.uniform(0.4, 1.2)
    c.paint(inner, dark)
    if c.gape > 2.5 and rng.random() < 0.35:
        c.paint(ellipse(0, y + 1.5 * gap, wide * 0.5, gap * 0.8), np.array([176, 84, 84]), 0.9, 0.8, clip=inner)
    if c.gape > 2.5 and rng.random() < 0.7:
        depth = gap * rng.uniform(0.6, 2)
        teeth = np.concatenate([polyline(x, second - 1), polyline(x * 0.9, second + depth * inside)[::-1]])
        c.paint(teeth, WHITE * (0.95, 0.92, 0.87) * rng.uniform(0.8, 1), 1, 0.4, clip=inner)
        c.paint([ellipse(k * 4.6, y, 0.35, depth + 8) for k in range(-3, 4)], dark, 0.25, clip=inner)
    c.paint([ellipse(s * wide, y - smile, 2.4, 1.8) for s in (-1, 1)], c.shade(0.4, 1.1), 0.5, 0.9)


def _glasses(c: Canvas) -> None:
    rng, t = c.rng, np.linspace(0, 2 * np.pi, 41)
    colour, width = rng.uniform(10, 110, 3) * rng.uniform(0.2, 1), rng.uniform(1.2, 3.2)
    rx, ry, power = rng.uniform(18, 22), rng.uniform(12, 17), rng.uniform(0.55, 1)
    x, y = (r * np.sign(f) * np.abs(f) ** power for r, f in ((rx, np.cos(t)), (ry, np.sin(t))))
    tint = rng.uniform(0.35, 0.65) if rng.random() < 0.15 else 0.0
    for side in (-1, 1):
        c.paint(polyline(side * 30 + x, y - 38), colour if tint else WHITE, tint or 0.07, 0, 4)
        c.paint(ribbon(side * 30 + x, y - 38, width), colour, 0.95, 0, 4)
        c.paint(ribbon([side * (30 + rx), side * 1.03 * c.wide], [-42, -38], width), colour, 0.9)
    c.paint(ribbon([rx - 30, 0, 30 - rx], [-41, -44, -41], width), colour, 0.95, 0, 4)


# ---------------------------------------------------------------- faces, splits, the command


def draw_face(rng: np.random.Generator, size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Draw one face.

    Parameters
    ----------
    rng : numpy.random.Generator
        The only source of randomness; the same state gives the same bytes.
    size : int
        Side of the square image, pixels; eyebrows to chin span about half of it.

    Returns
    -------
    image : (size, size, 3) uint8
        RGB.
    maps : (size, size, 9) uint8
        Share of each class at each pixel; the shares sum to 255. Parts hidden
        by hair, glasses or a beard are labelled as if visible.
    """
    c = Canvas(rng, size)
    style = str(rng.choice(["short", "fringe", "long", "curly", "bald"], p=[0.34, 0.18, 0.26, 0.12, 0.1]))
    bearded = style != "long" and rng.random() < 0.3
    texture = hair_texture(c, style == "curly")
    background(c)
    scatter(c)
    if style != "bald":
        back_hair(c, texture, style)
    body(c)
    _head(c)
    blemishes(c)
    if bearded:
        _beard(c)
    _eyes(c)
    _nose(c)
    _mouth(c)
    if bearded and rng.random() < 0.7:
        _moustache(c)
    _eyebrows(c)
    light_head(c)
    if style != "bald":
        front_hair(c, texture, style)
    if rng.random() < 0.08:
        hat(c)
    if rng.random() < 0.15:
        _glasses(c)
    return develop(c), c.maps()


def face_generator(seed: int, stream: str, index: int) -> np.random.Generator:
    """Return the generator of face `index` in a stream.

    It is independent of all other faces and of their number.

    Parameters
    ----------
    seed : int
        At least 0.
    stream : {"exemplars", "tuning", "testing", "folder"}
    index : int
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(STREAMS.index(stream), index)))


def synthetic_faces(count: int, seed: int, split: str) -> list[Face]:
    """Draw the first `count` faces of a split.

    Parameters
    ----------
    count : int
        Number of faces; it does not affect the content of face i.
    seed : int
        At least 0.
    split : {"exemplars", "tuning", "testing"}
        Splits have no face in common.

    Returns
    -------
    list of Face
        256 x 256 pixels, named synthetic_00000 and so on.
    """
    drawn = (draw_face(face_generator(seed, split, index)) for index in range(count))
    return [Face(f"synthetic_{index:05d}", np.concatenate(face, axis=2)) for index, face in enumerate(drawn)]
