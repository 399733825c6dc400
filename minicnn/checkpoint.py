"""Tensors on disk as safetensors, written whole or not at all."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit the network; the text names the file."""


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, flush it and rename it to `path`."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes it private
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, object]) -> None:
    """Write `tensors` and `metadata` (values become text) to `path`, atomically."""
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    data = save(arrays, metadata={key: str(value) for key, value in metadata.items()})
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def load_tensors(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read what `save_tensors` wrote: tensors by name, and the metadata.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated, not safetensors or of a dtype that NumPy lacks.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError) as error:  # TypeError: a dtype that NumPy lacks, such as bfloat16
        reason = "it does not exist" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
        raise CheckpointError(f"{path}: expected a safetensors file, but {reason}") from None


def check_fit(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Compare a file's tensors with the shapes that a network expects.

    Raises
    ------
    CheckpointError
        Naming the first tensor that is missing, superfluous or of another shape.
    """
    for name, shape in shapes.items():
        if name not in tensors:
            raise CheckpointError(f"{path}: expected a tensor {name} {shape}, found none: is it another network's?")
        if tensors[name].shape != tuple(shape):
            raise CheckpointError(
                f"{path}: expected {name} of shape {tuple(shape)}, got {tensors[name].shape}: is it another network's?"
            )
    for name in tensors:
        if name not in shapes:
            raise CheckpointError(f"{path}: the network has no {name}: is it another network's?")
