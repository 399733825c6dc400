"""The device behind the stand-in for CuPy: its facts, and streams that run nothing before they must.

An operation (a launch, a copy, an event) waits in its stream's queue until something forces it. Which operations must
come before which is known exactly: those of one stream in order, those behind an event's wait after the event, those of
the null stream after and before all of every blocking stream. Whatever CUDA leaves open is decided by `SCHEDULES`:

lazy
    only what is needed to answer the host, as late as possible: a missing wait reads old numbers
eager
    every operation at once, in the order of the program
random
    some operation that may run, by a seed
"""

import random
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

SCHEDULES = ("lazy", "eager", "random")
TEXTS = {
    35: "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version",
    100: "cudaErrorNoDevice: no CUDA-capable device is detected",
    101: "cudaErrorInvalidDevice: invalid device ordinal",
    400: "cudaErrorInvalidResourceHandle: invalid resource handle",
    401: "cudaErrorIllegalState: the operation cannot be performed in the present state",
    600: "cudaErrorNotReady: device not ready",
    900: "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing",
    901: "cudaErrorStreamCaptureInvalidated: operation failed due to a previous error during capture",
    905: "cudaErrorStreamCaptureIsolation: dependency created on uncaptured work in another stream",
    906: "cudaErrorStreamCaptureImplicit: operation would make the legacy stream depend on a capturing blocking stream",
    907: "cudaErrorCapturedEvent: operation not permitted on an event last recorded in a capturing stream",
}
RUNTIME = 12090  # version of CUDA
UNSUPPORTED, INVALIDATED, ISOLATION, IMPLICIT, CAPTURED = 900, 901, 905, 906, 907


class CUDARuntimeError(RuntimeError):
    """An error of the CUDA runtime, with its text."""

    def __init__(self, status):
        self.status = status
        super().__init__(TEXTS[status])


class OutOfMemoryError(MemoryError):
    """What CuPy raises when the device has no room, with its text."""

    def __init__(self, size, total, limit=0):
        known = f"allocated so far: {total:,} bytes" + (f", limit set to: {limit:,} bytes" if limit else "")
        super().__init__(f"Out of memory allocating {size:,} bytes ({known}).")


class Hazard(RuntimeError):
    """A mistake that CUDA does not report: it would compute wrong numbers, some day."""


@dataclass
class Facts:
    """What the simulated machine is; see `standin.configure`."""

    devices: int = 1
    compute_capability: str = "80"
    memory: int = 8 << 30
    name: str = "Stand-in GPU"
    driver: int | None = 12090
    nvrtc: bool = True
    nccl: bool = False
    fill: bool = True


@dataclass
class Stats:
    """Counts since the last `reset`; `allocated` and `peak` are bytes as CuPy's pool rounds them.

    `launches` counts kernels, fills and copies on the device that were asked for one by one, `captured` those that went
    into a graph instead, and `graph_launches` whole graphs. `matmuls` counts the launches among them that are cuBLAS's.
    """

    launches: int = 0
    graph_launches: int = 0
    captured: int = 0
    matmuls: int = 0
    memsets: int = 0
    memcpys: int = 0
    syncs: int = 0
    allocations: int = 0
    allocated: int = 0
    peak: int = 0

    def reset(self) -> None:
        """Start counting anew; memory that is in use stays in use."""
        in_use = self.allocated
        for field in fields(self):
            setattr(self, field.name, 0)
        self.allocated = self.peak = in_use


STATS = Stats()


class Use(Protocol):
    """An operation's interest in memory that it does not keep."""

    @property
    def is_alive(self) -> bool: ...

    def check(self, queue: "Queue") -> None: ...


class Operation:
    """Something that a stream is to do, and what must be done before."""

    __slots__ = ("before", "done", "note", "queue", "run", "uses")

    def __init__(self, queue: "Queue", what: str, run: Callable[[], None], uses: Iterable[Use] = ()):
        self.queue, self.run, self.uses = queue, run, tuple(uses)
        self.note = f"{what}, asked for in {_caller()}"
        self.before: list[Operation] = []
        self.done = False

    def require_arrays(self) -> None:
        """Complain if an array is gone: a graph has only its address."""
        if not all(use.is_alive for use in self.uses):
            raise Hazard(f"an array that a graph uses was freed ({self.note})")

    def make(self) -> None:
        """Do it now."""
        try:
            for use in self.uses:
                use.check(self.queue)
            self.run()
        except Exception as error:
            error.add_note(self.note)
            raise


def _caller() -> str:
    """The line outside of the stand-in that is responsible."""
    frame = sys._getframe(1)
    while frame.f_back is not None and Path(frame.f_code.co_filename).stem in _OWN:
        frame = frame.f_back
    return f"{frame.f_code.co_name}, {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


_OWN = {"standin", "standin_arrays", "standin_device", "standin_functions", "standin_memory", "standin_streams"}


class Capture:
    """Operations that are recorded instead of done."""

    def __init__(self):
        self.operations: list[Operation] = []
        self.valid = True


class Queue:
    """The waiting operations of a stream."""

    def __init__(self, blocking: bool):
        self.blocking = blocking
        self.waiting: deque[Operation] = deque()
        self.capture: Capture | None = None


class Machine:
    """The simulated GPU and its runtime."""

    def __init__(self):
        self.facts = Facts()
        self.schedule, self.random = "lazy", random.Random(0)
        self.device = 0  # the current one
        self.null = Queue(blocking=True)
        self.broken = 0  # allocations whose guard zones were written to
        self._queues: list[weakref.ref[Queue]] = []
        self._busy: dict[int, Queue] = {}  # what waits is done even if nobody holds its stream any more
        self._lock = threading.RLock()

    def require(self) -> None:
        """Raise as CUDA does where there is no GPU, or a driver of an older major version than the runtime."""
        if self.facts.driver is None or self.facts.driver // 1000 < RUNTIME // 1000:
            raise CUDARuntimeError(35)
        if not self.facts.devices:
            raise CUDARuntimeError(100)

    def queue(self, blocking: bool) -> Queue:
        """A new stream's queue."""
        self.require()
        queue = Queue(blocking)
        self._queues = [ref for ref in self._queues if ref() is not None]
        self._queues.append(weakref.ref(queue))
        return queue

    def capturing(self) -> list[Queue]:
        """The queues that record a graph."""
        return [queue for ref in self._queues if (queue := ref()) is not None and queue.capture is not None]

    def refuse_in_capture(self, status: int = UNSUPPORTED) -> None:
        """Raise, and spoil the graph, if one is being captured: for what cannot be done then."""
        for queue in self.capturing():
            assert queue.capture is not None
            queue.capture.valid = False
        if self.capturing():
            raise CUDARuntimeError(status)

    # ---- asking

    def ask(
        self,
        queue: Queue,
        what: str,
        run: Callable[[], None],
        uses: Iterable[Use] = (),
        after: Operation | None = None,
        is_launch: bool = False,
    ) -> Operation:
        """Put an operation into a queue, or into the graph that it captures."""
        with self._lock:
            self.require()
            operation = Operation(queue, what, run, uses)
            if queue is self.null:
                self.refuse_in_capture(IMPLICIT)
            elif queue.capture is not None:
                if not queue.capture.valid:
                    raise CUDARuntimeError(INVALIDATED)
                if after is not None:
                    self.refuse_in_capture(ISOLATION)
                queue.capture.operations.append(operation)
                STATS.captured += is_launch
                return operation
            STATS.launches += is_launch
            operation.before = self._before(queue) + ([after] if after is not None else [])
            queue.waiting.append(operation)
            self._busy[id(queue)] = queue
            if self.schedule == "eager":
                self.force(operation)
            while self.schedule == "random" and self.random.random() < 0.5 and self._make_any():
                pass
            return operation

    def _before(self, queue: Queue) -> list[Operation]:
        """The last operations of the other queues that the next one of `queue` comes after."""
        others: Iterable[Queue] = ()
        if queue is self.null:
            others = [other for other in self._busy.values() if other.blocking and other is not queue]
        elif queue.blocking:
            others = [self.null]
        return [other.waiting[-1] for other in others if other.waiting]

    # ---- doing

    def force(self, operation: Operation) -> None:
        """Return when it is done."""
        with self._lock:
            while not operation.done:
                if self.schedule == "random":
                    self._make_any()
                else:
                    self._make(self._first_needed(operation))

    def has_done(self, operation: Operation | None) -> bool:
        """Whether it was done when asked; who asks again and again gets it done."""
        with self._lock:
            if operation is None or operation.done:
                return True
            self._make(self._first_needed(operation))
            return False

    @staticmethod
    def _first_needed(operation: Operation) -> Operation:
        """What must be done next for it."""
        while True:
            head = operation.queue.waiting[0]
            missing = next((one for one in head.before if not one.done), None)
            if missing is None:
                return head
            operation = missing

    def _make_any(self) -> bool:
        heads = [queue.waiting[0] for queue in self._busy.values()]
        ready = [head for head in heads if all(one.done for one in head.before)]
        if ready:
            self._make(self.random.choice(ready))
        return bool(ready)

    def _make(self, operation: Operation) -> None:
        queue = operation.queue
        taken = queue.waiting.popleft()
        assert taken is operation, "a stream keeps its order"
        if not queue.waiting:
            del self._busy[id(queue)]
        operation.before, operation.done = [], True  # also if it fails: nobody could go on otherwise
        operation.make()

    def drain(self, queue: Queue | None = None) -> None:
        """Do all that waits, in one queue or in all."""
        with self._lock:
            if queue is not None:
                if queue.waiting:
                    self.force(queue.waiting[-1])
                return
            while self._busy:
                self.drain(next(iter(self._busy.values())))

    def synchronise(self, queue: Queue | None = None) -> None:
        """The host waits for a stream, or for all."""
        self.require()
        self.refuse_in_capture()
        STATS.syncs += 1
        self.drain(queue)

    def forget(self) -> None:
        """Drop all that waits and every capture: after a failure, or between tests."""
        for queue in list(self._busy.values()):
            queue.waiting.clear()
        self._busy.clear()
        for queue in self.capturing():
            queue.capture = None
        self.broken = 0


MACHINE = Machine()
now = time.perf_counter
