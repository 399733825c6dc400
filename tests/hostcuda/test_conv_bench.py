"""What does conv_bench say of a GPU, where there is one and where there is none?"""

import copy
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import wheels
from contenders import backend_contender, distinct_convolutions
from conv_bench import main
from gpu_model import DEVICES, usual_compiler
from machine_code import disassembler
from model_table import step_launches, step_ms

from icnn.stages import NETWORKS
from minicnn.kernels import get_backend

pytestmark = pytest.mark.slow

ROW = [
    "layer", "direction", "backend", "threads", "ms", "gflops", "share_of_peak",
    "torch_default_ms", "torch_channels_last_ms",
]  # fmt: skip


def run_conv_bench(*arguments):
    command = [sys.executable, str(wheels.ROOT / "benchmarks" / "conv_bench.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(wheels.ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_the_model_where_there_is_no_gpu(tmp_path):
    wheels.require(usual_compiler, disassembler)
    done = run_conv_bench("--backend", "cupy", "--model", "h100", "--quick", "--json", tmp_path / "x.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "model, unverified on hardware" in done.stdout
    figures = json.loads((tmp_path / "x.json").read_text())
    assert set(figures) == {"machine", "peak_gflops", "rows"}
    assert "unverified" in figures["machine"] and figures["peak_gflops"] == pytest.approx(DEVICES["h100"].peak)
    assert [row["direction"] for row in figures["rows"]] == ["forward", "input_gradient", "weight_gradient"]
    for row in figures["rows"]:
        assert list(row)[: len(ROW)] == ROW
        assert row["layer"] in done.stdout and "unverified" in row["model"]
        assert row["backend"] == "cupy" and row["ms"] > 0 and 0 < row["useful"] < 1
        assert row["gflops"] == pytest.approx(row["share_of_peak"] * figures["peak_gflops"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--model", "abacus"), "h100"), (("--model", "h100", "--backend", "numba"), "--backend cupy")],
)
def test_mistakes(arguments, words):
    done = run_conv_bench(*arguments)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1


class Event:
    """As CuPy's, but for a device that is done when a call returns."""

    def record(self, stream):
        self.time = time.perf_counter()

    def synchronize(self):
        pass


def fake_gpu():
    """The reference kernels behind as much of CuPy as the benchmark uses."""
    device = SimpleNamespace(id=0, compute_capability="80")
    properties = {"name": b"A Fake", "multiProcessorCount": 10, "clockRate": 1_000_000}
    cuda = SimpleNamespace(
        Device=lambda: device,
        Event=Event,
        get_current_stream=lambda: None,
        get_elapsed_time=lambda first, last: 1e3 * (last.time - first.time),
        runtime=SimpleNamespace(getDeviceProperties=lambda number: properties),
    )
    gpu = copy.copy(get_backend("numpy"))
    gpu.cupy = SimpleNamespace(cuda=cuda)
    return gpu


def test_measured_where_there_is_a_gpu(monkeypatch, tmp_path, capsys):
    gpu = fake_gpu()
    for module in ("contenders", "conv_bench"):
        monkeypatch.setattr(f"{module}.get_backend", lambda name: gpu)
    monkeypatch.setattr("conv_bench.choose_backend", lambda name: (name, "as asked"))
    monkeypatch.setattr("conv_bench.find_torch", lambda: None)
    monkeypatch.setattr("contenders.GPU_REPEATS", 1)
    assert main(["--backend", "cupy", "--quick", "--batch", "1", "--json", str(tmp_path / "x.json")]) == 0
    printed = capsys.readouterr().out
    assert "A Fake" in printed and "model" not in printed
    figures = json.loads((tmp_path / "x.json").read_text())
    assert figures["peak_gflops"] == pytest.approx(2 * 64 * 10)  # GFLOP/s at 1 GHz
    assert [row["backend"] for row in figures["rows"]] == ["cupy"] * 3  # cuBLAS only if asked for: it is no competitor
    for row in figures["rows"]:
        assert list(row) == [*ROW, "captured_ms", "torch_default_tf32_ms", "torch_channels_last_tf32_ms"]
        assert row["threads"] is None and row["ms"] > 0 and row["captured_ms"] > 0
        assert row["torch_default_ms"] is None and row["torch_default_tf32_ms"] is None


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("backend", ["cupy", "cublas"])
def test_each_gpu_backend_is_timed(backend):
    convolution = min(distinct_convolutions(), key=lambda one: one.size**2 * one.channels * one.out_channels)
    contender = backend_contender(backend, [convolution], 1)
    assert len(contender.calls) == len(convolution.directions)
    with contender.threads(1):
        assert all(contender.clock(call, 1) > 0 for call in contender.calls.values())


def test_steps():
    """A step has few launches, and its time is that of all its convolutions, the same geometry every time."""
    for network in NETWORKS.values():
        assert step_launches(network.labels, network.size) <= 120
    rows = [
        {"layer": convolution.layer, "direction": direction, "ms": 1.0}
        for convolution in distinct_convolutions()
        for direction in convolution.directions
    ]
    convolutions, of_images = 20, 4  # nobody needs the gradient of an image
    assert step_ms(rows, 9, 64) == 3 * convolutions - of_images
    assert step_ms(rows[1:], 9, 64) is None
