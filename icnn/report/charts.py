"""Charts as inline SVG, drawn by matplotlib, which is imported only when a chart is drawn.

Charts are drawn in placeholder colours that become variables of the page's style sheet, so the same SVG works on a
light and on a dark page.
"""

import functools
import html
import io
import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from icnn.report.formats import finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# Plot area inside an SVG of WIDTH x HEIGHT user units; one unit is about one CSS pixel on a phone.
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 350, 26, 180

#: Maximum number of points of a line; longer series are averaged in groups, which also smooths a noisy loss.
POINTS = 300

#: CSS variables of the lines' colours.
LINES = ("first", "second", "third", "fourth", "fifth", "sixth")

#: CSS variable -> placeholder colour.
_COLOURS = {name: f"#0000{n:02x}" for n, name in enumerate(("ink", "muted", "grid", *LINES), start=1)}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "icnn",
    "text.parse_math": False,
    "font.size": 11,
    "text.color": _COLOURS["ink"],
    "axes.axisbelow": True,
    "axes.edgecolor": _COLOURS["muted"],
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": _COLOURS["muted"],
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": _COLOURS["grid"],
    "legend.frameon": False,
    "legend.labelcolor": _COLOURS["muted"],
    "xtick.color": _COLOURS["muted"],
    "ytick.color": _COLOURS["grid"],
    "ytick.labelcolor": _COLOURS["muted"],
    "ytick.major.size": 0,
}

#: What a chart leaves out of matplotlib's SVG: the style and ids that would hold for the whole page, fonts other than
#: the page's, and clipping, because everything lies inside.
_LEFT_OUT = re.compile(
    r"""<defs>\s*<(style|clipPath).*?</defs>\s*|(?<=<g) id="[^"]*"| clip-path="[^"]*"| font-family:[^;"]*;""", re.DOTALL
)


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
        Index into `LINES`.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    colour: int = 0


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
    lines = tuple((line.name, points, line.colour) for line in series if (points := _thin(_clean(line.points, log))))
    return _draw_lines(title, lines, log, legend and len(series) > 1) if lines else ""


#: Points (x, y) of a line.
_Points = tuple[tuple[float, float], ...]


@functools.lru_cache(maxsize=32)  # a page is rewritten at every validation, and only one network's lines have grown
def _draw_lines(title: str, lines: tuple[tuple[str, _Points, int], ...], log: bool, legend: bool) -> str:
    values = [value for _, points, _ in lines for _, value in points]
    right = max(step for _, points, _ in lines for step, _ in points)

    def draw(axes: "Axes") -> None:
        for name, points, colour in lines:
            single = len(points) == 1
            axes.plot(
                *zip(*points, strict=True),
                color=_COLOURS[LINES[colour]],
                label=name,
                linewidth=1.6,
                marker="o" if single else None,
                gid=f"class:{'dot' if single else 'line'} s{colour}",
            )
        axes.set(xlim=(0, right if right > 0 else 1), yscale="log" if log else "linear")
        axes.minorticks_off()
        _set_ticks(axes.xaxis, _ticks(*axes.get_xlim()))
        low, high = (min(values) / 1.1, max(values) * 1.1) if log else _span(values)
        ticks = _log_ticks(low, high) if log else _ticks(low, high, outwards=True)
        _set_ticks(axes.yaxis, ticks)
        axes.set_ylim((low, high) if log else (ticks[0], ticks[-1]))
        if legend:
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(lines), borderpad=0, borderaxespad=0.9)

    return _svg(title, f"{title} over steps", "step", draw)


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
    unit = (bins[-1] - bins[0]) / (RIGHT - LEFT)

    def draw(axes: "Axes") -> None:
        filled = counts > 0
        centres, widths = (bins[:-1] + bins[1:]) / 2, np.maximum(np.diff(bins) - unit, unit / 2)
        for bar in axes.bar(centres[filled], counts[filled], widths[filled], color=_COLOURS["first"], alpha=0.55):
            bar.set_gid("class:bar")
        axes.set(xlim=(bins[0], bins[-1]), ylim=(0, max(top, 1)))
        _set_ticks(axes.xaxis, _ticks(bins[0], bins[-1]))
        _set_ticks(axes.yaxis, [tick for tick in _ticks(0, max(top, 1), 5) if tick == round(tick)])
        for row, (value, text) in enumerate(marks):
            _mark(axes, value, text, TOP + 13 * row, unit)

    return _svg(title, f"{title}: histogram of {len(values)} values", "F", draw, TOP + 13 * len(marks))


def _mark(axes: "Axes", value: float, text: str, top: float, unit: float) -> None:
    """Draw a dashed line at `value` from the x axis up to `top` in user units, one of which is `unit` on the x axis."""
    from matplotlib.transforms import IdentityTransform, blended_transform_factory

    place = blended_transform_factory(axes.transData, IdentityTransform())  # upwards in user units
    left = value < sum(axes.get_xlim()) / 2
    line = {"color": _COLOURS["ink"], "linestyle": (0, (3, 3)), "linewidth": 1, "gid": "class:mark"}
    axes.plot([value, value], [HEIGHT - BOTTOM, HEIGHT - top + 4], transform=place, **line)
    shift, side = (4 * unit, "left") if left else (-4 * unit, "right")
    axes.text(value + shift, HEIGHT - top - 4, text, transform=place, ha=side, color=_COLOURS["muted"])


def _clean(points: Sequence[tuple[float, float | None]], log: bool) -> list[tuple[float, float]]:
    pairs = ((finite(x), finite(y)) for x, y in points)
    return [(x, y) for x, y in pairs if x is not None and y is not None and (y > 0 or not log)]


def _thin(points: list[tuple[float, float]]) -> _Points:
    """Average consecutive groups of points so that at most POINTS remain."""
    size = max(math.ceil(len(points) / POINTS), 1)
    groups = (points[i : i + size] for i in range(0, len(points), size))
    return tuple((math.fsum(x for x, _ in g) / len(g), math.fsum(y for _, y in g) / len(g)) for g in groups)


def _span(values: list[float]) -> tuple[float, float]:
    """Return the range of the values, widened if they are equal up to rounding."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    if high - low > 1e-9 * size:
        return low, high
    margin = size / 10 or 1.0
    return (max(low - margin, 0.0) if low >= 0 else low - margin), high + margin


def _ticks(low: float, high: float, most: int = 6, outwards: bool = False) -> list[float]:
    """Return round axis ticks in [low, high]; with `outwards`, ticks that enclose `low` and `high`."""
    from matplotlib.ticker import MaxNLocator

    ticks = list(map(float, MaxNLocator(most, steps=(1, 2, 5, 10)).tick_values(low, high)))
    slack = 1e-9 * (high - low)
    return ticks if outwards else [tick for tick in ticks if low - slack <= tick <= high + slack]


def _log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return logarithmic axis ticks in [low, high]: 1, 2 and 5 per decade, or fewer for long axes."""
    from matplotlib.ticker import LogLocator

    for leading in ((1.0, 2.0, 5.0), (1.0,)):
        ticks = map(float, LogLocator(subs=leading, numticks=most).tick_values(low, high))
        ticks = [tick for tick in ticks if low <= tick <= high]
        if 1 < len(ticks) <= most:
            return ticks
    return _ticks(low, high, most)


def _set_ticks(axis: "Axis", ticks: Sequence[float]) -> None:
    axis.set_ticks(ticks, labels=[_number(tick) for tick in ticks])


def _number(value: float) -> str:
    """Format a tick label compactly, without the rounding error of the step."""
    text = f"{value:,.0f}" if abs(value) >= 1000 and value == round(value) else f"{value:.4g}"
    return text.removeprefix("0") if text.startswith("0.") else text.replace("-", "−", 1)


def _svg(title: str, description: str, x_title: str, draw: Callable[["Axes"], None], top: float = TOP) -> str:
    """Return the <svg> element of a chart.

    Parameters
    ----------
    title : str
        Drawn above the plot area.
    description : str
        Read aloud in place of the picture.
    x_title : str
    draw : callable
        Draws into the axes. Artists with the group id "class:NAMES" become <g class="NAMES">.
    top : float
        Upper end of the plot area in user units.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where it caches its fonts is nothing to act on
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    file = io.StringIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not the style of the user's own plots
        matplotlib.rcParams.update(_STYLE)
        figure = Figure((WIDTH / 72, HEIGHT / 72), dpi=72, facecolor="none")  # one user unit is a pixel
        size = (RIGHT - LEFT) / WIDTH, (BOTTOM - top) / HEIGHT
        axes = figure.add_axes((LEFT / WIDTH, 1 - BOTTOM / HEIGHT, *size), facecolor="none", xlabel=x_title)
        figure.text(2 / WIDTH, 1 - 12 / HEIGHT, title)
        draw(axes)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(file, metadata=nothing)
    text = file.getvalue().replace('<g id="class:', '<g class="')
    text = _LEFT_OUT.sub("", text[text.index(">", text.index("<svg")) + 1 :])
    for name, colour in _COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg class="chart" {size} role="img" aria-label="{html.escape(description)}">{text.strip()}'
