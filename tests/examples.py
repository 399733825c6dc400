"""Examples for every kernel, and a careful way to call one in any backend."""

import numpy as np

from minicnn.kernels import get_backend
from minicnn.kernels.signatures import SIGNATURES

#: Kernel -> its sizes as shape letters, and its scalars. Small, uneven and with more than one image.
EXAMPLES = {
    "conv2d_forward": ({"N": 3, "C": 3, "O": 8, "K": 5, "H": 6, "W": 7}, {}),
    "conv2d_tanh_forward": (
        {"N": 3, "C": 3, "O": 8, "E": 8, "F": 8, "K": 5, "H": 6, "W": 8, "P": 3, "Q": 4, "R": 12, "S": 16},
        {},
    ),
    "conv2d_backward_data": ({"N": 3, "C": 3, "O": 8, "K": 5, "H": 6, "W": 7}, {"add": False}),
    "conv2d_backward_weights": ({"N": 3, "C": 3, "O": 8, "K": 5, "H": 6, "W": 7}, {}),
    "max_pool2d_forward": (
        {"N": 2, "C": 3, "H": 6, "W": 8, "P": 3, "Q": 4},
        {"kernel_size": 3, "stride": 2, "padding": 1},
    ),
    "max_pool2d_backward": (
        {"N": 2, "C": 3, "H": 6, "W": 8, "P": 3, "Q": 4},
        {"kernel_size": 3, "stride": 2, "padding": 1, "add": False},
    ),
    "mean_pool2d_forward": ({"N": 2, "C": 3, "H": 6, "W": 8, "P": 3, "Q": 4}, {"kernel_size": 2}),
    "mean_pool2d_backward": ({"N": 2, "C": 3, "H": 6, "W": 8, "P": 3, "Q": 4}, {"kernel_size": 2, "add": False}),
    "upsample_nearest2d_forward": (
        {"N": 2, "C": 3, "D": 3, "H": 3, "W": 4, "P": 9, "Q": 12},
        {"factor": 3},
    ),
    "upsample_nearest2d_backward": (
        {"N": 2, "C": 3, "D": 5, "H": 3, "W": 4, "P": 9, "Q": 12},
        {"factor": 3, "add": False},
    ),
    "parity_maps": ({"N": 2, "D": 2, "H": 5, "W": 6}, {"offset": 0}),
    "concat_forward": ({"N": 2, "C": 3, "D": 3, "H": 5, "W": 6}, {"offset": 0}),
    "concat_backward": ({"N": 2, "C": 3, "D": 6, "H": 5, "W": 6}, {"offset": 2, "add": False}),
    "tanh_forward": ({"N": 2, "C": 3, "H": 5, "W": 6}, {}),
    "tanh_backward": ({"N": 2, "C": 3, "H": 5, "W": 6}, {"add": False}),
    "interlink_forward": (
        {"N": 2, "C": 3, "E": 3, "F": 3, "H": 6, "W": 8, "P": 3, "Q": 4, "R": 12, "S": 16},
        {},
    ),
    "interlink_backward": (
        {"N": 2, "C": 3, "E": 3, "F": 3, "G": 3, "H": 6, "W": 8, "P": 3, "Q": 4, "R": 12, "S": 16},
        {},
    ),
    "softmax_cross_entropy_forward": ({"N": 2, "L": 4, "H": 5, "W": 6}, {}),
    "softmax_cross_entropy_backward": ({"N": 2, "L": 4, "H": 5, "W": 6}, {}),
    "sgd_update": (
        {"V": 37},
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.01, "shrink": 0.999},
    ),
}

_GUARD = 64  # elements on both sides of workspace that no kernel may touch


class Caller:
    """Calls kernels of one backend on NumPy arrays.

    ``call(kernel, *arrays, **scalars)`` takes every array of the signature except workspace, and writes what
    the kernel wrote back into the arrays given. Each call also asserts what the signature table promises:
    shapes that fit the letters, inputs left alone, and workspace that is as long as `workspace_size` says, not a
    number longer, and whose content (here NaN) means nothing.
    """

    def __init__(self, backend: str):
        self.kernels = get_backend(backend)
        self.threads = 1 if backend == "numpy" else 2  # idle threads of BLAS spin: slow on a busy machine

    def __call__(self, kernel: str, *arrays: np.ndarray, **scalars: float) -> None:
        signature = SIGNATURES[kernel].arguments
        passed = [argument for argument in signature if argument.role not in ("workspace", "scalar")]
        letters: dict[str, int] = {}
        for argument, array in zip(passed, arrays, strict=True):
            assert array.ndim == len(argument.shape), f"{argument.name} has {array.ndim} dimensions"
            for letter, length in zip(argument.shape, array.shape, strict=True):
                assert letters.setdefault(letter, length) == length, f"{argument.name}: {letter} is {length}"
        assert list(scalars) == [argument.name for argument in signature if argument.role == "scalar"]

        dtype = arrays[0].dtype
        length = self.kernels.workspace_size(kernel, **letters)
        guarded = self._on_device(np.full(length + 2 * _GUARD, np.nan, dtype))
        guarded[:_GUARD] = guarded[_GUARD + length :] = 7
        copies = [self._on_device(array) for array in arrays]
        rest = iter(copies)
        given = {
            argument.name: guarded[_GUARD : _GUARD + length]
            if argument.role == "workspace"
            else scalars[argument.name]
            if argument.role == "scalar"
            else next(rest)
            for argument in signature
        }
        with self.kernels.threads(self.threads):
            getattr(self.kernels, kernel)(*given.values())

        for argument, array, copy in zip(passed, arrays, copies, strict=True):
            result = self.kernels.download(copy)
            if argument.role == "in":
                np.testing.assert_array_equal(result, array, f"{kernel} changed its input {argument.name}")
            array[...] = result
        edges = self.kernels.download(guarded)
        assert (edges[:_GUARD] == 7).all() and (edges[_GUARD + length :] == 7).all(), "wrote beyond workspace"

    def _on_device(self, array: np.ndarray):
        copy = self.kernels.empty(array.shape, array.dtype)
        self.kernels.upload(copy, array)
        return copy


def draw_example(kernel: str, dtype: str, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], dict]:
    """Valid arrays for a kernel by name, outputs filled with NaN, and its scalars."""
    sizes, scalars = EXAMPLES[kernel]
    return draw_arrays(kernel, sizes, scalars, dtype, rng), scalars


def draw_arrays(
    kernel: str, sizes: dict[str, int], scalars: dict[str, float], dtype: str, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Valid arrays for a kernel of any sizes, by name; outputs are filled with NaN."""
    arrays: dict[str, np.ndarray] = {}
    for argument in SIGNATURES[kernel].arguments:
        if argument.role in ("workspace", "scalar"):
            continue
        shape = tuple(sizes[letter] for letter in argument.shape)
        if argument.role in ("out", "accumulate") and kernel != "sgd_update":
            arrays[argument.name] = np.full(shape, np.nan, dtype)
        elif argument.dtype == "int32":
            arrays[argument.name] = rng.integers(0, sizes["L"], shape, dtype=np.int32)
        elif argument.name in ("weights", "total", "p", "lr"):
            arrays[argument.name] = np.asarray(rng.uniform(0.1, 1, shape), dtype)
        else:
            arrays[argument.name] = np.asarray(rng.standard_normal(shape), dtype)
    if kernel == "max_pool2d_backward":  # y must be what the forward pass makes of x
        kernel_size = {name: scalars[name] for name in ("kernel_size", "stride", "padding")}
        Caller("numpy")("max_pool2d_forward", arrays["y"], arrays["x"], **kernel_size)
    return arrays
