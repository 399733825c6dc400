"""Do compiled kernels hold: on any shape, beside memory that is not theirs, on bad input, on other CPUs and caches?"""

import inspect
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icnn.model.network import icnn_graph
from minicnn import SGD, Plan
from minicnn.gradcheck import relative_error
from minicnn.kernels import get_backend
from minicnn.kernels.cpu.kernel import Kernel, one
from minicnn.kernels.cpu.layout import HaloMemory, halo_of, planes
from minicnn.kernels.signatures import SIGNATURES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = int(os.environ.get("ICNN_STEPS", "1000"))  # of the test of memory
KERNELS, REFERENCE = get_backend("numba"), get_backend("numpy")


def run_python(program: str, root: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Run a program in a process of its own, with the packages of `root`."""
    return subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=os.environ | environment | {"PYTHONPATH": str(root)},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


# ---- any shape


class Slots:
    """Arrays (N, C, H, W) in the middle of larger ones, whose other channels are NaN and must stay so."""

    def __init__(self, halo: int):
        self._halo = halo
        self._whole: list[np.ndarray] = []

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """A copy of `array` between two channels of NaN."""
        n, c, h, w = array.shape
        whole = planes((n, c + 2, h, w), array.dtype.name, self._halo)
        whole[...] = np.nan
        whole[:, 1:-1] = array
        self._whole.append(whole)
        return whole[:, 1:-1]

    def check(self) -> None:
        """Nothing but the arrays themselves has changed: not the channels beside them, not the zeros around planes."""
        for whole in self._whole:
            assert np.isnan(whole[:, 0]).all() and np.isnan(whole[:, -1]).all()
            whole[...] = 0
            assert isinstance(whole.base, HaloMemory) and not np.asarray(whole.base).any()


def workspace(kernels, kernel: str, sizes: dict[str, int], dtype) -> np.ndarray:
    return np.full(kernels.workspace_size(kernel, **sizes), np.nan, dtype)


@settings(max_examples=90, deadline=None, derandomize=True)
@given(
    st.fixed_dictionaries(
        {
            "N": st.integers(1, 5), "C": st.integers(1, 80), "O": st.integers(1, 80),
            "K": st.one_of(st.integers(1, 9), st.sampled_from([5, 9])),  # those of Winograd's method more often
            "H": st.integers(1, 24), "W": st.integers(1, 24),
        }
    ),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_convolution_of_any_shape(sizes, add, seed):
    """Forward and both gradients, beside NaN, from workspace of NaN, into NaN, against the reference."""
    n, c, o, k, h, w = (sizes[letter] for letter in "NCOKHW")
    rng = np.random.default_rng(seed)
    shapes = ((n, c, h, w), (o, c, k, k), (o,), (n, o, h, w), (n, c, h, w))
    x, weights, b, dy, before = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    results = []
    for kernels, put in ((REFERENCE, np.copy), (KERNELS, slots := Slots(4))):
        own_x, own_dy, y, dx = put(x), put(dy), put(np.full_like(dy, np.nan)), put(before if add else x * np.nan)
        dw, db = np.full_like(weights, np.nan), np.full_like(b, np.nan)
        kernels.conv2d_forward(y, own_x, weights, b, workspace(kernels, "conv2d_forward", sizes, "f4"))
        kernels.conv2d_backward_data(dx, own_dy, weights, workspace(kernels, "conv2d_backward_data", sizes, "f4"), add)
        kernels.conv2d_backward_weights(
            dw, db, own_dy, own_x, workspace(kernels, "conv2d_backward_weights", sizes, "f4")
        )
        results.append([np.copy(array) for array in (y, dx, dw, db)])
    for expected, actual in zip(*results, strict=True):
        assert relative_error(actual, expected) < 2e-5  # Winograd's method rounds more
    slots.check()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 4), st.integers(1, 9), st.integers(1, 20), st.integers(1, 20),
    st.booleans(), st.booleans(), st.booleans(), st.sampled_from(["float32", "float64"]), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_interlinking_of_any_shape(n, c, rows, columns, has_pooled, has_up, in_place, dtype, seed):
    """tanh with either, both or none of its copies, in place or not."""
    rng = np.random.default_rng(seed)
    h, w = (2 * rows, 2 * columns) if has_pooled else (rows, columns)
    pooled_shape = (n, c, h // 2, w // 2) if has_pooled else (n, 0, max(1, h // 2), max(1, w // 2))
    up_shape = (n, c if has_up else 0, 2 * h, 2 * w)
    z, dy = (rng.standard_normal((n, c, h, w)).astype(dtype) for _ in range(2))
    dpooled, dup = (rng.standard_normal(shape).astype(dtype) for shape in (pooled_shape, up_shape))
    results = []
    for kernels, put in ((REFERENCE, np.copy), (KERNELS, slots := Slots(2))):
        y = put(z)
        x = y if in_place else put(z)
        pooled, up = (put(array * np.nan) for array in (dpooled, dup))
        kernels.interlink_forward(y, pooled, up, x)
        gradient = put(dy)
        dx = gradient if in_place else put(dy * np.nan)
        s = np.full(z.size, np.nan, dtype)
        kernels.interlink_backward(dx, gradient, put(dpooled), put(dup), y, s)
        results.append([np.copy(array) for array in (y, pooled, up, dx)])
    for expected, actual in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 if dtype == "float32" else 1e-13)
    slots.check()


@pytest.mark.parametrize(
    "wrong",
    [np.zeros(4), np.zeros((2, 2), np.float32), np.zeros(8, np.float32)[::2], [0.0] * 4, np.zeros(4, ">f4")],
)
def test_a_kernel_takes_no_array_of_another_kind(wrong):
    """Compiled code gets addresses, and would read and write anywhere."""
    with pytest.raises(TypeError, match="expected a 1-d array of float32, contiguous; got"):
        Kernel("nowhere:nothing", "flat flat", one).bind(np.zeros(4, np.float32), wrong)


@pytest.mark.parametrize("kernel", SIGNATURES)
def test_a_kernel_writes_nothing_but_its_outputs(example, rng, kernel):
    """Every array lies between thousands of numbers that must not change: more tasks than planes would reach them."""
    arguments, guards = valid_call(kernel, example, rng), []
    if kernel == "upsample_nearest2d_forward":  # with two more channels, of parity
        arguments[0] = np.concatenate([arguments[0], arguments[0][:, :2]], axis=1)
    for place, array in enumerate(arguments):
        if isinstance(array, np.ndarray):
            memory = np.full(array.size + 20000, 7 + place, array.dtype)  # a copied number shows, too
            inside = memory[10000:-10000].reshape(array.shape)
            inside[...] = array
            arguments[place] = inside
            guards.append((memory, 7 + place))
    getattr(KERNELS, kernel)(*arguments)
    for memory, number in guards:
        assert (memory[:10000] == number).all() and (memory[-10000:] == number).all()


def test_the_zeros_around_planes_stay_zeros(rng):
    """After steps of a whole network every buffer's halo is what it was."""
    plan = Plan(icnn_graph(3, 16), 2, "numba", threads=2)
    for _ in range(2):
        plan.step(rng.standard_normal((2, 3, 16, 16)), rng.integers(0, 3, (2, 16, 16)), SGD(lr=0.1))
    for buffer in plan.arrays.buffers.values():
        assert buffer.any() and halo_of(buffer) in (2, 4)
        buffer[...] = 0
        assert not np.asarray(buffer.base).any()


_FORWARD_ONLY = """
from pathlib import Path
import numpy as np
from icnn.model.network import icnn_graph
from minicnn import Plan

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) << 12

Plan(icnn_graph(9, 64), 1, "numba", threads=1).forward(np.ones((1, 3, 64, 64)))  # kernels, and what else comes once
before = resident()
plan = Plan(icnn_graph(9, 64), 64, "numba", threads=1)
plan.forward(np.ones((64, 3, 64, 64)))
print(resident() - before, sum(buffer.base.nbytes for buffer in plan.arrays.buffers.values()))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's account of a process's memory")
def test_what_is_not_needed_takes_no_memory():
    """A plan that never goes backward does not touch what is for gradients only."""
    done = subprocess.run([sys.executable, "-c", _FORWARD_ONLY], capture_output=True, text=True, check=True)
    grown, buffers = map(int, done.stdout.split())
    assert grown < 0.9 * buffers


def test_a_halo_is_that_of_whole_planes_made_for_it():
    whole = planes((2, 3, 4, 5), "float32", 2)
    assert halo_of(whole) == halo_of(whole[1:, 1:2]) == 2
    for part in (whole[:, :, 1:], whole[..., :4], whole[..., ::2], whole.copy(), np.zeros((2, 3, 4, 5))):
        assert halo_of(part) == -1


# ---- bad input


def valid_call(kernel: str, example, rng) -> list:
    """Arguments of a right call, workspace included."""
    arrays, scalars = example(kernel, "float32", rng)
    letters = {
        letter: length
        for argument in SIGNATURES[kernel].arguments
        if argument.role not in ("scalar", "workspace")
        for letter, length in zip(argument.shape, arrays[argument.name].shape, strict=True)
    }
    everything = arrays | scalars | {"s": workspace(KERNELS, kernel, letters, "f4")}
    return [everything[argument.name] for argument in SIGNATURES[kernel].arguments]


def test_wrong_arrays_are_refused_by_every_kernel(example, kernel, rng):
    """Each array in turn: another dtype, one dimension less, strided, read-only, a list, too short."""
    right = valid_call(kernel, example, rng)
    getattr(KERNELS, kernel)(*right)
    for place, argument in enumerate(SIGNATURES[kernel].arguments):
        array = right[place]
        if argument.role == "scalar" or array.size == 0:
            continue
        frozen = array.copy()
        frozen.flags.writeable = False
        wrong = [
            array.astype(np.float16),
            array[None],
            frozen,
            array.tolist(),
            array.astype(array.dtype.newbyteorder()),
        ]
        if array.ndim and kernel != "parity_maps":  # whose only array may have any shape
            doubled = np.repeat(array, 2, axis=-1)[..., ::2]
            wrong += [array[..., :-1], doubled] if argument.role != "workspace" else [array[:-1], doubled]
        for bad in wrong:
            with pytest.raises(ValueError, match=f"{kernel}: .*expected"):
                getattr(KERNELS, kernel)(*right[:place], bad, *right[place + 1 :])


@pytest.mark.parametrize(
    ("kernel", "scalars"),
    [
        ("max_pool2d_forward", {"kernel_size": 4}),
        ("max_pool2d_forward", {"padding": 3}),
        ("max_pool2d_backward", {"stride": 3}),
        ("mean_pool2d_forward", {"kernel_size": 3}),
        ("upsample_nearest2d_forward", {"factor": 2}),
        ("parity_maps", {"offset": 1}),
        ("parity_maps", {"offset": -1}),
        ("concat_forward", {"offset": 1}),
        ("concat_backward", {"offset": 4}),
    ],
)
def test_scalars_that_lead_out_of_an_array_are_refused(example, rng, kernel, scalars):
    arguments = valid_call(kernel, example, rng)
    names = [argument.name for argument in SIGNATURES[kernel].arguments]
    for name, value in scalars.items():
        arguments[names.index(name)] = value
    with pytest.raises(ValueError, match=f"{kernel}: expected"):
        getattr(KERNELS, kernel)(*arguments)


@pytest.mark.parametrize("label", [-1, 4])
def test_labels_out_of_range_are_refused(example, rng, label):
    arguments = valid_call("softmax_cross_entropy_forward", example, rng)
    arguments[4][0, 0, 0] = label
    with pytest.raises(ValueError, match="labels from 0 to 3"):
        KERNELS.softmax_cross_entropy_forward(*arguments)


def test_a_call_with_too_few_arguments_is_refused():
    with pytest.raises(ValueError, match="tanh_forward: expected 2 arguments, got 1"):
        KERNELS.tanh_forward(np.zeros((1, 1, 1, 1)))


def test_more_threads_than_cores_are_as_many_as_cores(rng):
    images, labels = rng.standard_normal((2, 3, 16, 16)), rng.integers(0, 3, (2, 16, 16))
    losses = [Plan(icnn_graph(3, 16), 2, "numba", threads=n).step(images, labels, SGD(lr=0.1)) for n in (1, 1000)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_images_that_are_not_finite_give_a_loss_that_is_not(rng, value):
    plan = Plan(icnn_graph(3, 16), 2, "numba", threads=1)
    images = rng.standard_normal((2, 3, 16, 16))
    images[0, 1, 3, 3] = value
    plan.forward(images)
    loss = float(plan.loss(rng.integers(0, 3, (2, 16, 16))))
    assert np.isnan(loss)  # Winograd's method subtracts infinity from infinity


# ---- other CPUs, caches and processes

_CONVOLVE = """
import numpy as np
from minicnn.kernels import get_backend; from minicnn.kernels.cpu import vectors
ours, reference = get_backend("numba"), get_backend("numpy")
rng = np.random.default_rng(0)
for sizes in ({"N": 2, "C": 3, "O": 8, "K": 5, "H": 16, "W": 16}, {"N": 1, "C": 9, "O": 20, "K": 3, "H": 5, "W": 7},
              {"N": 1, "C": 4, "O": 9, "K": 9, "H": 12, "W": 20}):
    n, c, o, k, h, w = sizes.values()
    shapes = ((n, c, h, w), (o, c, k, k), (o,), (n, o, h, w))
    x, weights, b, dy = (rng.standard_normal(shape).astype("f4") for shape in shapes)
    results = []
    for kernels in (ours, reference):
        y, dx, dw, db = np.empty_like(dy), np.empty_like(x), np.empty_like(weights), np.empty_like(b)
        s = np.zeros(max(kernels.workspace_size(name, **sizes) for name in
                         ("conv2d_forward", "conv2d_backward_data", "conv2d_backward_weights")), "f4")
        kernels.conv2d_forward(y, x, weights, b, s)
        kernels.conv2d_backward_data(dx, dy, weights, s, False)
        kernels.conv2d_backward_weights(dw, db, dy, x, s)
        results.append((y, dx, dw, db))
    for one, other in zip(*results):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * abs(other).max())
print(vectors.VECTORS, vectors.VECTOR_BYTES)
"""


_CHOOSE = """
from icnn.cli import run
from minicnn.kernels import choose_backend
run(lambda _: choose_backend("numba"), "x")
"""


@pytest.mark.parametrize("way", ["direct", "winograd", "auto"])
def test_each_way_to_convolve_computes_the_same(way):
    done = run_python(_CONVOLVE, MINICNN_CONV=way)
    assert done.returncode == 0, done.stderr


def test_an_unknown_way_to_convolve_is_one_line():
    done = run_python(_CHOOSE, MINICNN_CONV="fast")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "MINICNN_CONV=fast: expected one of auto, direct, winograd" in done.stderr


@pytest.mark.parametrize(("vectors", "size"), [("avx2", 32), ("portable", 16)])
def test_narrower_vectors_compute_the_same(vectors, size):
    done = run_python(_CONVOLVE, MINICNN_VECTORS=vectors)
    if "this CPU has" in done.stderr:
        pytest.skip(f"this CPU lacks {vectors}")
    assert (done.returncode, done.stdout) == (0, f"{vectors} {size}\n"), done.stderr


@pytest.mark.parametrize(
    "features", [{"MINICNN_VECTORS": "avx1024"}, {"MINICNN_VECTORS": "avx512", "NUMBA_CPU_NAME": "generic"}]
)
def test_vectors_that_the_cpu_lacks_are_one_clear_error(features):
    done = run_python(_CHOOSE, **features)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert f"MINICNN_VECTORS={features['MINICNN_VECTORS']}: expected one that this CPU has" in done.stderr


_TANH = """
import numpy as np
from icnn.cli import compilation_announced
from minicnn.kernels import get_backend
x = np.ones((1, 1, 1, 1))
with compilation_announced():
    get_backend("numba").tanh_forward(x, x)
print(x.item())
"""


def test_a_compilation_is_announced_once_and_then_kept(tmp_path):
    first, second = (run_python(_TANH, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    for done in (first, second):
        assert done.returncode == 0 and float(done.stdout) == pytest.approx(np.tanh(1))
    begins, ends = first.stderr.splitlines()
    assert begins == "compiling kernels, only at their first use" and ends.startswith("compiled 1 kernels in ")
    assert second.stderr == ""


_FILL = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from minicnn.kernels.cpu.kernel import Kernel, one
for value in map(int, sys.argv[2:]):
    y = np.zeros(3, np.float32)
    Kernel("filling:filling", "flat", one, (value,))(y)
    print(*y)
"""

_FILLING = """
def filling(value):
    def fill(tasks, y):
        for i in range(y.size):
            y[i] = value
    return fill
"""


def test_processes_that_compile_at_once_do_not_swap_their_kernels(tmp_path):
    """Versions of one function, alike in their types, made by two processes at once and found again by a third."""
    (tmp_path / "filling.py").write_text(_FILLING)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}

    def start(*values: str) -> subprocess.Popen:
        command = [sys.executable, "-c", _FILL, tmp_path, *values]
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE)

    both = [start("1", "3"), start("2", "3")]
    answers = ["1.0 1.0 1.0\n3.0 3.0 3.0\n", "2.0 2.0 2.0\n3.0 3.0 3.0\n"]
    assert [process.communicate()[0] for process in both] == answers
    assert len(list((tmp_path / "cache").glob("filling-*.o"))) == 3
    later, _ = start("1", "2", "3").communicate()
    assert later == "1.0 1.0 1.0\n2.0 2.0 2.0\n3.0 3.0 3.0\n"


_ALLOCATING = """
import numpy as np
def filling(value):
    def fill(tasks, y):
        y[:] = np.empty(y.size)
    return fill
"""


def test_a_kernel_that_allocates_does_not_compile(tmp_path):
    (tmp_path / "filling.py").write_text(_ALLOCATING)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _FILL, tmp_path, "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1 and "y[:] = np.empty(y.size)" in done.stderr


def test_a_cache_without_room_costs_a_warning_only(tmp_path):
    """A file stands where the folder should be."""
    (tmp_path / "file").touch()
    done = run_python(_TANH, NUMBA_CACHE_DIR=str(tmp_path / "file"))
    assert done.returncode == 0 and float(done.stdout) == pytest.approx(np.tanh(1))
    assert done.stderr.count("warning: compiled functions cannot be kept") == 1
    assert "set NUMBA_CACHE_DIR to a folder with room" in done.stderr


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:200] + b"x" + data[201:], lambda _: b""])
def test_damaged_code_is_compiled_again(tmp_path, damage):
    """Cut short, changed, or empty: it must not be run."""
    first = run_python(_TANH, NUMBA_CACHE_DIR=str(tmp_path))
    (path,) = tmp_path.glob("tanh_forward-*.o")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    second = run_python(_TANH, NUMBA_CACHE_DIR=str(tmp_path))
    assert second.stdout == first.stdout and "compiled 1 kernels" in second.stderr
    assert run_python(_TANH, NUMBA_CACHE_DIR=str(tmp_path)).stderr == ""


def test_without_another_process_kernels_are_compiled_in_this_one(tmp_path):
    """An interpreter inside another program has no executable to start."""
    program = 'import sys\nsys.executable = "/nothing"\n' + _TANH + '\nprint("numba" in sys.modules)'
    done = run_python(program, NUMBA_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0 and done.stdout.splitlines()[1] == "True", done.stderr
    assert float(done.stdout.splitlines()[0]) == pytest.approx(np.tanh(1))


def test_an_interpreter_that_prints_does_not_mix_up_kernels(tmp_path):
    """What `sitecustomize` prints comes before the first answer, so that each would count for the next kernel."""
    (tmp_path / "filling.py").write_text(_FILLING)
    (tmp_path / "sitecustomize.py").write_text('print("a note")')
    program = _FILL.replace("sys.argv[1]", repr(str(tmp_path))).replace("map(int, sys.argv[2:])", "(1, 2, 3)")
    both = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": both},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.stdout == "a note\n1.0 1.0 1.0\n2.0 2.0 2.0\n3.0 3.0 3.0\n", done.stderr


def test_modules_of_the_current_folder_do_not_reach_the_compiler(tmp_path):
    """A program that does not import from the current folder starts processes that do not, either."""
    for name in ("json", "base64"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the current folder')")
    program = "import os\nos.chdir(sys.argv[1])\n" + _TANH + '\nprint("numba" in sys.modules)'
    program = "import sys\nsys.path.remove('')\n" + program.replace("sys.argv[1]", repr(str(tmp_path)))
    done = run_python(program, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert done.stdout.splitlines()[1:] == ["False"], done.stderr


def test_settings_of_numba_count_as_sources_do(tmp_path):
    """Code that Numba did not optimise must not stay when the setting is gone."""
    for environment in ({"NUMBA_OPT": "0"}, {}):
        done = run_python(_TANH, NUMBA_CACHE_DIR=str(tmp_path), **environment)
        assert "compiled 1 kernels" in done.stderr


def test_kernels_on_disk_need_no_compiler(tmp_path):
    """Numba and what it imports take a second, which whoever parses one photograph would wait for."""
    program = _TANH + '\nimport sys\nprint("numba" in sys.modules, "scipy" in sys.modules)'
    for _ in range(2):
        done = run_python(program, NUMBA_CACHE_DIR=str(tmp_path))
        assert done.stdout.splitlines()[1] == "False False"


_FORK = """
import os, sys
import numpy as np
from minicnn.kernels import get_backend
kernels = get_backend("numba")
x = np.ones((64, 4, 8, 8), np.float32)
y = np.zeros_like(x)
def run():
    with kernels.threads(2):
        kernels.tanh_forward(y, x)
    return bool((y == y[0, 0, 0, 0]).all() and y[0, 0, 0, 0] > 0.7)
before = run()
child = os.fork()
if child == 0:
    y[:] = 0
    os._exit(0 if run() else 1)
y[:] = 0
_, status = os.waitpid(child, 0)
print(before, run(), status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_threads_of_its_own():
    done = run_python(_FORK)
    assert done.stdout == "True True 0\n", done.stderr


_FORK_MEANWHILE = """
import os, signal, threading, time
import numpy as np
from minicnn.kernels import get_backend
from minicnn.kernels.cpu import loading
kernels = get_backend("numba")
x = np.ones((64, 4, 8, 8), np.float32)
y = np.zeros_like(x)
run = kernels.bind("tanh_forward", y, x)
if sys.argv[1] == "load":
    load, begins = loading._load, threading.Event()
    loading._load = lambda machine: (begins.set(), time.sleep(0.5), load(machine))[2]
    threading.Thread(target=run).start()
    begins.wait()
child = os.fork()
if child == 0:
    signal.alarm(120)
    y[:] = 0
    run()
    os._exit(0 if abs(y - np.tanh(1)).max() < 1e-6 else 1)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("meanwhile", ["compile", "load"])
def test_a_process_forked_meanwhile_gets_its_kernels(tmp_path, meanwhile):
    """A call prepared before the fork, whose kernel the parent still compiles, or a thread of it loads."""
    program = _FORK_MEANWHILE.replace("sys.argv[1]", repr(meanwhile))
    done = run_python(program, NUMBA_CACHE_DIR=str(tmp_path))
    assert done.stdout == "0\n", done.stderr


def test_threads_that_call_at_once_each_get_their_result(rng):
    """Four callers at once; one of them has the pool's threads."""
    x = rng.standard_normal((4, 32, 4, 16, 16)).astype(np.float32)
    y, expected = np.zeros_like(x), np.zeros_like(x)
    for target, source in zip(expected, x, strict=True):
        KERNELS.tanh_forward(target, source)

    def run(number: int) -> None:
        for _ in range(50):
            y[number] = 0
            KERNELS.tanh_forward(y[number], x[number])
            np.testing.assert_array_equal(y[number], expected[number])

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(run, range(4)))


@pytest.mark.parametrize("name", [name for name in SIGNATURES if isinstance(KERNELS._kernels[name], Kernel)])
def test_loops_take_the_arguments_of_the_signature_table(name):
    made = KERNELS._kernels[name]
    module, _, function = made.source.partition(":")
    parameters = list(inspect.signature(getattr(import_module(module), function)).parameters)
    assert parameters == ["tasks", *(argument.name for argument in SIGNATURES[name].arguments)]


def test_compiled_kernels_of_other_sources_are_not_used(tmp_path):
    """A change in what a kernel calls must count, too."""
    for package in ("minicnn", "icnn"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert float(run_python(_TANH, tmp_path, **cache).stdout) == pytest.approx(np.tanh(1))
    path = tmp_path / "minicnn" / "kernels" / "cpu" / "compiled" / "vecmath.py"
    source = path.read_text()
    path.write_text(source.replace("like(1.0, e) - like(2.0, e)", "like(3.0, e) - like(2.0, e)"))
    assert path.read_text() != source
    assert float(run_python(_TANH, tmp_path, **cache).stdout) == pytest.approx(2 + np.tanh(1))


# ---- long runs, and an independent network


def test_a_thousand_steps_end_alike_in_both_backends(rng):
    images, labels = rng.standard_normal((8, 2, 3, 8, 8)), rng.integers(0, 3, (8, 2, 8, 8))
    labels[:, :, 2:6, 2:6] = 1  # something that can be learnt
    losses = []
    for backend in ("numpy", "numba"):
        plan = Plan(icnn_graph(3, 8), 2, backend, "float32", seed=1, threads=1)
        optimiser = SGD(lr=0.01, momentum=0.9, nesterov=True)
        losses.append([float(plan.step(images[i % 8], labels[i % 8], optimiser)) for i in range(1000)])
    ours, theirs = (np.mean(run[-8:]) for run in losses)
    assert ours < 0.8 * losses[0][0]
    assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_stays_flat_over_many_steps(rng):
    """Batches are full and half full in turn, with a validation now and then.

    ``ICNN_STEPS=100000`` makes so many; ``-rP`` shows what they took.
    """

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    images, labels = rng.standard_normal((2, 3, 8, 8)), rng.integers(0, 3, (2, 8, 8))
    plan, optimiser = Plan(icnn_graph(3, 8), 2, "numba", threads=1), SGD(lr=0.01, momentum=0.9)
    seen = []
    for step in range(STEPS):
        n = 1 + step % 2
        plan.step(images[:n], labels[:n], optimiser)
        if step % 100 == 99:
            plan.forward(images)
            seen.append(resident())
    settled, *later = seen[len(seen) // 10 :]
    most = max(abs(pages - settled) for pages in later) / settled
    print(f"{STEPS} steps: within {most:.2%} of {settled * 4096 >> 20} MiB")
    assert most < 0.02


def test_a_step_is_that_of_pytorch(monkeypatch):
    """Logits, loss, every gradient and every updated parameter of stage 1's network, to 5e-5 of the largest."""
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from torch_twin import TorchStep

    torch.set_num_threads(1)  # its idle threads spin
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((2, 3, 64, 64)).astype(np.float32), rng.integers(0, 9, (2, 64, 64))
    graph = icnn_graph(9, 64)
    plan = Plan(graph, 2, "numba", threads=1)
    twin = TorchStep(graph, plan.parameters, images, labels, "default", lr=0.1, momentum=0.9)
    for _ in range(2):
        assert float(plan.step(images, labels, SGD(lr=0.1, momentum=0.9, nesterov=True))) == pytest.approx(
            float(twin()), rel=5e-5
        )
    for name, value in plan.parameters.items():
        parameter = twin.net.parameter(name)
        assert relative_error(value, parameter.detach().numpy()) < 5e-5, name
        assert relative_error(plan.gradients[name], parameter.grad.numpy()) < 5e-5, name
