"""The loop of the threads that share the tasks of a kernel; `minicnn.kernels.cpu.threads` starts them."""

import platform

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from minicnn.kernels.cpu import threads as pool
from minicnn.kernels.cpu.compiled.options import STRICT

_LOOKS = 1000  # looks for a change before a thread sleeps, some 50 microseconds

_WORD = ir.IntType(64)


def share(tasks, numbers):
    """Run the job at NEW with the other threads (thread 0), or work on every job from now on (the others).

    A job is divided into portions, which each thread takes one after the other: a thread that another process delays
    does not delay all. `numbers` are those of `threads`; all of them are read and written under one lock.
    """
    thread = tasks[2]
    _system(numbers[pool.LOCK], numbers[pool.MUTEX], 0)
    if thread == 0:
        for i in range(pool.FIELDS):
            numbers[pool.JOB + i] = numbers[pool.NEW + i]
        numbers[pool.NEXT] = 0
        numbers[pool.LEFT] = numbers[pool.JOB + pool.PORTIONS]
        numbers[pool.STATUS] = 0
        numbers[pool.CALLS] += 1
        _system(numbers[pool.WAKE], numbers[pool.WORK], 0)
        _work(numbers, thread)
        while numbers[pool.LEFT] > 0:
            _wait(numbers, pool.LEFT, numbers[pool.LEFT], pool.DONE)
        _system(numbers[pool.UNLOCK], numbers[pool.MUTEX], 0)
    else:
        while True:
            seen = numbers[pool.CALLS]
            _work(numbers, thread)
            _wait(numbers, pool.CALLS, seen, pool.WORK)


@njit(**STRICT)
def _work(numbers, thread):
    """Take portions of the job until none is left; called and left with the lock."""
    job = pool.JOB
    while thread < numbers[job + pool.THREADS] and numbers[pool.NEXT] < numbers[job + pool.PORTIONS]:
        portion, tasks, portions = numbers[pool.NEXT], numbers[job + pool.TASKS], numbers[job + pool.PORTIONS]
        numbers[pool.NEXT] += 1
        address, arguments = numbers[job + pool.ADDRESS], numbers[job + pool.ARGUMENTS]
        _system(numbers[pool.UNLOCK], numbers[pool.MUTEX], 0)
        first, end = tasks * portion // portions, tasks * (portion + 1) // portions
        status = _invoke(address, arguments, first, end, thread)
        _system(numbers[pool.LOCK], numbers[pool.MUTEX], 0)
        numbers[pool.STATUS] |= status
        numbers[pool.LEFT] -= 1
        if numbers[pool.LEFT] == 0:
            _system(numbers[pool.WAKE], numbers[pool.DONE], 0)


@njit(**STRICT)
def _wait(numbers, place, seen, condition):
    """Wait until numbers[place] is no longer `seen`: look some times without the lock, then sleep."""
    _system(numbers[pool.UNLOCK], numbers[pool.MUTEX], 0)
    for _ in range(_LOOKS):
        if _look(numbers, place) != seen:
            break
        _pause()
    _system(numbers[pool.LOCK], numbers[pool.MUTEX], 0)
    while numbers[place] == seen:
        _system(numbers[pool.WAIT], numbers[condition], numbers[pool.MUTEX])


@intrinsic
def _system(typing_context, function, first, second):
    """Call a function of the system at an address."""

    def generate(context, builder, signature, arguments):
        number = ir.IntType(32)
        # Windows waits with two more numbers, the time and flags; elsewhere they are ignored
        kind = ir.FunctionType(number, [_WORD, _WORD, number, number])
        address = builder.inttoptr(arguments[0], kind.as_pointer())
        builder.call(address, [*arguments[1:], number(-1), number(0)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def _invoke(typing_context, address, arguments, first, end, thread):
    """Run tasks of a compiled kernel and return its status."""

    def generate(context, builder, signature, values):
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.IntType(32), [pointer.as_pointer()] * 2 + [pointer, _WORD, _WORD, _WORD])
        # Result and error; `builder.alloca` inside a loop would take more of the stack in each round
        ignored = [cgutils.alloca_once(builder, pointer) for _ in range(2)]
        function = builder.inttoptr(values[0], kind.as_pointer())
        status = builder.call(function, [*ignored, builder.inttoptr(values[1], pointer), *values[2:]])
        return builder.sext(status, _WORD)

    return types.int64(*[types.int64] * 5), generate


@intrinsic
def _look(typing_context, numbers, place):
    """Read a number that another thread may write at this moment."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load_atomic(builder.gep(data, [arguments[1]]), "monotonic", 8)

    return types.int64(numbers, types.int64), generate


@intrinsic
def _pause(typing_context):
    """Let the other thread of this core go first for a moment."""

    def generate(context, builder, signature, arguments):
        if platform.machine().lower() in ("x86_64", "amd64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), kind), [])
        return context.get_dummy_value()

    return types.void(), generate
