"""Does the checker report each kind of mistake in a kernel or a launch, and nothing where there is none?"""

import re
import shutil
from functools import cache
from pathlib import Path

import hostcompile
import numpy as np
import pytest
from hostcompile import CompileError, KernelFault, LaunchError, Module

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is needed to run CUDA kernels on the CPU")

CODE = Path(__file__).with_name("faulty.cu").read_text(encoding="utf-8")
NAMES = [*re.findall(r"^__global__ void ([a-z]\w*)", CODE, re.MULTILINE), "bounded<float, 32>", "bounded<double, 256>"]
THREADS = 64


@cache
def module(checked: bool = True) -> Module:
    return Module(CODE, NAMES, checked)


def allocation(count: int, dtype=np.float32) -> np.ndarray:
    """Numbers at an address that is a multiple of 64."""
    raw = np.zeros(count * np.dtype(dtype).itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + count * np.dtype(dtype).itemsize].view(dtype)


def launch(name, n, x=None, y=None, grid=1, block=THREADS, shared=4 * THREADS, **options):
    x = allocation(THREADS) if x is None else x
    y = allocation(THREADS) if y is None else y
    module().launch(name, (grid,), (block,), [x, y, np.int32(n)], shared=shared, **options)


#: What goes wrong, the kernel, the number that makes it go wrong and one that does not, and how it is launched.
MISTAKES = [
    ("OUT-OF-BOUNDS-READ", "read_beyond", 1, 0, {}),
    ("OUT-OF-BOUNDS-READ", "read_beyond", -1, 0, {}),
    ("OUT-OF-BOUNDS-WRITE", "write_beyond", 1, 0, {}),
    ("MISALIGNED", "copy_vectors", 1, 4, {"block": 1}),
    ("RACE", "reverse", 0, 1, {}),
    ("OUT-OF-BOUNDS in shared", "shared_beyond", 1, 0, {}),
    ("UNINITIALISED-SHARED-READ", "shared_before_written", 1, 0, {}),
    ("RACE-WRITE-WRITE", "same_place", 63, 64, {}),
    ("RACE-WRITE-WRITE", "across_blocks", 0, 1, {"grid": 2, "block": 1}),
    ("BARRIER-DIVERGENCE", "leave_early", 63, 64, {}),
    ("BARRIER-DIVERGENCE", "two_barriers", 32, 64, {}),
    ("BAD-SHUFFLE", "shuffle_some", 31, 32, {"block": 32}),
    ("WARP-DEADLOCK", "shuffle_or_wait", 31, 32, {"block": 32}),
    ("INTEGER-OVERFLOW", "overflow", 2000, 1000, {}),
    ("DIVISION-BY-ZERO", "divide", 0, 1, {}),
]


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize(
    ("kind", "name", "wrong", "right", "options"), MISTAKES, ids=[f"{name}{wrong}" for _, name, wrong, *_ in MISTAKES]
)
def test_a_mistake_is_reported_and_its_like_without_is_not(kind, name, wrong, right, options, order):
    launch(name, right, order=order, **options)
    with pytest.raises(KernelFault, match=rf"{name}.*\n.*{kind}"):
        launch(name, wrong, order=order, **options)


def test_writing_to_const_and_adding_up_floats_are_always_mistakes():
    for kind, name in (("WRITE-TO-CONST", "write_to_const"), ("FLOAT-ATOMIC", "add_up")):
        with pytest.raises(KernelFault, match=kind):
            launch(name, 1)


def test_integer_atomics_count():
    y = allocation(1, np.int32)
    launch("count_up", 3, y=y, grid=5)
    assert y[0] == 3 * 5 * THREADS


def test_undefined_arithmetic_is_reported_with_its_line():
    line = CODE[: CODE.index("n * n * n")].count("\n") + 1
    with pytest.raises(KernelFault, match=rf"kernels.cu:{line}\b"):
        launch("overflow", 2000)


def test_memory_that_nobody_wrote_is_not_read():
    x = allocation(THREADS)
    hostcompile.track(x)
    with pytest.raises(KernelFault, match="UNINITIALISED-GLOBAL-READ"):
        launch("read_beyond", 0, x)
    hostcompile.mark_initialised(x[: THREADS // 2])
    launch("read_beyond", 0, x, block=THREADS // 2)
    with pytest.raises(KernelFault, match="UNINITIALISED-GLOBAL-READ"):
        launch("read_beyond", 0, x)
    y = allocation(THREADS)
    hostcompile.track(y)
    launch("write_beyond", 0, y=y)
    launch("read_beyond", 0, y)  # what a kernel wrote is known


def test_images_of_a_slot_may_be_touched_and_what_lies_between_them_may_not():
    wide = allocation(THREADS).reshape(2, 4, 8)
    launch("read_beyond", 0, wide[:, 1:3], block=16)
    with pytest.raises(KernelFault, match="between the images"):
        launch("read_beyond", 0, wide[:, 1:3], block=17)


def test_an_array_without_elements_may_not_be_touched():
    with pytest.raises(KernelFault, match="OUT-OF-BOUNDS-READ"):
        launch("read_beyond", 0, allocation(THREADS)[:0])


def test_a_kernel_that_does_not_end_is_stopped(monkeypatch):
    monkeypatch.setattr(hostcompile, "_SECONDS", 0.2)
    with pytest.raises(KernelFault, match="TIMEOUT"):
        launch("for_ever", 1, block=1)


def test_unchecked_kernels_compute_the_same():
    x, y = allocation(THREADS), allocation(THREADS)
    x[:] = np.arange(THREADS)
    module(False).launch("reverse", (1,), (THREADS,), [x, y, np.int32(1)], shared=4 * THREADS)
    np.testing.assert_array_equal(y, x[::-1])


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("grid from 1", {"grid": 0}),
        ("block from 1", {"block": 1025}),
        ("bytes of shared memory", {"shared": 48 * 1024 + 1}),
        ("argument 0: expected a pointer to f4", {"x": np.zeros(THREADS)}),
        ("argument 1: expected an array, got float", {"y": 1.0}),
    ],
)
def test_a_wrong_launch_is_refused(words, options):
    with pytest.raises(LaunchError, match=words):
        launch("reverse", 1, **options)


def test_numbers_must_have_the_type_that_the_kernel_takes():
    x, y = allocation(THREADS), allocation(THREADS)
    for number, got in ((1, "int 1"), (1.0, "float"), (np.int64(1), "int64"), (np.float32(1), "float32")):
        with pytest.raises(LaunchError, match=f"argument 2: expected i4, got {got}"):
            module().launch("reverse", (1,), (THREADS,), [x, y, number], shared=4 * THREADS)
    with pytest.raises(LaunchError, match="expected 3 arguments, got 2"):
        module().launch("reverse", (1,), (THREADS,), [x, y])


def test_launch_bounds_hold_for_each_instance():
    launch("bounded<float, 32>", 0, block=32)
    with pytest.raises(LaunchError, match="at most 32 threads"):
        launch("bounded<float, 32>", 0, block=64)
    x = allocation(THREADS, np.float64)
    launch("bounded<double, 256>", 0, x, x.copy(), block=64)
    with pytest.raises(LaunchError, match="at most 64 threads"):
        launch("bounded<double, 256>", 0, x, x.copy(), block=96)


@pytest.mark.parametrize(
    ("code", "names", "words"),
    [
        ("__global__ void f(int* x) { x[0] = y; }", ["f"], "'y' was not declared"),
        ("__global__ void f(int* x) {}", ["g"], "g"),
        ("__global__ void f(int* x) { __shared__ int y[2]; }", ["f"], "static __shared__"),
        ("__global__ void f(float* x) { x[0] = INFINITY; }", ["f"], "INFINITY"),
    ],
)
def test_a_source_that_nvrtc_would_refuse_is_refused(code, names, words):
    with pytest.raises(CompileError, match=words):
        Module(code, names)


def test_kernels_of_one_name_in_two_libraries_stay_apart():
    """As when a library is compiled anew into another folder; else the older one would run the newer one's code."""
    older, newer = (Module(f"__global__ void fill(float* y) {{ y[threadIdx.x] = {n}; }}", ["fill"]) for n in (1, 2))
    for kernel, value in ((older, 1), (newer, 2)):
        y = allocation(4)
        kernel.launch("fill", (1,), (4,), [y])
        assert (y == value).all()
