"""Softmax cross-entropy over the labels of every pixel (Sec. 2.4 and 2.5)."""

from types import ModuleType

import numpy as np

from minicnn.layers import Shape


class SoftmaxCrossEntropy:
    """Weighted mean over pixels of -log softmax(z)[label]: sum(w l) / sum(w).

    Owns its buffers, allocated once for `batch` images.

    Parameters
    ----------
    kernels : module
        Backend.
    shape : (L, H, W)
        Of one image's logits.
    batch : int
    dtype : str
    """

    def __init__(self, kernels: ModuleType, shape: Shape, batch: int, dtype: str):
        labels, height, width = shape
        pixels = (batch, height, width)
        self._kernels = kernels
        self._count = labels
        self._probabilities = kernels.zeros((batch, *shape), dtype)
        self._labels = kernels.zeros(pixels, "int32")
        self._weights = kernels.zeros(pixels, dtype)
        self._total = kernels.zeros((), dtype)
        self.value = kernels.zeros((), dtype)

    def forward(self, z, labels: np.ndarray, weights: np.ndarray | None, s):
        """Compute the loss of logits `z` (n, L, H, W) and return it, a 0-d backend array.

        Parameters
        ----------
        labels : (n, H, W) integers in [0, L)
        weights : (n, H, W) of at least 0, or None for 1 everywhere

        Raises
        ------
        ValueError
            For other shapes, labels out of range, negative weights, or weights that sum to 0.
        """
        n, _, height, width = z.shape
        labels = np.asarray(labels)
        if labels.shape != (n, height, width) or labels.dtype.kind not in "iu":
            raise ValueError(
                f"expected integer labels of shape {(n, height, width)}, got {labels.dtype} {labels.shape}"
            )
        if labels.min() < 0 or labels.max() >= self._count:
            raise ValueError(f"expected labels from 0 to {self._count - 1}, got {labels.min()} to {labels.max()}")
        if weights is None:
            self._weights[:n] = 1
        else:
            weights = np.asarray(weights)
            if weights.shape != labels.shape:
                raise ValueError(f"expected weights of shape {labels.shape}, got {weights.shape}")
            if not weights.min() >= 0 or not weights.max().astype(self._weights.dtype) > 0:
                raise ValueError("expected weights of at least 0 whose sum is not 0")
            self._kernels.upload(self._weights[:n], weights)
        self._kernels.upload(self._labels[:n], labels)
        self._kernels.softmax_cross_entropy_forward(
            self.value, self._total, self._probabilities[:n], z, self._labels[:n], self._weights[:n], s
        )
        return self.value

    def backward(self, dz, s) -> None:
        """Write the gradient of the last loss into `dz` (n, L, H, W)."""
        n = dz.shape[0]
        self._kernels.softmax_cross_entropy_backward(
            dz, self._probabilities[:n], self._labels[:n], self._weights[:n], self._total, s
        )
