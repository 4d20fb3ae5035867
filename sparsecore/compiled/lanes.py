"""The SIMD lane type that the kernels are written with.

A `Width(n)` tells the compiler how many float32 lanes a value has. Numba has a type for such values
whose LLVM form is ``<n x float>``; LLVM cuts it into the CPU's registers (eight AVX-512 registers
for 128 lanes). So a kernel reads like scalar code, and a batch row stays in registers while the
connections of a neuron stream by. Nothing here checks bounds; only `stream` asks for alignment.
"""

import operator
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils

from numba.extending import (  # isort: skip
    NativeValue, intrinsic, models, overload, overload_attribute, register_jitable, register_model,
    typeof_impl, unbox,
)  # fmt: skip

# Lanes of the largest register. Sums are folded to it on every CPU: it is part of their order.
_REGISTER = 16
_F32 = ir.FloatType()
_I32 = ir.IntType(32)
_I64 = ir.IntType(64)


class Width:
    """A number of float32 lanes, known to the compiler: a power of two from 4 (masks: 8) on."""

    def __init__(self, lanes: int) -> None:
        if lanes < 4 or lanes & (lanes - 1):
            raise ValueError(f"a lane width is a power of two and at least 4, got {lanes}")
        self.lanes = lanes


@cache
def widest() -> int:
    """Return the most lanes whose two operand rows fit this CPU's registers: more would spill."""
    return 128 if llvm.get_host_cpu_features().get("avx512f") else 32


class _Counted(types.Type):
    """Base of Numba types that differ in their number of lanes."""

    element: Any = None  #: LLVM's type of a lane

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(name=f"{type(self).__name__}({lanes})")


class WidthType(_Counted):
    """Numba type of a `Width`."""


class LanesType(_Counted):
    """Numba type of `lanes` float32 values."""

    element = _F32


class MaskType(_Counted):
    """Numba type of `lanes` truth values."""

    element = ir.IntType(1)


register_model(WidthType)(models.OpaqueModel)


@register_model(LanesType)
@register_model(MaskType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: _Counted) -> None:
        super().__init__(manager, fe_type, ir.VectorType(fe_type.element, fe_type.lanes))


@typeof_impl.register(Width)
def _typeof_width(value: Width, context: Any) -> WidthType:
    return WidthType(value.lanes)


@unbox(WidthType)
def _unbox_width(typ: WidthType, value: Any, c: Any) -> NativeValue:
    return NativeValue(c.context.get_dummy_value())


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any, to: Any) -> Any:
    """Return the address of element `index` of a contiguous 1-D array, as a pointer to `to`."""
    data = context.make_array(array_type)(context, builder, array).data
    index = builder.sext(index, _I64) if index.type.width < 64 else index
    return builder.bitcast(builder.gep(data, [index], inbounds=True), to.as_pointer())


def _broadcast(builder: Any, scalar: Any, lanes: int) -> Any:
    vector = ir.VectorType(scalar.type, lanes)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


def _piece(builder: Any, value: Any, first: int, lanes: int) -> Any:
    """Return lanes [first, first + lanes) of a vector; free where they are whole registers."""
    if value.type.count == lanes:
        return value
    index = ir.Constant(ir.VectorType(_I32, lanes), list(range(first, first + lanes)))
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), index)


def call(builder: Any, name: str, returns: Any, args: list[Any], **kwargs: Any) -> Any:
    """Call a function of LLVM's."""
    kind = ir.FunctionType(returns, [a.type for a in args])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(function, args, **kwargs)


def _fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    kind = "f32" if isinstance(a.type, ir.FloatType) else f"v{a.type.count}f32"
    return call(builder, f"llvm.fma.{kind}", a.type, [a, b, c])


@overload_attribute(WidthType, "lanes")
def _lanes_of(width):
    lanes = width.lanes  # a constant to the compiler
    return lambda width: lanes


@register_jitable
def tile_of(width: Width) -> int:
    """Return the side of a square tile of values that `copy_transposed` holds in registers."""
    return min(width.lanes, _REGISTER)


@intrinsic
def load(typingctx, width, array, index):
    """``array[index : index + lanes]`` of a contiguous float32 array."""

    def codegen(context, builder, signature, args):
        vector = ir.VectorType(_F32, width.lanes)
        return builder.load(_address(context, builder, array, args[1], args[2], vector), align=4)

    return LanesType(width.lanes)(width, array, index), codegen


def _store(nontemporal: bool) -> Any:
    def codegen(context, builder, signature, args):
        pointer = _address(context, builder, signature.args[0], args[0], args[1], args[2].type)
        if nontemporal:
            written = builder.store(args[2], pointer, align=min(64, 4 * args[2].type.count))
            hint = builder.module.add_metadata([ir.Constant(_I32, 1)])
            written.set_metadata("nontemporal", hint)
        else:
            builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return codegen


@intrinsic
def store(typingctx, array, index, value):
    """``array[index : index + lanes] = value``."""
    return types.void(array, index, value), _store(nontemporal=False)


@intrinsic
def stream(typingctx, array, index, value):
    """``array[index : index + lanes] = value``, past the caches: nobody reads it back soon."""
    # `index` begins at a cache line. Other threads see the value after a `team.barrier`.
    return types.void(array, index, value), _store(nontemporal=True)


@intrinsic
def at(typingctx, array, index):
    """``array[index]``, `index` not negative: Numba's test for that would cost the inner loops."""

    def codegen(context, builder, signature, args):
        kind = context.get_data_type(array.dtype)
        return builder.load(_address(context, builder, array, args[0], args[1], kind))

    return array.dtype(array, index), codegen


@intrinsic
def put(typingctx, array, index, value):
    """``array[index] = value`` without Numba's test for a negative index."""
    return None if array.dtype != value else (types.void(array, index, value), _store(False))


@intrinsic
def prefetch_to_write(typingctx, array, index):
    """Ask for the cache line of ``array[index]``, to change it soon; `index` may be anything."""

    def codegen(context, builder, signature, args):
        data = context.make_array(array)(context, builder, args[0]).data
        pointer = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(8).as_pointer())
        flags = [ir.Constant(_I32, flag) for flag in (1, 3, 1)]  # to write, into all caches, data
        call(builder, "llvm.prefetch.p0i8", ir.VoidType(), [pointer, *flags])
        return context.get_dummy_value()

    return types.void(array, index), codegen


@intrinsic
def load_across(typingctx, wide, width, array, index, gap):
    """Load lanes of `wide` in pieces of `width`: at `index`, `index` + `gap` and so on."""

    def codegen(context, builder, signature, args):
        piece = ir.VectorType(_F32, width.lanes)

        def read(place):
            return builder.load(_address(context, builder, array, args[2], place, piece), align=4)

        return _across(builder, wide.lanes // width.lanes, args[3], args[4], read)

    return LanesType(wide.lanes)(wide, width, array, index, gap), codegen


@intrinsic
def load_mask_across(typingctx, wide, width, bits, index, gap):
    """Load a mask of `wide`, stored in pieces of `width` (`index` and `gap` multiples of 8)."""

    def codegen(context, builder, signature, args):
        packed = ir.IntType(width.lanes)

        def read(place):
            byte = builder.ashr(place, ir.Constant(place.type, 3))
            word = builder.load(_address(context, builder, bits, args[2], byte, packed), align=1)
            return builder.bitcast(word, ir.VectorType(ir.IntType(1), width.lanes))

        return _across(builder, wide.lanes // width.lanes, args[3], args[4], read)

    return MaskType(wide.lanes)(wide, width, bits, index, gap), codegen


@intrinsic
def store_across(typingctx, width, array, index, gap, value):
    """Store lanes as `load_across` reads them."""

    def codegen(context, builder, signature, args):
        place = args[2]
        for first in range(0, value.lanes, width.lanes):
            piece = _piece(builder, args[4], first, width.lanes)
            pointer = _address(context, builder, array, args[1], place, piece.type)
            builder.store(piece, pointer, align=4)
            place = builder.add(place, args[3])
        return context.get_dummy_value()

    return types.void(width, array, index, gap, value), codegen


def _across(builder: Any, n: int, place: Any, gap: Any, read: Any) -> Any:
    """Join what `read` finds at `n` places, a power of two, `gap` apart."""
    pieces = []
    for _ in range(n):
        pieces.append(read(place))
        place = builder.add(place, gap)
    while len(pieces) > 1:
        lanes = 2 * pieces[0].type.count
        both = ir.Constant(ir.VectorType(_I32, lanes), list(range(lanes)))
        pairs = zip(pieces[::2], pieces[1::2], strict=True)
        pieces = [builder.shuffle_vector(low, high, both) for low, high in pairs]
    return pieces[0]


@intrinsic
def store_mask(typingctx, bits, index, mask):
    """Pack a mask into a uint8 array, one bit per lane, at lane `index`, a multiple of 8."""
    step = min(mask.lanes, _REGISTER)

    def codegen(context, builder, signature, args):
        piece = ir.IntType(step)
        for first in range(0, mask.lanes, step):
            lane = builder.add(args[1], ir.Constant(args[1].type, first))
            position = builder.ashr(lane, ir.Constant(lane.type, 3))
            packed = builder.bitcast(_piece(builder, args[2], first, step), piece)
            pointer = _address(context, builder, bits, args[0], position, piece)
            builder.store(packed, pointer, align=1)
        return context.get_dummy_value()

    return types.void(bits, index, mask), codegen


@intrinsic
def copy_transposed(typingctx, width, inputs, rows, first, feature, out, place, step):
    """Copy ``inputs[rows[first : first + t], feature : feature + t]``, transposed; t: `tile_of`."""
    # Feature f goes to ``out[place + f * step : ... + t]``. Values are transposed in registers, ten
    # times as fast as one by one in memory.
    i = types.int64
    signature = types.void(width, inputs, rows, i, i, out, i, i)

    def codegen(context, builder, signature, args):
        _, inputs, rows, first, feature, out, place, step = args
        side = min(signature.args[0].lanes, _REGISTER)
        vector = ir.VectorType(_F32, side)
        row_type = context.get_data_type(signature.args[2].dtype)
        array = context.make_array(signature.args[1])(context, builder, inputs)
        columns = builder.extract_value(array.shape, 1)
        tile = []
        for k in range(side):
            index = builder.add(first, ir.Constant(_I64, k))
            row = builder.load(_address(context, builder, signature.args[2], rows, index, row_type))
            offset = builder.add(builder.mul(builder.sext(row, _I64), columns), feature)
            pointer = builder.bitcast(builder.gep(array.data, [offset]), vector.as_pointer())
            tile.append(builder.load(pointer, align=4))
        # Exchange blocks of 1, 2, 4, ... off the diagonal: rows become columns.
        span = 1
        while span < side:
            low = [k if k & span == 0 else side + k - span for k in range(side)]
            high = [k + span if k & span == 0 else side + k for k in range(side)]
            kind = ir.VectorType(_I32, side)
            for k in range(side):
                if k & span == 0:
                    pair = tile[k], tile[k + span]
                    tile[k] = builder.shuffle_vector(*pair, ir.Constant(kind, low))
                    tile[k + span] = builder.shuffle_vector(*pair, ir.Constant(kind, high))
            span *= 2
        for k in range(side):
            index = builder.add(place, builder.mul(step, ir.Constant(_I64, k)))
            pointer = _address(context, builder, signature.args[5], out, index, vector)
            builder.store(tile[k], pointer, align=4)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def splat(typingctx, width, value):
    """Return `value` in every lane."""
    lanes = width.lanes
    signature = LanesType(lanes)(width, types.float32)
    return signature, lambda context, builder, _, args: _broadcast(builder, args[1], lanes)


@intrinsic
def fma(typingctx, a, b, c):
    """Return ``a * b + c``, rounded once, of lanes or of float32 scalars."""
    return a(a, b, c), lambda context, builder, signature, args: _fused(builder, *args)


@intrinsic
def _multiply(typingctx, a, b):
    return a(a, b), lambda context, builder, signature, args: builder.fmul(*args)


@overload(operator.mul)
def _typed_multiply(a, b):
    if isinstance(a, LanesType) and a == b:
        return lambda a, b: _multiply(a, b)
    return None


@intrinsic
def partial_dot(typingctx, a, b):
    """Return lanes, at most 16, that sum to the sum of ``a * b``; for `total` or `totals`."""
    step = min(a.lanes, _REGISTER)

    def codegen(context, builder, signature, args):
        starts = range(0, a.lanes, step)
        pieces = [[_piece(builder, value, first, step) for value in args] for first in starts]
        # Two chains of fused multiply-adds: one alone would wait for its own latency.
        sums = [builder.fmul(*piece) for piece in pieces[:2]]
        for k, (left, right) in enumerate(pieces[2:]):
            sums[k % 2] = _fused(builder, left, right, sums[k % 2])
        return builder.fadd(*sums) if len(sums) == 2 else sums[0]

    return LanesType(step)(a, b), codegen


@intrinsic
def totals(typingctx, a, b, c, d):
    """Return the sums over the lanes of four values: cheaper than four times `total`."""
    signature = types.UniTuple(types.float32, 4)(a, b, c, d)

    def codegen(context, builder, signature, args):
        lanes = args[0].type.count

        def paired(left, right, first, second):
            """Add lanes `first` and `second` of every four: of `left` below, of `right` above."""
            sides = []
            for chosen in (first, second):
                index = [
                    group + lane + (lanes if from_right else 0)
                    for group in range(0, lanes, 4)
                    for from_right, lane in chosen
                ]
                mask = ir.Constant(ir.VectorType(_I32, lanes), index)
                sides.append(builder.shuffle_vector(left, right, mask))
            return builder.fadd(*sides)

        # Lanes of four: (a0+a2, b0+b2, a1+a3, b1+b3), then (a, b, c, d), then fold the groups.
        low = ((0, 0), (1, 0), (0, 1), (1, 1))
        high = ((0, 2), (1, 2), (0, 3), (1, 3))
        ab, cd = paired(args[0], args[1], low, high), paired(args[2], args[3], low, high)
        sums = paired(ab, cd, ((0, 0), (0, 1), (1, 0), (1, 1)), ((0, 2), (0, 3), (1, 2), (1, 3)))
        while lanes > 4:
            lanes //= 2
            below, above = (_piece(builder, sums, first, lanes) for first in (0, lanes))
            sums = builder.fadd(below, above)
        four = [builder.extract_element(sums, ir.Constant(_I32, k)) for k in range(4)]
        return context.make_tuple(builder, signature.return_type, four)

    return signature, codegen


@intrinsic
def packed(typingctx, a, b, c, d):
    """Return four float32 scalars as lanes."""

    def codegen(context, builder, signature, args):
        value = ir.Constant(ir.VectorType(_F32, 4), ir.Undefined)
        for k, scalar in enumerate(args):
            value = builder.insert_element(value, scalar, ir.Constant(_I32, k))
        return value

    return LanesType(4)(a, b, c, d), codegen


@intrinsic
def total(typingctx, a):
    """Sum over the lanes, float32."""

    def codegen(context, builder, signature, args):
        zero = ir.Constant(_F32, -0.0)  # adding to it changes nothing, so LLVM leaves it out
        name = f"llvm.vector.reduce.fadd.v{args[0].type.count}f32"
        # "reassoc" lets LLVM add by halves, in an order that is fixed at compile time.
        return call(builder, name, _F32, [zero, args[0]], fastmath=("reassoc",))

    return types.float32(a), codegen


@intrinsic
def positive(typingctx, a):
    """Return the mask of the lanes greater than zero."""

    def codegen(context, builder, signature, args):
        return builder.fcmp_ordered(">", args[0], ir.Constant(args[0].type, None))

    return MaskType(a.lanes)(a), codegen


@intrinsic
def select(typingctx, mask, a, b):
    """Return ``a`` where the mask is set, else ``b``."""
    return a(mask, a, b), lambda context, builder, signature, args: builder.select(*args)


@intrinsic
def bernoulli(typingctx, width, key, first, threshold):
    """Return a mask that is unset with probability ``threshold / 2**16``, from a counter."""
    # Sample s = `first` + c (`first` is even) takes a half of a hash of the counter (`key`, s // 2)
    # by "lowbias32" (C. Wellons, 2018): without a state, any thread can draw any lane's value.
    lanes, pairs, u32 = width.lanes, width.lanes // 2, types.uint32

    def codegen(context, builder, signature, args):
        vector = ir.VectorType(_I32, pairs)

        def constant(value):
            return ir.Constant(vector, [value] * pairs)

        _, key, first, threshold = args
        counter = builder.add(
            _broadcast(builder, builder.lshr(first, ir.Constant(_I32, 1)), pairs),
            ir.Constant(vector, list(range(pairs))),
        )
        # An odd multiplier spreads neighbouring counters before the key is mixed in.
        h = builder.xor(builder.mul(counter, constant(0x9E3779B1)), _broadcast(builder, key, pairs))
        h = builder.mul(builder.xor(h, builder.lshr(h, constant(16))), constant(0x7FEB352D))
        h = builder.mul(builder.xor(h, builder.lshr(h, constant(15))), constant(0x846CA68B))
        h = builder.xor(h, builder.lshr(h, constant(16)))
        halves = builder.bitcast(h, ir.VectorType(ir.IntType(16), lanes))
        return builder.icmp_unsigned(">=", halves, _broadcast(builder, threshold, lanes))

    return MaskType(lanes)(width, u32, u32, types.uint16), codegen
