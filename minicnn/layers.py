"""Layers: frozen dataclasses that own no arrays. Each has a shape rule, a forward call and a backward call.

Shapes are those of one image, (C, H, W); every array has the batch dimension
N in front.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Shape = tuple[int, int, int]
Array = Any  # a backend's array; NumPy's for "numpy" and "numba"


class ShapeError(ValueError):
    """Inputs that do not fit a layer; the message names the layer, the expected value and the actual one."""


@dataclass(frozen=True)
class Operands:
    """Arrays of one node in one pass, which a layer's kernels read and write.

    Attributes
    ----------
    y : (N, C, H, W) array
        Output.
    xs : sequence of (N, C, H, W) arrays
        Inputs.
    p : mapping of str to array
        Parameters by name.
    workspace : 1-d array
    dy : (N, C, H, W) array
        Gradient of the output; None in a forward pass, as are the next three.
    dxs : sequence of (N, C, H, W) arrays or None
        Gradients of the inputs; None for an input whose gradient no upstream node needs.
    adds : sequence of bool
        For each input, add to its gradient in `dxs` instead of overwriting it.
    dp : mapping of str to array
        Gradients of the parameters.
    """

    y: Array
    xs: Sequence[Array]
    p: Mapping[str, Array]
    workspace: Array
    dy: Array = None
    dxs: Sequence[Array | None] = ()
    adds: Sequence[bool] = ()
    dp: Mapping[str, Array] = field(default_factory=dict)


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

    def forward(self, kernels: Any, arrays: Operands):
        """Compute the output `arrays.y`. `kernels` is a backend, or a stand-in that records the calls for one."""
        raise NotImplementedError

    def backward(self, kernels: Any, arrays: Operands):
        """Compute the gradients of the inputs, `arrays.dxs`, and of the parameters, `arrays.dp`, from `arrays.dy`."""
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
    out_channels : int
        Number O of output channels.
    kernel_size : int
        Kernel size K, any positive number; the weights are (O, C, K, K) and are not flipped.
    init : "glorot_uniform" or "fan_in_uniform"
        Weights are drawn uniformly from [-a, a) with a = sqrt(6 / (fan_in + fan_out)), or a = sqrt(0.5 / fan_in) as in
        the released program. Biases start at 0.
    """

    out_channels: int
    kernel_size: int
    init: str = "glorot_uniform"

    @property
    def backward_reads(self) -> str:
        return "x"

    def output_shape(self, *inputs: Shape) -> Shape:
        _, height, width = _one_input(inputs)
        if self.out_channels < 1 or self.kernel_size < 1:
            raise ShapeError(
                f"expected positive out_channels and kernel_size, got {self.out_channels} and {self.kernel_size}"
            )
        return self.out_channels, height, width

    def parameter_shapes(self, *inputs: Shape) -> dict[str, tuple[int, ...]]:
        channels = _one_input(inputs)[0]
        return {
            "weight": (self.out_channels, channels, self.kernel_size, self.kernel_size),
            "bias": (self.out_channels,),
        }

    def initialise(self, name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        if name == "bias":
            return np.zeros(shape)
        out_channels, channels, kernel_size, _ = shape
        fan_in, fan_out = channels * kernel_size**2, out_channels * kernel_size**2
        limits = {"glorot_uniform": 6 / (fan_in + fan_out), "fan_in_uniform": 0.5 / fan_in}
        if self.init not in limits:
            raise ValueError(f"unknown init {self.init!r}: expected one of {', '.join(limits)}")
        limit = np.sqrt(limits[self.init])
        return rng.uniform(-limit, limit, shape)

    def kernel_sizes(self, *inputs: Shape) -> dict[str, dict[str, int]]:
        channels, height, width = _one_input(inputs)
        size = {"C": channels, "O": self.out_channels, "K": self.kernel_size, "H": height, "W": width}
        kernels = "conv2d_forward", "conv2d_tanh_forward", "conv2d_backward_data", "conv2d_backward_weights"
        return dict.fromkeys(kernels, size)

    def forward(self, kernels, arrays):
        kernels.conv2d_forward(arrays.y, arrays.xs[0], arrays.p["weight"], arrays.p["bias"], arrays.workspace)

    def backward(self, kernels, arrays):
        kernels.conv2d_backward_weights(
            arrays.dp["weight"], arrays.dp["bias"], arrays.dy, arrays.xs[0], arrays.workspace
        )
        if arrays.dxs[0] is not None:
            kernels.conv2d_backward_data(arrays.dxs[0], arrays.dy, arrays.p["weight"], arrays.workspace, arrays.adds[0])


@dataclass(frozen=True)
class MaxPool2D(Layer):
    """Max pooling (Sec. 2.2: 2 x 2, stride 2).

    `padding` is the number of rows above and of columns to the left of the plane that the first windows include. A
    padded position is never the maximum. The released program pools 3 x 3 with stride 2 and a padding of 1, at the top
    and left only. The gradient of a window goes to its first maximum in row-major order.
    """

    kernel_size: int = 2
    stride: int = 2
    padding: int = 0

    @property
    def backward_reads(self) -> str:
        return "xy"

    def output_shape(self, *inputs: Shape) -> Shape:
        channels, height, width = _one_input(inputs)
        if not 0 <= self.padding < self.kernel_size:
            raise ShapeError(
                f"expected a padding from 0 to kernel_size - 1 = {self.kernel_size - 1}, got {self.padding}"
            )
        if height % self.stride or width % self.stride:
            raise ShapeError(f"expected a plane divisible by the stride {self.stride}, got {height} x {width}")
        if self.kernel_size - self.padding > self.stride:
            raise ShapeError(
                f"a kernel_size of {self.kernel_size} with padding {self.padding} reaches past the last pixel"
            )
        return channels, height // self.stride, width // self.stride

    def kernel_sizes(self, *inputs: Shape) -> dict[str, dict[str, int]]:
        channels, height, width = self.output_shape(*inputs)
        return {"max_pool2d_backward": {"C": channels, "P": height, "Q": width}}

    def forward(self, kernels, arrays):
        kernels.max_pool2d_forward(arrays.y, arrays.xs[0], self.kernel_size, self.stride, self.padding)

    def backward(self, kernels, arrays):
        dx, x, geometry = arrays.dxs[0], arrays.xs[0], (self.kernel_size, self.stride, self.padding)
        kernels.max_pool2d_backward(dx, arrays.dy, x, arrays.y, arrays.workspace, *geometry, arrays.adds[0])


@dataclass(frozen=True)
class MeanPool2D(Layer):
    """Average pooling over disjoint kernel_size x kernel_size tiles (the input pyramid of Sec. 2.6)."""

    kernel_size: int = 2

    def output_shape(self, *inputs: Shape) -> Shape:
        channels, height, width = _one_input(inputs)
        if height % self.kernel_size or width % self.kernel_size:
            raise ShapeError(
                f"expected a plane divisible by the kernel_size {self.kernel_size}, got {height} x {width}"
            )
        return channels, height // self.kernel_size, width // self.kernel_size

    def kernel_sizes(self, *inputs: Shape) -> dict[str, dict[str, int]]:
        channels, height, width = self.output_shape(*inputs)
        return {"mean_pool2d_backward": {"C": channels, "P": height, "Q": width}}

    def forward(self, kernels, arrays):
        kernels.mean_pool2d_forward(arrays.y, arrays.xs[0], self.kernel_size)

    def backward(self, kernels, arrays):
        kernels.mean_pool2d_backward(arrays.dxs[0], arrays.dy, arrays.workspace, self.kernel_size, arrays.adds[0])


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

    def forward(self, kernels, arrays):
        kernels.upsample_nearest2d_forward(arrays.y, arrays.xs[0], self.factor)
        if self.parity:
            kernels.parity_maps(arrays.y, arrays.xs[0].shape[1])

    def backward(self, kernels, arrays):
        kernels.upsample_nearest2d_backward(arrays.dxs[0], arrays.dy, self.factor, arrays.adds[0])


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

    def forward(self, kernels, arrays):
        offset = 0
        for x in arrays.xs:
            kernels.concat_forward(arrays.y, x, offset)
            offset += x.shape[1]

    def backward(self, kernels, arrays):
        offset = 0
        for x, dx, add in zip(arrays.xs, arrays.dxs, arrays.adds, strict=True):
            if dx is not None:
                kernels.concat_backward(dx, arrays.dy, offset, add)
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

    def forward(self, kernels, arrays):
        kernels.tanh_forward(arrays.y, arrays.xs[0])

    def backward(self, kernels, arrays):
        kernels.tanh_backward(arrays.dxs[0], arrays.dy, arrays.y, arrays.workspace, arrays.adds[0])
