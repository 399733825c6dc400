"""Layers: frozen dataclasses that own no arrays. Each has a shape rule, a forward call and a backward call.

Shapes are those of one image, (C, H, W); every array has the batch dimension
N in front.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Shape = tuple[int, int, int]
Array = Any  # a backend's array; NumPy's for "numpy" and "numba"


class ShapeError(ValueError):
    """Inputs that do not fit a layer; the message names the layer, the expected value and the actual one."""


@dataclass(frozen=True)
class Layer:
    """Base class of all layers. `backward_reads` lists what backward reads besides dy: "x" inputs, "y" output."""

    @property
    def backward_reads(self) -> str:
        return ""

    def output_shape(self, *inputs: Shape) -> Shape:
        """Return the output shape (C, H, W) for the given input shapes; raise ShapeError if they do not fit."""
        raise NotImplementedError

    def parameter_shapes(self, *inputs: Shape) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes of the learnt arrays; most layers have none."""
        return {}

    def initialise(self, name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Draw the initial values (float64, of shape `shape`) of the learnt array `name`."""
        raise NotImplementedError

    def kernel_sizes(self, *inputs: Shape) -> dict[str, dict[str, int]]:
        """Return the kernels that need a workspace, with sizes by shape letter (`minicnn.kernels`), without N."""
        return {}

    def forward(self, kernels: Any, y: Array, xs: Sequence[Array], p: Mapping[str, Array], s: Array):
        """Compute the output and write it into `y`.

        Parameters
        ----------
        kernels : module or object
            Backend (`minicnn.kernels`), or a stand-in that records the calls for one.
        y, xs : (N, C, H, W) array and sequence of such arrays
            Output and inputs.
        p : mapping of names to arrays
            The layer's parameters.
        s : 1-d array
            Workspace.
        """
        raise NotImplementedError

    def backward(
        self,
        kernels: Any,
        dxs: Sequence[Array | None],
        dp: Mapping[str, Array],
        dy: Array,
        y: Array,
        xs: Sequence[Array],
        p: Mapping[str, Array],
        s: Array,
        adds: Sequence[bool],
    ):
        """Compute the gradients of the inputs and of the parameters; the other arguments are those of `forward`.

        Parameters
        ----------
        dxs : sequence of (N, C, H, W) arrays or None
            Written: gradients of the inputs; None for an input whose gradient no upstream node needs.
        dp : mapping of names to arrays
            Written: gradients of the parameters.
        dy : (N, C, H, W) array
            Gradient of the output.
        adds : sequence of bool
            For each input, add to its gradient in `dxs` instead of overwriting it.
        """
        raise NotImplementedError


def _one_input(inputs: tuple[Shape, ...]) -> Shape:
    if len(inputs) != 1:
        raise ShapeError(f"expected 1 input, got {len(inputs)}")
    return inputs[0]


@dataclass(frozen=True)
class Input(Layer):
    """Source node of the graph: the images, (channels, height, width)."""

    channels: int
    height: int
    width: int

    def output_shape(self, *inputs: Shape) -> Shape:
        if inputs:
            raise ShapeError(f"expected no inputs, got {len(inputs)}")
        return self.channels, self.height, self.width


@dataclass(frozen=True)
class Conv2D(Layer):
    """2-d cross-correlation plus bias, eq. (1) without f: zero padding, stride 1, output of the input's H x W.

    Parameters
    ----------
    filters : int
        Number O of output channels.
    window : int
        Kernel size K, any positive number; the weights are (O, C, K, K) and are not flipped.
    initial : "glorot_uniform" or "fan_in_uniform"
        Weights are drawn uniformly from [-a, a) with a = sqrt(6 / (fan_in + fan_out)), or a = sqrt(0.5 / fan_in) as in
        the released program. Biases start at 0.
    """

    filters: int
    window: int
    initial: str = "glorot_uniform"

    @property
    def backward_reads(self) -> str:
        return "x"

    def output_shape(self, *inputs: Shape) -> Shape:
        _, height, width = _one_input(inputs)
        if self.filters < 1 or self.window < 1:
            raise ShapeError(f"expected positive filters and window, got {self.filters} and {self.window}")
        return self.filters, height, width

    def parameter_shapes(self, *inputs: Shape) -> dict[str, tuple[int, ...]]:
        channels = _one_input(inputs)[0]
        return {"weight": (self.filters, channels, self.window, self.window), "bias": (self.filters,)}

    def initialise(self, name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        if name == "bias":
            return np.zeros(shape)
        filters, channels, window, _ = shape
        fan_in, fan_out = channels * window**2, filters * window**2
        limits = {"glorot_uniform": 6 / (fan_in + fan_out), "fan_in_uniform": 0.5 / fan_in}
        if self.initial not in limits:
            raise ValueError(f"unknown initial {self.initial!r}: expected one of {', '.join(limits)}")
        limit = np.sqrt(limits[self.initial])
        return rng.uniform(-limit, limit, shape)

    def kernel_sizes(self, *inputs: Shape) -> dict[str, dict[str, int]]:
        channels, height, width = _one_input(inputs)
        size = {"C": channels, "O": self.filters, "K": self.window, "H": height, "W": width}
        kernels = "conv2d_forward", "conv2d_tanh_forward", "conv2d_backward_data", "conv2d_backward_weights"
        return dict.fromkeys(kernels, size)

    def forward(self, kernels, y, xs, p, s):
        kernels.conv2d_forward(y, xs[0], p["weight"], p["bias"], s)

    def backward(self, kernels, dxs, dp, dy, y, xs, p, s, adds):
        kernels.conv2d_backward_weights(dp["weight"], dp["bias"], dy, xs[0], s)
        if dxs[0] is not None:
            kernels.conv2d_backward_data(dxs[0], dy, p["weight"], s, adds[0])


@dataclass(frozen=True)
class MaxPool2D(Layer):
    """Max pooling with kernel size `window` (Sec. 2.2: 2 x 2, stride 2).

    `border` is the padding: the number of rows above and of columns to the left of the plane that the first windows
    include. A padded position is never the maximum. The released program pools 3 x 3 with stride 2 and a padding of 1,
    at the top and left only. The gradient of a window goes to its first maximum in row-major order.
    """

    window: int = 2
    stride: int = 2
    border: int = 0

    @property
    def backward_reads(self) -> str:
        return "xy"

    def output_shape(self, *inputs: Shape) -> Shape:
        channels, height, width = _one_input(inputs)
        if not 0 <= self.border < self.window:
            raise ShapeError(f"expected a border from 0 to window - 1 = {self.window - 1}, got {self.border}")
        if height % self.stride or width % self.stride:
            raise ShapeError(f"expected a plane divisible by the stride {self.stride}, got {height} x {width}")
        if self.window - self.border > self.stride:
            raise ShapeError(f"a window of {self.window} with border {self.border} reaches past the last pixel")
        return channels, height // self.stride, width // self.stride

    def kernel_sizes(self, *inputs: Shape) -> dict[str, dict[str, int]]:
        channels, height, width = self.output_shape(*inputs)
        return {"max_pool2d_backward": {"C": channels, "P": height, "Q": width}}

    def forward(self, kernels, y, xs, p, s):
        kernels.max_pool2d_forward(y, xs[0], self.window, self.stride, self.border)

    def backward(self, kernels, dxs, dp, dy, y, xs, p, s, adds):
        kernels.max_pool2d_backward(
            dxs[0], dy, xs[0], y, s, self.window, self.stride, self.border, adds[0]
        )  # fmt: skip


@dataclass(frozen=True)
class MeanPool2D(Layer):
    """Average pooling over disjoint window x window tiles (the input pyramid of Sec. 2.6)."""

    window: int = 2

    def output_shape(self, *inputs: Shape) -> Shape:
        channels, height, width = _one_input(inputs)
        if height % self.window or width % self.window:
            raise ShapeError(f"expected a plane divisible by the window {self.window}, got {height} x {width}")
        return channels, height // self.window, width // self.window

    def kernel_sizes(self, *inputs: Shape) -> dict[str, dict[str, int]]:
        channels, height, width = self.output_shape(*inputs)
        return {"mean_pool2d_backward": {"C": channels, "P": height, "Q": width}}

    def forward(self, kernels, y, xs, p, s):
        kernels.mean_pool2d_forward(y, xs[0], self.window)

    def backward(self, kernels, dxs, dp, dy, y, xs, p, s, adds):
        kernels.mean_pool2d_backward(dxs[0], dy, s, self.window, adds[0])


@dataclass(frozen=True)
class UpsampleNearest2D(Layer):
    """Nearest-neighbour upsampling: repeat each pixel in a factor x factor block (Sec. 2.2).

    With `parity`, two constant channels are appended, as in the released program: column parity, then row parity;
    0 at even and 1 at odd positions.
    """

    factor: int = 2
    parity: bool = False

    def output_shape(self, *inputs: Shape) -> Shape:
        channels, height, width = _one_input(inputs)
        return channels + 2 * self.parity, height * self.factor, width * self.factor

    def forward(self, kernels, y, xs, p, s):
        kernels.upsample_nearest2d_forward(y, xs[0], self.factor)
        if self.parity:
            kernels.parity_maps(y, xs[0].shape[1])

    def backward(self, kernels, dxs, dp, dy, y, xs, p, s, adds):
        kernels.upsample_nearest2d_backward(dxs[0], dy, self.factor, adds[0])


@dataclass(frozen=True)
class Concat(Layer):
    """Concatenation along the channel axis, in the order of the inputs (Sec. 2.2)."""

    def output_shape(self, *inputs: Shape) -> Shape:
        if not inputs:
            raise ShapeError("expected at least 1 input, got 0")
        for shape in inputs:
            if shape[1:] != inputs[0][1:]:
                raise ShapeError(
                    f"expected planes of one size, {inputs[0][1]} x {inputs[0][2]}, got {shape[1]} x {shape[2]}"
                )
        return sum(shape[0] for shape in inputs), *inputs[0][1:]

    def forward(self, kernels, y, xs, p, s):
        offset = 0
        for x in xs:
            kernels.concat_forward(y, x, offset)
            offset += x.shape[1]

    def backward(self, kernels, dxs, dp, dy, y, xs, p, s, adds):
        offset = 0
        for x, dx, add in zip(xs, dxs, adds, strict=True):
            if dx is not None:
                kernels.concat_backward(dx, dy, offset, add)
            offset += x.shape[1]


@dataclass(frozen=True)
class Tanh(Layer):
    """Hyperbolic tangent, the activation function f of eq. (1)."""

    @property
    def backward_reads(self) -> str:
        return "y"

    def output_shape(self, *inputs: Shape) -> Shape:
        return _one_input(inputs)

    def kernel_sizes(self, *inputs: Shape) -> dict[str, dict[str, int]]:
        channels, height, width = _one_input(inputs)
        return {"tanh_backward": {"C": channels, "H": height, "W": width}}

    def forward(self, kernels, y, xs, p, s):
        kernels.tanh_forward(y, xs[0])

    def backward(self, kernels, dxs, dp, dy, y, xs, p, s, adds):
        kernels.tanh_backward(dxs[0], dy, y, s, adds[0])
