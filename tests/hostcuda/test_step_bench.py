"""What does step_bench say of a GPU's steps?"""

import json

import numpy as np
import pytest
import wheels  # noqa: F401 - makes the benchmarks' modules importable
from gpu_steps import Spread, Variant, compiled_ways, fastest, measure_in_turn
from step_bench import main
from test_gpu_report import small_graph

from icnn.errors import InputError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("device")]

ROW = [
    "labels", "size", "batch", "threads", "ms", "share_of_peak", "torch_default_ms", "torch_channels_last_ms",
    "ratio_default", "ratio_channels_last", "variants", "lacking",
]  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr("step_cases.icnn_graph", small_graph)
    monkeypatch.setattr("step_bench.KINDS", ((9, 64), (2, 8)))
    monkeypatch.setattr("step_bench.find_torch", lambda: None)


def test_the_file_and_the_table(tmp_path, capsys):
    assert main(["--backend", "cupy", "--quick", "--batch", "1,2", "--json", str(tmp_path / "x.json")]) == 0
    figures = json.loads((tmp_path / "x.json").read_text())
    assert set(figures) == {"machine", "peak_gflops", "rows"} and figures["machine"].startswith("Stand-in GPU")
    assert [(row["labels"], row["size"], row["batch"]) for row in figures["rows"]] == [(2, 8, 1), (2, 8, 2)]
    printed = capsys.readouterr().out
    for row in figures["rows"]:
        assert list(row) == ROW and row["threads"] is None and row["lacking"] == {}
        assert set(row["variants"]) == {"captured", "eager", "resident"}
        assert row["ms"] == row["variants"]["captured"]["median"] > 0 and row["share_of_peak"] > 0
        assert row["torch_default_ms"] is None and row["ratio_channels_last"] is None
        assert f"2 labels, 8 px, batch {row['batch']}" in printed


def test_steps_of_cublas_are_refused():
    with pytest.raises(InputError, match="expected cupy"):
        main(["--backend", "cublas", "--quick"])


def test_variants_take_turns_until_no_time_is_left():
    asked = []

    def variant(name: str, seconds: float) -> Variant:
        def clock(call, repeats: int) -> float:
            asked.append((name, repeats))
            return seconds * len(asked)

        return Variant(name, lambda: None, clock)

    spreads = measure_in_turn([variant("quick", 0.001), variant("slow", 0.1)], rounds=9, left=lambda: 0.0)
    assert asked[:2] == [("quick", 1), ("slow", 1)], "first a step of each is timed"
    assert asked[2:] == [("quick", 10), ("slow", 1)] * 3, "then the short one is repeated in its turns"
    numbers = [1 * 3, 1 * 5, 1 * 7]
    low, middle, high = np.percentile(numbers, [10, 50, 90])
    assert spreads["quick"] == pytest.approx(Spread(middle, low, high))


def test_pytorchs_fastest_way_and_the_layout_that_is_compiled():
    spreads = {
        name: Spread(ms, ms, ms)
        for name, ms in {
            "captured": 1.0, "torch default eager tf32": 5.0, "torch default graph fp32": 3.0,
            "torch channels_last graph tf32": 4.0, "torch channels_last graph fp32": 6.0,
        }.items()
    }  # fmt: skip
    assert fastest(spreads, "default") == 5.0 and fastest(spreads, "channels_last", "fp32") == 6.0
    assert fastest(spreads, "default", "fp64") is None
    assert [str(way) for way in compiled_ways(spreads)] == [
        "torch default compiled tf32",
        "torch default compiled fp32",
    ]
    assert compiled_ways({"captured": Spread(1.0, 1.0, 1.0)}) == []
