"""Do the benchmarks run, and do their files say what they promise? No timing is asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    ],
)
def test_mistakes(script, arguments, words):
    done = run_benchmark(script, "--quick", *arguments)
    assert done.returncode == 2
    assert words in done.stderr and len(done.stderr.splitlines()) == 1


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


def test_a_steps_operations_are_those_of_its_real_channels(monkeypatch):
    """19.09 GFLOP: no padded channels, no gradient of the image."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from measure import step_flops

    from icnn.network import icnn_graph

    assert step_flops(icnn_graph(9, 64), 10) == pytest.approx(19.09e9, rel=1e-3)
