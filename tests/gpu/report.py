"""The report as Markdown: a table for each part's figures, and what is wrong or lacking in front."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Figures = dict[str, Any]


def as_markdown(parts: dict[str, Figures]) -> str:
    """The whole report; `parts` are results by name, with a status each."""
    about = parts.get("machine", {})
    card = about.get("device") or about.get("card", {}).get("name") or "no card that can be used"
    overview = [[name, part["status"], _text(part.get("seconds")), _notes(part)] for name, part in parts.items()]
    lines = [f"# {card}", "", *table(["part", "status", "s", "notes"], overview)]
    if about.get("simulated"):
        lines += ["", "The card is this project's stand-in: no time in this file means anything."]
    for name, part in parts.items():
        body = list(_PARTS.get(name, _plain)(part)) if part["status"] != "left out" else []
        if part["status"] == "failed":
            body += ["", "```", part.get("output", "").strip(), "```"]
        if body:
            lines += ["", f"## {name}", "", *body]
    return "\n".join(lines) + "\n"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A table's lines."""
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(_text(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return " ".join(str(value).split())


def _notes(part: Figures) -> str:
    return "; ".join([*part.get("wrong", []), *part.get("lacking", []), *([part["why"]] if "why" in part else [])])


def _flat(figures: Figures, before: str = "") -> Iterable[tuple[str, object]]:
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name} ")
        elif not isinstance(value, list):
            yield before + name, value


def _plain(part: Figures) -> Iterable[str]:
    """Names and values."""
    left_out = ("status", "seconds", "wrong", "lacking", "output", "exit")
    rows = [[name, value] for name, value in _flat(part) if name not in left_out]
    return table(["", ""], rows) if rows else []


def _rows(key: str) -> Callable[[Figures], Iterable[str]]:
    """A table of a list of figures with the same names."""

    def lines(part: Figures) -> Iterable[str]:
        yield from _plain(part)
        rows = part.get(key) or []
        if rows:
            yield ""
            yield from table(list(rows[0]), [list(row.values()) for row in rows])

    return lines


def _curves(part: Figures) -> Iterable[str]:
    differences = part.get("largest_difference_from_numba", {})
    rows = [[name, losses[0], losses[-1], differences.get(name)] for name, losses in part.get("losses", {}).items()]
    return table(["training", "first loss", "last loss", "largest difference from numba"], rows)


def _steps(part: Figures) -> Iterable[str]:
    """ms of each case's variants, the fastest first."""
    for row in part.get("rows", []):
        share = f", {row['share_of_peak']:.0%} of the peak of multiply-adds" if row.get("share_of_peak") else ""
        yield f"{row['labels']} labels, {row['size']} px, batch {row['batch']}{share}:"
        yield ""
        order = sorted(row["variants"].items(), key=lambda item: item[1]["median"])
        yield from table(["ms of a step", "median", "p10", "p90"], [[name, *spread.values()] for name, spread in order])
        yield from (f"- {name}: not measured: {why}" for name, why in row["lacking"].items())
        yield ""


def _trace(part: Figures) -> Iterable[str]:
    for name, found in part.get("steps", {}).items():
        yield f"{part['case']}, {name}:"
        yield ""
        yield from table(["a step", ""], [[key, value] for key, value in found.items() if key != "longest"])
        yield ""
        yield from table(["kernel", "grid", "block", "times", "us"], [list(row.values()) for row in found["longest"]])
        yield ""


def _convolutions(part: Figures) -> Iterable[str]:
    rows = part.get("figures", {}).get("rows", [])
    if rows:
        heads = ["layer", "direction", "share_of_peak", *(name for name in rows[0] if name.endswith("ms"))]
        yield from table(heads, [[row.get(name) for name in heads] for row in rows])


def _counters(part: Figures) -> Iterable[str]:
    rows = part.get("rows", [])
    if rows:
        stalls = [", ".join(f"{name} {value:.2g}" for name, value in row["stalls"].items()) for row in rows]
        heads = [name for name in rows[0] if name != "stalls"]
        yield from table(
            [*heads, "stalls"], [[*map(row.get, heads), text] for row, text in zip(rows, stalls, strict=True)]
        )


_PARTS: dict[str, Callable[[Figures], Iterable[str]]] = {
    "compile": _rows("slowest"),
    "graphs": _rows("batches"),
    "accuracy": _rows("rows"),
    "curves": _curves,
    "one step": _steps,
    "own steps": _steps,
    "torch steps": _steps,
    "trace": _trace,
    "convolutions": _convolutions,
    "counters": _counters,
    "tests": _rows("failures"),
}
