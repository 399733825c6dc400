"""``python -m icnn.convert``: convert other labelled face data sets, as downloaded, into a training folder."""

import sys
from collections.abc import Sequence
from pathlib import Path

from icnn.cli import Parser, Signals, existing_folder, positive, progress, run
from icnn.convert.formats import FORMATS, Source
from icnn.data.folder import SPLITS
from icnn.data.write_folder import write_face, write_split
from icnn.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    parser = Parser(
        prog="python -m icnn.convert",
        description="Turn faces of another data set into a folder in the layout of Smith et al.: square photographs "
        "of one size, in which the face is as large as the networks expect it.",
    )
    parser.add_argument("format", choices=FORMATS, help="the data set: Helen with its 194 points, LaPa, CelebAMask-HQ")
    parser.add_argument("source", type=existing_folder, metavar="SOURCE", help="its folder, as it was unpacked")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument(
        "--size", type=positive, default=256, metavar="N", help="side of the photographs (default: 256)"
    )
    parser.add_argument(
        "--face",
        type=positive,
        default=140,
        metavar="N",
        help="longer side of a face, eyebrows to chin and ear to ear, in pixels (default: 140)",
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="for a try: N faces, spread over all of them")
    options = parser.parse_args(argv)
    root = options.out
    if options.face > options.size:
        parser.error(f"argument --face: expected at most --size, {options.size}, got {options.face}")
    if root.exists() and not (root.is_dir() and next(root.iterdir(), None) is None):
        parser.error(f"argument --out: expected a new or empty folder, got {root}, which is not")
    sources = choose(FORMATS[options.format](options.source), options.limit)
    if not sources:
        parser.error(f"argument SOURCE: expected faces of {options.format} in {options.source}, found none")
    with Signals() as signals:
        written, skipped = convert(sources, root, options.size, options.face, signals)
        for message in skipped:
            print(f"icnn.convert: skipped: {message}", file=sys.stderr)
        done = any(written.values())
        for split in SPLITS if done else ():
            write_split(root, split, written[split])
        signals.check()
    if not done:
        raise InputError(f"none of {len(sources)} faces could be converted, for the reasons above")
    print(", ".join(f"{len(written[split])} {split}" for split in SPLITS), f"written to {root}")
    if skipped:
        raise InputError(f"{len(skipped)} of {len(sources)} faces skipped, for the reasons above")
    return 0


def choose(sources: list[Source], limit: int | None) -> list[Source]:
    """Return all faces, or `limit` of them, sampled evenly so that each split keeps its share."""
    if limit is None or limit >= len(sources):
        return sources
    ordered = sorted(sources, key=lambda source: SPLITS.index(source.split))
    return [ordered[index * len(ordered) // limit] for index in range(limit)]


def convert(
    sources: Sequence[Source], root: Path, size: int, face: int, signals: Signals
) -> tuple[dict[str, list[str]], list[str]]:
    """Convert faces and write them below `root`; stop early on a signal.

    Parameters
    ----------
    sources : sequence of Source
    root : Path
        Output folder.
    size, face : int
        Side of the photographs and longer side of a face, pixels.

    Returns
    -------
    written : dict of str to list of str
        Names of the written faces by split.
    skipped : list of str
        Error message of each face that could not be converted.

    Raises
    ------
    InputError
        If a face cannot be written.
    """
    written: dict[str, list[str]] = {split: [] for split in SPLITS}
    skipped = []
    for source in progress(sources, "converting faces"):
        if signals.number:
            break
        try:
            image, maps = source.read(size, face)
        except InputError as error:
            skipped.append(str(error))
            continue
        write_face(root, source.name, image, maps)
        written[source.split].append(source.name)
    return written, skipped


if __name__ == "__main__":
    run(main, "icnn.convert")
