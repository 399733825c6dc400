"""Transforms of Winograd convolution, emitted as explicit LLVM vector instructions.

A vector, called a quad, holds `TILE` x `TILE` numbers of some tiles side by
side: the 4 pixels of a row of each tile, or 4 row frequencies of each. All
transposes are then of 4 x 4 numbers, inside 128 bits in float32. A transformed
quad is 16 vectors, number 2 j + h for column frequency j = 0 .. 7 and half h of
the row frequencies: lane 4 t + k belongs to tile t and row frequency 4 h + k.

`conv_winograd` explains the method.
"""

from collections.abc import Sequence

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from minicnn.kernels.cpu.compiled.tiles import PLACES, Emitter
from minicnn.kernels.cpu.winograd_blocks import FREQUENCIES, TAPS, TILE


def kernel_matrix() -> np.ndarray:
    """Return G, (8, 5) float64: row i has the powers of point i over the products of its distances to the others."""
    points = np.array([0, 1, -1, 2, -2, 0.5, -0.5])
    matrix = np.zeros((FREQUENCIES, TAPS))
    for i, at in enumerate(points):
        scale = np.prod([at - other for other in points if other != at])
        matrix[i] = at ** np.arange(TAPS) / (scale if i else -scale)
    matrix[-1, -1] = 1  # the point at infinity
    return matrix


_G: list[list[float]] = kernel_matrix().tolist()
_PAIRS = (1, 3, 5)  # rows of the points p; those of -p follow, and differ in the sign of odd powers


class Quads(Emitter):
    """Emitter of arithmetic on quads."""

    def splat(self, value: float) -> ir.Constant:
        return ir.Constant(self.vector, [ir.Constant(self.scalar, value)] * self.count)

    def prefetch(self, pixels, row, run, rows: int) -> None:
        """Ask for the cache lines of `rows` rows at pixels[run].

        The processor itself does not look ahead to the next channel, which lies in another page of memory. An address
        outside of the array does no harm.
        """
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0i8")
        for i in range(rows):
            place = self.at(pixels, self.builder.add(run, self.builder.mul(row, self.const(i))))
            self.builder.call(function, [self.builder.bitcast(place, byte), number(0), number(3), number(1)])

    def fma(self, factor: float, a, b):
        """Return factor a + b."""
        return self.product_sum(self.splat(factor), a, b)

    def add(self, a, b):
        return self.builder.fadd(a, b)

    def sub(self, a, b):
        return self.builder.fsub(a, b)

    def _shuffle(self, a, b, pattern: Sequence[int]):
        """Pick 4 numbers in each group of 4 lanes; in `pattern` 0 to 3 are those of `a`, 4 to 7 those of `b`."""
        lanes = [
            first + (number if number < 4 else self.count + number - 4)
            for first in range(0, self.count, 4)
            for number in pattern
        ]
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), self.count), lanes))

    def transposed(self, rows: Sequence) -> list:
        """Transpose the 4 x 4 numbers in each group of 4 lanes of 4 vectors."""
        a, b, c, d = rows
        low, high = (0, 4, 1, 5), (2, 6, 3, 7)
        pairs = [self._shuffle(*two, pattern) for two in ((a, b), (c, d)) for pattern in (low, high)]
        first, last = (0, 1, 4, 5), (2, 3, 6, 7)
        return [self._shuffle(pairs[k], pairs[k + 2], pattern) for k in (0, 1) for pattern in (first, last)]

    def four(self, pointer):
        """Return a pointer to 4 numbers."""
        return self.builder.bitcast(pointer, ir.VectorType(self.scalar, 4).as_pointer())

    def load_four(self, pointer):
        part = self.builder.load(self.four(pointer))
        part.align = self.bytes
        return part

    def broadcast_four(self, pointer):
        """Return a quad with the 4 numbers at `pointer` in each group of 4 lanes."""
        part = self.load_four(pointer)
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.count), [0, 1, 2, 3] * (self.count // 4))
        return self.builder.shuffle_vector(part, part, mask)

    def sum_of_tiles(self, vector):
        """Return the sum of the groups of 4 lanes, a vector of 4."""
        while vector.type.count > 4:
            half = vector.type.count // 2
            masks = [
                ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(k * half, (k + 1) * half))) for k in (0, 1)
            ]
            vector = self.add(*(self.builder.shuffle_vector(vector, vector, mask) for mask in masks))
        return vector

    def input_rows(self, d: Sequence) -> list:
        """Return B^T d for 8 vectors."""
        fma, add, sub = self.fma, self.add, self.sub
        even, odd = fma(-4.25, d[4], add(d[2], d[6])), fma(-4.25, d[3], add(d[1], d[5]))
        even2, odd2 = fma(0.25, d[2], fma(-1.25, d[4], d[6])), fma(0.25, d[1], fma(-1.25, d[3], d[5]))
        even3, odd3 = fma(4, fma(-1.25, d[4], d[2]), d[6]), fma(4, fma(-1.25, d[3], d[1]), d[5])
        return [
            fma(5.25, sub(d[4], d[2]), sub(d[0], d[6])),
            add(even, odd), sub(even, odd),
            fma(2, odd2, even2), fma(-2, odd2, even2),
            fma(0.5, odd3, even3), fma(-0.5, odd3, even3),
            fma(5.25, sub(d[3], d[5]), sub(d[7], d[1])),
        ]  # fmt: skip

    def output_rows(self, m: Sequence) -> list:
        """Return A^T m, 4 vectors, for 8 vectors."""
        fma, add, sub = self.fma, self.add, self.sub
        sums, differences = ([combine(m[k], m[k + 1]) for k in (1, 3, 5)] for combine in (add, sub))
        return [
            add(add(m[0], sums[0]), add(sums[1], sums[2])),
            fma(0.5, differences[2], fma(2, differences[1], differences[0])),
            fma(0.25, sums[2], fma(4, sums[1], sums[0])),
            add(fma(0.125, differences[2], fma(8, differences[1], differences[0])), m[7]),
        ]

    def gradient_rows(self, d: Sequence) -> list:
        """Return A d, 8 vectors, for 4 vectors."""
        fma, add, sub = self.fma, self.add, self.sub
        even, odd = add(d[0], d[2]), add(d[1], d[3])
        even2, odd2 = fma(4, d[2], d[0]), fma(4, d[3], d[1])
        even3, odd3 = fma(0.25, d[2], d[0]), fma(0.25, d[3], d[1])
        return [
            d[0], add(even, odd), sub(even, odd), fma(2, odd2, even2), fma(-2, odd2, even2),
            fma(0.5, odd3, even3), fma(-0.5, odd3, even3), d[3],
        ]  # fmt: skip

    def combination(self, factors: Sequence[float], vectors: Sequence):
        """Return the sum of factor times vector."""
        total = self.builder.fmul(self.splat(factors[0]), vectors[0])
        for factor, vector in zip(factors[1:], vectors[1:], strict=True):
            total = self.fma(factor, vector, total)
        return total

    def constant(self, numbers: Sequence[float]) -> ir.Constant:
        """Return a vector of given numbers, filled up with zeros."""
        padded = [*numbers, *[0.0] * (self.count - len(numbers))]
        return ir.Constant(self.vector, [ir.Constant(self.scalar, number) for number in padded])

    def half(self, vector, number: int):
        """Return 4 of the 8 numbers of a vector."""
        mask = ir.Constant(ir.VectorType(ir.IntType(32), 4), list(range(4 * number, 4 * number + 4)))
        return self.builder.shuffle_vector(vector, vector, mask)


@intrinsic(prefer_literal=True)
def transform_input(typing_context, segments, x, x_row, places, x_channel, v, v_step):
    """Write B^T d B of the 8 x 8 pixels d of each tile of a quad.

    Parameters
    ----------
    segments : literal int
        Runs of consecutive pixels that a quad consists of.
    x : pointer to the plane, from which `places` count
    x_row : int
        Elements from row to row.
    places : pointer to int
        First pixel of each run.
    x_channel : int
        Elements to the next channel, whose pixels are prefetched.
    v, v_step : pointer, int
        Where vector 0 is written, and elements from vector to vector.
    """
    n_segments = segments.literal_value
    signature = types.void(segments, x, types.intp, PLACES, types.intp, v, types.intp)

    def generate(context, builder, signature, arguments):
        _, pixels, row, first, channel, target, step = arguments
        e = Quads(context, builder, x.dtype, n_segments)
        (runs,) = e.places(first, 1)
        e.prefetch(pixels, row, builder.add(runs[0], channel), FREQUENCIES)
        halves: list[list] = [[], []]
        for left in (0, 4):
            columns = []
            for i in range(FREQUENCIES):
                offset = builder.add(builder.mul(row, e.const(i)), e.const(left))
                columns.append(e.load([e.at(pixels, builder.add(run, offset)) for run in runs]))
            columns = e.input_rows(columns)
            for half, rows in zip(halves, (columns[:4], columns[4:]), strict=True):
                half += e.transposed(rows)
        for h, half in enumerate(halves):
            for j, vector in enumerate(e.input_rows(half)):
                e.store_at(vector, e.at(target, builder.mul(step, e.const(2 * j + h))))
        return context.get_dummy_value()

    return signature, generate


@intrinsic(prefer_literal=True)
def transform_output(typing_context, segments, m, m_step, bias, y, y_row, places, y_channel):
    """Write A^T m A + bias, the 4 x 4 pixels of each tile of a quad; arguments as in `transform_input`."""
    n_segments = segments.literal_value
    signature = types.void(segments, m, types.intp, m, y, types.intp, PLACES, types.intp)

    def generate(context, builder, signature, arguments):
        _, source, step, bias_data, pixels, row, first, channel = arguments
        e = Quads(context, builder, m.dtype, n_segments)
        (runs,) = e.places(first, 1)
        e.prefetch(pixels, row, builder.add(runs[0], channel), TILE)
        start = e.broadcast(bias_data)
        columns: list = []
        for h in (0, 1):
            vectors = [e.load_at(e.at(source, builder.mul(step, e.const(2 * j + h)))) for j in range(FREQUENCIES)]
            columns += e.transposed(e.output_rows(vectors))
        for i, vector in enumerate(e.output_rows(columns)):
            offset = builder.mul(row, e.const(i))
            e.store(e.add(vector, start), [e.at(pixels, builder.add(run, offset)) for run in runs])
        return context.get_dummy_value()

    return signature, generate


@intrinsic(prefer_literal=True)
def transform_gradient(typing_context, segments, dy, dy_row, places, dy_channel, real, d, d_step):
    """Write A dy A^T of the 4 x 4 pixels of each tile of a quad; 0 for all but its first `real` tiles."""
    n_segments = segments.literal_value
    signature = types.void(segments, dy, types.intp, PLACES, types.intp, types.intp, d, types.intp)

    def generate(context, builder, signature, arguments):
        _, pixels, row, first, channel, real_, target, step = arguments
        e = Quads(context, builder, dy.dtype, n_segments)
        (runs,) = e.places(first, 1)
        e.prefetch(pixels, row, builder.add(runs[0], channel), TILE)
        integers = ir.VectorType(e.index, e.count)
        count = builder.insert_element(ir.Constant(integers, ir.Undefined), real_, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), e.count), [0] * e.count)
        tiles = ir.Constant(integers, [lane // TILE for lane in range(e.count)])
        exists = builder.icmp_signed("<", tiles, builder.shuffle_vector(count, count, zeros))
        rows = []
        for i in range(TILE):
            offset = builder.mul(row, e.const(i))
            vector = e.load([e.at(pixels, builder.add(run, offset)) for run in runs])
            rows.append(builder.select(exists, vector, e.splat(0)))
        columns = e.gradient_rows(rows)
        for h in (0, 1):
            for j, vector in enumerate(e.gradient_rows(e.transposed(columns[4 * h : 4 * h + 4]))):
                e.store_at(vector, e.at(target, builder.mul(step, e.const(2 * j + h))))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def transform_kernel(typing_context, taps, u, u_step):
    """Write G w G^T of the 5 x 5 taps w: 4 numbers for each frequency pair, `u_step` elements apart."""
    signature = types.void(taps, u, types.intp)

    def generate(context, builder, signature, arguments):
        source, target, step = arguments
        e = Quads(context, builder, taps.dtype, count=FREQUENCIES)
        columns = []
        for b in range(TAPS):
            total = e.splat(0)
            for a in range(TAPS):
                total = e.product_sum(
                    e.constant([row[a] for row in _G]), e.broadcast(e.at(source, e.const(TAPS * a + b))), total
                )
            columns.append(total)
        rows = {0: builder.fmul(e.splat(_G[0][0]), columns[0]), FREQUENCIES - 1: columns[-1]}
        for j in _PAIRS:
            even, odd = (e.combination(_G[j][first::2], columns[first::2]) for first in (0, 1))
            rows[j], rows[j + 1] = e.add(even, odd), e.sub(even, odd)
        for j, row in rows.items():
            for h in (0, 1):
                place = e.four(e.at(target, builder.mul(step, e.const(2 * j + h))))
                builder.store(e.half(row, h), place).align = e.bytes
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def restore_kernel(typing_context, du, du_step, chunk_step, chunks, taps):
    """Write G^T dU G, with dU summed over `chunks` arrays: tap (a, b) at taps[8 b + a]."""
    signature = types.void(du, types.intp, types.intp, types.intp, du)

    def generate(context, builder, signature, arguments):
        source, step, chunk_step_, n_chunks, target = arguments
        e = Quads(context, builder, du.dtype, count=FREQUENCIES)
        sums = [e.register(e.splat(0)) for _ in range(FREQUENCIES)]
        both = ir.Constant(ir.VectorType(ir.IntType(32), FREQUENCIES), list(range(FREQUENCIES)))
        with e.loop(n_chunks) as chunk:
            first = e.at(source, builder.mul(chunk, chunk_step_))
            for j, slot in enumerate(sums):
                places = (e.at(first, builder.mul(step, e.const(2 * j + h))) for h in (0, 1))
                part = builder.shuffle_vector(*(e.load_four(place) for place in places), both)
                builder.store(e.add(builder.load(slot), part), slot)
        d = [builder.load(slot) for slot in sums]
        even, odd = ([combine(d[j], d[j + 1]) for j in _PAIRS] for combine in (e.add, e.sub))
        for b in range(TAPS):
            column = e.combination([_G[j][b] for j in _PAIRS], odd if b % 2 else even)
            if b == 0:
                column = e.fma(_G[0][0], d[0], column)
            if b == TAPS - 1:
                column = e.add(column, d[-1])
            total = e.splat(0)
            for i in range(FREQUENCIES):
                lane = ir.Constant(ir.VectorType(ir.IntType(32), FREQUENCIES), [i] * FREQUENCIES)
                number = builder.shuffle_vector(column, column, lane)
                total = e.product_sum(number, e.constant(_G[i]), total)
            e.store_at(total, e.at(target, e.const(FREQUENCIES * b)))
        return context.get_dummy_value()

    return signature, generate
