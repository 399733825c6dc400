"""A model of the GPU's convolutions for where there is no GPU: what their machine code must issue, and in what time.

Instructions are those of the instance that `minicnn.kernels.cuda.tiles` chooses, as the compiler wrote them, times how
often each loop of the source runs. What may hide behind other warps is free in this model: latencies, and the bandwidth
of shared memory and of the caches. So its times are bounds, not predictions; nothing here has been compared with a GPU.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple, Protocol

from machine_code import Binary, Instruction, MachineLoop, Resources, ToolMissing, compiler, disassemble, find_loops
from measure import convolution_flops

from minicnn.graph import Graph
from minicnn.kernels.cuda.tiles import OPTIONS, WARP, Loop, Tile, correlation_tile, source, weight_gradient_tile
from minicnn.layers import Conv2D
from minicnn.memory import needs_gradient
from minicnn.schedule import Schedule

SCHEDULERS = 4  # of a multiprocessor; each issues one instruction a cycle, to all lanes of a warp
LAUNCH = 3e-6  # s from one launch to the next in a stream, assumed
STORING = 3  # instructions for each sum of a thread after the main loop, assumed


class Device(NamedTuple):
    """A graphics card: whose machine code, multiprocessors, boost clock in Hz, float32 lanes of each, bytes/s."""

    architecture: int
    multiprocessors: int
    clock: float
    lanes: int
    bandwidth: float

    @property
    def peak(self) -> float:
        """GFLOP/s of multiply-adds."""
        return 2e-9 * self.multiprocessors * self.lanes * self.clock


DEVICES = {
    "h100": Device(90, 132, 1.98e9, 128, 3.35e12),  # NVIDIA H100 data sheet, SXM5 80 GB: 67 TFLOP/s, 3.35 TB/s
    "a100": Device(80, 108, 1.41e9, 64, 2.039e12),  # NVIDIA A100 data sheet, SXM4 80 GB: 19.5 TFLOP/s, 2,039 GB/s
    "rtx4090": Device(89, 128, 2.52e9, 128, 1.008e12),  # NVIDIA Ada architecture white paper: 82.6 TFLOP/s
    "t4": Device(75, 40, 1.59e9, 64, 0.32e12),  # NVIDIA Turing architecture white paper: 8.1 TFLOP/s, 320 GB/s
    # NVIDIA V100 data sheet, SXM2: 15.7 TFLOP/s, 900 GB/s. nvdisasm 13 reads nothing older than sm_75.
    "v100": Device(75, 80, 1.53e9, 64, 0.9e12),
}


class Geometry(Protocol):
    """A convolution of C channels, O filters, windows of K x K and planes of S x S; see `contenders.Convolution`."""

    @property
    def layer(self) -> str: ...
    @property
    def channels(self) -> int: ...
    @property
    def filters(self) -> int: ...
    @property
    def window(self) -> int: ...
    @property
    def size(self) -> int: ...


class LoopMismatch(RuntimeError):
    """The machine code's loops are not those that the tile says its source has."""


def tile_of(convolution: Geometry, direction: str, batch: int, dtype: str = "float32", pooled: bool = False) -> Tile:
    """The launch of one direction of a convolution."""
    c, o, k, s = convolution.channels, convolution.filters, convolution.window, convolution.size
    if direction == "weight_gradient":
        return weight_gradient_tile(batch, c, o, s, s, k, dtype)
    return correlation_tile(batch, c, o, s, s, k, dtype, direction == "input_gradient", pooled)


def step_tiles(graph: Graph, batch: int, dtype: str = "float32") -> Iterator[Tile]:
    """The launches of all convolutions of a training step."""
    needed = needs_gradient(graph)
    for unit in Schedule(graph, needed).units:
        layer = unit.node.layer
        if not isinstance(layer, Conv2D):
            continue
        channels, height, width = graph.input_shapes(unit.node)[0]
        sizes = batch, channels, layer.filters, height, width, layer.window, dtype
        yield correlation_tile(*sizes, pooled=unit.pooled is not None)
        yield weight_gradient_tile(*sizes)
        if unit.node.inputs[0] in needed:
            yield correlation_tile(*sizes, backward=True)


# ---- counting


class Sizes(NamedTuple):
    """The numbers in an instance's name: the window, filters and pixels of a thread."""

    window: int
    filters: int
    pixels: int


def sizes_of(tile: Tile) -> Sizes:
    """What ``correlate<float, K, RO, RP, ...>`` or ``weight_gradient<float, K, RO, RS>`` says."""
    return Sizes(*map(int, re.findall(r"\b\d+\b", tile.expression)[:3]))


def main_loop(code: Sequence[Instruction]) -> MachineLoop:
    """The outermost loop with the most multiply-adds."""
    loops, _ = find_loops(code)
    return max(loops, key=lambda loop: loop.count("FFMA"))


def weigh(machine: MachineLoop, given: Loop, entries: float = 1.0) -> Counter[str]:
    """How often a warp issues each opcode in a loop that it enters so many times.

    Raises
    ------
    LoopMismatch
        Unless both are nested alike.
    """
    loops = [loop for loop in machine.inner if not loop.idle]
    if len(loops) != len(given.inner):
        shown = "\n".join(machine.format())
        raise LoopMismatch(f"expected {len(given.inner)} loops inside one, found {len(loops)}:\n{shown}")
    runs = entries * given.trips
    total: Counter[str] = Counter()
    for kind, count in machine.opcodes.items():
        total[kind] = count * runs  # pyright: ignore[reportArgumentType]: an average, not a whole number
    for inner, trips in zip(loops, given.inner, strict=True):
        total.update(weigh(inner, trips, runs))
    return total


def check_body(machine: MachineLoop, tile: Tile) -> None:
    """Make sure that the source's inner loop is one in the machine code too: neither unrolled nor divided.

    Raises
    ------
    LoopMismatch
    """
    body = max(_all_loops(machine), key=lambda loop: loop.opcodes["FFMA"])
    expected, found = math.prod(sizes_of(tile)), body.opcodes["FFMA"]
    rows_are_a_loop = any(inner.inner for inner in tile.loops.inner)
    if not rows_are_a_loop:  # the source unrolls the rows of the window
        expected *= sizes_of(tile).window
    if found != expected or machine.count("FFMA") != found:
        shown = "\n".join(machine.format())
        raise LoopMismatch(f"{tile.expression}: expected {expected} FFMA in one loop, found {found}:\n{shown}")


def _all_loops(loop: MachineLoop) -> Iterator[MachineLoop]:
    yield loop
    for inner in loop.inner:
        yield from _all_loops(inner)


class Estimate(NamedTuple):
    """One launch of a convolution.

    Attributes
    ----------
    tile, resources
    opcodes : what a warp issues in its main loop, on average
    before : instructions in front of the main loop
    multiply_adds : what the convolution needs
    pixels : share of the computed pixels that lie in their plane
    traffic : bytes that must come and go, at the least
    launches : its own, and that of the sum of its parts
    """

    tile: Tile
    resources: Resources
    opcodes: Counter[str]
    before: int
    multiply_adds: float
    pixels: float
    traffic: float
    launches: int

    @property
    def warps(self) -> int:
        """Of a block."""
        return self.tile.block // WARP

    @property
    def blocks(self) -> int:
        return math.prod(self.tile.grid)

    @property
    def issued(self) -> float:
        """Instructions of all warps' main loops; those that a predicate switches off are issued as well."""
        return self.opcodes.total() * self.warps * self.blocks

    @property
    def net(self) -> float:
        """Needed multiply-adds in all lanes that an instruction was issued to."""
        return self.multiply_adds / (WARP * self.issued)

    @property
    def useful(self) -> float:
        """The same with pixels outside of the plane counted as needed, channels and filters that do not exist not."""
        return self.net / self.pixels

    def seconds(self, device: Device) -> tuple[float, str]:
        """The model's time, and what it is bound by: "issue", "multiply-adds" or "memory"."""
        sums = self.opcodes["FFMA"] + self.opcodes["FADD"] + self.opcodes["FMUL"]
        sizes = sizes_of(self.tile)
        results = sizes.filters * (sizes.window if self.tile.file.startswith("weight") else sizes.pixels)
        a_warp = {
            "issue": self.opcodes.total() + self.before + STORING * results,
            "multiply-adds": sums * WARP * SCHEDULERS / device.lanes,
        }
        at_busiest = math.ceil(self.blocks / device.multiprocessors)
        warps = math.ceil(at_busiest * self.warps / SCHEDULERS)
        times = {name: cycles * warps / device.clock for name, cycles in a_warp.items()}
        times["memory"] = self.traffic / device.bandwidth
        bound = max(times, key=lambda name: times[name])
        return times[bound] + self.launches * LAUNCH, bound


def pixels_share(tile: Tile, batch: int, size: int) -> float:
    """Pixels of all planes over those that all tiles cover."""
    sizes = sizes_of(tile)
    if tile.file == "conv_weights.cu":
        _, _, rows, columns, _ = tile.geometry
        covered = math.ceil(size / rows) * rows * math.ceil(size / columns) * columns * batch
    else:
        images, rows, segments, _ = tile.geometry
        covered = tile.grid[0] * images * rows * segments * sizes.pixels
    return batch * size**2 / covered


def traffic_of(convolution: Geometry, direction: str, tile: Tile, batch: int) -> float:
    """Bytes of float32 that are read or written once: x, y or their gradients, w and b; parts of sums twice."""
    c, o, k, s = convolution.channels, convolution.filters, convolution.window, convolution.size
    weights = o * c * k**2 + (o if direction != "input_gradient" else 0)
    parts = 0
    if direction == "weight_gradient":
        parts = 2 * tile.grid[0] * (tile.geometry[1] * o * c * k**2 + o)
    return 4.0 * (batch * (c + o) * s**2 + weights + parts)


# ---- machine code of many instances


def compile_all(tiles: Iterable[Tile], architecture: int, major: int) -> dict[str, Binary]:
    """The tiles' instances, compiled in one program for each file; by file."""
    expressions: dict[str, list[str]] = {}
    for file, expression in sorted({(tile.file, tile.expression) for tile in tiles}):
        expressions.setdefault(file, []).append(expression)
    nvrtc = compiler(major)
    with ThreadPoolExecutor() as pool:
        binaries = pool.map(
            lambda file: nvrtc.compile(source(file), expressions[file], architecture, OPTIONS), expressions
        )
        return dict(zip(expressions, binaries, strict=True))


def usual_compiler() -> int:
    """The installed compiler's major version: 12, else 13.

    Raises
    ------
    ToolMissing
        If there is neither.
    """
    try:
        compiler(12)
    except ToolMissing:
        compiler(13)
        return 13
    return 12


class Programs:
    """The machine code of tiles for one architecture."""

    def __init__(self, tiles: Iterable[Tile], architecture: int, major: int | None = None) -> None:
        self._binaries = compile_all(tiles, architecture, major or usual_compiler())

    @cached_property
    def _code(self) -> dict[str, dict[str, list[Instruction]]]:
        with ThreadPoolExecutor() as pool:
            codes = pool.map(lambda binary: disassemble(binary.cubin), self._binaries.values())
            return dict(zip(self._binaries, codes, strict=True))

    def code(self, tile: Tile) -> list[Instruction]:
        return self._code[tile.file][self._binaries[tile.file].names[tile.expression]]

    def estimate(self, convolution: Geometry, direction: str, batch: int) -> Estimate:
        """Count one launch.

        Raises
        ------
        LoopMismatch
            If the instructions cannot be weighed.
        """
        tile = tile_of(convolution, direction, batch)
        machine = main_loop(self.code(tile))
        check_body(machine, tile)
        c, o, k, s = convolution.channels, convolution.filters, convolution.window, convolution.size
        return Estimate(
            tile=tile,
            resources=self._binaries[tile.file].resources[tile.expression],
            opcodes=weigh(machine, tile.loops),
            before=machine.header,
            multiply_adds=convolution_flops(batch, c, o, k, s) / 2,
            pixels=pixels_share(tile, batch, s),
            traffic=traffic_of(convolution, direction, tile, batch),
            launches=2 if direction == "weight_gradient" else 1,
        )
