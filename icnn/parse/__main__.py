"""``python -m icnn.parse``: label the faces in photographs and in folders of photographs."""

import argparse
import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from icnn.classes import PARTS
from icnn.cli import Parser, Signals, compilation_announced, limit_memory, positive, progress, run
from icnn.data.face_box import Box
from icnn.data.images import limited_pixels, read_image
from icnn.data.overlay import label_image, overlay_image
from icnn.data.pyramid import Pyramid
from icnn.data.resample import begin_ahead
from icnn.errors import InputError
from icnn.model.weights import SHIPPED
from icnn.parse.files import Input, list_inputs
from icnn.parse.parser import FaceParser, box_of, numbers_of
from icnn.parse.results import FacePrediction, described, result_of
from minicnn.checkpoint import atomic_path
from minicnn.distributed import join

#: Group names accepted by --parts besides the names of `icnn.classes.PARTS`.
GROUPS = {
    "eyebrows": (1, 3),
    "eyes": (2, 4),
    "lips": (6, 8),
    "mouth": (6, 7, 8),
    "all": tuple(range(1, len(PARTS))),
}


class _Read(NamedTuple):
    """Input with its decoded photograph and the face boxes given by the user."""

    item: Input
    photograph: Pyramid
    boxes: list[Box]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    options = _parser().parse_args(argv)
    limit_memory(options.memory)
    if options.face is not None and options.detect:
        raise InputError("expected --face or --detect, got both; leave out one")
    face = numbers_of(options.face) if options.face is not None else None
    comm = join()
    count = sum(1 for _ in list_inputs(options.inputs, options.out))
    with Signals() as signals, limited_pixels(options.megapixels * 1_000_000), compilation_announced():
        parser = FaceParser(options.weights, options.backend, options.threads or comm.threads)
        make_folder(options.out)
        work = _Work(parser, face, options.detect, options.parts, options.out)
        inputs = (
            item
            for item in progress(list_inputs(options.inputs, options.out), "parse", count)
            if item.belongs_to(comm.rank, comm.size) and not (options.resume and work.has_done(item))
        )
        bad = work.run(inputs, options.batch, signals)
    for message in bad if count > 1 else ():
        print(f"icnn.parse: {message}", file=sys.stderr, flush=True)
    all_bad = np.array([len(bad)])
    comm.all_reduce(all_bad)  # all processes report their errors before any of them exits with code 2
    if all_bad[0]:
        raise InputError(bad[0] if count == 1 and bad else f"{all_bad[0]} of {count} photographs could not be parsed")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m icnn.parse",
        description="Label the parts of faces: NAME_labels.png (ids as a palette image of the photograph's size), "
        "NAME_overlay.png and NAME.json for each photograph. Without --face and --detect the most prominent "
        "face of each: a large one, near the middle.",
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="IMAGE|FOLDER", help="photographs; folders of them")
    parser.add_argument("--out", type=Path, default=Path("parsed"), metavar="DIR", help="results (default: parsed)")
    parser.add_weights(SHIPPED)
    parser.add_argument(
        "--face",
        metavar="X,Y,W,H",
        help="where the face is: eyebrows to chin, ear to ear, pixels",
    )
    parser.add_argument("--detect", action="store_true", help="parse all faces, at any angle")
    parser.add_argument(
        "--parts",
        type=chosen_parts,
        metavar="NAMES",
        help="also NAME_mask.png, white where one of these is, separated by commas: "
        f"{', '.join([*GROUPS, *PARTS[1:]])}",
    )
    parser.add_backend()
    parser.add_argument(
        "--resume", action="store_true", help="leave out photographs whose NAME.json is there: it is written last"
    )
    parser.add_argument("--batch", type=positive, default=8, metavar="N", help="photographs at a time (default: 8)")
    parser.add_argument(
        "--megapixels", type=positive, default=80, metavar="N", help="most pixels of a photograph (default: 80)"
    )
    parser.add_threads()
    parser.add_memory()
    return parser


def chosen_parts(text: str) -> tuple[int, ...]:
    """Parse a comma-separated list of part and group names into sorted ids (argparse type)."""
    known = GROUPS | {name: (part,) for part, name in enumerate(PARTS) if part}
    ids: set[int] = set()
    for name in text.split(","):
        if name.strip() not in known:
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}, got {name.strip()!r}")
        ids.update(known[name.strip()])
    return tuple(sorted(ids))


def make_folder(out: Path) -> None:
    """Create the output folder; raise InputError, before any work, if that fails or it is not writable."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: expected to make this folder, got {error.strerror}; try another --out") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise InputError(f"{out}: expected a folder that may be written to, got one that may not; try another --out")


# ---------------------------------------------------------------- processing


class _Work:
    """Batch processing of photographs; decoding and encoding run in threads concurrently with the networks."""

    def __init__(
        self,
        parser: FaceParser,
        face: tuple[float, ...] | None,
        detect: bool,
        parts: tuple[int, ...] | None,
        out: Path,
    ):
        self._parser = parser
        self._face = face
        self._detect = detect
        self._parts = parts
        self._out = out

    def has_done(self, item: Input) -> bool:
        """Return True if the result file that is written last exists."""
        return _beside(self._out / item.output, _LAST).exists()

    def run(self, inputs: Iterable[Input], batch: int, signals: Signals) -> list[str]:
        """Parse all photographs and return the error messages of those that failed."""
        bad: list[str] = []
        chunk: list[_Read] = []
        writing: deque[Future] = deque()
        with ThreadPoolExecutor(2, "photographs") as pool:
            try:
                for item, future in begin_ahead(pool, self._read, inputs, batch):
                    signals.check()
                    try:
                        chunk.append(_Read(item, *future.result()))
                    except InputError as error:
                        bad.append(str(error))
                    if len(chunk) == batch:
                        writing.extend(pool.submit(self._write, *done) for done in self._parse(chunk))
                        chunk = []
                    while len(writing) > batch:
                        writing.popleft().result()
                if chunk:
                    writing.extend(pool.submit(self._write, *done) for done in self._parse(chunk))
                while writing:
                    writing.popleft().result()
            finally:
                for future in writing:
                    future.cancel()
        return bad

    def _read(self, item: Input) -> tuple[Pyramid, list[Box]]:
        photograph = Pyramid(read_image(item.source))  # whole: the overlay shows it
        if self._face is None:
            return photograph, []
        try:
            return photograph, [box_of(self._face, photograph.shape)]
        except InputError as error:
            raise InputError(f"{item.source}: {error}") from error

    def _parse(self, chunk: Sequence[_Read]) -> Iterator[tuple[_Read, list[FacePrediction]]]:
        photographs = [read.photograph for read in chunk]
        boxes = [read.boxes for read in chunk] if self._face else None
        results = self._parser.predict(photographs, boxes, self._detect)
        for read, faces in zip(chunk, results, strict=True):
            if not faces:
                print(f"icnn.parse: {read.item.source}: no face found", file=sys.stderr)
            yield read, faces

    def _write(self, read: _Read, faces: list[FacePrediction]) -> None:
        """Resample the labels to full size and write all results, concurrently with the next batch."""
        target = self._out / read.item.output
        parsed = result_of(read.photograph.shape, faces)
        target.parent.mkdir(parents=True, exist_ok=True)

        _save(label_image(parsed.labels), _beside(target, "_labels.png"))
        _save(overlay_image(read.photograph.pixels, parsed.labels), _beside(target, "_overlay.png"))
        if self._parts:
            mask = np.isin(parsed.labels, self._parts)
            _save(Image.fromarray(255 * mask.astype(np.uint8)), _beside(target, "_mask.png"))
        with atomic_path(_beside(target, _LAST)) as path:
            path.write_text(json.dumps(described(read.item.source, parsed), indent=1) + "\n")


_LAST = ".json"  # written last, so its existence means that all results are complete


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(target.name + ending)


def _save(image: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        image.save(temporary, "PNG", compress_level=1)  # a third of the default level's time for a fifth more bytes


if __name__ == "__main__":
    run(main, "icnn.parse")
