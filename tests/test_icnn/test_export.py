"""Export: does ONNX Runtime compute what the plan computes, for both presets and any batch?"""

import json
import sys

import numpy as np
import pytest
from commands import call, refused

from icnn.data.resample import normalise
from icnn.export.writer import model_of, to_onnx
from icnn.model.modulation import modulate, probabilities
from icnn.model.network import PRESETS, icnn_graph
from icnn.model.pipeline import load_pipeline
from icnn.model.weights import SHIPPED
from icnn.stages import NETWORKS
from minicnn import Graph, Plan
from minicnn.layers import Conv2D, Input, Layer

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def session(model):
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def pictures(count, size, seed=0):
    """Images (n, 3, S, S) in [0, 255], smooth and noisy, one channel constant; and which pixels are real."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(0, 255, (count, 3, size, size)).astype(np.float32)
    images[0, 1] = 77
    insides = np.ones((count, size, size), bool)
    insides[count // 2 :, : size // 5] = False
    insides[-1, :, size // 2 :] = False
    return images, insides


def seen(images, insides):
    """What a network gets of them."""
    return np.stack([normalise(x.transpose(1, 2, 0), i) for x, i in zip(images, insides, strict=True)])


def check(result, logits, pair):
    got, probable, labels = result
    expected = modulate(logits, pair)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(probable, probabilities(logits, pair), atol=1e-4)
    assert labels.dtype == np.uint8 and labels.shape == (len(logits), *logits.shape[2:])
    best = np.sort(expected, axis=1)
    clear = best[:, -1] - best[:, -2] > 1e-4 * np.abs(expected).max()
    assert clear.mean() > 0.99 and (labels == expected.argmax(1))[clear].all()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("labels", "size"), [(9, 64), (2, 64), (4, 80)])
def test_onnx_runtime_computes_what_the_plan_computes(preset, labels, size):
    graph = icnn_graph(labels, size, preset)
    plan = Plan(graph, 3, "numpy", seed=3, threads=1)
    model = session(to_onnx(graph, plan.parameters, (1.3, -0.4)))
    for count in (3, 1):
        images, insides = pictures(count, size)
        logits = plan.forward(seen(images, insides))
        check(model.run(None, {"image": images, "inside": insides[:, None]}), logits, (1.3, -0.4))


def test_without_a_mask_all_pixels_are_real():
    graph = icnn_graph(2, 64)
    plan = Plan(graph, 2, "numpy", seed=1, threads=1)
    images, insides = pictures(2, 64)
    logits = plan.forward(seen(images, np.ones_like(insides)))
    check(session(to_onnx(graph, plan.parameters)).run(None, {"image": images}), logits, (1, 0))


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4])
def test_even_windows_are_padded_alike(kernel_size):
    graph = Graph()
    graph.add("image", Input(3, 8, 8))
    graph.add("output", Conv2D(4, kernel_size), "image")
    plan = Plan(graph, 2, "numpy", seed=1, threads=1)
    images, insides = pictures(2, 8)
    logits = plan.forward(seen(images, np.ones_like(insides)))
    check(session(to_onnx(graph, plan.parameters)).run(None, {"image": images}), logits, (1, 0))


@pytest.mark.parametrize("name", NETWORKS)
def test_shipped_networks_say_what_they_are_and_label_alike(name, tmp_path):
    file = tmp_path / f"{name}.onnx"
    code, out, _ = call("export", "--onnx", file, "--network", name)
    assert code == 0 and name in out
    model = onnx.load(file)
    about = {entry.key: entry.value for entry in model.metadata_props}
    network = NETWORKS[name]
    assert about["network"] == name and about["preset"] == "paper" and "research" in about["terms"]
    assert len(json.loads(about["classes"])) == network.labels
    pipeline = load_pipeline(SHIPPED, "numba", 4)
    images, insides = pictures(4, network.size)
    logits = pipeline.networks[name](seen(images, insides))
    pair = pipeline.pairs.get(name, (1.0, 0.0))
    check(session(model).run(None, {"image": images, "inside": insides[:, None]}), logits, pair)


def test_mistakes_are_a_line_and_leave_nothing(tmp_path, monkeypatch):
    file = tmp_path / "x.onnx"
    refused("export", "--onnx", file, "--network", "eye", "--weights", tmp_path / "nowhere", words="nowhere")
    refused("export", "--onnx", file, "--network", "ear", words="--network")
    refused("export", "--onnx", tmp_path / "no" / "x.onnx", "--network", "eye", words="folder that exists")
    monkeypatch.setitem(sys.modules, "onnx", None)
    refused("export", "--onnx", file, "--network", "eye", words="icnn[onnx]")
    assert list(tmp_path.iterdir()) == []


def test_a_layer_without_a_counterpart_is_named():
    class Odd(Layer):
        def output_shape(self, *inputs):
            return inputs[0]

    graph = Graph()
    graph.add("image", Input(3, 8, 8))
    graph.add("strange", Odd(), "image")
    with pytest.raises(ValueError, match="'strange': Odd"):
        to_onnx(graph, {})


def test_a_model_of_a_run_is_that_of_its_weights(tmp_path):
    (tmp_path / "weights").mkdir()
    for path in SHIPPED.glob("*.safetensors"):
        (tmp_path / "weights" / path.name).write_bytes(path.read_bytes())
    assert model_of(tmp_path, "eye") == model_of(SHIPPED, "eye")
