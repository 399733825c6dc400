"""Register tiles: the inner loops of convolution, emitted as explicit LLVM vector instructions.

LLVM's own vectoriser keeps the sums of a convolution in memory; here they stay
in registers. Each intrinsic below is a Python function that emits the code of
one tile for given compile-time sizes: a grid of vector registers, accumulated
in a loop of loads, broadcasts and fused multiply-adds, and stored once.

Tiles get pointers, and offsets in elements. Bounds are not checked here; the
callers must ensure them.
"""

from collections.abc import Sequence
from contextlib import contextmanager

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.core.ir_utils import _add_alias, alias_func_extensions
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from minicnn.kernels.cpu.vectors import lanes


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
alias_func_extensions["row", __name__] = _row_alias


#: Type of a pointer to element offsets.
PLACES = types.CPointer(types.intp)


class Emitter:
    """Emitter of the LLVM instructions of a tile, for arrays of one float type."""

    def __init__(self, context, builder, dtype: types.Float, segments: int = 1, count: int | None = None):
        self.context = context
        self.builder = builder
        self.scalar = context.get_value_type(dtype)
        self.bytes = dtype.bitwidth // 8
        self.count = count or lanes(self.bytes)
        self.segments = segments
        self.vector = ir.VectorType(self.scalar, self.count)
        self.segment = ir.VectorType(self.scalar, self.count // segments)
        self.index = context.get_value_type(types.intp)
        name = f"llvm.fmuladd.v{self.count}f{dtype.bitwidth}"
        signature = ir.FunctionType(self.vector, [self.vector] * 3)
        self._fma = cgutils.get_or_insert_function(builder.module, signature, name)

    def const(self, value: int) -> ir.Constant:
        return self.index(value)

    def unpack(self, value) -> list:
        """Return the elements of a tuple value; nested tuples as lists."""
        if not isinstance(value.type, ir.LiteralStructType | ir.ArrayType):
            return value
        return [self.unpack(part) for part in cgutils.unpack_tuple(self.builder, value)]

    def at(self, pointer, offset):
        return self.builder.gep(pointer, [offset])

    @contextmanager
    def loop(self, count):
        """Emit a loop of `count` rounds around what is emitted inside; yields the number of the round."""
        with cgutils.for_range(self.builder, count, intp=self.index) as rounds:
            yield rounds.index

    def dot(self, first: Sequence, second: Sequence):
        """Return the dot product of index values: the offset of an element in an array."""
        total = self.const(0)
        for a, b in zip(first, second, strict=True):
            total = self.builder.add(total, self.builder.mul(a, b))
        return total

    def places(self, pointer, vectors: int) -> list[list]:
        """Load the offsets at `pointer`: one for each segment of each of `vectors` vectors."""
        runs = [[i * self.segments + g for g in range(self.segments)] for i in range(vectors)]
        return [[self.builder.load(self.at(pointer, self.const(run))) for run in vector] for vector in runs]

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

    def load_at(self, pointer):
        """Load a vector of consecutive elements."""
        vector = self.builder.load(self.builder.bitcast(pointer, self.vector.as_pointer()))
        vector.align = self.bytes
        return vector

    def store_at(self, vector, pointer) -> None:
        """Store a vector into consecutive elements."""
        store = self.builder.store(vector, self.builder.bitcast(pointer, self.vector.as_pointer()))
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

    def product_sum(self, a, b, c):
        """Return a b + c."""
        return self.builder.call(self._fma, [a, b, c])

    def add_product(self, slot, a, b) -> None:
        self.builder.store(self.product_sum(a, b, self.builder.load(slot)), slot)


@intrinsic
def pointer(typing_context, x, start):
    """Return a pointer to element `start` of the array x; the caller must keep the array alive."""
    result = types.CPointer(x.dtype)

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.gep(data, [arguments[1]])

    return result(x, types.intp), generate


_TRIPLE = types.UniTuple(types.intp, 3)


@intrinsic(prefer_literal=True)
def outer_tile(typing_context, vectors, scalars, segments, kernel_size, before, y, a, b, counts):
    """Compute `vectors` x `scalars` sums of outer products, of vectors from `a` with single numbers from `b`.

    Vector i consists of `segments` equal runs of consecutive elements. Run r = i segments + g begins at a[a_places[r]],
    and its sums at y[y_places[r]]. For s < filled and every run (the trailing + stands for adding the lane number)::

        y[s y_step + y_places[r] +] = bias[s] + sum over j < counts (three indices) of
            a[j . a_strides + a_places[r] +] b[j . b_strides + s]

    If `kernel_size` is 0, the innermost count is counts[2]. Otherwise it is the convolution's, and the numbers of `b`
    are a whole row of pixels with `before` zeros before it and zeros after it; products with these zeros are left out.

    The sizes are literals. The other arguments, with a `pointer` to each array's first element, are `y`: (y, y_step,
    y_places, bias, filled); `a`: (a, a_strides, a_places); `b`: (b, b_strides); and `counts`.
    """
    literals, data = (vectors, scalars, segments, kernel_size, before), y[0]
    vectors, scalars, segments, kernel_size, before = (size.literal_value for size in literals)
    target = types.Tuple((data, types.intp, PLACES, data, types.intp))
    source, numbers = types.Tuple((data, _TRIPLE, PLACES)), types.Tuple((data, _TRIPLE))
    signature = types.void(*literals, target, source, numbers, _TRIPLE)

    def generate(context, builder, signature, arguments):
        e = Emitter(context, builder, data.dtype, segments)
        target, (a_data, a_strides, a_places), (b_data, b_strides), count = (e.unpack(value) for value in arguments[5:])
        y_data, y_step, y_places, bias, filled = target
        sources = [[e.at(a_data, place) for place in vector] for vector in e.places(a_places, vectors)]
        starts = [e.broadcast(e.at(bias, e.const(s))) for s in range(scalars)]
        sums = [[e.register(start) for _ in range(vectors)] for start in starts]

        def add_products(a_row, b_row, step, used: range) -> None:
            offset = builder.add(a_row, builder.mul(step, a_strides[2]))
            numbers = e.at(b_row, builder.mul(step, b_strides[2]))
            values = [e.load([e.at(source, offset) for source in vector]) for vector in sources]
            for s in used:
                number = e.broadcast(e.at(numbers, e.const(s)))
                for slot, value in zip(sums[s], values, strict=True):
                    e.add_product(slot, number, value)

        with e.loop(count[0]) as outer, e.loop(count[1]) as middle:
            a_row = e.dot((outer, middle), a_strides[:2])
            b_row = e.at(b_data, e.dot((outer, middle), b_strides[:2]))
            for v in range(kernel_size):
                used = range(max(0, before - v), min(scalars, scalars + before - v))
                add_products(a_row, b_row, e.const(v), used)
            if kernel_size == 0:
                with e.loop(count[2]) as inner:
                    add_products(a_row, b_row, inner, range(scalars))
        targets = e.places(y_places, vectors)
        for s, slots in enumerate(sums):
            with builder.if_then(builder.icmp_signed("<", e.const(s), filled)):
                line = e.at(y_data, builder.mul(e.const(s), y_step))
                for slot, vector in zip(slots, targets, strict=True):
                    e.store(builder.load(slot), [e.at(line, place) for place in vector])
        return context.get_dummy_value()

    return signature, generate


@intrinsic(prefer_literal=True)
def inner_tile(typing_context, out_channels, taps, sums, g, x, images, places, count):
    """Accumulate vector sums of products for `out_channels` x `taps`; taps are one element apart.

    For each lane (the trailing + stands for adding the lane number)::

        sums[(f taps + v) lanes +] += sum over n < images and p = places[0] .. places[count - 1] of
            g[n g_image + f g_step + p +] x[n x_image + v + p +]

    `out_channels` and `taps` are literals. The other arguments, with a `pointer` to each array's first element, are
    `sums`; `g`: (g, g_image, g_step); `x`: (x, x_image); `images`; `places`; and `count`.
    """
    literals = out_channels, taps
    out_channels, taps = (size.literal_value for size in literals)
    index = types.intp
    gradient, pixels = types.Tuple((sums, index, index)), types.Tuple((sums, index))
    signature = types.void(*literals, sums, gradient, pixels, index, PLACES, index)

    def generate(context, builder, signature, arguments):
        e = Emitter(context, builder, sums.dtype)
        sums_data, (g_data, g_image, g_step), (x_data, x_image), n_images, first, n_places = (
            e.unpack(value) for value in arguments[2:]
        )
        homes = [e.at(sums_data, e.const(number * e.count)) for number in range(out_channels * taps)]
        registers = [e.register(e.load([home])) for home in homes]
        with e.loop(n_images) as image:
            g_plane = e.at(g_data, builder.mul(image, g_image))
            x_plane = e.at(x_data, builder.mul(image, x_image))
            lines = [e.at(g_plane, builder.mul(e.const(f), g_step)) for f in range(out_channels)]
            with e.loop(n_places) as number:
                place = builder.load(e.at(first, number))
                gradients = [e.load([e.at(line, place)]) for line in lines]
                for v in range(taps):
                    values = e.load([e.at(x_plane, builder.add(place, e.const(v)))])
                    for f in range(out_channels):
                        e.add_product(registers[f * taps + v], gradients[f], values)
        for home, register in zip(homes, registers, strict=True):
            e.store(builder.load(register), [home])
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def lane_sum(typing_context, x):
    """Return the sum of the elements of the vector at the `pointer` x."""

    def generate(context, builder, signature, arguments):
        e = Emitter(context, builder, x.dtype)
        vector = e.load(arguments)
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

    return x.dtype(x), generate
