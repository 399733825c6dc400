"""Timing of GPU training steps, ours and PyTorch's, with each way of launching; variants are timed alternately.

Ours: "captured" is a CUDA graph with a new batch uploaded for each step, as in training; "eager" launches each kernel
from Python; "resident" replays the CUDA graph on a batch that is already on the GPU. PyTorch's batch is always on the
GPU: compare it with "resident" for the kernels, and with "captured" for the cost of our uploads.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from contenders import Clock, DevicePeak, event_clock, torch_clock
from measure import LAYOUTS, step_flops
from step_cases import OPTIMISER, StepCase

from icnn.cli import text_table
from minicnn import Plan
from minicnn.kernels import BackendError, get_backend

LAUNCHES = ("eager", "graph")  # PyTorch's ways of launching, besides torch.compile
ROUNDS, TURN = 25, 0.01  # measurements of each variant, and their minimum seconds: shorter steps are repeated
WARM = 3  # warm-up steps: PyTorch's compiled graphs are recorded in the second or third


class Variant(NamedTuple):
    """A way to run a training step.

    Attributes
    ----------
    name : str
    call : callable
        Launch one step without waiting for its end.
    clock : callable
        ``clock(call, repeats)`` returns seconds per call.
    context : callable
        Return the context manager in which `call` and `clock` must run.
    """

    name: str
    call: Callable[[], object]
    clock: Clock
    context: Callable[[], AbstractContextManager] = nullcontext


class TorchWay(NamedTuple):
    """PyTorch's settings for a step: memory layout, way of launching, and whether convolutions may round to TF32."""

    layout: str
    launch: str
    tf32: bool

    def __str__(self) -> str:
        return f"torch {self.layout} {self.launch} {'tf32' if self.tf32 else 'fp32'}"


TORCH_WAYS = [TorchWay(*way) for way in product(LAYOUTS, LAUNCHES, (True, False))]


class Spread(NamedTuple):
    """Milliseconds per step: median, 10th and 90th percentile."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread":
        low, middle, high = 1e3 * np.percentile(seconds, [10, 50, 90])
        return cls(float(middle), float(low), float(high))


# ---- variants


def own_variants(case: StepCase, names: Sequence[str] = ("captured", "eager", "resident")) -> Iterator[Variant]:
    """Yield our variants, building each when it is requested.

    Parameters
    ----------
    case : StepCase
    names : sequence of {"captured", "eager", "resident"}

    Raises
    ------
    BackendError
        If the GPU has too little memory for the batch.
    """
    kernels = get_backend("cupy")
    images, labels = case.inputs()
    clock = event_clock(kernels.cupy)
    graph = case.graph()
    for name in names:
        plan = Plan(graph, case.batch, "cupy", hook=(lambda phase, node: None) if name == "eager" else None)

        def step(plan: Plan = plan) -> None:
            plan.step(images, labels, OPTIMISER)

        step()  # compiles the kernels and uploads the batch
        call = plan._step(case.batch, OPTIMISER) if name == "resident" else step
        yield Variant(name, call, clock, lambda: kernels.threads(1))


def first_values(case: StepCase) -> dict[str, np.ndarray]:
    """Return the initial parameters of `own_variants`."""
    plan = Plan(case.graph(), 1, "numpy")
    return {name: np.array(array) for name, array in plan.parameters.items()}


def torch_variant(torch: ModuleType, case: StepCase, way: TorchWay, values: dict[str, np.ndarray]) -> Variant:
    """Build PyTorch's step with these settings; PyTorch's exceptions are passed on if it does not support them."""
    from torch_twin import TorchStep, tensor_cores

    def context() -> AbstractContextManager:
        return tensor_cores(way.tf32)

    compiled = "reduce-overhead" if way.launch == "compiled" else False
    if compiled:
        torch.compiler.reset()
    with context():
        step = TorchStep(case.graph(), values, *case.inputs(), way.layout, compiled, device="cuda")
        call = step.captured() if way.launch == "graph" else step
        call()
    return Variant(str(way), call, torch_clock(torch), context)


# ---- measuring


def measure_in_turn(
    variants: Sequence[Variant],
    rounds: int = ROUNDS,
    least: float = TURN,
    left: Callable[[], float] = lambda: math.inf,
) -> dict[str, Spread]:
    """Time the variants alternately.

    Parameters
    ----------
    variants : sequence of Variant
    rounds : int
        Maximum number of rounds.
    least : float
        Minimum seconds of one measurement; shorter steps are repeated.
    left : callable
        Return the seconds left; after three rounds, timing stops when none are left.
    """
    repeats, seconds = {}, defaultdict(list)
    for variant in variants:
        with variant.context():
            for _ in range(WARM):
                variant.call()
            repeats[variant.name] = max(1, round(least / max(variant.clock(variant.call, 1), 1e-6)))
    for number in range(rounds):
        if number >= 3 and left() <= 0:
            break
        for variant in variants:
            with variant.context():
                variant.call()
                seconds[variant.name].append(variant.clock(variant.call, repeats[variant.name]))
    return {name: Spread.of(values) for name, values in seconds.items()}


class Measured(NamedTuple):
    """Spreads by variant, and the reasons why others could not be measured."""

    spreads: dict[str, Spread]
    lacking: dict[str, str]


def measure_own(case: StepCase, rounds: int = ROUNDS, left: Callable[[], float] = lambda: math.inf) -> Measured:
    """Time all our variants alternately."""
    return _measure(case, ("captured", "eager", "resident"), None, (), rounds, left)


def measure_beside_torch(
    torch: ModuleType,
    case: StepCase,
    compiled: bool,
    rounds: int = ROUNDS,
    left: Callable[[], float] = lambda: math.inf,
) -> Measured:
    """Time ours and PyTorch's variants alternately; report those that fail or for which no time is left.

    With `compiled`, a second turn follows: ours beside ``torch.compile`` for the layout that was faster without it.
    """
    found = _measure(case, ("captured", "resident"), torch, TORCH_WAYS, rounds, left)
    ways = compiled_ways(found.spreads) if compiled and left() > 0 else []
    if not ways:
        return found
    more = _measure(case, ("captured", "resident"), torch, ways, rounds, left)
    return Measured(more.spreads | found.spreads, found.lacking | more.lacking)


def _measure(
    case: StepCase,
    own: Sequence[str],
    torch: Any,
    ways: Sequence[TorchWay],
    rounds: int,
    left: Callable[[], float],
) -> Measured:
    """Time our variants `own` and PyTorch's `ways` alternately."""
    lacking: dict[str, str] = {}
    try:
        variants = list(own_variants(case, own))
    except BackendError as error:
        variants, lacking = [], {"ours": str(error)}
    values = first_values(case) if ways else {}
    for way in ways:
        if left() <= 0:
            lacking[str(way)] = "no time was left"
            continue
        try:
            variants.append(torch_variant(torch, case, way, values))
        except Exception as error:  # out of memory, no compiler, or a refused capture
            lacking[str(way)] = one_line(error)
    return Measured(measure_in_turn(variants, rounds, left=left), lacking)


def share_of_peak(case: StepCase, spreads: dict[str, Spread], peak: DevicePeak) -> float | None:
    """Return the share of the device's peak that our captured step reaches; None if it was not measured."""
    if "captured" not in spreads:
        return None
    return step_flops(case.graph(), case.batch) / spreads["captured"].median * 1e-6 / peak.gflops(1)


def better_layout(spreads: dict[str, Spread]) -> str:
    """Return the PyTorch layout with the fastest step."""
    best = min((spread.median, name) for name, spread in spreads.items() if name.startswith("torch "))
    return best[1].split()[1]


def compiled_ways(spreads: dict[str, Spread]) -> list[TorchWay]:
    """Return the ``torch.compile`` settings for the layout that is faster without it, with and without TF32."""
    if not any(name.startswith("torch ") for name in spreads):
        return []
    return [TorchWay(better_layout(spreads), "compiled", tf32) for tf32 in (True, False)]


def one_line(error: BaseException) -> str:
    """Return an exception's type and message on one line, at most 300 characters of the message."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# ---- the rows of step_bench


def gpu_row(case: StepCase, peak: DevicePeak, torch: ModuleType | None, compiled: bool, rounds: int) -> dict[str, Any]:
    """Return a row of step_bench's JSON file, with the spread of every variant.

    `torch` must have a GPU or be None. PyTorch's columns are with TF32 on, its default; `variants` also has TF32 off.
    """
    spreads, lacking = measure_own(case, rounds)
    if torch and spreads:
        beside = measure_beside_torch(torch, case, compiled, rounds)
        spreads, lacking = spreads | beside.spreads, lacking | beside.lacking  # ours: from the rounds with PyTorch
    ms = spreads["captured"].median if "captured" in spreads else None
    default, channels_last = (fastest(spreads, layout) for layout in LAYOUTS)
    return {
        "labels": case.labels,
        "size": case.size,
        "batch": case.batch,
        "threads": None,
        "ms": ms,
        "share_of_peak": share_of_peak(case, spreads, peak),
        "torch_default_ms": default,
        "torch_channels_last_ms": channels_last,
        "ratio_default": ms and default and default / ms,
        "ratio_channels_last": ms and channels_last and channels_last / ms,
        "variants": {name: spread._asdict() for name, spread in spreads.items()},
        "lacking": lacking,
    }


def fastest(spreads: dict[str, Spread], layout: str, precision: str = "tf32") -> float | None:
    """Return the ms of PyTorch's fastest variant with this layout and precision; None if none was measured."""
    times = [
        spread.median
        for name, spread in spreads.items()
        if name.startswith(f"torch {layout} ") and name.endswith(precision)
    ]
    return min(times, default=None)


def format_spreads(case: StepCase, spreads: dict[str, Spread], lacking: dict[str, str]) -> str:
    """Format one case's variants as a table, fastest first, followed by those not measured."""
    order = sorted(spreads.items(), key=lambda item: item[1].median)
    lines = [(str(case), "ms", "p10", "p90")]
    lines += [(name, *(f"{value:.3f}" for value in spread)) for name, spread in order]
    return "\n".join([text_table(lines, 1), *(f"{name}: not measured: {why}" for name, why in lacking.items())])
