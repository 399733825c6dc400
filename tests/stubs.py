"""Stub networks that several test files share."""

import numpy as np


class Listener:
    """A stub network that keeps what it is given and sees background everywhere."""

    def __init__(self, labels):
        self.labels, self.seen = labels, []

    def __call__(self, images):
        self.seen.append(images)
        return np.zeros((len(images), self.labels, *images.shape[2:]), np.float32)
