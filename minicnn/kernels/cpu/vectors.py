"""Vector registers of this CPU: how many elements fit into one, and how many there are."""

import os
from functools import cache

import llvmlite.binding as llvm
import numpy as np

#: Values of MINICNN_VECTORS: bytes of a vector, number of vector registers, required CPU feature.
_VECTORS = {"avx512": (64, 32, "avx512f"), "avx2": (32, 16, "avx2"), "portable": (16, 16, "")}
#: Prefixes of the CPU features to switch off for each of those values.
_BEYOND = {
    "avx512": (),
    "avx2": ("avx512", "avx10", "evex"),
    "portable": ("avx", "evex", "fma", "f16c", "vaes", "vpcl"),
}


def _usable_features() -> dict[str, bool]:
    """Return the CPU's features; NUMBA_CPU_FEATURES and NUMBA_CPU_NAME=generic replace them, as in Numba."""
    given = os.environ.get("NUMBA_CPU_FEATURES")
    if given is None and os.environ.get("NUMBA_CPU_NAME") != "generic":
        return dict(llvm.get_host_cpu_features())
    return {name[1:]: name[0] == "+" for name in (given or "").split(",") if name}


def _choose_vectors() -> tuple[str, int, int, str]:
    """Choose the widest vectors of this CPU, or those requested by the environment variable MINICNN_VECTORS.

    Returns
    -------
    tuple of (str, int, int, str)
        Name, bytes of a vector, number of vector registers, and the CPU features that code may use.

    Raises
    ------
    ImportError
        If the requested vectors are unknown or not available on this CPU; the backend is then unusable.
    """
    features = _usable_features()
    usable = [name for name, (_, _, feature) in _VECTORS.items() if not feature or features.get(feature)]
    wanted = os.environ.get("MINICNN_VECTORS") or usable[0]
    if wanted not in usable:
        raise ImportError(f"MINICNN_VECTORS={wanted}: expected one that this CPU has, {', '.join(usable)}")
    if wanted != usable[0]:
        features = {name: on and not name.startswith(_BEYOND[wanted]) for name, on in features.items()}
    text = ",".join(("+" if on else "-") + name for name, on in sorted(features.items()))
    return wanted, *_VECTORS[wanted][:2], text


#: Name of the vectors in use, bytes of one vector, number of vector registers, and CPU features as LLVM writes them.
VECTORS, VECTOR_BYTES, VECTOR_REGISTERS, CPU_FEATURES = _choose_vectors()


def lanes(itemsize: int) -> int:
    """Return the number of elements of `itemsize` bytes in one vector."""
    return VECTOR_BYTES // itemsize


@cache
def vector_places(itemsize: int) -> np.ndarray:
    """Return the element offsets of four consecutive vectors, (4,) int64."""
    return np.arange(4) * lanes(itemsize)


def block_of(out_channels: int, most: int) -> int:
    """Choose the output channels of a tile, at most `most`: least padding of the last tile, then 8, then largest."""
    sizes = range(min(out_channels, (most + 1) // 2), min(out_channels, most) + 1)
    return min(sizes, key=lambda size: (-(-out_channels // size) * size, size != 8, -size))
