"""Arrays of the stand-in for CuPy: what the backend "cupy" and its tests use of them, as strict as CuPy's."""

import math
from types import EllipsisType

import hostcompile
import numpy as np
from standin_device import MACHINE, STATS, Hazard, Operation
from standin_memory import POOL, Memory, PinnedMemory, Use, written
from standin_streams import Device, Stream, get_current_stream

_INDEX_TYPES = (int, np.integer, slice, EllipsisType, type(None))


class Flags:
    """Which layouts an array has."""

    __slots__ = ("c_contiguous", "f_contiguous", "owndata")

    def __init__(self, c_contiguous, f_contiguous, owndata):
        self.c_contiguous, self.f_contiguous, self.owndata = c_contiguous, f_contiguous, owndata


class MemoryPointer:
    """Where an array begins."""

    __slots__ = ("_array", "ptr")

    def __init__(self, array: "ndarray"):
        self._array = array
        # 0 for an allocation of nothing
        self.ptr = array._view.__array_interface__["data"][0] if array._memory.nbytes else 0

    def copy_from_device_async(self, src, size, stream=None):
        """Copy the bytes of one whole array to another."""
        target, source = self._array, src._array
        alike = target.dtype == source.dtype and target.flags.c_contiguous and source.flags.c_contiguous
        if not (alike and target.nbytes == source.nbytes == size):
            raise NotImplementedError("outside of the stand-in: a copy of other than a whole array's bytes")
        STATS.memcpys += 1
        values = source._view.reshape(target.shape)
        target._ask("copy on the device", lambda view: _copy(view, values), source, stream=stream)


class ndarray:
    """An array on the simulated device.

    It has a NumPy view of the simulated memory and is none: whatever CuPy does not do with an array, or this project
    does not use, is missing here and raises.
    """

    __slots__ = ("__weakref__", "_memory", "_view", "base")

    def __init__(self, *args, **kwargs):
        raise NotImplementedError("outside of the stand-in: make arrays with cupy.empty or cupy.zeros")

    @classmethod
    def _make(cls, view: np.ndarray, memory: Memory, base: "ndarray | None" = None) -> "ndarray":
        array = object.__new__(cls)
        array._view, array._memory, array.base = view, memory, base
        return array

    @classmethod
    def _new(cls, shape: tuple[int, ...], dtype: np.dtype) -> "ndarray":
        MACHINE.require()
        MACHINE.refuse_in_capture()  # the pool may have to ask the device for memory
        memory = POOL._allocate(math.prod(shape) * dtype.itemsize, get_current_stream()._queue)
        if memory.nbytes:
            return cls._make(memory.bytes.view(dtype).reshape(shape), memory)
        # CuPy gives an array without elements strides of 0.
        return cls._make(np.ndarray(shape, dtype, memory.bytes, strides=(0,) * len(shape)), memory)

    def _of(self, view: np.ndarray) -> "ndarray":
        """Another array in the same memory."""
        return self._make(view, self._memory, self if self.base is None else self.base)

    # ---- what it is

    shape = property(lambda self: self._view.shape)
    dtype = property(lambda self: self._view.dtype)
    ndim = property(lambda self: self._view.ndim)
    size = property(lambda self: self._view.size)
    itemsize = property(lambda self: self._view.itemsize)
    nbytes = property(lambda self: self._view.nbytes)
    strides = property(lambda self: self._view.strides)
    device = property(lambda self: Device(0))

    @property
    def flags(self) -> Flags:
        """Layouts, and nothing of what else NumPy's flags tell."""
        flags = self._view.flags
        return Flags(flags.c_contiguous, flags.f_contiguous, self.base is None)

    @property
    def data(self) -> MemoryPointer:
        """Where it begins."""
        return MemoryPointer(self)

    def __len__(self):
        if not self.ndim:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    # ---- views

    def __getitem__(self, slices):
        index = slices if isinstance(slices, tuple) else (slices,)
        for one in index:
            if not isinstance(one, _INDEX_TYPES) or isinstance(one, bool):
                raise TypeError(f"outside of the stand-in: an index of type {type(one).__name__}")
        if not any(one is Ellipsis for one in index):
            index = (*index, ...)  # NumPy would make a number of an element, CuPy makes an array
        return self._of(self._view[index])

    def __iter__(self):
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(self.shape[0]))

    def reshape(self, *shape, order="C", copy=None):
        """A view of another shape; CuPy would copy where there is none."""
        only(order=(order, "C"), copy=(copy, None))
        view = self._view.reshape(*shape)
        if view.size and not np.may_share_memory(view, self._view):
            raise NotImplementedError("outside of the stand-in: a reshape that copies")
        return self._of(view)

    def view(self, dtype=None, type=None):
        """The same bytes as another dtype."""
        only(type=(type, None))
        return self._of(self._view.view() if dtype is None else self._view.view(dtype))

    def transpose(self, *axes):
        """A view with axes in another order."""
        return self._of(self._view.transpose(*axes))

    T = property(lambda self: self if self.ndim < 2 else self.transpose())

    # ---- on the device

    def copy(self, order="C"):
        """A contiguous copy, made on the current stream."""
        only(order=(order, "C"))
        result = self._new(self.shape, self.dtype)
        result[...] = self
        return result

    def fill(self, value):
        """Every element one number."""
        if isinstance(value, np.ndarray) and value.shape != ():
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        if not isinstance(value, (int, float, np.bool_, np.number, np.ndarray)):
            raise TypeError(f"outside of the stand-in: a fill with {type(value).__name__}")
        number = np.asarray(value).astype(self.dtype)
        if not np.array_equal(number, value, equal_nan=True) and self.dtype.kind != "f":
            raise TypeError(f"outside of the stand-in: {value!r} is no {self.dtype}")
        if not self.size:
            return
        is_memset = number == 0 and self.flags.c_contiguous
        STATS.memsets += int(is_memset)
        self._ask("fill", lambda view: write(view, number), is_launch=not is_memset)

    def __setitem__(self, slices, value):
        target = self[slices]
        if not isinstance(value, ndarray):
            target.fill(value)
            return
        source = value._view
        while source.ndim > target.ndim and source.shape[0] == 1:
            source = source[0]
        source = np.broadcast_to(source, target.shape)  # raises ValueError as CuPy does
        if not target.size:
            return
        if np.shares_memory(source, target._view):
            raise Hazard("a copy between parts of one array that overlap: threads would race")
        target._ask("copy on the device", lambda view: _copy(view, source), value, is_launch=True)

    def _ask(
        self, what: str, run, *others: "ndarray", stream: Stream | None = None, is_launch: bool = False
    ) -> Operation:
        """Have `run` called with this array's memory when its turn comes."""
        queue = (stream or get_current_stream())._queue
        view = self._view
        uses = [Use(array._memory) for array in (self, *others)]
        return MACHINE.ask(queue, what, lambda: run(view), uses, is_launch=is_launch)

    # ---- from and to the host

    def set(self, arr, stream=None):
        """Copy a NumPy array to the device: pinned memory is read when the copy's turn comes, other memory now."""
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if self.dtype != arr.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if self.shape != arr.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if self.flags.c_contiguous:
            arr = np.ascontiguousarray(arr).reshape(self.shape)  # it makes a vector of a number
        elif self.flags.f_contiguous:
            arr = np.asfortranarray(arr)
        else:
            raise RuntimeError("Cannot set to non-contiguous array")
        STATS.memcpys += 1
        pinned = PinnedMemory.of(arr)
        if pinned is None:
            MACHINE.refuse_in_capture()
            values = arr.copy(order="K")
            self._ask("copy from the host", lambda view: write(view, values), stream=stream)
        else:
            self._ask("copy from pinned memory", lambda view: write(view, pinned.array()), stream=stream)

    def get(self, stream=None, order="C", out=None, blocking=True):
        """A NumPy array of the numbers, in `out` if given; the host waits unless it is pinned and not `blocking`."""
        only(order=(order, "C"))
        stream = stream or get_current_stream()
        if out is not None:
            self._check_out(out)
        elif not self.size:
            return np.ndarray(self.shape, self.dtype)
        result = np.empty(self.shape, self.dtype) if out is None else out
        source = self
        if not self.flags.c_contiguous:
            with stream:
                source = self.copy()
        STATS.memcpys += 1
        pinned = PinnedMemory.of(result)
        where = (lambda: result) if pinned is None else pinned.array
        operation = source._ask("copy to the host", lambda view: np.copyto(where(), view), stream=stream)
        if blocking:
            stream.synchronize()
        elif pinned is None:
            MACHINE.force(operation)
        return result

    def _check_out(self, out: np.ndarray) -> None:
        if not isinstance(out, np.ndarray):
            raise TypeError("Only numpy.ndarray can be obtained fromcupy.ndarray")
        if self.dtype != out.dtype:
            raise TypeError(f"{out.dtype} array cannot be obtained from {self.dtype} array")
        if self.shape != out.shape:
            raise ValueError(f"Shape mismatch. Expected shape: {self.shape}, actual shape: {out.shape}")
        if not out.flags.c_contiguous:
            raise RuntimeError("`out` cannot be specified when copying to non-contiguous ndarray")

    def item(self):
        """The only element, as a Python number."""
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def __float__(self):
        return float(self.get())

    def __int__(self):
        return int(self.get())

    def __bool__(self):
        if self.size != 1:
            raise ValueError(
                "The truth value of an array with more than one element is ambiguous. Use a.any() or a.all()"
            )
        return bool(self.get())

    # ---- what would be wrong

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        raise TypeError(f"Unsupported type {np.ndarray}, or outside of the stand-in: {ufunc.__name__}")

    def __array_function__(self, func, types, args, kwargs):
        raise TypeError(f"outside of the stand-in: {func.__name__}")

    def _compare(self, other):
        raise TypeError("outside of the stand-in: comparison of arrays")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _compare
    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self):
        return f"<array of the stand-in, shape {self.shape}, {self.dtype}>"


def only(**arguments: tuple) -> None:
    """Refuse an argument that CuPy has and this project does not use."""
    for name, (value, expected) in arguments.items():
        if value is not expected and not (isinstance(value, str) and value == expected):
            raise NotImplementedError(f"outside of the stand-in: {name}={value!r}")


def write(view: np.ndarray, values: np.ndarray) -> None:
    """Put numbers into the device's memory."""
    view[...] = values
    hostcompile.mark_initialised(view)


def _copy(view: np.ndarray, source: np.ndarray) -> None:
    np.copyto(view, source, casting="unsafe")
    ours, theirs = written(view), written(source)
    if ours is not None:  # what nobody has written is so in the copy as well
        ours[...] = 1 if theirs is None else theirs.all(-1, keepdims=True)
