"""Report of a run: a text table for the terminal, and what `report.html` shows, by the template of that name."""

import math
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from icnn.classes import COLOURS, PARTS
from icnn.cli import text_table
from icnn.evaluate.metrics import MEASURES
from icnn.report.charts import Series, histogram, line_chart
from icnn.report.formats import count, digits, finite, part_name, score_cells
from icnn.report.render import write_page
from icnn.stages import NETWORKS

#: Key of `evaluation["crops"]` -> row name in the table.
CONDITIONS = {"predicted": "this run, end to end", "ground_truth": "this run, ground-truth centres"}

#: The paper's Table 1: model -> measure -> F; None for n/a. The paper does not report ``overall_union``.
PAPER = {
    name: dict(zip(MEASURES[:-1], figures, strict=True))
    for name, figures in {
        "[13] Zhu & Ramanan 2012": (0.533, None, None, 0.425, 0.472, 0.455, 0.687, None),
        "[14] Saragih et al. 2009": (0.679, 0.598, 0.890, 0.600, 0.579, 0.579, 0.769, 0.733),
        "[15] Liu et al. 2011": (0.770, 0.640, 0.843, 0.601, 0.650, 0.618, 0.742, 0.738),
        "[16] Gu & Kanade 2008": (0.743, 0.681, 0.889, 0.545, 0.568, 0.599, 0.789, 0.746),
        "[5] Smith et al. 2013": (0.785, 0.722, 0.922, 0.713, 0.651, 0.700, 0.857, 0.804),
        "iCNNs (the paper)": (0.813, 0.874, 0.950, 0.754, 0.836, 0.809, 0.926, 0.873),
    }.items()
}

#: Shown wherever the paper's figures appear beside ours.
PAPER_NOTE = (
    "The paper's Table 1: these figures come from the paper's Helen split (2,000 training images, "
    "100 test images), not from these data. Its overall stands under overall micro, the metric that it fits; "
    "face skin is left out."
)


@dataclass(frozen=True, eq=False)  # eq would compare arrays, whose truth value is ambiguous
class Example:
    """One face with prediction and ground truth, as in the paper's Fig. 4.

    Parameters
    ----------
    name : str
    image : (H, W, 3) uint8
    truth, prediction : (H, W) uint8
        Ids of `icnn.classes.PARTS`.
    f : float or None
        ``overall_micro`` of this image.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    f: float | None


@dataclass(frozen=True, eq=False)
class PatchExample:
    """One stage-2 patch, as given to its network.

    Parameters
    ----------
    name : str
    image : (S, S, 3) uint8
        Mirrored if `mirrored` is true.
    labels : (S, S) uint8
        Ids of `icnn.classes.PARTS`, not those of the network.
    mirrored : bool
    centre : (float, float)
        x and y in the photograph, in pixels.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray
    mirrored: bool
    centre: tuple[float, float]


@dataclass(frozen=True, eq=False)
class PipelineExample:
    """Intermediate results of both stages on one face, as in the paper's Fig. 2.

    Parameters
    ----------
    image : (H, W, 3) uint8
    stage1_image : (64, 64, 3) uint8
    stage1_labels : (64, 64) uint8
    patches : tuple of PatchExample
    result : (H, W) uint8
        Final label map.
    """

    image: np.ndarray
    stage1_image: np.ndarray
    stage1_labels: np.ndarray
    patches: tuple[PatchExample, ...]
    result: np.ndarray


def format_table(
    evaluation: Mapping[str, Any],
    rows: Iterable[tuple[str, Mapping[str, float | None]]] = (),
    source: str | None = None,
) -> str:
    """Format an evaluation next to the paper's Table 1, as text for the terminal.

    Parameters
    ----------
    evaluation : mapping
        {"split", "images", "crops": {"predicted": {measure: F}, "ground_truth": {measure: F}}}.
    rows : iterable of (name, {measure: F})
        Further models evaluated on the same data, listed below our rows.
    source : str, optional
        Description of the evaluation data, one sentence.

    Returns
    -------
    str
        Lines of text, without a trailing newline.
    """
    ours = [(name, *score_cells(row)) for name, row in (*_our_rows(evaluation), *rows)]
    paper = [(name, *score_cells(row, "n/a")) for name, row in PAPER.items()]
    names = [part_name(measure).rpartition(" ")[::2] for measure in MEASURES]
    heads = [("", *(first for first, _ in names)), ("", *(last.rjust(5) for _, last in names))]
    lines = text_table([*heads, *ours, *paper], 1).splitlines()
    own = len(heads) + len(ours)
    width = max(map(len, lines))
    return "\n".join(
        [
            f"F-measure, {_counted(evaluation)}",
            "",
            *lines[:own],
            *textwrap.wrap(_source_line(evaluation, source), width),
            "",
            *textwrap.wrap(PAPER_NOTE, width),
            *lines[own:],
        ]
    )


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    evaluation: Mapping[str, Any],
    details: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
    config_text: str,
    examples: Sequence[Example],
    pipeline: PipelineExample | None,
) -> None:
    """Write the HTML report of a run atomically.

    Parameters
    ----------
    path : path-like
        File to write; its folder must exist.
    title : str
    evaluation : mapping
        As for `format_table`.
    details : mapping
        Any of "source", "names", "confusion", "per_image", "centres", "baselines" and "modulation";
        sections whose key is missing are omitted.
    log : sequence of mappings
        Entries of log.jsonl; entries that do not belong to a network are ignored.
    config_text : str
        Configuration of the run, as TOML.
    examples : sequence of Example
    pipeline : PipelineExample or None
    """
    source = details.get("source")
    write_page(
        path,
        "report.html",
        title=title,
        evaluated=_counted(evaluation),
        source=source,
        source_line=_source_line(evaluation, source),
        measures=MEASURES,
        ours=_our_rows(evaluation),
        baselines=details.get("baselines") or {},
        paper=PAPER,
        paper_note=PAPER_NOTE,
        parts=list(zip(map(part_name, PARTS), COLOURS.tolist(), strict=True)),
        examples=examples,
        pipeline=pipeline,
        distribution=_distribution(details),
        confusions=_by_condition(details.get("confusion")),
        centres=details.get("centres"),
        modulation=[(name, fit, _gain(fit)) for name, fit in (details.get("modulation") or {}).items()],
        training=training_curves(log),
        config_text=config_text,
    )


def _counted(evaluation: Mapping[str, Any]) -> str:
    return f"{count(evaluation.get('images', 0), 'image')} of the split {evaluation.get('split', '–')}"


def _source_line(evaluation: Mapping[str, Any], source: str | None) -> str:
    return f"The figures above: {source or _counted(evaluation) + '.'}"


def _by_condition(values: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    """Return (row name, value) for each key of `CONDITIONS` that is present."""
    return [(name, values[key]) for key, name in CONDITIONS.items() if values and key in values]


def _our_rows(evaluation: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return _by_condition(evaluation.get("crops"))


def _distribution(details: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return histograms of F, the number of images without F, and the lowest F with names; None without any F."""
    given = _by_condition(details.get("per_image"))
    found = {name: [v for v in map(finite, values) if v is not None] for name, values in given}
    found = {name: values for name, values in found.items() if values}
    if not found:
        return None
    least = min(map(min, found.values()))
    step = next((s for s in (0.01, 0.02) if (1 - least) / s <= 25), 0.05)
    bins = round(1 / step)
    first = min(max(math.floor(least / step - 1e-6), 0), bins - 1)
    edges = [i / bins for i in range(first, bins + 1)]  # the last edge is exactly 1, so that F = 1 is included
    top = max(int(np.histogram(values, edges)[0].max()) for values in found.values())
    charts = []
    for name, values in found.items():
        marks = ((float(np.percentile(values, q)), text) for q, text in ((50, "median"), (5, "5\N{NO-BREAK SPACE}%")))
        labelled = [(value, f"{text} {digits(value)}") for value, text in marks]
        charts.append(histogram(name.partition(", ")[2], values, edges, labelled, top))
    without = max(len(values) - len(found[name]) for name, values in given if name in found)
    return {"charts": charts, "without": without, "lowest": _lowest(details)}


def _lowest(details: Mapping[str, Any], most: int = 5) -> list[tuple[float, str]]:
    values = details["per_image"].get("predicted") or ()
    pairs = zip(map(finite, values), map(str, details.get("names") or ()), strict=False)
    return sorted((f, name) for f, name in pairs if f is not None)[:most]


def _gain(fit: Mapping[str, Any]) -> str:
    before, after = finite(fit.get("before")), finite(fit.get("after"))
    return "–" if before is None or after is None else f"{after - before:+.3f}".replace("0.", ".", 1)


def entries_of(log: Sequence[Mapping[str, Any]], network: str) -> list[tuple[float, dict[str, Any]]]:
    """Return (step, entry) of one network sorted by step; a resumed run repeats steps, and later values win."""
    by_step: dict[float, dict[str, Any]] = {}
    for entry in log:
        step = finite(entry.get("step"))
        if entry.get("network") == network and step is not None:
            known = {key: value for key, value in entry.items() if value is not None}
            by_step.setdefault(step, {}).update(known)
    return sorted(by_step.items())


def best_of(log: Sequence[Mapping[str, Any]], network: str) -> tuple[float, float] | None:
    """Return the best validation F of a network and the first step that reached it; None without validation."""
    scores = [(finite(entry.get("validation_f")), step) for step, entry in entries_of(log, network)]
    return max(((f, step) for f, step in scores if f is not None), key=lambda score: score[0], default=None)


def training_curves(log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return name, facts and charts (loss, validation F) of each network with log entries, for the templates."""
    shown = []
    for network in NETWORKS:
        entries = entries_of(log, network)

        def series(name: str, key: str, colour: int = 0, entries=entries) -> Series:
            return Series(name, [(step, entry.get(key)) for step, entry in entries], colour)

        loss = [series("training", "loss"), series("validation", "validation_loss", 1)]
        score = series("validation", "validation_f", 1)
        charts = [line_chart("loss, logarithmic", loss, log=True), line_chart("validation F", [score])]
        if any(charts):
            shown.append({"name": network, "facts": _facts(entries, best_of(log, network)), "charts": charts})
    return shown


def _facts(entries: Sequence[tuple[float, Mapping[str, Any]]], best: tuple[float, float] | None) -> str:
    facts = [count(round(entries[-1][0]), "step")]
    if best:
        facts.append(f"best F {digits(best[0])} at step {best[1]:,.0f}")
    rates = [r for _, entry in entries if (r := finite(entry.get("images_per_second"))) is not None]
    if rates:
        facts.append(f"{float(np.median(rates)):,.0f}\N{NO-BREAK SPACE}images/s")
    return ", ".join(facts)
