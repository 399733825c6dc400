"""Checkpoint files: safetensors, written atomically, with an optional checksum."""

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save


def program_version() -> str:
    """Return the version of the installed package, "unknown" in a source tree that is not installed."""
    from importlib.metadata import PackageNotFoundError, version  # slow to import

    try:
        return version("icnn")
    except PackageNotFoundError:
        return "unknown"


class CheckpointError(ValueError):
    """Checkpoint that cannot be read or does not fit the network; the message names the file."""


#: Suffix of files that are being written; a killed process may leave one behind.
UNFINISHED = ".unfinished"


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path next to `path`; if the block succeeds, flush the file and rename it to `path`.

    If the process or the machine stops at any time, `path` holds the complete old or the complete new content.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp creates a file that only its owner can read
        temporary.replace(path)
        _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Flush a folder's entries to disk; otherwise a power failure may undo a rename."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open folders
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_unfinished(folder: Path) -> None:
    """Delete the unfinished files of killed processes in `folder`; no other process may be writing there."""
    for path in folder.glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)


#: Format version of sealed files; files of another version are rejected.
FORMAT = "1"
_FORMAT, _DIGEST = "format", "sha256"


def _digest(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of all tensors and metadata, sorted by name so that their order does not matter."""
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
    """Write tensors and metadata to a safetensors file, atomically.

    Parameters
    ----------
    path : path
    tensors : mapping of names to arrays
    metadata : mapping of str to object
        Values are stored as ``str(value)``.
    sealed : bool
        Also store the format version and a checksum of tensors and metadata, which `load_tensors` verifies. Meant for
        files that are copied to other machines.
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
    """Read the tensors, by name, and the metadata of a file that `save_tensors` wrote.

    A file without a checksum is not verified.

    Raises
    ------
    CheckpointError
        If the file is missing, truncated, modified since it was written, of another format version, not safetensors,
        or contains a dtype that NumPy lacks.
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
    """Check that the tensors read from `path` have the names and shapes that a network expects.

    Raises
    ------
    CheckpointError
        If a tensor is missing, unexpected or of another shape; the message names the first one.
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
