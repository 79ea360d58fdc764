"""Stored rows of a byte or a bit a number, compiled: unpacked to bfloat16, or multiplied with a query as they lie.

Both hold no lock of Python's, read rows at any alignment, and spell vectors out in LLVM's terms, as `exact_kernel` does. An
integer up to 128 and ±1 are bfloat16 numbers, so unpacking rounds nothing. Sums are float32 in 16 lanes, each in ascending
order of columns, and are added up in float64: a term goes through n/16 + 1 additions in float32 at most.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
STEP = 32  # numbers that are unpacked at a time; a whole number of bytes of bits
_TOGETHER = 8  # rows that share a query's numbers: as many sums that do not wait for each other

_INDEX, _BYTE, _HALF, _WORD, _SINGLE = ir.IntType(64), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
_BIT = ir.IntType(1)
_ONE, _MINUS_ONE = 0x3F80, 0xBF80 - 0x10000  # ±1 in bfloat16, as signed integers


def unpack(matrix: torch.Tensor, first: int, out: torch.Tensor) -> None:
    """Writes numbers `first`, `first` + 1, … of each row to `out`.

    Args:
        matrix: [rows, d] int8, or [rows, ⌈d/8⌉ bytes] uint8 whose bits are numbers, +1 where set and −1 elsewhere; its rows
            side by side in the CPU's memory.
        first: The first number; of bits a multiple of 8.
        out: [rows, n] bfloat16, its rows side by side, first + n ≤ d.
    """
    _check(matrix, first + out.shape[1])
    if matrix.dtype == torch.uint8 and first % 8:
        raise ValueError(f"bits can be unpacked from a whole byte on, not from bit {first}")
    if out.dtype != torch.bfloat16 or not out.is_contiguous() or len(out) != len(matrix):
        raise ValueError("unpacked rows go into as many rows of bfloat16, side by side")
    target = out.view(torch.int16).numpy()
    _unpack(matrix.data_ptr(), matrix.shape[1], first, target, out.data_ptr(), _like(matrix))


def products(matrix: torch.Tensor, queries: torch.Tensor, out: torch.Tensor) -> None:
    """Σ_c row[c]·query[c] of every query and row, summed in float32 (see above).

    Args:
        matrix: As in `unpack`.
        queries: [Q, d] float32.
        out: [Q, rows] float32, receives the sums.
    """
    _check(matrix, queries.shape[1])
    if out.dtype != torch.float32 or out.shape != (len(queries), len(matrix)) or out.stride(1) != 1:
        raise ValueError("products go into [queries, rows] float32, a query's side by side")
    of_bits = matrix.dtype == torch.uint8
    for query, sums in zip(queries.contiguous().numpy(), out.numpy(), strict=True):
        # Of bits, what is set is added up: Σ ±q = 2 Σ_set q − Σ q.
        gain, less = (2.0, float(query.sum(dtype=np.float64))) if of_bits else (1.0, 0.0)
        lanes = np.empty((_TOGETHER, LANES), np.float32)
        _products(matrix.data_ptr(), matrix.shape[1], query, lanes, sums, gain, less, _like(matrix))


def _check(matrix: torch.Tensor, numbers: int) -> None:
    held = matrix.shape[1] * (8 if matrix.dtype == torch.uint8 else 1)
    if matrix.dtype not in (torch.uint8, torch.int8) or not 0 <= numbers <= held:
        raise ValueError(f"rows of {held} numbers ({matrix.dtype}), and {numbers} were asked for")
    if matrix.device.type != "cpu" or not matrix.is_contiguous():
        raise ValueError("rows must lie side by side in the CPU's memory")


def _like(matrix: torch.Tensor) -> np.ndarray:
    """An array that tells the compiler what a row is made of: bytes, or (unsigned) bits."""
    return np.empty(0, np.uint8 if matrix.dtype == torch.uint8 else np.int8)


@numba.njit(nogil=True)
def _unpack(address, width, first, out, target, like) -> None:  # type: ignore[no-untyped-def]
    rows, count = out.shape
    whole = count - count % STEP
    for row in range(rows):
        source = address + row * width
        _unpack_steps(source, first, whole, target + row * count * 2, like)  # type: ignore[call-arg]
        for column in range(whole, count):
            out[row, column] = _bfloat16(source, first + column, like)


@numba.njit(nogil=True)
def _products(address, width, query, lanes, out, gain, less, like) -> None:  # type: ignore[no-untyped-def]
    whole = len(query) - len(query) % LANES
    for first in range(0, len(out), _TOGETHER):
        more = min(_TOGETHER, len(out) - first) - 1
        _sum_lanes(address + first * width, width, more, query, whole, lanes, like)  # type: ignore[call-arg]
        for row in range(more + 1):
            total = 0.0
            for lane in range(LANES):
                total += np.float64(lanes[row, lane])
            for column in range(whole, len(query)):
                number = _term(address + (first + row) * width, column, like)
                total += number * np.float64(query[column])
            out[first + row] = np.float32(gain * total - less)


@intrinsic
def _bfloat16(typing_context: Any, address: Any, place: Any, like: Any) -> tuple[Any, Callable[..., Any]]:
    """Bits of number `place` of the row at `address` in bfloat16."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return _as_bfloat16(builder, arguments[0], arguments[1], like.dtype, 1)

    return types.int16(types.int64, types.int64, like), generate


@intrinsic
def _term(typing_context: Any, address: Any, place: Any, like: Any) -> tuple[Any, Callable[..., Any]]:
    """What number `place` of the row at `address` is multiplied with the query's: 1 or 0 of bits, else the number."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        address, place, _ = arguments
        if like.dtype == types.uint8:
            return builder.uitofp(_mask(builder, address, place, 1), ir.DoubleType())
        return builder.sitofp(_integers(builder, address, place, 1), ir.DoubleType())

    return types.float64(types.int64, types.int64, like), generate


@intrinsic
def _unpack_steps(
    typing_context: Any, address: Any, first: Any, count: Any, target: Any, like: Any
) -> tuple[Any, Callable[..., Any]]:
    """Writes `count` numbers of a row, a multiple of STEP, from number `first` on, to the address `target`."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        address, first, count, target, _ = arguments
        zero, step = ir.Constant(_INDEX, 0), ir.Constant(_INDEX, STEP)
        with cgutils.for_range_slice(builder, zero, count, step, _INDEX) as (column, _):
            values = _as_bfloat16(builder, address, builder.add(first, column), like.dtype, STEP)
            place = builder.gep(builder.inttoptr(target, _HALF.as_pointer()), [column])
            builder.store(values, builder.bitcast(place, values.type.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64, like), generate


@intrinsic
def _sum_lanes(
    typing_context: Any, address: Any, width: Any, more: Any, query: Any, end: Any, lanes: Any, like: Any
) -> tuple[Any, Callable[..., Any]]:
    """lanes[r, l] = Σ row_r[c]·query[c] over the columns c = l, l + LANES, … below `end`; of bits, Σ of what is set.

    Row r begins at `address` + r·`width`; there are `more` rows after the first, and the last stands in for those missing.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        address, width, more, _, end, _, _ = arguments
        query_data = context.make_array(query)(context, builder, arguments[3]).data
        target = context.make_array(lanes)(context, builder, arguments[5]).data
        vector = ir.VectorType(_SINGLE, LANES)
        rows = []
        for row in range(_TOGETHER):
            number = ir.Constant(_INDEX, row)
            number = builder.select(builder.icmp_signed("<", number, more), number, more)
            rows.append(builder.add(address, builder.mul(number, width)))
        totals = [cgutils.alloca_once(builder, vector) for _ in rows]
        for total in totals:
            builder.store(ir.Constant(vector, None), total)
        step = ir.Constant(_INDEX, LANES)
        with cgutils.for_range_slice(builder, ir.Constant(_INDEX, 0), end, step, _INDEX) as (column, _):
            place = builder.gep(query_data, [column])
            factors = builder.load(builder.bitcast(place, vector.as_pointer()), align=4)
            for row, total in zip(rows, totals, strict=True):
                before = builder.load(total)
                if like.dtype == types.uint8:
                    mask = _mask(builder, row, column, LANES)
                    after = builder.select(mask, builder.fadd(before, factors), before)
                else:
                    numbers = builder.sitofp(_integers(builder, row, column, LANES), vector)
                    after = _multiply_add(builder, numbers, factors, before)
                builder.store(after, total)
        for row, total in enumerate(totals):
            place = builder.gep(target, [ir.Constant(_INDEX, row * LANES)])
            builder.store(builder.load(total), builder.bitcast(place, vector.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, query, types.int64, lanes, like), generate


def _as_bfloat16(builder: ir.IRBuilder, address: ir.Value, place: ir.Value, dtype: Any, count: int) -> ir.Value:
    """`count` numbers from number `place` of the row at `address`: an i16 with bfloat16's bits, or a vector of them."""
    half = _several(_HALF, count)
    if dtype == types.uint8:
        one, minus_one = (ir.Constant(half, [n] * count if count > 1 else n) for n in (_ONE, _MINUS_ONE))
        return builder.select(_mask(builder, address, place, count), one, minus_one)
    singles = builder.sitofp(_integers(builder, address, place, count), _several(_SINGLE, count))
    word = _several(_WORD, count)
    sixteen = ir.Constant(word, [16] * count if count > 1 else 16)
    # The lower half of the float32 is zero: an integer up to 128 has eight significant bits.
    return builder.trunc(builder.lshr(builder.bitcast(singles, word), sixteen), half)


def _mask(builder: ir.IRBuilder, address: ir.Value, place: ir.Value, count: int) -> ir.Value:
    """Bit `place` of the row at `address`, as an i1; or of `count` bits, a multiple of 8 from a whole byte on, a vector."""
    byte = builder.lshr(place, ir.Constant(_INDEX, 3))
    pointer = builder.gep(builder.inttoptr(address, _BYTE.as_pointer()), [byte])
    if count == 1:
        shift = builder.trunc(builder.and_(place, ir.Constant(_INDEX, 7)), _BYTE)
        return builder.trunc(builder.lshr(builder.load(pointer, align=1), shift), _BIT)
    bits = builder.load(builder.bitcast(pointer, ir.IntType(count).as_pointer()), align=1)
    return builder.bitcast(bits, ir.VectorType(_BIT, count))  # the lowest bit first


def _integers(builder: ir.IRBuilder, address: ir.Value, place: ir.Value, count: int) -> ir.Value:
    """`count` bytes from number `place` of the row at `address`: an i8, or a vector of them."""
    pointer = builder.gep(builder.inttoptr(address, _BYTE.as_pointer()), [place])
    return builder.load(builder.bitcast(pointer, _several(_BYTE, count).as_pointer()), align=1)


def _multiply_add(builder: ir.IRBuilder, left: ir.Value, right: ir.Value, total: ir.Value) -> ir.Value:
    """left·right + total, rounded once where the machine does so as fast, else twice."""
    kind = ir.FunctionType(total.type, [total.type] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")
    return builder.call(function, [left, right, total])


def _several(kind: ir.Type, count: int) -> ir.Type:
    return ir.VectorType(kind, count) if count > 1 else kind
