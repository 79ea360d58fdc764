"""reindex: another index takes the place of the one in use."""

from pathlib import Path

from pipelines import cli
from tests.end_to_end.reindexing.nights import lines, put, run
from tests.end_to_end.world import World, sentences
from trackstar.index import Index


def test_a_new_index_takes_the_old_ones_place(own: World, tmp_path: Path, capfd) -> None:
    old, new, newer = own.root / "index", tmp_path / "new", tmp_path / "newer"
    for name in ("a.jsonl", "e.parquet"):
        (own.corpus / name).unlink()
    assert own.fit(new, "--projection_seed", "3") == own.fit(newer, "--projection_seed", "4") == 0
    put(own, "f.jsonl", lines("f", sentences(20, 1)))
    open_reader = Index.open(str(old)).snapshot()
    capfd.readouterr()
    assert run(own, "--new_index", str(new)) == 0
    shown = capfd.readouterr().err
    assert "projection_seed: 0 here, 3 there" in shown
    assert f"whoever opens it from now on is led to {new}" in shown
    # The old one is as it was, for who has it open; who opens it gets the new one, complete.
    assert [Path(file.uri).exists() for file in open_reader.files] == [True] * len(open_reader.files)
    assert Index.open(str(old), follow=False).snapshot() == open_reader
    led = Index.open(str(old))
    assert led.uri == str(new)
    assert led.spec.projection_seed == 3
    assert led.snapshot().num_rows == 170
    # A nightly run that names the old one goes on in the new one.
    put(own, "f.jsonl", lines("f", sentences(25, 1)), 2)
    assert run(own) == 0
    assert Index.open(str(new), follow=False).versions() == [0, 1]
    assert Index.open(str(old), follow=False).versions() == [0]
    # It can be switched again, and back.
    assert run(own, "--new_index", str(newer)) == 0
    assert Index.open(str(old)).uri == str(newer)
    assert run(own, "--new_index", str(old)) == 0
    assert {Index.open(str(folder)).uri for folder in (old, new, newer)} == {str(old)}
    assert run(own, "--new_index", str(old)) == cli.EXIT_USAGE
    assert "in use already" in capfd.readouterr().err


def test_a_new_index_is_guarded_by_the_old_ones_shards(own: World, index: Path, capfd) -> None:
    assert run(own, "--new_index", str(index), corpus=str(own.corpus / "a*")) == cli.EXIT_USAGE
    assert "4 of the 5 shards" in capfd.readouterr().err
    assert Index.open(str(own.root / "index")).uri == str(own.root / "index")
