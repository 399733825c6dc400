"""Weights file of a network: parameters, modulation, layout, model card; written, read and validated here.

Its metadata, all texts: `network`, its name; `preset`, `labels` and `size` of the graph; `version` of the program;
`layout` (JSON) and `side`, only of stage 1; `beta`, `beta0`, `recentre` and `card` (JSON), once it is complete.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from icnn.errors import InputError
from icnn.model.modulation import Pair
from icnn.model.network import PRESETS, icnn_graph
from icnn.stages import NETWORKS, PATCHES
from minicnn import Graph, Plan
from minicnn.checkpoint import CheckpointError, check_fit, load_tensors, save_tensors

#: Folder of the weights shipped with the package.
SHIPPED = Path(__file__).parents[1] / "weights"


class StoredNetwork(NamedTuple):
    """Trained network, read from its weights file.

    Attributes
    ----------
    graph : Graph
    parameters : dict of str to float32 array
        Keyed by the names of the graph's parameters.
    pair : (beta, beta0)
        Background modulation (Sec. 4.2); (1, 0) if it was not fitted.
    layout : (6, 2) float64 or None
        Mean part centres in a stage-1 square of side 1; None if the file has none.
    side : float or None
        Larger side of the training photographs, pixels; None if the file has none.
    recentre : float
        Setting of `icnn.model.pipeline.Pipeline` with which the pair was fitted.
    metadata : dict of str to str
        All metadata of the file.
    card : dict
        Model card written by the training: data, terms, scores, config; empty if the file has none.
    """

    graph: Graph
    parameters: dict[str, np.ndarray]
    pair: Pair
    layout: np.ndarray | None
    side: float | None
    recentre: float
    metadata: dict[str, str]
    card: dict[str, Any]


def _weights_folder(folder: Path) -> Path:
    """Return RUN/weights for a RUN folder, or a folder of weights itself.

    Raises
    ------
    InputError
        If the folder does not exist.
    """
    inside = folder / "weights"
    if inside.is_dir():
        return inside
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder with weights, found none; try the RUN folder of a training")
    return folder


def write_network(path: Path, plan: Plan, name: str, layout: np.ndarray | None, side: float | None) -> None:
    """Write a trained network, before its modulation is fitted; see `StoredNetwork` for the parameters."""
    metadata: dict[str, object] = {"network": name}
    if layout is not None:
        metadata["layout"] = json.dumps(layout.round(4).tolist())
    if side is not None:
        metadata["side"] = side
    plan.save(path, **metadata)


def complete_network(path: Path, pair: Pair, recentre: float, card: str) -> None:
    """Add modulation and model card to a file of `write_network`, and seal it; see `StoredNetwork`."""
    parameters, metadata = load_tensors(path)
    more = {"beta": pair[0], "beta0": pair[1], "recentre": recentre, "card": card}
    save_tensors(path, parameters, {**metadata, **more}, sealed=True)


def read_network(folder: Path, name: str) -> StoredNetwork:
    """Read one network from a folder of weights.

    Parameters
    ----------
    folder : Path
        RUN or RUN/weights.
    name : str
        Key of `icnn.stages.NETWORKS`.

    Raises
    ------
    InputError
        If the file is missing, damaged, or of another network.
    """
    path = _weights_folder(folder) / f"{name}.safetensors"
    try:
        return _read(path, name)
    except (CheckpointError, OverflowError, RecursionError, TypeError, ValueError) as error:
        text = str(error)
        raise InputError(text if str(path) in text else f"{path}: {text}") from None


def read_parameters(folder: Path, name: str, graph: Graph) -> dict[str, np.ndarray]:
    """Read the parameters of a network that is not one of the five, such as the face finder.

    Raises
    ------
    InputError
        If the file is missing, damaged, or of another network.
    """
    path = folder / f"{name}.safetensors"
    try:
        parameters, _ = load_tensors(path)
        check_fit(path, parameters, graph.parameter_shapes)
    except CheckpointError as error:
        raise InputError(str(error)) from None
    return parameters


def _read(path: Path, name: str) -> StoredNetwork:
    parameters, metadata = load_tensors(path)
    preset = metadata.get("preset", "")
    if preset not in PRESETS:
        raise CheckpointError(f"{path}: expected a preset of {', '.join(PRESETS)} inside, got {preset!r}")
    graph = icnn_graph(NETWORKS[name].labels, NETWORKS[name].size, preset)
    check_fit(path, parameters, graph.parameter_shapes)
    if metadata.get("network", name) != name:
        raise CheckpointError(f"{path}: expected weights of {name}, got those of {metadata['network']}")
    layout = side = None
    if "layout" in metadata:
        layout = np.array(json.loads(metadata["layout"]), np.float64).reshape(len(PATCHES), 2)
    if "side" in metadata:
        side = float(metadata["side"])
    pair = float(metadata.get("beta", 1)), float(metadata.get("beta0", 0))
    recentre = float(metadata.get("recentre", 0))
    numbers = [*pair, recentre, *(() if layout is None else layout.ravel()), *(() if side is None else (side,))]
    if not np.isfinite(numbers).all() or (side is not None and side <= 0):
        raise CheckpointError(f"{path}: expected finite beta, beta0, layout and recentre, and a side above 0")
    card = json.loads(metadata.get("card", "{}"))
    if not isinstance(card, dict) or not all(isinstance(card.get(key, ""), str) for key in ("data", "terms")):
        raise CheckpointError(f"{path}: expected a card with texts for data and terms, got something else")
    return StoredNetwork(graph, parameters, pair, layout, side, recentre, metadata, card)
