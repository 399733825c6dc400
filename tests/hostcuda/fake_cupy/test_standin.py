"""Does the stand-in for CuPy keep CUDA's rules of streams, copies and graphs, and show who breaks them?"""

import numpy as np
import pytest
import standin
from standin import STATS, Hazard, cupy
from standin_tools import ONES, add, array, copy, kernel, machine, now, pinned, streams

__all__ = ["machine"]  # a fixture for every test


# ---- order


def test_nothing_runs_before_it_is_needed():
    x, y, (stream, other) = array(), array(), streams()
    with stream:
        add(y, x)
    other.synchronize()
    assert (now(y) == 1).all()
    stream.synchronize()
    assert (now(y) == 2).all()


def test_one_stream_keeps_its_order():
    x, y, (stream,) = array(), array(), streams(1)
    with stream:
        add(y, x, 2)
        copy(x, y)
        add(y, x)
        assert (y.get() == 6).all()


def test_without_a_wait_another_stream_reads_old_numbers():
    x, y, (first, second) = array(0 * ONES), array(0 * ONES), streams()
    with first:
        x.fill(5)
    with second:
        copy(y, x)
    second.synchronize()
    assert (now(y) == 0).all()
    first.synchronize()


def test_with_a_wait_it_reads_the_new_ones():
    x, y, (first, second) = array(0 * ONES), array(0 * ONES), streams()
    with first:
        x.fill(5)
    second.wait_event(first.record())
    with second:
        copy(y, x)
    second.synchronize()
    assert (now(y) == 5).all()


def test_a_wait_is_for_what_the_event_was_then():
    x, y, (first, second) = array(0 * ONES), array(0 * ONES), streams()
    event = cupy.cuda.Event(disable_timing=True)
    second.wait_event(event)  # recorded never: nothing to wait for
    event.record(first)
    second.wait_event(event)
    with first:
        x.fill(5)
    event.record(first)
    with second:
        copy(y, x)
    second.synchronize()
    assert (now(y) == 0).all()
    event.synchronize()
    assert (now(x) == 5).all()


def test_an_event_that_was_never_recorded_is_done():
    event = cupy.cuda.Event()
    assert event.done
    event.synchronize()


def test_who_asks_again_and_again_gets_an_answer():
    x, (stream,) = array(), streams(1)
    with stream:
        for number in range(5):
            x.fill(number)
    event = stream.record()
    assert not event.done
    while not (event.done or stream.done):
        pass
    assert (now(x) == 4).all()


@pytest.mark.parametrize("non_blocking", [False, True])
def test_the_null_stream_waits_for_blocking_streams_only(non_blocking):
    x, (stream,) = array(), streams(1, non_blocking)
    with stream:
        x.fill(5)
    assert x.get()[0, 0] == (1 if non_blocking else 5)
    stream.synchronize()


@pytest.mark.parametrize("non_blocking", [False, True])
def test_blocking_streams_wait_for_the_null_stream(non_blocking):
    x, y, (stream,) = array(), array(), streams(1, non_blocking)
    x.fill(5)
    with stream:
        copy(y, x)
    stream.synchronize()
    assert now(y)[0, 0] == (1 if non_blocking else 5)
    cupy.cuda.Device().synchronize()


def test_to_wait_for_the_null_stream_is_not_to_wait_for_others():
    x, (stream,) = array(), streams(1, non_blocking=False)
    with stream:
        x.fill(5)
    cupy.cuda.Stream.null.synchronize()
    assert (now(x) == 1).all()
    cupy.cuda.Device().synchronize()
    assert (now(x) == 5).all()


def test_work_of_a_stream_that_is_gone_is_done():
    x, (stream,) = array(), streams(1, non_blocking=False)
    with stream:
        x.fill(5)
    del stream
    assert (x.get() == 5).all()


def racing(waits: bool) -> float:
    """A program that is wrong, or right, about the order of two streams."""
    x, y, (first, second) = array(0 * ONES), array(0 * ONES), streams()
    with first:
        x.fill(5)
    if waits:
        second.wait_event(first.record())
    with second:
        copy(y, x)
    cupy.cuda.Device().synchronize()
    return float(y[0, 0])


def test_the_schedules():
    seen = set()
    for seed in range(20):
        standin.schedule("random", seed)
        seen.add(racing(waits=False))
        assert racing(waits=True) == 5
    assert seen == {0, 5}
    standin.schedule("eager")
    assert racing(waits=False) == racing(waits=True) == 5
    standin.schedule("lazy")
    assert racing(waits=True) == 5
    with pytest.raises(ValueError, match="lazy, eager, random"):
        standin.schedule("late")


def test_times_of_events():
    (stream,) = streams(1)
    first = stream.record()
    last = stream.record()
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="cudaErrorNotReady"):
        cupy.cuda.get_elapsed_time(first, last)
    last.synchronize()
    assert cupy.cuda.get_elapsed_time(first, last) >= 0
    untimed = stream.record(cupy.cuda.Event(disable_timing=True))
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="cudaErrorInvalidResourceHandle"):
        cupy.cuda.get_elapsed_time(first, untimed)


# ---- copies from and to the host


def test_pinned_memory_is_read_when_the_copy_runs():
    x, source, (stream,) = array(), pinned(2 * ONES), streams(1)
    x.set(source, stream=stream)
    source[...] = 3  # too early
    stream.synchronize()
    assert (now(x) == 3).all()
    x.set(source, stream=stream)
    event = stream.record()
    event.synchronize()
    source[...] = 4
    stream.synchronize()
    assert (now(x) == 3).all()


def test_other_memory_is_read_at_once():
    x, source = array(), 2 * ONES
    x.set(source)
    source[...] = 3
    assert (x.get() == 2).all()


def test_pinned_memory_must_live_until_the_copy_runs():
    x, (stream,) = array(), streams(1)
    x.set(pinned(ONES), stream=stream)
    with pytest.raises(Hazard, match="pinned memory was freed") as caught:
        stream.synchronize()
    assert "test_pinned_memory_must_live_until_the_copy_runs" in caught.value.__notes__[0]


def test_a_copy_that_does_not_block_arrives_later():
    x, target, (stream,) = array(), pinned(0 * ONES), streams(1)
    x.get(stream=stream, out=target, blocking=False)
    assert (target == 0).all()
    stream.synchronize()
    assert (target == 1).all()


def test_set_and_get_round_trip_and_refuse_what_does_not_fit(rng):
    values = rng.standard_normal((4, 5, 6))
    x = array(values)
    np.testing.assert_array_equal(x.get(), values)
    np.testing.assert_array_equal(x[1:3, :, 2].get(), values[1:3, :, 2])
    np.testing.assert_array_equal(cupy.asnumpy(x.T), values.T)
    assert cupy.empty((2, 0, 3)).get().shape == (2, 0, 3)
    number = cupy.zeros((), "float32")
    number.set(np.asarray(3, np.float32))
    assert float(number) == int(number) == number.item() == 3 and bool(number)


# ---- graphs


def captured(stream, *calls):
    with stream:
        stream.begin_capture()
        try:
            for call in calls:
                call()
        finally:
            graph = stream.end_capture()
    return graph


@pytest.mark.parametrize("non_blocking", [False, True])
def test_a_graph_runs_when_it_is_launched_as_often_as_it_is_launched(non_blocking):
    x, y, (stream,) = array(), array(0 * ONES), streams(1, non_blocking)
    STATS.reset()
    graph = captured(stream, lambda: add(y, x, 2), lambda: add(y, x, 3))
    stream.synchronize()
    assert (now(y) == 0).all() and STATS.launches == STATS.graph_launches == 0 and STATS.captured == 2
    graph.launch(stream)
    with stream:
        graph.launch()
    stream.synchronize()
    assert (now(y) == 10).all() and STATS.graph_launches == 2 and STATS.launches == 0


def test_a_graph_reads_arrays_and_pinned_memory_anew():
    x, source, (stream,) = array(), pinned(2 * ONES), streams(1)
    graph = captured(stream, lambda: x.set(source, stream=stream), lambda: add(x, x))
    for number in (2, 3):
        source[...] = number
        graph.launch(stream)
        stream.synchronize()
        assert (now(x) == 2 * number).all()


FORBIDDEN = {
    "empty": lambda x, stream, event: cupy.empty(3),
    "zeros": lambda x, stream, event: cupy.zeros(3),
    "copy": lambda x, stream, event: x.copy(),
    "get": lambda x, stream, event: x.get(),
    "float": lambda x, stream, event: float(x[0, 0]),
    "set": lambda x, stream, event: x.set(ONES),
    "set on the stream": lambda x, stream, event: x.set(ONES, stream=stream),
    "synchronize": lambda x, stream, event: stream.synchronize(),
    "synchronize another stream": lambda x, stream, event: cupy.cuda.Stream().synchronize(),
    "synchronize the device": lambda x, stream, event: cupy.cuda.Device().synchronize(),
    "synchronize an event": lambda x, stream, event: event.synchronize(),
    "query an event": lambda x, stream, event: event.done,
    "pinned memory": lambda x, stream, event: cupy.cuda.alloc_pinned_memory(8),
    "free blocks": lambda x, stream, event: cupy.get_default_memory_pool().free_all_blocks(),
    "compile": lambda x, stream, event: kernel.__wrapped__("add"),
}


@pytest.mark.parametrize("call", FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_a_capture_forbids_spoils_it(call):
    x, (stream,), event = array(), streams(1), cupy.cuda.Event()
    error = cupy.cuda.runtime.CUDARuntimeError
    with stream:
        stream.begin_capture()
        with pytest.raises(error, match=r"cudaErrorStreamCapture(Unsupported|Implicit)"):
            call(x, stream, event)
        with pytest.raises(error, match="cudaErrorStreamCaptureInvalidated"):
            x.fill(3)
        with pytest.raises(error, match="cudaErrorStreamCaptureInvalidated"):
            stream.end_capture()
        x.fill(4)  # the stream can be used again
    stream.synchronize()
    assert (now(x) == 4).all()


def test_the_null_stream_cannot_be_used_while_a_stream_captures():
    x, (stream,) = array(), streams(1)
    stream.begin_capture()
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="cudaErrorStreamCaptureImplicit"):
        x.fill(3)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
        stream.end_capture()


def test_cublas_refuses_to_be_captured():
    x, (stream,) = array(), streams(1)
    y = array(np.ones((2, 2), np.float32))
    with stream:
        stream.begin_capture()
        with pytest.raises(NotImplementedError, match="calling cuBLAS API during stream capture"):
            cupy.matmul(x, x.T, out=y)
        stream.end_capture()


def test_events_and_captures():
    (stream, other), error = streams(), cupy.cuda.runtime.CUDARuntimeError
    outside, inside = other.record(), cupy.cuda.Event()
    stream.begin_capture()
    inside.record(stream)
    stream.wait_event(inside)
    graph = stream.end_capture()
    with pytest.raises(error, match="cudaErrorCapturedEvent"):
        inside.synchronize()
    graph.launch(stream)
    stream.begin_capture()
    with pytest.raises(error, match="cudaErrorStreamCaptureIsolation"):
        stream.wait_event(outside)
    with pytest.raises(error, match="cudaErrorStreamCaptureInvalidated"):
        stream.end_capture()


def test_beginnings_and_ends_of_captures():
    stream, error = cupy.cuda.Stream(), cupy.cuda.runtime.CUDARuntimeError
    with pytest.raises(error, match="cudaErrorIllegalState"):
        stream.end_capture()
    stream.begin_capture()
    assert stream.is_capturing()
    with pytest.raises(error, match="cudaErrorIllegalState"):
        stream.begin_capture()
    stream.end_capture()
    with pytest.raises(RuntimeError, match="cannot capture on the default"):
        cupy.cuda.Stream.null.begin_capture()


@pytest.mark.parametrize("when", ["before the launch", "before it runs"])
def test_a_graph_does_not_keep_its_arrays(when):
    arrays, (stream,) = [array(), array()], streams(1)
    graph = captured(stream, lambda: add(*arrays))
    if when == "before it runs":
        graph.launch(stream)
    arrays.clear()
    with pytest.raises(Hazard, match=r"an array that a graph uses was freed.*launch of add"):
        (stream.synchronize if when == "before it runs" else graph.launch)()
