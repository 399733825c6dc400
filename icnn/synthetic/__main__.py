"""``python -m icnn.synthetic``: write a folder of synthetic faces in the layout of Smith et al."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from icnn.cli import Parser, Signals, natural, positive, run
from icnn.data.write_folder import write_split
from icnn.synthetic.faces import write_synthetic_face
from icnn.synthetic.processes import process_count, process_map
from minicnn.kernels.host import cores


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    parser = Parser(
        prog="python -m icnn.synthetic",
        description="Write procedural faces in the layout of Smith et al.: 80 % exemplars, 10 % tuning, 10 % testing.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--count", type=positive, required=True, metavar="N", help="faces, at least 10")
    parser.add_argument("--seed", type=natural, default=0, metavar="S", help="same N and S, same folder (default: 0)")
    parser.add_threads()
    options = parser.parse_args(argv)
    root, count = options.out, options.count
    if count < 10:
        parser.error(f"argument --count: expected at least 10, one in ten for testing, got {count}")
    if root.exists() and not (root.is_dir() and next(root.iterdir(), None) is None):
        parser.error(f"argument --out: expected a new or empty folder, got {root}, which is not")
    processes = process_count(count, options.threads or cores())
    names = []
    with Signals() as signals, process_map(processes, signals) as spread:
        written = spread(partial(write_synthetic_face, root, options.seed), range(count))
        for _, name in zip(signals.tracked("drawing faces")(range(count)), written, strict=True):
            names.append(name)
    tenth = count // 10
    write_split(root, "exemplars", names[: -2 * tenth])
    write_split(root, "tuning", names[-2 * tenth : -tenth])
    write_split(root, "testing", names[-tenth:])
    return 0


if __name__ == "__main__":
    run(main, "icnn.synthetic")
