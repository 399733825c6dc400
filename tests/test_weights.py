"""Shipped weights: do they say what they are, and do they still score what they say?"""

import json
import tomllib

import numpy as np
import pytest
from safetensors import safe_open

from icnn.command import Signals
from icnn.dataset import SmithFolder, find_helen
from icnn.evaluate import SHIPPED
from icnn.evaluation import evaluate
from icnn.palette import MIRRORED
from icnn.parts import NETWORKS
from icnn.pipeline import load_pipeline


def metadata_of(name):
    with safe_open(SHIPPED / f"{name}.safetensors", framework="numpy") as file:
        return file.metadata()


def test_they_are_five_small_files():
    files = sorted(SHIPPED.glob("*.safetensors"))
    assert {path.stem for path in files} == set(NETWORKS)
    assert sum(path.stat().st_size for path in files) <= 10 << 20


@pytest.mark.parametrize("name", NETWORKS)
def test_each_says_what_it_is(name):
    metadata = metadata_of(name)
    assert (metadata["network"], metadata["preset"]) == (name, "paper")
    assert len(metadata["sha256"]) == 64, "sealed"
    card = json.loads(metadata["card"])
    assert "Helen" in card["data"] and "research" in card["terms"]
    assert card["scores"]["split"] == "testing" and card["scores"]["images"] == 100
    config = tomllib.loads(card["config"])
    assert config["data"] == "", "a path of the machine that trained them"
    assert config["train"]["steps"] > 0 and config["seed"] >= 0


@pytest.fixture(scope="module")
def faces():
    folder = find_helen()  # an error where $ICNN_HELEN is set and nothing there
    if folder is None:
        pytest.skip("the project's Helen photographs are not here")
    return SmithFolder(folder).load_split("testing")


def test_they_score_what_they_say(faces):
    """Of the photographs that nothing was chosen on."""
    result = evaluate(load_pipeline(SHIPPED, "numba", 32), faces, 32, Signals())
    said = json.loads(metadata_of("stage1")["card"])["scores"]
    for condition, scores in result.summary("testing")["crops"].items():
        assert scores == pytest.approx(said["crops"][condition], abs=5e-4)


def test_backends_label_alike(faces):
    images = [face.image for face in faces[:6]]
    numpy, numba = (load_pipeline(SHIPPED, backend, 6).parse(images) for backend in ("numpy", "numba"))
    assert np.mean(np.stack(numpy) != np.stack(numba)) <= 1e-4


def test_a_mirrored_photograph_is_parsed_as_the_mirrored_parse(faces):
    """All but exactly: sums are rounded in another order."""
    pipeline = load_pipeline(SHIPPED, "numba", 8)
    pipeline.average = True
    images = [face.image for face in faces[:8]]
    plain = pipeline.parse(images)
    seen = pipeline.parse([np.ascontiguousarray(image[:, ::-1]) for image in images])
    different = [np.mean(other != MIRRORED[labels][:, ::-1]) for labels, other in zip(plain, seen, strict=True)]
    assert np.mean(different) <= 1e-4
