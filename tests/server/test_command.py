"""`trackstar serve`: its flags, what it warns of, and what it refuses before the model is loaded."""

import logging
import socket
from pathlib import Path

import pytest

from pipelines import cli, options, serve
from tests.end_to_end.world import World
from trackstar.server import connections
from trackstar.server.limits import Limits
from trackstar.server.service import Service


@pytest.fixture(autouse=True)
def restored_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """`main` configures logging for its process; pytest's own handlers stay here."""
    monkeypatch.setattr("pipelines.logs.configure", lambda *_, **__: None)


def words(world: World, built: Path, *more: str) -> list[str]:
    return ["serve", "--index", str(built), "--model", str(world.model), "--port", "0", "--threads", "1", *more]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Service]:
    """Services that would have been served; they are said to have started, and end at once."""
    found: list[Service] = []

    def serve_at_once(app, service, listener, on_start) -> None:
        assert listener.getsockname()[1]
        on_start()
        found.append(service)

    monkeypatch.setattr(connections, "serve", serve_at_once)
    return found


@pytest.mark.parametrize(("host", "warns"), [("127.0.0.1", False), ("localhost", False), ("0.0.0.0", True)])
def test_it_warns_where_others_may_ask(
    world: World, built: Path, served: list[Service], caplog: pytest.LogCaptureFixture, host: str, warns: bool
) -> None:
    with caplog.at_level(logging.INFO):
        assert cli.main(words(world, built, "--host", host, "--max_queued", "3")) == 0
    (service,) = served
    assert service.limits == Limits(max_queued=3)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("without a password" in text for text in warnings) == warns


def test_help_names_every_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, field in Limits.__dataclass_fields__.items():
        assert f"--{name} N {field.metadata['help']} ({field.default})" in text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max_queued", "0"], "'0' is not a whole number above zero"),
        (["--port", "70000"], "70000"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
        (["--task_hessian", "auto"], "task_hessian 'auto'"),
        (["--version", "99"], "there is no version 99"),
        (["--hots", "x"], "did you mean --host?"),
        (["--runner=DataflowRunner"], "takes no flags of Beam"),
    ],
)
def test_what_it_refuses(
    world: World, built: Path, capfd: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert cli.main(words(world, built, *more)) == cli.EXIT_USAGE
    shown = capfd.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


def test_a_port_that_is_taken(world: World, built: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert cli.main([*words(world, built), "--port", port]) == cli.EXIT_USAGE
    assert "choose another with --port" in capfd.readouterr().err


def test_it_takes_no_flag_of_beams() -> None:
    parser = options.Parser(prog="trackstar serve")
    serve.add_arguments(parser)
    assert not set(options._flags(parser)) & set(options._flags(options._beam_parser()))


def test_limits_have_to_be_positive() -> None:
    with pytest.raises(Exception, match="--max_streams is 0; it must be at least 1"):
        Limits(max_streams=0)
