"""Streams, events, graphs and the device of the stand-in for CuPy, as thin as CuPy's own."""

import threading

from standin_device import CAPTURED, ISOLATION, MACHINE, STATS, UNSUPPORTED, Capture, CUDARuntimeError, Operation, now
from standin_memory import POOL

_ILLEGAL_STATE, _INVALID_HANDLE, _NOT_READY = 401, 400, 600


class Stream:
    """A queue of operations, and the current one inside a ``with`` block."""

    null: "Stream"

    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        if ptds or priority is not None:
            raise NotImplementedError("outside of the stand-in: ptds and priority")
        self._queue = MACHINE.null if null else MACHINE.queue(blocking=not non_blocking)

    def __eq__(self, other):
        return isinstance(other, Stream) and self._queue is other._queue

    def __hash__(self):
        return id(self._queue)

    def __enter__(self):
        MACHINE.require()
        _streams().append(self)
        return self

    def __exit__(self, *args):
        _streams().pop()

    @property
    def done(self):
        """Whether nothing waits."""
        MACHINE.require()
        MACHINE.refuse_in_capture()
        waiting = self._queue.waiting
        return MACHINE.has_done(waiting[-1] if waiting else None)

    def synchronize(self):
        """Wait for all that was asked of this stream."""
        MACHINE.synchronise(self._queue)

    def record(self, event=None):
        """Put an event behind what was asked so far."""
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event):
        """Let what is asked from now on come after the event."""
        MACHINE.require()
        capture = self._queue.capture
        if event._capture is not None:
            if event._capture is not capture:  # CUDA would draw this stream into the graph
                MACHINE.refuse_in_capture(UNSUPPORTED)
                raise CUDARuntimeError(CAPTURED)
        elif capture is not None:
            MACHINE.refuse_in_capture(ISOLATION)
        elif event._operation is not None and not event._operation.done:
            MACHINE.ask(self._queue, "wait for an event", lambda: None, after=event._operation)

    def begin_capture(self, mode=None):
        """Record what is asked of this stream instead of doing it."""
        MACHINE.require()
        if mode is not None:
            raise NotImplementedError("outside of the stand-in: a mode of capture")
        if self._queue is MACHINE.null:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self._queue.capture is not None:
            raise CUDARuntimeError(_ILLEGAL_STATE)
        if MACHINE.capturing():
            raise NotImplementedError("outside of the stand-in: two captures at a time")
        self._queue.capture = Capture()

    def end_capture(self):
        """The graph of what was recorded."""
        MACHINE.require()
        capture, self._queue.capture = self._queue.capture, None
        if capture is None:
            raise CUDARuntimeError(_ILLEGAL_STATE)
        if not capture.valid:
            raise CUDARuntimeError(901)
        return Graph._make(capture.operations)

    def is_capturing(self):
        """Whether a graph is being recorded."""
        return self._queue.capture is not None


_current = threading.local()


def _streams() -> list[Stream]:
    """The streams whose ``with`` blocks this thread is in."""
    if not hasattr(_current, "streams"):
        _current.streams = []
    return _current.streams


def get_current_stream(device_id=-1):
    """The innermost stream of a ``with`` block, else the null stream."""
    MACHINE.require()
    return _streams()[-1] if _streams() else Stream.null


Stream.null = Stream(null=True)


class Event:
    """A place in a stream."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        MACHINE.require()
        if block or interprocess:
            raise NotImplementedError("outside of the stand-in: block and interprocess")
        self._timed = not disable_timing
        self._operation: Operation | None = None
        self._capture: Capture | None = None
        self._time = 0.0

    def record(self, stream=None):
        """Move this event behind what was asked of a stream, or of the current one, so far."""
        queue = (stream or get_current_stream())._queue

        def note_time() -> None:
            self._time = now()

        operation = MACHINE.ask(queue, "record an event", note_time)
        self._capture = queue.capture
        self._operation = None if self._capture else operation

    @property
    def done(self):
        """Whether all in front of it is done; it is before its first `record`."""
        self._refuse()
        return MACHINE.has_done(self._operation)

    def synchronize(self):
        """Wait until all in front of it is done."""
        self._refuse()
        STATS.syncs += 1
        if self._operation is not None:
            MACHINE.force(self._operation)

    def _refuse(self) -> None:
        MACHINE.require()
        MACHINE.refuse_in_capture()
        if self._capture is not None:
            raise CUDARuntimeError(CAPTURED)


def get_elapsed_time(start_event, end_event):
    """Milliseconds between two events that have been reached."""
    for event in (start_event, end_event):
        if not event._timed or event._operation is None:
            raise CUDARuntimeError(_INVALID_HANDLE)
        if not event._operation.done:
            raise CUDARuntimeError(_NOT_READY)
    return 1e3 * (end_event._time - start_event._time)


class Graph:
    """Recorded operations, to be launched as one; it does not keep the arrays that they use."""

    def __init__(self, *args, **kwargs):
        raise NotImplementedError(
            "currently this class cannot be initiated by the user and must be created via stream capture"
        )

    @classmethod
    def _make(cls, operations: list[Operation]) -> "Graph":
        graph = object.__new__(cls)
        graph._operations = operations
        return graph

    _operations: list[Operation]

    def launch(self, stream=None):
        """Ask for all operations on a stream, or on the current one."""
        stream = stream or get_current_stream()
        if MACHINE.capturing():
            raise NotImplementedError("outside of the stand-in: a graph in a graph")
        for operation in self._operations:
            operation.require_arrays()
        STATS.graph_launches += 1
        MACHINE.ask(stream._queue, "launch of a graph", self._run)

    def _run(self) -> None:
        for operation in self._operations:
            operation.require_arrays()
            operation.make()


class Device:
    """The simulated GPU."""

    def __init__(self, device=None):
        MACHINE.require()
        self.id = MACHINE.device if device is None else device
        if not 0 <= self.id < MACHINE.facts.devices:
            raise CUDARuntimeError(101)

    def use(self):
        """Make it the current one; all have the one memory here."""
        MACHINE.device = self.id

    @property
    def compute_capability(self):
        """Such as "80"."""
        return MACHINE.facts.compute_capability

    @property
    def mem_info(self):
        """Free bytes and all bytes."""
        return MACHINE.facts.memory - POOL.total_bytes(), MACHINE.facts.memory

    def synchronize(self):
        """Wait for all streams."""
        MACHINE.synchronise()
