"""Checkpoints in an object store: fetched once a machine, complete or not at all, whoever asks, dies or changes them."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faulty_store import FaultyStore, Plan, faulty_store
from tests.tiny_models import tiny_model, tiny_tokenizer
from trackstar import local_copies, storage
from trackstar.errors import TrackStarError
from trackstar.models import load_model

pytest_plugins = ["tests.gcs"]

ROOT = Path(__file__).parents[2]
LOADED = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as a training run leaves it: with much that loading does not take."""
    folder = tmp_path_factory.mktemp("trained")
    model = tiny_model("llama")
    model.resize_token_embeddings(300)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "pytorch_model.bin"):
        (folder / name).write_bytes(b"not needed " * 1000)
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "model.safetensors").write_bytes(b"another model")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRACKSTAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store(gcs_server: str, gcs: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    with faulty_store(gcs_server) as store:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", store.address)
        monkeypatch.setenv("TRACKSTAR_STORE_PATIENCE", "6")
        yield store


def put(folder: Path, uri: str) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            storage.write_bytes(f"{uri}/{path.relative_to(folder)}", path.read_bytes())
    return uri


def copies(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if not path.name.endswith(".lock")]


def fetched(store: FaultyStore, name: str) -> int:
    return sum("alt=media" in request and name in request for request, _ in store.seen)


def test_what_loading_takes_is_fetched_once(gcs: str, store: FaultyStore, cache: Path, trained: Path) -> None:
    uri = put(trained, f"{gcs}/model")
    store.seen.clear()
    folder = Path(local_copies.checkpoint(uri))
    assert set(os.listdir(folder)) >= LOADED
    assert {"optimizer.pt", "pytorch_model.bin", "training_args.bin", "checkpoint-3"}.isdisjoint(os.listdir(folder))
    for path in folder.iterdir():
        assert path.read_bytes() == (trained / path.name).read_bytes()
    assert fetched(store, "model.safetensors") == 1
    assert local_copies.checkpoint(uri) == local_copies.checkpoint(f"{uri}/") == str(folder)
    loaded = load_model(uri)
    assert loaded.tokenizer is not None
    assert loaded.fingerprint == load_model(str(trained)).fingerprint
    assert fetched(store, "model.safetensors") == 1
    assert [path.name for path in copies(cache)] == [folder.name]
    assert cache.stat().st_mode & 0o777 == 0o700
    assert local_copies.file(f"{uri}/optimizer.pt").read_bytes() == (trained / "optimizer.pt").read_bytes()


def test_a_local_checkpoint_stays_where_it_is(cache: Path, trained: Path) -> None:
    assert local_copies.checkpoint(str(trained)) == str(trained)
    assert local_copies.file(str(trained / "optimizer.pt")) == trained / "optimizer.pt"
    assert not cache.exists()


def test_without_weights(gcs: str, store: FaultyStore, cache: Path, trained: Path) -> None:
    folder = Path(local_copies.checkpoint(put(trained, f"{gcs}/model"), weights=False))
    assert LOADED - {"model.safetensors"} <= set(os.listdir(folder))
    assert fetched(store, "model.safetensors") == 0


def test_a_checkpoint_that_changed_is_fetched_anew(gcs: str, store: FaultyStore, cache: Path, trained: Path) -> None:
    uri = put(trained, f"{gcs}/model")
    first = local_copies.checkpoint(uri)
    storage.write_bytes(f"{uri}/config.json", (trained / "config.json").read_bytes() + b"\n")
    second = local_copies.checkpoint(uri)
    assert first != second
    assert Path(second, "config.json").read_bytes() == (trained / "config.json").read_bytes() + b"\n"


def test_weights_in_shards(gcs: str, store: FaultyStore, cache: Path, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "model", max_shard_size="40KB")
    shards = {path.name for path in (tmp_path / "model").glob("model-*.safetensors")}
    assert len(shards) > 2
    (tmp_path / "model" / "consolidated.safetensors").write_bytes(b"the same once more")
    uri = put(tmp_path / "model", f"{gcs}/model")
    folder = local_copies.checkpoint(uri)
    assert {name for name in os.listdir(folder) if name.endswith(".safetensors")} == shards
    assert load_model(uri).fingerprint == load_model(str(tmp_path / "model")).fingerprint
    storage.delete(f"{uri}/{min(shards)}")
    with pytest.raises(
        TrackStarError, match=rf"{min(shards)} is not there, and model\.safetensors\.index\.json names it"
    ):
        local_copies.checkpoint(uri)


@pytest.mark.parametrize(
    ("left_out", "message"),
    [("config.json", r"gs://.*/model: no checkpoint here"), ("model.safetensors", r"gs://.*/model: no weights here")],
)
def test_what_is_no_checkpoint(gcs: str, cache: Path, trained: Path, left_out: str, message: str) -> None:
    uri = put(trained, f"{gcs}/model")
    storage.delete(f"{uri}/{left_out}")
    storage.delete(f"{uri}/pytorch_model.bin")
    with pytest.raises(TrackStarError, match=message):
        load_model(uri)


FETCH = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s")
from trackstar import local_copies
print(local_copies.checkpoint(sys.argv[1]))
"""


def start(uri: str) -> subprocess.Popen:
    command = [sys.executable, "-c", FETCH, uri]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def wait_for_partial(cache: Path) -> None:
    deadline = time.monotonic() + 60
    while not list(cache.glob("*.tmp/*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_several_processes_fetch_once(gcs: str, store: FaultyStore, cache: Path, trained: Path, monkeypatch) -> None:
    uri = put(trained, f"{gcs}/model")
    store.plan = Plan(("slow",), in_a_row=1, silence=5.0, only=r"model\.safetensors\S*$")
    monkeypatch.setenv("TRACKSTAR_STORE_PATIENCE", "30")  # so that 5 seconds of silence pass
    processes = [start(uri) for _ in range(3)]
    ends = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ends
    assert len({out for out, _ in ends}) == 1
    assert Path(ends[0][0].strip(), "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    assert sum("fetching gs://" in err for _, err in ends) == 1
    assert sum("waiting for another process of this machine to fetch gs://" in err for _, err in ends) >= 1
    assert fetched(store, "tokenizer.json") == 1


def test_a_process_that_is_killed_while_it_fetches(
    gcs: str, store: FaultyStore, cache: Path, trained: Path, monkeypatch
) -> None:
    uri = put(trained, f"{gcs}/model")
    store.plan = Plan(("slow",), in_a_row=1, silence=60.0, only=r"model\.safetensors\S*$")
    monkeypatch.setenv("TRACKSTAR_STORE_PATIENCE", "300")
    first = start(uri)
    wait_for_partial(cache)
    second = start(uri)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=20)
    store.plan = Plan()
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert Path(out.strip(), "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    assert [path.name for path in copies(cache)] == [Path(out.strip()).name]


def test_a_fetch_that_fails_leaves_nothing(
    gcs: str, store: FaultyStore, cache: Path, trained: Path, monkeypatch
) -> None:
    uri = put(trained, f"{gcs}/model")
    monkeypatch.setenv("TRACKSTAR_STORE_PATIENCE", "0.4")
    store.plan = Plan((503,), in_a_row=None, only="tokenizer.json.*alt=media")
    with pytest.raises(TrackStarError, match=r"model/tokenizer\.json: cannot be read \(\d+ attempts"):
        local_copies.checkpoint(uri)
    assert copies(cache) == []


def test_a_checkpoint_that_changes_while_it_is_fetched(
    gcs: str, store: FaultyStore, cache: Path, trained: Path
) -> None:
    uri = put(trained, f"{gcs}/model")
    listed = storage.list(uri)
    storage.write_bytes(f"{uri}/tokenizer.json", b"{}")
    files = {info.uri.rsplit("/", 1)[-1]: info for info in listed if "checkpoint-3" not in info.uri}
    with pytest.raises(TrackStarError, match=r"tokenizer\.json: cannot be read \(it changed or was deleted"):
        local_copies._local(uri, files)
    assert copies(cache) == []


def test_a_disk_without_room(gcs: str, cache: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = put(trained, f"{gcs}/model")
    full = shutil.disk_usage("/")._replace(free=1000)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: full)
        with pytest.raises(
            TrackStarError,
            match=r"model: its [\d,]+ bytes do not fit into .*cache, where 1,000 are free; .*TRACKSTAR_CACHE",
        ):
            local_copies.checkpoint(uri)
    assert copies(cache) == []


def test_a_disk_that_fills_up(gcs: str, cache: Path, trained: Path) -> None:
    uri = put(trained, f"{gcs}/model")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        with pytest.raises(
            TrackStarError, match=r"model: cannot be copied to .*cache \(File too large; [\d,]+ bytes are needed"
        ):
            local_copies.checkpoint(uri)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert copies(cache) == []


def test_a_cache_that_cannot_be_made(gcs: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("TRACKSTAR_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(TrackStarError, match=r"file/cache: cannot be made .*Not a directory.*TRACKSTAR_CACHE"):
        local_copies.file(f"{put(trained, f'{gcs}/model')}/optimizer.pt")


def test_what_nobody_asks_for_goes(gcs: str, cache: Path, trained: Path) -> None:
    uri = put(trained, f"{gcs}/model")
    old, used = local_copies.file(f"{uri}/optimizer.pt"), local_copies.file(f"{uri}/scheduler.pt")
    for path, days in ((old, 8), (used, 6)):
        then = time.time() - days * 24 * 3600
        os.utime(path.parent, (then, then))
    (cache / "0123.4567.tmp").mkdir()
    local_copies.file(f"{uri}/config.json")
    assert not old.exists()
    assert used.exists()
    assert len(copies(cache)) == 2


def test_an_index_of_shards_that_is_none(gcs: str, cache: Path, trained: Path) -> None:
    uri = put(trained, f"{gcs}/model")
    storage.delete(f"{uri}/model.safetensors")
    for content in (b"{", json.dumps({"weights": 1}).encode(), b"[]"):
        storage.write_bytes(f"{uri}/model.safetensors.index.json", content)
        with pytest.raises(TrackStarError, match=r"index\.json: not an index of weights"):
            local_copies.checkpoint(uri)
