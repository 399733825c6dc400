"""icnn.report: does it set runs beside each other, finished or not, and say what differs?"""

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from commands import call, refused

from icnn.config import Config, flat, load_config
from icnn.evaluate.metrics import MEASURES
from icnn.report.__main__ import names_of
from icnn.train.run_folder import Run


def make_run(folder, f=0.8, finished=True, **settings):
    """A RUN folder of two validations of the nose, and scores if it is finished."""
    folder.mkdir(parents=True)
    the_run = Run(folder)
    the_run.open(replace(Config(), **settings))
    for step in (100, 200):
        entry = {"network": "nose", "step": step, "loss": 0.2, "validation_loss": 0.3, "validation_f": f - 1 / step}
        the_run.log(entry)
    if finished:
        crops = {"predicted": dict.fromkeys(MEASURES, f), "ground_truth": dict.fromkeys(MEASURES, 1.0)}
        (folder / "evaluation.json").write_text(json.dumps({"split": "tuning", "images": 3, "crops": crops}))
    return folder


def test_runs_stand_beside_each_other(tmp_path):
    first = make_run(tmp_path / "first", 0.812)
    other = make_run(tmp_path / "other", 0.7, finished=False, seed=7)
    code, out, _ = call("report", first, other)
    assert code == 0
    scores, validation, differences = (block.splitlines() for block in out.strip().split("\n\n"))
    assert scores[1].split() == ["first", "tuning", *[".812"] * len(MEASURES)]
    assert scores[2].split() == ["other", *["not", "evaluated", "yet"], *["–"] * len(MEASURES)]
    assert ".807 at most, 200 steps" in validation[1] and ".695 at most, 200 steps" in validation[2]
    assert [line.split() for line in differences[1:]] == [["seed", "0", "7"]]


def test_one_run_and_equal_runs_have_no_differences(tmp_path):
    first, other = make_run(tmp_path / "first"), make_run(tmp_path / "other")
    for runs in ((first,), (first, other)):
        assert "settings that differ" not in call("report", *runs)[1]


def test_settings_of_single_networks_differ_too(tmp_path):
    first = make_run(tmp_path / "first")
    other = make_run(tmp_path / "other", only={"eye": {"train": {"lr": 0.5}}})
    assert "eye.train.lr" in call("report", first, other)[1]


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "b" / "other"]
    assert names_of(folders) == ["a/run", "b/run", "b/other"]
    assert names_of(folders[1:]) == ["run", "other"]
    assert names_of([folders[0], folders[0]]) == ["run", "run"]


class Page(HTMLParser):
    """Counts tags and collects text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_has_a_line_for_each_run(tmp_path):
    runs = [make_run(tmp_path / name, 0.5 + n / 10, seed=n) for n, name in enumerate(("a", "b & c", "d"))]
    assert call("report", *runs, "--html", tmp_path / "page.html")[0] == 0
    page = Page((tmp_path / "page.html").read_text())
    lines = [attributes["class"] for tag, attributes in page.tags if attributes.get("class", "").startswith("line")]
    assert lines == ["line s0", "line s1", "line s2"] * 2  # loss and F of the one network
    keys = [attributes["class"] for tag, attributes in page.tags if attributes.get("class", "").startswith("key")]
    assert keys == ["key s0", "key s1", "key s2"]
    assert "b & c" in page.text and "seed" in page.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "expected a folder"),
        (["empty"], "config.toml"),
        (["damaged"], "evaluation.json"),
        (["whole", "--html", "no/page.html"], "folder that exists"),
        (["whole"] * 7 + ["--html", "page.html"], "at most 6 runs"),
        ([], "RUN"),
    ],
)
def test_mistakes_are_a_line(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    make_run(tmp_path / "whole")
    (make_run(tmp_path / "damaged") / "evaluation.json").write_text("{")
    refused("report", *arguments, words=words)
    assert not (tmp_path / "page.html").exists()


def test_flat_settings_are_those_that_are_read_again(tmp_path):
    config = load_config(None, ["eye.train.lr=0.25", "seed=3"])
    settings = flat(config)
    assert settings["eye.train.lr"] == "0.25" and settings["seed"] == "3"
    assert settings["augment.scale"] == str(list(config.augment.scale))
