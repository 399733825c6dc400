"""Procedural faces with label maps in the layout of Smith et al.: a data set that needs no download.

Each face is drawn with one random generator. Pose, shapes, colours and lighting
vary. Distractors with the colours of the parts are added, so that a network has
to segment by shape and context (`icnn.evaluate.baselines` shows that position
or colour alone are not enough).

Coordinates are the head coordinates of `icnn.synthetic.shapes`.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from icnn.data.folder import Face
from icnn.data.write_folder import write_face
from icnn.synthetic.canvas import BLACK, IRIS, WHITE, Canvas, develop, light_head, mix, noise, pick, textured
from icnn.synthetic.shapes import Drawn, ellipse, mirrored, normal, polyline, ribbon, smooth, uniform
from icnn.synthetic.surroundings import back_hair, background, blemishes, body, front_hair, hair_texture, hat, scatter

#: Independent random streams of faces; the command uses "folder".
STREAMS = ("exemplars", "tuning", "testing", "folder")


def _head(c: Canvas) -> None:
    rng, t = c.rng, np.linspace(-1, 1, 9)
    c.paint(c.outline, textured(c.skin, 1 + 0.025 * noise(rng, c.size, 8, 20, 60)), lift=None)
    for side in (-1, 1):  # blush, shadow around the eye, fold from the wing of the nose to the corner of the mouth
        c.paint(ellipse(side * 36, 6, 17, 13), c.skin * (1.02, 0.8, 0.78), rng.uniform(0, 0.5), blur=7)
        c.paint(ellipse(side * 30, -44, 18, 12), c.shade(0.62, 1.08), rng.uniform(0.2, 0.65), blur=5)
        fold = ribbon(side * np.array([19, 27, 30 + c.gape * 0.2]), [2, 12, 26], 2)
        c.paint(fold, c.shade(0.6, 1.08), rng.uniform(0, 0.6), blur=1.2)
    c.paint(ellipse(0, 46 * c.long + c.gape, 15, 4), c.shade(0.62), rng.uniform(0.1, 0.5), blur=3)  # chin
    c.paint(ellipse(0, -84, 26, 10), c.shade(1.2), rng.uniform(0, 0.5), blur=8)  # forehead
    if rng.random() < 0.2:
        wrinkles = [ribbon(26 * t, y + 2 * np.cos(3 * t), 1.4) for y in (-92, -84, -76)]
        c.paint(wrinkles, c.shade(0.6), rng.uniform(0.2, 0.5), blur=0.6)


def _bristles(c: Canvas) -> np.ndarray:
    """Return the texture of short hair, (3, size, size) float32."""
    return textured(c.hair, np.clip(1 + 0.25 * noise(c.rng, c.size, 110), 0.3, 1.8))


def _beard(c: Canvas) -> None:
    """Draw a beard, from stubble to full, on the jaw; must precede the mouth."""
    hair = _bristles(c)
    x = np.array([1.3, 1.3, 0.95, 0.8, 0.5, 0]) * c.wide  # wider than the outline, which clips it
    jaw = smooth(mirrored(x, [110, -20, -14, 12, 21, 12]))
    c.paint(jaw, hair, c.rng.uniform(0.25, 0.9), blur=c.rng.uniform(2, 4), clip=c.outline)


def _moustache(c: Canvas) -> None:
    rng, t, hair = c.rng, np.linspace(-1, 1, 17), _bristles(c)
    droop, wide, thick = rng.uniform(2, 9), rng.uniform(20, 30), rng.uniform(4, 8)
    line = ribbon(wide * t, 15 * c.long + droop * t * t, thick * (1.05 - t**4))
    c.paint(line, hair, rng.uniform(0.5, 0.95), blur=0.9)


@dataclass(frozen=True)
class EyeShape(Drawn):
    """Both eyes."""

    wide: float = uniform(10, 13)  # half the distance between the corners
    high: float = normal(9.5, 2.8)  # opening between the lids; drawn within 2.2 .. 16
    gaze_x: float = uniform(-0.7, 0.7)  # from -1, left, to 1, right
    gaze_y: float = uniform(-0.7, 0.7)  # from -1, up, to 1, down
    tilt: float = normal(0.04, 0.06)  # slope from the inner to the outer corner
    upper: float = 0.62  # share of the opening above the line between the corners
    lower: float = 0.38  # share below
    iris: float = 0.47  # radius / wide
    bright: float = 0.82  # radius inside the dark rim / radius of the iris
    pupil: float = 0.42  # radius / radius of the iris


def _eyes(c: Canvas) -> None:
    rng, t, shape = c.rng, np.linspace(-1, 1, 13), EyeShape.draw(c.rng)
    wide, arch = shape.wide, (np.sqrt(1 - t * t) + 1 - t * t) / 2
    iris = IRIS[0] if c.skin.mean() < 130 and rng.random() < 0.9 else pick(rng, IRIS, 6)
    for side in (-1, 1):
        high = np.clip(shape.high, 2.2, 16) * rng.uniform(0.9, 1.1)
        middle, y = side * (15 + c.wide / 4), -40
        x, line = middle + wide * t, y - side * shape.tilt * t * wide
        upper, lower = line - high * shape.upper * arch, line + high * shape.lower * arch
        eye = np.concatenate([polyline(x, upper), polyline(x, lower)[::-1]])
        c.label(eye, 2 if side < 0 else 4)

        c.paint(ribbon(x, upper - 3.2, 1.5), c.shade(0.5, 1.1), 0.6, blur=0.7)  # crease above the eye, then the lids
        lids = np.concatenate([polyline(x, upper - 3.6), polyline(x, lower + 1.5)[::-1]])
        c.paint(lids, c.shade(0.8, 1.05), 0.6, blur=1)
        c.paint(eye, WHITE * (0.9, 0.88, 0.86) * rng.uniform(0.78, 1))
        r, ix, iy = wide * shape.iris, middle + shape.gaze_x * wide * 0.45, y + high * (0.25 * shape.gaze_y - 0.1)
        for radius, colour in ((r, iris * 0.55), (r * shape.bright, iris), (r * shape.pupil, BLACK)):
            c.paint(ellipse(ix, iy, radius, radius), colour, clip=eye)
        c.paint(ribbon(x, upper + 0.8, 2.6), BLACK, 0.45, blur=0.9, clip=eye)  # shadow of the upper lid
        glint = ellipse(ix + math.copysign(1.6, c.light), iy - r * 0.35, 1.1, 1.1)
        c.paint(glint, WHITE, 0.9, clip=eye)
        lash = mix(c.hair * 0.4, c.shade(0.25), 0.5)
        c.paint(ribbon(x, upper, 1 + np.abs(np.sin(t + 1))), lash, 0.9)
        c.paint(ribbon(x, lower, 0.9), c.shade(0.5, 1.15), 0.6)


@dataclass(frozen=True)
class EyebrowShape(Drawn):
    """Both eyebrows."""

    thick: float = uniform(4.5, 10)  # greatest width
    tilt: float = normal(0.05, 0.12)  # slope from the inner to the outer end
    arch: float = uniform(0, 7)  # height of the bend
    darkness: float = uniform(0.5, 1)  # factor of the hair's colour
    fade: float = uniform(0, 0.3)  # share of the skin in the colour
    y: float = uniform(-64, -55)  # of the inner end
    inner: float = uniform(9, 15)  # |x| of the inner end
    outer: float = uniform(48, 55)  # |x| of the outer end


def _eyebrows(c: Canvas) -> None:
    rng, t, shape = c.rng, np.linspace(0, 1, 17), EyebrowShape.draw(c.rng)
    colour = mix(np.minimum(c.hair * shape.darkness, c.skin * 0.6), c.skin, shape.fade)
    width = shape.thick * np.sqrt(np.clip(1.15 * (1 - t**2.5) * (0.35 + 3 * t), 0.01, 1))
    for side in (-1, 1):
        x = side * (shape.inner + (shape.outer - shape.inner) * t)
        y = shape.y + rng.normal(0, 1) - shape.tilt * 40 * t - shape.arch * np.sin(np.pi * t**1.3) + 5 * t**3
        brow = ribbon(x, y, width)
        c.label(brow, 1 if side < 0 else 3)
        c.paint(brow, colour, rng.uniform(0.55, 0.8), blur=0.9)
        spread = (-1, -0.25 * shape.thick), (1, 0.35 * shape.thick)
        root = polyline(x, y)[rng.integers(0, 16, 16)] + rng.uniform(*spread, (16, 2))
        tip = root + rng.uniform((3, -3), (6, 0.5), (16, 2)) * (side, 1)
        hairs = np.stack([np.add(root, (0, -0.7)), tip, np.add(root, (0, 0.7))], 1)
        c.paint(list(hairs), colour * 0.7, 0.6)


@dataclass(frozen=True)
class NoseShape(Drawn):
    """The nose."""

    top: float = uniform(-42, -36)  # y of the nasion
    end: float = uniform(5, 11)  # y of the base
    flare: float = uniform(8, 12)  # height of the wings
    bridge: float = uniform(5.5, 8.5)  # half its width
    wing: float = uniform(16, 22)  # half the width between the outer edges of the wings
    lift: float = 4.0  # above the ellipsoid of the head


def _nose(c: Canvas) -> None:
    """Draw the nose (flanks, wings, nostrils, shadow, highlights); label it from nasion to below the nostrils."""
    rng, shape = c.rng, NoseShape.draw(c.rng)
    top, end, bridge, wing, lift = shape.top, shape.end, shape.bridge, shape.wing, shape.lift
    # From the nasion down the bridge, around the wing and in to below the septum.
    x = [bridge, bridge * 0.95, bridge + 3, wing * 0.82, wing, wing * 0.8, wing * 0.35, 0]
    y = [top, top + 12, end - 24, end - shape.flare, end - 6, end - 1, end + 1.5, end + 2.5]
    nose = smooth(mirrored(x, y), 5)
    c.label(nose, 5, lift)

    far = -1 if c.light > 0 else 1  # the side away from the light
    dark, glow = c.shade(0.45, 1.1), c.shade(1.22)
    c.paint(nose, c.shade(1.05), 0.5, blur=2, lift=lift)
    for side, opacity in ((far, rng.uniform(0.5, 0.85)), (-far, rng.uniform(0.2, 0.45))):
        x = [bridge * 0.6, bridge, bridge + 3, wing, wing * 0.7, bridge * 0.7]
        flank = polyline(side * np.array(x), [top, top + 2, end - 24, end - 6, end - 2, end - 16])
        c.paint(flank, c.shade(0.6, 1.1), opacity, blur=1.8, lift=lift)
        x = side * wing * np.array([0.8, 0.98, 0.98, 0.78])
        crease = ribbon(x, [end - shape.flare - 1, end - 7, end - 4, end - 1], 1.8)
        c.paint(crease, dark, rng.uniform(0.5, 0.9), blur=0.7, lift=lift)
        nostril = ellipse(side * wing * 0.43, end - 2.5, wing * 0.23, rng.uniform(1.4, 2.6), -side * 0.3)
        c.paint(nostril, c.shade(0.2, 1.1), 0.9, blur=0.7, lift=lift)
    base = ribbon(wing * np.array([-0.75, 0, 0.75]), [end, end + 2.5, end], 2.6)
    c.paint(base, dark, 0.55, blur=1.2, lift=lift)
    ridge = ribbon([0, -far * 0.5, -far], [top + 8, end - 22, end - 12], [2, 3.5, 4])
    c.paint(ridge, glow, rng.uniform(0.2, 0.7), blur=1.5, lift=lift)
    c.paint(ellipse(-far * 2, end - 10, 3.5, 3), glow, rng.uniform(0.3, 0.8), blur=1.3, lift=lift)


@dataclass(frozen=True)
class MouthShape(Drawn):
    """The closed mouth of a face of usual length."""

    wide: float = uniform(21, 30)  # half the distance between the corners
    smile: float = normal(3, 4)  # height of the corners above the middle
    y: float = uniform(20, 25)  # of the line between the lips, in the middle
    upper: float = uniform(4, 9.5)  # height of the upper lip
    lower: float = uniform(6, 12)  # height of the lower lip


def _mouth(c: Canvas) -> None:
    """Draw upper lip, inner mouth and lower lip: three strips between four curves over t in [-1, 1]."""
    rng, t, shape = c.rng, np.linspace(-1, 1, 25), MouthShape.draw(c.rng)
    wide, y, gap = shape.wide + 0.15 * c.gape, shape.y * c.long, 0.5 + c.gape / 2
    opening = np.sqrt(np.clip(1 - (t / 0.93) ** 2, 0, 1))
    bow = 1 - np.abs(t) ** 1.6 - 0.24 * np.exp(-((t / 0.16) ** 2))
    x, bend = wide * t, y - shape.smile * t * t
    second, third = bend - 0.6 * gap * opening, bend + 1.4 * gap * opening
    first, fourth = second - shape.upper * np.maximum(bow, 0), third + shape.lower * (1 - t * t) ** 0.75
    edges = [polyline(x, edge) for edge in (first, second, third, fourth)]
    upper, inner, lower = (np.concatenate([a, b[::-1]]) for a, b in pairwise(edges))
    for strip, part in ((upper, 6), (lower, 8), (inner, 7)):
        c.label(strip, part)

    c.paint(upper, c.lip * 0.84, 0.95, blur=0.45)
    c.paint(lower, c.lip, 0.95, blur=0.45)
    gloss = -math.copysign(3, c.light), y + 1.4 * gap + 0.45 * shape.lower, wide * 0.4, shape.lower * 0.16
    c.paint(ellipse(*gloss), mix(c.lip, WHITE, 0.4), rng.uniform(0.1, 0.8), blur=1.2)
    dark = np.array([58, 22, 22]) * rng.uniform(0.4, 1.2)
    c.paint(inner, dark)
    if c.gape > 2.5 and rng.random() < 0.35:
        tongue = ellipse(0, y + 1.5 * gap, wide * 0.5, gap * 0.8)
        c.paint(tongue, np.array([176, 84, 84]), 0.9, blur=0.8, clip=inner)
    if c.gape > 2.5 and rng.random() < 0.7:
        length, white = gap * rng.uniform(0.6, 2), WHITE * (0.95, 0.92, 0.87) * rng.uniform(0.8, 1)
        teeth = np.concatenate([polyline(x, second - 1), polyline(x * 0.9, second + length * opening)[::-1]])
        c.paint(teeth, white, blur=0.4, clip=inner)
        c.paint([ellipse(k * 4.6, y, 0.35, length + 8) for k in range(-3, 4)], dark, 0.25, clip=inner)
    corners = [ellipse(side * wide, y - shape.smile, 2.4, 1.8) for side in (-1, 1)]
    c.paint(corners, c.shade(0.4, 1.1), 0.5, blur=0.9)


def _glasses(c: Canvas) -> None:
    rng, t, lift = c.rng, np.linspace(0, 2 * np.pi, 41), 4
    colour, width = rng.uniform(10, 110, 3) * rng.uniform(0.2, 1), rng.uniform(1.2, 3.2)
    rx, ry, power = rng.uniform(18, 22), rng.uniform(12, 17), rng.uniform(0.55, 1)  # a superellipse
    x, y = (r * np.sign(f) * np.abs(f) ** power for r, f in ((rx, np.cos(t)), (ry, np.sin(t))))
    tint = rng.uniform(0.35, 0.65) if rng.random() < 0.15 else 0.0  # opacity of dark glasses
    for side in (-1, 1):
        c.paint(polyline(side * 30 + x, y - 38), colour if tint else WHITE, tint or 0.07, lift=lift)
        c.paint(ribbon(side * 30 + x, y - 38, width), colour, 0.95, lift=lift)
        c.paint(ribbon([side * (30 + rx), side * 1.03 * c.wide], [-42, -38], width), colour, 0.9)
    c.paint(ribbon([rx - 30, 0, 30 - rx], [-41, -44, -41], width), colour, 0.95, lift=lift)


# ---------------------------------------------------------------- faces, splits


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


def face_name(index: int) -> str:
    """Return the name of face `index`: synthetic_00000 and so on."""
    return f"synthetic_{index:05d}"


def synthetic_face(seed: int, split: str, index: int) -> Face:
    """Draw face `index` of a split, 256 x 256 pixels; see `face_generator`."""
    return Face(face_name(index), np.concatenate(draw_face(face_generator(seed, split, index)), axis=2))


def write_synthetic_face(root: Path, seed: int, index: int) -> str:
    """Draw face `index` of the stream "folder", write it in the layout of Smith et al., and return its name."""
    write_face(root, face_name(index), *draw_face(face_generator(seed, "folder", index)))
    return face_name(index)


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
    """
    return [synthetic_face(seed, split, index) for index in range(count)]
