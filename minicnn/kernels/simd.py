"""Register tiles: the inner loops of convolution, written to LLVM as explicit vectors.

LLVM's own vectoriser keeps the sums of a convolution in memory; here they stay
in registers. Each intrinsic below is a Python function that emits the code of
one tile for given compile-time sizes: the tile is a grid of vector registers
(filters x something), filled by a loop of loads, broadcasts and fused
multiply-adds, and stored once.
"""

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_FEATURES = llvm.get_host_cpu_features()
_AVX512 = bool(_FEATURES.get("avx512f"))
#: Bytes of the CPU's widest vector register, and how many of them a tile may fill with sums.
VECTOR_BYTES = 64 if _AVX512 else 32 if _FEATURES.get("avx2") else 16
TILE_REGISTERS = 27 if _AVX512 else 12

#: Vectors of positions in a tile of `correlate_tile`: two hide the latency of a broadcast.
TILE_VECTORS = 2


def lanes(itemsize: int) -> int:
    """Numbers of `itemsize` bytes in one vector."""
    return VECTOR_BYTES // itemsize


class _Emitter:
    """Short names for the LLVM instructions of a tile over arrays of one float type."""

    def __init__(self, context, builder, dtype: types.Float):
        self.context = context
        self.builder = builder
        self.scalar = context.get_value_type(dtype)
        self.count = lanes(dtype.bitwidth // 8)
        self.bytes = dtype.bitwidth // 8
        self.vector = ir.VectorType(self.scalar, self.count)
        self.index = context.get_value_type(types.intp)
        name = f"llvm.fma.v{self.count}f{dtype.bitwidth}"
        signature = ir.FunctionType(self.vector, [self.vector] * 3)
        self._fma = cgutils.get_or_insert_function(builder.module, signature, name)

    def const(self, value: int) -> ir.Constant:
        return self.index(value)

    def data(self, array_type, array):
        """Pointer to the first element of a Numba array."""
        return self.context.make_array(array_type)(self.context, self.builder, array).data

    def at(self, pointer, offset):
        return self.builder.gep(pointer, [offset])

    def load(self, pointer):
        vector = self.builder.load(self.builder.bitcast(pointer, self.vector.as_pointer()))
        vector.align = self.bytes
        return vector

    def store(self, vector, pointer) -> None:
        store = self.builder.store(vector, self.builder.bitcast(pointer, self.vector.as_pointer()))
        store.align = self.bytes

    def broadcast(self, pointer):
        """The number at `pointer` in every lane."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        lane0 = ir.IntType(32)(0)
        vector = self.builder.insert_element(undefined, self.builder.load(pointer), lane0)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.count), [0] * self.count)
        return self.builder.shuffle_vector(vector, undefined, zeros)

    def fma(self, a, b, c):
        return self.builder.call(self._fma, [a, b, c])

    def register(self, value):
        """A variable that LLVM will keep in a register."""
        slot = cgutils.alloca_once(self.builder, self.vector)
        self.builder.store(value, slot)
        return slot

    def add_product(self, slot, a, b) -> None:
        self.builder.store(self.fma(a, b, self.builder.load(slot)), slot)


@intrinsic(prefer_literal=True)
def correlate_tile(
    typing_context,
    filters,
    y,
    y_start,
    y_stride,
    x,
    x_start,
    channel_stride,
    row_stride,
    channels,
    window,
    w,
    w_start,
    b,
    b_start,
):
    """Sums of `filters` (a literal) x TILE_VECTORS vectors of flat positions; all arrays are flat, of one type.

    y[y_start + f y_stride + p] = b[b_start + f] + sum over c, u, v of
    w[w_start + ((c window + u) window + v) filters + f] x[x_start + c channel_stride + u row_stride + v + p]
    """
    count = filters.literal_value
    integers = (y_start, y_stride, x_start, channel_stride, row_stride, channels, window, w_start, b_start)
    if not all(isinstance(types.unliteral(kind), types.Integer) for kind in integers):
        return None
    index = types.intp
    signature = types.void(
        filters, y, index, index, x, index, index, index, index, index, w, index, b, index
    )  # fmt: skip

    def generate(context, builder, signature, arguments):
        e = _Emitter(context, builder, y.dtype)
        _, ya, y0, ys, xa, x0, cs, rs, c_count, k, wa, w0, ba, b0 = arguments
        y_data, x_data = e.at(e.data(y, ya), y0), e.at(e.data(x, xa), x0)
        w_data, b_data = e.at(e.data(w, wa), w0), e.at(e.data(b, ba), b0)
        biases = [e.broadcast(e.at(b_data, e.const(f))) for f in range(count)]
        sums = [[e.register(bias) for _ in range(TILE_VECTORS)] for bias in biases]
        weight_slot = cgutils.alloca_once_value(builder, w_data)
        with (
            cgutils.for_range(builder, c_count, intp=e.index) as c,
            cgutils.for_range(builder, k, intp=e.index) as u,
        ):
            row = builder.add(builder.mul(c.index, cs), builder.mul(u.index, rs))
            with cgutils.for_range(builder, k, intp=e.index) as v:
                source = e.at(x_data, builder.add(row, v.index))
                pixels = [e.load(e.at(source, e.const(e.count * i))) for i in range(TILE_VECTORS)]
                weights = builder.load(weight_slot)
                for f in range(count):
                    weight = e.broadcast(e.at(weights, e.const(f)))
                    for i in range(TILE_VECTORS):
                        e.add_product(sums[f][i], weight, pixels[i])
                builder.store(e.at(weights, e.const(count)), weight_slot)
        for f in range(count):
            target = e.at(y_data, builder.mul(e.const(f), ys))
            for i in range(TILE_VECTORS):
                e.store(builder.load(sums[f][i]), e.at(target, e.const(e.count * i)))
        return context.get_dummy_value()

    return signature, generate


@intrinsic(prefer_literal=True)
def product_tile(typing_context, filters, taps, sums, sums_start, g, g_start, g_stride, x, x_start, count):
    """Vector sums of products for `filters` x `taps` (literals); all arrays are flat, of one type.

    Lane by lane, sums[sums_start + (f taps + v) lanes ...] += sum over p = 0, lanes, 2 lanes ... < count of
    g[g_start + f g_stride + p ...] x[x_start + v + p ...]
    """
    index = types.intp
    signature = types.void(filters, taps, sums, index, g, index, index, x, index, index)
    n_filters, n_taps = filters.literal_value, taps.literal_value

    def generate(context, builder, signature, arguments):
        e = _Emitter(context, builder, sums.dtype)
        _, _, sa, s0, ga, g0, gs, xa, x0, length = arguments
        s_data, g_data, x_data = e.at(e.data(sums, sa), s0), e.at(e.data(g, ga), g0), e.at(e.data(x, xa), x0)
        places = [[e.at(s_data, e.const((f * n_taps + v) * e.count)) for v in range(n_taps)] for f in range(n_filters)]
        registers = [[e.register(e.load(place)) for place in row] for row in places]
        rows = [e.at(g_data, builder.mul(e.const(f), gs)) for f in range(n_filters)]
        with cgutils.for_range_slice(builder, e.const(0), length, e.const(e.count), e.index) as (p, _):
            gradients = [e.load(e.at(row, p)) for row in rows]
            for v in range(n_taps):
                pixels = e.load(e.at(x_data, builder.add(p, e.const(v))))
                for f in range(n_filters):
                    e.add_product(registers[f][v], gradients[f], pixels)
        for row, slots in zip(places, registers, strict=True):
            for place, slot in zip(row, slots, strict=True):
                e.store(builder.load(slot), place)
        return context.get_dummy_value()

    return signature, generate
