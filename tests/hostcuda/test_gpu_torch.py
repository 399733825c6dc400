"""Do the comparisons with PyTorch on a GPU run, as far as PyTorch without a GPU can show?

Its tensors stay on the CPU, and a CUDA graph only counts: what is compared is real, what is timed means nothing.
"""

import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from test_gpu_report import do, module

torch = pytest.importorskip("torch")

__all__ = ["do", "module"]  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore:::torch", "ignore::DeprecationWarning")  # of PyTorch's own


class Event:
    """As PyTorch's, but for a device that is done when a call returns."""

    def __init__(self, enable_timing=False):
        assert enable_timing

    def record(self):
        self.time = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return 1e3 * (other.time - self.time)


class Graph:
    """Counts its replays."""

    replays = 0

    def replay(self):
        Graph.replays += 1


@pytest.fixture(autouse=True)
def gpu(module, monkeypatch):
    """Lets PyTorch believe that the CPU is a GPU."""
    import torch_twin

    make = torch_twin.TorchStep.__init__

    def on_cpu(self, *arguments, device, **options):
        assert device == "cuda"
        make(self, *arguments, device="cpu", **options)

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch_twin.TorchStep, "__init__", on_cpu)
    for name, value in {
        "is_available": lambda: True, "synchronize": lambda: None, "Event": Event, "Stream": lambda: stream,
        "current_stream": lambda: stream, "stream": lambda one: nullcontext(), "CUDAGraph": Graph,
        "graph": lambda graph: nullcontext(),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    torch.set_num_threads(1)  # its idle threads spin
    Graph.replays = 0


def test_accuracy(do):
    found = do("accuracy")
    assert found["exact"] == "PyTorch in float64" and found["wrong"] == found["lacking"] == []
    assert [row["what"] for row in found["rows"]] == ["ours", "torch float32", "torch TF32"]
    assert all(0 < row["largest_gradient"] < 1e-5 and 0 < row["logits"] < 1e-5 for row in found["rows"])


def test_curves(do):
    found = do("curves")
    assert found["wrong"] == found["lacking"] == []
    assert set(found["largest_difference_from_numba"]) == {"cupy", "numba", "torch float32", "torch TF32"}
    assert max(found["largest_difference_from_numba"].values()) < 1e-5


WAYS = {f"torch {layout} {launch} {precision}" for layout in ("default", "channels_last")
        for launch in ("eager", "graph") for precision in ("tf32", "fp32")}  # fmt: skip


def test_one_step(do):
    (row,) = do("one step")["rows"]
    assert set(row["variants"]) == {"captured", "resident", *WAYS} and row["lacking"] == {}
    assert Graph.replays > 0


def test_all_steps(do, module, monkeypatch):
    """With ``torch.compile``, which here compiles nothing, in the better layout."""
    modes, marks = [], []
    monkeypatch.setattr(torch, "compile", lambda function, mode: modes.append(mode) or function)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    (row,) = do("torch steps")["rows"]
    compiled = {name.split()[1] for name in row["variants"] if "compiled" in name}
    assert len(compiled) == 1 and len(row["variants"]) == 2 + len(WAYS) + 2, row["lacking"]
    assert modes == ["reduce-overhead"] * 2 and len(marks) > 4
    assert "torch channels_last graph fp32" in module.as_markdown({"torch steps": {"status": "good", "rows": [row]}})


def test_what_pytorch_cannot_do_is_said_and_the_rest_measured(do, monkeypatch):
    def refused(graph):
        raise RuntimeError("capture is\nnot permitted")

    monkeypatch.setattr(torch.cuda, "graph", refused)
    (row,) = do("one step")["rows"]
    assert set(row["lacking"]) == {way for way in WAYS if "graph" in way}
    assert set(row["lacking"].values()) == {"RuntimeError: capture is not permitted"}
    assert {"captured", "torch default eager tf32"} < set(row["variants"])


def test_no_time_left_is_said(do):
    found = do("torch steps", seconds=-1)
    assert found["rows"] == [] and "no time was left" in found["lacking"][0]


def test_a_profiler_that_sees_no_kernel(do):
    found = do("trace")
    assert found["steps"] == {} and len(found["lacking"]) == 3
    assert all("the profiler saw no kernel" in text for text in found["lacking"])


def test_tensor_cores_are_as_before_afterwards():
    from torch_twin import tensor_cores

    def settings():
        convolutions = torch.backends.cudnn
        return convolutions.allow_tf32, torch.backends.cuda.matmul.allow_tf32, convolutions.benchmark

    before = settings()
    for allowed in (True, False):
        with tensor_cores(allowed):
            assert settings() == (allowed, allowed, True)
    assert settings() == before


def test_convolutions_with_tf32_and_without(monkeypatch, tmp_path, capsys):
    import json

    import conv_bench
    from contenders import torch_contender
    from test_conv_bench import fake_gpu

    fake = fake_gpu()
    for name in ("contenders", "conv_bench"):
        monkeypatch.setattr(f"{name}.get_backend", lambda name: fake)
    monkeypatch.setattr("conv_bench.choose_backend", lambda name: (name, "as asked"))
    monkeypatch.setattr("contenders.GPU_REPEATS", 1)
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: to(tensor, "cpu"))
    assert torch_contender(torch, "default", [], 1, "cuda", True).name == "torch_default_tf32"
    assert conv_bench.main(["--backend", "cupy", "--quick", "--batch", "1", "--json", str(tmp_path / "x.json")]) == 0
    for row in json.loads((tmp_path / "x.json").read_text())["rows"]:
        assert all(row[f"torch_{layout}{end}_ms"] > 0 for layout in conv_bench.LAYOUTS for end in ("", "_tf32"))
