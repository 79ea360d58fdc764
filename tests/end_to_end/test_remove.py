"""remove: gone from results at once, from the files with the next build, and byte for byte as if encoded without."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines import cli
from tests.end_to_end.world import World, digests, rows
from trackstar import removed_items
from trackstar.index import Index
from trackstar.item_footer import ItemCounts
from trackstar.removal import TakeDown, take_downs
from trackstar.results import read_results

QUERIES = [
    {"inputs_plaintext": "The capital of France is", "targets_plaintext": " Paris"},
    {"inputs_plaintext": "seven green", "targets_plaintext": "old river"},
]


@pytest.fixture
def own(built: Path, tmp_path: Path) -> Path:
    """A built index of the test's own."""
    shutil.copytree(built, tmp_path / "own")
    return tmp_path / "own"


def score(world: World, index: Path, *more: str) -> list[tuple[list[str], list[float]]]:
    """Ids and scores of proponents, then of opponents, query by query."""
    queries, output = index.parent / "queries.jsonl", index.parent / "results.jsonl"
    queries.write_text("".join(json.dumps(query) + "\n" for query in QUERIES))
    words = ["--index", str(index), "--model", str(world.model), "--queries", str(queries), "--output", str(output)]
    assert cli.main(["score", *words, "--top_k", "12", "--scan_threads", "1", "--task_hessian", "none", *more]) == 0
    results = list(read_results(str(output)))
    return [(side.ids, side.scores) for result in results for side in (result.proponents, result.opponents)]


def remove(index: Path, ids: list[str], *more: str) -> int:
    path = index.parent / "ids.txt"
    path.write_text("".join(f"{name}\n" for name in ids))
    return cli.main(["remove", "--index", str(index), *(["--ids", str(path)] if ids else []), *more])


def texts(index: Path) -> str:
    """All that lies under the index, as text."""
    parts = []
    for path in sorted((index / "encodings").glob("*.parquet")):
        parts += pq.read_table(path, columns=["text", "example_id"])["text"].to_pylist()
    return "\n".join(parts + [path.read_text() for path in sorted((index / "rejects").glob("*"))])


def counts(index: Path) -> ItemCounts:
    opened = Index.open(str(index))
    total = ItemCounts()
    for file in opened.snapshot().files:
        item = opened.has_item(file.key)
        assert item is not None
        total += ItemCounts.of(item.metadata)
    return total


def test_results_are_without_it_at_once_and_files_after_the_next_build(
    world: World, built: Path, own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = score(world, own)
    gone = {before[0][0][0], before[0][0][3], before[1][0][0], before[2][0][1], "4-none"}
    plain = Index.open(str(own)).snapshot()
    assert remove(own, sorted(gone), "--reason", "asked for", "--dry_run") == 0
    assert take_downs(str(own)) == []
    assert remove(own, sorted(gone), "--reason", "asked for") == 0
    assert "not found   1 ids, kept out all the same: 4-none" in capfd.readouterr().err

    masked = score(world, own, "--direct_num_workers=2", "--scan_bytes", "60000")
    assert all(len(ids) == 12 and not gone & set(ids) for ids, _ in masked)
    for (ids, scores), (old_ids, old_scores) in zip(masked, before, strict=True):
        stay = [place for place, name in enumerate(old_ids) if name not in gone]
        assert ids[: len(stay)] == [old_ids[i] for i in stay]
        assert scores[: len(stay)] == [old_scores[i] for i in stay]

    untouched = digests(own)
    assert world.build(own) == 0
    index = Index.open(str(own))
    assert index.versions() == [0, 1]
    assert score(world, own) == score(world, own, "--version", "0") == masked
    assert len(rows(own)) == len(rows(built)) - (len(gone) - 1)
    total = counts(own)
    assert total.removed == len(gone) - 1
    assert total.examples + total.rejected + total.removed == total.records == 350
    # Only the files that were hit are other ones.
    hit = {file.key for file in plain.files} - {file.key for file in index.snapshot().files}
    assert 1 <= len(hit) <= 4
    after = digests(own)
    assert {name: after[name] for name in untouched} == untouched
    assert removed_items.files_to_purge(index) == hit

    # A build from nothing with the same take-downs gives the same bytes, encoded and not copied.
    fresh = tmp_path / "fresh"
    shutil.copytree(
        own, fresh, ignore=lambda folder, names: [n for n in names if n.endswith((".parquet", "_delta_log"))]
    )
    for folder in ("rejects", "checksums/encodings", "checksums/rejects"):
        shutil.rmtree(fresh / folder, ignore_errors=True)
    assert world.build(fresh) == 0
    kept = {f"{file.key}.parquet" for file in index.snapshot().files}
    assert digests(fresh) == {name: digest for name, digest in after.items() if name in kept}

    # So does one that knows the take-downs alone, and meets what they name in the corpus.
    shutil.rmtree(fresh)
    shutil.copytree(
        own, fresh, ignore=lambda folder, names: [n for n in names if n in ("encodings", "rejects", "checksums")]
    )
    for name in ("hits", "items"):
        shutil.rmtree(fresh / "removed" / name)
    assert world.build(fresh) == 0
    assert digests(fresh) == {name: digest for name, digest in after.items() if name in kept}


def test_a_second_take_down_of_the_same_item(
    world: World, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file that was written without the first one is hit, too; and a killed take-down is finished by the build."""
    assert remove(own, ["1-3"]) == 0 and remove(own, ["1-3"]) == 0
    assert cli.main(["inspect", str(own)]) == 0
    shown = capsys.readouterr().out
    assert "records taken down   0 left out of the files; 1 rows still in the files are hidden" in shown
    assert "take-downs           2: 1 ids, 0 shards" in shown
    assert world.build(own) == 0
    assert cli.main(["inspect", str(own)]) == 0
    assert "records taken down   1 left out of the files; 0 rows still" in capsys.readouterr().out
    first = Index.open(str(own)).snapshot()
    entry = TakeDown.new(["1-4"], [], "", 1, 0, 0)  # published, and killed before it looked through the files
    entry.publish(str(own))
    assert world.build(own) == 0
    index = Index.open(str(own))
    assert (tmp_path / "own" / "removed" / "hits" / f"{entry.name}.jsonl").exists()
    names = {name for file in index.snapshot().files for name in pq.read_table(file.uri)["example_id"].to_pylist()}
    assert len(names) == 348 and not names & {"1-3", "1-4"}
    assert counts(own).removed == 2
    assert len({file.key for file in first.files} ^ {file.key for file in index.snapshot().files}) == 2
    assert index.versions() == [0, 1, 2]
    assert world.build(own) == 0
    assert index.versions() == [0, 1, 2]


def test_files_of_a_run_that_did_not_know_are_looked_through(world: World, built: Path, index: Path) -> None:
    """A build writes its files while a take-down is made that sees none of them: none is committed with it."""
    assert remove(index, ["1-3"], "--allow_missing") == 0
    shutil.copytree(
        built / "encodings", index / "encodings", dirs_exist_ok=True, ignore=lambda folder, names: ["_delta_log"]
    )
    shutil.copytree(built / "checksums", index / "checksums", dirs_exist_ok=True)
    assert world.build(index) == 0
    names = [
        name
        for file in Index.open(str(index)).snapshot().files
        for name in pq.read_table(file.uri)["example_id"].to_pylist()
    ]
    assert len(names) == 349 and "1-3" not in names


def test_a_shard_goes_whole(world: World, own: Path) -> None:
    shard = str(world.corpus / "b.jsonl.gz")
    assert remove(own, [], "--shard", str(world.corpus / "b.*")) == 0
    assert not any(name.startswith("2-") for ids, _ in score(world, own) for name in ids)
    assert world.build(own) == 0
    index = Index.open(str(own))
    assert shard not in {file.shard for file in index.snapshot().files}
    assert len(rows(own)) == 290
    for key in removed_items.files_to_purge(index):
        index.delete_item(key)
    assert not any(shard in pq.read_table(path)["shard"].to_pylist() for path in (own / "encodings").glob("*.parquet"))
    [entry] = take_downs(str(own))
    assert (entry.shards, entry.ids, entry.rows, entry.version) == ((shard,), (), 60, 0)


def test_rejected_records_are_taken_down_with_what_they_say(world: World, tmp_path: Path, fitted: Path) -> None:
    index, corpus = tmp_path / "index", tmp_path / "corpus"
    shutil.copytree(fitted, index)
    corpus.mkdir()
    lines = [{"id": f"x{i}", "text": "The capital of France is Paris."} for i in range(40)]
    lines[3]["text"], lines[5]["text"], lines[7]["text"] = "a", "b", "   "  # one token; nothing
    content = "".join(json.dumps(line) + "\n" for line in lines)
    broken = f"{corpus / 'a.jsonl'}:{len(content)}"
    content += '{"id": "x40", "text": secret}\n'
    (corpus / "a.jsonl").write_text(content)
    words = ["--corpus", str(corpus / "*"), "--model", str(world.model), "--max_reject_fraction", "0.5"]
    assert cli.main(["build-index", "--index", str(index), *words]) == 0
    total = counts(index)
    assert (total.records, total.rejected) == (41, 4)
    assert remove(index, ["x3", "x7", "x9", broken]) == 0
    assert cli.main(["build-index", "--index", str(index), *words]) == 0
    total = counts(index)
    assert (total.records, total.examples, total.rejected, total.removed) == (41, 36, 1, 4)
    opened = Index.open(str(index))
    for key in removed_items.files_to_purge(opened):
        opened.delete_item(key)
    assert "secret" not in texts(index) and len(list((index / "rejects").iterdir())) == 1
    copied = digests(index)
    shutil.rmtree(index / "encodings")
    assert cli.main(["build-index", "--index", str(index), *words]) == 0
    assert digests(index) == copied


def test_passages_of_split_documents(world: World, tmp_path: Path) -> None:
    index = tmp_path / "index"
    assert world.fit(index, "--max_length", "12", "--long_documents", "split", "--preconditioner", "none") == 0
    assert world.build(index) == 0
    names = [
        name
        for file in Index.open(str(index)).snapshot().files
        for name in pq.read_table(file.uri)["example_id"].to_pylist()
    ]
    of_first = [name for name in names if name.split("#")[0] == "1-0"]
    other = next(name for name in names if name.startswith("3-") and name.endswith("#1"))
    assert len(of_first) > 1
    assert remove(index, ["1-0", other]) == 0
    assert world.build(index) == 0
    left = [
        name
        for file in Index.open(str(index)).snapshot().files
        for name in pq.read_table(file.uri)["example_id"].to_pylist()
    ]
    assert sorted(left) == sorted(set(names) - {*of_first, other})
    copied = digests(index)
    shutil.rmtree(index / "encodings")
    assert world.build(index) == 0
    assert digests(index).items() <= copied.items()


def test_a_reindex_writes_what_was_hit_without_reading_a_document(
    world: World, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a vacuum deletes the old files, whatever the retention; nothing says what was taken down any more."""
    index = Index.open(str(own))
    victim = pq.read_table(index.snapshot().files[0].uri)
    name, text = victim["example_id"][0].as_py(), victim["text"][0].as_py()
    assert text in texts(own)
    assert remove(own, [name]) == 0
    words = ["--corpus", world.pattern, "--model", str(tmp_path / "no model is needed"), "--index", str(own)]
    assert cli.main(["reindex", *words, "--vacuum_days", "30", "--drift_sample", "0"]) == 0
    assert "rewriting done: 1/1 items" in capsys.readouterr().err
    assert index.versions()[-1] == 1 and index.snapshot().num_rows == 349
    assert len(digests(own)) == len(index.snapshot().files)
    assert text not in texts(own)
    assert verify_passes(own)
    assert cli.main(["reindex", *words, "--drift_sample", "0"]) == 0
    assert "nothing has changed since version 1" in capsys.readouterr().err


def verify_passes(index: Path) -> bool:
    return cli.main(["verify", "--index", str(index)]) == 0


def test_the_log_and_what_is_refused(world: World, own: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["remove", "--index", str(own), "--list"]) == 0
    assert "nothing was ever taken down" in capfd.readouterr().out
    for words, message in {
        (): "nothing is named to be taken down",
        ("--shard", "none.jsonl"): "the index has no shard none.jsonl",
        ("--list", "--shard", "x"): "--list shows take-downs and makes none",
        ("--ids", str(own / "none")): "no such file",
    }.items():
        assert cli.main(["remove", "--index", str(own), *words]) == cli.EXIT_USAGE
        assert message in capfd.readouterr().err
    assert remove(own, ["none", "nobody"]) == cli.EXIT_USAGE
    assert "none of the 2 ids is in the index" in capfd.readouterr().err
    assert take_downs(str(own)) == []
    assert remove(own, ["none"], "--allow_missing", "--reason", "to come") == 0
    assert remove(own, ["1-0"], "--shard", str(world.corpus / "d.txt"), "--reason", "Ü 1") == 0
    assert cli.main(["remove", "--index", str(own), "--list"]) == 0
    first, second = capfd.readouterr().out.splitlines()[-2:]
    lines = sorted([first, second], key=lambda line: "Ü 1" in line)
    assert "1 ids, 0 shards, 0 examples at version 0  to come" in lines[0]
    assert "1 ids, 1 shards, 51 examples at version 0  Ü 1" in lines[1]
    assert cli.main(["remove", "--index", str(own), "--list", "--json"]) == 0
    entries = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert sorted(entry["ids"] for entry in entries) == [["1-0"], ["none"]]


def test_a_damaged_file_does_not_keep_a_take_down_from_being_made(
    world: World, own: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    opened = Index.open(str(own))
    victim = next(
        file for file in opened.snapshot().files if "1-3" in pq.read_table(file.uri)["example_id"].to_pylist()
    )
    data = Path(victim.uri).read_bytes()
    Path(victim.uri).write_bytes(data[:-20])
    assert remove(own, ["1-3"]) == 0
    assert "not all files could be looked through" in capfd.readouterr().err
    Path(victim.uri).write_bytes(data)
    assert all("1-3" not in ids for ids, _ in score(world, own))
    assert world.build(own) == 0
    assert len(rows(own)) == 349


def test_what_is_damaged_is_not_copied_but_encoded_anew(world: World, built: Path, own: Path) -> None:
    assert remove(own, ["1-3"]) == 0
    opened = Index.open(str(own))
    [hit] = removed_items.all_hits(opened)
    path = Path(opened.item_uri(hit.file))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert world.build(own) == 0
    damaged = digests(own)
    path.write_bytes((built / "encodings" / path.name).read_bytes())
    new = {name for name in damaged if name not in digests(built)}
    [name] = new
    (own / "encodings" / name).unlink()
    assert world.build(own) == 0
    assert digests(own)[name] == damaged[name]
