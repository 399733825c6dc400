"""Live training report: progress, curves and validation crops, auto-refreshed.

It has the path of the run's final report. Everything in it is read from the
run's folder, so it stays complete when a training is resumed.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from icnn.config import Config, config_text
from icnn.data.overlay import label_picture
from icnn.model.network import icnn_graph
from icnn.report.formats import count
from icnn.report.page import best_of, entries_of, training_curves
from icnn.report.render import write_page
from icnn.stages import NETWORKS
from icnn.train.batches import Batch
from icnn.train.run_folder import Run
from minicnn.checkpoint import atomic_path

CROPS = 6  # number of validation crops to display
_RELOAD = 20  # seconds between page reloads
_RECENT = 5  # number of validations over which the median speed is taken


def shown_crops(validation: Batch, most: int) -> np.ndarray:
    """Return the indices of at most `most` validation crops, spread evenly over all of them."""
    return np.unique(np.linspace(0, len(validation.images) - 1, most).round().astype(int))


def save_crops(the_run: Run, network: str, step: int, validation: Batch, labels: np.ndarray) -> None:
    """Write RUN/validation/NETWORK-STEP.png, with three rows: input crops, predicted labels, true labels.

    Parameters
    ----------
    the_run : Run
    network : str
    step : int
    validation : Batch
        Crops to show; images (n, 3, S, S) normalised to mean 0 and standard deviation 1.
    labels : (n, S, S) integers
        Labels predicted by the network for these crops.
    """
    ids = np.array((0, *NETWORKS[network].ids), np.uint8)
    images = np.clip(128 + 56 * validation.images, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    rows = images, label_picture(ids[labels]), label_picture(ids[validation.labels])
    sheet = np.vstack([np.hstack(list(row)) for row in rows])
    with atomic_path(the_run.folder / "validation" / f"{network}-{step:06}.png") as path:
        Image.fromarray(sheet).save(path, "PNG")


def seconds_left(log: Sequence[Mapping[str, Any]], config: Config) -> float | None:
    """Estimate the remaining training time of all networks, from the speed of the last validations.

    Networks are trained in order, so those before the current one are done, even if they stopped early. The time of a
    step is taken as proportional to its multiplications.

    Returns
    -------
    float or None
        Seconds; None before the first validation.
    """
    begun = [name for name in NETWORKS if entries_of(log, name)]
    if not begun:
        return None
    work = {name: _work(name, config) for name in NETWORKS}
    paces = [
        1 / (entry["images_per_second"] * work[entry["network"]])
        for entry in log
        if entry.get("network") in begun and entry.get("images_per_second")
    ]
    if not paces:
        return None
    ahead, names = 0.0, list(NETWORKS)
    for name in names[names.index(begun[-1]) :]:
        train, _ = config.for_network(name)
        done = entries_of(log, name)[-1][0] if name == begun[-1] else 0
        ahead += max(0.0, train.steps - done) * train.batch * work[name]
    return ahead * float(np.median(paces[-_RECENT:]))


def _work(name: str, config: Config) -> float:
    """Count the multiplications of a network's convolutions for one image."""
    network = NETWORKS[name]
    graph = icnn_graph(network.labels, network.size, config.network.preset)
    planes = {node.name: math.prod(node.shape[1:]) for node in graph.nodes.values()}
    return sum(
        math.prod(shape) * planes[key.rpartition("/")[0]]
        for key, shape in graph.parameter_shapes.items()
        if key.endswith("/weight")
    )


def duration(seconds: float) -> str:
    """Format a duration in words, rounded to minutes."""
    minutes = max(1, round(seconds / 60))
    hours, rest = divmod(minutes, 60)
    return count(minutes, "minute") if not hours else f"{count(hours, 'hour')} {count(rest, 'minute')}"


def write_progress(the_run: Run, config: Config) -> None:
    """Write RUN/report.html for a training in progress."""
    log = the_run.read_log()
    left = seconds_left(log, config)
    write_page(
        the_run.folder / "report.html",
        "progress.html",
        title=f"iCNN: {the_run.folder.name}",
        reload=_RELOAD,
        at=datetime.now().strftime("%H:%M:%S"),
        left=duration(left) if left else "",
        networks=[_network(log, config, name) for name in NETWORKS],
        sheets=_sheets(the_run),
        training=training_curves(log),
        config_text=config_text(config),
    )


def _network(log: Sequence[Mapping[str, Any]], config: Config, name: str) -> dict[str, Any]:
    """Return a network's row of the table: how far it is, how good and how fast."""
    entries, (train, _) = entries_of(log, name), config.for_network(name)
    step, last = entries[-1] if entries else (0, {})
    best = best_of(log, name)
    return {
        "name": name,
        "step": step,
        "steps": train.steps,
        "best": best and best[0],
        "loss": last.get("validation_loss"),
        "speed": last.get("images_per_second"),
    }


def _sheets(the_run: Run) -> list[dict[str, Any]]:
    """Return the newest sheet of crops of each network: name, step and image."""
    latest: dict[str, Path] = {}
    for path in sorted((the_run.folder / "validation").glob("*.png")):
        latest[path.stem.rpartition("-")[0]] = path
    sheets = []
    for name in NETWORKS:
        if path := latest.get(name):
            with Image.open(path) as sheet:
                image = np.asarray(sheet.convert("RGB"))
            sheets.append({"name": name, "step": int(path.stem.rpartition("-")[2]), "image": image})
    return sheets
