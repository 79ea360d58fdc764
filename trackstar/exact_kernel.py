"""Dot products of stored rows with queries in float64, compiled; rows are read where they lie, however they are aligned.

The sum's order is part of the result, so it is fixed here. Of n columns, column c belongs to lane c mod 8. Each lane adds its
products one by one, in ascending order of columns; then lanes that are 4 apart are added, then 2 apart, then 1 apart. Nothing
else has a say: not the machine's vectors, the rows that are taken together, or the threads. A stored number (bfloat16, float32,
an integer of a byte, ±1 of a bit) and a query's float32 have together at most 48 significant bits, so that each product is
exact, with or without fused multiply-add.

Vectors are spelled out in LLVM's terms, where a loop in Python would depend on what the compiler makes of it. Compiling takes
about half a second a process, once for each storage type, when the first product is asked for.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8
_TOGETHER = 4  # rows that share a query's numbers, so that these are loaded and widened once

_INDEX, _HALF, _BYTE = ir.IntType(64), ir.IntType(16), ir.IntType(8)
_SINGLE, _DOUBLE = ir.FloatType(), ir.DoubleType()


def dot_products(
    addresses: np.ndarray, numbers: np.ndarray, queries: np.ndarray, edges: np.ndarray, dtype: type, out: np.ndarray
) -> None:
    """Σ_c row[c]·query[c] over the columns of each part, for P pairs of a row and a query. Holds no lock of Python's.

    The addresses are not checked; a row must be there, [d] numbers in the machine's byte order, and stay there.

    Args:
        addresses: [P] int64, of each row's first byte, any alignment.
        numbers: [P] int64, each pair's query; fastest where pairs of one query stand together.
        queries: [Q, d] float32, C-contiguous.
        edges: [parts, 2] int64, first and last (exclusive) column of each part.
        dtype: What rows are made of: np.uint16 for bfloat16's bits, np.float32, np.int8, or np.uint8 for bits that are
            numbers, the lowest of a byte first, +1 where set and −1 elsewhere.
        out: [P, parts] float64, C-contiguous, receives the sums.
    """
    _dot_products(addresses, numbers, queries, edges, np.empty((_TOGETHER, LANES)), out, np.empty(0, dtype))


@numba.njit(nogil=True)
def _dot_products(  # type: ignore[no-untyped-def]
    addresses, numbers, queries, edges, sums, out, like
) -> None:
    first = 0
    while first < len(numbers):
        number = numbers[first]
        last = first
        while last + 1 < len(numbers) and last + 1 < first + _TOGETHER and numbers[last + 1] == number:
            last += 1
        # Where there are fewer than four, the last one is taken several times.
        rows = (addresses[first], addresses[min(first + 1, last)], addresses[min(first + 2, last)], addresses[last])
        query = queries[number]
        for part in range(len(edges)):
            start, end = edges[part]
            whole = end - (end - start) % LANES
            _sum_lanes(rows, query, start, whole, sums, like)  # type: ignore[call-arg]
            for pair in range(first, last + 1):
                row = pair - first
                for column in range(whole, end):
                    sums[row, column - whole] += _number(addresses[pair], column, like) * np.float64(query[column])
                half = LANES // 2
                while half:
                    for lane in range(half):
                        sums[row, lane] += sums[row, lane + half]
                    half //= 2
                out[pair, part] = sums[row, 0]
        first = last + 1


@intrinsic
def _number(typing_context: Any, address: Any, place: Any, like: Any) -> tuple[Any, Callable[..., Any]]:
    """Number `place` of the row at `address`, as float64."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return _load(builder, arguments[0], arguments[1], like.dtype, 1)

    return types.float64(types.int64, types.int64, like), generate


@intrinsic
def _sum_lanes(
    typing_context: Any, rows: Any, query: Any, start: Any, end: Any, sums: Any, like: Any
) -> tuple[Any, Callable[..., Any]]:
    """sums[r, l] = Σ rows[r][c]·query[c] over the columns c = start + l, start + l + LANES, … below end."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        addresses = cgutils.unpack_tuple(builder, arguments[0], _TOGETHER)
        query_data = context.make_array(query)(context, builder, arguments[1]).data
        query_address = builder.ptrtoint(query_data, _INDEX)
        target = context.make_array(sums)(context, builder, arguments[4]).data
        vector = ir.VectorType(_DOUBLE, LANES)
        totals = [cgutils.alloca_once(builder, vector) for _ in addresses]
        for total in totals:
            builder.store(ir.Constant(vector, None), total)
        lanes = ir.Constant(_INDEX, LANES)
        with cgutils.for_range_slice(builder, arguments[2], arguments[3], lanes, _INDEX) as (column, _):
            factors = _load(builder, query_address, column, types.float32, LANES)
            for address, total in zip(addresses, totals, strict=True):
                terms = builder.fmul(_load(builder, address, column, like.dtype, LANES), factors)
                builder.store(builder.fadd(builder.load(total), terms), total)
        for row, total in enumerate(totals):
            place = builder.gep(target, [ir.Constant(_INDEX, row * LANES)])
            builder.store(builder.load(total), builder.bitcast(place, vector.as_pointer()), align=8)
        return context.get_dummy_value()

    return types.void(rows, query, types.int64, types.int64, sums, like), generate


def _load(builder: ir.IRBuilder, address: ir.Value, place: ir.Value, dtype: Any, count: int) -> ir.Value:
    """`count` numbers from number `place` of the row at `address`: a float64, or a vector of them."""

    def several(kind: ir.Type) -> ir.Type:
        return ir.VectorType(kind, count) if count > 1 else kind

    if dtype == types.uint8:
        return _signs(builder, address, place, count)
    stored = {types.float32: _SINGLE, types.int8: _BYTE}.get(dtype, _HALF)
    pointer = builder.gep(builder.inttoptr(address, stored.as_pointer()), [place])
    values = builder.load(builder.bitcast(pointer, several(stored).as_pointer()), align=1)
    if stored is _BYTE:
        return builder.sitofp(values, several(_DOUBLE))
    if stored is _HALF:  # bfloat16: the upper half of a float32
        bits = several(ir.IntType(32))
        sixteen = ir.Constant(bits, [16] * count if count > 1 else 16)
        values = builder.bitcast(builder.shl(builder.zext(values, bits), sixteen), several(_SINGLE))
    return builder.fpext(values, several(_DOUBLE))


def _signs(builder: ir.IRBuilder, address: ir.Value, place: ir.Value, count: int) -> ir.Value:
    """±1 in float64 of bit `place` of the row at `address`, or of the eight bits from there on; no byte beyond them is read."""

    def byte(number: ir.Value) -> ir.Value:
        where = builder.lshr(number, ir.Constant(_INDEX, 3))
        pointer = builder.gep(builder.inttoptr(address, _BYTE.as_pointer()), [where])
        return builder.zext(builder.load(pointer, align=1), _HALF)

    # Eight bits may begin within a byte: a part of columns need not begin at a multiple of 8.
    last = builder.add(place, ir.Constant(_INDEX, count - 1))
    both = builder.or_(byte(place), builder.shl(byte(last), ir.Constant(_HALF, 8)))
    shift = builder.trunc(builder.and_(place, ir.Constant(_INDEX, 7)), _HALF)
    bits = builder.trunc(builder.lshr(both, shift), ir.IntType(count))
    if count == 1:
        return builder.select(bits, ir.Constant(_DOUBLE, 1.0), ir.Constant(_DOUBLE, -1.0))
    vector = ir.VectorType(_DOUBLE, count)
    one, minus_one = (ir.Constant(vector, [number] * count) for number in (1.0, -1.0))
    return builder.select(builder.bitcast(bits, ir.VectorType(ir.IntType(1), count)), one, minus_one)
