"""Small cases for every CUDA kernel, each compared with the reference.

They run on whatever the backend "cupy" has for CuPy: the stand-in here, a GPU in `tests/gpu`. Sizes are the least that
have everything a kernel can meet: several images, planes that tiles hang over, channels and filters that do not fill a
pass, outputs among the channels of a larger array.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
from examples import Caller, draw_arrays

from minicnn.kernels import get_backend
from minicnn.kernels.backend import Backend
from minicnn.kernels.cuda import sources, tiles
from minicnn.kernels.signatures import SIGNATURES

_BETWEEN = 1  # channels of a larger array before an array, and twice as many behind it
_NEIGHBOUR = 12345.0  # what lies in them


class Case(NamedTuple):
    """One call: the source file it proves, kernel, sizes as shape letters, scalars, dtype and backend.

    `tile` picks a launch among those that would do, 0 the first and 1 the last, and gives each block several tiles;
    None: as the backend chooses. `values` are "normal", "ties" (few different ones), "large" (whose exponentials
    overflow) or "nan" (some are; what is right then is what the numba backend does).
    """

    file: str
    kernel: str
    sizes: dict[str, int]
    scalars: dict[str, float] = {}  # noqa: RUF012 - never written to
    dtype: str = "float32"
    tile: float | None = None
    backend: str = "cupy"
    values: str = "normal"

    def __str__(self) -> str:
        sizes = "".join(f"{letter}{length}" for letter, length in self.sizes.items())
        scalars = "".join(f"-{name}{value}" for name, value in self.scalars.items())
        tile = "" if self.tile is None else f"-tile{self.tile}"
        return f"{self.backend}-{self.kernel}-{sizes}{scalars}-{self.dtype}{tile}-{self.values}"


def _planes(c: int, h: int, w: int, n: int = 3, **more: int) -> dict[str, int]:
    return {"N": n, "C": c, "H": h, "W": w, **more}


def _linked(sizes: dict[str, int], pooled: bool = True, doubled: bool = True) -> dict[str, int]:
    """With the letters of pooled and doubled planes: E and F channels of them."""
    channels, h, w = sizes.get("O", sizes["C"]), sizes["H"], sizes["W"]
    halves = {"E": channels if pooled else 0, "P": h // 2, "Q": w // 2}
    return sizes | halves | {"F": channels if doubled else 0, "R": 2 * h, "S": 2 * w}


def _convolution(n: int, c: int, o: int, k: int, h: int, w: int) -> dict[str, int]:
    return {"N": n, "C": c, "O": o, "K": k, "H": h, "W": w}


def _correlations() -> Iterator[Case]:
    odd, even = _convolution(3, 5, 6, 3, 5, 10), _convolution(3, 6, 5, 2, 6, 12)
    tall, wide = _convolution(1, 3, 11, 3, 9, 7), _convolution(1, 3, 4, 6, 3, 44)
    for tile in (0, 0.3, 0.6, 1):
        yield Case("conv.cu", "conv2d_forward", odd, tile=tile)
        yield Case("conv.cu", "conv2d_tanh_forward", _linked(even), tile=tile)
        yield Case("conv.cu", "conv2d_backward_data", odd, {"add": tile == 0}, tile=tile)
        yield Case("conv.cu", "conv2d_backward_data", even, {"add": tile > 0}, tile=tile)
    for tile in (0, 1):
        yield Case("conv.cu", "conv2d_forward", tall, tile=tile)
        yield Case("conv.cu", "conv2d_forward", wide, tile=tile)
        yield Case("conv.cu", "conv2d_backward_data", wide, {"add": True}, tile=tile)
    narrow, many = _convolution(1, 3, 40, 3, 5, 1), _convolution(1, 2, 10, 3, 16, 40)
    full = _convolution(1, 3, 4, 4, 4, 10)
    yield Case("conv.cu", "conv2d_forward", narrow, tile=0.26)  # several groups, and several blocks of them
    yield Case("conv.cu", "conv2d_forward", many, tile=0.46)  # more threads than large tiles may have
    yield Case("conv.cu", "conv2d_forward", full, tile=1)  # a pass's taps fill the warp
    yield Case("conv.cu", "conv2d_tanh_forward", _linked(odd, False, True), tile=0.5)
    yield Case("conv.cu", "conv2d_tanh_forward", _linked(even, True, False), dtype="float64")
    yield Case("conv.cu", "conv2d_tanh_forward", _linked(even, False, False), dtype="float64")
    yield Case("conv.cu", "conv2d_backward_data", odd, {"add": False}, "float64")


def _weight_gradients() -> Iterator[Case]:
    odd, even = _convolution(3, 5, 6, 3, 5, 10), _convolution(2, 9, 5, 2, 6, 12)
    tall, wide = _convolution(1, 3, 11, 3, 9, 7), _convolution(2, 3, 4, 6, 3, 44)
    exact = _convolution(2, 2, 3, 5, 4, 8)  # rows of the patch need no padding
    beside = _convolution(1, 2, 3, 5, 4, 44)  # nor here, where another tile's pixels follow
    full, narrow = _convolution(1, 3, 4, 4, 4, 10), _convolution(2, 2, 3, 3, 5, 1)
    for sizes in (odd, even, exact):
        for tile in (0, 0.3, 0.6, 1, None):
            yield Case("conv_weights.cu", "conv2d_backward_weights", sizes, tile=tile)
    for sizes in (tall, wide):
        for tile in (0, 1):
            yield Case("conv_weights.cu", "conv2d_backward_weights", sizes, tile=tile)
    for sizes in (beside, full, narrow):
        yield Case("conv_weights.cu", "conv2d_backward_weights", sizes, tile=1)
    many = _convolution(1, 36, 8, 6, 3, 4)  # as many sums as leave registers for the most threads
    yield Case("conv_weights.cu", "conv2d_backward_weights", many, tile=1)
    yield Case("conv_weights.cu", "conv2d_backward_weights", odd, dtype="float64")


def _glue() -> Iterator[Case]:
    for dtype in ("float32", "float64"):
        pooled = _planes(3, 6, 8, P=3, Q=4)
        for kernel_size, stride, padding in ((2, 2, 0), (3, 2, 1), (3, 1, 2), (1, 1, 0)):
            scalars = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
            sizes = pooled if stride == 2 else pooled | {"H": 3, "W": 4}
            yield Case("pool.cu", "max_pool2d_forward", sizes, scalars, dtype)
            for add in (False, True):
                yield Case("pool.cu", "max_pool2d_backward", sizes, {**scalars, "add": add}, dtype)
            for values in ("ties", "nan"):
                yield Case("pool.cu", "max_pool2d_backward", sizes, {**scalars, "add": False}, dtype, values=values)
        doubled = _planes(3, 3, 5, D=5, P=9, Q=15)
        yield Case("pool.cu", "mean_pool2d_forward", pooled, {"kernel_size": 2}, dtype)
        yield Case("pool.cu", "upsample_nearest2d_forward", doubled | {"D": 3}, {"factor": 3}, dtype)
        yield Case("pool.cu", "parity_maps", {"N": 2, "D": 2, "H": 5, "W": 6}, {"offset": 0}, dtype)
        yield Case("pool.cu", "concat_forward", _planes(3, 5, 6, D=3), {"offset": 0}, dtype)
        yield Case("pool.cu", "tanh_forward", _planes(3, 5, 6), {}, dtype)
        for add in (False, True):
            yield Case("pool.cu", "mean_pool2d_backward", pooled, {"kernel_size": 2, "add": add}, dtype)
            yield Case("pool.cu", "upsample_nearest2d_backward", doubled, {"factor": 3, "add": add}, dtype)
            yield Case("pool.cu", "concat_backward", _planes(3, 5, 6, D=6), {"offset": 2, "add": add}, dtype)
            yield Case("pool.cu", "tanh_backward", _planes(3, 5, 6), {"add": add}, dtype)
        for links in ((True, True), (True, False), (False, True), (False, False)):
            linked = _linked(_planes(3, 6, 8), *links)
            yield Case("pool.cu", "interlink_forward", linked, {}, dtype)
            yield Case("pool.cu", "interlink_backward", linked | {"G": 3}, {}, dtype)
            yield Case("pool.cu", "interlink_backward", linked | {"G": 0}, {}, dtype)
        odd = _linked(_planes(2, 5, 7), False, True)
        yield Case("pool.cu", "interlink_forward", odd, {}, dtype)
        yield Case("pool.cu", "interlink_backward", odd | {"G": 2}, {}, dtype)
        yield Case("pool.cu", "interlink_backward", _linked(_planes(3, 6, 8)) | {"G": 3}, {}, dtype, values="ties")
    large = _planes(2, 36, 34, 2)  # more pixels than a block has threads
    yield Case("pool.cu", "tanh_forward", large)
    yield Case("pool.cu", "interlink_backward", _linked(large) | {"G": 2})


def _losses() -> Iterator[Case]:
    update = {"momentum": 0.8, "nesterov": True, "weight_decay": 0.01, "shrink": 0.999}
    for dtype in ("float32", "float64"):
        for sizes in ({"N": 2, "L": 4, "H": 5, "W": 6}, {"N": 3, "L": 9, "H": 17, "W": 13}):
            yield Case("loss.cu", "softmax_cross_entropy_forward", sizes, {}, dtype)
            yield Case("loss.cu", "softmax_cross_entropy_backward", sizes, {}, dtype)
            yield Case("loss.cu", "softmax_cross_entropy_forward", sizes, {}, dtype, values="large")
        for nesterov in (False, True):
            yield Case("loss.cu", "sgd_update", {"V": 300}, {**update, "nesterov": nesterov}, dtype)
    many = {"N": 2, "L": 2, "H": 185, "W": 180}  # more blocks than the last sum has threads
    yield Case("loss.cu", "softmax_cross_entropy_forward", many)


def _columns() -> Iterator[Case]:
    for sizes in (_convolution(3, 3, 4, 3, 5, 6), _convolution(2, 2, 3, 2, 4, 4)):
        for kernel, scalars in (
            ("conv2d_forward", {}),
            ("conv2d_backward_data", {"add": False}),
            ("conv2d_backward_data", {"add": True}),
            ("conv2d_backward_weights", {}),
        ):
            yield Case("im2col.cu", kernel, sizes, scalars, backend="cublas")
    large = _convolution(1, 1, 2, 1, 20, 19)  # a plane of more pixels than a block has threads
    yield Case("im2col.cu", "conv2d_backward_weights", large, dtype="float64", backend="cublas")


CASES = [*_correlations(), *_weight_gradients(), *_glue(), *_losses(), *_columns()]

#: Files whose cases also prove the functions that all files share.
_SHARING = ("conv.cu", "conv_weights.cu", "loss.cu", "pool.cu")


# ---- running


class _Slot:
    """Values (N, C, H, W) on the device, as channels of a larger array: `array` is what a kernel gets.

    The channels before and behind hold a number of their own. The checker on the CPU sees who writes there; a GPU does
    not, so `check` looks at them afterwards.
    """

    def __init__(self, kernels: Backend, values: np.ndarray):
        n, channels, *plane = values.shape
        around = np.full((n, _BETWEEN + channels + 2 * _BETWEEN, *plane), _NEIGHBOUR, values.dtype)
        around[:, _BETWEEN : _BETWEEN + channels] = values
        self._kernels, self._channels = kernels, channels
        self._wide = kernels.empty(around.shape, values.dtype.name)
        kernels.upload(self._wide, around)
        self.array = self._wide[:, _BETWEEN : _BETWEEN + channels]

    def check(self, name: str) -> None:
        """Raise AssertionError if a kernel has written beside its array."""
        around = np.delete(self._kernels.download(self._wide), np.s_[_BETWEEN : _BETWEEN + self._channels], axis=1)
        assert (around == _NEIGHBOUR).all(), f"{name}: the channels beside it were written to"


def _on_device(kernels: Backend, values: np.ndarray):
    """A copy on the device."""
    array = kernels.empty(values.shape, values.dtype.name)
    kernels.upload(array, values)
    return array


@contextmanager
def _chosen(tile: float | None) -> Iterator[None]:
    """Let the launches of convolutions be chosen by `tile`."""
    if tile is None:
        yield
        return

    def pick(candidates: Iterator[tiles.Tile]) -> tiles.Tile:
        known = list(candidates)
        return known[round(tile * (len(known) - 1))]

    def correlation(n, c, o, h, w, k, dtype, backward=False, pooled=False):
        sizes = (n, o, c, h, w, k) if backward else (n, c, o, h, w, k)
        return pick(tiles.correlation_tiles(sizes, dtype, backward, pooled))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_MULTIPROCESSORS", 1)
        gpu = importlib.import_module("minicnn.kernels.cuda.backend")  # not above: it needs a device
        patch.setattr(gpu, "correlation_tile", correlation)
        patch.setattr(
            gpu, "weight_gradient_tile", lambda *sizes: pick(tiles.weight_gradient_tiles(sizes[:-1], sizes[-1]))
        )
        yield


def run_case(case: Case) -> None:
    """Call the kernel on the device and compare all it writes with the reference, and what lies beside it with before.

    Raises
    ------
    AssertionError
        If a number is wrong; whatever the device raises.
    """
    kernels = get_backend(case.backend)
    table, rng = SIGNATURES[case.kernel].arguments, np.random.default_rng(7)
    arrays = draw_arrays(case.kernel, case.sizes, case.scalars, case.dtype, rng)
    _change(arrays, case, rng)
    expected = {name: array.copy() for name, array in arrays.items()}
    Caller("numba" if case.values == "nan" else "numpy")(case.kernel, *expected.values(), **case.scalars)

    given: dict[str, Any] = {}
    slots: dict[str, _Slot] = {}
    usual = kernels.workspace_size(case.kernel, **case.sizes)  # what is asked for, whichever tile is taken
    with _chosen(case.tile):
        length = max(usual, kernels.workspace_size(case.kernel, **case.sizes))
        for argument in table:
            if argument.role == "scalar":
                given[argument.name] = case.scalars[argument.name]
            elif argument.role == "workspace":
                given[argument.name] = kernels.empty(length, case.dtype)
            elif len(argument.shape) == 4 and "K" not in argument.shape:
                slots[argument.name] = _Slot(kernels, arrays[argument.name])
                given[argument.name] = slots[argument.name].array
            else:
                given[argument.name] = _on_device(kernels, arrays[argument.name])
        getattr(kernels, case.kernel)(*given.values())
    tolerance = 2e-6 if case.dtype == "float32" else 1e-13
    for name, values in expected.items():
        limit = tolerance * max(1, np.nanmax(np.abs(values), initial=0)) * (1 if values.ndim == 4 else 10)
        np.testing.assert_allclose(kernels.download(given[name]), values, rtol=0, atol=limit, err_msg=f"{case}: {name}")
    for name, slot in slots.items():
        slot.check(f"{case}: {name}")


def _change(arrays: dict[str, np.ndarray], case: Case, rng: np.random.Generator) -> None:
    """Give the arrays the values that the case asks for."""
    if case.scalars.get("add"):
        arrays["dx"][...] = rng.standard_normal(arrays["dx"].shape)
    if case.values == "large":
        arrays["z"] *= 400
    if case.values in ("ties", "nan"):
        read = arrays.get("x", arrays.get("y"))
        assert read is not None
        read[...] = np.round(read)
        if case.values == "nan":
            read[rng.random(read.shape) < 0.1] = np.nan
    if case.kernel == "max_pool2d_backward":  # y must be what the forward pass makes of x
        kernel_size = {name: case.scalars[name] for name in ("kernel_size", "stride", "padding")}
        Caller("numba")("max_pool2d_forward", arrays["y"], arrays["x"], **kernel_size)


def cases_of(file: str) -> list[Case]:
    """The cases that prove a source file."""
    return [case for case in CASES if case.file == file or (file == "common.cuh" and case.file in _SHARING)]


def run_cases(file: str, text: str) -> None:
    """Run a source file's cases with another text in its place; raises at the first that fails."""
    gpu = get_backend("cupy")
    real = sources.read_source
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "read_source", lambda name: text if name == file else real(name))
        for cached in (sources.source, gpu.module_of):
            cached.cache_clear()
        for case in cases_of(file):
            run_case(case)
