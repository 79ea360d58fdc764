"""baseline: bm25s gives the same ranking, whatever the shards and workers; bad input is told."""

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path

import bm25s
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipelines import cli
from tests.end_to_end.world import sentences
from trackstar.evaluation.bm25 import BM25Settings, bm25_scores
from trackstar.evaluation.random_baseline import random_scores
from trackstar.results import Result, read_results

Documents = list[tuple[str, str]]

QUERIES = [
    {"inputs_plaintext": "The capital of France is", "targets_plaintext": "Paris", "fact_id": "capital/france"},
    {"inputs_plaintext": "seven green", "targets_plaintext": " old river", "example_id": "river"},
    {"inputs_plaintext": "", "targets_plaintext": "Italy Italy Rome", "example_id": "italy"},
]
K = 25
FORMATS = [
    ["jsonl"],
    ["parquet", "jsonl.gz"],
    ["jsonl", "jsonl.zst", "parquet", "jsonl.gz", "jsonl"],
]


def made_up(count: int = 150) -> Documents:
    """Documents of which many are equal, or as long as each other: scores tie."""
    texts = sentences(count, 7)
    return [(f"d{number}", texts[number % (count - 40)]) for number in range(count)]


def write_shard(path: Path, documents: Documents) -> None:
    lines = "".join(json.dumps({"id": id, "text": text}) + "\n" for id, text in documents).encode()
    if path.suffix == ".parquet":
        table = pa.table({"id": [id for id, _ in documents], "text": [text for _, text in documents]})
        pq.write_table(table, path, row_group_size=11)
    else:
        compress = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
        path.write_bytes(compress(lines))


def write_corpus(folder: Path, documents: Documents, formats: Sequence[str]) -> str:
    """Deals the documents out to one shard a format; returns the glob."""
    folder.mkdir(parents=True)
    for number, format in enumerate(formats):
        write_shard(folder / f"{number}.{format}", documents[number :: len(formats)])
    return str(folder / "*")


def write_queries(path: Path, queries: Sequence[dict[str, str]] = QUERIES) -> str:
    path.write_text("".join(json.dumps(query) + "\n" for query in queries))
    return str(path)


def baseline(method: str, pattern: str, queries: str, output: Path, *more: str) -> int:
    words = ["--method", method, "--corpus", pattern, "--queries", queries, "--output", str(output)]
    return cli.main(["baseline", *words, "--top_k", str(K), *more])


def texts_asked() -> list[str]:
    return [f"{query['inputs_plaintext']} {query['targets_plaintext']}" for query in QUERIES]


def bm25s_rankings(documents: Documents, k: int) -> list[list[tuple[float, str]]]:
    """What bm25s retrieves from the whole corpus: positive scores, best first, ties by id."""
    retriever = bm25s.BM25(dtype="float64")
    tokens = bm25s.tokenize([text for _, text in documents], stopwords=[], return_ids=False, show_progress=False)
    retriever.index(tokens, show_progress=False)
    asked = bm25s.tokenize(texts_asked(), stopwords=[], return_ids=False, show_progress=False)
    found, scores = retriever.retrieve(asked, k=len(documents), show_progress=False)
    rankings = []
    for rows, values in zip(found, scores, strict=True):
        pairs = [(-round(value, 9), documents[row][0]) for row, value in zip(rows, values, strict=True) if value > 0]
        rankings.append([(-score, id) for score, id in sorted(pairs)[:k]])
    return rankings


def check(results: Sequence[Result], documents: Documents) -> None:
    texts = dict(documents)
    for result, expected in zip(results, bm25s_rankings(documents, K), strict=True):
        assert list(result.proponents.ids) == [id for _, id in expected]
        np.testing.assert_allclose(result.proponents.scores, [score for score, _ in expected], atol=1e-5)
        assert list(result.proponents.texts) == [texts[id] for id in result.proponents.ids]
        assert result.opponents.ids == []


@pytest.mark.parametrize("formats", FORMATS, ids=len)
def test_bm25_equals_bm25s(tmp_path: Path, formats: list[str]) -> None:
    documents = made_up()
    pattern, queries = write_corpus(tmp_path / "corpus", documents, formats), write_queries(tmp_path / "queries.jsonl")
    assert baseline("bm25", pattern, queries, tmp_path / "r.jsonl", "--item_bytes", "3000") == 0
    results = read_results(str(tmp_path / "r.jsonl"))
    check(results, documents)
    assert any(len(set(result.proponents.scores)) < K for result in results)  # there were ties to break
    first, second, third = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert (first["example_id"], first["fact_id"], first["query_set"]) == ("0", "capital/france", "queries")
    assert (second["example_id"], third["example_id"]) == ("river", "italy")


@pytest.mark.parametrize("method", ["bm25", "random"])
def test_any_shards_and_workers_give_the_same_bytes(tmp_path: Path, method: str) -> None:
    documents = made_up()
    queries = write_queries(tmp_path / "queries.jsonl")
    outputs = []
    for number, (formats, flags) in enumerate(
        [
            (FORMATS[0], ["--item_bytes", "1000"]),
            (FORMATS[2], []),
            (FORMATS[2], ["--item_bytes", "500", "--direct_num_workers=2"]),
            (FORMATS[1], ["--direct_runner_bundle_repeat=1"]),  # every bundle is done twice, as after a failure
        ]
    ):
        pattern = write_corpus(tmp_path / f"corpus{number}", documents, formats)
        output = tmp_path / f"r{number}.jsonl"
        assert baseline(method, pattern, queries, output, *flags) == 0
        outputs.append(output.read_bytes())
    assert len(set(outputs)) == 1
    if method == "bm25":
        check(read_results(str(tmp_path / "r2.jsonl")), documents)


def test_random_draws_without_replacement(tmp_path: Path) -> None:
    documents = made_up()
    pattern, queries = write_corpus(tmp_path / "corpus", documents, FORMATS[1]), write_queries(tmp_path / "q.jsonl")
    for seed in (0, 5):
        assert baseline("random", pattern, queries, tmp_path / f"{seed}.jsonl", "--seed", str(seed)) == 0
    ids = [id for id, _ in documents]
    drawn = {seed: read_results(str(tmp_path / f"{seed}.jsonl")) for seed in (0, 5)}
    for seed, results in drawn.items():
        scores = random_scores(["0", "river", "italy"], ids, seed)
        for result, row in zip(results, scores, strict=True):
            assert list(result.proponents.ids) == [ids[at] for at in np.argsort(-row)[:K]]
            assert len(set(result.proponents.ids)) == K
            assert list(result.proponents.texts) == [dict(documents)[id] for id in result.proponents.ids]
    assert drawn[0][0].proponents.ids != drawn[5][0].proponents.ids
    assert drawn[0][0].proponents.ids != drawn[0][1].proponents.ids


def test_fewer_documents_than_top_k_are_all_drawn(tmp_path: Path) -> None:
    documents = made_up()[:9]
    pattern, queries = write_corpus(tmp_path / "corpus", documents, ["jsonl"]), write_queries(tmp_path / "q.jsonl")
    assert baseline("random", pattern, queries, tmp_path / "r.jsonl") == 0
    for result in read_results(str(tmp_path / "r.jsonl")):
        assert sorted(result.proponents.ids) == sorted(id for id, _ in documents)


def test_a_planted_document_comes_first(tmp_path: Path) -> None:
    planted = [(f"planted-{number}", text) for number, text in enumerate(texts_asked())]
    documents = made_up()
    documents[60:60] = planted
    pattern, queries = write_corpus(tmp_path / "corpus", documents, FORMATS[2]), write_queries(tmp_path / "q.jsonl")
    for variant in ("lucene", "atire"):
        assert baseline("bm25", pattern, queries, tmp_path / "r.jsonl", "--variant", variant) == 0
        results = read_results(str(tmp_path / "r.jsonl"))
        assert [result.proponents.ids[0] for result in results] == [id for id, _ in planted]


def test_the_words_flags_change_the_answer(tmp_path: Path) -> None:
    documents = [("0", "the river runs"), ("1", "of rivers and of the sea"), ("2", "Rome is of the hills")]
    pattern = write_corpus(tmp_path / "corpus", documents, ["jsonl"])
    queries = write_queries(tmp_path / "q.jsonl", [{"inputs_plaintext": "the river of", "targets_plaintext": "Rome"}])
    found = {}
    for name, flags in {
        "all": [],
        "stop": ["--stop_words", "english"],
        "stem": ["--stop_words", "english", "--stemming", "english"],
        "target": ["--query_text", "target"],
    }.items():
        assert baseline("bm25", pattern, queries, tmp_path / "r.jsonl", *flags) == 0
        [result] = read_results(str(tmp_path / "r.jsonl"))
        found[name] = dict(zip(result.proponents.ids, result.proponents.scores, strict=True))
    assert {name: set(ids) for name, ids in found.items()} == {
        "all": {"0", "1", "2"},
        "stop": {"0", "2"},
        "stem": {"0", "1", "2"},
        "target": {"2"},
    }
    settings = BM25Settings(stop_words="english", stemming="english")
    expected = bm25_scores([text for _, text in documents], ["the river of Rome"], settings)[0]
    assert found["stem"] == {id: score for (id, _), score in zip(documents, expected.tolist(), strict=True)}


def test_ids_are_the_index_s_and_long_documents_are_whole(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    lines = ["Rome", "A green city. " * 3000 + "Rome", "", "Paris in Italy"]
    shard = tmp_path / "corpus" / "a.txt"
    shard.write_text("\n".join(lines))
    queries = write_queries(tmp_path / "q.jsonl", [{"inputs_plaintext": "", "targets_plaintext": "Rome"}])
    assert baseline("bm25", str(shard), queries, tmp_path / "r.jsonl") == 0
    [result] = read_results(str(tmp_path / "r.jsonl"))
    assert list(result.proponents.ids) == [f"{shard}:0", f"{shard}:5"]
    assert list(result.proponents.texts) == lines[:2]


def test_queries_without_a_shared_word_are_counted(tmp_path: Path, capfd) -> None:
    unknown = [{"inputs_plaintext": "?", "targets_plaintext": text, "example_id": text} for text in ("xyzzy", "!!")]
    queries = write_queries(tmp_path / "q.jsonl", [unknown[0], QUERIES[0], unknown[1]])
    pattern = write_corpus(tmp_path / "corpus", made_up(), FORMATS[1])
    assert baseline("bm25", pattern, queries, tmp_path / "r.jsonl") == 0
    results = read_results(str(tmp_path / "r.jsonl"))
    assert [len(result.proponents.ids) for result in results] == [0, K, 0]
    shown = capfd.readouterr().err
    assert "2 of 3 queries share no word that counts with any of 150 documents" in shown
    assert "xyzzy, !!" in shown


BAD = [b'{"text": "half a line', b'{"title": "no text"}', b'{"input_ids": [5, 6, 7]}', b'{"text": "\xff broken"}']


@pytest.mark.parametrize("method", ["bm25", "random"])
def test_bad_records_are_left_out_and_counted(tmp_path: Path, capfd, method: str) -> None:
    documents = made_up()
    pattern, queries = write_corpus(tmp_path / "corpus", documents, FORMATS[2]), write_queries(tmp_path / "q.jsonl")
    assert baseline(method, pattern, queries, tmp_path / "clean.jsonl") == 0
    (tmp_path / "corpus" / "bad.jsonl").write_bytes(b"\n".join(BAD))
    capfd.readouterr()
    assert baseline(method, pattern, queries, tmp_path / "r.jsonl") == cli.EXIT_FAILED
    shown = capfd.readouterr().err
    bad = {"bm25": 4, "random": 3}[method]  # a random draw needs no text
    assert f"{bad} of 154 records ({bad / 154:.2%}) cannot be ranked. The limit is 1.00%" in shown
    assert "bad.jsonl:0: malformed JSON" in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "r.jsonl").exists()
    assert baseline(method, pattern, queries, tmp_path / "r.jsonl", "--max_reject_fraction", "0.1") == 0
    shown = capfd.readouterr().err
    assert f"{bad} of 154 records" in shown
    assert "were left out" in shown
    if method == "bm25":
        assert "bad.jsonl:43: token ids without a text" in shown
        assert (tmp_path / "r.jsonl").read_bytes() == (tmp_path / "clean.jsonl").read_bytes()
    else:
        assert len(read_results(str(tmp_path / "r.jsonl"))) == 3


@pytest.mark.parametrize("method", ["bm25", "random"])
@pytest.mark.parametrize(("name", "reason"), [("3.jsonl.gz", "truncated gzip"), ("2.parquet", "Parquet")])
def test_a_truncated_shard_fails_with_its_name(tmp_path: Path, capfd, method: str, name: str, reason: str) -> None:
    pattern, queries = write_corpus(tmp_path / "corpus", made_up(), FORMATS[2]), write_queries(tmp_path / "q.jsonl")
    shard = tmp_path / "corpus" / name
    shard.write_bytes(shard.read_bytes()[:-40])
    (tmp_path / "out").mkdir()
    assert baseline(method, pattern, queries, tmp_path / "out" / "r.jsonl") != 0
    shown = capfd.readouterr().err
    assert name in shown and reason in shown
    assert "Traceback" not in shown
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--corpus", "X/nothing*"], "no file matches"),
        (["--corpus", "X/empty.jsonl"], "the shards are empty; there is nothing to rank"),
        (["--corpus", "X/blank.jsonl"], "the corpus holds no document"),
        (["--queries", "X/empty.jsonl"], "no queries in this file"),
        (["--queries", "X/nowhere.jsonl"], "no such file"),
        (["--b", "1.5"], "b is 1.5; it must lie between 0 and 1"),
        (["--k1", "-1"], "k1 is -1.0; it must be zero or more"),
        (["--k1", "much"], "invalid float value: 'much'"),
        (["--variant", "bm25l"], "invalid choice: 'bm25l'"),
        (["--seed", "3"], "--seed has no meaning with --method bm25"),
        (["--method", "random", "--stemming", "english"], "--stemming has no meaning with --method random"),
        (["--method", "tfidf"], "invalid choice: 'tfidf'"),
        (["--stopwords", "english"], "unknown flag --stopwords; did you mean --stop_words?"),
    ],
)
def test_bad_command_lines(tmp_path: Path, capfd, flags: list[str], message: str) -> None:
    pattern, queries = write_corpus(tmp_path / "corpus", made_up()[:3], ["jsonl"]), write_queries(tmp_path / "q.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "blank.jsonl").write_text("\n \n")
    words = [word.replace("X", str(tmp_path)) for word in flags]
    assert baseline("bm25", pattern, queries, tmp_path / "r.jsonl", *words) in (cli.EXIT_USAGE, cli.EXIT_FAILED)
    shown = capfd.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "r.jsonl").exists()


def test_a_dry_run_reads_and_writes_nothing(tmp_path: Path, capfd) -> None:
    pattern, queries = write_corpus(tmp_path / "corpus", made_up(), ["jsonl"]), write_queries(tmp_path / "q.jsonl")
    size = os.path.getsize(tmp_path / "corpus" / "0.jsonl")
    flags = ["--dry_run", "--item_bytes", str(size // 3 + 1)]
    assert baseline("bm25", pattern, queries, tmp_path / "r.jsonl", *flags) == 0
    shown = capfd.readouterr().err
    assert "work items       3" in shown
    assert "work items       3, read twice" in shown
    assert f"to be read       {2 * size / 1000:.1f} kB" in shown
    assert not (tmp_path / "r.jsonl").exists()
