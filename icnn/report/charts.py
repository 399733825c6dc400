"""Generic building blocks of an HTML page: inline SVG charts, tables, images and a style sheet.

The charts use CSS classes instead of colours. `PAGE_CSS` colours them, so the
same SVG works on a light and on a dark page.
"""

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

#: Style sheet of the page, for light and dark mode.
PAGE_CSS = """\
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #1d1f23; --muted: #64686f; --grid: #e3e4e6;
  --first: #2a78d6; --second: #d0601a; --third: #2f8f4e; --fourth: #9a4fc0; --fifth: #b8901a; --sixth: #c2436f;
  --gap: .28rem }
@media (prefers-color-scheme: dark) {
  :root { --paper: #17191c; --ink: #e6e7e9; --muted: #9a9fa7; --grid: #34373c;
    --first: #64a6f4; --second: #f0924f; --third: #66c486; --fourth: #c793e6; --fifth: #e0bd5a; --sixth: #ee86a8 }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  -webkit-text-size-adjust: 100% }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1rem 4rem }
h1, h2, h3 { font-weight: 600; line-height: 1.25; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; margin: 0 0 .3rem } h3 { font-size: 1rem; margin: 1.4rem 0 .5rem }
h2 { font-size: 1.15rem; margin: 2.8rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--grid) }
p { margin: 0 0 .8rem; max-width: 44rem; overflow-wrap: anywhere }
h3 small, .muted, figcaption { color: var(--muted); font-weight: 400; font-size: .85rem }
ul { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; font-size: .85rem }
.tiles { gap: .4rem 2.5rem; margin: 1rem 0; color: var(--muted) }
.tiles span { display: block } .tiles b { color: var(--ink); font-size: 1.6rem; font-weight: 600 }
.legend { gap: .3rem 1.1rem; margin: 0 0 1rem }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .45em;
  border: 1px solid var(--muted) }
.scroll { overflow-x: auto; margin: 0 0 .8rem }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums }
td, thead th { text-align: right; padding: var(--gap) .55rem; vertical-align: bottom }
th { font-weight: 400 } .strong th, .strong td { font-weight: 600 }
thead th { color: var(--muted); border-bottom: 1px solid var(--muted); line-height: 1.2 }
tbody th { position: sticky; left: 0; background: var(--paper); text-align: left;
  padding: var(--gap) .8rem var(--gap) 0; min-width: 7.5rem }
tbody tr + tr > * { border-top: 1px solid var(--grid) }
@media (min-width: 48rem) { tbody th { white-space: nowrap } }
.note td { text-align: left; padding: .5rem 0; color: var(--muted) }
.note span { position: sticky; left: 0; display: inline-block; max-width: min(44rem, 100vw - 2rem) }
.heat td { padding: 1px } .heat tbody tr + tr > * { border: 0 }
.heat td span { display: block; padding: .2rem .45rem; min-width: 3.6rem }
.heat td small { display: block; font-size: .72rem; opacity: .75 }
.charts, .cards, .steps, .patches { display: grid; gap: 1.2rem 1rem; margin: 0 0 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--least)), 1fr)) }
.charts { --least: 19rem; column-gap: 2rem } .charts > * { max-width: 30rem }
.cards { --least: 20rem; column-gap: 2rem } .cards h3 { margin: .4rem 0 }
.cards > * { max-width: 34rem; min-width: 0 }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem } .steps { --least: 11rem }
.sheets { display: grid; gap: 1.2rem; max-width: 34rem }
.patches { --least: 6.2rem } .patches img + img { margin-top: 3px } figure { margin: 0; min-width: 0 }
img, .photo { display: block; width: 100%; height: auto; border-radius: 2px }
.pixels { image-rendering: pixelated } .photo circle { fill: #fff; stroke: #000; stroke-width: .6% }
summary { cursor: pointer; margin: .5rem 0 }
pre { overflow-x: auto; font-size: .8rem; line-height: 1.45; border: 1px solid var(--grid);
  padding: .8rem; margin: 0 }
.chart { display: block; width: 100%; height: auto; overflow: visible; font-size: 11px }
.chart text { fill: var(--muted); font-variant-numeric: tabular-nums }
.chart .title { fill: var(--ink) }
.chart .grid { stroke: var(--grid) }
.chart .axis { stroke: var(--muted) }
.chart .line { fill: none; stroke-width: 1.6; stroke-linejoin: round; stroke-linecap: round }
.s0 { color: var(--first) } .s1 { color: var(--second) } .s2 { color: var(--third) } .s3 { color: var(--fourth) }
.s4 { color: var(--fifth) } .s5 { color: var(--sixth) } .legend .key { background: currentColor; border: 0 }
.chart .line { stroke: currentColor } .chart .dot { fill: currentColor }
.chart .bar { fill: var(--first); fill-opacity: .55 }
.chart .mark { stroke: var(--ink); stroke-dasharray: 3 3 }
"""

# Plot area inside an SVG of WIDTH x HEIGHT user units; one unit is about one CSS pixel on a phone.
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 350, 26, 180

#: Maximum number of points of a line; longer series are averaged in groups, which also smooths a noisy loss.
POINTS = 300

#: Number of distinguishable line colours in one chart.
COLOURS = 6

#: Maximum side of an image on the page, in pixels; larger images are scaled down.
LONGEST = 512


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Parameters
    ----------
    name : str
        Label in the legend.
    points : sequence of (x, y)
        Sorted by x; points whose y is None or not finite are skipped.
    colour : int
        Colour index, 0 to COLOURS - 1.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    colour: int = 0


@dataclass(frozen=True)
class _Axis:
    """Map from values to user units: `low` to `start`, `high` to `end`, linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (math.log(v) if self.log else v for v in (self.low, self.high))
        share = ((math.log(value) if self.log else value) - low) / (high - low)
        return self.start + share * (self.end - self.start)


def finite(value: Any) -> float | None:
    """Return `value` as a float, or None if it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return None
    return float(value) if math.isfinite(value) else None


def linear_ticks(low: float, high: float, most: int = 6, outwards: bool = False) -> list[float]:
    """Return linear axis ticks: multiples of 1, 2 or 5 times a power of ten.

    The ticks lie in [low, high] and are at most `most` + 1; with `outwards`
    a tick is added at each end if needed to enclose `low` and `high`.
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= (high - low) / most * (1 - 1e-9))
    if outwards:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    else:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return logarithmic axis ticks in [low, high]: 1, 2 and 5 per decade, or fewer for long axes."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for leading in ((1, 2, 5), (1,)):
        ticks = [float(f"{digit}e{decade}") for decade in decades for digit in leading]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            break
    else:
        ticks = ticks[:: math.ceil(len(ticks) / most)]
    return ticks if len(ticks) > 1 else linear_ticks(low, high, most)


def line_chart(title: str, series: Sequence[Series], log: bool = False, legend: bool = True) -> str:
    """Draw a line chart over training steps.

    Parameters
    ----------
    title : str
        Name of the y axis, drawn above it.
    series : sequence of Series
    log : bool
        Use a logarithmic y axis; non-positive points are skipped.
    legend : bool
        Name the lines if there are several; only two names fit.

    Returns
    -------
    str
        An <svg> element, or "" if no series has a point.
    """
    lines = [(line, points) for line in series if (points := _thin(_clean(line.points, log)))]
    if not lines:
        return ""
    values = [value for _, points in lines for _, value in points]
    right = max(step for _, points in lines for step, _ in points)
    x = _Axis(0, right if right > 0 else 1, LEFT, RIGHT)
    if log:
        low, high = min(values) / 1.1, max(values) * 1.1
        ticks = log_ticks(low, high)
    else:  # the axis ends at the ticks that enclose the values
        ticks = linear_ticks(*_span(values), outwards=True)
        low, high = ticks[0], ticks[-1]
    y = _Axis(low, high, BOTTOM, TOP, log)
    body = [_frame(x, y, ticks, "step")]
    for i, (line, points) in enumerate(lines):
        body.append(_line(x, y, points, line.colour))
        if legend and len(series) > 1:
            body.append(_legend(line, len(lines) - 1 - i))
    return _svg(title, f"{title} over steps", body)


def histogram(
    title: str,
    values: Sequence[float],
    edges: Sequence[float],
    marks: Sequence[tuple[float, str]],
    top: float,
) -> str:
    """Draw a histogram of `values` with the given bin edges.

    Parameters
    ----------
    title : str
    values : sequence of float
    edges : sequence of float
        Ascending bin edges; the first and last are the ends of the x axis.
    marks : sequence of (value, text)
        Labelled vertical lines; each label has its own row.
    top : float
        Maximum of the y axis, so that two histograms can share one scale.

    Returns
    -------
    str
        An <svg> element.
    """
    counts, bins = np.histogram(values, edges)
    x, y = _Axis(edges[0], edges[-1], LEFT, RIGHT), _Axis(0, max(top, 1), BOTTOM, TOP + 13 * len(marks))
    body = [_frame(x, y, [t for t in linear_ticks(0, max(top, 1), 5) if t == round(t)], "F")]
    for height, start, end in zip(counts, bins[:-1], bins[1:], strict=True):
        if height:
            size = f'width="{max(x(end) - x(start) - 1, 0.5):.1f}" height="{BOTTOM - y(height):.1f}"'
            body.append(f'<rect class="bar" x="{x(start) + 0.5:.1f}" y="{y(height):.1f}" {size}/>')
    for row, (value, text) in enumerate(marks):
        at, level = x(value), TOP + 13 * row
        side, shift = ("end", -4) if at > (LEFT + RIGHT) / 2 else ("start", 4)
        body.append(f'<line class="mark" x1="{at:.1f}" y1="{level - 4}" x2="{at:.1f}" y2="{BOTTOM}"/>')
        body.append(_text(at + shift, level + 4, text, side))
    return _svg(title, f"{title}: histogram of {len(values)} values", body)


def _clean(points: Sequence[tuple[float, float | None]], log: bool) -> list[tuple[float, float]]:
    pairs = ((finite(x), finite(y)) for x, y in points)
    return [(x, y) for x, y in pairs if x is not None and y is not None and (y > 0 or not log)]


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average consecutive groups of points so that at most POINTS remain."""
    size = math.ceil(len(points) / POINTS)
    groups = (points[i : i + size] for i in range(0, len(points), max(size, 1)))
    return [(math.fsum(x for x, _ in g) / len(g), math.fsum(y for _, y in g) / len(g)) for g in groups]


def _span(values: list[float]) -> tuple[float, float]:
    """Return the range of the values, widened if they are equal up to rounding."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    if high - low > 1e-9 * size:
        return low, high
    margin = size / 10 or 1.0
    return (max(low - margin, 0.0) if low >= 0 else low - margin), high + margin


def _frame(x: _Axis, y: _Axis, y_ticks: list[float], x_title: str) -> str:
    parts = []
    for tick in y_ticks:
        at = y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{at:.1f}" x2="{RIGHT}" y2="{at:.1f}"/>')
        parts.append(_text(LEFT - 6, at + 4, _number(tick), "end"))
    for tick in linear_ticks(x.low, x.high):
        at = x(tick)
        parts.append(f'<line class="axis" x1="{at:.1f}" y1="{BOTTOM}" x2="{at:.1f}" y2="{BOTTOM + 4}"/>')
        parts.append(_text(at, BOTTOM + 17, _number(tick), "middle"))
    parts.append(f'<line class="axis" x1="{LEFT}" y1="{BOTTOM}" x2="{RIGHT}" y2="{BOTTOM}"/>')
    parts.append(_text((LEFT + RIGHT) / 2, BOTTOM + 34, x_title, "middle"))
    return "".join(parts)


def _line(x: _Axis, y: _Axis, points: list[tuple[float, float]], index: int) -> str:
    pairs = [f"{x(a):.1f},{y(b):.1f}" for a, b in points]
    if len(pairs) == 1:
        across, down = pairs[0].split(",")
        return f'<circle class="dot s{index}" cx="{across}" cy="{down}" r="3"/>'
    return f'<polyline class="line s{index}" points="{" ".join(pairs)}"/>'


def _legend(line: Series, place: int) -> str:
    """Draw the legend entry of a line above the plot area, `place` entries from its right end."""
    x = RIGHT - 90 * place
    key = f'<line class="line s{line.colour}" x1="{x - 84}" y1="8" x2="{x - 68}" y2="8"/>'
    return key + _text(x - 63, 12, line.name, "start")


def _number(value: float) -> str:
    """Format a tick label compactly, without the rounding error of the step."""
    text = f"{value:,.0f}" if abs(value) >= 1000 and value == round(value) else f"{value:.4g}"
    return text.removeprefix("0") if text.startswith("0.") else text.replace("-", "−", 1)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    extra = f' class="{kind}"' if kind else ""
    return f'<text{extra} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _svg(title: str, description: str, body: list[str]) -> str:
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    head = f'<svg class="chart" {size} role="img" aria-label="{html.escape(description)}">'
    return head + _text(2, 12, title, "start", "title") + "".join(body) + "</svg>"


def esc(text: object) -> str:
    """Escape text for HTML, attributes included."""
    return html.escape(str(text))


def digits(value: Any, missing: str = "–") -> str:
    """Format a score with three decimals and no leading zero (.813); `missing` if it is not a finite number."""
    number = finite(value)
    return missing if number is None else f"{number:.3f}".removeprefix("0")


def decimals(value: Any, places: int = 3) -> str:
    """Format a number that may exceed 1 with `places` decimals; – if it is not a finite number."""
    number = finite(value)
    return "–" if number is None else f"{number:,.{places}f}".replace("-", "−")


def count(number: int, word: str) -> str:
    """Format a count with its noun, with a plural s unless it is 1: "1 image", "2 images"."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def table(heads: Sequence[str], body: str) -> str:
    """Return an HTML table that scrolls horizontally on narrow pages; `heads` are text, `body` is HTML rows."""
    top = "".join(f'<th scope="col">{esc(head)}</th>' for head in heads)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def table_row(name: str, cells: Iterable[str], kind: str = "") -> str:
    """Return a table row; `name` is text, `cells` are HTML, `kind` is a CSS class."""
    attribute = f' class="{kind}"' if kind else ""
    return f'<tr{attribute}><th scope="row">{esc(name)}</th>{"".join(f"<td>{c}</td>" for c in cells)}</tr>'


def data_uri(image: np.ndarray) -> str:
    """Encode a non-empty image (H, W, 3) uint8 as a PNG data URI, scaled down to at most LONGEST pixels a side."""
    picture = Image.fromarray(np.ascontiguousarray(image, np.uint8))
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def picture(image: np.ndarray, alt: str, pixelated: bool = False) -> str:
    """Return an <img> of (H, W, 3) uint8 at the width of its container; `pixelated` disables smoothing."""
    if image.size == 0:
        return '<span class="muted">no pixels</span>'
    kind = ' class="pixels"' if pixelated else ""
    height, width = image.shape[:2]
    return f'<img{kind} src="{data_uri(image)}" alt="{esc(alt)}" width="{width}" height="{height}">'


def figure(content: str, caption: str) -> str:
    """Return a <figure>; `content` is HTML, `caption` is text."""
    return f"<figure>{content}<figcaption>{esc(caption)}</figcaption></figure>"
