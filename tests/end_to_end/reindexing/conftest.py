"""An index that was built once; a test that changes it or its corpus gets it as it was."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import build_index
from tests.end_to_end.world import World, make_corpus
from trackstar import indexing


@pytest.fixture(scope="session")
def home(world: World, fitted: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with an index built from its own corpus, at `root/index`; read only."""
    root = tmp_path_factory.mktemp("home")
    (root / "model").symlink_to(world.model)
    make_corpus(root / "corpus")
    shutil.copytree(fitted, root / "index")
    home = World(root)
    assert home.build(root / "index") == 0
    return home


@pytest.fixture
def own(home: World) -> Iterator[World]:
    """The same, to be changed: it is put back afterwards, because shards are known by their paths."""
    kept = home.root / "kept"
    for name in ("corpus", "index"):
        shutil.copytree(home.root / name, kept / name)
    yield home
    for name in ("corpus", "index"):
        shutil.rmtree(home.root / name)
        shutil.copytree(kept / name, home.root / name)
    shutil.rmtree(kept)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards whose work items were encoded, one for each; runs in this process only."""
    shards: list[str] = []
    original = indexing.encode_item

    def counting(encoder, index, item, *args):
        file, existed = original(encoder, index, item, *args)
        shards.extend([] if existed else [Path(item.shard).name])
        return file, existed

    monkeypatch.setattr(build_index, "encode_item", counting)
    return shards
