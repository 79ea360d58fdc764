"""reindex: what follows a commit, the vacuum, the drift and what others are told."""

import os
import re
import time
from pathlib import Path

import pytest

from pipelines import cli, reindex
from tests.end_to_end.reindexing.nights import CHANGES, lines, put, run
from tests.end_to_end.world import World, digests, rows, sentences
from trackstar.index import Index


def test_vacuum_keeps_what_snapshots_of_the_retention_need(own: World, capfd) -> None:
    index = own.root / "index"
    first = digests(index)
    CHANGES["jsonl"](own, [*sentences(20, 1), ""])  # with a reject
    assert run(own, "--vacuum_days", "7", "--max_reject_fraction", "0.1") == 0
    assert "deleted 0 files of encodings" in capfd.readouterr().err
    second = digests(index)
    assert set(first) < set(second)
    CHANGES["jsonl"](own, sentences(21, 2))
    assert run(own) == 0
    assert len(list((index / "rejects").iterdir())) == 1
    # A leftover of a run that failed yesterday, and one of now; a half-written file.
    leftovers = [index / "encodings" / f"{name * 32}.parquet" for name in "ab"]
    for leftover in leftovers:
        leftover.write_bytes(b"x")
    os.utime(leftovers[0], (time.time() - 2 * 86400,) * 2)
    (index / "encodings" / ".killed.tmp").write_bytes(b"half")
    os.utime(index / "encodings" / ".killed.tmp", (time.time() - 2 * 86400,) * 2)
    capfd.readouterr()
    assert run(own, "--vacuum_days", "0", model="/no/such/model") == 0
    shown = capfd.readouterr().err
    assert "nothing has changed" in shown
    assert "versions 2 to 2 stay readable" in shown
    opened = Index.open(str(index))
    left = {f"{file.key}.parquet" for file in opened.snapshot().files}
    assert set(digests(index)) == left | {leftovers[1].name}
    assert not (index / "encodings" / ".killed.tmp").exists()
    assert list((index / "rejects").iterdir()) == []
    assert rows(index) == sorted(set(rows(index)))
    assert cli.main(["inspect", str(index)]) == 0


def test_drift_is_reported(own: World, tmp_path: Path, capfd) -> None:
    """As many new documents as a third of the old ones: then all are compared, whatever the files are called."""
    index = tmp_path / "index"  # fitted on all there is: of the usual one's 120 documents the chance is large
    assert own.fit(index, "--sample_size", "350") == own.build(index) == 0
    put(own, "f.jsonl", lines("f", sentences(116, 6)))
    capfd.readouterr()
    assert run(own, index=index) == 0
    alike = capfd.readouterr().err
    assert "drift: the R of 116 new documents is" in alike
    assert "trackstar fit" not in alike
    put(own, "g.jsonl", lines("g", ["zzzz qqqq 0101 " * 20 + str(i) for i in range(155)]))
    assert run(own, index=index) == 0
    assert "`trackstar fit --index NEW …`" in capfd.readouterr().err
    put(own, "h.jsonl", lines("h", sentences(116, 7)))
    assert run(own, "--drift_sample", "0", index=index) == 0
    assert "drift: " not in capfd.readouterr().err


def test_drift_is_reported_by_default(own: World, tmp_path: Path, capfd) -> None:
    """Whitened sign bits without R: the new documents' encodings against those of old ones."""
    index = tmp_path / "index"
    for name in "klmn":
        put(own, f"{name}.jsonl", lines(name, sentences(100, ord(name))))
    assert cli.main(["fit", *own.flags(index), "--sample_size", "350"]) == own.build(index) == 0
    put(own, "f.jsonl", lines("f", sentences(116, 6)))
    capfd.readouterr()
    assert run(own, index=index) == 0
    alike = capfd.readouterr().err
    assert re.search(r"drift: the encodings of \d\d+ new documents are", alike)
    assert "trackstar fit" not in alike
    put(own, "g.jsonl", lines("g", ["zzzz qqqq 0101 " * 20 + str(i) for i in range(155)]))
    assert run(own, index=index) == 0
    told = capfd.readouterr().err
    assert "unlike those that the whitening was fitted on" in told
    assert "`trackstar fit --index NEW …`" in told


def test_the_changes_of_a_commit_are_told(own: World, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(reindex, "after_commit", lambda args, beam_args, index, changes: told.append(changes))
    index = Index.open(str(own.root / "index"))
    before = {file.key: file for file in index.snapshot().files}
    CHANGES["txt"](own, sentences(40, 9))
    assert run(own) == 0
    [changes] = told
    after = {file.key: file for file in index.snapshot().files}
    assert (changes.index_uri, changes.version_before, changes.version_after) == (index.uri, 0, 1)
    assert {file.key for file in changes.added} == set(after) - set(before)
    assert {file.key for file in changes.removed} == set(before) - set(after)
    assert {Path(file.shard).name for file in (*changes.added, *changes.removed)} == {"d.txt"}
