"""Sets of standing queries on disk and in an object store: made, opened, removed, and their states kept in order."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from tests.indexes import make_encodings, make_index, make_spec, unit_vectors
from tests.trackstar.test_standing_update import Scanner, check
from trackstar import standing_report, storage
from trackstar.errors import BusyError, TrackStarError
from trackstar.index import Index
from trackstar.queries import Change, QuerySet
from trackstar.query_encoding import PreparedQueries
from trackstar.removal import TakeDown
from trackstar.results import Query
from trackstar.scoring import ScanSettings
from trackstar.standing import Settings, StandingSet, lock, names_of, remove
from trackstar.standing_update import Contents, update

pytest_plugins = ["tests.gcs"]

SETTINGS = Settings("set", 2, 2, True, True, "auto", None)
QUERIES = [Query("a", "who?", "he", {"fact": [1]}), Query("b\ud800", "", "she")]


def prepared(change: bool = True) -> PreparedQueries:
    matrices = Change(torch.eye(16).repeat(2, 1, 1) * 2) if change else None
    return PreparedQueries(QuerySet.of(unit_vectors(2, 32, 3)), torch.zeros(2), matrices, 0.25)


@pytest.fixture(params=["local", "store"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Index:
    uri = str(tmp_path / "index") if request.param == "local" else request.getfixturevalue("gcs") + "/index"
    return Index.create(uri, make_spec())


def test_a_set_is_made_opened_and_removed(index: Index) -> None:
    assert names_of(index) == StandingSet.all(index) == []
    made = StandingSet.create(index, "facts", SETTINGS, QUERIES, prepared())
    opened = StandingSet.open(index, "facts")
    assert opened.settings == made.settings
    expected = (index.spec.hash, 2, 0.25, True)
    assert (made.settings.spec_hash, made.settings.num_queries, made.settings.mixing, made.settings.changes) == expected
    assert opened.queries() == QUERIES
    vectors = QuerySet.load(opened.queries_uri)
    assert vectors.folded
    assert torch.equal(vectors.vectors, prepared().queries.vectors * 2)
    assert opened.change_uri is not None
    assert Change.load(opened.change_uri).dimension == 32
    assert opened.state().version == -1
    with pytest.raises(TrackStarError, match="'facts' are there already"):
        StandingSet.create(index, "facts", SETTINGS, QUERIES, prepared())
    StandingSet.create(index, "other", SETTINGS, QUERIES[:1], prepared(change=False))
    assert [one.name for one in StandingSet.all(index)] == ["facts", "other"]
    assert StandingSet.open(index, "other").change_uri is None
    remove(index, "facts")
    assert names_of(index) == ["other"]
    assert storage.list(storage.join(index.uri, "standing", "facts")) == []
    for name in ("facts", "", "..", "other/", "a b", "x" * 65):
        with pytest.raises(TrackStarError, match="no standing queries of the name"):
            StandingSet.open(index, name)
    with pytest.raises(TrackStarError, match="there are: other"):
        remove(index, "facts")
    with lock(index, "standing update"), pytest.raises(BusyError, match="standing update"), lock(index, "other"):
        pass


def test_what_broke_off_is_no_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index.create(str(tmp_path), make_spec())
    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            StandingSet.create(index, "facts", SETTINGS, QUERIES, prepared())
    (tmp_path / "standing" / "facts").mkdir(parents=True, exist_ok=True)
    (tmp_path / "standing" / "facts" / "state-0000000007-000000-00.parquet").write_text(
        "left by a set that was removed"
    )
    assert names_of(index) == []
    assert StandingSet.create(index, "facts", SETTINGS, QUERIES, prepared()).state().version == -1


def test_states_over_commits_vacuum_and_an_index_that_was_set_back(tmp_path: Path) -> None:
    """The log and the files of the version that a state is of are not needed to go on from it."""
    files = [[make_encodings(unit_vectors(4, 32, number), start=4 * number)] for number in range(6)]
    index, items = make_index(tmp_path / "index", files)
    standing = StandingSet.create(index, "facts", SETTINGS, QUERIES, prepared())
    how = ScanSettings(SETTINGS.capacity, opponents=True)
    assert standing.change_uri is not None
    scanner = Scanner(QuerySet.load(standing.queries_uri), how, Change.load(standing.change_uri))

    def follow() -> None:
        contents, before = Contents.of(index), standing.state()
        scanner.removals = contents.removals
        after, _ = update(before, contents, SETTINGS.top_k, scanner)
        standing.save(after, before)
        check(standing.state(), scanner, contents, SETTINGS.top_k)

    follow()
    index.commit(items[1:])
    index.commit(items[2:5])  # two versions at once
    for item in items[:2]:
        Path(item.uri).unlink()  # vacuumed
    (tmp_path / "index" / "encodings" / "_delta_log" / f"{0:020d}.json").rename(tmp_path / "gone")
    with pytest.raises(TrackStarError):
        index.snapshot(0)
    (tmp_path / "gone").rename(tmp_path / "index" / "encodings" / "_delta_log" / f"{0:020d}.json")
    scanner.calls.clear()
    follow()
    assert all(items[i].key not in files for files, _ in scanner.calls for i in (0, 1))
    assert sorted(standing._state_uris()) == [(0, 0), (2, 0)]
    TakeDown.new(["e9"], [items[4].shard + "-other"], "", 2, 1, 0).publish(index.uri)
    follow()
    assert sorted(standing._state_uris()) == [(2, 0), (2, 1)]
    index.commit(items[2:])
    follow()
    assert sorted(standing._state_uris()) == [(2, 1), (3, 1)]
    # Somebody puts an older copy of the table back, and deletes the log of take-downs.
    for number in (1, 2, 3):
        (tmp_path / "index" / "encodings" / "_delta_log" / f"{number:020d}.json").unlink()
    for path in (tmp_path / "index" / "removed").glob("*.jsonl"):
        path.unlink()
    for number in range(2):
        index.write_item(items[number].key, "shard", iter(files[number]), dict)
    follow()
    assert sorted(standing._state_uris()) == [(0, 0)]


def test_the_report_knows_what_stayed_itself(tmp_path: Path) -> None:
    base = unit_vectors(1, 32)
    scale = torch.arange(10, 0, -1)[:, None] / 10
    index, items = make_index(tmp_path, [[make_encodings(base * scale[i, 0], [f"e{i}"])] for i in range(10)])
    scanner = Scanner(QuerySet.of(base), ScanSettings(6))
    settings = dataclasses.replace(SETTINGS, opponents=False, top_k=4)
    standing = StandingSet.create(
        index, "facts", settings, QUERIES[:1], PreparedQueries(QuerySet.of(base), torch.zeros(1), None, 0.0)
    )
    before, _ = update(standing.state(), Contents.of(index), 4, scanner)

    def written(number: int, score: float, name: str) -> object:
        encodings = make_encodings(base * score, [name])
        return index.write_item(f"{number:032x}", "shard", iter([encodings]), dict)

    # e0 is encoded again as it was; e1's text is another; e2 is gone; a new one comes in second, and pushes e3 out.
    new = [written(20, 1.0, "e0"), written(21, 0.95, "e1"), written(22, 0.96, "n"), written(23, 0.94, "n")]
    index.commit([*new, *items[3:]])  # type: ignore[list-item]
    contents = Contents.of(index)
    after, _ = update(before, contents, 4, scanner)
    [change] = standing_report.compare(before, after, contents, QUERIES[:1], 4)
    assert [(one.rank, one.proponent_id, round(one.score, 2)) for one in change.new] == [(2, "n", 0.96), (4, "n", 0.94)]
    assert [(one.rank, one.proponent_id, why) for one, why in change.gone] == [
        (3, "e2", "no longer in the index"),
        (4, "e3", "outranked"),
    ]
    assert [(one.rank, one.proponent_id, round(was, 1)) for one, was in change.rescored] == [(3, "e1", 0.9)]
    shown = standing_report.summary([change], 7)
    assert shown[0] == "1 of 7 queries have new proponents: 2 new, 2 gone, 1 with another score"
    assert shown[1].strip() == f"new: {change.new[0].score:.4f} n of shard, rank 2 for 'a' (who? → he)"
    assert standing_report.compare(after, after, contents, QUERIES[:1], 4) == []
    uri = standing.changes_uri(after)
    standing_report.write(uri, [change], after.version, before.version)
    [line] = map(json.loads, storage.read_bytes(uri).splitlines())
    assert (line["example_id"], line["version"], line["previous_version"]) == ("a", 1, 0)
    assert line["gone"][1] == {
        "rank": 4,
        "proponent_id": "e3",
        "score": line["gone"][1]["score"],
        "shard": "shard",
        "reason": "outranked",
    }
