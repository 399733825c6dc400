"""Network that finds faces of one size at any angle, for `icnn.train.finder` and `icnn.parse.finder`.

It is fully convolutional: it maps pixels to one class for each cell of `STRIDE` x `STRIDE` pixels. Class 0 is
background; class k = 1..`ROLLS` is the middle of a face whose roll is nearest to (k - 1) 360 / `ROLLS` degrees. Roll
is 0 for an upright face and grows counter-clockwise, as seen.
"""

import numpy as np

from minicnn import Graph
from minicnn.layers import Conv2D, Input, MaxPool2D, Tanh

#: Length of the faces that the network finds, pixels; `icnn.data.face_box.Box` says what a face's length is.
FACE_LENGTH = 24
#: Side of an output cell, pixels.
STRIDE = 4
ROLLS = 8
_CHANNELS = (12, 24, 32, 32)


def finder_graph(size: int) -> Graph:
    """Build the network.

    Parameters
    ----------
    size : int
        Side of the square input in pixels, a multiple of `STRIDE`.

    Returns
    -------
    Graph
        Maps images (3, size, size) to logits (1 + ROLLS, size / STRIDE, size / STRIDE).
    """
    graph = Graph(network="finder")
    source = graph.add("image", Input(3, size, size))
    for number, channels in enumerate(_CHANNELS):
        graph.add(f"conv{number}", Conv2D(channels, 5), source)
        source = graph.add(f"tanh{number}", Tanh(), f"conv{number}")
        if 2 ** (number + 1) <= STRIDE:
            source = graph.add(f"pool{number}", MaxPool2D(2, 2), source)
    graph.add("output", Conv2D(1 + ROLLS, 5), source)
    return graph


def network_input(pixels: np.ndarray) -> np.ndarray:
    """Convert pixels (..., H, W, 3) in [0, 255] to the network's input, (..., 3, H, W) float32 in [-2, 2]."""
    return np.moveaxis((np.asarray(pixels, np.float32) - np.float32(127.5)) * np.float32(1 / 64), -1, -3)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Compute the softmax over axis 1 of logits (n, 1 + ROLLS, H, W)."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
