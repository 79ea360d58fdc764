"""Forms of storage: what is packed, number by number; what comes out again; products with rows as they lie."""

import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import naive_forms
from tests.indexes import make_encodings, make_index, unit_vectors
from tests.naive_forms import PACKED, STORAGES
from trackstar import stored_forms, stored_kernel, threads
from trackstar.encoding_reader import EncodingReader
from trackstar.errors import TrackStarError
from trackstar.spec import bytes_of_row
from trackstar.stored_forms import FORMS, StoredRows, _Packed

DIMENSIONS = [1, 2, 7, 8, 9, 16, 31, 32, 33, 40, 63, 65, 289, 1000]


def vectors_of(dimension: int, count: int = 11, seed: int = 0) -> torch.Tensor:
    """Unit vectors, among them some with zeros of either sign, equal sizes, halves of a step, and one large number."""
    vectors = unit_vectors(count, dimension, seed + dimension)
    vectors[1] = torch.where(torch.arange(dimension) % 3 > 0, vectors[1], -0.0)
    vectors[1, -1] = 0.25
    vectors[2] = dimension**-0.5
    vectors[3] = -(dimension**-0.5)
    vectors[4] *= 0.01
    vectors[4, 0] = 1
    # Ties: all are whole and half steps of 2⁻¹⁰.
    vectors[5] = (torch.arange(dimension) % 255 - 127) / 2048
    vectors[5, 0] = 127 / 1024
    return vectors


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_packed_number_by_number(storage: str, dimension: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = vectors_of(dimension)
    codes, factors = naive_forms.numbers(vectors, storage)
    monkeypatch.setattr(stored_forms, "_PIECE", 3 * dimension)
    stored = FORMS[storage].pack(vectors)
    assert stored.nbytes == len(vectors) * bytes_of_row(storage, dimension)
    raw = stored.matrix.view(torch.uint8).numpy()
    assert [row.tobytes() for row in raw] == naive_forms.row_bytes(vectors, storage)
    assert (stored.scales is not None) == (storage == "int8")
    if stored.scales is not None:
        assert stored.scales.double().tolist() == factors.tolist()
        assert (codes.max(axis=1) == 127).any() and (abs(codes).max(axis=1) == 127).all()
    assert stored.numbers().double().numpy().tolist() == codes.tolist()
    found = stored.factors()
    assert (np.ones(1) if found is None else found.numpy()).tolist() in (factors.tolist(), factors[:1].tolist())
    exact = stored.values()
    assert exact.dtype == torch.float64
    assert exact.numpy().tolist() == (codes * factors[:, None]).tolist()
    np.testing.assert_allclose(stored.norms(), np.linalg.norm(exact.numpy(), axis=1), rtol=1e-14)
    for row, scale, value in zip(raw, factors, exact.tolist(), strict=True):
        assert naive_forms.decoded(row.tobytes(), storage, dimension, float(scale)) == value


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_what_comes_out_is_packed_to_the_same_bits(storage: str, dimension: int) -> None:
    for seed in range(20):
        stored = FORMS[storage].pack(unit_vectors(50, dimension, seed) * 10.0 ** (seed - 10))
        again = FORMS[storage].pack(stored.values())
        assert torch.equal(stored.matrix, again.matrix)
        assert stored.scales is None or torch.equal(stored.scales, again.scales)


def test_errors_of_the_forms_are_as_large_as_they_are_said_to_be() -> None:
    vectors = unit_vectors(200, 4096)
    cosines = {
        name: torch.cosine_similarity(FORMS[name].pack(vectors).values(), vectors.double(), dim=1) for name in STORAGES
    }
    assert cosines["float32"].min() > 1 - 1e-6
    assert cosines["bfloat16"].min() > 1 - 1e-5
    assert cosines["int8"].min() > 1 - 2e-4
    np.testing.assert_allclose(cosines["sign"], np.sqrt(2 / np.pi), atol=0.03)  # of Gaussian directions
    stored = FORMS["int8"].pack(vectors)
    assert stored.scales is not None
    error = (stored.values() - vectors) / stored.scales[:, None]
    assert error.abs().max() <= 0.5 + 1e-5
    np.testing.assert_allclose(error.square().mean().sqrt(), 1 / np.sqrt(12), rtol=0.01)


@pytest.mark.parametrize("storage", PACKED)
@pytest.mark.parametrize("bad", [0.0, 1e-37, float("nan"), float("inf"), -float("inf")])
def test_what_has_no_direction_is_refused(storage: str, bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """So no scale is zero: a unit vector's largest number is at least 1/√d."""
    monkeypatch.setattr(stored_forms, "_PIECE", 2 * 33)
    vectors = unit_vectors(9, 33)
    if np.isfinite(bad):
        vectors[5] = bad
    else:
        vectors[5, 32] = bad
    with pytest.raises(TrackStarError, match=f"the vector of row 5 is {'zero' if np.isfinite(bad) else 'not finite'}"):
        FORMS[storage].pack(vectors)
    vectors[5] = 0
    vectors[5, 31] = 1e-30  # small, but a direction
    found = FORMS[storage].pack(vectors).values()[5].abs()
    assert found[31] == found.max() > 0
    assert len(FORMS[storage].pack(vectors[:0])) == 0


@pytest.mark.parametrize("storage", PACKED)
@pytest.mark.parametrize("dimension", [9, 33, 64, 289, 1000])
def test_some_columns_unpacked(storage: str, dimension: int) -> None:
    """By the kernel and by torch, into a buffer, with threads, from rows at any address."""
    form = FORMS[storage]
    assert isinstance(form, _Packed)
    stored = form.pack(unit_vectors(70, dimension))
    whole = stored.numbers()
    data = bytearray(stored.nbytes + 1)
    data[1:] = stored.matrix.view(torch.uint8).numpy().tobytes()
    shifted = torch.frombuffer(data, dtype=form.matrix_type, offset=1).view(stored.matrix.shape)
    for start, stop in ((0, dimension), (8, dimension), (8, 9), (0, 8), (8 * (dimension // 8), dimension), (0, 0)):
        columns = slice(start, stop)
        out = torch.full((70, stop - start), 7.0, dtype=torch.bfloat16)
        assert torch.equal(form.unpack(shifted, columns, out, threads.Shares()), whole[:, columns])
        assert torch.equal(out, whole[:, columns])
        by_torch = form.unpack_by_torch(stored.matrix, columns, torch.empty_like(out))
        assert torch.equal(by_torch, whole[:, columns])


@pytest.mark.parametrize("storage", PACKED)
def test_threads_share_the_rows(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_forms, "_SHARE", 100)
    stored = FORMS[storage].pack(unit_vectors(70, 289))
    alone = stored.numbers()
    assert torch.get_num_threads() == 1
    shares = threads.Shares()
    for count in (2, 5, 3, 1):
        torch.set_num_threads(count)
        try:
            assert torch.equal(stored.numbers(shares=shares), alone)
        finally:
            torch.set_num_threads(1)


def test_a_share_that_fails_fails_the_whole() -> None:
    def work(first: int, end: int) -> None:
        if first:
            raise ValueError(f"rows {first} to {end}")

    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="rows 5 to 10"):
            threads.Shares().run(work, 10, 1)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("storage", PACKED)
@pytest.mark.parametrize("dimension", [1, 7, 8, 15, 16, 17, 33, 289, 1000, 16184])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 30])
def test_products_with_rows_as_they_lie(storage: str, dimension: int, count: int) -> None:
    stored = FORMS[storage].pack(unit_vectors(count, dimension))
    queries = unit_vectors(3, dimension, 1)
    out = torch.full((3, count + 2), 7.0)
    stored_kernel.products(stored.matrix, queries, out[:, 1 : count + 1])
    codes, _ = naive_forms.numbers(unit_vectors(count, dimension), storage)
    true = queries.double().numpy() @ codes.T
    sizes = queries.double().abs().numpy() @ np.abs(codes).T
    assert (np.abs(out[:, 1:-1].double().numpy() - true) <= (dimension / 16 + 4) * 2.0**-23 * sizes).all()
    assert (out[:, 0] == 7).all() and (out[:, -1] == 7).all()


def test_nothing_beyond_the_rows_is_read_or_written() -> None:
    """The last row ends where the process's memory does."""
    for storage in PACKED:
        for dimension in (33, 289, 1000):
            stored = FORMS[storage].pack(unit_vectors(9, dimension))
            size = mmap.PAGESIZE * -(-stored.nbytes // mmap.PAGESIZE)
            memory = mmap.mmap(-1, size + mmap.PAGESIZE)
            _forbid(memory, size)
            start = size - stored.nbytes
            memory[start:size] = stored.matrix.view(torch.uint8).numpy().tobytes()
            form = stored.form
            matrix = torch.frombuffer(memory, dtype=form.matrix_type, count=stored.matrix.numel(), offset=start)
            moved = StoredRows(form, matrix.view(stored.matrix.shape), stored.scales, dimension)
            assert torch.equal(moved.numbers(), stored.numbers())
            queries = unit_vectors(2, dimension, 1)
            out, other = torch.empty(2, 9), torch.empty(2, 9)
            stored_kernel.products(moved.matrix, queries, out)
            stored_kernel.products(stored.matrix, queries, other)
            assert torch.equal(out, other)


def _forbid(memory: mmap.mmap, offset: int) -> None:
    """Makes the page at `offset` one that must not be touched."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + offset
    assert library.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0


def test_wrong_shapes_are_refused() -> None:
    stored = FORMS["sign"].pack(unit_vectors(4, 33))
    with pytest.raises(ValueError, match=r"rows of 40 numbers .* and 41 were asked for"):
        stored_kernel.unpack(stored.matrix, 8, torch.empty(4, 33, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="not from bit 4"):
        stored_kernel.unpack(stored.matrix, 4, torch.empty(4, 8, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="as many rows of bfloat16"):
        stored_kernel.unpack(stored.matrix, 0, torch.empty(3, 8, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="as many rows of bfloat16"):
        stored_kernel.unpack(stored.matrix, 0, torch.empty(4, 8))
    with pytest.raises(ValueError, match=r"\[queries, rows\] float32"):
        stored_kernel.products(stored.matrix, unit_vectors(2, 33), torch.empty(2, 3))
    with pytest.raises(ValueError, match="and 41 were asked for"):
        stored_kernel.products(stored.matrix, unit_vectors(2, 41), torch.empty(2, 4))
    with pytest.raises(ValueError, match="side by side in the CPU's memory"):
        stored_kernel.products(stored.matrix[:, :4], unit_vectors(2, 32), torch.empty(2, 4))


@pytest.mark.parametrize("storage", STORAGES)
def test_a_file_says_what_it_holds(tmp_path: Path, storage: str) -> None:
    vectors = unit_vectors(20, 100)
    shape = {"block_rows": 5, "block_columns": 10, "storage": storage}
    _, [item] = make_index(tmp_path, [[make_encodings(vectors)]], **shape)
    assert (item.metadata["storage"], item.metadata["dimension"]) == (storage, "100")
    assert item.metadata.get("max_norm") == (None if storage == "sign" else "1.01")
    reader = EncodingReader(item.uri, 100)
    assert reader.form is FORMS[storage]
    [chunk] = reader.chunks()
    assert not chunk.owned
    assert chunk.stored.values().numpy().tolist() == naive_forms.values(vectors, storage).tolist()
    some = chunk.stored.take(torch.tensor([3, 3, 19]))
    assert torch.equal(some.values(torch.float32), chunk.stored.values().float()[[3, 3, 19]])
    for other in (97, 104, 200, 50):  # of bits, 97 and 104 numbers have as many bytes
        with pytest.raises(TrackStarError, match=f"dimension 100, but the queries have dimension {other}"):
            EncodingReader(item.uri, other)
