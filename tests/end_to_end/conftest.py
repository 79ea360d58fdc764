"""Worlds are made once; a test that changes one copies it first."""

import shutil
from pathlib import Path

import pytest

from tests.end_to_end.world import World, make_corpus, make_model


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A model and a corpus; read only."""
    made = World(tmp_path_factory.mktemp("world"))
    make_model(made.model)
    make_corpus(made.corpus)
    return made


@pytest.fixture(scope="session")
def fitted(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with a spec and no encodings; read only."""
    index = tmp_path_factory.mktemp("fitted") / "index"
    assert world.fit(index) == 0
    return index


@pytest.fixture(scope="session")
def built(world: World, fitted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole index, built in one undisturbed run in this process; read only."""
    index = tmp_path_factory.mktemp("built") / "index"
    shutil.copytree(fitted, index)
    assert world.build(index) == 0
    return index


@pytest.fixture
def index(fitted: Path, tmp_path: Path) -> Path:
    """A fitted index of the test's own."""
    shutil.copytree(fitted, tmp_path / "index")
    return tmp_path / "index"
