"""Time the parsing of whole photographs by stage, and compare the labels with the truth: `parse_bench.py --whole`."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from measure import machine, write_figures
from PIL import Image

from icnn.classes import PARTS
from icnn.cli import progress, text_table
from icnn.data.pyramid import Pyramid
from icnn.errors import InputError
from icnn.evaluate.metrics import confusion, f_measures
from icnn.parse.files import SUFFIXES
from icnn.parse.parser import FaceParser
from icnn.parse.results import result_of

STAGES = "decode", "search", "networks", "labels"
#: Scores are of photographs that are scaled so that the box of their truth has this length, pixels: else large ones
#: would count most.
LENGTH = 512
_LOST = 0.3  # F below which a face counts as lost


def measure_whole(folder: Path, threads: int, file: Path | None) -> None:
    """Parse the photographs of a folder and print the figures.

    Parameters
    ----------
    folder : Path
        With images/, and perhaps truth/NAME.png, ids at the photograph's size.
    threads : int
    file : Path, optional
        JSON file for the figures.

    Raises
    ------
    InputError
        If there are no photographs.
    """
    paths = sorted(path for path in (folder / "images").glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"{folder}: expected photographs in images/, found none")
    parser = FaceParser(threads=threads)
    parser.parse_photographs([Pyramid.open(paths[0]).pixels])  # loads and compiles
    times, scores = [], []
    for path in progress(paths, "whole photographs"):
        took, labels = _timed(parser, path)
        times.append(took)
        truth = folder / "truth" / f"{path.stem}.png"
        if truth.exists():
            scores.append(_scaled_confusion(np.asarray(Image.open(truth)), labels))
    many, first = _timed_many(parser, paths), _timed_command(paths[:1], threads)
    command = _timed_command(paths, threads)
    figures: dict[str, Any] = {
        "photographs": len(paths),
        "threads": threads,
        "ms": {stage: 1e3 * median(took[n] for took in times) for n, stage in enumerate(STAGES)},
        "ms_in_all": 1e3 * median(sum(took) for took in times),
        "parse_many_s_each": many / len(paths),
        "command_s": command,
        "command_one_s": first,
    }
    if scores:
        figures["f"] = f_measures(np.sum(scores, axis=0))
        figures["lost"] = sum((f_measures(one)["overall_micro"] or 0) < _LOST for one in scores)
    print(machine())
    rows = [[name, f"{value:.4g}"] for name, value in _flat(figures)]
    print(text_table(rows, 1))
    if file:
        write_figures(file, machine(), whole=figures)


def _timed(parser: FaceParser, path: Path) -> tuple[list[float], np.ndarray]:
    """Parse one photograph; return the seconds of each stage, and the labels."""
    marks = [time.perf_counter()]
    photograph = Pyramid.open(path)
    marks.append(time.perf_counter())
    faces = parser.predict([photograph])[0]
    marks.append(time.perf_counter())
    labels = result_of(photograph.shape, faces).labels
    marks.append(time.perf_counter())
    decode, predict, draw = np.diff(marks).tolist()
    parser.find([photograph])  # once more, alone
    search = time.perf_counter() - marks[-1]
    return [decode, search, max(0.0, predict - search), draw], labels


def _timed_many(parser: FaceParser, paths: list[Path]) -> float:
    start = time.perf_counter()
    for _ in parser.parse_many(paths):
        pass
    return time.perf_counter() - start


def _timed_command(paths: list[Path], threads: int) -> float:
    """Return the seconds of ``python -m icnn.parse`` from start to end, with all files written."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "icnn.parse", *map(str, paths), "--out", out, "--threads", str(threads)]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - start


def _scaled_confusion(truth: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the confusion matrix, (9, 9), of labels at the scale where the truth's parts have `LENGTH`."""
    rows, columns = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
    if not rows.size:
        return np.zeros((len(PARTS), len(PARTS)), np.int64)
    scale = LENGTH / max(np.ptp(rows), np.ptp(columns))
    y, x = (((np.arange(int(side * scale)) + 0.5) / scale).astype(int) for side in truth.shape)
    return confusion(truth[np.ix_(y, x)], labels[np.ix_(y, x)])


def _flat(figures: dict[str, Any]) -> list[tuple[str, float]]:
    """Return the numbers of nested figures with joined names."""
    flat = []
    for name, value in figures.items():
        inner = [(f"{name} {key}", one) for key, one in value.items()] if isinstance(value, dict) else [(name, value)]
        flat += [(key, one) for key, one in inner if one is not None]
    return flat
