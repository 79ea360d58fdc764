"""Manifests, the difference to the last snapshot, and retention; with made-up encodings in place of a model's."""

import dataclasses
import itertools
import json
import os
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.indexes import make_encodings, make_spec, unit_vectors
from trackstar import checksums, corpus, delta_log, manifest, reindexing, storage, vacuum
from trackstar.corpus import Reject, WorkItem
from trackstar.errors import TrackStarError
from trackstar.index import Index
from trackstar.manifest import Manifest
from trackstar.reindexing import Changes, Plan

DAY = 86400.0


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """An empty index."""
    return Index.create(str(tmp_path / "index"), make_spec())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A corpus of five shards."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(5):
        write(folder / f"{number}.jsonl", 10)
    return folder


def write(path: Path, count: int, version: int = 0) -> None:
    """A shard of `count` records; another version has other bytes and another time."""
    path.write_text("".join(f'{{"text": "{path.name} {version} {i}"}}\n' for i in range(count)))
    os.utime(path, (1_700_000_000 + version, 1_700_000_000 + version))


def write_items(index: Index, items: Sequence[WorkItem]) -> list:
    """What workers would have written."""

    def footer(item: WorkItem) -> dict[str, str]:
        return {"start": str(item.start), "end": str(item.end), "fingerprint": item.fingerprint}

    return [
        index.write_item(
            item.key(index.spec.hash),
            item.shard,
            iter([make_encodings(unit_vectors(3, 32, item.start))]),
            lambda item=item: footer(item),
        )
        for item in items
    ]


def carry_out(index: Index, plan: Plan) -> Changes:
    """What `pipelines.reindex` does with a plan."""
    files = write_items(index, plan.to_encode)
    manifest.save(index, plan.manifest())
    index.commit([*plan.keep, *files])
    return Changes.between(index.uri, plan.survey.before, index.snapshot())


def keys(items: Sequence[WorkItem], index: Index) -> set[str]:
    return {item.key(index.spec.hash) for item in items}


def test_a_random_history_always_plans_what_a_full_build_would(index: Index, folder: Path) -> None:
    """Shards come, change and go; what is kept and what is encoded together is the plan of the corpus as it is."""
    generator = random.Random(0)
    pattern = str(folder / "*.jsonl")
    for night in range(1, 21):
        touched = set()
        for path in sorted(folder.iterdir()):
            fate = generator.random()
            if fate < 0.15 and len(list(folder.iterdir())) > 1:
                path.unlink()
            elif fate < 0.4:
                write(path, generator.randint(0, 12), night)
                touched.add(str(path))
        for number in range(generator.randint(0, 2)):
            write(folder / f"{night}-{number}.jsonl", generator.randint(0, 12), night)
            touched.add(str(folder / f"{night}-{number}.jsonl"))
        if generator.random() < 0.2:
            shutil.rmtree(Path(index.uri) / manifest.FOLDER, ignore_errors=True)
        plan = reindexing.plan(index, [pattern], 100, max_dropped_fraction=1)
        wanted = keys(corpus.plan(corpus.expand([pattern]), 100), index)
        assert keys(plan.items, index) == wanted
        if night > 1:
            assert {item.shard for item in plan.to_encode} <= touched
        changes = carry_out(index, plan)
        assert {file.key for file in index.snapshot().files} == wanted
        assert {file.key for file in changes.added} == keys(plan.to_encode, index)
        assert {file.key for file in changes.removed} == {file.key for file in plan.drop}
        assert reindexing.plan(index, [pattern], 100, max_dropped_fraction=1).is_empty
    assert len(index.versions()) > 12


def test_no_shard_is_opened_for_the_plan_of_the_others(index: Index, folder: Path, monkeypatch) -> None:
    carry_out(index, reindexing.plan(index, [str(folder / "*")], 100))
    opened: list[str] = []
    original = storage.open_input
    monkeypatch.setattr(storage, "open_input", lambda uri: opened.append(uri) or original(uri))
    write(folder / "2.jsonl", 4, 1)
    plan = reindexing.plan(index, [str(folder / "*")])
    assert {Path(item.shard).name for item in plan.to_encode} == {"2.jsonl"}
    assert opened == []  # neither a shard nor a file of the index


def test_a_manifest_is_read_as_it_was_written(index: Index, folder: Path) -> None:
    write(folder / "ü\u2028 x.jsonl", 3)
    (folder / "empty.jsonl").touch()
    plan = reindexing.plan(index, [str(folder / "*")], 100)
    written = plan.manifest()
    assert Manifest.from_bytes(written.to_bytes()) == written
    assert [shard.uri for shard in written.shards] == sorted(str(path) for path in folder.iterdir())
    assert written.keys == keys(plan.items, index)
    carry_out(index, plan)
    assert manifest.load(index, index.snapshot()) == written


@pytest.mark.parametrize("damage", [b"", b"{}\n", b"not JSON\n", None])
def test_a_damaged_manifest_is_made_anew_from_the_files(
    index: Index, folder: Path, damage: bytes | None, caplog
) -> None:
    carry_out(index, reindexing.plan(index, [str(folder / "*")], 100))
    [path] = (Path(index.uri) / manifest.FOLDER).iterdir()
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]) if damage is None else damage)
    found = manifest.load(index, index.snapshot())
    assert "damaged" in caplog.text
    known = Manifest.from_bytes(whole)
    assert found == dataclasses.replace(known, item_bytes=None)
    assert reindexing.plan(index, [str(folder / "*")], 100).is_empty
    with pytest.raises(TrackStarError, match="--item_bytes 60 is not what the index was made with"):
        reindexing.plan(index, [str(folder / "*")], 60)


def test_a_run_that_breaks_off_before_its_commit_leaves_the_old_state(index: Index, folder: Path) -> None:
    carry_out(index, reindexing.plan(index, [str(folder / "*")], 100))
    write(folder / "2.jsonl", 4, 1)
    broken = reindexing.plan(index, [str(folder / "*")])
    write_items(index, broken.to_encode)
    manifest.save(index, broken.manifest())  # and killed
    again = reindexing.plan(index, [str(folder / "*")])
    assert again.to_encode == broken.to_encode
    assert again.survey.difference == broken.survey.difference


def test_files_that_say_nothing_of_their_shard_count_as_changed(index: Index, folder: Path) -> None:
    """As of another program, or of a snapshot that somebody made by hand."""
    item = index.write_item("0" * 32, str(folder / "1.jsonl"), iter([make_encodings(unit_vectors(3, 32))]), dict)
    index.commit([item])
    plan = reindexing.plan(index, [str(folder / "*")], 100)
    assert {Path(shard.uri).name for shard in plan.survey.difference.changed} == {"1.jsonl"}
    assert [file.key for file in plan.drop] == ["0" * 32]


def test_shards_that_are_gone_are_counted(index: Index, folder: Path) -> None:
    pattern = str(folder / "*")
    carry_out(index, reindexing.plan(index, [pattern], 100))
    for number in range(3):
        (folder / f"{number}.jsonl").unlink()
    with pytest.raises(TrackStarError, match="3 of the 5 shards that the index holds are gone"):
        reindexing.plan(index, [pattern])
    assert len(reindexing.plan(index, [pattern], max_dropped_fraction=0.6).survey.difference.dropped) == 3
    with pytest.raises(TrackStarError, match="no file matches"):
        reindexing.plan(index, [str(folder / "*.parquet")], max_dropped_fraction=0.9)
    assert reindexing.plan(index, [str(folder / "*.parquet")], max_dropped_fraction=1).items == ()


def test_settings_are_the_index_s_own(index: Index, folder: Path) -> None:
    pattern = str(folder / "*")
    carry_out(index, reindexing.plan(index, [pattern], 100, "content"))
    assert reindexing.plan(index, [pattern]).is_empty
    assert reindexing.survey(index, [pattern]).item_bytes == 100
    with pytest.raises(TrackStarError, match="--item_bytes 200: the index was made with 100"):
        reindexing.plan(index, [pattern], 200)
    with pytest.raises(TrackStarError, match="--fingerprint modified: the index was made with content"):
        reindexing.plan(index, [pattern], None, "modified")


def test_the_spec_is_held_against_what_is_named() -> None:
    spec = make_spec()
    reindexing.check_spec(spec, {"block_rows": 4, "damping": None}, "here")
    with pytest.raises(TrackStarError, match=r"damping: 0\.1 here, 0\.5 there"):
        reindexing.check_spec(spec, {"block_rows": 4, "damping": 0.5}, "here")


def test_a_superseded_index_leads_to_the_new_one(tmp_path: Path, folder: Path) -> None:
    indexes = [Index.create(str(tmp_path / name), make_spec(projection_seed=seed)) for seed, name in enumerate("abc")]
    for old, new in itertools.pairwise(indexes):
        new.supersede(old)
    assert [Index.open(index.uri).spec.projection_seed for index in indexes] == [2, 2, 2]
    assert [Index.open(index.uri, follow=False).spec.projection_seed for index in indexes] == [0, 1, 2]
    (Path(indexes[0].uri) / "spec.json").unlink()  # of the old one, nothing but the note need stay
    assert Index.open(indexes[0].uri).spec.projection_seed == 2
    with pytest.raises(TrackStarError, match="took this one's place"):
        Index.create(indexes[0].uri, make_spec())
    (Path(indexes[2].uri) / "superseded_by.json").write_text(json.dumps({"index": indexes[0].uri}))
    with pytest.raises(TrackStarError, match="leads in a circle"):
        Index.open(indexes[1].uri)
    (Path(indexes[2].uri) / "superseded_by.json").write_text("[]")
    with pytest.raises(TrackStarError, match="damaged"):
        Index.open(indexes[0].uri)


# Retention.


def nightly(index: Index, folder: Path, nights: int) -> list[float]:
    """As many commits, each with another version of every shard but one; returns when each was made."""
    times = []
    for night in range(nights):
        for number in range(1, 5):
            write(folder / f"{number}.jsonl", 10, night)
        carry_out(index, reindexing.plan(index, [str(folder / "*")], 1000))
        times.append(time.time())
        time.sleep(0.02)
    return times


def readable(index: Index, version: int) -> bool:
    return all(index.has_item(file.key) is not None for file in index.snapshot(version).files)


@pytest.mark.parametrize("first", range(5))
def test_snapshots_within_the_retention_stay_readable(index: Index, folder: Path, first: int) -> None:
    times = nightly(index, folder, 5)
    # A moment at which version `first` was the last one, as seen a day later.
    days, now = 1.0, times[first] + 0.005 + DAY
    plan = vacuum.plan_vacuum(index, days, now)
    assert (plan.first, plan.last) == (first, 4)
    vacuum.vacuum(index, plan)
    assert [readable(index, version) for version in range(5)] == [version >= first for version in range(5)]
    assert len(index.existing_keys()) == 1 + 4 * (5 - first)
    assert vacuum.plan_vacuum(index, days, now).items == ()


def test_rejects_go_with_their_items_and_manifests_when_they_are_old(index: Index, folder: Path) -> None:
    nightly(index, folder, 3)
    for file in index.snapshot(0).files:
        index.write_rejects(file.key, [Reject(file.shard, 1, "bad", "x")])
    vacuum.vacuum(index, vacuum.plan_vacuum(index, 0))
    [kept] = set(index.snapshot(0).files) & set(index.snapshot(2).files)
    assert [path.stem for path in (Path(index.uri) / "rejects").iterdir()] == [kept.key]
    manifests = Path(index.uri) / manifest.FOLDER
    assert len(list(manifests.iterdir())) == 3
    vacuum.vacuum(index, vacuum.plan_vacuum(index, 0, time.time() + 2 * DAY))
    [left] = manifests.iterdir()
    assert Manifest.from_bytes(left.read_bytes()).keys == {file.key for file in index.snapshot().files}


def test_what_is_not_committed_yet_stays_for_a_day(index: Index, folder: Path) -> None:
    """A run that failed keeps what it encoded; nothing of it is lost to a vacuum before the next one."""
    nightly(index, folder, 1)
    write(folder / "9.jsonl", 10, 1)
    plan = reindexing.plan(index, [str(folder / "*")])
    write_items(index, plan.to_encode)
    (Path(index.uri) / "encodings" / ".x.tmp").write_bytes(b"half")
    storage.write_bytes(storage.join(index.uri, "queries", "abc", "part.safetensors"), b"x")
    vacuum.vacuum(index, vacuum.plan_vacuum(index, 0))
    assert keys(plan.to_encode, index) <= index.existing_keys()
    found = vacuum.plan_vacuum(index, 0, time.time() + 1.1 * DAY)
    assert {info.uri.rsplit("/", 1)[-1] for info in (*found.items, *found.others)} >= {
        f"{key}.parquet" for key in keys(plan.to_encode, index)
    } | {".x.tmp", "part.safetensors"}
    vacuum.vacuum(index, found)
    assert index.existing_keys() == {file.key for file in index.snapshot().files}
    assert not (Path(index.uri) / "encodings" / ".x.tmp").exists()


def test_the_log_is_shortened_in_two_steps(index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that has just listed the log finds all that it listed; an hour later the older part goes."""
    nightly(index, folder, 6)
    vacuum.vacuum(index, vacuum.plan_vacuum(index, 0))
    assert index.versions() == [0, 1, 2, 3, 4, 5]
    monkeypatch.setattr(delta_log, "_SETTLED_SECONDS", -60.0)
    before = index.snapshot()
    vacuum.vacuum(index, vacuum.plan_vacuum(index, 0))
    assert index.versions() == [5]
    assert index.snapshot() == before
    with pytest.raises(TrackStarError, match="there is no version 3 any more; the oldest is 5"):
        index.snapshot(3)
    log = Path(index.uri) / "encodings" / "_delta_log"
    recorded = checksums.recorded_paths(index.uri, "encodings/_delta_log")
    assert {f"encodings/_delta_log/{path.name}" for path in log.iterdir()} == recorded
    nightly(index, folder, 3)
    assert index.versions() == [5, 6, 7, 8]
    assert vacuum.plan_vacuum(index, 1).first == 5
    assert all(readable(index, version) for version in (6, 7, 8))


def test_a_vacuum_of_an_index_without_a_snapshot(index: Index) -> None:
    assert vacuum.plan_vacuum(index, 0).items == ()
    vacuum.vacuum(index, vacuum.plan_vacuum(index, 0))
    assert index.versions() == []
