"""A checkpoint told from another by its files: by content where they are small, else by size and time or generation."""

import os
import shutil
from pathlib import Path

import pytest

from tests.tiny_models import tiny_model, tiny_tokenizer
from trackstar import checkpoint_files, storage

pytest_plugins = ["tests.gcs"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_small_files_by_content_and_large_ones_by_time(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkpoint / "global_step3").mkdir()
    (checkpoint / "global_step3" / "states.pt").write_bytes(b"")
    first = checkpoint_files.fingerprints(str(checkpoint))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(first)
    assert all("/" not in name for name in first)
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    for path in copy.iterdir():
        os.utime(path, (1, 1))
    assert checkpoint_files.fingerprints(str(copy)) == first
    monkeypatch.setattr(checkpoint_files, "_SMALL", (copy / "model.safetensors").stat().st_size - 1)
    by_time = [checkpoint_files.fingerprints(str(folder)) for folder in (checkpoint, copy)]
    assert {name for name in first if by_time[0][name] != by_time[1][name]} == {"model.safetensors"}
    with (copy / "config.json").open("r+") as file:  # no longer than before
        file.write("[")
    os.utime(copy / "config.json", (2, 2))
    assert checkpoint_files.fingerprints(str(copy))["config.json"] != first["config.json"]


def test_objects_by_generation(checkpoint: Path, gcs: str) -> None:
    for path in checkpoint.iterdir():
        storage.copy(str(path), f"{gcs}/model/{path.name}")
    first = checkpoint_files.fingerprints(f"{gcs}/model")
    assert first == checkpoint_files.fingerprints(f"{gcs}/model/")
    assert set(first) == {path.name for path in checkpoint.iterdir()}
    storage.copy(str(checkpoint / "config.json"), f"{gcs}/model/config.json")
    second = checkpoint_files.fingerprints(f"{gcs}/model")
    assert {name for name in first if first[name] != second[name]} == {"config.json"}


def test_what_was_kept_is_compared_and_nothing_else(tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    files = {"config.json": "1", "model.safetensors": "2"}
    assert not checkpoint_files.are_others(index, files)  # nothing was kept
    checkpoint_files.record(index, files)
    before = (tmp_path / "index" / checkpoint_files.FILE).stat().st_mtime_ns
    checkpoint_files.record(index, files)
    checkpoint_files.record(index, {})
    assert (tmp_path / "index" / checkpoint_files.FILE).stat().st_mtime_ns == before
    assert not checkpoint_files.are_others(index, files)
    assert not checkpoint_files.are_others(index, {})  # a hub name, or a folder that is not there
    assert checkpoint_files.are_others(index, {**files, "model.safetensors": "3"})
    assert checkpoint_files.are_others(index, {"config.json": "1"})
    (tmp_path / "index" / checkpoint_files.FILE).write_text('{"files": 1')
    assert not checkpoint_files.are_others(index, {"config.json": "3"})


@pytest.mark.parametrize("name", ["gpt2", "some/model", "/no/such/model"])
def test_what_is_no_folder_has_no_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert checkpoint_files.fingerprints(name) == {}
