"""Register tiles: the inner loops of convolution, emitted as explicit LLVM vector instructions.

LLVM's own vectoriser keeps the sums of a convolution in memory; here they stay
in registers. Each intrinsic below is a Python function that emits the code of
one tile for given compile-time sizes: a grid of vector registers, accumulated
in a loop of loads, broadcasts and fused multiply-adds, and stored once.

Offsets count elements from the first one of an array, for any shape. Bounds are
not checked here; the callers must ensure them.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.core.ir_utils import _add_alias, alias_func_extensions
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from minicnn.kernels.cpu.compile import VECTOR_BYTES


def lanes(itemsize: int) -> int:
    """Return the number of elements of `itemsize` bytes in one vector."""
    return VECTOR_BYTES // itemsize


@cache
def vector_places(itemsize: int) -> np.ndarray:
    """Return the element offsets of four consecutive vectors, (4,) int64."""
    return np.arange(4) * lanes(itemsize)


def block_of(out_channels: int, most: int) -> int:
    """Choose the output channels of a tile, at most `most`: least padding of the last tile, then 8, then largest."""
    sizes = range(min(out_channels, (most + 1) // 2), min(out_channels, most) + 1)
    return min(sizes, key=lambda size: (-(-out_channels // size) * size, size != 8, -size))


@intrinsic
def row(typing_context, x, n, c, i):
    """Return the row x[n, c, i], a view (W,), of an array (N, C, H, W) whose rows are contiguous."""
    result = types.Array(x.dtype, 1, "C")

    def generate(context, builder, signature, arguments):
        source = context.make_array(signature.args[0])(context, builder, arguments[0])
        strides = cgutils.unpack_tuple(builder, source.strides)
        offset = context.get_constant(types.intp, 0)
        for number, stride in zip(arguments[1:], strides, strict=False):
            offset = builder.add(offset, builder.mul(number, stride))
        data = cgutils.pointer_add(builder, source.data, offset)
        target = context.make_array(result)(context, builder)
        itemsize = context.get_constant(types.intp, x.dtype.bitwidth // 8)
        shape = [cgutils.unpack_tuple(builder, source.shape)[3]]
        populate_array(target, data=data, shape=shape, strides=[itemsize], itemsize=itemsize, meminfo=None)
        return impl_ret_borrowed(context, builder, result, target._getvalue())

    return result(x, types.intp, types.intp, types.intp), generate


def _row_alias(name, arguments, alias_map, argument_aliases) -> None:
    _add_alias(name, arguments[0].name, alias_map, argument_aliases)


# Without this Numba treats a row as a new array and removes writes to it as dead code if nothing reads the row.
alias_func_extensions["row", "minicnn.kernels.cpu.tiles"] = _row_alias


class _Emitter:
    """Emitter of the LLVM instructions of a tile, for arrays of one float type."""

    def __init__(self, context, builder, dtype: types.Float, segments: int = 1):
        self.context = context
        self.builder = builder
        self.scalar = context.get_value_type(dtype)
        self.bytes = dtype.bitwidth // 8
        self.count = lanes(self.bytes)
        self.segments = segments
        self.vector = ir.VectorType(self.scalar, self.count)
        self.segment = ir.VectorType(self.scalar, self.count // segments)
        self.index = context.get_value_type(types.intp)
        name = f"llvm.fmuladd.v{self.count}f{dtype.bitwidth}"
        signature = ir.FunctionType(self.vector, [self.vector] * 3)
        self._fma = cgutils.get_or_insert_function(builder.module, signature, name)

    def const(self, value: int) -> ir.Constant:
        return self.index(value)

    def data(self, array_type, array, start):
        """Return a pointer to element `start` of a Numba array."""
        data = self.context.make_array(array_type)(self.context, self.builder, array).data
        return self.at(data, start)

    def at(self, pointer, offset):
        return self.builder.gep(pointer, [offset])

    def dot(self, first: Sequence, second: Sequence):
        """Return the dot product of index values: the offset of an element in an array."""
        total = self.const(0)
        for a, b in zip(first, second, strict=True):
            total = self.builder.add(total, self.builder.mul(a, b))
        return total

    def place(self, array_type, array, number):
        """Return element `number` of an integer array, as an index value."""
        return self.builder.load(self.data(array_type, array, number))

    def load(self, pointers: Sequence):
        """Load a vector from one pointer per segment."""
        parts = []
        for pointer in pointers:
            part = self.builder.load(self.builder.bitcast(pointer, self.segment.as_pointer()))
            part.align = self.bytes
            parts.append(part)
        while len(parts) > 1:
            size = 2 * parts[0].type.count
            mask = ir.Constant(ir.VectorType(ir.IntType(32), size), list(range(size)))
            parts = [self.builder.shuffle_vector(a, b, mask) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]

    def store(self, vector, pointers: Sequence) -> None:
        size = self.count // self.segments
        for number, pointer in enumerate(pointers):
            order = list(range(number * size, (number + 1) * size))
            mask = ir.Constant(ir.VectorType(ir.IntType(32), size), order)
            part = vector if self.segments == 1 else self.builder.shuffle_vector(vector, vector, mask)
            store = self.builder.store(part, self.builder.bitcast(pointer, self.segment.as_pointer()))
            store.align = self.bytes

    def broadcast(self, pointer):
        """Return a vector with the number at `pointer` in every lane."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        lane0 = ir.IntType(32)(0)
        vector = self.builder.insert_element(undefined, self.builder.load(pointer), lane0)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.count), [0] * self.count)
        return self.builder.shuffle_vector(vector, undefined, zeros)

    def register(self, value):
        """Return a stack variable initialised with `value`; LLVM keeps it in a register."""
        slot = cgutils.alloca_once(self.builder, self.vector)
        self.builder.store(value, slot)
        return slot

    def add_product(self, slot, a, b) -> None:
        self.builder.store(self.builder.call(self._fma, [a, b, self.builder.load(slot)]), slot)


@intrinsic(prefer_literal=True)
def outer_tile(
    typing_context,
    vectors,
    scalars,
    segments,
    kernel_size,
    before,
    y,
    y_start,
    y_step,
    y_places,
    a,
    a_start,
    a_strides,
    a_places,
    b,
    b_start,
    b_strides,
    first,
    counts,
    bias,
    bias_start,
    filled,
):
    """Compute `vectors` x `scalars` sums of outer products, of vectors from `a` with single numbers from `b`.

    Vector i consists of `segments` equal runs of consecutive elements. Run g begins at offset
    a_places[first + i segments + g] in `a`, and at y_places[...] in `y`. For s < filled and every run (the trailing +
    stands for adding the lane number)::

        y[y_start + s y_step + y_places[...] +] = bias[bias_start + s] + sum over j < counts (three indices) of
            a[a_start + j . a_strides + a_places[...] +] b[b_start + j . b_strides + s]

    If `kernel_size` is 0, the innermost count is counts[2]. Otherwise it is the convolution's, and the numbers of
    `b` are a whole row of pixels with `before` zeros before it and zeros after it; products with these zeros are
    left out.

    `vectors`, `scalars`, `segments`, `kernel_size` and `before` are literals. Strides and `counts` are tuples of three
    integers. The other arguments are arrays and integers.
    """
    literals = (vectors, scalars, segments, kernel_size, before)
    n_vectors, n_scalars, n_segments, n_window, n_before = (size.literal_value for size in literals)
    index, triple = types.intp, types.UniTuple(types.intp, 3)
    signature = types.void(
        *literals, y, index, index, y_places, a, index, triple, a_places, b, index, triple,
        index, triple, bias, index, index,
    )  # fmt: skip

    def generate(context, builder, signature, arguments):
        (_, _, _, _, _, y_, y0, y_step_, y_at, a_, a0, a_strides_, a_at, b_, b0, b_strides_,
         first_, counts_, bias_, bias0, filled_) = arguments  # fmt: skip
        e = _Emitter(context, builder, y.dtype, n_segments)
        y_data, a_data, b_data = e.data(y, y_, y0), e.data(a, a_, a0), e.data(b, b_, b0)
        bias_data = e.data(bias, bias_, bias0)
        runs = [[builder.add(first_, e.const(i * n_segments + g)) for g in range(n_segments)] for i in range(n_vectors)]
        sources = [[e.at(a_data, e.place(a_places, a_at, run)) for run in vector] for vector in runs]
        sums = []
        for s in range(n_scalars):
            start = e.broadcast(e.at(bias_data, e.const(s)))
            sums.append([e.register(start) for _ in range(n_vectors)])
        a_stride, b_stride, count = (cgutils.unpack_tuple(builder, t, 3) for t in (a_strides_, b_strides_, counts_))
        with (
            cgutils.for_range(builder, count[0], intp=e.index) as outer,
            cgutils.for_range(builder, count[1], intp=e.index) as middle,
        ):
            a_row = e.dot((outer.index, middle.index), a_stride[:2])
            b_row = e.at(b_data, e.dot((outer.index, middle.index), b_stride[:2]))

            def add_products(step, used: range) -> None:
                offset = builder.add(a_row, builder.mul(step, a_stride[2]))
                numbers = e.at(b_row, builder.mul(step, b_stride[2]))
                values = [e.load([e.at(source, offset) for source in vector]) for vector in sources]
                for s in used:
                    number = e.broadcast(e.at(numbers, e.const(s)))
                    for i in range(n_vectors):
                        e.add_product(sums[s][i], number, values[i])

            if n_window:
                for v in range(n_window):
                    add_products(e.const(v), range(max(0, n_before - v), min(n_scalars, n_scalars + n_before - v)))
            else:
                with cgutils.for_range(builder, count[2], intp=e.index) as inner:
                    add_products(inner.index, range(n_scalars))
        places = [[e.place(y_places, y_at, run) for run in vector] for vector in runs]
        for s in range(n_scalars):
            with builder.if_then(builder.icmp_signed("<", e.const(s), filled_)):
                line = e.at(y_data, builder.mul(e.const(s), y_step_))
                for i in range(n_vectors):
                    e.store(builder.load(sums[s][i]), [e.at(line, place) for place in places[i]])
        return context.get_dummy_value()

    return signature, generate


@intrinsic(prefer_literal=True)
def inner_tile(
    typing_context, out_channels, taps, sums, sums_start, images, g, g_start, g_image, g_step, x, x_start, x_image,
    places, first, last
):  # fmt: skip
    """Accumulate vector sums of products for `out_channels` x `taps` (literals); taps are one element apart.

    For each lane (the trailing + stands for adding the lane number)::

        sums[sums_start + (f taps + v) lanes +] += sum over n < images and p = places[first] .. places[last - 1] of
            g[g_start + n g_image + f g_step + p +] x[x_start + n x_image + v + p +]
    """
    index = types.intp
    signature = types.void(
        out_channels, taps, sums, index, index, g, index, index, index, x, index, index, places, index, index
    )
    n_filters, n_taps = out_channels.literal_value, taps.literal_value

    def generate(context, builder, signature, arguments):
        _, _, sums_, sums0, images_, g_, g0, g_image_, g_step_, x_, x0, x_image_, places_, first_, last_ = arguments
        e = _Emitter(context, builder, sums.dtype)
        s_data, g_data, x_data = e.data(sums, sums_, sums0), e.data(g, g_, g0), e.data(x, x_, x0)
        homes = [[e.at(s_data, e.const((f * n_taps + v) * e.count)) for v in range(n_taps)] for f in range(n_filters)]
        registers = [[e.register(e.load([home])) for home in line] for line in homes]
        with cgutils.for_range(builder, images_, intp=e.index) as image:
            g_plane = e.at(g_data, builder.mul(image.index, g_image_))
            x_plane = e.at(x_data, builder.mul(image.index, x_image_))
            lines = [e.at(g_plane, builder.mul(e.const(f), g_step_)) for f in range(n_filters)]
            with cgutils.for_range_slice(builder, first_, last_, e.const(1), e.index) as (number, _):
                place = e.place(places, places_, number)
                gradients = [e.load([e.at(line, place)]) for line in lines]
                for v in range(n_taps):
                    pixels = e.load([e.at(x_plane, builder.add(place, e.const(v)))])
                    for f in range(n_filters):
                        e.add_product(registers[f][v], gradients[f], pixels)
        for line, slots in zip(homes, registers, strict=True):
            for home, slot in zip(line, slots, strict=True):
                e.store(builder.load(slot), [home])
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def lane_sum(typing_context, x, start):
    """Return the sum of the elements of the vector at x[start]."""

    def generate(context, builder, signature, arguments):
        e = _Emitter(context, builder, x.dtype)
        vector = e.load([e.data(x, *arguments)])
        while vector.type.count > 1:
            half = vector.type.count // 2
            halves = [
                builder.shuffle_vector(
                    vector,
                    vector,
                    ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(k * half, (k + 1) * half))),
                )
                for k in (0, 1)
            ]
            vector = builder.fadd(*halves)
        return builder.extract_element(vector, ir.IntType(32)(0))

    return x.dtype(x, types.intp), generate
