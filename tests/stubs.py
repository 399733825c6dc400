"""Stub networks, and faces that they know, for several test files."""

import numpy as np

from icnn.data.folder import Face
from icnn.model.centres import part_centres
from icnn.model.pipeline import Pipeline
from icnn.stages import NETWORKS, STAGE2


class Listener:
    """A stub network that keeps what it is given and sees background everywhere."""

    def __init__(self, labels):
        self.labels, self.seen = labels, []

    def __call__(self, images):
        self.seen.append(images)
        return np.zeros((len(images), self.labels, *images.shape[2:]), np.float32)


# ---------------------------------------------------------------- faces in colours

#: Colour of each kind of part, by which a stub network knows it: a normalised channel is positive where it is lit.
COLOURS = {
    "eyebrow": (1, 0, 0),
    "eye": (0, 1, 0),
    "nose": (0, 0, 1),
    "upper_lip": (1, 1, 0),
    "inner_mouth": (1, 0, 1),
    "lower_lip": (0, 1, 1),
}
KINDS = ("eyebrow", "eye", "eyebrow", "eye", "nose", "upper_lip", "inner_mouth", "lower_lip")
#: x, y, width and height of ids 1..8, relative to the middle of the face. Not symmetric.
BOXES = (
    (-46, -46, 22, 6),
    (-41, -33, 15, 8),
    (21, -43, 25, 6),
    (25, -32, 16, 9),
    (-9, -26, 17, 25),
    (-17, 14, 36, 6),
    (-14, 20, 30, 5),
    (-15, 25, 32, 8),
)


def coloured_face(shape=(256, 256), middle=None, missing=()):
    """A black photograph whose parts have their kinds' colours; and the same in its labels."""
    middle = middle or (shape[1] // 2 + 5, shape[0] // 2 - 3)
    pixels = np.zeros((*shape, 12), np.uint8)
    pixels[..., 3] = 255
    for part, (x, y, width, height) in enumerate(BOXES, 1):
        left, top = x + middle[0], y + middle[1]
        if part not in missing:
            box = slice(max(0, top), max(0, top + height)), slice(max(0, left), max(0, left + width))
            pixels[box] = 0
            pixels[(*box, slice(3))] = np.multiply(COLOURS[KINDS[part - 1]], 255)
            pixels[(*box, 3 + part)] = 255
    return Face("{}x{}".format(*shape), pixels)


def usual_layout():
    """Centres of `coloured_face` in a square of side 1: what training on such faces leaves in the weights."""
    return (part_centres(coloured_face(middle=(128, 128)).labels()) + 0.5) / 256


def grown(face, shape):
    """A face of another size, pixels and maps resampled by nearest neighbours, its shape (H, W)."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(shape, face.pixels.shape, strict=False))
    return Face(face.name, np.ascontiguousarray(face.pixels[rows][:, columns]))


# ---------------------------------------------------------------- networks that know them


def is_kind(images, kind):
    """(n, S, S) bool: pixels of a kind's colour."""
    return ((images > 0) == np.array(COLOURS[kind], bool)[:, None, None]).all(1)


def knows_places(images):
    """Stage 1 by colour, sides by the half of the square."""
    labels = np.zeros((len(images), 64, 64), int)
    left = np.arange(64) < 32
    for part, kind in enumerate(KINDS, 1):
        side = {1: left, 2: left, 3: ~left, 4: ~left}.get(part, left | True)
        labels[is_kind(images, kind) & side] = part
    return 10.0 * (labels[:, None] == np.arange(9)[:, None, None])


def knows_parts(network):
    """A stage-2 network that labels by colour."""

    def predict(images):
        hits = np.stack([is_kind(images, measure) for measure in NETWORKS[network].measures], 1)
        return np.concatenate([~hits.any(1, keepdims=True), hits], 1) * np.float32(10)

    return predict


def oracle(**replaced):
    networks = {"stage1": knows_places, **{name: knows_parts(name) for name in STAGE2}}
    return Pipeline({**networks, **replaced}, layout=usual_layout())
