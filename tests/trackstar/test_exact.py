"""Scores in float64: right, and the same to the last bit however they are computed."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import fixed_order
from tests.indexes import make_encodings, make_index, unit_vectors
from trackstar.encoding_reader import EncodingReader
from trackstar.exact import RowPairs, exact_products
from trackstar.exact_kernel import dot_products

TYPES = [torch.bfloat16, torch.float32]


def all_pairs(queries: int, matrices: list[torch.Tensor]) -> RowPairs:
    """Every query with every row."""
    place = [(m, r) for m, matrix in enumerate(matrices) for r in range(len(matrix))]
    matrix, row = np.array(place).T
    return RowPairs(np.repeat(np.arange(queries), len(row)), np.tile(matrix, queries), np.tile(row, queries), matrices)


def wild(count: int, dimension: int, seed: int) -> torch.Tensor:
    """[count, dimension] float32 of all magnitudes, so that the order of a sum shows."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(-40, 40, (count, dimension), generator=generator)
    return torch.ldexp(torch.randn(count, dimension, generator=generator), sizes)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("dimension", [1, 5, 8, 9, 17, 289, 16384])
def test_sums_are_right_to_rounding(dtype: torch.dtype, dimension: int) -> None:
    """Against exactly rounded sums of exact products."""
    rows, queries = wild(3, dimension, 1).to(dtype), wild(2, dimension, 2)
    pairs = all_pairs(2, [rows])
    products = exact_products(queries, [slice(0, dimension)], pairs)
    for product, query, row in zip(products[:, 0], pairs.query, pairs.row, strict=True):
        terms = (rows[int(row)].double() * queries[int(query)].double()).tolist()
        steps = -(-dimension // fixed_order.LANES) + 3  # additions that a term goes through
        assert abs(product - math.fsum(terms)) <= steps * 2.0**-53 * math.fsum(map(abs, terms))


@pytest.mark.parametrize("dtype", TYPES)
def test_unit_vectors_to_the_last_digits(dtype: torch.dtype) -> None:
    rows, queries = unit_vectors(3, 5000, 1).to(dtype), unit_vectors(2, 5000, 2)
    pairs = all_pairs(2, [rows])
    for product, query, row in zip(
        exact_products(queries, [slice(0, 5000)], pairs)[:, 0], pairs.query, pairs.row, strict=True
    ):
        terms = rows[int(row)].double() * queries[int(query)].double()
        assert math.isclose(product, math.fsum(terms.tolist()), abs_tol=1e-17)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("dimension", [1, 7, 8, 32, 289 * 3, 16384])
def test_the_order_of_the_sum_is_the_one_that_is_written_down(dtype: torch.dtype, dimension: int) -> None:
    rows, queries = wild(11, dimension, 1).to(dtype), wild(5, dimension, 2)
    parts = [slice(0, dimension // 3), slice(dimension // 3, dimension)]
    pairs = all_pairs(5, [rows])
    products = exact_products(queries, parts, pairs)
    for pair in range(len(pairs)):
        row, query = rows[int(pairs.row[pair])].float().numpy(), queries[int(pairs.query[pair])].numpy()
        assert products[pair].tolist() == [fixed_order.dot(row[part], query[part]) for part in parts]
    assert any(np.dot(rows[0].double(), queries[0].double()) != product for product in products[0]) or dimension < 32


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("dimension", [1, 7, 32, 16384])
def test_bits_do_not_depend_on_neighbours_order_threads_or_alignment(dtype: torch.dtype, dimension: int) -> None:
    rows, queries = wild(150, dimension, 1).to(dtype), wild(5, dimension, 2)
    parts = [slice(0, dimension // 3), slice(dimension // 3, dimension)]
    pairs = all_pairs(5, [rows])
    whole = exact_products(queries, parts, pairs)
    assert torch.get_num_threads() == 1
    for threads in (2, 3):
        torch.set_num_threads(threads)
        try:
            assert exact_products(queries, parts, pairs).tobytes() == whole.tobytes()
        finally:
            torch.set_num_threads(1)
    order = np.random.default_rng(0).permutation(len(pairs))  # pairs of a query no longer stand together
    mixed = RowPairs(pairs.query[order], pairs.matrix[order], pairs.row[order], [rows])
    assert exact_products(queries, parts, mixed).tobytes() == whole[order].tobytes()
    for offset in (1, 2, 3):  # in a file, a page begins where its header ends
        data = bytearray(rows.nbytes + offset)
        data[offset:] = rows.view(torch.uint8).numpy().tobytes()
        shifted = torch.frombuffer(data, dtype=dtype, offset=offset).view(rows.shape)
        assert (shifted.data_ptr() - torch.frombuffer(data, dtype=torch.uint8).data_ptr()) == offset
        moved = RowPairs(pairs.query, pairs.matrix + 1, pairs.row, [rows[:1], shifted])
        assert exact_products(queries, parts, moved).tobytes() == whole.tobytes()
    for pair in range(0, len(pairs), 149):
        one = slice(pair, pair + 1)
        alone = RowPairs(pairs.query[one], pairs.matrix[one], pairs.row[one], [rows])
        assert exact_products(queries, parts, alone).tobytes() == whole[one].tobytes()


def test_rows_are_read_from_the_files_own_pages(tmp_path: Path) -> None:
    vectors, queries = unit_vectors(40, 32), unit_vectors(3, 32, 1)
    _, [item] = make_index(tmp_path, [[make_encodings(vectors)]])
    [chunk] = EncodingReader(item.uri, 32).chunks()
    assert not chunk.owned
    pairs = all_pairs(3, [chunk.stored.matrix])
    expected = exact_products(queries, [slice(0, 32)], all_pairs(3, [vectors.bfloat16()]))
    assert exact_products(queries, [slice(0, 32)], pairs).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
@pytest.mark.parametrize("dimension", [1, 7, 8, 17, 32, 289 * 3, 16184])
def test_bytes_and_bits_are_read_where_they_lie(dtype: torch.dtype, dimension: int) -> None:
    """Parts begin anywhere, within bytes of bits too; so does a row in memory."""
    generator = torch.Generator().manual_seed(dimension)
    queries = wild(5, dimension, 2)
    if dtype == torch.int8:
        rows = torch.randint(-128, 128, (11, dimension), generator=generator).to(torch.int8)
        numbers = rows.double().numpy()
    else:
        rows = torch.randint(0, 256, (11, -(-dimension // 8)), generator=generator).to(torch.uint8)
        numbers = 2.0 * np.unpackbits(rows.numpy(), axis=1, bitorder="little")[:, :dimension] - 1
    data = bytearray(rows.nbytes + 3)
    data[3:] = rows.numpy().tobytes()
    shifted = torch.frombuffer(data, dtype=dtype, offset=3).view(rows.shape)
    cuts = [0, dimension // 3, dimension // 2, dimension]
    parts = [slice(start, end) for start, end in itertools.pairwise(cuts)]
    pairs = all_pairs(5, [rows[:0], shifted])
    products = exact_products(queries, parts, pairs)
    for pair in range(len(pairs)):
        row, query = numbers[int(pairs.row[pair])], queries[int(pairs.query[pair])].numpy()
        assert products[pair].tolist() == [fixed_order.dot(row[part], query[part]) for part in parts]
    with pytest.raises(ValueError, match="numbers, queries"):
        exact_products(queries.repeat(1, 9), parts, pairs)


@pytest.mark.parametrize("dtype", TYPES)
def test_special_numbers(dtype: torch.dtype) -> None:
    """Infinities and NaN come through, in a vector and in what is left over; nothing is flushed to zero, no zero is negative."""
    tiny = torch.finfo(dtype).tiny / 4
    rows = torch.zeros(6, 19, dtype=dtype)
    rows[0, 3], rows[1, 18], rows[2, 17], rows[3, 2], rows[4] = torch.inf, -torch.inf, torch.nan, tiny, -0.0
    rows[5, 0], rows[5, 8] = torch.inf, -torch.inf
    queries = torch.ones(1, 19)
    products = exact_products(queries, [slice(0, 19)], all_pairs(1, [rows]))[:, 0]
    np.testing.assert_array_equal(products, [np.inf, -np.inf, np.nan, tiny, 0.0, np.nan])
    assert not np.signbit(products[4])
    largest = torch.finfo(torch.float32).max
    huge = exact_products(torch.full((1, 19), largest), [slice(0, 19)], all_pairs(1, [torch.full((1, 19), largest)]))
    assert huge[0, 0] == 19 * float(largest) ** 2  # beyond float32


def test_nothing_beyond_the_rows_is_read() -> None:
    rows, queries = unit_vectors(4, 32).bfloat16(), unit_vectors(2, 32)
    where = [slice(0, 32)]

    def pair(query: int, matrix: int, row: int, *matrices: torch.Tensor) -> RowPairs:
        return RowPairs(np.array([query]), np.array([matrix]), np.array([row]), matrices)

    for number, row in ((0, 4), (0, -1), (2, 0), (-1, 0)):
        with pytest.raises(IndexError, match="a pair names"):
            exact_products(queries, where, pair(number, 0, row, rows))
    with pytest.raises(IndexError, match="a row that its matrix does not have"):
        exact_products(queries, where, pair(0, 1, 0, rows, rows.new_empty(0, 0)))
    with pytest.raises(ValueError, match="rows have 16 numbers, queries 32"):
        exact_products(queries, where, pair(0, 0, 0, rows[:, :16]))
    with pytest.raises(ValueError, match="side by side"):
        exact_products(queries, where, pair(0, 0, 0, unit_vectors(32, 32).bfloat16().T))
    with pytest.raises(ValueError, match="parts"):
        exact_products(queries, [slice(0, 33)], pair(0, 0, 0, rows))
    none = RowPairs(np.empty(0, int), np.empty(0, int), np.empty(0, int), [rows])
    assert exact_products(queries, where, none).shape == (0, 1)


def test_no_lock_of_pythons_is_held() -> None:
    """Another thread gets its turn while the products run, which one call with the lock would not let it."""
    import threading
    import time

    rows, queries = unit_vectors(64, 16384).bfloat16(), unit_vectors(1, 16384)
    count = 20_000
    addresses = rows.data_ptr() + np.arange(count) % 64 * rows[:1].nbytes
    out = np.empty((count, 1))
    edges = np.array([[0, 16384]])

    def work() -> None:
        dot_products(addresses, np.zeros(count, np.int64), queries.numpy(), edges, np.uint16, out)

    work()  # compiled
    thread = threading.Thread(target=work)
    ticks = 0
    thread.start()
    while thread.is_alive():
        time.sleep(0.0005)
        ticks += 1
    thread.join()
    assert ticks > 5
