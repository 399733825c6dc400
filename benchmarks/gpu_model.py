"""Performance model of the GPU convolutions, usable without a GPU: issued instructions and a lower bound of the time.

Instructions are counted in the compiled machine code of the instance chosen by `minicnn.kernels.cuda.tiles` and
multiplied by the trip counts of the source's loops. Costs that other warps may hide are ignored: latencies, and the
bandwidth of shared memory and caches. The times are therefore lower bounds, not predictions, and they have not been
compared with measurements on a GPU.
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
from minicnn.kernels.cuda.sources import OPTIONS, source
from minicnn.kernels.cuda.tiles import WARP, Loop, Tile, correlation_tile, weight_gradient_tile
from minicnn.layers import Conv2D
from minicnn.planner import Schedule, needs_gradient

SCHEDULERS = 4  # per multiprocessor; each issues one instruction per cycle to all lanes of a warp
LAUNCH = 3e-6  # s between consecutive launches in a stream, assumed
STORING = 3  # instructions per accumulator of a thread after the main loop, assumed


class Device(NamedTuple):
    """A GPU.

    Attributes
    ----------
    architecture : int
        90 is sm_90.
    multiprocessors : int
    clock : float
        Boost clock, Hz.
    lanes : int
        float32 lanes per multiprocessor.
    bandwidth : float
        Memory bandwidth, bytes/s.
    """

    architecture: int
    multiprocessors: int
    clock: float
    lanes: int
    bandwidth: float

    @property
    def peak(self) -> float:
        """Theoretical float32 peak with multiply-adds, GFLOP/s."""
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
    """A convolution: C input and O output channels, kernel K x K, feature maps S x S; see `contenders.Convolution`."""

    @property
    def layer(self) -> str: ...
    @property
    def channels(self) -> int: ...
    @property
    def out_channels(self) -> int: ...
    @property
    def kernel_size(self) -> int: ...
    @property
    def size(self) -> int: ...


class LoopMismatch(RuntimeError):
    """The loops of the machine code differ from those that the tile declares for its source."""


def tile_of(convolution: Geometry, direction: str, batch: int, dtype: str = "float32", pooled: bool = False) -> Tile:
    """Return the kernel launch of one pass (`direction`) of a convolution."""
    c, o, k, s = convolution.channels, convolution.out_channels, convolution.kernel_size, convolution.size
    if direction == "weight_gradient":
        return weight_gradient_tile(batch, c, o, s, s, k, dtype)
    return correlation_tile(batch, c, o, s, s, k, dtype, direction == "input_gradient", pooled)


def step_tiles(graph: Graph, batch: int, dtype: str = "float32") -> Iterator[Tile]:
    """Yield the kernel launches of all convolutions in a training step."""
    needed = needs_gradient(graph)
    for unit in Schedule(graph, needed).units:
        layer = unit.node.layer
        if not isinstance(layer, Conv2D):
            continue
        channels, height, width = graph.input_shapes(unit.node)[0]
        sizes = batch, channels, layer.out_channels, height, width, layer.kernel_size, dtype
        yield correlation_tile(*sizes, pooled=unit.pooled is not None)
        yield weight_gradient_tile(*sizes)
        if unit.node.inputs[0] in needed:
            yield correlation_tile(*sizes, backward=True)


# ---- counting


class Sizes(NamedTuple):
    """Template arguments of a kernel instance: kernel size, and output channels and pixels per thread."""

    kernel_size: int
    out_channels: int
    pixels: int


def sizes_of(tile: Tile) -> Sizes:
    """Parse ``correlate<float, K, RO, RP, ...>`` or ``weight_gradient<float, K, RO, RS>``."""
    return Sizes(*map(int, re.findall(r"\b\d+\b", tile.expression)[:3]))


def main_loop(code: Sequence[Instruction]) -> MachineLoop:
    """Return the outermost loop with the most multiply-adds."""
    loops, _ = find_loops(code)
    return max(loops, key=lambda loop: loop.count("FFMA"))


def weigh(machine: MachineLoop, given: Loop, entries: float = 1.0) -> Counter[str]:
    """Count how often a warp issues each opcode in a loop that it enters `entries` times.

    Parameters
    ----------
    machine : MachineLoop
    given : Loop
        The same loop nest in the source, with trip counts.
    entries : float

    Raises
    ------
    LoopMismatch
        If the two loops are not nested alike.
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
    """Check that the compiler kept the source's inner loop as one loop, neither unrolled nor split.

    Raises
    ------
    LoopMismatch
    """
    body = max(_all_loops(machine), key=lambda loop: loop.opcodes["FFMA"])
    expected, found = math.prod(sizes_of(tile)), body.opcodes["FFMA"]
    rows_are_a_loop = any(inner.inner for inner in tile.loops.inner)
    if not rows_are_a_loop:  # the source unrolls the rows of the convolution kernel
        expected *= sizes_of(tile).kernel_size
    if found != expected or machine.count("FFMA") != found:
        shown = "\n".join(machine.format())
        raise LoopMismatch(f"{tile.expression}: expected {expected} FFMA in one loop, found {found}:\n{shown}")


def _all_loops(loop: MachineLoop) -> Iterator[MachineLoop]:
    yield loop
    for inner in loop.inner:
        yield from _all_loops(inner)


class Estimate(NamedTuple):
    """Counts and bounds of one launch of a convolution.

    Attributes
    ----------
    tile, resources
    opcodes : average number of each instruction that a warp issues in its main loop
    before : instructions before the main loop
    multiply_adds : multiply-adds that the convolution needs
    pixels : share of the computed pixels that lie inside the feature map
    traffic : minimum number of bytes read and written
    launches : its own launch, plus one if partial sums are added
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
        """Warps per block."""
        return self.tile.block // WARP

    @property
    def blocks(self) -> int:
        return math.prod(self.tile.grid)

    @property
    def issued(self) -> float:
        """Instructions issued in the main loops of all warps, including those that a predicate disables."""
        return self.opcodes.total() * self.warps * self.blocks

    @property
    def net(self) -> float:
        """Needed multiply-adds divided by the issued instructions times lanes."""
        return self.multiply_adds / (WARP * self.issued)

    @property
    def useful(self) -> float:
        """Like `net`, but pixels outside the feature map count as needed; channels beyond C and O still do not."""
        return self.net / self.pixels

    def seconds(self, device: Device) -> tuple[float, str]:
        """Return the modelled time in seconds and its bottleneck: "issue", "multiply-adds" or "memory"."""
        sums = self.opcodes["FFMA"] + self.opcodes["FADD"] + self.opcodes["FMUL"]
        sizes = sizes_of(self.tile)
        results = sizes.out_channels * (sizes.kernel_size if self.tile.file.startswith("weight") else sizes.pixels)
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
    """Return the number of pixels of all feature maps divided by the pixels that all tiles cover."""
    sizes = sizes_of(tile)
    if tile.file == "conv_weights.cu":
        _, _, rows, columns, _ = tile.geometry
        covered = math.ceil(size / rows) * rows * math.ceil(size / columns) * columns * batch
    else:
        images, rows, segments, _ = tile.geometry
        covered = tile.grid[0] * images * rows * segments * sizes.pixels
    return batch * size**2 / covered


def traffic_of(convolution: Geometry, direction: str, tile: Tile, batch: int) -> float:
    """Return the minimum traffic in bytes, float32: x, y (or gradients), w and b once, partial sums twice."""
    c, o, k, s = convolution.channels, convolution.out_channels, convolution.kernel_size, convolution.size
    weights = o * c * k**2 + (o if direction != "input_gradient" else 0)
    parts = 0
    if direction == "weight_gradient":
        parts = 2 * tile.grid[0] * (tile.geometry[1] * o * c * k**2 + o)
    return 4.0 * (batch * (c + o) * s**2 + weights + parts)


# ---- machine code of many instances


def compile_all(tiles: Iterable[Tile], architecture: int, major: int) -> dict[str, Binary]:
    """Compile the tiles' kernel instances, one program per source file; return the binaries by file."""
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
    """Return the major version of the installed compiler: 12 if present, else 13.

    Raises
    ------
    ToolMissing
        If neither is installed.
    """
    try:
        compiler(12)
    except ToolMissing:
        compiler(13)
        return 13
    return 12


class Programs:
    """Machine code of tiles for one architecture."""

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
        """Estimate one launch of a convolution.

        Raises
        ------
        LoopMismatch
            If the loops of the machine code differ from the declared ones.
        """
        tile = tile_of(convolution, direction, batch)
        machine = main_loop(self.code(tile))
        check_body(machine, tile)
        c, o, k, s = convolution.channels, convolution.out_channels, convolution.kernel_size, convolution.size
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
