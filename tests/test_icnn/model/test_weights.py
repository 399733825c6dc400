"""Shipped weights: do they say what they are, and do they still score what they say?"""

import json
import tomllib

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from icnn.classes import MIRRORED
from icnn.data.folder import SmithFolder, find_helen
from icnn.evaluate.metrics import confusion, f_measures
from icnn.evaluate.scoring import evaluate
from icnn.model.pipeline import load_pipeline
from icnn.model.weights import SHIPPED
from icnn.parse.parser import FaceParser
from icnn.stages import NETWORKS

pytestmark = pytest.mark.slow


def metadata_of(name):
    with safe_open(SHIPPED / f"{name}.safetensors", framework="numpy") as file:
        return file.metadata()


def test_they_are_six_small_files():
    files = sorted(SHIPPED.glob("*.safetensors"))
    assert {path.stem for path in files} == {*NETWORKS, "finder"}
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


def test_the_finder_says_what_it_was_computed_from():
    metadata = metadata_of("finder")
    assert len(metadata["sha256"]) == 64, "sealed"
    card = json.loads(metadata["card"])
    assert "Helen" in card["data"] and "research" in card["terms"]


@pytest.fixture(scope="module")
def faces():
    folder = find_helen()  # an error where $ICNN_HELEN is set and nothing there
    if folder is None:
        pytest.skip("the project's Helen photographs are not here")
    return SmithFolder(folder).load_split("testing")


def test_they_score_what_they_say(faces):
    """Of the photographs that nothing was chosen on."""
    result = evaluate(load_pipeline(SHIPPED, "numba", 32), faces, 32)
    said = json.loads(metadata_of("stage1")["card"])["scores"]
    for condition, scores in result.summary("testing")["crops"].items():
        assert scores == pytest.approx(said["crops"][condition], abs=5e-4)


def test_backends_label_alike(faces):
    images = [face.image for face in faces[:6]]
    numpy, numba = (load_pipeline(SHIPPED, backend, 6).parse(images) for backend in ("numpy", "numba"))
    assert np.mean(np.stack(numpy) != np.stack(numba)) <= 1e-4


def test_a_mirrored_photograph_is_parsed_nearly_as_the_mirrored_parse(faces):
    """Left stays left as seen; annotators do not draw both sides alike, so neither do the networks."""
    pipeline = load_pipeline(SHIPPED, "numba", 8)
    images = [face.image for face in faces[:8]]
    plain = pipeline.parse(images)
    seen = pipeline.parse([np.ascontiguousarray(image[:, ::-1]) for image in images])
    pairs = zip(plain, seen, strict=True)
    alike = f_measures(sum(confusion(MIRRORED[labels][:, ::-1], other) for labels, other in pairs))
    assert alike["overall_micro"] > 0.9 and min(alike.values()) > 0.75


def off_centre(face):
    """A face as large as usual at the right of a wide photograph, and its labels."""
    photograph, labels = np.full((400, 900, 3), 90, np.uint8), np.zeros((400, 900), np.uint8)
    photograph[100:356, 600:856], labels[100:356, 600:856] = face.image, face.labels()
    return photograph, labels


def test_photographs_that_nobody_framed_are_parsed_nearly_as_well(faces):
    """Pooled over a few faces: as they are without a box, by half and twice the size, and beside the middle."""
    parser = FaceParser(backend="numba")
    some = faces[:8]

    def score(parsed, truths):
        pairs = zip(truths, parsed, strict=True)
        return f_measures(sum(confusion(truth, one.labels) for truth, one in pairs))["overall_micro"]

    truths = [face.labels() for face in some]
    framed = score([parser.parse(face.image, [(57.5, 57.5, 140, 140)]) for face in some], truths)
    assert score([parser.parse(face.image) for face in some], truths) > framed - 0.03
    for side in (128, 512):
        photographs = [np.asarray(Image.fromarray(face.image).resize((side, side))) for face in some]
        grown = [np.asarray(Image.fromarray(truth).resize((side, side), 0)) for truth in truths]
        assert score([parser.parse(one) for one in photographs], grown) > framed - 0.05
    photographs, moved = zip(*map(off_centre, some), strict=True)
    detected = [parser.parse(one, detect=True) for one in photographs]
    assert sum(len(one.faces) == 1 for one in detected) >= len(some) - 2
    seen = [n for n, one in enumerate(detected) if one.faces]
    assert score([detected[n] for n in seen], [moved[n] for n in seen]) > framed - 0.05


def test_pieces_without_a_face_have_none(faces):
    parser = FaceParser(backend="numba")
    pieces = [np.ascontiguousarray(piece) for face in faces[:10] for piece in (face.image[-70:], face.image[:70, :70])]
    assert sum(bool(parser.parse(piece).faces) for piece in pieces) <= 2
