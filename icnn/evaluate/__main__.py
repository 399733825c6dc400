"""``python -m icnn.evaluate``: evaluate a folder of weights on annotated faces."""

from collections.abc import Sequence
from pathlib import Path

from icnn.cli import Parser, Signals, compilation_announced, existing_folder, limit_memory, positive, run
from icnn.data.folder import SPLITS, SmithFolder
from icnn.evaluate.scoring import evaluate
from icnn.model.pipeline import load_pipeline
from icnn.model.weights import SHIPPED
from icnn.report.page import format_table
from icnn.train.run_folder import write_json
from minicnn.kernels import choose_backend


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    parser = Parser(
        prog="python -m icnn.evaluate",
        description="Parse the faces of a split end to end, with patches around predicted and around true centres, "
        "and print the table of F-measures.",
    )
    parser.add_argument(
        "--data",
        type=existing_folder,
        required=True,
        metavar="DIR",
        help="faces in the layout of Smith et al.",
    )
    parser.add_weights(SHIPPED)
    parser.add_argument("--split", choices=SPLITS, default="testing", help="default: testing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.add_backend()
    parser.add_argument("--batch", type=positive, default=32, metavar="N", help="faces at a time (default: 32)")
    parser.add_threads()
    parser.add_memory()
    options = parser.parse_args(argv)
    limit_memory(options.memory)
    with Signals() as signals:
        backend, _ = choose_backend(options.backend)
        pipeline = load_pipeline(options.weights, backend, options.batch, options.threads)
        with compilation_announced():
            pipeline.warm_up()
        faces = SmithFolder(options.data).load_split(options.split)
        result = evaluate(pipeline, faces, options.batch, signals.tracked("evaluate"))
    summary = result.summary(options.split)
    source = f"photographs in {options.data.resolve().name}, F from {len(faces)} of {options.split}"
    print(format_table(summary, source=source))
    if options.json:
        write_json(options.json, summary)
    return 0


if __name__ == "__main__":
    run(main, "icnn.evaluate")
