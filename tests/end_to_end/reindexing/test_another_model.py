"""reindex: another --model is noticed where nothing is to be encoded, too, and no model is loaded to find that out."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch

from pipelines import cli
from tests.end_to_end.reindexing.nights import lines, put, run
from tests.end_to_end.world import World, sentences
from trackstar.checkpoint_files import FILE, fingerprints
from trackstar.index import Index

REFUSED = "the model is not the one that this index was made with"
COMPARED = "the model is loaded to compare"


@pytest.fixture
def other(own: World, tmp_path: Path) -> Path:
    """A model with another value in its last norm: files of the same names and sizes."""
    shutil.copytree(own.model, tmp_path / "other")
    weights = safetensors.torch.load_file(tmp_path / "other" / "model.safetensors")
    weights["model.norm.weight"] += 0.01
    safetensors.torch.save_file(weights, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    return tmp_path / "other"


def kept(world: World) -> dict[str, str]:
    return json.loads((world.root / "index" / FILE).read_text())["files"]


def test_another_model_is_refused_though_nothing_has_changed(own: World, other: Path, capfd) -> None:
    before = kept(own)
    assert before == fingerprints(str(own.model))
    assert run(own, model=str(other)) == cli.EXIT_FAILED
    shown = capfd.readouterr().err
    assert COMPARED in shown
    assert REFUSED in shown
    assert "model_fingerprint: the index has" in shown
    assert kept(own) == before
    assert run(own) == 0
    assert COMPARED not in capfd.readouterr().err


def test_nor_is_anything_dropped_with_it(own: World, other: Path, capfd) -> None:
    (own.corpus / "d.txt").unlink()
    assert run(own, model=str(other)) == cli.EXIT_FAILED
    assert REFUSED in capfd.readouterr().err
    assert Index.open(str(own.root / "index")).versions() == [0]
    assert run(own) == 0
    assert Index.open(str(own.root / "index")).versions() == [0, 1]


def test_a_copy_of_the_model_is_compared_once(own: World, tmp_path: Path, capfd) -> None:
    shutil.copytree(own.model, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("A copy.")
    assert run(own, model=str(tmp_path / "copy")) == 0
    shown = capfd.readouterr().err
    assert COMPARED in shown
    assert "nothing has changed since version 0" in shown
    assert kept(own) == fingerprints(str(tmp_path / "copy"))
    assert run(own, model=str(tmp_path / "copy")) == 0
    assert COMPARED not in capfd.readouterr().err


def test_workers_that_encode_compare_by_themselves(own: World, tmp_path: Path, capfd) -> None:
    shutil.copytree(own.model, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("A copy.")
    put(own, "f.jsonl", lines("f", sentences(5, 1)))
    assert run(own, model=str(tmp_path / "copy")) == 0
    assert COMPARED not in capfd.readouterr().err
    assert kept(own) == fingerprints(str(tmp_path / "copy"))


def test_an_index_without_a_record_says_nothing(own: World, other: Path, capfd) -> None:
    (own.root / "index" / FILE).unlink()
    assert run(own, model=str(other)) == 0
    assert COMPARED not in capfd.readouterr().err
    assert not (own.root / "index" / FILE).exists()
    put(own, "f.jsonl", lines("f", sentences(5, 1)))
    assert run(own) == 0
    assert kept(own) == fingerprints(str(own.model))
