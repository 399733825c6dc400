"""Run folder of a training: settings, weights, log and checkpoints."""

import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
from filelock import FileLock, Timeout

from icnn.classes import PARTS
from icnn.config import Config, Synthetic, save_config
from icnn.data.folder import Face
from icnn.errors import InputError
from icnn.model.weights import write_network
from icnn.stages import NETWORKS
from icnn.synthetic.faces import face_name
from minicnn import Plan
from minicnn.checkpoint import CheckpointError, atomic_path, load_tensors, remove_unfinished, save_tensors


@dataclass
class Progress:
    """Training progress of one network: everything in its checkpoint besides tensors.

    Attributes
    ----------
    step : number of updates done
    best_f, best_step : best validation F and the step at which it was reached
    checks_since_best : number of validations since then
    rises : number of consecutive rises of the validation loss
    validation_loss : loss of the last validation
    loss_sum, loss_count : sum and number of the training losses since the last validation
    finished : whether training has ended
    """

    step: int = 0
    best_f: float = -1.0
    best_step: int = 0
    checks_since_best: int = 0
    rises: int = 0
    validation_loss: float = float("inf")
    loss_sum: float = 0.0
    loss_count: int = 0
    finished: bool = False

    def sound(self) -> bool:
        """Return True if every value has its declared type, which a file does not guarantee."""
        kinds = {int: (int,), float: (int, float), bool: (bool,)}
        return all(type(getattr(self, one.name)) in kinds[type(one.default)] for one in fields(self))


def write_json(path: Path, data: object) -> None:
    """Write `data` as JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n")


class Run:
    """One RUN folder; docs/train.md lists its files.

    Parameters
    ----------
    folder : Path
        Folder of an earlier training, or one that `open` will create.
    """

    #: Whether this process writes to the folder, and shows what happens.
    writes = True

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def new(cls, folder: Path | None) -> Self:
        """Return a run in a new folder (default runs/<date-time>), which `open` will create.

        Raises
        ------
        InputError
            If the folder exists and is not empty.
        """
        run = cls(folder or Path("runs", datetime.now().strftime("%Y-%m-%d_%H-%M-%S")))
        run.require_new()
        return run

    def require_new(self) -> None:
        """Raise InputError if the folder is not empty; hidden files, left by a killed process, are ignored."""
        folder = self.folder
        if folder.exists() and (not folder.is_dir() or any(not path.name.startswith(".") for path in folder.iterdir())):
            raise InputError(f"{folder}: expected a new or empty folder; --resume {folder} goes on with a training")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold an exclusive lock on this run; the operating system releases it when the process ends, even if killed.

        Raises
        ------
        InputError
            If another process holds the lock.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise InputError(f"{self.folder}: another process trains in this folder; wait for it to end") from None
        try:
            yield
        finally:
            lock.release()

    @property
    def config_path(self) -> Path:
        """Path of the settings of an earlier training.

        Raises
        ------
        InputError
            If the folder has no config.toml, so is not a run.
        """
        path = self.folder / "config.toml"
        if not path.is_file():
            raise InputError(f"{self.folder}: expected the folder of a training with its config.toml, found none")
        return path

    def open(self, config: Config) -> None:
        """Write config.toml, create missing subfolders, and remove temporary files left by a killed process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.folder / "config.toml") as path:  # first, because it makes the folder resumable
            save_config(config, path)
        for name in ("", "weights", "state", "validation"):
            (self.folder / name).mkdir(exist_ok=True)
            remove_unfinished(self.folder / name)

    def note_faces(self, digest: str) -> None:
        """Store the digest of the training's faces, for `require_faces`."""
        write_json(self._faces, digest)

    def require_faces(self, digest: str) -> None:
        """Check that a resumed training has the faces it began with; `digest` is that of the current ones.

        Raises
        ------
        InputError
            If the exemplars or tuning images have changed.
        """
        if self._faces.exists() and self._faces.read_text("utf-8", errors="replace") != f'"{digest}"\n':
            raise InputError(
                f"{self.folder}: expected the exemplars and tuning images that this training began with, got others; "
                f"put them back, or begin a new run"
            )

    @property
    def _faces(self) -> Path:
        return self.folder / "state" / "faces.json"

    # ---- state/faces.safetensors: synthetic faces, so that a resumed training need not draw them again

    def save_faces(self, faces: Mapping[str, Sequence[Face]], settings: Synthetic) -> None:
        """Write the synthetic faces of some splits and the settings that they were drawn with, for `load_faces`."""
        tensors = {}
        for split, several in faces.items():
            packer = zlib.compressobj(1)
            packed = [packer.compress(face.maps.tobytes()) for face in several]
            tensors[f"{split}/images"] = np.stack([face.image for face in several])
            tensors[f"{split}/maps"] = np.frombuffer(b"".join([*packed, packer.flush()]), np.uint8)
        save_tensors(self._drawn, tensors, {"settings": settings}, sealed=True)

    def load_faces(self, settings: Synthetic) -> dict[str, list[Face]]:
        """Read the synthetic faces of an earlier start.

        Returns
        -------
        dict of str to list of Face
            Split -> faces; empty without a file, or if it is damaged (which is said) or of other settings.
        """
        if not self._drawn.exists():
            return {}
        try:
            tensors, metadata = load_tensors(self._drawn)
        except CheckpointError:
            self.say(f"{self._drawn}: damaged, so the faces are drawn again")
            return {}
        faces = {}
        for split in ("exemplars", "tuning", "testing"):
            if metadata.get("settings") == str(settings) and f"{split}/images" in tensors:
                images = tensors[f"{split}/images"]
                packed = zlib.decompress(tensors[f"{split}/maps"].data)
                maps = np.frombuffer(packed, np.uint8).reshape(*images.shape[:3], len(PARTS))
                pairs = enumerate(zip(images, maps, strict=True))
                faces[split] = [Face(face_name(index), np.concatenate(pair, axis=2)) for index, pair in pairs]
        return faces

    def drop_faces(self) -> None:
        """Delete what `save_faces` wrote: a finished run stays small."""
        self._drawn.unlink(missing_ok=True)

    @property
    def _drawn(self) -> Path:
        return self.folder / "state" / "faces.safetensors"

    # ---- weights, output

    def weights_path(self, network: str) -> Path:
        """Return the path of the weights file of one network."""
        return self.folder / "weights" / f"{network}.safetensors"

    def save_weights(self, network: str, plan: Plan, layout: np.ndarray | None, side: float | None) -> None:
        """Write the weights file of one network; see `icnn.model.weights.write_network`."""
        write_network(self.weights_path(network), plan, network, layout, side)

    def say(self, text: str) -> None:
        """Print a line for the user."""
        print(text, flush=True)

    # ---- log.jsonl

    def log(self, entry: Mapping[str, Any]) -> None:
        """Append one entry to log.jsonl and flush it to disk (fsync)."""
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read_log(self) -> list[dict[str, Any]]:
        """Return the valid entries of log.jsonl; lines truncated by a kill or otherwise invalid are dropped."""
        path = self.folder / "log.jsonl"
        lines = path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []
        return [entry for line in lines if (entry := _log_entry(line)) is not None]

    def forget_log(self, network: str, after: int) -> None:
        """Drop a network's entries after step `after`, which a resumed training writes again, and truncated lines."""
        kept = [entry for entry in self.read_log() if entry["network"] != network or entry["step"] <= after]
        with atomic_path(self.folder / "log.jsonl") as path:
            path.write_text("".join(json.dumps(entry) + "\n" for entry in kept))

    # ---- state/NETWORK.safetensors

    def save_state(self, network: str, tensors: Mapping[str, np.ndarray], progress: Progress) -> None:
        """Write the checkpoint of one network, for `load_state`."""
        path = self.folder / "state" / f"{network}.safetensors"
        save_tensors(path, tensors, {"progress": json.dumps(asdict(progress))})

    def load_state(self, network: str) -> tuple[dict[str, np.ndarray], Progress] | None:
        """Read the checkpoint of one network.

        Returns
        -------
        (dict of arrays, Progress) or None
            None if there is no checkpoint yet.

        Raises
        ------
        minicnn.checkpoint.CheckpointError
            If the file is damaged.
        """
        path = self.folder / "state" / f"{network}.safetensors"
        if not path.exists():
            return None
        tensors, metadata = load_tensors(path)
        try:
            progress = Progress(**json.loads(metadata["progress"]))
        except (KeyError, TypeError, ValueError, RecursionError):
            progress = None
        if progress is None or not progress.sound():
            raise CheckpointError(f"{path}: expected the state of a training with its progress, found none")
        return tensors, progress


class ReadOnlyRun(Run):
    """RUN folder of a process that trains together with the one that writes; it only reads."""

    writes = False

    @contextmanager
    def locked(self) -> Iterator[None]:
        yield

    def require_new(self) -> None:
        pass

    def open(self, config: Config) -> None:
        pass

    def note_faces(self, digest: str) -> None:
        pass

    def save_faces(self, faces: Mapping[str, Sequence[Face]], settings: Synthetic) -> None:
        pass

    def save_weights(self, network: str, plan: Plan, layout: np.ndarray | None, side: float | None) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def log(self, entry: Mapping[str, Any]) -> None:
        pass

    def forget_log(self, network: str, after: int) -> None:
        pass

    def save_state(self, network: str, tensors: Mapping[str, np.ndarray], progress: Progress) -> None:
        pass


def _log_entry(line: str) -> dict[str, Any] | None:
    """Parse a line of log.jsonl; return None unless it has a network, a step and only finite numbers."""
    try:
        entry = json.loads(line)
        numbers = {key: value for key, value in entry.items() if key != "network" and value is not None}
        sound = entry["network"] in NETWORKS and type(entry["step"]) is int
        return entry if sound and all(math.isfinite(value) for value in numbers.values()) else None
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
        return None
