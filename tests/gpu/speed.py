"""Parts of the report that time steps, ours and PyTorch's, and what bounds them."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import ModuleType

import numpy as np
from checks import extent
from contenders import DevicePeak, cuda_torch, event_clock
from gpu_steps import (
    Measured,
    TorchWay,
    Variant,
    first_values,
    measure_beside_torch,
    measure_own,
    one_line,
    own_variants,
    share_of_peak,
    torch_variant,
)
from measure import find_torch
from part import Part
from step_cases import StepCase

from minicnn.kernels import get_backend

COMPILED = 2  # cases, the most important ones, for which PyTorch also compiles
TRACED = 5  # steps
NO_TORCH = "there is no PyTorch with CUDA"


def cases() -> list[StepCase]:
    """What is timed, the most important first: batch 10, then large ones, of stage 1, then of the other networks."""
    seen = extent()
    return [StepCase(labels, size, batch) for batch in seen.batches for labels, size in seen.kinds]


def _row(case: StepCase, measured: Measured, peak: DevicePeak) -> dict:
    """One case as it goes into the report."""
    return {
        **case._asdict(),
        "share_of_peak": share_of_peak(case, measured.spreads, peak),
        "variants": {name: spread._asdict() for name, spread in measured.spreads.items()},
        "lacking": measured.lacking,
    }


def _steps(part: Part, measure: Callable[[StepCase], Measured], wanted: Sequence[StepCase]) -> None:
    peak = DevicePeak(get_backend("cupy").cupy)
    part.put(peak_gflops=peak.gflops(1), rows=[])
    for case in wanted:
        if part.left() <= 0:
            part.lack(f"{case}: no time was left")
            continue
        part.put(rows=[*part.found["rows"], _row(case, measure(case), peak)])


def own_steps(part: Part) -> None:
    """Our step: captured with its batch sent, eager, and captured without sending."""
    _steps(part, lambda case: measure_own(case, extent().rounds, part.left), cases())


def one_step(part: Part) -> None:
    """The most important step beside PyTorch's graphs, and PyTorch eager."""
    torch = cuda_torch(find_torch())
    if torch:
        _steps(part, lambda case: measure_beside_torch(torch, case, False, extent().rounds, part.left), cases()[:1])
    else:
        part.lack(f"PyTorch's step: {NO_TORCH}")
        _steps(part, lambda case: measure_own(case, extent().rounds, part.left), cases()[:1])


def torch_steps(part: Part) -> None:
    """PyTorch's step in both layouts, with TF32 and without, eager, in a CUDA graph and compiled; ours beside it."""
    torch = cuda_torch(find_torch())
    if not torch:
        part.lack(f"PyTorch's steps: {NO_TORCH}")
        return
    compiled = cases()[:COMPILED]

    def measure(case: StepCase) -> Measured:
        return measure_beside_torch(torch, case, case in compiled, extent().rounds, part.left)

    _steps(part, measure, cases())


# ---- what a step is made of


def trace(part: Part) -> None:
    """Kernels of captured steps and the gaps between them, as PyTorch's profiler sees them, ours and PyTorch's."""
    torch = cuda_torch(find_torch())
    if not torch:
        part.lack(f"a trace of the kernels: {NO_TORCH}")
        return
    case, steps = cases()[0], {}
    makers: dict[str, Callable[[], Variant]] = {"ours": lambda: next(own_variants(case, ("resident",)))}
    for tf32 in (True, False):
        way = TorchWay("channels_last", "graph", tf32)
        makers[str(way)] = lambda way=way: torch_variant(torch, case, way, first_values(case))
    for name, make in makers.items():
        if part.left() <= 0:
            part.lack(f"{name}: no time was left")
            continue
        try:
            steps[name] = summary_of_trace(_kernels(torch, make()), TRACED)
        except Exception as error:  # the profiler may not be allowed, or not know this driver
            part.lack(f"{name}: {one_line(error)}")
        part.put(case=str(case), steps=steps)


def _kernels(torch: ModuleType, variant: Variant) -> list[dict]:
    """The profiler's kernel events of some steps, in order."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with variant.context():
        for _ in range(3):
            variant.call()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(TRACED):
                variant.call()
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(file))
        events = json.loads(file.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    return sorted((event for event in events if event.get("cat") == "kernel"), key=lambda event: event["ts"])


def summary_of_trace(events: Sequence[dict], steps: int) -> dict:
    """Of some steps' kernel events (times in us): kernels, time in kernels and between them, and the longest ones.

    Raises
    ------
    ValueError
        If there is none.
    """
    if not events:
        raise ValueError("the profiler saw no kernel")
    busy = sum(event["dur"] for event in events)
    gaps = [max(0.0, after["ts"] - before["ts"] - before["dur"]) for before, after in pairwise(events)]
    count: Counter[tuple] = Counter()
    spent: Counter[tuple] = Counter()
    for event in events:
        details = event.get("args", {})
        key = event["name"], str(details.get("grid", "")), str(details.get("block", ""))
        count[key] += 1
        spent[key] += event["dur"]
    return {
        "kernels_a_step": len(events) / steps,
        "us_in_kernels_a_step": busy / steps,
        "us_between_kernels_a_step": sum(gaps) / steps,
        "median_gap_us": median(gaps) if gaps else 0.0,
        "longest": [
            {
                "kernel": name[:120],
                "grid": grid,
                "block": block,
                "times": count[name, grid, block] / steps,
                "us": us / steps,
            }
            for (name, grid, block), us in spent.most_common(25)
        ],
    }


# ---- ceilings

_CEILINGS = r"""
extern "C" __global__ void multiply_adds(float* out, int loops) {
    float sums[16];
    for (int i = 0; i < 16; i++) sums[i] = threadIdx.x + i;
    for (int loop = 0; loop < loops; loop++)
#pragma unroll
        for (int i = 0; i < 16; i++) sums[i] = fmaf(sums[i], 0.999f, 0.001f);
    float total = 0;
    for (int i = 0; i < 16; i++) total += sums[i];
    out[blockIdx.x * blockDim.x + threadIdx.x] = total;
}
extern "C" __global__ void nothing(float* out) {}
"""


def ceilings(part: Part) -> None:
    """What the card gives at the most: multiply-adds, copies in its memory, and kernels of a graph that do nothing."""
    gpu, seen = get_backend("cupy"), extent()
    cupy, clock = gpu.cupy, event_clock(gpu.cupy)
    module = cupy.RawModule(code=_CEILINGS)
    count = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["multiProcessorCount"]
    blocks, block = (1 if seen.nodes < 10 else 8 * count), 256
    out = gpu.zeros((blocks * block,), "float32")
    source, target = (gpu.zeros((seen.megabytes << 18,), "float32") for _ in range(2))
    add, nothing = (module.get_function(name) for name in ("multiply_adds", "nothing"))

    def empty_nodes() -> None:
        for _ in range(seen.nodes):
            nothing((1,), (32,), (out,))

    nodes = gpu.capture(empty_nodes)
    with gpu.threads(1):
        seconds = {
            "multiply_adds": _least(clock, lambda: add((blocks,), (block,), (out, np.int32(seen.loops)))),
            "copy": _least(clock, lambda: target.data.copy_from_device_async(source.data, source.nbytes)),
            "nodes": _least(clock, nodes),
        }
    part.put(
        gflops=2e-9 * 16 * seen.loops * blocks * block / seconds["multiply_adds"],
        gflops_at_the_highest_clock=DevicePeak(cupy).gflops(1),
        copied_gb_a_second=2e-9 * source.nbytes / seconds["copy"],
        us_a_node=1e6 * seconds["nodes"] / seen.nodes,
    )


def _least(clock, call: Callable[[], object]) -> float:
    """Seconds of the fastest of several calls."""
    for _ in range(2):
        call()
    return max(min(clock(call, 1) for _ in range(5)), 1e-9)
