"""Memory of the stand-in for CuPy: blocks between guard zones, a pool that counts as CuPy's does, pinned memory."""

import ctypes
import gc
import weakref
from typing import ClassVar

import hostcompile
import numpy as np
from standin_device import MACHINE, STATS, Hazard, OutOfMemoryError, Queue

_GRAIN = 512  # bytes that CuPy's pools round to, and their alignment
_UNSET = 0xFF  # every float of such bytes is NaN


class Memory:
    """An allocation: a block of exactly its bytes between guard zones, all of it 0xFF.

    Arrays hold it and operations that wait do not, as on a GPU; what they would read then is told from weak references.
    """

    def __init__(self, nbytes: int, arena: "Queue"):
        self.nbytes, self.arena = nbytes, arena
        # A view's bytes stay while an operation holds them, also when this object is gone.
        self.block = np.empty(nbytes + 3 * _GRAIN if nbytes else 0, np.uint8)
        first = -self.block.ctypes.data % _GRAIN + _GRAIN if nbytes else 0
        self.bytes = self.block[first : first + nbytes]
        self.guards = self.block[:first], self.block[first + nbytes :]
        for zone in (*self.guards, self.bytes) if MACHINE.facts.fill else self.guards:
            zone[...] = _UNSET
        if MACHINE.facts.fill:
            hostcompile.track(self.bytes)


def written(view: np.ndarray) -> np.ndarray | None:
    """Which bytes of a view have been written to, in its shape and one more axis; None if nobody keeps account."""
    known = hostcompile._known(view) if view.size else None
    if known is None:
        return None
    return np.lib.stride_tricks.as_strided(known, (*view.shape, view.itemsize), (*view.strides, 1))


class Use:
    """An operation's interest in an allocation, which it does not keep."""

    def __init__(self, memory: Memory):
        self._memory, self._arena = weakref.ref(memory), memory.arena

    @property
    def is_alive(self) -> bool:
        return self._memory() is not None

    def check(self, queue: "Queue") -> None:
        """Complain if the memory is free by now and may have been given to somebody who does not wait for `queue`."""
        if self.is_alive or self._arena is queue or (self._arena is MACHINE.null and queue.blocking):
            return
        raise Hazard("an array was freed while an operation on another stream than its own still waited")


class MemoryPool:
    """Counts device memory as CuPy's pool does: freed blocks stay with it, each for the stream it was made for."""

    def __init__(self):
        self._held = 0  # bytes that the device has given away
        self._free: dict[int, list[int]] = {}  # queue -> sizes of blocks

    def _allocate(self, nbytes: int, queue: Queue) -> Memory:
        """A block, or `OutOfMemoryError`."""
        size = -(-nbytes // _GRAIN) * _GRAIN
        sizes = self._free.setdefault(id(queue), [])
        fitting = min((one for one in sizes if one >= size), default=None)
        if not size:
            pass
        elif fitting is not None:
            sizes.remove(fitting)
            sizes.extend([fitting - size] if fitting > size else [])
        else:
            self._take(size)
        memory = Memory(nbytes, queue)
        STATS.allocations += 1
        STATS.allocated += size
        STATS.peak = max(STATS.peak, STATS.allocated)
        weakref.finalize(memory, self._release, id(queue), size, memory.guards).atexit = False
        return memory

    def _take(self, size: int) -> None:
        limit = MACHINE.facts.memory
        if self._held + size > limit:
            gc.collect()
            held = self._held
            self.free_all_blocks()
            if self._held + size > limit:
                raise OutOfMemoryError(size, held)
        self._held += size

    def _release(self, queue: int, size: int, guards: tuple[np.ndarray, ...]) -> None:
        STATS.allocated -= size
        self._free.setdefault(queue, []).extend([size] if size else [])
        if any((zone != _UNSET).any() for zone in guards):
            MACHINE.broken += 1

    def free_bytes(self):
        """Bytes that it keeps and nobody uses."""
        return sum(map(sum, self._free.values()))

    def total_bytes(self):
        """Bytes that it has from the device."""
        return self._held

    def used_bytes(self):
        """Bytes that arrays use."""
        return self._held - self.free_bytes()

    def free_all_blocks(self, stream=None):
        """Give the device back what nobody uses."""
        if stream is not None:
            raise NotImplementedError("outside of the stand-in: the free blocks of one stream")
        MACHINE.refuse_in_capture()
        self._held -= self.free_bytes()
        self._free.clear()


POOL = MemoryPool()


# ---- pinned memory


class PinnedMemoryPointer(ctypes.Array):
    """Memory of the host that copies read and write while the host goes on; only its buffer can be used."""

    _type_, _length_ = ctypes.c_byte, 1

    def _refuse(self, *args):
        raise TypeError("outside of the stand-in: pinned memory is used through np.frombuffer")

    __getitem__ = __setitem__ = __len__ = __iter__ = _refuse  # pyright: ignore[reportAssignmentType]


class PinnedMemory:
    """A part of pinned memory, as an operation that waits knows it: by address."""

    _blocks: ClassVar["weakref.WeakValueDictionary[int, PinnedMemoryPointer]"] = weakref.WeakValueDictionary()

    def __init__(self, owner: PinnedMemoryPointer, array: np.ndarray):
        self._owner = weakref.ref(owner)
        self._offset = array.ctypes.data - ctypes.addressof(owner)
        self._layout = array.shape, array.dtype, array.strides

    @classmethod
    def of(cls, array: np.ndarray) -> "PinnedMemory | None":
        """The pinned memory that an array lies in, if it does."""
        first, last = array.ctypes.data, array.ctypes.data + array.nbytes
        for address, owner in list(cls._blocks.items()):
            if address <= first and last <= address + ctypes.sizeof(owner):
                return cls(owner, array)
        return None

    def array(self) -> np.ndarray:
        """What lies there now."""
        owner = self._owner()
        if owner is None:
            raise Hazard("pinned memory was freed while a copy still waited")
        shape, dtype, strides = self._layout
        return np.ndarray(shape, dtype, owner, self._offset, strides)


def alloc_pinned_memory(size):
    """At least `size` bytes of pinned memory, of any content."""
    MACHINE.require()
    MACHINE.refuse_in_capture()
    whole = -(-size // _GRAIN) * _GRAIN
    kind = type("PinnedMemoryPointer", (PinnedMemoryPointer,), {"_type_": ctypes.c_byte, "_length_": whole})
    memory = kind()
    ctypes.memset(memory, 0xFF, whole)
    PinnedMemory._blocks[ctypes.addressof(memory)] = memory
    return memory
