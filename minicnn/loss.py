"""Per-pixel softmax cross-entropy loss (Sec. 2.4 and 2.5)."""

from collections.abc import Callable

import numpy as np

from minicnn.kernels.backend import Backend
from minicnn.layers import Shape


class SoftmaxCrossEntropy:
    """Weighted mean over pixels of -log softmax(z)[label]: sum(w l) / sum(w).

    All buffers are allocated once, for `batch` images.

    Parameters
    ----------
    kernels : module
        Backend.
    shape : (L, H, W)
        Shape of one image's logits; L is the number of classes.
    batch : int
        Maximum number of images.
    dtype : str
        Of logits, weights and loss.

    Attributes
    ----------
    labels, weights : (batch, H, W) backend arrays, int32 and `dtype`
        Inputs of the calls, which read the first n entries for n images.
    value, total : 0-d backend arrays
        Last loss, and the sum of its weights, which the gradient is divided by.
    """

    def __init__(self, kernels: Backend, shape: Shape, batch: int, dtype: str):
        count, height, width = shape
        pixels = (batch, height, width)
        self._kernels = kernels
        self._count = count
        self._probabilities = kernels.zeros((batch, *shape), dtype)
        self.labels = kernels.zeros(pixels, "int32")
        self.weights = kernels.zeros(pixels, dtype)
        self.total = kernels.zeros((), dtype)
        self.value = kernels.zeros((), dtype)

    def checked(self, n: int, labels: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Validate the labels and weights of n images and return them, ready to be copied into the buffers.

        Parameters
        ----------
        n : int
            Number of images.
        labels : (n, H, W) integers in [0, L)
        weights : (n, H, W) of at least 0, or None for 1 everywhere

        Raises
        ------
        ValueError
            For other shapes, labels out of range, negative weights, or weights that sum to 0.
        """
        expected = (n, *self.labels.shape[1:])
        labels = np.asarray(labels)
        if labels.shape != expected or labels.dtype.kind not in "iu":
            raise ValueError(f"expected integer labels of shape {expected}, got {labels.dtype} {labels.shape}")
        if labels.min() < 0 or labels.max() >= self._count:
            raise ValueError(f"expected labels from 0 to {self._count - 1}, got {labels.min()} to {labels.max()}")
        if weights is None:
            return labels, np.broadcast_to(np.ones((), self.weights.dtype), expected)
        weights = np.asarray(weights)
        if weights.shape != expected:
            raise ValueError(f"expected weights of shape {expected}, got {weights.shape}")
        if not weights.min() >= 0 or not weights.max().astype(self.weights.dtype) > 0:
            raise ValueError("expected weights of at least 0 whose sum is not 0")
        return labels, weights

    def forward(self, z, s) -> Callable[[], None]:
        """Return a call that computes `value` from the logits z (n, L, H, W), with workspace s."""
        n = z.shape[0]
        arrays = self.value, self.total, self._probabilities[:n], z, self.labels[:n], self.weights[:n], s
        return self._kernels.bind("softmax_cross_entropy_forward", *arrays)

    def backward(self, dz, s) -> Callable[[], None]:
        """Return a call that writes the gradient of `value` by the logits into dz (n, L, H, W), with workspace s."""
        n = dz.shape[0]
        arrays = dz, self._probabilities[:n], self.labels[:n], self.weights[:n], self.total, s
        return self._kernels.bind("softmax_cross_entropy_backward", *arrays)
