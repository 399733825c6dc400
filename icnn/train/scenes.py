"""Training scenes for the face finder: labelled faces at random places, sizes and angles on other photographs.

A scene is a stack of layers. Each layer is a photograph, turned, scaled and mirrored at random, of which a rectangle
or a soft disc is visible. Discs also show pieces without a face, so that the edge of a layer says nothing about faces.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from icnn.config import Augment
from icnn.data.face_box import fit_face, length_of
from icnn.data.folder import Face
from icnn.data.geometry import affine
from icnn.data.photometric import Appearance
from icnn.data.resample import resize, warp
from icnn.errors import InputError
from icnn.model.finder import FACE_LENGTH, ROLLS, STRIDE

SIZE = 96  # side of a scene, pixels
_LARGEST = 640  # longer side of a stored photograph without a face, pixels
_STORED = 64  # length of a face in a stored photograph, pixels: several times that of a face in a scene

#: Faces whose log2 of the length differs from that of `FACE_LENGTH` by up to the first number are labelled; up to the
#: second they are ignored, beyond it they are background. The pyramid's levels are half an octave apart.
_LABELLED, _IGNORED = 0.3, 0.65
_DISC, _RING = 0.2, 0.4  # radii of the labelled disc and of the ignored ring around it, relative to the length
_VISIBLE, _HIDDEN = 0.75, 0.35  # visible shares of a face from which on it is labelled, and up to which it is none

_AUGMENT = Augment(
    gamma=0.5, saturation=(0.4, 1.3), grey=0.2, light=0.3, blur=1.0, noise=12.0, jpeg=0.4, quality=(30.0, 95.0),
    occlusion=0.0,
)  # fmt: skip


class Source(NamedTuple):
    """Photograph with one face, or without.

    Attributes
    ----------
    image : (H, W, 3) uint8
    x, y, length : float
        The face's box, pixels.
    roll : float
        Degrees, counter-clockwise; NaN without a face: the box then only says at which scale the photograph is shown.
    """

    image: np.ndarray
    x: float
    y: float
    length: float
    roll: float


class Scene(NamedTuple):
    """Drawn scene.

    Attributes
    ----------
    values : (SIZE, SIZE, 3) uint8
    labels : (SIZE / STRIDE, SIZE / STRIDE) int32
        Classes of the cells, see `icnn.model.finder`.
    weights : (SIZE / STRIDE, SIZE / STRIDE) float32
        0 for cells that count as neither face nor background, else 1.
    """

    values: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


class _Placed(NamedTuple):
    """Face in a scene: box and roll as in `Source`, and the number of its layer."""

    x: float
    y: float
    length: float
    roll: float
    layer: int


def sources_of(faces: Iterable[Face]) -> list[Source]:
    """Locate the faces by their part maps, and scale them to `_STORED` pixels; faces without parts are left out."""
    sources = []
    for face in faces:
        try:
            found = fit_face(face.labels(), face.name)
        except InputError:
            continue
        scale = min(1.0, _STORED / length_of(found))
        height, width = (max(1, round(side * scale)) for side in face.image.shape[:2])
        image = np.rint(resize(face.image, (height, width))).astype(np.uint8)
        x, y = ((found(np.zeros((1, 2)))[0] + 0.5) * scale - 0.5).tolist()
        roll = -math.degrees(np.angle(found.a))
        sources.append(Source(image, x, y, length_of(found) * scale, roll))
    return sources


def negative_of(image: np.ndarray) -> Source:
    """Return a photograph without a face as a source; its longer side has at most `_LARGEST` pixels."""
    height, width = image.shape[:2]
    scale = min(1.0, _LARGEST / max(height, width))
    if scale < 1:
        image = np.rint(resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))).astype(np.uint8)
    height, width = image.shape[:2]
    return Source(image, (width - 1) / 2, (height - 1) / 2, _STORED, math.nan)


def draw_scene(sources: Sequence[Source], rng: np.random.Generator) -> Scene:
    """Draw one scene."""
    values = _texture(rng)
    owner = np.zeros((SIZE, SIZE), np.intp)  # number of the layer that is visible
    placed = []
    for layer in range(1, int(rng.integers(4, 10))):
        source = sources[int(rng.integers(len(sources)))]
        placed.append(_add_layer(values, owner, source, layer, rng))
    appearance = Appearance.random(rng, _AUGMENT)
    values = appearance.apply(values, np.ones((SIZE, SIZE), bool), rng)
    return Scene(np.clip(np.rint(values), 0, 255).astype(np.uint8), *_label(placed, owner))


def turned(scene: Scene, rng: np.random.Generator) -> Scene:
    """Turn a scene by quarter turns, mirror it and change its colours, at random; `values` become float32."""
    quarters = int(rng.integers(4))
    values, labels, weights = (np.rot90(array, quarters) for array in scene)
    bins = labels - 1 + quarters * ROLLS // 4
    if rng.random() < 0.5:
        values, bins, labels, weights = (array[:, ::-1] for array in (values, -bins, labels, weights))
    values = (values - np.float32(127.5)) * np.float32(math.exp(rng.normal(0, 0.1))) + np.float32(127.5)
    values += rng.normal(0, 6, 3).astype(np.float32)
    return Scene(values, np.where(labels > 0, bins % ROLLS + 1, 0).astype(np.int32), weights)


def _texture(rng: np.random.Generator) -> np.ndarray:
    """Draw a background: random colours on a random grid, enlarged with or without smoothing."""
    cells = int(2 ** rng.uniform(0, 6))
    colours = rng.uniform(0, 255, 3) + rng.uniform(0, 80) * rng.standard_normal((cells, cells, 3))
    colours = np.clip(colours, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        step = -(-SIZE // cells)
        return colours.repeat(step, 0).repeat(step, 1)[:SIZE, :SIZE].astype(np.float32)
    return resize(colours, (SIZE, SIZE))


def _draw_length(layer: int, rng: np.random.Generator) -> float:
    """Draw a face's length; the first layers are mostly large, to be the background of the others."""
    if rng.random() < (0.25 if layer <= 2 else 0.75):
        return FACE_LENGTH * 2 ** rng.uniform(-0.33, 0.33)
    low, high = (34, 160) if layer <= 2 or rng.random() < 0.5 else (8, 19)
    return low * (high / low) ** rng.random()


def _add_layer(values: np.ndarray, owner: np.ndarray, source: Source, layer: int, rng: np.random.Generator) -> _Placed:
    """Blend a photograph into `values`, note in `owner` where it is visible, and return its face."""
    length = _draw_length(layer, rng)
    turn = rng.normal(0, 15) if rng.random() < 0.4 else rng.uniform(-180, 180)
    mirror = -1 if rng.random() < 0.5 else 1
    step = source.length / length  # stored pixels per pixel of the scene
    cosine, sine = math.cos(math.radians(turn)) * step, math.sin(math.radians(turn)) * step
    linear = np.array([[mirror * cosine, -mirror * sine], [sine, cosine]])
    soft = rng.random() < 0.4
    middle = np.array([source.x, source.y])
    if (soft and rng.random() < 0.4) or length > 2 * FACE_LENGTH:  # show what surrounds the face, or a part of it
        height, width = source.image.shape[:2]
        middle = rng.uniform(0, 1, 2) * (width, height)
    centre = rng.uniform(0, SIZE, 2)
    radius = length * rng.uniform(0.62, 1.6) if soft else 2.0 * SIZE
    to_scene = np.linalg.inv(linear)
    corners = (np.array([(0, 0), (1, 0), (0, 1), (1, 1)]) * source.image.shape[1::-1] - middle) @ to_scene.T + centre
    low = np.clip(np.maximum(corners.min(0), centre - radius - 3), 0, SIZE).astype(int)
    high = np.clip(np.minimum(corners.max(0), centre + radius + 3) + 1, low, SIZE).astype(int)
    part = slice(low[1], high[1]), slice(low[0], high[0])
    new, inside = warp(source.image, affine(linear, centre - low, middle), (high[1] - low[1], high[0] - low[0]))
    x, y = (np.arange(a, b, dtype=np.float32) - np.float32(c) for a, b, c in zip(low, high, centre, strict=True))
    alpha = np.clip((radius - np.hypot(x, y[:, None])) / rng.uniform(1, 5) + 0.5, 0, 1) * inside
    tint = np.float32(127.5 + rng.normal(0, 25) + rng.normal(0, 8, 3))
    new = np.clip((new - 127.5) * math.exp(rng.normal(0, 0.25)) + tint, 0, 255)
    values[part] += alpha[..., None] * (new - values[part])
    owner[part][alpha > 0.5] = layer
    x, y = to_scene @ ((source.x, source.y) - middle) + centre
    return _Placed(float(x), float(y), length, turn + mirror * source.roll, layer)


def _label(placed: Sequence[_Placed], owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label the cells in the middle of each face that is visible; weights are 0 where neither class is right."""
    cells = SIZE // STRIDE
    labels, weights = np.zeros((cells, cells), np.int32), np.ones((cells, cells), np.float32)
    at = np.arange(cells) * STRIDE + (STRIDE - 1) / 2
    rows, columns = np.ogrid[:SIZE, :SIZE]
    for face in placed:
        size = abs(math.log2(face.length / FACE_LENGTH))
        if size > _IGNORED or math.isnan(face.roll):
            continue
        reach = 0.45 * face.length
        near = (columns - face.x) ** 2 + (rows - face.y) ** 2 < reach**2
        visible = np.count_nonzero(near & (owner == face.layer)) / (math.pi * reach**2)
        if visible < _HIDDEN:
            continue
        distance = np.hypot(at - face.x, (at - face.y)[:, None]) / face.length
        weights[distance < _RING] = 0
        if size <= _LABELLED and visible >= _VISIBLE:
            labels[distance < _DISC] = 1 + round(face.roll * ROLLS / 360) % ROLLS
            weights[distance < _DISC] = 1
    return labels, weights
