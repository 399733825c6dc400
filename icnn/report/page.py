"""Report of a run: a text table for the terminal, and one self-contained HTML page.

The page has no scripts and loads no other files: images are embedded as PNG,
curves are inline SVG. All external text is escaped.
"""

import math
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from icnn.classes import COLOURS, PARTS
from icnn.data.overlay import label_picture, overlay
from icnn.evaluate.metrics import MEASURES
from icnn.report.charts import (
    PAGE_CSS,
    Series,
    count,
    data_uri,
    decimals,
    digits,
    esc,
    figure,
    finite,
    histogram,
    line_chart,
    picture,
    table,
    table_row,
)
from icnn.stages import NETWORKS
from minicnn.checkpoint import atomic_path

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
    ours = [*_our_rows(evaluation), *rows]
    width = max(len(name) for name, _ in (*ours, *PAPER.items()))
    heads = [measure.rpartition("_")[::2] for measure in MEASURES]
    cells = [max(5, *map(len, head)) for head in heads]

    def line(name: str, entries: Iterable[str]) -> str:
        return "  ".join([name.ljust(width), *(e.rjust(n) for e, n in zip(entries, cells, strict=True))]).rstrip()

    lines = [f"F-measure, {_counted(evaluation)}", ""]
    lines += [line("", (head[i].replace("_", " ") for head in heads)) for i in (0, 1)]
    lines += [line(name, score_cells(row)) for name, row in ours]
    total = width + sum(cells) + 2 * len(cells)
    lines += [*textwrap.wrap(_source_line(evaluation, source), total), ""]
    lines += textwrap.wrap(PAPER_NOTE, total)
    lines += [line(name, score_cells(row, "n/a")) for name, row in PAPER.items()]
    return "\n".join(lines)


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
    sections = (
        ("Scores", _scores(evaluation, details)),
        ("Colours and ids of the parts", _legend() if examples or pipeline else ""),
        ("Examples", _examples(examples)),
        ("Pipeline on one face", _pipeline(pipeline) if pipeline else ""),
        ("F over the images", _distribution(details)),
        ("Confusion of pixels", _confusions(details.get("confusion"))),
        ("Part centres", _centres(details.get("centres"))),
        ("Background modulation", _modulation(details.get("modulation"))),
        ("Training", training_curves(log)),
        ("Configuration", f"<pre>{esc(config_text)}</pre>" if config_text.strip() else ""),
    )
    write_page(path, title, _headline(evaluation, details), sections)


def write_page(
    path: str | os.PathLike[str], title: str, headline: str, sections: Iterable[tuple[str, str]], reload: int = 0
) -> None:
    """Write one HTML page atomically.

    Parameters
    ----------
    path : path-like
    title : str
    headline : str
        HTML below the title.
    sections : iterable of (heading, HTML)
        Sections with empty content are omitted.
    reload : int
        Seconds after which a browser reloads the page; 0 disables.
    """
    body = "".join(f"<section><h2>{name}</h2>{content}</section>" for name, content in sections if content)
    again = f'<meta http-equiv="refresh" content="{reload}">' if reload else ""
    head = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{again}<title>{esc(title)}</title><style>{PAGE_CSS}</style></head>"
    )
    body = f"<main><header><h1>{esc(title)}</h1>{headline}</header>{body}</main>"
    page = f"{head}<body>{body}</body></html>\n"
    with atomic_path(path) as temporary:
        temporary.write_text(page, "utf-8", errors="replace")  # a file name may contain bytes that do not decode


def _counted(evaluation: Mapping[str, Any]) -> str:
    return f"{count(evaluation.get('images', 0), 'image')} of the split {evaluation.get('split', '–')}"


def _source_line(evaluation: Mapping[str, Any], source: str | None) -> str:
    return f"The figures above: {source or _counted(evaluation) + '.'}"


def _our_rows(evaluation: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    crops = evaluation.get("crops", {})
    return [(name, crops[key]) for key, name in CONDITIONS.items() if key in crops]


def score_cells(row: Mapping[str, Any], missing: str = "–") -> list[str]:
    """Format the cells of a row; an absent measure becomes a dash, a measure of None becomes `missing`."""
    return [digits(row[measure], missing) if measure in row else "–" for measure in MEASURES]


def part_name(name: str) -> str:
    """Return a part's or measure's name with spaces instead of underscores."""
    return name.replace("_", " ")


# --- sections ---


def _headline(evaluation: Mapping[str, Any], details: Mapping[str, Any]) -> str:
    tiles = []
    for name, row in _our_rows(evaluation):
        figures = (f"<b>{digits(row.get(f'overall_{kind}'))}</b> {kind}" for kind in ("micro", "union"))
        tiles.append(f"<li>{esc(name)}<span>{' '.join(figures)}</span></li>")
    source = details.get("source")
    text = f'<p>F-measure, {esc(_counted(evaluation))}</p><ul class="tiles">{"".join(tiles)}</ul>'
    return text + (f'<p class="muted">{esc(source)}</p>' if source else "")


def _scores(evaluation: Mapping[str, Any], details: Mapping[str, Any]) -> str:
    def note(text: str) -> str:
        return f'<tr class="note"><td colspan="{1 + len(MEASURES)}"><span>{esc(text)}</span></td></tr>'

    ours = (table_row(name, score_cells(row), "strong") for name, row in _our_rows(evaluation))
    others = (table_row(name, score_cells(row)) for name, row in (details.get("baselines") or {}).items())
    paper = (table_row(name, score_cells(row, "n/a")) for name, row in PAPER.items())
    body = [*ours, *others, note(_source_line(evaluation, details.get("source"))), note(PAPER_NOTE), *paper]
    text = (
        "F = 2PR / (P + R), pixels of all images pooled, left and right merged. Overall micro sums the "
        "counts of the six parts, so a nose pixel called lip is an error; overall union takes them as one."
    )
    return f"<p>{text}</p>" + table(["", *map(part_name, MEASURES)], "".join(body))


def _legend() -> str:
    entries = []
    for i, (name, colour) in enumerate(zip(PARTS, COLOURS.tolist(), strict=True)):
        swatch = f'<i style="background:rgb({",".join(map(str, colour))})"></i>'
        entries.append(f"<li>{swatch}{i} {part_name(name)}</li>")
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _examples(examples: Sequence[Example]) -> str:
    if not examples:
        return ""
    cards = []
    for example in examples:
        pictures = (
            figure(picture(overlay(example.image, labels), f"{name} of {example.name}"), name)
            for labels, name in ((example.prediction, "prediction"), (example.truth, "ground truth"))
        )
        caption = f"<h3>{esc(example.name)} <small>F {digits(example.f)}</small></h3>"
        cards.append(f'<article>{caption}<div class="pair">{"".join(pictures)}</div></article>')
    text = "<p>As in the paper’s Fig. 4. F is overall micro of the one image.</p>"
    return f'{text}<div class="cards">{"".join(cards)}</div>'


def _pipeline(example: PipelineExample) -> str:
    first = (
        figure(_marked(example.image, example.patches), "1. photograph, with the centres from stage 1"),
        figure(picture(example.stage1_image, "stage 1 input", True), "2. what stage 1 sees"),
        figure(picture(label_picture(example.stage1_labels), "stage 1 labels", True), "3. its labels"),
    )
    patches = []
    for patch in example.patches:
        pair = picture(patch.image, patch.name, True)
        pair += picture(label_picture(patch.labels), f"labels of {patch.name}", True)
        side = f"{part_name(patch.name)}{', mirrored' if patch.mirrored else ''}"
        patches.append(figure(pair, f"{side}, {patch.image.shape[1]}\N{NO-BREAK SPACE}px"))
    last = (
        figure(picture(overlay(example.image, example.result), "result over the photograph"), "5. result"),
        figure(picture(label_picture(example.result), "labels of the result"), "its labels"),
    )
    return (
        "<p>As in the paper’s Fig. 2: stage 1 finds the parts in a small picture, stage 2 labels patches.</p>"
        f'<div class="steps">{"".join(first)}</div><p class="muted">4. what stage 2 sees, and its labels</p>'
        f'<div class="patches">{"".join(patches)}</div><div class="steps">{"".join(last)}</div>'
    )


def _marked(image: np.ndarray, patches: Sequence[PatchExample]) -> str:
    """Draw the photograph with a dot at each part centre, as one SVG element."""
    if image.size == 0:
        return picture(image, "")
    height, width = image.shape[:2]
    size = f'width="{width}" height="{height}"'
    radius = max(height, width) / 70
    dots = []
    for patch in patches:
        x, y = map(finite, patch.centre)
        if x is not None and y is not None:  # pixel centres are offset by half a pixel from the SVG corner
            dots.append(f'<circle cx="{x + 0.5:.1f}" cy="{y + 0.5:.1f}" r="{radius:.1f}"/>')
    return (
        f'<svg class="photo" viewBox="0 0 {width} {height}" {size} role="img" aria-label="photograph">'
        f'<image href="{data_uri(image)}" {size}/>{"".join(dots)}</svg>'
    )


def _distribution(details: Mapping[str, Any]) -> str:
    per_image = details.get("per_image") or {}
    found = {key: [v for v in map(finite, per_image.get(key) or ()) if v is not None] for key in CONDITIONS}
    found = {key: values for key, values in found.items() if values}
    if not found:
        return ""
    least = min(map(min, found.values()))
    step = next((s for s in (0.01, 0.02) if (1 - least) / s <= 25), 0.05)
    bins = round(1 / step)
    first = min(max(math.floor(least / step - 1e-6), 0), bins - 1)
    edges = [i / bins for i in range(first, bins + 1)]  # the last edge is exactly 1, so that F = 1 is included
    top = max(int(np.histogram(values, edges)[0].max()) for values in found.values())
    charts = []
    for key, values in found.items():
        marks = ((float(np.percentile(values, q)), name) for q, name in ((50, "median"), (5, "5\N{NO-BREAK SPACE}%")))
        labelled = [(value, f"{name} {digits(value)}") for value, name in marks]
        charts.append(histogram(CONDITIONS[key].partition(", ")[2], values, edges, labelled, top))
    without = max(len(per_image.get(key) or ()) - len(found.get(key, ())) for key in found)
    text = "<p>Overall micro of every image by itself; a twentieth of the images lies below 5&nbsp;%."
    text += f" Left out, having no part: {count(without, 'image')}.</p>" if without else "</p>"
    return f'{text}<div class="charts">{"".join(charts)}</div>{_lowest(details)}'


def _lowest(details: Mapping[str, Any], most: int = 5) -> str:
    values = (details.get("per_image") or {}).get("predicted") or ()
    pairs = zip(map(finite, values), map(str, details.get("names") or ()), strict=False)
    worst = sorted((f, name) for f, name in pairs if f is not None)[:most]
    text = ", ".join(f"{esc(name)} {digits(f)}" for f, name in worst)
    return f'<p class="muted">Lowest, end to end: {text}.</p>' if text else ""


def _confusions(confusion: Mapping[str, Any] | None) -> str:
    confusion = confusion or {}
    tables = [(name, _heat(confusion[key])) for key, name in CONDITIONS.items() if key in confusion]
    if not tables:
        return ""
    text = "<p>Rows: ground truth, columns: prediction. Per cent of the row’s pixels, and their number.</p>"
    # only the first is expanded, because the tables differ little
    folds = (
        f"<details{' open' if i == 0 else ''}><summary>{esc(name)}</summary>{heat}</details>"
        for i, (name, heat) in enumerate(tables)
    )
    return text + "".join(folds)


def _heat(matrix: Sequence[Sequence[int]]) -> str:
    rows = []
    for name, row in zip(PARTS, np.asarray(matrix).tolist(), strict=True):
        total, cells = sum(row), []
        for pixels in row:
            share = pixels / total if total else 0.0
            strength = 0.55 * share**0.5  # the square root makes errors of a few per cent visible
            text = f"{100 * share:.1f}<small>{pixels:,}</small>" if pixels else "–"
            cells.append(f'<span style="background:rgba(42,120,214,{strength:.3f})">{text}</span>')
        rows.append(table_row(part_name(name), cells))
    return f'<div class="heat">{table(["", *map(part_name, PARTS)], "".join(rows))}</div>'


def _centres(centres: Mapping[str, Any] | None) -> str:
    if not centres:
        return ""
    columns = {"median": 1, "p95": 1, "not_found": 0}  # key -> decimal places
    rows = (
        table_row(part_name(name), (decimals(centre.get(key), places) for key, places in columns.items()))
        for name, centre in centres.items()
    )
    text = "<p>How far stage 1 puts a part’s centre from the true one, in pixels of the photograph.</p>"
    return text + table(["", "median", "95 %", "not found"], "".join(rows))


def _modulation(modulation: Mapping[str, Any] | None) -> str:
    if not modulation:
        return ""
    rows = []
    for name, fit in modulation.items():
        before, after = finite(fit.get("before")), finite(fit.get("after"))
        gain = "–" if before is None or after is None else f"{after - before:+.3f}".replace("0.", ".", 1)
        figures = (decimals(fit.get("beta")), decimals(fit.get("beta0")), digits(before), digits(after), gain)
        rows.append(table_row(part_name(name), figures))
    text = "<p>The background map B becomes βB + β₀ (Sec. 4.2); F before and after on the data of the fit.</p>"
    return text + table(["", "β", "β₀", "before", "after", "gain"], "".join(rows))


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


def training_curves(log: Sequence[Mapping[str, Any]]) -> str:
    """Draw loss and validation F of each network with log entries, as HTML."""
    parts = []
    for network in NETWORKS:
        entries = entries_of(log, network)

        def series(name: str, key: str, colour: int = 0, entries=entries) -> Series:
            return Series(name, [(step, entry.get(key)) for step, entry in entries], colour)

        loss = [series("training", "loss"), series("validation", "validation_loss", 1)]
        score = series("validation", "validation_f", 1)
        charts = line_chart("loss, logarithmic", loss, log=True) + line_chart("validation F", [score])
        if charts:
            facts = _facts(entries, best_of(log, network))
            parts.append(f'<h3>{network} <small>{esc(facts)}</small></h3><div class="charts">{charts}</div>')
    return "".join(parts)


def _facts(entries: Sequence[tuple[float, Mapping[str, Any]]], best: tuple[float, float] | None) -> str:
    facts = [count(round(entries[-1][0]), "step")]
    if best:
        facts.append(f"best F {digits(best[0])} at step {best[1]:,.0f}")
    rates = [r for _, entry in entries if (r := finite(entry.get("images_per_second"))) is not None]
    if rates:
        facts.append(f"{float(np.median(rates)):,.0f}\N{NO-BREAK SPACE}images/s")
    return ", ".join(facts)
