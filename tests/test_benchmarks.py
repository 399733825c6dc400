"""Do the benchmarks run, and do their files say what they promise? No timing is asserted."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from icnn.data.write_folder import write_face, write_split
from icnn.evaluate.metrics import MEASURES
from icnn.model.centres import part_centres
from icnn.model.network import icnn_graph
from icnn.stages import NETWORKS
from icnn.synthetic.faces import synthetic_faces
from minicnn import Plan

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def run_benchmark(script, *arguments):
    """Run benchmarks/SCRIPT as a user does; the package need not be installed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_conv_bench(tmp_path):
    done = run_benchmark(
        "conv_bench.py", "--quick", "--backend", "numpy,numba", "--threads", 1, "--batch", 2,
        "--json", tmp_path / "x.json",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads((tmp_path / "x.json").read_text())
    assert set(figures) == {"machine", "peak_gflops", "rows"}
    assert isinstance(figures["machine"], str) and figures["peak_gflops"] > 0
    rows = figures["rows"]
    assert {(row["direction"], row["backend"]) for row in rows} == {
        (direction, backend)
        for direction in ("forward", "input_gradient", "weight_gradient")
        for backend in ("numpy", "numba")
    }
    for row in rows:
        assert list(row) == [
            "layer", "direction", "backend", "threads", "ms", "gflops", "share_of_peak",
            "torch_default_ms", "torch_channels_last_ms",
        ]  # fmt: skip
        assert row["layer"] in done.stdout
        assert row["threads"] == 1 and row["ms"] > 0
        assert row["gflops"] == pytest.approx(row["share_of_peak"] * figures["peak_gflops"])
        assert (row["torch_default_ms"] is None) == (row["torch_channels_last_ms"] is None)


def test_conv_steps_compares_six_ways():
    done = run_benchmark("conv_steps.py", 8)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("GFLOP/s") == 6


def test_conv_bench_covers_every_convolution(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from conv_bench import distinct_convolutions

    found = {c.layer: c for c in distinct_convolutions()}
    assert len(found) == 26
    assert not found["row1/round0/conv 3->8 5x5 at 64x64"].input_gradient
    assert found["output/conv 24->9 9x9 at 64x64"].flops(10) == 2 * 10 * 24 * 9 * 81 * 64 * 64
    assert {"integrate/row1/conv 24->10 5x5 at 64x64", "output/conv 14->4 9x9 at 80x80"} <= set(found)


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("conv_bench.py", ("--threads", "0"), "--threads"),
        ("conv_bench.py", ("--threads", "1,4096"), "at most"),
        ("conv_bench.py", ("--backend", "abacus"), "abacus"),
        ("step_bench.py", ("--batch", "1,0"), "--batch"),
        ("step_bench.py", ("--json", "no/folder/x.json"), "no/folder"),
        ("step_bench.py", ("--data", "no/folder"), "no/folder"),
        ("parse_bench.py", ("--batch", "0"), "--batch"),
        ("parse_bench.py", ("--data", "no/folder"), "no/folder"),
    ],
)
def test_mistakes(script, arguments, words):
    done = run_benchmark(script, "--quick", *arguments)
    assert done.returncode == 2
    assert words in done.stderr and len(done.stderr.splitlines()) == 1


def test_parse_bench(tmp_path):
    done = run_benchmark("parse_bench.py", "--quick", "--batch", "1", "--threads", 1, "--json", tmp_path / "x.json")
    assert done.returncode == 0, done.stderr
    rates = {row["what"]: row["rates"] for row in json.loads((tmp_path / "x.json").read_text())["rows"]}
    assert list(rates) == ["stage1", "eye", "mouth", "seven networks", "end to end"]
    for engine in rates["stage1"]:
        seconds = 1 / rates["stage1"][engine] + 5 / rates["eye"][engine] + 1 / rates["mouth"][engine]
        assert rates["seven networks"][engine] == pytest.approx(1 / seconds)
        assert engine in rates["end to end"] and engine in done.stdout


def test_parse_bench_refuses_engines_that_compute_something_else(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import parse_bench

    ours = parse_bench.Engine("ours", "ours", parse_bench.own_network)
    double = parse_bench.Engine(
        "double", "double", lambda *given: lambda images: 2 * parse_bench.own_network(*given)(images)
    )
    with pytest.raises(RuntimeError, match="double computes other logits"):
        parse_bench.network_rates(parse_bench.Case("eye", 1, 1), [ours, double], 1, 0.0)


def test_step_bench(tmp_path):
    done = run_benchmark(
        "step_bench.py", "--quick", "--batch", "1,2", "--threads", 1, "--steps-only", "--json", tmp_path / "x.json"
    )
    assert (done.returncode, done.stderr) == (0, "")
    figures = json.loads((tmp_path / "x.json").read_text())
    assert set(figures) == {"machine", "peak_gflops", "rows"} and figures["peak_gflops"] > 0
    assert [(row["labels"], row["size"], row["batch"], row["threads"]) for row in figures["rows"]] == [
        (2, 64, 1, 1), (2, 64, 2, 1),
    ]  # fmt: skip
    for row in figures["rows"]:
        assert list(row) == [
            "labels", "size", "batch", "threads", "ms", "share_of_peak", "torch_default_ms", "torch_channels_last_ms",
            "ratio_default", "ratio_channels_last",
        ]  # fmt: skip
        assert row["ms"] > 0 and row["share_of_peak"] > 0
        for layout in ("default", "channels_last"):
            ms, ratio = row[f"torch_{layout}_ms"], row[f"ratio_{layout}"]
            assert (ms is None and ratio is None) or ratio == pytest.approx(ms / row["ms"])


def test_scaling_bench(tmp_path):
    pytest.importorskip("mpi4py")
    done = run_benchmark(
        "scaling_bench.py", "--processes", 2, "--rounds", 1, "--steps", 1, "--json", tmp_path / "x.json"
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "x.json").read_text())
    assert set(figures) == {"machine", "rates", "allreduce_seconds", "bytes"} and figures["bytes"] == 4 * 399_592
    assert set(figures["rates"]) == {f"{name} {kind}" for name in NETWORKS for kind in ("processes", "threads")}
    assert all(rate > 0 for rates in (*figures["rates"].values(), figures["allreduce_seconds"]) for rate in rates)
    assert "InfiniBand HDR" in done.stdout and "512 processes" in done.stdout


def test_what_is_foretold_of_more_processes(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import scaling_bench

    # Two processes: each sends and receives all of the bytes once, and 3 sums go one message up and one down.
    assert scaling_bench.sum_seconds(2, 1e6, 1e-3, 1e9) == pytest.approx(6e-3 + 1e-3)
    monkeypatch.setattr(scaling_bench, "LINKS", {"none": (0.0, float("inf")), "slow": (0.0, 1e6)})
    rows = {row[:2]: row[2:] for row in scaling_bench.foretold(image=0.01, size=1e6)}
    assert rows["weak", "none"] == rows["strong", "none"] == ("100.0 %",) * 3
    # 10 images of 0.01 s each, and 2 * 511 / 512 s for a megabyte.
    assert rows["weak", "slow"][2] == f"{100 * 0.1 / (0.1 + 2 * 511 / 512):.1f} %"
    assert rows["strong", "slow"][2] == f"{100 * 0.01 / (0.01 + 2 * 511 / 512):.1f} %"


def test_a_steps_operations_are_those_of_its_real_channels(monkeypatch):
    """19.09 GFLOP: no padded channels, no gradient of the image."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from measure import step_flops

    from icnn.model.network import icnn_graph

    assert step_flops(icnn_graph(9, 64), 10) == pytest.approx(19.09e9, rel=1e-3)


# ---------------------------------------------------------------- accuracy_bench.py


@pytest.fixture
def accuracy_bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("accuracy_bench")


FACE = synthetic_faces(1, 0, "testing")[0]


def middles(labels):
    """(8, 2) mean x and y of each part; medians do not turn with their part."""
    return np.array([np.mean(np.nonzero(labels == part)[::-1], axis=1) for part in range(1, 9)])


def test_changes_of_place_take_the_labels_along(accuracy_bench):
    before, side = middles(FACE.labels()), max(FACE.pixels.shape[:2])
    middle, (c, s) = (side - 1) / 2, np.cos(np.deg2rad((20, 70)))
    offset, turn = before - middle, np.array([[c, s], [-s, c]])
    ways = np.multiply([(1, 0), (-1, 0), (0, 1), (0, -1)], 0.2 * side)
    for name, expected in (
        ("face 20 % smaller", [middle + 0.8 * offset]),
        ("face 20 % off, four ways", [before + way for way in ways]),
        ("turned by 20° in the plane, both ways", [middle + offset @ turn, middle + offset @ turn.T]),
    ):
        for change, places in zip(accuracy_bench.CONDITIONS[name], expected, strict=True):
            changed = change(FACE)
            inside = ((places > 32) & (places < side - 32)).all(1)  # the border cuts nothing off
            assert inside.sum() >= 2
            np.testing.assert_allclose(middles(changed.labels())[inside], places[inside], atol=1)
            assert (changed.maps.sum(2) > 200).all(), "outside is background"


def test_changes_of_colours_leave_the_labels_alone(accuracy_bench):
    for name in ("greyscale", "sunglasses", "JPEG of quality 20"):
        (change,) = accuracy_bench.CONDITIONS[name]
        changed = change(FACE)
        np.testing.assert_array_equal(changed.maps, FACE.maps)
        assert (changed.image != FACE.image).any()
    dark = accuracy_bench.sunglasses(FACE).image
    eyes, nose = np.isin(FACE.labels(), (2, 4)), FACE.labels() == 5
    assert (dark[eyes] < 45).all()
    assert (dark[nose] == FACE.image[nose]).mean() > 0.5


def test_half_the_size_is_the_mean_of_four(accuracy_bench):
    half = accuracy_bench.half(FACE)
    assert half.pixels.shape == (128, 128, 12)
    assert half.pixels[3, 5, 1] == round(FACE.pixels[6:8, 10:12, 1].mean())


def test_the_most_turned_have_their_nose_nearer_to_one_eye(accuracy_bench):
    faces = synthetic_faces(12, 1, "testing")

    def asymmetry(face):
        centres = part_centres(face.labels())
        left, right = np.linalg.norm(centres[4] - centres[1]), np.linalg.norm(centres[4] - centres[3])
        return abs(left - right) / (left + right)

    chosen = accuracy_bench.turned(faces)
    assert len(chosen) == 3
    others = [face for face in faces if face not in chosen]
    assert min(map(asymmetry, chosen)) >= max(map(asymmetry, others))


def test_accuracy_bench(tmp_path):
    for name, network in NETWORKS.items():
        plan = Plan(icnn_graph(network.labels, network.size), 1, seed=1, threads=1)
        plan.save(tmp_path / f"{name}.safetensors")
    for number in range(3):
        face = synthetic_faces(3, 2, "testing")[number]
        write_face(tmp_path / "faces", f"f{number}", face.image, face.maps)
    write_split(tmp_path / "faces", "tuning", [f"f{number}" for number in range(3)])
    done = run_benchmark(
        "accuracy_bench.py", "--data", tmp_path / "faces", "--weights", tmp_path, "--backend", "numba", "--limit", 2,
        "--only", "as they are", "half the size", "the most turned quarter", "--json", tmp_path / "x.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert [(row["images"], row["parts"]) for row in rows] == [(2, 12), (2, 12), (1, 6)]
    assert set(rows[0]["f"]) == set(rows[0]["intervals"]) == set(MEASURES)
    assert done.stdout.count("\n") == 2 + len(rows) and done.stdout.startswith("| condition | eyebrow |")


def test_accuracy_bench_names_a_mistake_in_one_line(tmp_path):
    done = run_benchmark("accuracy_bench.py", "--data", tmp_path, "--weights", tmp_path / "none", "--backend", "numba")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "none" in done.stderr
