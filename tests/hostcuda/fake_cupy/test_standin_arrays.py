"""Are the arrays and kernels of the stand-in for CuPy as strict as CuPy's, and is its memory as small?"""

import shutil

import hostcompile
import numpy as np
import pytest
import standin
from standin import STATS, Hazard, cupy
from standin_memory import written
from standin_tools import ONES, Functions, add, array, kernel, machine, streams

__all__ = ["machine"]  # a fixture for every test


# ---- memory


def test_arrays_begin_as_nan_at_cupys_alignment():
    for dtype in ("float32", "float64"):
        x = cupy.empty((3, 5), dtype)
        assert np.isnan(x.get()).all() and x.data.ptr % 512 == 0


def test_what_nobody_has_written_is_so_in_a_copy():
    x, y = cupy.empty((2, 3), "float32"), array(np.ones((3, 2), np.float32))
    x[0] = 1
    copied = x.copy()
    copied[:, 2] = copied[:, 1]
    cupy.cuda.Device().synchronize()
    np.testing.assert_array_equal(written(copied._view).all(-1), [[True] * 3, [False] * 3])
    out = cupy.empty((2, 2), "float32")
    cupy.matmul(x, y, out=out)
    with pytest.raises(Hazard, match="matmul reads what nobody has written"):
        out.get()
    x[1] = 2
    cupy.matmul(x, y, out=out)
    assert (out.get()[1] == 6).all()


def test_out_of_memory_says_what_cupy_says():
    standin.configure(memory=10 << 20)
    kept = cupy.empty(1 << 20, "float32")
    so_far = f"{cupy.get_default_memory_pool().total_bytes():,}"
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError) as caught:
        cupy.empty(2 << 20, "float32")
    assert str(caught.value) == f"Out of memory allocating 8,388,608 bytes (allocated so far: {so_far} bytes)."
    del kept
    assert cupy.empty(2 << 20, "float32").size == 2 << 20  # freed blocks go back to the device


def test_freed_memory_stays_in_the_pool():
    pool, device = cupy.get_default_memory_pool(), cupy.cuda.Device()
    pool.free_all_blocks()
    before, used = device.mem_info[0], pool.used_bytes()
    x = cupy.empty(1000, "uint8")
    assert before - device.mem_info[0] == pool.used_bytes() - used == 1024
    assert STATS.allocations == 1 and STATS.peak - STATS.allocated == 0
    del x
    assert pool.free_bytes() == 1024 and device.mem_info[0] == before - 1024
    cupy.empty(500, "uint8")
    assert pool.free_bytes() == 1024 and device.mem_info[0] == before - 1024
    pool.free_all_blocks()
    assert device.mem_info[0] == before


def test_large_arrays_need_no_memory_here_if_nobody_touches_them():
    standin.configure(memory=1 << 33, fill=False)
    x = cupy.zeros(1 << 32, "uint8")
    assert x.nbytes == STATS.memsets << 32
    standin.MACHINE.forget()


def test_a_write_beside_an_array_is_noticed_in_the_end():
    x = array()
    kernel("spoil")((1,), (1,), (x,))
    cupy.cuda.Device().synchronize()
    del x
    with pytest.raises(Hazard, match="wrote beside an array"):
        standin.finish()


def test_an_array_must_live_while_another_stream_than_its_own_uses_it():
    x, (first, second) = array(), streams()
    with first:
        y = array()
        add(y, x)
    del y
    first.synchronize()  # its memory is given to nobody who does not wait for this stream
    with first:
        y = array()
    with second:
        add(y, x)
    del y
    with pytest.raises(Hazard, match="freed while an operation on another stream"):
        second.synchronize()


# ---- as strict as CuPy


REFUSED = {
    "asarray": (TypeError, lambda x: np.asarray(x)),
    "float32": (TypeError, lambda x: np.float32(x[0, 0])),
    "into NumPy": (TypeError, lambda x: np.zeros((2, 3), np.float32).__setitem__(..., x)),
    "copyto": (TypeError, lambda x: np.copyto(np.zeros((2, 3), np.float32), x)),
    "plus NumPy": (TypeError, lambda x: x + ONES),
    "NumPy plus": (TypeError, lambda x: ONES + x),
    "number plus": (TypeError, lambda x: np.float32(1) + x),
    "plus": (TypeError, lambda x: x + x),
    "tanh": (TypeError, lambda x: np.tanh(x)),
    "equal": (TypeError, lambda x: x == 1),
    "equal to NumPy": (TypeError, lambda x: x == ONES),
    "less": (TypeError, lambda x: x < 1),
    "hash": (TypeError, lambda x: hash(x)),
    "memoryview": (TypeError, lambda x: memoryview(x)),
    "sum": (AttributeError, lambda x: x.sum()),
    "behaved": (AttributeError, lambda x: x.flags.behaved),
    "new attribute": (AttributeError, lambda x: setattr(x, "name", "x")),
    "from NumPy": (ValueError, lambda x: x.__setitem__(..., ONES)),
    "fill with NumPy": (ValueError, lambda x: x.fill(ONES)),
    "fill with a list": (TypeError, lambda x: x.fill([1])),
    "half into integers": (TypeError, lambda x: x.view("int32").fill(0.5)),
    "set a list": (TypeError, lambda x: x.set([[1, 2, 3], [4, 5, 6]])),
    "set float64": (TypeError, lambda x: x.set(np.ones((2, 3)))),
    "set another shape": (ValueError, lambda x: x.set(ONES[0])),
    "set part of rows": (RuntimeError, lambda x: x[:, 1:].set(ONES[:, 1:])),
    "get into float64": (TypeError, lambda x: x.get(out=np.ones((2, 3)))),
    "list for an index": (TypeError, lambda x: x[[0, 1]]),
    "array for an index": (TypeError, lambda x: x[x]),
    "bool for an index": (TypeError, lambda x: x[True]),
    "index too large": (IndexError, lambda x: x[2]),
    "reshape": (ValueError, lambda x: x.reshape(5)),
    "reshape that copies": (NotImplementedError, lambda x: x.T.reshape(6)),
    "shapes": (ValueError, lambda x: x.__setitem__(..., x[:, :2])),
    "overlap": (Hazard, lambda x: x[0, 1:].__setitem__(..., x[0, :2])),
    "item": (ValueError, lambda x: x.item()),
    "bool": (ValueError, lambda x: bool(x)),
    "matmul without out": (NotImplementedError, lambda x: cupy.matmul(x, x.T)),
    "matmul of NumPy": (TypeError, lambda x: cupy.matmul(x, ONES.T, out=cupy.empty((2, 2), "float32"))),
    "matmul shapes": (ValueError, lambda x: cupy.matmul(x, x, out=cupy.empty((2, 3), "float32"))),
    "matmul dtypes": (NotImplementedError, lambda x: cupy.matmul(x, x.T, out=cupy.empty((2, 2)))),
    "matmul into an operand": (Hazard, lambda x: cupy.matmul(x[:, :2], x[:, :2].T, out=x.reshape(6)[:4].reshape(2, 2))),
    "negative": (ValueError, lambda x: cupy.empty((2, -1))),
    "float shape": (TypeError, lambda x: cupy.empty(2.0)),
    "unknown name": (AttributeError, lambda x: cupy.array),
    "unknown name of cuda": (AttributeError, lambda x: cupy.cuda.is_available),
    "pinned memory as a list": (TypeError, lambda x: cupy.cuda.alloc_pinned_memory(4)[0]),
    "a graph by hand": (NotImplementedError, lambda x: cupy.cuda.Graph()),
    "an array by hand": (NotImplementedError, lambda x: cupy.ndarray((2, 3))),
}


@pytest.mark.parametrize(("error", "call"), REFUSED.values(), ids=REFUSED)
def test_what_cupy_or_the_stand_in_refuses(error, call):
    with pytest.raises(error):
        call(array())


def test_elements_and_copies_of_arrays(rng):
    values = rng.standard_normal((3, 4)).astype(np.float32)
    x = array(values)
    assert x[1, 2].shape == () and x[1, 2].base is x and float(x[1, 2]) == values[1, 2]
    assert len(x) == 3 and [float(row[0]) for row in x] == list(values[:, 0])
    y = x.copy()
    y[1:, ::2] = x[0, :2]
    y[0] = np.nan
    y[0, :2] = 7
    expected = values.copy()
    expected[1:, ::2], expected[0, :2], expected[0, 2:] = values[0, :2], 7, np.nan
    np.testing.assert_array_equal(y.get(), expected)
    np.testing.assert_array_equal(x.get(), values)


def test_matmul_of_matrices_and_of_many(rng):
    a, b = rng.standard_normal((2, 3)), rng.standard_normal((4, 3, 5))
    out = cupy.empty((4, 2, 5))
    cupy.matmul(array(a), array(b), out=out)
    np.testing.assert_allclose(out.get(), a @ b, rtol=1e-12)
    assert STATS.matmuls == STATS.launches == 1


# ---- kernels


def test_arguments_arrive_as_cupy_passes_them(monkeypatch):
    seen = []
    monkeypatch.setattr(
        Functions, "launch", lambda self, name, grid, block, args, **rest: seen.append((grid, args, rest))
    )
    x = array()
    monkeypatch.setattr(standin, "ORDER", 2)
    kernel("add")((3,), (2, 2), (x[:, 1:], 3, 0.5, np.int32(4), np.float32(2)), shared_mem=16)
    standin.finish()
    ((grid, args, rest),) = seen
    assert grid == (3, 1, 1) and rest["shared"] == 16 and rest["order"] == 2
    assert args[0].strides == (12, 4) and args[0].ctypes.data == x.data.ptr + 4
    assert [type(value) for value in args[1:]] == [np.int64, np.float64, np.int32, np.float32]


@pytest.mark.parametrize(
    ("error", "grid", "block", "args", "shared"),
    [
        (TypeError, [1], (1,), (), 0),
        (TypeError, (1,), (1,), (ONES,), 0),
        (TypeError, (1,), (1,), (None,), 0),
        (RuntimeError, (0,), (1,), (), 0),
        (RuntimeError, (1, 65536), (1,), (), 0),
        (RuntimeError, (1,), (1025,), (), 0),
        (RuntimeError, (1,), (32, 33), (), 0),
        (RuntimeError, (1,), (1, 1, 65), (), 0),
        (RuntimeError, (1,), (1,), (), 48 * 1024 + 1),
    ],
)
def test_launches_that_cannot_be(error, grid, block, args, shared):
    with pytest.raises(error):
        kernel("add")(grid, block, args, shared_mem=shared)


def test_a_module_compiles_when_it_is_asked_for_a_kernel():
    module = cupy.RawModule(code="error", name_expressions=("add",))
    with pytest.raises(cupy.cuda.compiler.CompileException, match="an error"):
        module.get_function("add")
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match="CUDA_ERROR_NOT_FOUND: named symbol not found"):
        cupy.RawModule(code="", name_expressions=("add",)).get_function("add<float>")
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match="CUDA_ERROR_NOT_FOUND"):
        cupy.RawModule(code="__global__ void add() {}").get_function("add")
    with pytest.raises(cupy.cuda.compiler.CompileException, match="--fast"):
        cupy.RawModule(code="", options=("--fast",), name_expressions=("add",)).get_function("add")


SOURCE = """
template <typename T>
__global__ void twice(T* y, const T* x, int count, T factor) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count + OVER) y[i] = factor * x[i];
}
"""


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is needed")


@needs_compiler
@pytest.mark.parametrize("over", [0, 1])
def test_compiled_kernels_run_and_their_faults_name_the_launch(monkeypatch, over):
    monkeypatch.setattr(standin, "COMPILER", hostcompile.Module)
    source = SOURCE.replace("OVER", str(over))
    module = cupy.RawModule(code=source, options=("--std=c++17",), name_expressions=("twice<float>",))
    x, y = array(), cupy.empty((2, 3), "float32")
    module.get_function("twice<float>")((1,), (32,), (y, x, np.int32(6), np.float32(2)))
    if not over:
        assert (y.get() == 2).all()
        return
    with pytest.raises(hostcompile.KernelFault) as caught:
        y.get()
    (note,) = caught.value.__notes__
    assert "launch of twice<float>" in note and "test_standin_arrays.py" in note


@needs_compiler
def test_a_fault_of_an_argument_names_the_launch(monkeypatch):
    """A Python float is a double for CuPy, whatever the kernel takes."""
    monkeypatch.setattr(standin, "COMPILER", hostcompile.Module)
    module = cupy.RawModule(code=SOURCE.replace("OVER", "0"), name_expressions=("twice<float>",))
    module.get_function("twice<float>")((1,), (32,), (array(), array(), np.int32(6), 2.0))
    with pytest.raises(hostcompile.LaunchError, match="argument 3"):
        standin.finish()


# ---- the machine


def test_machines_without_a_gpu():
    error = cupy.cuda.runtime.CUDARuntimeError
    for facts, text in (({"driver": None}, "cudaErrorInsufficientDriver"), ({"devices": 0}, "cudaErrorNoDevice")):
        standin.configure(**facts)
        for call in (cupy.cuda.runtime.getDeviceCount, cupy.cuda.Device, cupy.cuda.Stream, lambda: cupy.empty(3)):
            with pytest.raises(error, match=text):
                call()


def test_a_machine_without_nvrtc():
    standin.configure(nvrtc=False)
    module = cupy.RawModule(code='extern "C" __global__ void probe() {}')
    with pytest.raises(RuntimeError, match=r'^Failure finding "libnvrtc.so'):
        module.get_function("probe")


def test_what_the_machine_is():
    standin.configure(compute_capability="61", memory=1 << 30, name="Old")
    device = cupy.cuda.Device()
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    assert device.compute_capability == "61" and device.mem_info[1] == 1 << 30
    assert properties["name"] == b"Old" and (properties["major"], properties["minor"]) == (6, 1)
