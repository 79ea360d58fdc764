"""standing: rankings that follow the index equal `score` on it, byte for byte; what is new is told; bad input is told."""

import json
import os
import shutil
from pathlib import Path

import pytest

from pipelines import cli, standing_scans
from pipelines.progress import Reporter
from pipelines.scan_flags import Scanning
from pipelines.scanning import Scan
from pipelines.standing_sets import update_all
from tests.end_to_end.world import MODIFIED, World, sentences
from trackstar.errors import TrackStarError
from trackstar.index import Index
from trackstar.removal import TakeDown
from trackstar.standing import StandingSet

QUERIES = [
    {"inputs_plaintext": "The capital of France is", "targets_plaintext": " Paris", "fact_id": "capital/france"},
    {"inputs_plaintext": "Rome is a city in", "targets_plaintext": "Italy", "example_id": "rome"},
    {"inputs_plaintext": "seven green", "targets_plaintext": "old river"},
]
K = 6


@pytest.fixture
def own(world: World, fitted: Path, tmp_path: Path) -> tuple[World, Path]:
    """A corpus and a full index of the test's own, and the queries."""
    (tmp_path / "model").symlink_to(world.model)
    (tmp_path / "corpus").mkdir()
    for name in ("a.jsonl", "b.jsonl.gz"):
        shutil.copy2(world.corpus / name, tmp_path / "corpus" / name)
    shutil.copytree(fitted, tmp_path / "index")
    (tmp_path / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in QUERIES))
    made = World(tmp_path)
    assert made.build(tmp_path / "index") == 0
    return made, tmp_path / "index"


def run(world: World, index: Path, action: str, *more: str) -> int:
    words = {"add": ["--queries", str(world.root / "queries.jsonl"), "--model", str(world.model), "--top_k", str(K)]}
    threads = ["--scan_threads", "1"] if action in ("add", "update", "results") else []
    return cli.main(["standing", action, "--index", str(index), *words.get(action, []), *threads, *more])


def reindex(world: World, index: Path, *more: str) -> int:
    words = ["--corpus", world.pattern, "--model", str(world.model), "--index", str(index), "--drift_sample", "0"]
    return cli.main(["reindex", *words, *more])


def scored(world: World, index: Path, name: str) -> bytes:
    """What a scan of everything says."""
    output = world.root / name
    words = ["--index", str(index), "--model", str(world.model), "--queries", str(world.root / "queries.jsonl")]
    more = ["--output", str(output), "--top_k", str(K), "--scan_threads", "1"]
    assert cli.main(["score", *words, *more]) == 0
    return output.read_bytes()


def followed(world: World, index: Path) -> bytes:
    """What the standing queries say."""
    output = world.root / "standing.jsonl"
    assert run(world, index, "results", "--name", "facts", "--output", str(output)) == 0
    return output.read_bytes()


def shard(folder: Path, name: str, ids: list[str], texts: list[str]) -> None:
    lines = [json.dumps({"id": i, "text": text}) + "\n" for i, text in zip(ids, texts, strict=True)]
    (folder / name).write_text("".join(lines))
    os.utime(folder / name, (MODIFIED + 60, MODIFIED + 60))


def change_corpus(folder: Path) -> None:
    """One shard changed, one gone, one new."""
    lines = [json.loads(line) for line in (folder / "a.jsonl").read_text().splitlines()]
    changed = [line["text"] for line in lines[:30]] + sentences(40, 77)
    shard(folder, "a.jsonl", [line["id"] for line in lines[:70]], changed)
    (folder / "b.jsonl.gz").unlink()
    shard(folder, "new.jsonl", [f"new-{i}" for i in range(30)], sentences(30, 78))


def check_report(world: World, index: Path, first: bytes, second: bytes) -> None:
    """The only report against two results files. Ids are unique here, so an id is a proponent."""
    [report] = (index / "standing" / "facts").glob("changes-*.jsonl")
    told = {line["example_id"]: line for line in map(json.loads, report.read_text().splitlines())}
    for before, after in zip(map(json.loads, first.splitlines()), map(json.loads, second.splitlines()), strict=True):
        line = told.get(after["example_id"], {"new": [], "gone": [], "rescored": []})
        old, new = before["proponent_ids"], after["proponent_ids"]
        assert [one["proponent_id"] for one in line["new"]] == [i for i in new if i not in old]
        assert [one["proponent_id"] for one in line["gone"]] == [i for i in old if i not in new]
        for one in line["new"]:
            assert (new[one["rank"] - 1], after["proponent_scores"][one["rank"] - 1]) == (
                one["proponent_id"],
                one["score"],
            )
            assert one["shard"].startswith(str(world.corpus))
        for one in line["gone"]:
            assert one["reason"] == "outranked" or one["shard"].endswith(("a.jsonl", "b.jsonl.gz"))
        scores = dict(zip(old, before["proponent_scores"], strict=True))
        for one in line["rescored"]:
            assert one["previous_score"] == scores[one["proponent_id"]] != one["score"]
    assert told


def check_new_index(world: World, index: Path, before: bytes) -> Path:
    """Another index takes its place, and the sets go over to it."""
    new = world.root / "new"
    assert world.fit(new, "--damping", "0.3") == 0
    assert reindex(world, index, "--new_index", str(new)) == 0
    fifth = followed(world, index)
    assert fifth == scored(world, new, "queries.new.jsonl") != before
    assert (new / "standing" / "facts" / "standing.json").exists()
    return new


def test_standing_queries_follow_the_index(own: tuple[World, Path], capfd: pytest.CaptureFixture[str]) -> None:
    world, index = own
    assert run(world, index, "add", "--name", "facts") == 0
    first = scored(world, index, "queries.before.jsonl")
    assert followed(world, index) == first
    assert not list((index / "standing" / "facts").glob("changes-*"))  # nothing to compare with
    assert not (index / "standing" / "facts" / "work").exists()

    change_corpus(world.corpus)
    assert reindex(world, index, "--update_standing", "false") == 0
    capfd.readouterr()
    assert run(world, index, "update", "--dry_run") == 0
    shown = capfd.readouterr().err
    assert "would scan" in shown
    assert run(world, index, "list") == 0
    assert "facts: 3 queries, 6 proponents and opponents each, 6 spare" in capfd.readouterr().out
    assert run(world, index, "update", "--scan_bytes", "20000") == 0
    shown = capfd.readouterr().err
    assert "have new proponents" in shown
    second = scored(world, index, "queries.after.jsonl")
    assert second != first
    assert followed(world, index) == second

    check_report(world, index, first, second)

    # A take-down changes no file of the index, and the next results are without it.
    best = json.loads(second.splitlines()[0])["proponent_ids"][0]
    TakeDown.new([best], [str(world.corpus / "new.jsonl")], "", 1, 0, 0).publish(str(index))
    third = scored(world, index, "queries.down.jsonl")
    assert best.encode() not in third
    assert followed(world, index) == third
    assert len(list((index / "standing" / "facts").glob("state-*"))) == 2

    # The next re-index writes the files without it, and its rows of that are no news.
    shard(world.corpus, "c.jsonl", ["c-1", "c-2"], sentences(2, 79))
    capfd.readouterr()
    assert reindex(world, index, "--vacuum_days", "0") == 0
    shown = capfd.readouterr().err
    assert "standing queries facts: version 1 → version 2: scanned" in shown
    fourth = scored(world, index, "queries.again.jsonl")
    capfd.readouterr()
    assert followed(world, index) == fourth
    assert "standing queries facts: up to date with version 2" in capfd.readouterr().err
    told = [json.loads(line) for line in max((index / "standing" / "facts").glob("changes-*")).read_text().splitlines()]
    assert {one["proponent_id"] for line in told for one in line["new"]} <= {"c-1", "c-2"}

    new = check_new_index(world, index, fourth)
    capfd.readouterr()
    assert run(world, index, "update", "--name", "facts") == 0
    assert "up to date" in capfd.readouterr().err
    assert run(world, index, "remove", "--name", "facts") == 0
    assert run(world, index, "list", "--json") == 0
    assert capfd.readouterr().out == ""
    assert not (new / "standing" / "facts").exists()


def test_reindex_scans_as_its_flags_say(own: tuple[World, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    world, index = own
    assert run(world, index, "add", "--name", "facts") == 0
    original, scans = standing_scans.ScanIndex, []

    def noted(elements: list, scan: Scan, reporter: Reporter) -> standing_scans.ScanIndex:
        scans.append((len(elements), scan.threads))
        return original(elements, scan, reporter)

    monkeypatch.setattr(standing_scans, "ScanIndex", noted)
    change_corpus(world.corpus)
    before = {file.uri for file in Index.open(str(index)).snapshot().files}
    assert reindex(world, index, "--scan_bytes", "1", "--scan_threads", "3") == 0
    added = [file for file in Index.open(str(index)).snapshot().files if file.uri not in before]
    assert scans[0] == (len(added), 3)  # each new file an element of its own
    assert {threads for _, threads in scans} == {3}
    assert followed(world, index) == scored(world, index, "queries.flags.jsonl")


def test_an_update_that_fails_leaves_all_as_it_was(
    with_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An index that lost a file; a kill between the index's commit and the state; a damaged state."""
    world, index = World(tmp_path), tmp_path / "index"
    for name in ("model", "queries.jsonl"):
        (tmp_path / name).symlink_to(with_set.parent / name)
    shutil.copytree(with_set, index)
    opened = Index.open(str(index))
    files = opened.snapshot().files
    opened.commit(files[1::2])
    for name in ("facts", "copy", "facts-2"):  # all of version 1
        shutil.copytree(with_set / "standing" / "facts", index / "standing" / name, dirs_exist_ok=True)
        assert run(world, index, "update", "--name", name) == 0
    first = followed(world, index)
    version = opened.commit(files)

    added = Path(files[0].uri)
    added.rename(tmp_path / "away")
    with pytest.raises(TrackStarError, match=r"3 of 3 set\(s\) of standing queries could not be brought up") as caught:
        update_all(opened, Scanning(scan_threads=1))
    assert files[0].uri in str(caught.value)
    assert f"The index is whole. Mend this and run `trackstar standing update --index {index}`" in str(caught.value)
    (tmp_path / "away").rename(added)

    with monkeypatch.context() as patch:
        patch.setattr(StandingSet, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            update_all(opened, Scanning(scan_threads=1))
    assert StandingSet.open(opened, "copy").state().version == version - 1
    assert list((index / "standing" / "copy" / "work").glob("*.parquet"))  # what was scanned is kept

    state = max((index / "standing" / "facts-2").glob("state-*"))
    content = bytearray(state.read_bytes())
    content[50] ^= 1
    state.write_bytes(content)
    with pytest.raises(TrackStarError, match=r"1 of 3 set\(s\) .*\n  facts-2: .*delete this file and run"):
        update_all(opened, Scanning(scan_threads=1))
    state.unlink()  # it goes on from the one before
    update_all(opened, Scanning(scan_threads=1))
    assert not (index / "standing" / "copy" / "work").exists()
    capfd.readouterr()
    assert run(world, index, "list", "--json") == 0
    assert [json.loads(line)["up_to_date"] for line in capfd.readouterr().out.splitlines()] == [True] * 3
    second = followed(world, index)
    assert second != first
    assert second == scored(world, index, "queries.full.jsonl")
    assert run(world, index, "update", "--rescan", "--name", "facts") == 0
    assert followed(world, index) == second


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["results", "--name", "fact", "--output", "r.jsonl"],
            "no standing queries of the name 'fact'; there are: facts",
        ),
        (["remove", "--name", "../facts"], "no standing queries of the name '../facts'"),
        (["add", "--name", "facts"], "standing queries of the name 'facts' are there already"),
        (["add", "--name", "a/b"], "'a/b' cannot be a name of standing queries"),
        (["add"], "standing add needs --name"),
        (["remove"], "standing remove needs --name"),
        (["update", "--top_k", "3"], "standing update does not take --top_k (fixed by `standing add`)"),
        (["update", "--output", "x"], "standing update does not take --output"),
        (["list", "--direct_num_workers=2"], "does not take flags of Beam: --direct_num_workers=2"),
        (["uppdate"], "invalid choice: 'uppdate'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_words(
    world: World, with_set: Path, capfd: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (with_set.parent / "queries.jsonl").write_text(json.dumps(QUERIES[0]) + "\n")
    assert run(World(with_set.parent), with_set, *words) == cli.EXIT_USAGE
    shown = capfd.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


@pytest.fixture(scope="module")
def with_set(world: World, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with one set of standing queries; read only."""
    root = tmp_path_factory.mktemp("with_set")
    (root / "model").symlink_to(world.model)
    shutil.copytree(built, root / "index")
    (root / "queries.jsonl").write_text(json.dumps(QUERIES[0]) + "\n")
    assert run(World(root), root / "index", "add", "--name", "facts") == 0
    return root / "index"


def test_empty_queries_and_an_empty_index(
    world: World, fitted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").symlink_to(world.model)
    (tmp_path / "queries.jsonl").write_text(json.dumps(QUERIES[0]) + "\n")
    assert run(World(tmp_path), fitted, "add", "--name", "facts") == cli.EXIT_USAGE
    assert "nothing was committed yet" in capfd.readouterr().err
    assert run(World(tmp_path), fitted, "update") == 0
    assert "no standing queries" in capfd.readouterr().err
    assert not (fitted / "standing" / "facts").exists()


def test_an_index_with_another_spec(with_set: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(with_set, tmp_path / "index")
    settings = tmp_path / "index" / "standing" / "facts" / "standing.json"
    fields = json.loads(settings.read_text())
    settings.write_text(json.dumps({**fields, "spec_hash": "0" * 16}))
    assert run(World(tmp_path), tmp_path / "index", "update") == cli.EXIT_FAILED
    assert "encoded for an index with the spec 0000000000000000" in capfd.readouterr().err
    settings.write_text("{}")
    assert run(World(tmp_path), tmp_path / "index", "list") == cli.EXIT_USAGE
    assert "damaged" in capfd.readouterr().err
    (tmp_path / "queries.jsonl").write_text("\n")
    (tmp_path / "model").mkdir()
    assert run(World(tmp_path), tmp_path / "index", "add", "--name", "other") == cli.EXIT_USAGE
    assert "no queries in this file" in capfd.readouterr().err
