"""Is a GPU kept busy with what is useful, as far as machine code can tell, and is that counted right?"""

from collections import Counter
from functools import cache, partial
from math import ceil

import pytest
import wheels
from conv_bench import distinct_convolutions
from gpu_model import (
    LAUNCH,
    STORING,
    Device,
    Estimate,
    LoopMismatch,
    Programs,
    check_body,
    main_loop,
    pixels_share,
    sizes_of,
    tile_of,
    traffic_of,
    usual_compiler,
    weigh,
)
from machine_code import Instruction, MachineLoop, Resources, compiler, disassemble, disassembler, find_loops

from minicnn.kernels.cuda.sources import OPTIONS
from minicnn.kernels.cuda.tiles import WARP, Loop, Tile

pytestmark = pytest.mark.slow

BATCH = 10
CONVOLUTIONS = distinct_convolutions()
CASES = [(convolution, direction) for convolution in CONVOLUTIONS for direction in convolution.directions]


def require() -> None:
    wheels.require(usual_compiler, disassembler)


# ---- budgets


@cache
def programs(architecture: int) -> Programs:
    return Programs((tile_of(*case, BATCH) for case in CASES), architecture)


def budget(convolution) -> float:
    """Least share of useful multiply-adds in the instructions of the main loop."""
    return 0.65 if convolution.kernel_size == 5 and 16 <= convolution.out_channels <= 32 else 0.50


@pytest.mark.parametrize("architecture", [80, 90])
def test_useful_multiply_adds(architecture):
    """Of all instructions issued, in lanes that compute a real filter of a real channel."""
    require()
    below = []
    for convolution, direction in CASES:
        estimate = programs(architecture).estimate(convolution, direction, BATCH)
        assert estimate.useful <= estimate.opcodes["FFMA"] / estimate.opcodes.total() * (1 + 1e-9)
        assert estimate.useful <= 1 and 0 < estimate.pixels <= 1
        if estimate.useful < budget(convolution):
            below.append(f"{estimate.useful:.3f} {convolution.layer} {direction}: {estimate.tile.expression}")
    assert not below, "\n".join(below)


# ---- trips of the loops, counted warp by warp


def average(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def trips(start: int, end: int, step: int) -> int:
    return len(range(start, end, step))


def warps_of(tile: Tile) -> list[range]:
    """The threads of each warp of a block."""
    return [range(first, first + WARP) for first in range(0, tile.block, WARP)]


def most(warp: range, of_thread) -> int:
    """A warp goes on until its last thread is done; a thread that takes no part has None."""
    return max((count for thread in warp if (count := of_thread(thread)) is not None), default=0)


def vectors(count: int) -> int:
    return ceil(count / 4) * 4


def correlation_loops(tile: Tile, channels: int, out_channels: int) -> Loop:
    """What conv.cu does, on average over warps and blocks."""
    k, ro, rp = sizes_of(tile)
    images, rows, segments, groups = tile.geometry
    places = images * (rows + k - 1) * vectors(segments * rp + k - 1)
    passes = trips(0, channels, 2 if k > 5 else 4)
    warps = warps_of(tile)
    real = [min(groups * ro, out_channels - first * groups * ro) for first in range(tile.grid[1])]

    def channels_of(thread: int) -> float | None:
        return channels / passes if thread < segments * rows * images * groups else None

    return Loop(
        passes,
        (
            Loop(average(most(warp, lambda thread: trips(thread, places, tile.block)) for warp in warps)),
            Loop(average(trips(number, count, len(warps)) for count in real for number in range(len(warps)))),
            Loop(average(most(warp, channels_of) for warp in warps), (Loop(k),) if rows_are_a_loop(tile) else ()),
        ),
    )


def rows_are_a_loop(tile: Tile) -> bool:
    """Whether conv.cu leaves the rows of a window a loop; `check_body` makes sure of it."""
    return bool(tile.loops.inner[2].inner)


def weight_gradient_loops(tile: Tile, channels: int, size: int) -> Loop:
    """What conv_weights.cu does, on average over warps and blocks."""
    k, _, rs = sizes_of(tile)
    chunk, parts, rows, columns, each = tile.geometry
    area, pixels = (rows + k - 1) * vectors(columns + k - 1), rows * columns
    tiles = BATCH * ceil(size / rows) * ceil(size / columns)
    assert tile.grid[0] == ceil(tiles / each)
    warps = warps_of(tile)
    real = [min(chunk, channels - first * chunk) for first in range(tile.grid[1])]

    def rows_of(channels: int, thread: int) -> int | None:
        channel, part = thread // k % chunk, thread // k // chunk
        return trips(part, rows, parts) if part < parts and channel < channels else None

    return Loop(
        tiles / tile.grid[0],
        (
            Loop(
                average(most(warp, lambda thread: trips(thread, area, tile.block)) for warp in warps),
                (Loop(average(trips(0, count, 4) for count in real)),),
            ),
            Loop(average(most(warp, lambda thread: trips(thread, pixels, tile.block)) for warp in warps)),
            Loop(
                average(most(warp, partial(rows_of, count)) for count in real for warp in warps),
                (Loop(trips(0, columns, rs)),),
            ),
        ),
    )


def flat(loop: Loop) -> list[float]:
    return [loop.trips, *(trips for inner in loop.inner for trips in flat(inner))]


@pytest.mark.parametrize("direction", ["forward", "input_gradient", "weight_gradient"])
def test_trips_are_those_of_warps(direction):
    """Never fewer; a little more where the last blocks have less to do than the others."""
    for convolution in CONVOLUTIONS:
        tile = tile_of(convolution, direction, BATCH)
        ends = convolution.channels, convolution.out_channels
        if direction == "weight_gradient":
            loops = weight_gradient_loops(tile, convolution.channels, convolution.size)
        else:
            loops = correlation_loops(tile, *(ends if direction == "forward" else ends[::-1]))
        given, least = flat(tile.loops), flat(loops)
        assert len(given) == len(least)
        for trips, fewest in zip(given, least, strict=True):
            assert fewest * (1 - 1e-9) <= trips <= 1.1 * fewest, f"{convolution.layer}, {tile}: not {least}"


# ---- loops in machine code

NEST = """
template <int N> __global__ void nest(float* x, int a, int b, int c) {
    __shared__ float shared[256];
    float sums[N] = {};
#pragma unroll 1
    for (int i = 0; i < a; i++) {
        shared[threadIdx.x] = x[i * 256 + threadIdx.x];
        __syncthreads();
        if (threadIdx.x < 77) {
#pragma unroll 1
            for (int j = 0; j < b; j++) {
#pragma unroll 1
                for (int k = 0; k < c; k++)
#pragma unroll
                    for (int n = 0; n < N; n++) sums[n] = fmaf(shared[j + k], shared[k + n], sums[n]);
            }
        }
#pragma unroll 1
        for (int j = 0; j < b; j++) sums[0] += shared[j];
        __syncthreads();
    }
#pragma unroll
    for (int n = 0; n < N; n++) x[n * 256 + threadIdx.x] = sums[n];
}
"""


@pytest.mark.parametrize("architecture", [75, 80, 90, 100, 120])
def test_a_known_nest_is_found(architecture):
    require()
    binary = compiler(usual_compiler()).compile(NEST, ["nest<6>"], architecture, OPTIONS)
    loop = main_loop(disassemble(binary.cubin)[binary.names["nest<6>"]])
    middle, last = loop.inner
    (body,) = middle.inner
    assert not body.inner and not last.inner
    assert body.opcodes["FFMA"] == loop.count("FFMA") == 6
    assert last.opcodes["FADD"] == loop.count("FADD") == 1
    assert loop.opcodes["BAR"] == 2 and loop.opcodes["STS"] == 1
    weighed = weigh(loop, Loop(10, (Loop(3, (Loop(7),)), Loop(3))))
    assert (weighed["FFMA"], weighed["FADD"], weighed["BAR"], weighed["STS"]) == (6 * 210, 30, 20, 10)
    assert weighed["BRA"] >= 210 + 30 + 10
    with pytest.raises(LoopMismatch, match="expected 1 loops inside one, found 2"):
        weigh(loop, Loop(10, (Loop(3, (Loop(7),)),)))
    with pytest.raises(LoopMismatch, match="expected 0 loops inside one, found 1"):
        weigh(loop, Loop(10, (Loop(3), Loop(3))))


def code(*lines: str) -> list[Instruction]:
    """Instructions from lines such as "@P0 BRA 3"."""
    found = []
    for line in lines:
        conditional = line.startswith("@")
        opcode, _, operands = line.removeprefix("@P0 ").partition(" ")
        last = operands.split(",")[-1]
        found.append(Instruction(opcode, conditional, operands, int(last) if last.isdigit() else None))
    return found


def nest(loops: tuple[MachineLoop, ...]):
    """Headers and what is inside."""
    return [(loop.header, nest(loop.inner)) for loop in loops]


def test_loops_with_several_ways_back_and_out():
    loops, rest = find_loops(
        code("MOV", "FFMA", "@P0 BRA 6", "FADD", "@P0 EXIT", "BRA 1", "LDS", "@P0 BRA 1", "@P0 BRA 6", "EXIT")
    )
    assert nest(loops) == [(1, [(6, [])])]
    assert loops[0].opcodes == Counter(FFMA=1, BRA=2, FADD=1, EXIT=1)
    assert loops[0].inner[0].opcodes == Counter(LDS=1, BRA=2)
    assert rest == Counter(MOV=1, EXIT=1)


def test_code_out_of_line_belongs_to_its_loop():
    """Threads meet again at the place that BSSY names, wherever BSYNC is."""
    loops, _ = find_loops(
        code("MOV", "BSSY B0,4", "@P0 BRA 7", "BSYNC B0", "IADD3", "@P0 BRA 1", "EXIT", "FFMA", "BSYNC B0", "BRA 9")
    )
    assert nest(loops) == [(1, [])]
    assert loops[0].opcodes == Counter(BSSY=1, BRA=2, BSYNC=2, IADD3=1, FFMA=1)  # the endless loop is not reached


def test_loops_that_do_nothing_are_not_weighed():
    loops, _ = find_loops(code("MOV", "IADD3", "IADD3", "@P0 BRA 2", "FFMA", "@P0 BRA 4", "@P0 BRA 1", "EXIT"))
    assert nest(loops) == [(1, [(2, []), (4, [])])]
    assert [loop.idle for loop in loops[0].inner] == [True, False]
    assert weigh(loops[0], Loop(2, (Loop(5),))) == Counter(IADD3=2, BRA=2 + 10, FFMA=10)


def test_a_call_may_be_a_jump():
    """Some compilers write the last jump of a loop so."""
    loops, _ = find_loops(code("MOV", "FFMA", "@P0 CALL.REL.NOINC 4", "BRA 1", "EXIT"))
    assert nest(loops) == [(1, [])]
    assert loops[0].opcodes == Counter(FFMA=1, CALL=1, BRA=1)


def test_jumps_to_registers_are_refused():
    with pytest.raises(RuntimeError, match="only the GPU knows: BRX R4"):
        find_loops(code("MOV", "BRX R4", "EXIT"))


def test_an_unrolled_body_is_refused():
    tile = tile_of(CONVOLUTIONS[0], "weight_gradient", BATCH)
    count = sizes_of(tile).kernel_size * sizes_of(tile).out_channels * sizes_of(tile).pixels

    def machine(*bodies: int) -> MachineLoop:
        return MachineLoop(0, Counter(BAR=2), tuple(MachineLoop(1, Counter(FFMA=body), ()) for body in bodies))

    check_body(machine(0, count), tile)
    for wrong in ((2 * count,), (count, 1), (count, count), (count // 2, count // 2)):
        with pytest.raises(LoopMismatch, match=f"expected {count} FFMA in one loop"):
            check_body(machine(*wrong), tile)


# ---- the model


def test_seconds():
    """By hand: 9 blocks of 2 warps on 4 multiprocessors are 3 on one, 6 warps, 2 on one of its schedulers."""
    tile = tile_of(CONVOLUTIONS[0], "forward", BATCH)
    tile = tile._replace(expression="correlate<float, 5, 4, 8, false>", grid=(3, 3, 1), block=64)
    opcodes = Counter(FFMA=500, LDS=400)
    estimate = Estimate(tile, Resources(32, 0, 0, 0), opcodes, 4, 9 * 2 * WARP * 450.0, 0.9, 1e6, 1)
    assert estimate.issued == 900 * 18
    assert (estimate.net, estimate.useful) == pytest.approx((0.5, 0.5 / 0.9))
    device = Device(80, 4, 1e9, 128, 1e12)
    assert device.peak == pytest.approx(1024)
    issue = (900 + 4 + STORING * 4 * 8) * 2 * 1e-9
    assert estimate.seconds(device) == (pytest.approx(issue + LAUNCH), "issue")
    assert estimate.seconds(device._replace(lanes=32)) == (pytest.approx(500 * 4 * 2e-9 + LAUNCH), "multiply-adds")
    assert estimate.seconds(device._replace(bandwidth=1e9)) == (pytest.approx(1e-3 + LAUNCH), "memory")


def test_pixels_and_traffic():
    first = next(c for c in CONVOLUTIONS if c.channels == 3 and c.size == 10)
    tile = tile_of(first, "forward", BATCH)
    tile = tile._replace(grid=(4, 1, 1), geometry=(3, 12, 4, 1), expression="correlate<float, 5, 8, 4, false>")
    assert pixels_share(tile, BATCH, 10) == pytest.approx(10 * 100 / (4 * 3 * 12 * 16))
    assert traffic_of(first, "forward", tile, BATCH) == 4 * (10 * (3 + 32) * 100 + 32 * 75 + 32)
    assert traffic_of(first, "input_gradient", tile, BATCH) == 4 * (10 * (3 + 32) * 100 + 32 * 75)
    tile = tile_of(first, "weight_gradient", BATCH)
    tile = tile._replace(grid=(6, 1, 1), geometry=(3, 2, 4, 8, 9), expression="weight_gradient<float, 5, 8, 4>")
    assert pixels_share(tile, BATCH, 10) == pytest.approx(100 / (12 * 16))
    parts = 6 * (2 * 32 * 75 + 32)
    assert traffic_of(first, "weight_gradient", tile, BATCH) == 4 * (10 * 35 * 100 + 32 * 75 + 32 + 2 * parts)
