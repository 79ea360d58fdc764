"""A real index and its model, open; servers are started by the tests (`tests.server.running`)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import cli
from tests.end_to_end.conftest import built, fitted, world  # noqa: F401
from tests.end_to_end.world import World
from tests.server.running import Gated, Running, running
from trackstar.tracing import Tracer, open_index


@pytest.fixture(scope="session")
def tracer(world: World, built: Path) -> Tracer:  # noqa: F811
    """The whole index, with its model."""
    return open_index(str(built), str(world.model), "cpu", threads=1)


@pytest.fixture(scope="session")
def mlp_tracer(world: World, tmp_path_factory: pytest.TempPathFactory) -> Tracer:  # noqa: F811
    """Of an index by the default recipe, sign bits, but of the MLPs' weights alone."""
    index = tmp_path_factory.mktemp("mlp") / "index"
    assert cli.main(["fit", *world.flags(index), "--attributed", "mlp", "--sample_size", "120"]) == 0
    assert world.build(index) == 0
    return open_index(str(index), str(world.model), "cpu", threads=1)


@pytest.fixture(scope="module")
def server(tracer: Tracer) -> Iterator[Running]:
    """A server with the usual limits; tests that fill its queue or history start their own."""
    with running(tracer) as started:
        yield started


@pytest.fixture
def gated(tracer: Tracer, monkeypatch: pytest.MonkeyPatch) -> Gated:
    """The tracer with a gate before each file of the index, shut."""
    monkeypatch.setattr("trackstar.index_scan._GROUP_BYTES", 1)  # a file at a time
    return Gated(tracer)
