"""Does CUDA's compiler accept every kernel for every architecture, within the registers and memory that all have?

Compiled as CuPy would, on both cores: all instances that the five networks need with a batch of 10. Where two compilers
know an architecture, each takes every other instance, to stay under 20 s, unless it is the only one installed; one
architecture also gets the instances of a batch of 64 and of float64. ICNN_GATE=all leaves nothing out.
"""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import pytest
import wheels
from conv_bench import distinct_convolutions
from gpu_model import tile_of
from machine_code import CompileError, Compiler, Resources, ToolMissing, compiler, cupy_options

from minicnn.kernels.cuda.sources import OPTIONS, source
from minicnn.kernels.cuda.tiles import SHARED, Tile

pytestmark = pytest.mark.slow

ARCHITECTURES = {12: (70, 75, 80, 90, 100, 120), 13: (75, 80, 90, 100, 120)}
TARGETS = [(major, architecture) for major, all_of_it in ARCHITECTURES.items() for architecture in all_of_it]
EVERYTHING = os.environ.get("ICNN_GATE") == "all"
REGISTERS = 64 * 1024  # of a multiprocessor, on every architecture
BLOCK = 256  # threads of kernels that no tile is chosen for
FILES = sorted(path.name for path in (wheels.ROOT / "minicnn" / "kernels" / "cuda").glob("*.cu"))


def require(major: int) -> None:
    wheels.require(lambda: compiler(major))


class Launch(NamedTuple):
    """The most that an instance is launched with: threads of a block, bytes of dynamic shared memory."""

    block: int
    shared: int


def problems(taken: Resources, launch: Launch) -> list[str]:
    """What is wrong with a kernel; nothing, one hopes."""
    found = []
    if taken.spilled or taken.stack:
        found.append(f"spills {taken.spilled} bytes, stack of {taken.stack}")
    rounded = -(-taken.registers // 8) * 8  # registers are given out by eight
    if rounded * launch.block > REGISTERS:
        found.append(f"{taken.registers} registers x {launch.block} threads")
    if taken.shared + launch.shared > SHARED:
        found.append(f"{taken.shared} + {launch.shared} bytes of shared memory")
    return found


# ---- which instances


def kernels_of(file: str) -> list[str]:
    """The names of a file's kernels."""
    text = re.sub(r"__launch_bounds__\((?:[^()]|\([^()]*\))*\)", "", source(file))
    return re.findall(r"__global__\s+void\s+(\w+)\s*\(", text)


def tiles(batch: int, dtype: str) -> list[Tile]:
    """Every launch of a convolution in the five networks."""
    found = []
    for convolution in distinct_convolutions():
        found += [tile_of(convolution, direction, batch, dtype) for direction in convolution.directions]
        found.append(tile_of(convolution, "forward", batch, dtype, pooled=convolution.size % 2 == 0))
    return found


@cache
def instances(dtype: str, batches: tuple[int, ...] = (10,)) -> dict[str, dict[str, Launch]]:
    """File -> expression -> its largest launch."""
    found: dict[str, dict[str, Launch]] = {file: {} for file in FILES}
    for tile in (tile for batch in batches for tile in tiles(batch, dtype)):
        before = found[tile.file].get(tile.expression, Launch(0, 0))
        found[tile.file][tile.expression] = Launch(max(before.block, tile.block), max(before.shared, tile.shared))
    number = "float" if dtype == "float32" else "double"
    for file, expressions in found.items():
        named = {expression.partition("<")[0] for expression in expressions}
        for kernel in kernels_of(file):
            if kernel not in named:
                expressions[f"{kernel}<{number}>"] = Launch(BLOCK, 0)
    return found


@cache
def installed_compilers() -> tuple[int, ...]:
    found = []
    for major in ARCHITECTURES:
        try:
            compiler(major)
        except ToolMissing:
            continue  # the tests that need it say so
        found.append(major)
    return tuple(found)


def chosen(major: int, architecture: int) -> dict[str, dict[str, Launch]]:
    """What is compiled for a target; see the top of this file."""
    sharing = [other for other in installed_compilers() if architecture in ARCHITECTURES[other]]
    everything = instances("float32")
    if EVERYTHING or sharing != list(ARCHITECTURES):
        return everything
    turn = (
        sharing.index(major) + ARCHITECTURES[12].index(architecture)
    ) % 2  # other halves on neighbouring architectures
    return {file: dict(sorted(found.items())[turn::2]) for file, found in everything.items()}


def rest(dtype: str, batches: tuple[int, ...]) -> dict[str, dict[str, Launch]]:
    """Instances besides those of float32 and a batch of 10."""
    usual = instances("float32")
    return {
        file: {name: launch for name, launch in launches.items() if name not in usual[file]}
        for file, launches in instances(dtype, batches).items()
    }


RESTS = [("float64", (10,)), ("float32", (1, 16, 32, 64, 128, 256) if EVERYTHING else (64,))]

# ---- compiling


@pytest.fixture(scope="module")
def gate():
    """Futures of all programs, (target or one of `RESTS`, file) -> resources, compiled on two threads."""

    def build(target: tuple[int, int], file: str, expressions) -> dict[str, Resources]:
        major, architecture = target
        return compiler(major).compile(source(file), list(expressions), architecture, OPTIONS).resources

    with ThreadPoolExecutor(2) as pool:
        jobs = [(target, target, chosen(*target)) for target in TARGETS if target[0] in installed_compilers()]
        if 12 in installed_compilers():
            jobs += [(kind, (12, 80), rest(*kind)) for kind in RESTS]
        futures = {
            (key, file): pool.submit(build, target, file, launches)
            for key, target, files in jobs
            for file, launches in files.items()
        }
        yield futures
        for future in futures.values():
            future.cancel()  # where a single test was asked for


def check(gate, key, files: dict[str, dict[str, Launch]]) -> None:
    found = []
    for file, launches in files.items():
        resources = gate[key, file].result()
        assert set(resources) == set(launches)
        found += [f"{name}: {text}" for name, taken in resources.items() for text in problems(taken, launches[name])]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: "nvrtc{}-sm{}".format(*target))
def test_kernels_compile_for(target, gate):
    require(target[0])
    check(gate, target, chosen(*target))


@pytest.mark.parametrize("kind", RESTS, ids=["float64", "batches"])
def test_the_rest_compiles_for_one_architecture(kind, gate):
    require(12)
    check(gate, kind, rest(*kind))


@pytest.mark.parametrize("major", ARCHITECTURES)
def test_the_compilers_know_the_architectures(major):
    require(major)
    assert set(ARCHITECTURES[major]) <= set(compiler(major).architectures())


@pytest.mark.parametrize("architecture", ARCHITECTURES[12])
def test_every_instance_is_compiled_for(architecture):
    for file, expressions in instances("float32").items():
        parts = [chosen(major, architecture)[file] for major in installed_compilers()]
        assert not parts or {name for part in parts for name in part} == set(expressions)


@pytest.mark.parametrize("file", FILES)
def test_kernels_include_nothing(file):
    """So CuPy's include folders, which this gate does not have, cannot matter."""
    assert "#include" not in source(file)
    assert kernels_of(file)


CUPY = """
import sys
from cupy._core import core
from cupy.cuda import compiler

def compile(program, options=(), log_stream=None):
    if program.name_expressions:
        print(program.method, *(option for option in options if not option.startswith("-I")))
        sys.exit()
    return b"", None

compiler._NVRTCProgram.compile = compile
compiler._get_arch_for_options_for_nvrtc = lambda arch=None: (f"-arch=sm_{arch}", "cubin")  # asks a device
core.compile_with_cache("", tuple(sys.argv[1:]), arch="80", prepend_cupy_headers=False, name_expressions=("f<int>",))
"""


def installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def test_options_are_those_of_cupy(tmp_path):
    """The real CuPy, without a GPU, up to the moment when it would call the compiler."""
    if not any(installed(name) for name in ("cupy-cuda12x", "cupy-cuda13x", "cupy")):
        pytest.skip("CuPy is not installed")
    environment = {**os.environ, "CUPY_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", CUPY, *OPTIONS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["cubin", *cupy_options(80, OPTIONS)]


# ---- does the gate notice?

HOARD = """
template <int COUNT> __global__ void __launch_bounds__(1024) hoard(float* x) {
    float values[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; i++) values[i] = x[i * 1024 + threadIdx.x];
    for (int round = 0; round < 9; round++) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < COUNT; i++) values[i] = values[i] * values[(i + 1) % COUNT] + x[round];
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++) x[i * 1024 + threadIdx.x] = values[i];
}
"""


@pytest.mark.parametrize("major", ARCHITECTURES)
@pytest.mark.parametrize("count", [16, 96])
def test_a_spill_is_noticed(major, count):
    """A thousand threads have 64 registers each."""
    require(major)
    name = f"hoard<{count}>"
    taken = compiler(major).compile(HOARD, [name], 80, OPTIONS).resources[name]
    assert bool(problems(taken, Launch(1024, 0))) == (count > 64)
    assert (taken.spilled > 0) == (count > 64)


@pytest.mark.parametrize("major", ARCHITECTURES)
def test_an_array_in_local_memory_is_noticed(major):
    require(major)
    text = (
        "template <int N> __global__ void f(int* x) { int a[N]; for (int i = 0; i < N; i++) a[x[i]] = i; *x = a[*x]; }"
    )
    taken = compiler(major).compile(text, ["f<64>"], 90, OPTIONS).resources["f<64>"]
    assert taken.stack >= 256 and taken.spilled == 0 and problems(taken, Launch(32, 0))


@pytest.mark.parametrize("major", ARCHITECTURES)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("template <int N> __global__ void f(int* x) {\n  *x = N\n}", 'kernels.cu(3): error: expected a ";"'),
        ("template <int N> __global__ void f(int* x) { __shared__ int y[N << 14]; y[*x] = 1; *x = y[0]; }", "shared"),
        ("#include <vector>\ntemplate <int N> __global__ void f(int* x) {}", "vector"),
        ("template <int N> __device__ void g(int* x) {}", "f<1>"),
    ],
    ids=["syntax", "shared", "include", "name"],
)
def test_a_mistake_is_noticed(major, text, words):
    require(major)
    with pytest.raises(CompileError, match=re.escape(words)):
        compiler(major).compile(text, ["f<1>"], 80, OPTIONS)


def test_limits():
    fits = Resources(registers=128, stack=0, spilled=0, shared=1024)
    assert not problems(fits, Launch(512, SHARED - 1024))
    for taken, launch in [
        (fits._replace(registers=129), Launch(512, 0)),
        (fits, Launch(512, SHARED - 1023)),
        (fits._replace(spilled=4), Launch(32, 0)),
        (fits._replace(stack=8), Launch(32, 0)),
    ]:
        assert len(problems(taken, launch)) == 1


@pytest.mark.parametrize(("required", "outcome"), [("0", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_a_missing_wheel_is_noticed(monkeypatch, required, outcome):
    monkeypatch.setattr("machine_code._COMPILERS", {12: "no-such-wheel"})
    monkeypatch.setenv("ICNN_REQUIRE_CUDA_WHEELS", required)
    with pytest.raises(outcome, match="pip install no-such-wheel"):
        wheels.require(lambda: Compiler(12))
