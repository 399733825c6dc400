"""Products of Winograd convolution: sums over channels or tiles in registers, emitted as LLVM vector instructions."""

from contextlib import ExitStack

from numba import types
from numba.extending import intrinsic

from minicnn.kernels.cpu.compiled.winograd_tiles import Quads
from minicnn.kernels.cpu.winograd_blocks import TILE


@intrinsic(prefer_literal=True)
def products(typing_context, outputs, quads, u, v, m, channels, parts):
    """Compute, for one frequency pair, m[o][q] = sum over parts p and channels c of u[p][c][o] v[c][q + shift of p].

    Parameters
    ----------
    outputs, quads : literal int
        Output channels and neighbouring quads, all sums of which are in registers.
    u : pointer to [part][channel][output][4]
    v : (pointer, channel_step, row_step)
        Part p reads p // 2 rows and p % 2 tiles further.
    m : (pointer, output_step)
    channels, parts : int
    """
    literals = outputs, quads
    n_outputs, n_quads = outputs.literal_value, quads.literal_value
    index = types.intp
    signature = types.void(*literals, u, types.Tuple((u, index, index)), types.Tuple((u, index)), index, index)

    def generate(context, builder, signature, arguments):
        e = Quads(context, builder, u.dtype)
        weights, source, target, n_channels, n_parts = (e.unpack(value) for value in arguments[2:])
        (v_data, v_step, v_row), (m_data, m_step) = source, target
        zero = e.splat(0)
        sums = [[e.register(zero) for _ in range(n_quads)] for _ in range(n_outputs)]
        with ExitStack() as loops:
            part = loops.enter_context(e.loop(n_parts))
            rows = builder.mul(builder.lshr(part, e.const(1)), v_row)
            shift = builder.add(rows, builder.mul(builder.and_(part, e.const(1)), e.const(TILE)))
            line = e.at(v_data, shift)
            first = builder.mul(part, n_channels)
            c = loops.enter_context(e.loop(n_channels))
            numbers = e.at(weights, builder.mul(builder.add(first, c), e.const(4 * n_outputs)))
            channel = e.at(line, builder.mul(c, v_step))
            values = [e.load_at(e.at(channel, e.const(q * e.count))) for q in range(n_quads)]
            for o in range(n_outputs):
                number = e.broadcast_four(e.at(numbers, e.const(4 * o)))
                for slot, value in zip(sums[o], values, strict=True):
                    e.add_product(slot, number, value)
        for o, slots in enumerate(sums):
            output = e.at(m_data, builder.mul(m_step, e.const(o)))
            for q, slot in enumerate(slots):
                e.store_at(builder.load(slot), e.at(output, e.const(q * e.count)))
        return context.get_dummy_value()

    return signature, generate


@intrinsic(prefer_literal=True)
def gradient_products(typing_context, outputs, inputs, du, d, v, rows, quads):
    """Add, for one frequency pair, du[o][c] += sum over rows, quads and tiles of d[o] v[c].

    Parameters
    ----------
    outputs, inputs : literal int
        Output and input channels, all sums of which are in registers.
    du : (pointer to [output][input][4], output_step)
    d, v : (pointer, channel_step, row_step)
    rows, quads : int
    """
    literals = outputs, inputs
    n_outputs, n_inputs = outputs.literal_value, inputs.literal_value
    data, index = du[0], types.intp
    planes = types.Tuple((data, index, index))
    signature = types.void(*literals, types.Tuple((data, index)), planes, planes, index, index)

    def generate(context, builder, signature, arguments):
        e = Quads(context, builder, data.dtype)
        target, gradients, source, n_rows, n_quads = (e.unpack(value) for value in arguments[2:])
        (du_data, du_step), (d_data, d_step, d_row), (v_data, v_step, v_row) = target, gradients, source
        sums = [[e.register(e.splat(0)) for _ in range(n_inputs)] for _ in range(n_outputs)]
        with ExitStack() as loops:
            row = loops.enter_context(e.loop(n_rows))
            d_line, v_line = e.at(d_data, builder.mul(row, d_row)), e.at(v_data, builder.mul(row, v_row))
            quad = builder.mul(loops.enter_context(e.loop(n_quads)), e.const(e.count))
            d_quad, v_quad = e.at(d_line, quad), e.at(v_line, quad)
            factors = [e.load_at(e.at(d_quad, builder.mul(d_step, e.const(o)))) for o in range(n_outputs)]
            for c in range(n_inputs):
                value = e.load_at(e.at(v_quad, builder.mul(v_step, e.const(c))))
                for o in range(n_outputs):
                    e.add_product(sums[o][c], factors[o], value)
        for o, slots in enumerate(sums):
            line = e.at(du_data, builder.mul(du_step, e.const(o)))
            for c, slot in enumerate(slots):
                place = e.at(line, e.const(4 * c))
                total = e.add(e.load_four(place), e.sum_of_tiles(builder.load(slot)))
                builder.store(total, e.four(place)).align = e.bytes
        return context.get_dummy_value()

    return signature, generate
