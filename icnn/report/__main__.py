"""``python -m icnn.report``: compare runs, finished or not: scores, validation F and differing settings."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icnn.cli import Parser, existing_folder, run, text_table
from icnn.config import flat, load_config
from icnn.errors import InputError
from icnn.evaluate.metrics import MEASURES
from icnn.report.charts import LINES, Series, line_chart
from icnn.report.formats import digits, part_name, score_cells
from icnn.report.page import best_of, entries_of
from icnn.report.render import write_page
from icnn.stages import NETWORKS
from icnn.train.run_folder import Run


@dataclass(frozen=True)
class Compared:
    """Data of one run in the comparison.

    Attributes
    ----------
    name : str
        Name of its folder, with as many parent folders as make it unique.
    settings : dict of str to str
        Flattened configuration.
    log : list of dict
        Entries of log.jsonl.
    evaluation : dict
        Contents of evaluation.json; empty until training has finished.
    """

    name: str
    settings: dict[str, str]
    log: list[dict[str, Any]]
    evaluation: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    parser = Parser(
        prog="python -m icnn.report",
        description="Compare runs: F-measures end to end, each network's best validation F, and the settings that "
        "differ. Runs need not be finished.",
    )
    parser.add_argument("runs", nargs="+", type=existing_folder, metavar="RUN", help="folders of icnn.train")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with their curves")
    options = parser.parse_args(argv)
    if options.html and len(options.runs) > len(LINES):
        parser.error(f"argument --html: expected at most {len(LINES)} runs, got {len(options.runs)}")
    runs = [read_run(folder, name) for folder, name in zip(options.runs, names_of(options.runs), strict=True)]
    print("\n\n".join(text_table([heads, *rows], 1) for heads, rows in _tables(runs) if rows))
    if options.html:
        if not options.html.parent.is_dir():
            parser.error(f"argument --html: expected a file in a folder that exists, got {options.html}")
        _write_html(options.html, runs)
    return 0


def names_of(folders: Sequence[Path]) -> list[str]:
    """Return the shortest path suffixes, all of one depth, that distinguish the folders."""
    parts = [folder.resolve().parts for folder in folders]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def read_run(folder: Path, name: str) -> Compared:
    """Read the settings and log of a run, and its evaluation if it exists.

    Raises
    ------
    InputError
        If the folder is not a run, or its evaluation is corrupted.
    """
    the_run = Run(folder)
    config = load_config(the_run.config_path)
    path = folder / "evaluation.json"
    evaluation = _read_scores(path) if path.exists() else {}
    return Compared(name, flat(config), the_run.read_log(), evaluation)


def _read_scores(path: Path) -> dict[str, Any]:
    wrong = InputError(f"{path}: expected the scores of a run, got something else; train --resume makes it anew")
    try:
        evaluation = json.loads(path.read_text("utf-8"))
        scores = [f for crops in evaluation["crops"].values() for f in crops.values() if f is not None]
        if not isinstance(evaluation["split"], str) or not all(0 <= f <= 1 for f in scores):
            raise wrong
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise wrong from None
    return evaluation


# ---------------------------------------------------------------- tables

#: Column headings, and rows whose first cell is a name.
_Table = tuple[list[str], list[list[str]]]


def _tables(runs: Sequence[Compared]) -> Iterator[_Table]:
    yield _scores(runs)
    yield _validation(runs)
    yield _differences(runs)


def _scores(runs: Sequence[Compared]) -> _Table:
    rows = []
    for one in runs:
        crops = one.evaluation.get("crops", {})
        split = one.evaluation.get("split", "not evaluated yet")
        rows.append([one.name, split, *score_cells(crops.get("predicted", {}))])
    return ["F, end to end", "split", *map(part_name, MEASURES)], rows


def _validation(runs: Sequence[Compared]) -> _Table:
    rows = []
    for one in runs:
        cells = []
        for network in NETWORKS:
            entries, best = entries_of(one.log, network), best_of(one.log, network)
            cells.append(f"{digits(best and best[0])} at most, {entries[-1][0]:,.0f} steps" if entries else "–")
        rows.append([one.name, *cells])
    return ["validation F", *NETWORKS], rows


def _differences(runs: Sequence[Compared]) -> _Table:
    keys = dict.fromkeys(key for one in runs for key in one.settings)
    rows = []
    for key in keys:
        values = [one.settings.get(key, "–") for one in runs]
        if len(set(values)) > 1:
            rows.append([key, *values])
    return ["settings that differ", *(one.name for one in runs)], rows


# ---------------------------------------------------------------- page


def _write_html(path: Path, runs: Sequence[Compared]) -> None:
    networks = []
    for network in NETWORKS:
        charts = [_chart(runs, network, "validation_loss", log=True), _chart(runs, network, "validation_f")]
        if any(charts):
            networks.append((network, charts))
    write_page(
        path,
        "compare.html",
        title="Runs beside each other",
        names=[one.name for one in runs],
        scores=_scores(runs),
        validation=_validation(runs),
        differences=_differences(runs),
        networks=networks,
    )


def _chart(runs: Sequence[Compared], network: str, key: str, log: bool = False) -> str:
    lines = [
        Series(one.name, [(step, entry.get(key)) for step, entry in entries_of(one.log, network)], n)
        for n, one in enumerate(runs)
    ]
    return line_chart(f"{part_name(key).replace(' f', ' F')}{', logarithmic' if log else ''}", lines, log, legend=False)


if __name__ == "__main__":
    run(main, "icnn.report")
