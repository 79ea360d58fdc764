"""The scan against brute force: exact scores, exact order, whatever the files, blocks and limits."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import fixed_order, naive_forms
from tests.indexes import make_encodings, make_index, unit_vectors
from tests.naive_forms import PACKED, STORAGES
from trackstar import approximate, encoding_reader, held_rows, item_file, scoring
from trackstar.approximate import DirectProduct, QueryProduct
from trackstar.encodings import Encodings
from trackstar.errors import TrackStarError
from trackstar.item_footer import ItemFile
from trackstar.row_weights import RowWeights
from trackstar.scoring import Change, QuerySet, ScanSettings, TopK, fetch_passages, scan_file, scan_files
from trackstar.spec import bytes_of_row
from trackstar.stored_forms import FORMS

pytest_plugins = ["tests.gcs"]

Listed = list[list[tuple[float, str]]]


def listed(top: TopK | None) -> Listed:
    """Per query, (score, id) from the best on."""
    assert top is not None
    ids = top.example_ids.to_pylist()
    return [
        [(float(top.scores[i]), ids[i]) for i in range(len(top))[top.entries(query)]]
        for query in range(top.num_queries)
    ]


def brute_force(
    files: Sequence[Encodings], queries: torch.Tensor, k: int, largest: bool = True, storage: str = "bfloat16"
) -> Listed:
    """Every product in float64, then one sort."""
    ids = [example_id for file in files for example_id in file.example_ids]
    stored = [naive_forms.numbers(file.vectors, storage) for file in files]
    expected = []
    for query in queries.double().numpy():
        scores = [
            fixed_order.dot(row, query) * factor
            for codes, factors in stored
            for row, factor in zip(codes, factors.tolist(), strict=True)
        ]
        pairs = sorted(zip(scores, ids, strict=True), key=lambda pair: (-pair[0] if largest else pair[0], pair[1]))
        expected.append(pairs[:k])
    return expected


def cut(encodings: Encodings, cuts: Sequence[int]) -> list[Encodings]:
    """The rows in pieces."""
    edges = [0, *sorted(cuts), len(encodings)]
    return [encodings.rows(start, end) for start, end in itertools.pairwise(edges)]


def uris(items: Sequence[ItemFile]) -> list[str]:
    return [item.uri for item in items]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_equals_brute_force_with_ties(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    """Rows repeat, numbers are few, so whole scores tie; files, row groups, blocks and limits are as small as can be."""
    seed = data.draw(st.integers(0, 10**6), label="seed")
    num_rows = data.draw(st.sampled_from([0, 1, 2, 3, 17, 64, 65, 131]), label="rows")
    num_queries = data.draw(st.sampled_from([1, 2, 5, 33]), label="queries")
    k = data.draw(st.sampled_from([1, 3, 10, 200]), label="k")
    storage = data.draw(st.sampled_from(STORAGES), label="storage")
    cuts = data.draw(st.lists(st.integers(0, num_rows), max_size=3), label="cuts")
    kinds = data.draw(st.sampled_from([1, 2, 20, 1000]), label="different rows")
    max_pairs = data.draw(st.sampled_from([1, 50, 10**6]), label="max_pairs")
    monkeypatch.setattr(item_file, "ROW_GROUP_BYTES", data.draw(st.sampled_from([400, 3000, 10**6]), label="row group"))
    monkeypatch.setattr(scoring, "_BLOCK_ROWS", (1, data.draw(st.sampled_from([3, 40, 4096]), label="block")))
    monkeypatch.setattr(scoring, "_OPEN_FILES", data.draw(st.sampled_from([1, 64]), label="open files"))
    monkeypatch.setattr(approximate, "SLICE", data.draw(st.sampled_from([5, 32, 4096]), label="slice"))
    generator = torch.Generator().manual_seed(seed)
    different = torch.randint(-2, 3, (kinds, 32), generator=generator).float() / 4
    if kinds == 1000:
        different += torch.randn(different.shape, generator=generator) * 1e-3
    vectors = different[torch.randint(kinds, (num_rows,), generator=generator)]
    ids = [f"e{int(i)}" for i in torch.randperm(num_rows, generator=generator)]
    queries = torch.randint(-3, 4, (num_queries, 32), generator=generator) / 8
    queries[::2] += torch.randn(queries[::2].shape, generator=generator) / 16
    files = cut(make_encodings(vectors, ids), cuts)
    folder = tmp_path_factory.mktemp("index")
    _, items = make_index(folder, [[file] for file in files], storage=storage)
    how = ScanSettings(k, opponents=True, max_pairs=max_pairs)
    proponents, opponents = scan_files(uris(items), QuerySet.of(queries), how)
    assert listed(proponents) == brute_force(files, queries, k, True, storage)
    assert listed(opponents) == brute_force(files, queries, k, False, storage)
    merged = TopK.merge([scan_file(uri, QuerySet.of(queries), how)[0] for uri in reversed(uris(items))])
    assert listed(merged) == listed(proponents)
    assert merged.scores.tobytes() == proponents.scores.tobytes()


@pytest.mark.parametrize("storage", STORAGES)
def test_equals_brute_force_where_neighbours_are_close(tmp_path: Path, storage: str) -> None:
    """Most rows are within what bfloat16 can tell apart, so the product in the stored type gets the order wrong."""
    base = unit_vectors(1, 2048)
    vectors = torch.nn.functional.normalize(base + 0.002 * unit_vectors(600, 2048, 1), dim=1)
    queries = torch.cat([base, unit_vectors(3, 2048, 2)]) * torch.tensor([[1.0], [1e-6], [1e6], [1.0]])
    files = cut(make_encodings(vectors), [100, 333])
    _, items = make_index(tmp_path, [[file] for file in files], block_rows=32, block_columns=32, storage=storage)
    found, _ = scan_files(uris(items), QuerySet.of(queries), ScanSettings(20))
    expected = brute_force(files, queries, 20, storage=storage)
    assert listed(found) == expected
    if storage == "bfloat16":
        rough = (vectors.bfloat16() @ queries[0].bfloat16()).topk(20).indices
        assert [f"e{int(i)}" for i in rough] != [example_id for _, example_id in expected[0]]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dimension", [9, 100, 289])
def test_one_query_or_many_give_the_same_bits(tmp_path: Path, storage: str, dimension: int) -> None:
    """With few queries packed rows are multiplied as they lie, with many they are unpacked, some columns at a time."""
    vectors = unit_vectors(300, dimension)
    files = cut(make_encodings(vectors), [120])
    shape = {"num_blocks": 1, "block_rows": 1, "block_columns": dimension, "storage": storage}
    _, items = make_index(tmp_path, [[file] for file in files], **shape)
    queries = torch.cat([unit_vectors(9, dimension, 5), vectors[:3]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(approximate, "SLICE", 61)  # 64 columns
        patch.setattr(approximate, "_TILE_ROWS", 7)
        patch.setattr(approximate, "_TILE_BYTES", 7)
        together = listed(scan_files(uris(items), QuerySet.of(queries), ScanSettings(12))[0])
    assert together == brute_force(files, queries, 12, storage=storage)
    for count in (1, 2, 3, 5):
        some = [
            scan_files(uris(items), QuerySet.of(queries[i : i + count]), ScanSettings(12)) for i in range(0, 12, count)
        ]
        assert [row for proponents, _ in some for row in listed(proponents)] == together


@pytest.mark.parametrize("storage", PACKED)
@pytest.mark.parametrize("adversary", ["random", "rounding", "cancelling", "equal", "uneven"])
def test_bounds_hold_of_packed_rows(storage: str, adversary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpacked, and as they lie."""
    dimension = 9001
    queries, rows = unit_vectors(4, dimension, 1), unit_vectors(50, dimension, 2)
    if adversary == "rounding":  # rows along what rounding takes from the queries
        rows = (queries - queries.bfloat16().float() + 1e-12).repeat(10, 1)
    elif adversary == "cancelling":
        rows = torch.cat([rows, rows + 1e-3 * unit_vectors(50, dimension, 3)])
        queries = rows[:1] - rows[1:5] + queries * 1e-4
    elif adversary == "equal":
        rows = torch.full((8, dimension), 0.010009765625)
        queries = torch.full((2, dimension), 0.0100123)
    elif adversary == "uneven":  # scales and scores of all sizes
        rows = rows * (unit_vectors(50, dimension, 4).abs() * dimension**0.5) ** 4
        queries = torch.cat([queries, rows[:3]]) * torch.tensor([[1e-6], [1e6], [1.0], [1.0], [1.0], [1.0], [1.0]])
    rows = torch.nn.functional.normalize(rows, dim=1)
    stored = FORMS[storage].pack(rows)
    norm = stored.norms().max().item() * 1.0001
    codes, factors = naive_forms.numbers(rows, storage)
    true = torch.from_numpy(queries.double().numpy() @ codes.T * factors)
    for product in (QueryProduct(queries, torch.bfloat16, torch.device("cpu")), DirectProduct(queries, FORMS[storage])):
        bounded = product(stored, norm)
        assert bounded.radius is None
        radius = bounded.constant.double()[:, None]
        assert ((bounded.centre.double() - true).abs() <= radius).all()
        rounding = 0.005 * true.abs().max(dim=1).values[:, None] if isinstance(product, QueryProduct) else 0.0
        limit = 0.01 if isinstance(product, QueryProduct) else 2e-4
        assert (radius <= limit * queries.double().norm(dim=1)[:, None] + rounding).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("adversary", ["random", "rounding", "cancelling", "equal", "parallel"])
def test_bounds_hold(dtype: torch.dtype, adversary: str) -> None:
    """Also where rounding errors all have one sign, which random vectors never show."""
    dimension = 9000
    queries, rows = unit_vectors(4, dimension, 1), unit_vectors(50, dimension, 2)
    if adversary == "rounding":  # rows along what rounding took from the queries
        rows = torch.nn.functional.normalize((queries - queries.to(dtype).float() + 1e-12).repeat(10, 1), dim=1)
    elif adversary == "cancelling":
        rows = torch.cat([rows, rows + 1e-3 * unit_vectors(50, dimension, 3)])
        queries = rows[:1] - rows[1:5] + queries * 1e-4
    elif adversary == "equal":
        rows = torch.full((8, dimension), 0.010009765625)
        queries = torch.full((2, dimension), 0.0100123)
    elif adversary == "parallel":  # nothing but the output is rounded
        dimension = 16
        rows = unit_vectors(200, dimension, 2).bfloat16().float()
        queries = rows[:50]
    rows = rows.to(dtype)
    norm = float(rows.float().norm(dim=1).max()) * 1.0001
    product = QueryProduct(queries, dtype, torch.device("cpu"))
    bounded = product(rows, norm)
    true = queries.double() @ rows.double().T
    radius = bounded.constant.double()[:, None] + (0 if bounded.radius is None else bounded.radius.double())
    assert ((bounded.centre.double() - true).abs() <= radius).all()
    assert (
        radius <= 0.01 * queries.double().norm(dim=1)[:, None] * rows.double().norm(dim=1) + 0.005 * true.abs()
    ).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("storage", ["bfloat16", "float32"])
def test_not_finite_rows_are_named(tmp_path: Path, bad: float, storage: str) -> None:
    width = {"bfloat16": 2, "float32": 4}[storage] * 32
    _, [item] = make_index(tmp_path, [[make_encodings(unit_vectors(50, 32))]], storage=storage)
    path = Path(item.uri)
    with path.open("r+b") as file:
        file.seek(64 + 37 * width + width // 2)
        file.write(torch.tensor([bad]).to(FORMS[storage].matrix_type).view(torch.uint8).numpy().tobytes())
    for queries in (unit_vectors(3, 32), torch.zeros(1, 32)):
        for how in (ScanSettings(5), ScanSettings(5, unit_norm=False), ScanSettings(5, opponents=True)):
            with pytest.raises(TrackStarError, match=rf"{item.key}\.parquet, row 37: .*NaN or infinity"):
                scan_file(item.uri, QuerySet.of(queries), how)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_damaged_scales_are_named(tmp_path: Path, bad: float | None) -> None:
    _, [item] = make_index(tmp_path, [[make_encodings(unit_vectors(50, 32))]], storage="int8")
    table = pq.read_table(item.uri)
    scales = table["scale"].to_pylist()
    scales[37] = bad
    place = table.schema.get_field_index("scale")
    pq.write_table(table.set_column(place, "scale", pa.array(scales, pa.float32())), item.uri)
    message = "rows without a value in 'scale'" if bad is None else "row 37: .*NaN or infinity"
    for queries in (unit_vectors(1, 32), unit_vectors(3, 32), torch.zeros(3, 32)):
        with pytest.raises(TrackStarError, match=rf"{item.key}\.parquet.*{message}"):
            scan_file(item.uri, QuerySet.of(queries), ScanSettings(5))
    pq.write_table(table.drop_columns(["scale"]), item.uri)
    with pytest.raises(TrackStarError, match="its column 'scale' is gone"):
        scan_file(item.uri, QuerySet.of(queries), ScanSettings(5))


def test_bad_queries_and_settings_are_named(tmp_path: Path) -> None:
    vectors = unit_vectors(3, 32)
    vectors[2, 1] = float("nan")
    with pytest.raises(TrackStarError, match="gradient of query 2"):
        QuerySet.of(vectors)
    with pytest.raises(TrackStarError, match="at least one query"):
        QuerySet.of(torch.zeros(0, 32))
    for name in ("top_k", "max_pairs", "max_bytes"):
        with pytest.raises(TrackStarError, match=f"{name} is 0"):
            ScanSettings(**{name: 0})
    _, [item] = make_index(tmp_path, [[make_encodings(unit_vectors(5, 32))]])
    with pytest.raises(TrackStarError, match="encodings of dimension 32, but the queries have dimension 48"):
        scan_file(item.uri, QuerySet.of(unit_vectors(1, 48)), ScanSettings())


@pytest.mark.parametrize("damage", ["shorter", "not an index"])
def test_damaged_files_are_named(tmp_path: Path, damage: str) -> None:
    _, [item] = make_index(tmp_path, [[make_encodings(unit_vectors(500, 32))]])
    if damage == "shorter":
        data = Path(item.uri).read_bytes()
        Path(item.uri).write_bytes(data[:100])
    else:
        pq.write_table(pq.read_table(item.uri).drop_columns(["encoding"]), item.uri)
    with pytest.raises(TrackStarError, match=rf"{item.key}\.parquet: (truncated|not a file of an index)"):
        scan_file(item.uri, QuerySet.of(unit_vectors(1, 32)), ScanSettings())


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "sign"])
@pytest.mark.parametrize("rewrite", ["compressed", "dictionary", "nullable", "binary", "pages v2"])
def test_files_that_another_program_rewrote_are_read(tmp_path: Path, rewrite: str, storage: str) -> None:
    encodings = make_encodings(unit_vectors(300, 32))
    queries = unit_vectors(4, 32, 5)
    _, [item] = make_index(tmp_path, [[encodings]], storage=storage)
    table = pq.read_table(item.uri)
    if rewrite in ("nullable", "binary"):
        kind = {"nullable": pq.read_schema(item.uri).field("encoding").type, "binary": "binary"}[rewrite]
        table = table.set_column(0, "encoding", table["encoding"].cast(kind))
    pq.write_table(
        table,
        item.uri,
        compression="zstd" if rewrite == "compressed" else "none",
        use_dictionary=rewrite == "dictionary",
        data_page_version="2.0" if rewrite == "pages v2" else "1.0",
        data_page_size=1000,
        write_batch_size=10,
        row_group_size=70,
    )
    found, _ = scan_file(item.uri, QuerySet.of(queries), ScanSettings(7))
    assert listed(found) == brute_force([encodings], queries, 7, storage=storage)
    # Without metadata, numbers that have bytes of their own are told by their width; others are not guessed at.
    pq.write_table(table.replace_schema_metadata(None), item.uri)
    if storage == "bfloat16":
        assert listed(scan_file(item.uri, QuerySet.of(queries), ScanSettings(7))[0]) == listed(found)
    else:
        with pytest.raises(TrackStarError, match="stored as its metadata does not say what"):
            scan_file(item.uri, QuerySet.of(queries), ScanSettings(7))


def test_many_plain_pages_are_used_in_place(tmp_path: Path) -> None:
    _, [item] = make_index(tmp_path, [[make_encodings(unit_vectors(300, 32))]])
    schema = pq.read_schema(item.uri)
    pq.write_table(
        pq.read_table(item.uri).cast(schema),
        item.uri,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        data_page_size=1000,
        write_batch_size=10,
    )
    reader = encoding_reader.EncodingReader(item.uri, 32)
    chunks = list(reader.chunks())
    assert len(chunks) > 5
    assert not any(chunk.owned for chunk in chunks)
    assert torch.equal(torch.cat([chunk.stored.matrix for chunk in chunks]), unit_vectors(300, 32).bfloat16())


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "sign"])
def test_objects_are_scanned_in_pieces_of_bounded_size(gcs: str, monkeypatch: pytest.MonkeyPatch, storage: str) -> None:
    width = bytes_of_row(storage, 32)
    monkeypatch.setattr(item_file, "ROW_GROUP_BYTES", width * 30)
    encodings = make_encodings(unit_vectors(200, 32))
    queries = unit_vectors(3, 32, 1)
    files = cut(encodings, [70])
    where = f"{gcs}/index-{storage}"
    _, items = make_index(where, [[file] for file in files], storage=storage)  # type: ignore[arg-type]
    held: list[int] = []
    original = scoring._Scan.settle

    def settle(scan: scoring._Scan) -> None:
        held.append(sum(one.chunk.stored.nbytes for one in scan._held._held))
        original(scan)

    monkeypatch.setattr(scoring._Scan, "settle", settle)
    found, _ = scan_files(uris(items), QuerySet.of(queries), ScanSettings(9, max_bytes=width * 65))
    assert listed(found) == brute_force(files, queries, 9, storage=storage)
    assert len(held) > 3
    assert max(held) <= width * 65
    ids, texts, positions = fetch_passages(items[1].uri, [129, 0, 64])
    assert (ids, texts, positions) == (["e199", "e70", "e134"], ["text 199", "text 70", "text 134"], [199, 70, 134])


def test_memory_stays_bounded_when_every_row_ties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_BLOCK_ROWS", (1, 50))
    encodings = make_encodings(unit_vectors(1, 32).repeat(3000, 1), [f"{(i * 7919) % 3000:05d}" for i in range(3000)])
    _, [item] = make_index(tmp_path, [[encodings]])
    queries = torch.cat([encodings.vectors[:1], unit_vectors(3, 32, 4)])
    largest = 0
    original = scoring._Scan._crowded

    def crowded(scan: scoring._Scan) -> bool:
        nonlocal largest
        answer = original(scan)
        largest = max(largest, *(len(candidates) for candidates in scan._candidates))
        return answer

    monkeypatch.setattr(scoring._Scan, "_crowded", crowded)
    found, opponents = scan_file(item.uri, QuerySet.of(queries), ScanSettings(5, True, max_pairs=1000))
    assert [[example_id for _, example_id in row] for row in listed(found)] == [[f"{i:05d}" for i in range(5)]] * 4
    assert [[example_id for _, example_id in row] for row in listed(opponents)] == [[f"{i:05d}" for i in range(5)]] * 4
    assert largest <= 1000 + 4 * 50


@pytest.mark.parametrize("storage", STORAGES)
def test_without_unit_norm_both_norms_count(tmp_path: Path, storage: str) -> None:
    norms = np.exp(np.random.default_rng(0).normal(size=400)).astype(np.float32)
    norms[3] = 0
    encodings = make_encodings(unit_vectors(400, 32), grad_norm=norms)
    queries = QuerySet(unit_vectors(4, 32, 1), torch.tensor([1.0, 0.3, 1e4, 0.0]))
    _, [item] = make_index(tmp_path, [[encodings]], storage=storage)
    stored, factors = naive_forms.numbers(encodings.vectors, storage)
    for top, largest in zip(
        scan_file(item.uri, queries, ScanSettings(50, opponents=True, unit_norm=False)), (True, False), strict=True
    ):
        for query, row in enumerate(listed(top)):
            products = np.array([fixed_order.dot(row, queries.vectors[query].numpy()) for row in stored])
            scores = products * factors * norms.astype(np.float64) * float(queries.grad_norm[query]) + 0.0
            order = sorted(range(400), key=lambda i, s=scores: (-s[i] if largest else s[i], f"e{i}"))[:50]
            assert row == [(scores[i], f"e{i}") for i in order]
    plain, _ = scan_file(item.uri, queries, ScanSettings(50))
    weighted, _ = scan_file(item.uri, queries, ScanSettings(50, unit_norm=False))
    assert listed(plain)[0] != listed(weighted)[0]


def _random_change(normalisation: str, seed: int) -> Change:
    """Two blocks of 16, far from the identity."""
    generator = torch.Generator().manual_seed(seed)
    matrices = torch.eye(16) + 0.5 * torch.randn(2, 16, 16, generator=generator)
    return Change(matrices, normalisation)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("normalisation", ["vector", "block"])
def test_a_change_of_preconditioner_equals_encoding_anew(
    tmp_path: Path, normalisation: str, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = _random_change(normalisation, 1)
    vectors = unit_vectors(500, 32)
    if storage not in PACKED:
        vectors[7] = 0  # no direction: scores nothing under any preconditioner
    vectors[8, :16] = 0
    vectors[9] = vectors[10]
    files = cut(make_encodings(vectors), [200, 201])
    _, items = make_index(tmp_path, [[file] for file in files], storage=storage, normalisation=normalisation)
    queries = change.apply(unit_vectors(6, 32, 9))
    anew = change.apply(torch.from_numpy(naive_forms.values(vectors, storage))).double().numpy()
    scores = queries.double().numpy() @ anew.T
    found, opponents = scan_files(uris(items), QuerySet.of(queries), ScanSettings(40, opponents=True), change)
    plain, _ = scan_files(uris(items), QuerySet.of(queries), ScanSettings(40))
    assert [[i for _, i in row] for row in listed(plain)] != [[i for _, i in row] for row in listed(found)]
    for top, largest in ((found, True), (opponents, False)):
        for query, row in enumerate(listed(top)):
            best = np.sort(-scores[query] if largest else scores[query])[:40] * (-1 if largest else 1)
            np.testing.assert_allclose([score for score, _ in row], best, atol=3e-7)
            for score, example_id in row:
                np.testing.assert_allclose(score, scores[query][int(example_id[1:])], atol=3e-7)
    for row in listed(found):  # equal rows have equal scores
        ids = [example_id for _, example_id in row]
        if "e9" in ids or "e10" in ids:
            assert ids.index("e9") == ids.index("e10") + 1
    merged = TopK.merge(
        [scan_file(uri, QuerySet.of(queries), ScanSettings(40), change)[0] for uri in reversed(uris(items))]
    )
    assert merged.scores.tobytes() == found.scores.tobytes()
    assert listed(merged) == listed(found)
    monkeypatch.setattr(held_rows, "_EXACT_PRODUCTS", 7)
    monkeypatch.setattr(scoring, "_CHANGED_ROWS", 30)
    by_steps, _ = scan_files(uris(items), QuerySet.of(queries), ScanSettings(40), change)
    assert by_steps.scores.tobytes() == found.scores.tobytes()
    assert listed(by_steps) == listed(found)


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "sign"])
@pytest.mark.parametrize("normalisation", ["vector", "block"])
def test_a_change_finds_its_winners_among_near_ties(tmp_path: Path, normalisation: str, storage: str) -> None:
    change = _random_change(normalisation, 2)
    vectors = torch.nn.functional.normalize(unit_vectors(1, 32) + 0.003 * unit_vectors(800, 32, 1), dim=1)
    _, [item] = make_index(tmp_path, [[make_encodings(vectors)]], normalisation=normalisation, storage=storage)
    queries = change.apply(torch.cat([vectors[:1], unit_vectors(2, 32, 3)]))
    scores = queries.double() @ change.apply(torch.from_numpy(naive_forms.values(vectors, storage))).double().T
    found, _ = scan_file(item.uri, QuerySet.of(queries), ScanSettings(30), change)
    for query, row in enumerate(listed(found)):
        np.testing.assert_allclose([s for s, _ in row], scores[query].sort(descending=True).values[:30], atol=3e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("normalisation", ["vector", "block"])
@pytest.mark.parametrize("kind", ["mild", "harsh", "nothing left"])
def test_bounds_hold_under_a_change_of_many_blocks(dtype: torch.dtype, normalisation: str, kind: str) -> None:
    """Also of parts that are zero, that the change takes away, or that are far smaller than others."""
    blocks, size = 40, 25
    generator = torch.Generator().manual_seed(1)
    matrices = torch.eye(size) + 0.3 * torch.randn(blocks, size, size, generator=generator)
    if kind == "harsh":  # directions of very unequal weight
        matrices = matrices @ torch.diag(torch.logspace(-6, 3, size))
    elif kind == "nothing left":
        matrices[5] = 0
        matrices[6, :, 1:] = 0
    change = Change(matrices, normalisation)
    rows = unit_vectors(120, blocks * size, 2)
    rows[3] = 0
    rows[4, : 10 * size] = 0
    rows[5, : 20 * size] *= 1e-6
    rows[6, 6 * size] = 0  # what M leaves of this block
    rows = rows.to(dtype)
    queries = change.fold(change.apply(torch.cat([rows[7:9].float(), unit_vectors(6, blocks * size, 3)])))
    weights = RowWeights(change, None, "file")
    product = QueryProduct(queries, dtype, torch.device("cpu"))
    bounded = product.weighted(weights.bounds(0, rows))
    exact = torch.from_numpy(weights.exact(np.arange(120), lambda places: rows[list(places)]))  # [rows, parts]
    parts = change.blocks() if normalisation == "block" else [slice(0, blocks * size)]
    true = sum(
        queries[:, part].double() @ rows[:, part].double().T * exact[:, number] for number, part in enumerate(parts)
    )
    assert bounded.radius is not None
    centre, radius = bounded.centre.double(), bounded.radius.double() + bounded.constant.double()[:, None]
    assert ((centre - true).abs() <= radius).all()
    if kind == "mild":
        assert radius.median() < (0.02 if dtype == torch.bfloat16 else 5e-4)
    assert (exact[3] == 0).all()
    backwards = np.arange(119, -1, -7)
    again = weights.exact(backwards, lambda places: rows[backwards[list(places)]])
    assert again.tobytes() == exact.numpy()[119::-7].tobytes()


@pytest.mark.parametrize("storage", ["float32", "int8", "sign"])
def test_a_change_without_unit_norm_needs_no_new_norms(tmp_path: Path, storage: str) -> None:
    change = _random_change("vector", 3)
    norms = np.linspace(0.1, 3, 200).astype(np.float32)
    encodings = make_encodings(unit_vectors(200, 32), grad_norm=norms)
    _, [item] = make_index(tmp_path, [[encodings]], storage=storage)
    queries = QuerySet(change.apply(unit_vectors(2, 32, 4)), torch.tensor([2.0, 3.0]))
    held = torch.from_numpy(naive_forms.values(encodings.vectors, storage))
    moved = change.product(held).reshape(200, 32) * norms[:, None]
    scores = (queries.vectors * queries.grad_norm[:, None]).double().numpy() @ moved.T
    found, _ = scan_file(item.uri, queries, ScanSettings(10, unit_norm=False), change)
    for query, row in enumerate(listed(found)):
        np.testing.assert_allclose([s for s, _ in row], np.sort(scores[query])[::-1][:10], rtol=1e-5)


def test_files_of_queries_and_changes(tmp_path: Path) -> None:
    queries = QuerySet(unit_vectors(3, 32), torch.tensor([1.0, 2.0, 3.0]))
    queries.save(str(tmp_path / "q.safetensors"))
    again = QuerySet.load(str(tmp_path / "q.safetensors"))
    assert torch.equal(again.vectors, queries.vectors)
    assert torch.equal(again.grad_norm, queries.grad_norm)
    change = _random_change("block", 0)
    change.save(str(tmp_path / "c.safetensors"))
    loaded = Change.load(str(tmp_path / "c.safetensors"))
    assert torch.equal(loaded.matrices, change.matrices)
    assert loaded.normalisation == "block"
    with pytest.raises(TrackStarError, match="expected \\['folded', 'grad_norm', 'vectors'\\]"):
        QuerySet.load(str(tmp_path / "c.safetensors"))
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(TrackStarError, match=r"bad\.safetensors: not a readable safetensors file"):
        QuerySet.load(str(tmp_path / "bad.safetensors"))
    with pytest.raises(TrackStarError, match="dimension 32, the queries 48"):
        scan_files([], QuerySet.of(unit_vectors(1, 48)), ScanSettings(), change)
    with pytest.raises(TrackStarError, match="normalisation 'layer'"):
        dataclasses.replace(change, normalisation="layer")


def test_passages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_file, "ROW_GROUP_BYTES", 64 * 10)
    encodings = make_encodings(unit_vectors(35, 32), start=5)
    _, [item] = make_index(tmp_path / "a", [[encodings]])
    assert fetch_passages(item.uri, [34, 0, 17, 0]) == (
        ["e39", "e5", "e22", "e5"],
        ["text 39", "text 5", "text 22", "text 5"],
        [39, 5, 22, 5],
    )
    assert fetch_passages(item.uri, []) == ([], [], [])
    with pytest.raises(TrackStarError, match="it has 35"):
        fetch_passages(item.uri, [35])
    _, [bare] = make_index(tmp_path / "b", [[dataclasses.replace(encodings, texts=None)]], stores_text=False)
    assert fetch_passages(bare.uri, np.array([2])) == (["e7"], None, [7])
