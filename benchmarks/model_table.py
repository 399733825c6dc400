"""Table of the GPU performance model, and the number of kernel launches per training step."""

import math
from collections.abc import Iterable, Sequence

from gpu_model import DEVICES, Geometry, Programs, tile_of

from icnn.cli import text_table
from icnn.model.network import icnn_graph
from icnn.stages import NETWORKS
from minicnn.layers import Conv2D
from minicnn.plan import Plan
from minicnn.planner import needs_gradient

NOTE = "model, unverified on hardware"


def model_rows(cases: Sequence[tuple[Geometry, str]], name: str, batch: int) -> list[dict]:
    """Return the model's rows for a device of `gpu_model.DEVICES`.

    Parameters
    ----------
    cases : sequence of (Geometry, str)
        Convolutions and directions.
    name : str
    batch : int
    """
    device = DEVICES[name]
    programs = Programs((tile_of(*case, batch) for case in cases), device.architecture)
    rows = []
    for convolution, direction in cases:
        estimate = programs.estimate(convolution, direction, batch)
        seconds, bound = estimate.seconds(device)
        gflops = 2e-9 * estimate.multiply_adds / seconds
        rows.append(
            {
                "layer": convolution.layer,
                "direction": direction,
                "backend": "cupy",
                "threads": None,
                "ms": 1e3 * seconds,
                "gflops": gflops,
                "share_of_peak": gflops / device.peak,
                "torch_default_ms": None,
                "torch_channels_last_ms": None,
                "model": f"{name}: {NOTE}",
                "kernel": estimate.tile.expression,
                "grid": list(estimate.tile.grid),
                "block": estimate.tile.block,
                "registers": estimate.resources.registers,
                "shared": estimate.tile.shared + estimate.resources.shared,
                "useful": estimate.useful,
                "pixels": estimate.pixels,
                "issued": estimate.issued,
                "bytes": estimate.traffic,
                "flop": 2 * estimate.multiply_adds,
                "launches": estimate.launches,
                "bound": bound,
            }
        )
    return rows


def format_model(rows: Iterable[dict]) -> str:
    """Format the model's rows as a table."""
    launch = "layer", "direction", "kernel", "blocks", "threads", "registers", "shared"
    figures = "useful", "pixels", "MFLOP", "MB", "launches", "ms", "GFLOP/s", "of peak", "bound by"
    lines: list[tuple[str, ...]] = [(*launch, *figures)]
    for row in rows:
        sizes = math.prod(row["grid"]), row["block"], row["registers"], row["shared"]
        shares = f"{row['useful']:.0%}", f"{row['pixels']:.0%}"
        work = f"{row['flop'] / 1e6:.0f}", f"{row['bytes'] / 1e6:.2f}", str(row["launches"])
        speed = f"{row['ms']:.4f}", f"{row['gflops']:.0f}", f"{row['share_of_peak']:.0%}", row["bound"]
        lines.append((row["layer"], row["direction"], row["kernel"], *map(str, sizes), *shares, *work, *speed))
    return text_table(lines, 3)


def step_launches(labels: int, size: int) -> int:
    """Return the kernel launches of an uncaptured training step: the plan's calls, the loss and the update.

    `labels` is the number of classes. A weight gradient takes two launches, and so does the loss.
    """
    graph = icnn_graph(labels, size)
    passes = Plan(graph, batch=1, backend="numpy")._calls(1)
    calls = sum(len(unit.calls) for unit in (*passes.forward, *passes.backward))
    second = sum(isinstance(node.layer, Conv2D) for node in graph.nodes.values())
    loss, loss_gradient, update = 2, 1, 1
    return calls + second + loss + loss_gradient + update


def step_ms(rows: Iterable[dict], labels: int, size: int) -> float | None:
    """Return the ms of all convolutions of a training step, or None if the rows lack one."""
    times = {(row["layer"].partition(" ")[2], row["direction"]): row["ms"] for row in rows}
    graph, total = icnn_graph(labels, size), 0.0
    needed = needs_gradient(graph)
    for node in graph.nodes.values():
        if isinstance(node.layer, Conv2D):
            channels, side, _ = graph.input_shapes(node)[0]
            k = node.layer.kernel_size
            geometry = f"{channels}->{node.layer.out_channels} {k}x{k} at {side}x{side}"
            for direction in ("forward", "input_gradient", "weight_gradient"):
                if direction == "input_gradient" and node.inputs[0] not in needed:
                    continue
                if (geometry, direction) not in times:
                    return None
                total += times[geometry, direction]
    return total


def format_steps(rows: Sequence[dict]) -> str:
    """Format, per network, the launches of a step and, if the rows are complete, the convolutions' time."""
    launches = [f"{name} {step_launches(network.labels, network.size)}" for name, network in NETWORKS.items()]
    lines = [f"launches of a step: {', '.join(launches)}; of a step that is captured: 1"]
    times = {name: step_ms(rows, network.labels, network.size) for name, network in NETWORKS.items()}
    known = [f"{name} {ms:.2f}" for name, ms in times.items() if ms is not None]
    if len(known) == len(times):
        lines.append(f"ms of a step's convolutions: {', '.join(known)}")
    return "\n".join(lines)
