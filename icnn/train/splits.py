"""Faces that a run is trained on and evaluated with: photographs, or synthetic faces."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from icnn.cli import Signals
from icnn.config import Config
from icnn.data.folder import Face, SmithFolder
from icnn.synthetic.faces import synthetic_face
from icnn.synthetic.processes import process_count, process_map
from icnn.train.run_folder import Run
from minicnn.kernels.host import cores

#: Numbers of training and validation images in the paper (Sec. 4.1).
PAPER_SPLIT = (2000, 230)


class Splits(NamedTuple):
    """Faces for training, validation and evaluation.

    Attributes
    ----------
    exemplars, tuning, evaluated : list of Face
    source : str
        A sentence that says where they come from.
    drawn : dict of str to list of Face
        Synthetic faces by split, if some of them were drawn now and so are not in the run's folder yet; else empty.
    """

    exemplars: list[Face]
    tuning: list[Face]
    evaluated: list[Face]
    source: str
    drawn: dict[str, list[Face]]


def load_splits(config: Config, the_run: Run, signals: Signals) -> Splits:
    """Read or draw the faces that the settings ask for; each is made once and shared by all networks."""
    return _photographs(config) if config.data else _synthetic(config, the_run, signals)


def _photographs(config: Config) -> Splits:
    split, folder = config.evaluate.split, SmithFolder(config.data)
    exemplars, tuning = folder.load_split("exemplars"), folder.load_split("tuning")
    known = {"exemplars": exemplars, "tuning": tuning}
    evaluated = known[split] if split in known else folder.load_split(split)
    source = (
        f"photographs in {Path(config.data).name}: {len(exemplars)} to train on, {len(tuning)} to validate on, "
        f"F from {len(evaluated)} of {split}"
    )
    if (len(exemplars), len(tuning)) != PAPER_SPLIT:
        source += "; not the paper's split, so its figures are a yardstick, not a comparison"
    return Splits(exemplars, tuning, evaluated, source, {})


def _synthetic(config: Config, the_run: Run, signals: Signals) -> Splits:
    """Take the faces that are in the run's folder, and draw the others, on all cores."""
    split, counts = config.evaluate.split, config.synthetic
    names = dict.fromkeys(("exemplars", "tuning", split))
    stored = the_run.load_faces(counts)
    faces = {name: stored.get(name, []) for name in names}
    missing = [(counts.seed, name, i) for name in names if name not in stored for i in range(getattr(counts, name))]
    if missing:
        processes = process_count(len(missing), config.threads or cores())
        cpus = "1 core" if processes == 1 else f"{processes} cores"
        the_run.say(f"drawing {len(missing)} synthetic faces on {cpus}, then training five networks")
        with process_map(processes, signals) as spread:
            drawn = spread(synthetic_face, *zip(*missing, strict=True))
            for (_, name, _), face in zip(signals.tracked("drawing faces")(missing), drawn, strict=True):
                faces[name].append(face)
    source = (
        f"synthetic faces, seed {counts.seed}: {counts.exemplars} to train on, {counts.tuning} to validate on, "
        f"F from {len(faces[split])} of {split}"
    )
    return Splits(faces["exemplars"], faces["tuning"], faces[split], source, faces if missing else {})


def digest_of(faces: Sequence[Face]) -> str:
    """Return the SHA-256 of the faces' names, photographs and part maps, as hexadecimal digits."""
    digest = hashlib.sha256()
    for face in faces:
        digest.update(face.name.encode())
        digest.update(face.pixels.data)
    return digest.hexdigest()
