"""Tensors on disk as safetensors, written whole or not at all, and sealed where they travel."""

import hashlib
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


#: End of the names of files that are being written; a kill may leave one behind.
UNFINISHED = ".unfinished"


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, flush it and rename it to `path`.

    Whenever the process or the machine stops, `path` is what it was or what it is to be, never a part of it.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes it private
        temporary.replace(path)
        _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Bring a folder's names to the disk; without it a rename may be lost with the machine's power."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows has no such thing
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_unfinished(folder: Path) -> None:
    """Delete what killed writers have left in a folder; only where nobody else writes into it."""
    for path in folder.glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)


#: Version of what sealed files say; one of another is refused.
FORMAT = "1"
_FORMAT, _DIGEST = "format", "sha256"


def _digest(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """Of all that a file says, in an order that does not matter."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        total.update(np.ascontiguousarray(tensor).data)
    for item in sorted(metadata.items()):
        total.update(repr(item).encode())
    return total.hexdigest()


def save_tensors(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, object],
    sealed: bool = False,
) -> None:
    """Write `tensors` and `metadata` (values become text) to `path`, atomically.

    With `sealed` a checksum of both and the format's version go along, which `load_tensors` looks at: for files that
    travel.
    """
    arrays = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    texts = {key: str(value) for key, value in metadata.items()}
    if sealed:
        texts[_FORMAT] = FORMAT
        texts[_DIGEST] = _digest(arrays, texts)
    data = save(arrays, metadata=texts)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def load_tensors(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read what `save_tensors` wrote: tensors by name, and the metadata.

    Files without a checksum are taken as they are.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated, changed since it was written, of another format, not safetensors, or of a
        dtype that NumPy lacks.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (OSError, SafetensorError, TypeError) as error:  # TypeError: a dtype that NumPy lacks, such as bfloat16
        reason = "it does not exist" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
        raise CheckpointError(f"{path}: expected a safetensors file, but {reason}") from None
    if (found := metadata.get(_FORMAT, FORMAT)) != FORMAT:
        raise CheckpointError(
            f"{path}: expected format {FORMAT}, got {found}: another version of this program wrote it"
        )
    written = metadata.pop(_DIGEST, None)
    if written is not None and written != _digest(tensors, metadata):
        raise CheckpointError(f"{path}: expected what was written to it, but it was changed since: copy it again")
    metadata.pop(_FORMAT, None)
    return tensors, metadata


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
