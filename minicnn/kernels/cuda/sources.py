"""Text of the CUDA kernel files as it is compiled, and the constants that Python and the kernels share."""

import re
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent

#: Compiler options. Division, roots and functions are as exact as in C, and NaN and infinities are handled; but CuPy
#: adds -ftz=true to every compilation, so subnormal float32 numbers (below 1.2e-38) become 0.
OPTIONS = ("--std=c++17",)

#: Constants that the kernels and the cost model share; `source` puts them in front of each kernel file.
POLICY = {
    "SMALL_WINDOW": 5,  # largest kernel size with which conv.cu passes over 4 channels at a time
    "CHUNK_OF_SMALL_WINDOW": 4,
    "CHUNK_OF_LARGE_WINDOW": 2,
    "SMALL_TILE": 40,  # accumulators per thread up to which conv.cu has registers for more threads
    "THREADS_OF_SMALL_TILE": 256,
    "THREADS_OF_LARGE_TILE": 128,
    "UNROLL": 4,  # channels that conv_weights.cu stages at once
    "SMALL_GRADIENT": 48,  # the same as SMALL_TILE, for conv_weights.cu
    "THREADS_OF_SMALL_GRADIENT": 256,
    "THREADS_OF_LARGE_GRADIENT": 192,
}


def read_source(name: str) -> str:
    """Return the text of the file `name` in this folder."""
    return (_FOLDER / name).read_text(encoding="utf-8")


@cache
def source(file: str) -> str:
    """Return the text of a kernel file as it is compiled: the constants of `POLICY`, common.cuh, then the file."""
    policy = "".join(f"constexpr int {name} = {value};\n" for name, value in POLICY.items())
    return policy + "".join(f'#line 1 "{name}"\n{read_source(name)}' for name in ("common.cuh", file))


def compiled_with(file: str, expression: str) -> tuple[str, ...]:
    """Return the instances compiled together with `expression`: all small kernels of a file, or one convolution."""
    parameters = expression.partition("<")[2]
    small = r"template <typename T>\n__global__ void(?: __launch_bounds__\(\w+\))?\s+(\w+)\("
    kernels = re.findall(small, read_source(file))
    return tuple(f"{kernel}<{parameters}" for kernel in kernels) if "," not in parameters else (expression,)
