"""Do the kernels of docs/kernels compute what the reference does, and read as often as their README says?"""

import re
import shutil
from functools import cache
from math import prod
from pathlib import Path

import numpy as np
import pytest
import wheels
from hostcompile import KernelFault, Module
from machine_code import compiler

from minicnn.kernels import get_backend
from minicnn.kernels.cuda.sources import source
from minicnn.kernels.cuda.tiles import correlation_tile

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is needed to run CUDA kernels on the CPU")

FOLDER = Path(__file__).parents[2] / "docs" / "kernels"
STEPS = sorted(path.name for path in FOLDER.glob("*.cu"))
K = 5


def ceil(a, b):
    return -(-a // b)


#: From images, filters, height and width: grid, block and floats of shared memory, as the head of each file has them.
LAUNCHES = {
    "1_thread_a_pixel.cu": lambda n, o, h, w: ((ceil(w, 16), ceil(h, 16), n * o), (16, 16), 0),
    "2_shared_tile.cu": lambda n, o, h, w: ((ceil(w, 16), ceil(h, 16), n * o), (16, 16), 20 * 20 + K * K),
    "3_filters_in_registers.cu": lambda n, o, h, w: (
        (ceil(w, 16), ceil(h, 16), n * ceil(o, 8)), (16, 16), 20 * 20 + 8 * K * K,
    ),
    "4_implicit_gemm.cu": lambda n, o, h, w: ((ceil(h * w, 64), ceil(o, 16), n), (64,), 16 * (16 + 64)),
    "5_register_tile.cu": lambda n, o, h, w: (
        (ceil(w, 32), ceil(h, 8), n * ceil(o, 16)), (256,), 12 * 36 + 16 * K * K,
    ),
}  # fmt: skip


def read(name):
    return (FOLDER / name).read_text(encoding="utf-8")


@cache
def module(step):
    return Module(read(step), ["convolve"])


def aligned(shape):
    """NaN, at an address that is a multiple of 64, as CuPy's arrays are."""
    raw = np.zeros(4 * prod(shape) + 64, np.uint8)
    start = -raw.ctypes.data % 64
    array = raw[start : start + 4 * prod(shape)].view(np.float32).reshape(shape)
    array[...] = np.nan
    return array


def drawn(rng, n, o, c, h, w):
    """y, x, weights and bias of a convolution."""
    arrays = [aligned(shape) for shape in ((n, o, h, w), (n, c, h, w), (o, c, K, K), (o,))]
    for array in arrays[1:]:
        array[...] = rng.standard_normal(array.shape)
    return arrays


def run(step, y, x, w, b, order=0, compiled=None):
    """Launch a step; the bytes that it reads from global and from shared memory."""
    compiled = compiled or module(step)
    (n, o, height, width), c = y.shape, x.shape[1]
    grid, block, floats = LAUNCHES[step](n, o, height, width)
    sizes = (np.int32(size) for size in (o, c, height, width))
    compiled.launch("convolve", grid, block, (y, x, w, b, *sizes), shared=4 * floats, order=order)
    return compiled.bytes_read()


def run_ours(y, x, w, b):
    """The same for `minicnn/kernels/cuda/conv.cu`."""
    (n, o, height, width), c = y.shape, x.shape[1]
    tile = correlation_tile(n, c, o, height, width, K, "float32")
    none, steps = y[:, :0], (np.int64(y[0].size), np.int64(0), np.int64(0), np.int64(x[0].size))
    numbers = (np.int32(number) for number in (n, o, c, height, width, *tile.geometry, 0))
    ours = Module(source("conv.cu"), [tile.expression])
    ours.launch(tile.expression, tile.grid, (tile.block,), (y, none, none, x, w, b, *steps, *numbers), tile.shared)
    return ours.bytes_read()


def check(y, x, w, b):
    expected = np.empty_like(y)
    backend = get_backend("numpy")
    workspace = np.empty(x.size * 2 * K * K + w.size, np.float32)
    backend.bind("conv2d_forward", expected, x, w, b, workspace)()
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6 * np.abs(w).max() * x.shape[1] * K * K)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("sizes", [(2, 3, 2, 7, 19), (1, 17, 1, 9, 33), (1, 1, 3, 2, 3)], ids=str)
@pytest.mark.parametrize("step", STEPS)
def test_a_step_computes_what_the_reference_does(step, sizes, order, rng):
    arrays = drawn(rng, *sizes)
    run(step, *arrays, order=order)
    check(*arrays)


@pytest.mark.parametrize("number", [1, 2])
def test_without_either_barrier_the_second_step_has_a_race(number, rng):
    step = "2_shared_tile.cu"
    parts = read(step).split("__syncthreads();")
    assert len(parts) == 3
    broken = "__syncthreads();".join([*parts[: number - 1], parts[number - 1] + parts[number], *parts[number + 1 :]])
    with pytest.raises(KernelFault, match=r"RACE|UNINITIALISED"):
        run(step, *drawn(rng, 1, 1, 2, 16, 16), compiled=Module(broken, ["convolve"]))


def test_reads_per_multiply_add_are_those_of_the_readme(rng):
    """Row 2 of the network, with half of its channels."""
    sizes = n, o, c, h, w = 1, 16, 24, 32, 32
    multiply_adds = n * o * c * h * w * K * K
    printed = dict(re.findall(r"^\| \[([\w.]+)\].*?\| ([\d.]+ \| [\d.]+) \|", read("README.md"), re.MULTILINE))
    counted = {}
    for step in (*STEPS, "conv.cu"):
        arrays = drawn(rng, *sizes)
        reads = run_ours(*arrays) if step == "conv.cu" else run(step, *arrays)
        check(*arrays)
        counted[step] = " | ".join(f"{count / 4 / multiply_adds:.3f}" for count in reads)
    assert printed == counted


@pytest.mark.parametrize("step", STEPS)
def test_cudas_compiler_takes_a_step_and_keeps_its_sums_in_registers(step):
    wheels.require(lambda: compiler(12))
    (taken,) = compiler(12).compile(read(step), ["convolve"], 90, ("--std=c++17",)).resources.values()
    assert taken.stack == taken.spilled == 0


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_short_and_the_readme_walks_through_it(step):
    text = read(step)
    assert text.count("\n") <= 80 and max(map(len, text.splitlines())) <= 120
    assert f"({step})" in read("README.md")
