"""Is every name, signature, text and view of the stand-in for CuPy the real CuPy's?

CuPy can be imported, and its arrays made over addresses that nobody reads, on a machine without a GPU.
"""

import ast
import importlib
import importlib.util
import inspect
import os
import re
import sys
import warnings
from pathlib import Path
from types import FunctionType, ModuleType

import numpy as np
import pytest
import standin
import wheels  # noqa: F401 - makes the benchmarks' modules importable
from machine_code import cupy_options
from standin_device import TEXTS

from minicnn.kernels.cuda.sources import OPTIONS

pytestmark = pytest.mark.slow


@pytest.fixture
def real(monkeypatch):
    """The real CuPy, as what ``import cupy`` gives."""
    if sys.modules.get("cupy") is standin.cupy:
        monkeypatch.delitem(sys.modules, "cupy")
    try:
        module = importlib.import_module("cupy")
    except ImportError as error:
        if os.environ.get("ICNN_REQUIRE_CUDA_WHEELS") == "1":
            pytest.fail(f"CuPy is not installed: {error}")
        pytest.skip(f"CuPy is not installed: {error}")
    _REAL.setdefault("cupy", module)  # CuPy cannot be imported a second time
    monkeypatch.setitem(sys.modules, "cupy", _REAL["cupy"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NCCL is not installed
        importlib.import_module("cupyx.distributed")  # which loads cupy.cuda.nccl
    return _REAL["cupy"]


_REAL: dict[str, ModuleType] = {}

# ---- names and signatures


def members(ours: object, theirs: object, path: str):
    """(path, ours, the real one's or None) of everything public in a module or class, and what is in that."""
    for name, value in vars(ours).items():
        special = isinstance(value, FunctionType) and value.__name__ == name and name not in _PYTHONS
        if name.startswith("_") and not (name.startswith("__") and special):
            continue
        other = getattr(theirs, name, None)
        yield f"{path}.{name}", value, other
        if isinstance(value, ModuleType) or (isinstance(value, type) and not issubclass(value, Exception)):
            yield from members(value, other, f"{path}.{name}")


#: What Python itself calls; here it refuses, or CuPy's is written in C.
_PYTHONS = {"__init__", "__array_function__", "__array_ufunc__", "__repr__", "__hash__"}

PATHS = [path for path, *_ in members(standin.cupy, None, "cupy")]


def test_every_name_is_cupys(real):
    missing = [path for path, _, other in members(standin.cupy, real, "cupy") if other is None]
    assert missing == []
    assert {"cupy.ndarray.set", "cupy.cuda.Stream.wait_event", "cupy.cuda.runtime.getDeviceCount"} < set(PATHS)


def written_signature(text: str) -> list[tuple[str, object]]:
    """Names and defaults of the arguments in the first line of a docstring, as Cython writes it."""
    inside = re.match(r"[\w.]*\((.*)\)", text.strip().splitlines()[0]).group(1)
    parameters = []
    for part in re.split(r",\s*(?![^()]*\))", inside):
        declared, _, default = part.partition("=")
        name = declared.split()[-1] if declared.split() else ""
        if name not in ("*", "/", "self", ""):
            parameters.append((name, ast.literal_eval(default) if default else inspect.Parameter.empty))
    return parameters


def signature(function) -> list[tuple[str, object]] | None:
    """Names and defaults of a function's arguments without `self`; None if they are not known."""
    function = inspect.unwrap(function)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        text = function.__doc__ or ""
        return written_signature(text) if re.match(r"[\w.]*\(", text.strip()) else None
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [(stars.get(one.kind, "") + one.name, one.default) for one in parameters if one.name != "self"]


def test_sums_over_processes_are_asked_for_as_of_cupyx(real, monkeypatch):
    theirs = importlib.import_module("cupyx.distributed")
    monkeypatch.setitem(sys.modules, "cupyx.distributed", theirs)  # put back afterwards
    specification = importlib.util.spec_from_file_location("standin_cupyx", Path(__file__).parent / "in_place/cupyx.py")
    ours = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(ours)
    assert signature(ours.init_process_group) == signature(theirs.init_process_group)
    assert signature(ours.Group.all_reduce) == signature(theirs.NCCLBackend.all_reduce)


#: Called otherwise than the real one's signature says, which takes all and checks itself.
_OWN_SIGNATURE = {
    "cupy.matmul": "(*args, out=None): CuPy has more settings",
    "cupy.ndarray": "not to be called",
    "cupy.cuda.Graph": "not to be called",
    "cupy.cuda.MemoryPool": "not to be called",
    "cupy.cuda.PinnedMemoryPointer": "not to be called",
    "cupy.ndarray.__array__": "NumPy 2 gives `copy`, too",
    "cupy.ndarray.__iter__": "unknown",
    "cupy.ndarray.__len__": "unknown",
    "cupy.ndarray.__getitem__": "unknown",
    "cupy.ndarray.__setitem__": "unknown",
    "cupy.ndarray.__float__": "unknown",
    "cupy.ndarray.__int__": "unknown",
    "cupy.ndarray.__bool__": "unknown",
    "cupy.cuda.compiler.CompileException.__str__": "unknown",
}


def test_every_signature_is_cupys(real):
    compared = 0
    for path, ours, theirs in members(standin.cupy, real, "cupy"):
        if not callable(ours) or path in _OWN_SIGNATURE:
            continue
        expected = signature(theirs)
        assert expected is not None, f"{path}: unknown; name it above"
        assert signature(ours) == expected, path
        compared += 1
    assert compared >= 40


def test_kernels_are_called_as_cupys(real):
    """A kernel is an object without a public class."""
    text = real.RawKernel.__call__.__doc__
    assert "__call__(self, grid, block, args, \\*, shared_mem=0)" in text
    parameters = inspect.signature(standin.RawKernel.__call__).parameters
    assert [*parameters][1:] == ["grid", "block", "args", "shared_mem"]
    assert parameters["shared_mem"].kind is inspect.Parameter.KEYWORD_ONLY


def test_subnormal_numbers_are_flushed_to_zero(real):
    """What `tiles` says of its options, and machine_code compiles with."""
    compiler = inspect.getsource(importlib.import_module("cupy.cuda.compiler"))
    assert "options += ('-ftz=true',)" in compiler and "-ftz=true" in cupy_options(90, OPTIONS)


# ---- texts


@pytest.mark.parametrize("status", TEXTS)
def test_the_runtimes_errors(real, status):
    assert str(standin.cupy.cuda.runtime.CUDARuntimeError(status)) == str(real.cuda.runtime.CUDARuntimeError(status))


@pytest.mark.parametrize("limit", [0, 2 << 30])
def test_out_of_memory(real, limit):
    ours, theirs = (cupy.cuda.memory.OutOfMemoryError(5 << 20, 1 << 30, limit) for cupy in (standin.cupy, real))
    assert str(ours) == str(theirs) and type(ours).__mro__[1:] == type(theirs).__mro__[1:]


def test_errors_of_the_compiler_and_of_missing_libraries(real):
    ours, theirs = (
        cupy.cuda.compiler.CompileException("text", "code", "f.cu", ("-O",)) for cupy in (standin.cupy, real)
    )
    assert str(ours) == str(theirs) == "text"
    assert type(ours).__mro__[1:] == type(theirs).__mro__[1:]
    assert issubclass(real.cuda.driver.CUDADriverError, RuntimeError)
    pathfinder = pytest.importorskip("cuda.pathfinder")
    assert issubclass(pathfinder.DynamicLibNotFoundError, RuntimeError)


MADE_WRONG = {
    "no code": lambda cupy: cupy.RawModule(),
    "two sources": lambda cupy: cupy.RawModule(code="", path=""),
    "options in a list": lambda cupy: cupy.RawModule(code="", options=["-O"]),
    "code of another type": lambda cupy: cupy.RawModule(code=3),
    "a name of another type": lambda cupy: cupy.RawModule(code="").get_function(3),
    "expressions need no option": lambda cupy: cupy.RawModule(code="", name_expressions=("f<int>",)) and None,
    "a graph by hand": lambda cupy: cupy.cuda.Graph(),
    "capture of the null stream": lambda cupy: cupy.cuda.Stream.null.begin_capture(),
    "negative": lambda cupy: cupy.empty((2, -1)),
    "a shape of floats": lambda cupy: cupy.empty((2, 2.0)),
    "an unknown name": lambda cupy: cupy.no_such_name,
    "an unknown name of cuda": lambda cupy: cupy.cuda.no_such_name,
}


@pytest.mark.parametrize("call", MADE_WRONG.values(), ids=MADE_WRONG)
def test_what_is_refused_with_the_same_words(real, call):
    assert outcome(call, standin.cupy) == outcome(call, real)


def outcome(call, *arguments) -> object:
    try:
        return call(*arguments)
    except Exception as error:
        return error_of(error)


def error_of(error: Exception) -> tuple[str, str]:
    return type(error).__name__, re.sub("'(str|int|float)' object", "object", str(error))


@pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. <cyfunction Stream.__del__:pytest.PytestUnraisableExceptionWarning"
)
def test_without_a_driver_all_ends_alike(real):
    try:
        real.cuda.runtime.getDeviceCount()
    except real.cuda.runtime.CUDARuntimeError as error:
        facts = {"driver": None} if "InsufficientDriver" in str(error) else {"devices": 0}
    else:
        pytest.skip("there is a GPU")
    standin.configure(**facts)
    try:
        for call in (
            lambda cupy: cupy.cuda.runtime.getDeviceCount(),
            lambda cupy: cupy.cuda.runtime.getDeviceProperties(0),
            lambda cupy: cupy.cuda.Stream(non_blocking=True),
            lambda cupy: cupy.cuda.Event(disable_timing=True),
            lambda cupy: cupy.cuda.get_current_stream(),
            lambda cupy: cupy.cuda.alloc_pinned_memory(8),
            lambda cupy: cupy.empty(3, "float32"),
            lambda cupy: cupy.zeros((), "float32"),
            lambda cupy: cupy.RawModule(code='extern "C" __global__ void f() {}').get_function("f"),
            lambda cupy: cupy.cuda.runtime.driverGetVersion() if facts["driver"] is None else None,
        ):
            assert outcome(call, standin.cupy) == outcome(call, real)
    finally:
        standin.configure()


# ---- views

SHAPES = [(), (1,), (5,), (3, 4), (4, 1, 6), (2, 3, 4, 5), (1, 3, 8), (3, 0, 4), (0,)]


def pair(real, shape: tuple[int, ...], dtype: str = "float32"):
    """An array of the stand-in, and CuPy's at the same address, where nothing must be read."""
    ours = standin.cupy.empty(shape, dtype)
    memory = real.cuda.UnownedMemory(ours.data.ptr, ours.nbytes, None, 0)
    return ours, real.ndarray(shape, dtype, memptr=real.cuda.MemoryPointer(memory, 0))


def described(array) -> tuple:
    """All that can be known of an array without reading it."""
    flags = array.flags.c_contiguous, array.flags.f_contiguous, array.flags.owndata
    sizes = array.shape, array.ndim, array.size, array.itemsize, array.nbytes, array.dtype
    strides = tuple(s for n, s in zip(array.shape, array.strides, strict=True) if n > 1) if array.size else ()
    return *sizes, *flags, strides, array.data.ptr if array.size else None, array.device.id, array.base is None


def assert_alike(ours, theirs) -> None:
    assert described(ours) == described(theirs)
    base = theirs.base
    assert base is None or described(ours.base) == described(base)


def random_index(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple:
    """A basic index, now and then one that is out of bounds."""
    index: list[object] = []
    for length in shape[: rng.integers(0, len(shape) + 1)]:
        kind = rng.integers(0, 4)
        if kind == 0:
            index.append(int(rng.integers(-length - (rng.random() < 0.1), max(1, length))))
        else:
            bounds = [None if rng.random() < 0.3 else int(rng.integers(-length - 1, length + 2)) for _ in range(2)]
            index.append(slice(*bounds, rng.choice([None, 1, 2, -1, 3]) if kind == 1 else None))
    if rng.random() < 0.3:
        index.insert(rng.integers(0, len(index) + 1), None)
    if rng.random() < 0.3:
        index.insert(rng.integers(0, len(index) + 1), Ellipsis)
    return tuple(index)


def random_view(rng: np.random.Generator, shape: tuple[int, ...]):
    """A function that makes a view."""
    kind = rng.integers(0, 6)
    if kind == 0 and len(shape) > 1:
        axes = tuple(int(axis) for axis in rng.permutation(len(shape)))
        return lambda array: array.transpose(*axes)
    if kind == 1:
        return lambda array: array.T
    if kind == 2:
        dtype = str(rng.choice(["int32", "uint8", "float64", "float16", "float32"]))
        return lambda array: array.view(dtype)
    if kind == 3:
        sizes = [int(n) for n in rng.permutation(shape)]
        if len(sizes) > 1 and rng.random() < 0.5:
            sizes = [sizes[0] * sizes[1], *sizes[2:]]
        if sizes and rng.random() < 0.3:
            sizes[0] = -1
        given = tuple(sizes) if sizes and rng.random() < 0.5 else (tuple(sizes),)
        return lambda array: array.reshape(*given)
    index = random_index(rng, shape)
    return lambda array: array[index]


@pytest.mark.parametrize("seed", range(40))
def test_views_of_views_are_cupys(real, seed):
    """What the stand-in refuses, CuPy refuses, too, or it would have to copy."""
    rng, made = np.random.default_rng(seed), 0
    for shape in SHAPES:
        ours, theirs = pair(real, shape, str(rng.choice(["float32", "float64", "int32"])))
        assert_alike(ours, theirs)
        for _ in range(6):
            view = random_view(rng, ours.shape)
            try:
                next_ours = view(ours)
            except NotImplementedError:
                continue  # a reshape that copies, for which CuPy here lacks a GPU
            except (IndexError, ValueError) as error:
                with pytest.raises(type(error)):
                    view(theirs)
                continue
            next_theirs = view(theirs)
            assert_alike(next_ours, next_theirs)
            ours, theirs, made = next_ours, next_theirs, made + 1
    assert made > 20


def test_every_element_of_a_wide_array_has_cupys_address(real):
    ours, theirs = pair(real, (4, 7, 5), "float64")
    for i, plane in enumerate(ours):
        assert plane.data.ptr == theirs[i].data.ptr
        assert ours[1:, i : i + 2, ::2][0, 1].data.ptr == theirs[1:, i : i + 2, ::2][0, 1].data.ptr


USED_WRONG = {
    "asarray": lambda a, host, cupy: np.asarray(a),
    "into NumPy": lambda a, host, cupy: host.__setitem__(..., a),
    "from NumPy": lambda a, host, cupy: a.__setitem__(..., host),
    "row from NumPy": lambda a, host, cupy: a.__setitem__(0, host[0]),
    "fill with NumPy": lambda a, host, cupy: a.fill(host),
    "set a number": lambda a, host, cupy: a.set(1.0),
    "set float64": lambda a, host, cupy: a.set(host.astype("float64")),
    "set another shape": lambda a, host, cupy: a.set(host[0]),
    "set part of rows": lambda a, host, cupy: a[:, 1:].set(host[:, 1:]),
    "get into float64": lambda a, host, cupy: a.get(stream=cupy.cuda.Stream.null, out=host.astype("float64")),
    "get another shape": lambda a, host, cupy: a.get(stream=cupy.cuda.Stream.null, out=host[0].copy()),
    "item": lambda a, host, cupy: a.item(),
    "item with an index": lambda a, host, cupy: a.item(0),
    "bool": lambda a, host, cupy: bool(a),
    "len": lambda a, host, cupy: len(a),
    "len of a number": lambda a, host, cupy: len(a[0, 0]),
    "iteration over a number": lambda a, host, cupy: iter(a[0, 0]),
    "reshape": lambda a, host, cupy: a.reshape(5),
    "view of part of rows": lambda a, host, cupy: a[:, 1:].view("float64"),
    "view of a number": lambda a, host, cupy: a[0, 0].view("float64"),
    "too many indices": lambda a, host, cupy: a[0, 0, 0],
    "index too large": lambda a, host, cupy: a[7],
    "flags": lambda a, host, cupy: a.flags.behaved,
    "attribute": lambda a, host, cupy: a.no_such_name,
    "new attribute": lambda a, host, cupy: setattr(a, "no_such_name", 1),
    "hash": lambda a, host, cupy: hash(a),
    "NumPy's number": lambda a, host, cupy: np.float32(a[0, 0]),
}

#: NumPy's words for it.
_OTHER_WORDS = {
    "item with an index",
    "too many indices",
    "index too large",
    "reshape",
    "view of part of rows",
    "view of a number",
}


@pytest.mark.parametrize("name", USED_WRONG)
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_misuse_of_arrays_is_refused_with_the_same_words(real, name):
    host = np.ones((3, 4), np.float32)
    ours, theirs = (
        outcome(USED_WRONG[name], array, host, cupy)
        for array, cupy in zip(pair(real, host.shape), (standin.cupy, real), strict=True)
    )
    if name in _OTHER_WORDS:
        ours, theirs = ours[0], theirs[0]
    assert ours == theirs
