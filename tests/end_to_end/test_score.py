"""score: brute force gives the same ranking, whatever the workers and the grouping of files; bad input is told."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipelines import cli
from tests.end_to_end.world import World
from tests.naive_forms import decoded
from trackstar.corpus import Record
from trackstar.encoder import Encoder, precondition_and_normalise
from trackstar.index import Index
from trackstar.models import load_model
from trackstar.preconditioner import GramSum, Preconditioner, mix, mixing_weight
from trackstar.results import read_queries, read_results

QUERIES = [
    {"inputs_plaintext": "The capital of France is", "targets_plaintext": " Paris", "fact_id": "capital/france"},
    {"inputs_plaintext": "Rome is a city in", "targets_plaintext": "Italy", "example_id": "rome", "weight": 3},
    {"inputs_plaintext": "seven green", "targets_plaintext": "old river"},
]
K = 17


@pytest.fixture(scope="module")
def doubled(world: World, fitted: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Path]:
    """An index of a corpus in which one shard stands twice more under other names: every third row ties."""
    root = tmp_path_factory.mktemp("doubled")
    (root / "model").symlink_to(world.model)
    shutil.copytree(world.corpus, root / "corpus")
    lines = (root / "corpus" / "a.jsonl").read_text().splitlines()
    for name, prefix in (("y", "0"), ("z", "9")):
        copies = [{**json.loads(line), "id": prefix + json.loads(line)["id"]} for line in lines]
        (root / "corpus" / f"{name}.jsonl").write_text("".join(json.dumps(copy) + "\n" for copy in copies))
    index = root / "index"
    shutil.copytree(fitted, index)
    own = World(root)
    assert own.build(index) == 0
    (root / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in QUERIES))
    return own, index


def score(world: World, index: Path, output: Path, *more: str) -> int:
    words = ["--index", str(index), "--model", str(world.model), "--queries", str(world.root / "queries.jsonl")]
    return cli.main(["score", *words, "--output", str(output), "--top_k", str(K), "--scan_threads", "1", *more])


def stored(index: Path) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    """Ids, texts, encodings (float64) and norms of all rows, read with nothing but pyarrow."""
    opened = Index.open(str(index))
    ids, texts, vectors, norms = [], [], [], []
    for file in opened.snapshot().files:
        table = pq.read_table(file.uri)
        ids += table["example_id"].to_pylist()
        texts += table["text"].to_pylist()
        norms += table["grad_norm"].to_pylist()
        values = table["encoding"].to_pylist()
        scales = table["scale"].to_pylist() if "scale" in table.column_names else [1.0] * len(values)
        for value, scale in zip(values, scales, strict=True):
            vectors.append(decoded(value, opened.spec.storage, opened.spec.dimension, scale))
    return ids, texts, np.array(vectors), np.array(norms, np.float64)


def project(world: World, index: Path) -> tuple[Encoder, torch.Tensor]:
    """E of the queries, [N, blocks, d_b]."""
    spec = Index.open(str(index)).spec
    encoder = Encoder(load_model(str(world.model)), spec, None, None)
    queries = read_queries(str(world.root / "queries.jsonl"))
    examples = [encoder.tokenization.query(query.example_id, query.prompt, query.target) for query in queries]
    return encoder, encoder.project(examples).gradients


def check(output: Path, ids: list[str], scores: np.ndarray) -> None:
    """The file's rankings against those of scores [rows, queries], ids in order."""
    for number, result in enumerate(read_results(str(output))):
        column = scores[:, number]
        for ranking, sign in ((result.proponents, -1.0), (result.opponents, 1.0)):
            order = sorted(range(len(ids)), key=lambda row: (sign * round(column[row], 11), ids[row]))[:K]
            assert list(ranking.ids) == [ids[row] for row in order]
            np.testing.assert_allclose(ranking.scores, column[order], rtol=0, atol=1e-6)


def test_r_train_alone_equals_brute_force(doubled: tuple[World, Path], tmp_path: Path) -> None:
    world, index = doubled
    assert score(world, index, tmp_path / "r.jsonl", "--task_hessian", "none") == 0
    ids, _, vectors, _ = stored(index)
    train = Preconditioner.load(str(index / "preconditioner"))
    queries, _ = precondition_and_normalise(project(world, index)[1], train.inverse_root, "vector")
    scores = vectors @ queries.double().numpy().T
    check(tmp_path / "r.jsonl", ids, scores)
    best = read_results(str(tmp_path / "r.jsonl"))[0].proponents
    assert len(set(best.scores)) < K  # there were ties to break


def test_without_unit_norm_equals_brute_force(doubled: tuple[World, Path], tmp_path: Path) -> None:
    world, index = doubled
    assert score(world, index, tmp_path / "r.jsonl", "--task_hessian", "none", "--unit_norm", "false") == 0
    ids, _, vectors, norms = stored(index)
    train = Preconditioner.load(str(index / "preconditioner"))
    queries, query_norms = precondition_and_normalise(project(world, index)[1], train.inverse_root, "vector")
    scores = vectors @ queries.double().numpy().T * norms[:, None] * query_norms.double().numpy()
    for number, result in enumerate(read_results(str(tmp_path / "r.jsonl"))):
        column = scores[:, number]
        order = sorted(range(len(ids)), key=lambda row: (-float(f"{column[row]:.9g}"), ids[row]))[:K]
        assert list(result.proponents.ids) == [ids[row] for row in order]
        np.testing.assert_allclose(result.proponents.scores, column[order], rtol=1e-6)


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "sign"])
def test_a_block_a_weight_equals_brute_force(world: World, tmp_path: Path, capfd, storage: str) -> None:
    """Each to unit norm: under R_train, and under the mixed R; d = 756 is no multiple of 8."""
    own = World(tmp_path)
    (tmp_path / "model").symlink_to(world.model)
    (tmp_path / "corpus").mkdir()
    shutil.copy(world.corpus / "a.jsonl", tmp_path / "corpus")
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in QUERIES))
    index = tmp_path / "index"
    assert own.fit(index, "--layout", "weights", "--normalisation", "block", "--storage", storage) == 0
    assert "one block of 6×6 a weight (21), each to unit norm first" in capfd.readouterr().err
    assert own.build(index) == 0
    capfd.readouterr()
    assert cli.main(["inspect", str(index)]) == 0
    shown = {"bfloat16": "1,512 bytes a row", "int8": "756 bytes a row and a scale of 4", "sign": "95 bytes a row"}
    assert f"unit norm first; stored as {storage}, {shown[storage]}\n" in capfd.readouterr().out
    ids, _, vectors, _ = stored(index)
    _, gradients = project(own, index)
    train = Preconditioner.load(str(index / "preconditioner"))
    blocks = vectors.reshape(len(ids), 21, -1)
    np.testing.assert_allclose(np.linalg.norm(blocks, axis=2), 21**-0.5, rtol=2e-2 if storage == "int8" else 5e-3)
    assert score(own, index, tmp_path / "plain.jsonl", "--task_hessian", "none") == 0
    queries, _ = precondition_and_normalise(gradients, train.inverse_root, "block")
    check(tmp_path / "plain.jsonl", ids, vectors @ queries.double().numpy().T)
    assert score(own, index, tmp_path / "mixed.jsonl") == 0
    total = GramSum(*gradients.shape[1:])
    total.add(gradients)
    evaluation = Preconditioner.of(total.mean(), train.damping, total.count)
    mixed = mix(train, evaluation, mixing_weight(train, evaluation))
    queries, _ = precondition_and_normalise(gradients, mixed.inverse_root, "block")
    moved = np.stack(
        [blocks[:, b] @ (mixed.power(b, -0.5) @ train.power(b, 0.5)).float().double().numpy().T for b in range(21)],
        axis=1,
    )
    moved = (moved / np.linalg.norm(moved, axis=2, keepdims=True) / 21**0.5).reshape(len(ids), -1)
    check(tmp_path / "mixed.jsonl", ids, moved @ queries.double().numpy().T)
    assert score(own, index, tmp_path / "bad.jsonl", "--unit_norm", "false") == cli.EXIT_USAGE
    assert "--unit_norm false needs the sizes of all blocks" in capfd.readouterr().err


def test_mixed_preconditioner_equals_brute_force_and_encoding_afresh(
    doubled: tuple[World, Path], tmp_path: Path
) -> None:
    world, index = doubled
    assert score(world, index, tmp_path / "r.jsonl") == 0
    ids, texts, vectors, _ = stored(index)
    encoder, gradients = project(world, index)
    train = Preconditioner.load(str(index / "preconditioner"))
    total = GramSum(*gradients.shape[1:])
    total.add(gradients)
    evaluation = Preconditioner.of(total.mean(), train.damping, total.count)
    mixed = mix(train, evaluation, mixing_weight(train, evaluation))
    queries, _ = precondition_and_normalise(gradients, mixed.inverse_root, "vector")
    blocks = vectors.reshape(len(ids), mixed.num_blocks, -1)
    moved = np.concatenate(
        [
            blocks[:, b] @ (mixed.power(b, -0.5) @ train.power(b, 0.5)).float().double().numpy().T
            for b in range(mixed.num_blocks)
        ],
        axis=1,
    )
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    check(tmp_path / "r.jsonl", ids, moved @ queries.double().numpy().T)
    # The documents encoded afresh under the mixed R point the same way, to bfloat16's rounding of the stored rows.
    spec = dataclasses.replace(encoder.spec, storage="float32")
    afresh = Encoder(encoder.loaded, spec, None, mixed.inverse_root)
    documents = [
        afresh.tokenization.documents(Record(i, "", 0, t, None))[0][0] for i, t in zip(ids, texts, strict=True)
    ]
    cosines = (afresh.encode(documents)[0].vectors.double().numpy() * moved).sum(axis=1)
    assert cosines.min() > 0.9999


@pytest.mark.parametrize("unit_norm", [True, False])
def test_without_preconditioner_equals_brute_force_and_plain_gradients(
    doubled: tuple[World, Path], tmp_path: Path, unit_norm: bool
) -> None:
    world, index = doubled
    flags = ["--task_hessian", "identity", "--unit_norm", str(unit_norm).lower()]
    assert score(world, index, tmp_path / "r.jsonl", *flags) == 0
    ids, texts, vectors, _ = stored(index)
    encoder, gradients = project(world, index)
    train = Preconditioner.load(str(index / "preconditioner"))
    blocks = vectors.reshape(len(ids), train.num_blocks, -1)
    undone = np.concatenate(
        [blocks[:, b] @ train.power(b, 0.5).float().double().numpy().T for b in range(train.num_blocks)], axis=1
    )
    queries = gradients.flatten(1).double().numpy()
    if unit_norm:
        moved = undone / np.linalg.norm(undone, axis=1, keepdims=True)
        check(tmp_path / "r.jsonl", ids, moved @ (queries / np.linalg.norm(queries, axis=1, keepdims=True)).T)
    # The documents' plain projected gradients, of which the stored encodings are bfloat16's rounding.
    documents = [
        encoder.tokenization.documents(Record(i, "", 0, t, None))[0][0] for i, t in zip(ids, texts, strict=True)
    ]
    plain = encoder.project(documents).gradients.flatten(1).double().numpy()
    if unit_norm:
        plain /= np.linalg.norm(plain, axis=1, keepdims=True)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    products = dict(zip(ids, plain @ queries.T, strict=True))
    scale = np.linalg.norm(plain, axis=1).max() * np.linalg.norm(queries, axis=1)
    for number, result in enumerate(read_results(str(tmp_path / "r.jsonl"))):
        expected = [products[i][number] for i in result.proponents.ids]
        np.testing.assert_allclose(result.proponents.scores, expected, rtol=0, atol=5e-3 * scale[number])
        best = sorted((scores[number] for scores in products.values()), reverse=True)[:K]
        np.testing.assert_allclose(result.proponents.scores, best, rtol=0, atol=5e-3 * scale[number])


def test_any_number_of_workers_and_any_grouping_give_the_same_bytes(
    doubled: tuple[World, Path], tmp_path: Path
) -> None:
    world, index = doubled
    outputs = []
    settings = [
        [],
        ["--scan_bytes", "1"],
        ["--scan_bytes", "60000", "--scan_threads", "2"],
        ["--direct_num_workers=2", "--scan_bytes", "30000"],
    ]
    for number, flags in enumerate(settings):
        output = tmp_path / f"r{number}.jsonl"
        assert score(world, index, output, *flags) == 0
        outputs.append(output.read_bytes())
    assert len(set(outputs)) == 1


def test_results_carry_the_queries_fields_and_texts(doubled: tuple[World, Path], tmp_path: Path) -> None:
    world, index = doubled
    assert score(world, index, tmp_path / "r.jsonl", "--query_set", "mine", "--opponents", "false") == 0
    first, second, third = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert (first["example_id"], first["fact_id"], first["query_set"]) == ("0", "capital/france", "mine")
    assert (second["example_id"], second["weight"]) == ("rome", 3)
    ids, texts, _, _ = stored(index)
    by_id = dict(zip(ids, texts, strict=True))
    for result in (first, second, third):
        assert result["proponents"] == [by_id[i] for i in result["proponent_ids"]]
        assert result["opponents"] == result["opponent_ids"] == []
    assert not (index / "queries").exists() or not list((index / "queries").iterdir())


def test_results_say_where_examples_come_from_where_that_is_asked_for(
    doubled: tuple[World, Path], tmp_path: Path
) -> None:
    world, index = doubled
    assert score(world, index, tmp_path / "plain.jsonl") == 0
    assert score(world, index, tmp_path / "r.jsonl", "--sources", "true") == 0
    places = {}
    for file in Index.open(str(index)).snapshot().files:
        table = pq.read_table(file.uri, columns=["example_id", "position"]).to_pydict()
        places |= {i: (file.shard, at) for i, at in zip(table["example_id"], table["position"], strict=True)}
    pairs = zip(*((tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("plain", "r")), strict=True)
    for plain, line in pairs:
        result = json.loads(line)
        for end in ("proponent", "opponent"):
            found = zip(result.pop(f"{end}_shards"), result.pop(f"{end}_positions"), strict=True)
            assert list(found) == [places[i] for i in result[f"{end}_ids"]]
        assert result == json.loads(plain)
    again = read_queries(
        str(tmp_path / "r.jsonl")
    )  # a results file is a queries file, and these would be another run's
    assert [set(query.fields) for query in again] == [{"fact_id"}, {"weight"}, set()]


def test_a_kept_task_hessian_gives_the_same_results(doubled: tuple[World, Path], tmp_path: Path) -> None:
    world, index = doubled
    kept = str(tmp_path / "r_eval")
    assert score(world, index, tmp_path / "a.jsonl", "--keep_task_hessian", kept) == 0
    assert score(world, index, tmp_path / "b.jsonl", "--task_hessian", kept) == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert score(world, index, tmp_path / "c.jsonl", "--task_hessian", "none") == 0
    assert score(world, index, tmp_path / "d.jsonl", "--task_mixing", "0") == 0
    assert (
        read_results(str(tmp_path / "a.jsonl"))[0].proponents != read_results(str(tmp_path / "c.jsonl"))[0].proponents
    )
    # λ = 0 is R_train alone, but for the stored rows' norms, which bfloat16 leaves a little off 1.
    for one, other in zip(*(read_results(str(tmp_path / f"{name}.jsonl")) for name in "cd"), strict=True):
        np.testing.assert_allclose(one.proponents.scores, other.proponents.scores, rtol=2**-8)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"inputs_plaintext": "x"}', "line 1: the field 'targets_plaintext' is missing"),
        ('{"inputs_plaintext": "x", "targets_plaintext": ""}', "'targets_plaintext' is empty"),
        ('{"inputs_plaintext": "x", "targets_plaintext": "   "}', "query '0': the target is empty"),
        ("nonsense", "line 1: not JSON"),
        ("", "no queries in this file"),
    ],
)
def test_bad_queries(doubled: tuple[World, Path], tmp_path: Path, capfd, line: str, message: str) -> None:
    world, index = doubled
    (tmp_path / "model").symlink_to(world.model)
    (tmp_path / "queries.jsonl").write_text(line + "\n")
    assert score(World(tmp_path), index, tmp_path / "r.jsonl") in (cli.EXIT_USAGE, cli.EXIT_FAILED)
    shown = capfd.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "r.jsonl").exists()


def test_an_index_without_snapshot(world: World, fitted: Path, tmp_path: Path, capfd) -> None:
    (tmp_path / "model").symlink_to(world.model)
    (tmp_path / "queries.jsonl").write_text(json.dumps(QUERIES[0]) + "\n")
    assert score(World(tmp_path), fitted, tmp_path / "r.jsonl") == cli.EXIT_USAGE
    assert "nothing was committed yet; run `trackstar build-index` first" in capfd.readouterr().err
