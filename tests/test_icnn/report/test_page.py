"""Report: is the table the one that we would write by hand, and the page whole, safe and self-contained?"""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from icnn.classes import COLOURS, PARTS
from icnn.data.overlay import label_picture, overlay
from icnn.evaluate.metrics import MEASURES
from icnn.report.charts import LINES, Series, histogram, line_chart
from icnn.report.formats import digits
from icnn.report.page import NETWORKS, PAPER, Example, PatchExample, PipelineExample, format_table, write_report

NAME = '<b>&"x"'
VOID = {"meta", "img", "br", "link", "hr", "input"}


def scores(value):
    return dict.fromkeys(MEASURES, value)


EVALUATION = {
    "split": "testing",
    "images": 100,
    "crops": {
        "predicted": {**scores(0.8126), "inner_mouth": None, "overall_union": 1.0},
        "ground_truth": scores(0.0),
    },
}


class Page(HTMLParser):
    """Fails on tags that do not match; keeps tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def page(tmp_path, **given):
    """Write a report, check what holds for every report, return it."""
    path = tmp_path / "report.html"
    plain = {
        "evaluation": EVALUATION,
        "details": {},
        "log": [],
        "config_text": "",
        "examples": (),
        "pipeline": None,
    }
    write_report(path, **{"title": "a run", **plain, **given})
    text = path.read_text("utf-8")
    parsed = Page(text)
    assert not {"script", "link", "iframe", "object", "base"} & set(parsed.tags)
    assert all(address.startswith("data:image/png;base64,") for address in parsed.addresses)
    assert not re.search(r"https?:|url\(|@import", text)
    assert "nan" not in "".join(parsed.words).lower().replace("ramanan", "")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    return text, parsed


def face(size=40):
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    labels = np.zeros((size, size), np.uint8)
    labels[5:30, 8:20] = np.arange(12) % 9
    return image, labels


def everything():
    image, labels = face()
    small = np.zeros((64, 64, 3), np.uint8)
    patch = PatchExample("right_eye", small, small[..., 0], True, (12.0, float("nan")))
    confusion = np.arange(81).reshape(9, 9)
    confusion[3] = 0
    f = [0.5, None, float("nan"), 0.9, 1.0]
    log = [
        {"network": name, "step": step, "loss": 1 / step, "validation_loss": None, "validation_f": step / 100}
        for name in NETWORKS
        for step in range(1, 50)
    ]
    log += [{"event": "resumed"}, {"network": "ear", "step": 1, "loss": 1.0}]
    log += [{"network": "nose", "step": 50, "loss": float("nan"), "images_per_second": 10.0, "new": []}]
    centre = {"median": 1.25, "p95": None, "not_found": 3}
    return {
        "title": NAME,
        "details": {
            "source": f"from {NAME}",
            "names": [NAME, "b", "c", "d", "e"],
            "confusion": {"predicted": confusion.tolist(), "ground_truth": np.zeros((9, 9), int).tolist()},
            "per_image": {"predicted": f, "ground_truth": [None] * 5},
            "centres": {NAME: centre, "mouth": {}},
            "baselines": {NAME: scores(0.25)},
            "modulation": {"eye": {"beta": 1.0, "beta0": -0.5, "before": 0.75, "after": 0.7}, "nose": {}},
        },
        "log": log,
        "config_text": f"seed = 1 # {NAME}\n",
        "examples": [Example(NAME, image, labels, labels, None)],
        "pipeline": PipelineExample(image, small, small[..., 0], (patch,), labels),
    }


TABLE = """\
F-measure, 100 images of the split testing

                                                       upper  inner  lower         overall  overall
                                eyebrow    eye   nose    lip  mouth    lip  mouth    micro    union
this run, end to end               .813   .813   .813   .813      –   .813   .813     .813    1.000
this run, ground-truth centres     .000   .000   .000   .000   .000   .000   .000     .000     .000
constant prior                        –   .250      –      –      –      –      –        –        –
The figures above: Made up.

The paper's Table 1: these figures come from the paper's Helen split (2,000 training images, 100
test images), not from these data. Its overall stands under overall micro, the metric that it fits;
face skin is left out.
[13] Zhu & Ramanan 2012            .533    n/a    n/a   .425   .472   .455   .687      n/a        –
[14] Saragih et al. 2009           .679   .598   .890   .600   .579   .579   .769     .733        –
[15] Liu et al. 2011               .770   .640   .843   .601   .650   .618   .742     .738        –
[16] Gu & Kanade 2008              .743   .681   .889   .545   .568   .599   .789     .746        –
[5] Smith et al. 2013              .785   .722   .922   .713   .651   .700   .857     .804        –
iCNNs (the paper)                  .813   .874   .950   .754   .836   .809   .926     .873        –"""


def test_table_is_as_written_by_hand():
    assert format_table(EVALUATION, [("constant prior", {"eye": 0.25})], "Made up.") == TABLE


def test_table_without_source_or_crops():
    text = format_table({"split": "tuning", "images": 1, "crops": {}})
    assert "The figures above: 1 image of the split tuning." in text
    assert "this run" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.8126, ".813"), (0.9996, "1.000"), (0, ".000"), (None, "–"), (float("nan"), "–"), ("x", "–")],
)
def test_three_digits(value, text):
    assert digits(value) == text


def test_full_report_has_every_section_and_escapes(tmp_path):
    text, parsed = page(tmp_path, **everything())
    assert "<b>&" not in text and NAME in parsed.words
    headings = re.findall("<h2>(.*?)</h2>", text)
    assert headings == [
        "Scores",
        "Colours and ids of the parts",
        "Examples",
        "Pipeline on one face",
        "F over the images",
        "Confusion of pixels",
        "Part centres",
        "Background modulation",
        "Training",
        "Configuration",
    ]
    assert text.count('class="chart"') == 2 * len(NETWORKS) + 1  # no F of an image with true centres: one histogram
    assert [f"{i} {part.replace('_', ' ')}" for i, part in enumerate(PARTS)] == [
        word for word in parsed.words if re.match(r"\d [a-z]", word)
    ]
    for model in PAPER:
        assert model in parsed.words


@pytest.mark.parametrize("key", list(everything()["details"]))
def test_a_missing_key_leaves_its_section_out(tmp_path, key):
    given = everything()
    given["details"] = {k: v for k, v in given["details"].items() if k != key}
    page(tmp_path, **given)


def test_report_of_nothing(tmp_path):
    text, _ = page(tmp_path, evaluation={"split": "tuning", "images": 0, "crops": {}})
    assert re.findall("<h2>(.*?)</h2>", text) == ["Scores"]


def test_report_of_empty_pictures_and_a_single_image(tmp_path):
    image, labels = np.zeros((0, 7, 3), np.uint8), np.zeros((0, 7), np.uint8)
    patch = PatchExample("nose", image, labels, False, (0, 0))
    page(
        tmp_path,
        details={"per_image": {"predicted": [0.0], "ground_truth": [1.0]}, "names": ["only"]},
        log=[{"network": "eye", "step": 0, "loss": 0.0, "validation_f": 0.0}],
        examples=[Example("empty", image, labels, labels, float("nan"))],
        pipeline=PipelineExample(image, image, labels, (patch,), labels),
    )


def test_report_of_a_name_that_is_no_text(tmp_path):
    image, labels = face()
    page(tmp_path, examples=[Example("\udcff\x00", image, labels, labels, 0.5)])


def test_a_large_photograph_is_scaled_down(tmp_path):
    image, labels = np.zeros((1500, 1000, 3), np.uint8), np.ones((1500, 1000), np.uint8)
    text, _ = page(tmp_path, examples=[Example("large", image, labels, labels, 0.5)])
    assert len(text) < 100_000
    assert 'width="1000" height="1500"' in text


def test_a_failure_leaves_the_old_report(tmp_path):
    page(tmp_path, title="old")
    image, labels = face()
    with pytest.raises(ValueError, match=r"labels of shape \(40, 40\)"):
        page(tmp_path, examples=[Example("x", image, labels[1:], labels, None)])
    assert "<h1>old</h1>" in (tmp_path / "report.html").read_text("utf-8")


def test_a_repeated_step_counts_once_and_the_later_entry_wins(tmp_path):
    log = [{"network": "nose", "step": s, "validation_f": f} for s, f in ((1, 0.2), (2, 0.9), (2, 0.5), (1, 0.3))]
    text, _ = page(tmp_path, log=[*log, {"network": "nose", "step": 2, "validation_f": None, "loss": 0.1}])
    assert "2 steps, best F .500 at step 2" in text


def test_label_picture_is_the_palette():
    ids = np.arange(9, dtype=np.uint8).reshape(3, 3)
    picture = label_picture(ids)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture.reshape(9, 3), COLOURS)


def test_overlay_mixes_more_on_the_contour():
    image = np.full((6, 7, 3), 100, np.uint8)
    labels = np.zeros((6, 7), np.uint8)
    labels[:5, 1:6] = 1
    mixed = overlay(image, labels)
    assert mixed.dtype == np.uint8 and (image == 100).all()
    assert (mixed[5] == 100).all() and (mixed[:, 0] == 100).all()  # background, beside the part too
    assert mixed[2, 3].tolist() == [178, 114, 50]  # halfway from 100 to 255, 128, 0; half to even
    assert mixed[2, 1].tolist() == [216, 121, 25]  # three quarters
    assert mixed[0, 3].tolist() == [178, 114, 50]  # the picture's edge is no contour
    assert np.array_equal(overlay(image, labels, 0.0)[2, 3], image[2, 3])
    assert np.array_equal(overlay(image, labels, 1.0)[labels > 0], label_picture(labels)[labels > 0])


def test_overlay_of_labels_of_another_size():
    with pytest.raises(ValueError, match=r"\(4, 5\).*got \(5, 4\)"):
        overlay(np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), np.uint8))


def tick_labels(chart):
    """Values at the ticks of the y axis, which are the texts that end at the axis."""
    found = re.findall(r'<text style="[^"]*text-anchor: end[^"]*" x="42.5"[^>]*>(.*?)</text>', chart)
    return [float(label.replace("−", "-").replace(",", "")) for label in found]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.5, 0.87), (-3, 12345), (0.871, 0.8715), (1e-9, 1.1e-9), (0, 24000)]
)
def test_linear_ticks_are_few_round_and_enclose(low, high):
    ticks = tick_labels(line_chart("loss", [Series("a", [(1, low), (2, high)])]))
    slack = 1e-6 * (high - low)
    assert 2 <= len(ticks) <= 9 and ticks[0] <= low + slack and ticks[-1] >= high - slack
    step = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
    assert f"{step:.6e}"[0] in "125" and np.allclose(np.diff(ticks), step, rtol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(0.05, 3), (1e-12, 1e12), (0.2, 0.21), (3, 4), (1e-45, 3e38)])
def test_log_ticks_are_few_and_inside(low, high):
    ticks = tick_labels(line_chart("loss", [Series("a", [(1, low), (2, high)])], log=True))
    assert 2 <= len(ticks) <= 7
    assert low / 1.1 * (1 - 1e-6) <= ticks[0] and ticks[-1] <= high * 1.1 * (1 + 1e-6)


def paths(chart, kind):
    """Points of each path of a class of SVG groups, (n, 2)."""
    found = re.findall(rf'<g class="{kind}[^"]*">\s*<path d="(.*?)"', chart, re.DOTALL)
    return [np.array(re.findall(r"[ML] (\S+) (\S+)", path), float) for path in found]


@pytest.mark.parametrize(
    "values",
    [[0.5], [0.5, 0.5], [0.0], [-1.0, 2.0], [None, 3e38, 1e-45], [float("inf"), 1.0], range(1, 2000)],
)
@pytest.mark.parametrize("log", [False, True])
def test_every_point_of_a_chart_lies_inside(values, log):
    text = line_chart("loss", [Series(NAME, list(enumerate(values))), Series("none", [])], log)
    if not text:
        assert log and values == [0.0]
        return
    Page(text)
    dot = re.search(r'<g class="dot s0">.*?<use [^>]*x="(.*?)" y="(.*?)"', text, re.DOTALL)
    pairs = np.array([dot.groups()], float) if dot else paths(text, "line")[0]
    assert 1 <= len(pairs) <= 300
    assert ((pairs >= (46, 26)) & (pairs <= (350, 180))).all()


def test_chart_of_nothing_is_nothing():
    assert line_chart("loss", [Series("a", [(1, None), (2, float("nan"))])]) == ""


def test_a_chart_has_its_title_legend_and_the_page_s_colours_and_is_the_same_again():
    def chart():
        return line_chart("loss", [Series("training $x$", [(0, 1), (1, 2)]), Series(NAME, [(0, 2), (1, 1)], 1)])

    text, parsed = chart(), Page(chart())
    assert {"loss", "step", "training $x$", NAME} <= {word.strip() for word in parsed.words}
    assert 'aria-label="loss over steps"' in text
    assert [len(paths(text, f"line s{n}")) for n in (0, 1)] == [1, 1]
    assert "var(--first)" in text and "var(--second)" in text and not re.search(r": ?#[0-9a-f]{3,6}\b", text)
    line_chart.__globals__["_draw_lines"].cache_clear()
    assert chart() == text


def test_histogram_has_a_bar_for_every_filled_bin():
    text = histogram("F", [0.0, 0.1, 0.9, 1.0], [0.0, 0.25, 0.5, 0.75, 1.0], [(0.5, "median")], 2)
    Page(text)
    assert text.count('class="bar"') == 2
    assert [bar[:, 0].min() for bar in paths(text, "bar")] == [46.5, 274.5]  # of bins from 46 and 274
    ((start, end),) = paths(text, "mark")
    assert start[0] == end[0] == 198  # the median, halfway between 46 and 350
    assert ">median<" in text


def test_the_style_knows_the_dark(tmp_path):
    text, _ = page(tmp_path)
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "prefers-color-scheme: dark" in style
    assert style.count("{") == style.count("}")
    assert all(style.count(f"--{name}:") == 2 for name in ("ink", "muted", "grid", *LINES))  # light and dark


def test_a_browser_shows_it_on_a_phone_light_and_dark_and_asks_for_nothing(browser, tmp_path):
    page(tmp_path, **everything())
    colours = []
    for scheme in ("light", "dark"):
        with browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme) as context:
            shown, requests, complaints = context.new_page(), [], []
            shown.on("request", lambda request, seen=requests: seen.append(request.url))
            shown.on("console", lambda line, seen=complaints: seen.append(line.text))
            shown.goto((tmp_path / "report.html").as_uri())
            assert [url for url in requests if not url.startswith("data:")] == [(tmp_path / "report.html").as_uri()]
            assert complaints == []
            assert shown.evaluate("document.documentElement.scrollWidth") <= 360
            chart = shown.locator("svg.chart").last
            assert chart.locator("text").all_text_contents()[-1] == "validation F"
            line, text = chart.locator(".line path"), chart.locator("text").first
            stroke = line.evaluate("path => getComputedStyle(path).stroke")
            colours.append((stroke, text.evaluate("text => getComputedStyle(text).fill")))
            assert line.bounding_box()["width"] > 250
    assert colours == [
        ("rgb(208, 96, 26)", "rgb(100, 104, 111)"),
        ("rgb(240, 146, 79)", "rgb(154, 159, 167)"),
    ]
